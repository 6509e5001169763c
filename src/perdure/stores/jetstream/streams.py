"""Makes the streams of a store once, and refuses those that are not as they must be."""

from __future__ import annotations

import asyncio
import logging
import secrets

from perdure.errors import StoreError, StoreUnavailable, StoreUnfit
from perdure.stores.jetstream.layout import Layout, check_settings, check_version
from perdure.stores.jetstream.wire import NO_STREAM, Wire, WrongSequence, without_credentials

SECRET_BYTES = 32

log = logging.getLogger("perdure.jetstream")


async def prepare(wire: Wire, layout: Layout, replicas: int | None) -> int:
    """Check server and streams, or make the streams of a new store; return how many replicas they have.

    Streams are made together. If some are there and others are not, something was lost: that is refused.
    """
    where = without_credentials(wire.servers[0])
    check_version(wire.server_version, where)
    info = await wire.api("INFO")
    if (error := info.get("error")) is not None:
        raise StoreUnavailable(
            f"{where}: JetStream is not to be had for this account ({error.get('description')}): enable it in the "
            "server's configuration, `jetstream {}`"
        )
    wanted = layout.streams(replicas or 1)
    found = await asyncio.gather(*(wire.api(f"STREAM.INFO.{each['name']}") for each in wanted))
    missing = [each for each, answer in zip(wanted, found, strict=True) if _is_missing(answer)]
    if len(missing) == len(wanted):
        await _refuse_others(wire, layout, where)
        log.info("%s: making the streams of a new store, %d shards", where, layout.shards)
        for each in wanted:  # one after the other: two workers that begin together make the same
            answer = await wire.api(f"STREAM.CREATE.{each['name']}", each)
            _check_answer(answer, each["name"], where)
        found = await asyncio.gather(*(wire.api(f"STREAM.INFO.{each['name']}") for each in wanted))
    elif missing and not await _appear(wire, [each["name"] for each in missing]):
        names = ", ".join(each["name"] for each in missing)
        raise StoreUnfit(f"{where}: streams are missing: {names}; restore them from a backup, they are not made anew")
    else:
        found = await asyncio.gather(*(wire.api(f"STREAM.INFO.{each['name']}") for each in wanted))
    for each, answer in zip(wanted, found, strict=True):
        _check_answer(answer, each["name"], where)
        check_settings(answer["config"], each, where)
    return int(found[0]["config"].get("num_replicas", 1))


def _is_missing(answer: dict[str, object]) -> bool:
    error = answer.get("error")
    return isinstance(error, dict) and error.get("err_code") == NO_STREAM  # pyright: ignore[reportUnknownMemberType]


def _check_answer(answer: dict[str, object], name: str, where: str) -> None:
    error = answer.get("error")
    if isinstance(error, dict):
        text = error.get("description")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        raise StoreUnfit(f"{where}: stream {name}: {text}")


async def _appear(wire: Wire, names: list[str]) -> bool:
    """Wait for streams that another worker may be making just now."""
    for _ in range(20):
        await asyncio.sleep(0.1)
        answers = await asyncio.gather(*(wire.api(f"STREAM.INFO.{name}") for name in names))
        if not any(map(_is_missing, answers)):
            return True
    return False


async def _refuse_others(wire: Wire, layout: Layout, where: str) -> None:
    """Refuse to make streams beside those of the same store with another number of shards."""
    answer = await wire.api("STREAM.NAMES", {"subject": f"{layout.namespace}.>"})
    if names := answer.get("streams"):
        raise StoreUnfit(f"{where}: the subjects {layout.namespace}.> belong to other streams already: {names}")


async def ensure_consumer(wire: Wire, stream: str, name: str, settings: dict[str, object]) -> None:
    """Make a durable consumer, or bring its settings up to date."""
    body = {"stream_name": stream, "config": settings}
    answer = await wire.api(f"CONSUMER.DURABLE.CREATE.{stream}.{name}", body)
    if (error := answer.get("error")) is not None:
        raise StoreError(f"jetstream: consumer {name} of {stream}: {error.get('description')}")


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
