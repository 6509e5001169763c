"""The settings of streams and consumers, and checks of a server's streams and limits."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from perdure.errors import StoreUnfit
from perdure.stores.jetstream.layout.subjects import EVENTS, Layout, token

VERSION = 1
"""The version of this layout, stored in the metadata of every stream."""
SERVER_AT_LEAST = (2, 15, 1)
"""Older servers ignore settings that they do not know, and report success."""

STREAMS_OF_A_PARTITION = 4
ATOMIC = "allow_atomic"
"""The setting that permits atomic batches. Stores of earlier releases are given it when one is first written."""
ROOM_BYTES = 1 << 20
"""Free storage that the account must have for each stream to be created."""


def stream_settings(layout: Layout, replicas: int) -> list[dict[str, Any]]:
    """Return the configuration of every stream."""
    found: list[dict[str, Any]] = []
    for partition in range(layout.partitions):
        found += (
            _settings(layout, "J", partition, replicas, ["j"], republish="j.{}.>"),
            _settings(layout, "Q", partition, replicas, ["q", "t", "l"], republish="q.{}.start.>"),
            _settings(layout, "K", partition, replicas, ["k"], republish="k.{}.answer.>"),
            _settings(layout, "B", partition, replicas, ["b"]),
        )
    return found


def _settings(
    layout: Layout, kind: str, partition: int, replicas: int, subjects: list[str], republish: str | None = None
) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "name": layout.stream(kind, partition),
        "subjects": [f"{layout.namespace}.{each}.{partition}.>" for each in subjects],
        "retention": "workqueue" if kind == "Q" else "limits",
        "storage": "file",
        "discard": "new" if kind in "JB" else "old",  # the server refuses "new" with schedules; there is no limit
        "num_replicas": replicas,
        "max_msgs_per_subject": 1 if kind == "K" else -1,
        "discard_new_per_subject": False,
        "allow_direct": True,
        "allow_rollup_hdrs": kind in "JQ",  # schedules need it
        "allow_msg_ttl": kind in "JK",
        "allow_msg_schedules": kind == "Q",
        ATOMIC: kind == "K",
        "metadata": {"perdure-layout": str(VERSION), "perdure-shards": str(layout.partitions)},
    }
    if republish is not None:
        source = f"{layout.namespace}.{republish.format(partition)}"
        settings["republish"] = {
            "src": source,
            "dest": f"{layout.namespace}.{EVENTS}.{republish.format(partition)}",
            "headers_only": kind != "K",
        }
    return settings


def consumer_of_starts(layout: Layout, handler: str, ack_wait: float) -> tuple[str, dict[str, Any]]:
    return _consumer(layout, "start", "start." + token(handler) + ".>", handler, ack_wait)


def consumer_of_passed_on(layout: Layout, handler: str, ack_wait: float) -> tuple[str, dict[str, Any]]:
    return _consumer(layout, "to", "to." + token(handler) + ".>", handler, ack_wait)


def consumer_of_messages(layout: Layout, ack_wait: float) -> tuple[str, dict[str, Any]]:
    return _consumer(layout, "msg", "msg.>", "", ack_wait)


def consumer_of_keys(layout: Layout, ack_wait: float) -> tuple[str, dict[str, Any]]:
    return _consumer(layout, "key", "key.>", "", ack_wait)


def _consumer(layout: Layout, kind: str, filter: str, handler: str, ack_wait: float) -> tuple[str, dict[str, Any]]:
    name = f"{kind}-{hashlib.blake2b(handler.encode(), digest_size=8).hexdigest()}" if handler else kind
    settings: dict[str, Any] = {
        "durable_name": name,
        "description": f"{kind} {handler}".strip(),
        "filter_subject": layout.namespace + ".q.{}." + filter,
        "ack_policy": "explicit",
        "ack_wait": int(ack_wait * 1e9),
        "max_ack_pending": -1,
        "max_waiting": 10_000,
        "max_deliver": -1,
        "deliver_policy": "all",
        "replay_policy": "instant",
    }
    return name, settings


def check_version(version: str, where: str) -> None:
    """Refuse a server that is too old."""
    numbers = tuple(int(each) for each in re.findall(r"\d+", version)[:3])
    if numbers < SERVER_AT_LEAST:
        wanted = ".".join(map(str, SERVER_AT_LEAST))
        raise StoreUnfit(
            f"{where}: nats-server {version or '(unknown version)'} is too old, and would silently ignore settings: "
            f"upgrade it to {wanted} or later"
        )


def check_settings(found: dict[str, Any], wanted: dict[str, Any], where: str) -> None:
    """Refuse a stream whose settings on the server are not those that it must have."""
    name = wanted["name"]
    metadata: dict[str, str] = found.get("metadata") or {}
    layout, partitions = metadata.get("perdure-layout"), metadata.get("perdure-shards")
    if layout is not None and layout != str(VERSION):
        raise StoreUnfit(
            f"{where}: stream {name} has layout {layout}, this release supports {VERSION}: use the other release"
        )
    if partitions is not None and partitions != wanted["metadata"]["perdure-shards"]:
        mine = wanted["metadata"]["perdure-shards"]
        raise StoreUnfit(
            f"{where}: stream {name} is one of {partitions} partitions, not {mine}: the number cannot be changed"
        )
    for field, value in wanted.items():
        if field in ("num_replicas", "metadata", "name", ATOMIC):  # see `Batches` for the last
            continue
        has = found.get(field)
        if field == "republish" and has is not None:
            has = {each: has.get(each, False) for each in value}
        if has != value and not (not has and not value):
            raise StoreUnfit(
                f"{where}: stream {name} has {field} = {has!r}, and must have {value!r}: correct it with "
                "`nats stream edit`, or use another namespace"
            )


def needed(partitions: int) -> str:
    """Return what a store needs of an account's limits, as text."""
    streams = STREAMS_OF_A_PARTITION * partitions
    return (
        f"a store of {partitions} partitions needs {streams} streams, {2 * partitions} consumers and {2 * partitions} "
        f"more for each handler, {partitions} for each process that lists or counts, and {_room(streams) >> 20} MiB to "
        "start with"
    )


def check_limits(info: dict[str, Any], partitions: int, missing: int, where: str) -> None:
    """Refuse an account whose limits do not permit the missing streams, before any of them is created."""
    limits: dict[str, int] = info.get("limits") or {}
    for has, used, wants, what in (
        (limits.get("max_streams", -1), info.get("streams", 0), missing, "streams"),
        (limits.get("max_consumers", -1), info.get("consumers", 0), 4 * partitions, "consumers"),
        (limits.get("max_storage", -1), info.get("storage", 0), _room(missing), "bytes on disk"),
    ):
        if 0 <= has < used + wants:
            text = f"{where}: the limits of this account are too low: {has:,} {what}, of which {used:,} are in use"
            raise StoreUnfit(f"{text}, and {wants:,} more are needed; {needed(partitions)}")


def _room(streams: int) -> int:
    return streams * ROOM_BYTES
