"""Makes the streams of a store once, and refuses those that are not as they must be."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence
from typing import Any

from perdure.errors import StoreError, StoreUnavailable, StoreUnfit
from perdure.stores.clock import SystemClock
from perdure.stores.jetstream.layout.settings import check_settings, check_version, stream_settings
from perdure.stores.jetstream.layout.subjects import SHARDS, Layout
from perdure.stores.jetstream.wire.access import without_credentials
from perdure.stores.jetstream.wire.checks import SYNCED, check_clock, warn_of_lost_writes
from perdure.stores.jetstream.wire.protocol import NO_STREAM, WrongSequence
from perdure.stores.jetstream.wire.wire import Wire
from perdure.stores.port import Clock

SECRET_BYTES = 32
APPEAR_SECONDS = 2.0
"""How long another worker may take to make the streams."""
APPEAR_POLL_SECONDS = 0.1

log = logging.getLogger("perdure.jetstream")


async def prepare(
    wire: Wire,
    layout: Layout,
    replicas: int | None,
    clock: Clock,
    *,
    adopt: bool = False,
    make: bool = True,
    synced: bool = False,
) -> int:
    """Check server and streams, or make the streams of a new store; return how many replicas they have.

    Streams are made together. If some are there and others are not, something was lost: that is refused. With `adopt`
    the number of partitions is that of the store, if it exists. `synced` is noted when streams are made.
    """
    where = without_credentials(wire.servers[0])
    check_version(wire.server_version, where)
    info = await wire.api("INFO")
    if (error := info.get("error")) is not None:
        raise StoreUnavailable(
            f"{where}: JetStream is not to be had for this account ({error.get('description')}): enable it in the "
            "server's configuration, `jetstream {}`"
        )
    if adopt:
        await adopt_partitions(wire, layout)
    wanted = stream_settings(layout, replicas or 1)
    found = await _infos(wire, wanted)
    missing = [each for each, answer in zip(wanted, found, strict=True) if _is_missing(answer)]
    if len(missing) == len(wanted):
        await _refuse_others(wire, layout, where)
        if not make:
            raise StoreUnfit(f"{where}: there is no store yet: `perdure nats init` or the first worker makes it")
        log.info("%s: making the streams of a new store, %d partitions", where, layout.partitions)
        for each in wanted:  # one after the other: two workers that begin together make the same
            if synced:
                each["metadata"][SYNCED] = "always"
            answer = await wire.api(f"STREAM.CREATE.{each['name']}", each)
            _check_answer(answer, each["name"], where)
    elif missing:
        for each, answer in zip(wanted, found, strict=True):  # another number of partitions is no loss
            if not _is_missing(answer):
                _check_answer(answer, each["name"], where)
                check_settings(answer["config"], each, where)
        if not await _appear(wire, [each["name"] for each in missing]):
            names = ", ".join(each["name"] for each in missing)
            raise StoreUnfit(
                f"{where}: streams are missing: {names}; restore them from a backup, they are not made anew"
            )
    before = clock.now()
    found = await _infos(wire, wanted)
    for each, answer in zip(wanted, found, strict=True):
        _check_answer(answer, each["name"], where)
        check_settings(answer["config"], each, where)
    check_clock(str(found[0].get("ts", "")), before, clock.now(), where)
    config: dict[str, Any] = found[0]["config"]
    copies = int(config.get("num_replicas", 1))
    warn_of_lost_writes(copies, config.get("metadata") or {}, where)
    return copies


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
    """Make the streams of a store, unless they exist as they are wanted; return their partitions, and if they are new.

    `StoreUnfit` when they exist and are different.
    """
    layout = Layout(namespace, shards or SHARDS)
    wire = Wire(servers, options)
    await wire.open()
    try:
        there = await wire.api(f"STREAM.INFO.{layout.stream('J', 0)}")
        new = _is_missing(there)
        copies = await prepare(wire, layout, replicas, SystemClock(), adopt=shards is None, synced=synced)
        if copies != replicas:
            where = without_credentials(wire.servers[0])
            raise StoreUnfit(
                f"{where}: the streams exist, with {copies} replicas each: `nats stream edit --replicas {replicas}` "
                "changes that for each of them, while workers run"
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
    """Take over the number of partitions of a store that exists."""
    answer = await wire.api(f"STREAM.INFO.{layout.stream('J', 0)}")
    config: dict[str, Any] = answer.get("config") or {}
    metadata: dict[str, str] = config.get("metadata") or {}
    stored = metadata.get("perdure-shards", "")
    if stored.isdecimal():
        layout.partitions = int(stored)


def _is_missing(answer: dict[str, Any]) -> bool:
    error: dict[str, Any] = answer.get("error") or {}
    return error.get("err_code") == NO_STREAM


def _check_answer(answer: dict[str, Any], name: str, where: str) -> None:
    if (error := answer.get("error")) is not None:
        raise StoreUnfit(f"{where}: stream {name}: {error.get('description')}")


async def _appear(wire: Wire, names: list[str]) -> bool:
    """Wait for streams that another worker may be making just now."""
    for _ in range(int(APPEAR_SECONDS / APPEAR_POLL_SECONDS)):
        await asyncio.sleep(APPEAR_POLL_SECONDS)
        answers = await asyncio.gather(*(wire.api(f"STREAM.INFO.{name}") for name in names))
        if not any(map(_is_missing, answers)):
            return True
    return False


async def _refuse_others(wire: Wire, layout: Layout, where: str) -> None:
    """Refuse to make streams beside those of the same store with another number of partitions."""
    answer = await wire.api("STREAM.NAMES", {"subject": f"{layout.namespace}.>"})
    if names := answer.get("streams"):
        raise StoreUnfit(f"{where}: the subjects {layout.namespace}.> belong to other streams already: {names}")


async def ensure_consumer(wire: Wire, stream: str, name: str, settings: dict[str, object]) -> bool:
    """Make a durable consumer, or bring its settings up to date; tell whether it has delivered nothing yet."""
    body = {"stream_name": stream, "config": settings}
    answer = await wire.api(f"CONSUMER.DURABLE.CREATE.{stream}.{name}", body)
    if (error := answer.get("error")) is not None:
        raise StoreError(f"jetstream: consumer {name} of {stream}: {error.get('description')}")
    return answer.get("delivered", {}).get("consumer_seq") == 0


async def read_secret(wire: Wire, layout: Layout) -> bytes:
    """Return the secret of the store, made by whoever came first."""
    subject = layout.secret()
    stream = layout.stream_of(subject)
    while (found := await wire.last(stream, subject)) is None:
        try:
            await wire.store(subject, secrets.token_bytes(SECRET_BYTES), expected=0)
        except WrongSequence:
            continue
    return found.data
