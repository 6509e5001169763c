"""Creates the streams of a store once, and refuses streams with wrong settings."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Sequence
from typing import Any

from perdure.errors import StoreError, StoreUnavailable, StoreUnfit
from perdure.stores.clock import SystemClock
from perdure.stores.jetstream.layout.settings import (
    check_limits,
    check_settings,
    check_version,
    needed,
    stream_settings,
)
from perdure.stores.jetstream.layout.subjects import SHARDS, Layout
from perdure.stores.jetstream.wire.access import shown
from perdure.stores.jetstream.wire.checks import SYNCED, check_clock, warn_of_lost_writes
from perdure.stores.jetstream.wire.protocol import NO_STREAM, WrongSequence
from perdure.stores.jetstream.wire.wire import Wire

SECRET_BYTES = 32
APPEAR_SECONDS = 2.0
"""How long another worker may take to create the streams."""
APPEAR_POLL_SECONDS = 0.1

Settings = dict[str, Any]
Info = dict[str, Any]

log = logging.getLogger("perdure.jetstream")


async def prepare(
    wire: Wire,
    layout: Layout,
    replicas: int | None,
    clock: SystemClock,
    *,
    adopt: bool = False,
    make: bool = True,
    synced: bool = False,
) -> int:
    """Check the server and the streams, or create the streams of a new store; return how many replicas they have.

    A creation that was interrupted is completed: until it is complete, all streams are empty. If some streams are
    missing and others are not empty, data was lost, and the store is refused. With `adopt`, an existing store sets the
    number of partitions. `synced` is stored in the metadata of streams that are created.
    """
    where = shown(wire.servers[0])
    check_version(wire.server_version, where)
    info = await wire.api("INFO")
    if (error := info.get("error")) is not None:
        raise StoreUnavailable(
            f"{where}: JetStream is not enabled for this account ({error.get('description')}): enable it in the "
            "server's configuration, `jetstream {}`"
        )
    if adopt:
        await adopt_partitions(wire, layout)
    wanted = stream_settings(layout, replicas or 1)
    found = await _infos(wire, wanted)
    if any(map(_is_missing, found)):
        found = await _complete(wire, layout, wanted, found, info, where, make=make, synced=synced)
    before = clock.machine_now()
    found = await _infos(wire, wanted)
    _check_all(wanted, found, where)
    check_clock(str(found[0].get("ts", "")), before, clock.machine_now(), where)
    config: dict[str, Any] = found[0]["config"]
    copies = int(config.get("num_replicas", 1))
    if make:  # what only reads is told nothing of writes
        warn_of_lost_writes(copies, config.get("metadata") or {}, where)
    return copies


async def _complete(
    wire: Wire,
    layout: Layout,
    wanted: Sequence[Settings],
    found: list[Info],
    info: Info,
    where: str,
    *,
    make: bool,
    synced: bool,
) -> list[Info]:
    """Create the missing streams, unless they had data that is lost."""
    there = [(each, answer) for each, answer in zip(wanted, found, strict=True) if not _is_missing(answer)]
    missing = [each for each, answer in zip(wanted, found, strict=True) if _is_missing(answer)]
    _check_all(
        [each for each, _ in there], [answer for _, answer in there], where
    )  # before streams are called missing: another number of partitions is its own error
    if not there:
        await _refuse_others(wire, layout, where)
    if any(_has_had_messages(answer) for _, answer in there):
        names = [each["name"] for each in missing]
        if await _appear(wire, names):  # another worker created them meanwhile
            return await _infos(wire, wanted)
        raise StoreUnfit(
            f"{where}: streams are missing: {', '.join(names)}: restore them from a backup; they are not created again"
        )
    if not make:
        raise StoreUnfit(f"{where}: there is no store yet: `perdure nats init` or the first worker creates it")
    check_limits(info, layout.partitions, len(missing), where)
    if there:
        log.warning(
            "%s: the creation of the store was interrupted: creating the %d missing streams", where, len(missing)
        )
    else:
        log.info("%s: creating the streams of a new store, %d partitions", where, layout.partitions)
    first: Settings = there[0][1]["config"] if there else {}
    metadata: dict[str, str] = first.get("metadata") or {}
    for each in missing:  # one by one, in a fixed order, so that two workers that start together create the same
        each["num_replicas"] = first.get("num_replicas", each["num_replicas"])
        if synced or metadata.get(SYNCED) == "always":
            each["metadata"][SYNCED] = "always"
        answer = await wire.api(f"STREAM.CREATE.{each['name']}", each)
        if (error := answer.get("error")) is not None:
            needs = needed(layout.partitions)
            text = f"{where}: stream {each['name']} cannot be created: {error.get('description')}"
            raise StoreUnfit(f"{text}; {needs}. The creation is completed once there is room")
    return found


def _check_all(wanted: Sequence[Settings], found: Sequence[Info], where: str) -> None:
    for each, answer in zip(wanted, found, strict=True):
        _check_answer(answer, each["name"], where)
        check_settings(answer["config"], each, where)


def _has_had_messages(answer: Info) -> bool:
    """Report whether a stream has ever held a message. The secret, the first one, is written to a complete store."""
    state: dict[str, Any] = answer.get("state") or {}
    return int(state.get("last_seq", 0)) > 0


async def _infos(wire: Wire, wanted: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return await asyncio.gather(*(wire.api(f"STREAM.INFO.{each['name']}") for each in wanted))


async def make(
    servers: Sequence[str],
    options: dict[str, Any],
    *,
    replicas: int,
    shards: int | None,
    synced: bool,
    namespace: str = "perdure",
) -> tuple[int, bool]:
    """Create the streams of a store, unless they exist; return the number of partitions, and whether they are new.

    `StoreUnfit` if they exist with other settings.
    """
    layout = Layout(namespace, shards or SHARDS)
    wire = Wire(servers, options)
    await wire.open()
    try:
        there = await wire.api(f"STREAM.INFO.{layout.stream('J', 0)}")
        new = _is_missing(there)
        copies = await prepare(wire, layout, replicas, SystemClock(), adopt=shards is None, synced=synced)
        if copies != replicas:
            where = shown(wire.servers[0])
            raise StoreUnfit(
                f"{where}: the streams exist, with {copies} replicas each: change each with "
                f"`nats stream edit --replicas {replicas}`, also while workers run"
            )
        if synced and not new:
            await _note_synced(wire, layout, replicas)
    finally:
        await wire.close()
    return layout.partitions, new


async def _note_synced(wire: Wire, layout: Layout, replicas: int) -> None:
    for each in stream_settings(layout, replicas):
        answer = await wire.api(f"STREAM.INFO.{each['name']}")
        config: dict[str, Any] = answer["config"]
        config["metadata"] = {**(config.get("metadata") or {}), SYNCED: "always"}
        _check_answer(await wire.api(f"STREAM.UPDATE.{each['name']}", config), each["name"], wire.servers[0])


async def adopt_partitions(wire: Wire, layout: Layout) -> None:
    """Use the number of partitions of an existing store, from any of its streams."""
    names: list[str] = (await wire.api("STREAM.NAMES", {"subject": f"{layout.namespace}.>"})).get("streams") or []
    for name in sorted(each for each in names if each.startswith(f"{layout.namespace.upper()}_")):
        config: dict[str, Any] = (await wire.api(f"STREAM.INFO.{name}")).get("config") or {}
        metadata: dict[str, str] = config.get("metadata") or {}
        stored = metadata.get("perdure-shards", "")
        if stored.isdecimal():
            layout.partitions = int(stored)
            return


def _is_missing(answer: dict[str, Any]) -> bool:
    error: dict[str, Any] = answer.get("error") or {}
    return error.get("err_code") == NO_STREAM


def _check_answer(answer: dict[str, Any], name: str, where: str) -> None:
    if (error := answer.get("error")) is not None:
        raise StoreUnfit(f"{where}: stream {name}: {error.get('description')}")


async def _appear(wire: Wire, names: list[str]) -> bool:
    """Wait for streams that another worker may be creating; return whether they exist now."""
    for _ in range(int(APPEAR_SECONDS / APPEAR_POLL_SECONDS)):
        await asyncio.sleep(APPEAR_POLL_SECONDS)
        answers = await asyncio.gather(*(wire.api(f"STREAM.INFO.{name}") for name in names))
        if not any(map(_is_missing, answers)):
            return True
    return False


async def _refuse_others(wire: Wire, layout: Layout, where: str) -> None:
    """Refuse to create streams if others use the subjects, as those of a store with more partitions do."""
    answer = await wire.api("STREAM.NAMES", {"subject": f"{layout.namespace}.>"})
    own = {each["name"] for each in stream_settings(layout, 1)}  # another worker may be creating them
    streams: list[str] = answer.get("streams") or []
    if names := sorted({*streams} - own):
        raise StoreUnfit(f"{where}: the subjects {layout.namespace}.> already belong to other streams: {names}")


async def ensure_consumer(wire: Wire, stream: str, name: str, settings: dict[str, object]) -> bool:
    """Create a durable consumer, or update its settings; return whether it has delivered nothing yet."""
    body = {"stream_name": stream, "config": settings}
    answer = await wire.api(f"CONSUMER.DURABLE.CREATE.{stream}.{name}", body)
    if (error := answer.get("error")) is not None:
        raise StoreError(f"jetstream: consumer {name} of {stream}: {error.get('description')}")
    return answer.get("delivered", {}).get("consumer_seq") == 0


async def read_secret(wire: Wire, layout: Layout, *, keep: bool = True) -> bytes:
    """Return the secret of the store; the first process to read it creates it.

    A copy replaces it if it is lost. With `keep`, a missing copy is written, without waiting for it.
    """
    subject, copy_subject = layout.secret(), layout.secret_copy()
    stream, copy_stream = layout.stream_of(subject), layout.stream_of(copy_subject)
    copy = await wire.last(copy_stream, copy_subject)
    while (found := await wire.last(stream, subject)) is None:
        if copy is not None:
            log.error("%s lost the secret of the store: restoring it from its copy in %s", stream, copy_stream)
        secret = secrets.token_bytes(SECRET_BYTES) if copy is None else copy.data
        with contextlib.suppress(WrongSequence):
            await wire.store(subject, secret, expected=0)
    if copy is None and keep:
        wire.put(copy_subject, found.data, lambda _sequence, _error: None, expected=0)
    return found.data
