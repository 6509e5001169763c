"""Removes the consumers of handlers that no worker serves any more, and queues again what a consumer passed over.

A consumer is idle when no worker pulls from it and it has nothing pending. Nothing is lost with it: a worker that
serves the handler again creates a new one, which delivers everything that is queued.

A message is passed over when it lies at or below the floor of its consumer: the server counts it as acknowledged, and
would have removed it. Releases before 2026-12-01 could make the server do so (`wire.reads.purge`), and backups do whose
streams are older than their consumers.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Any

from msgspec import Struct

from perdure.stores.jetstream.layout.facts import FACTS
from perdure.stores.jetstream.layout.subjects import Layout
from perdure.stores.jetstream.wire.protocol import Stored, raise_error
from perdure.stores.jetstream.wire.wire import Wire

IDLE_SECONDS = 3_600.0
"""How long a consumer must have been idle before it is removed."""

ConsumerName = tuple[str, str]
"""A stream and a consumer of it."""


class PassedOver(Struct, frozen=True):
    """A message that its consumer will not deliver."""

    stream: str
    consumer: str
    sequence: int


log = logging.getLogger("perdure.jetstream")


class Consumers:
    """Finds and removes idle consumers, and finds and queues what a consumer passed over."""

    def __init__(self, wire: Wire, layout: Layout) -> None:
        self._wire = wire
        self._layout = layout

    async def idle(self) -> dict[ConsumerName, str]:
        """Return the idle consumers, each with its time of creation."""
        return {(stream, each["name"]): each["created"] async for stream, each in self._all() if _is_idle(each)}

    async def _all(self) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        """Iterate over the consumers of the queue, each with its stream."""
        for partition in range(self._layout.partitions):
            stream = self._layout.stream("Q", partition)
            offset = 0
            while True:
                answer = await self._wire.api(f"CONSUMER.LIST.{stream}", {"offset": offset})
                raise_error(answer, stream)
                page: list[dict[str, Any]] = answer.get("consumers") or []
                for each in page:
                    yield stream, each
                offset += len(page)
                if not page or offset >= int(answer.get("total", 0)):
                    break

    async def remove(self, consumers: dict[ConsumerName, str]) -> list[str]:
        """Remove consumers; return the lines that were logged."""
        done: list[str] = []
        for stream, name in consumers:
            await self._wire.api(f"CONSUMER.DELETE.{stream}.{name}")
            done.append(f"consumer {name} of {stream} is removed: no worker serves its handler any more")
            log.info("%s", done[-1])
        return done

    # --- what was passed over -----------------------------------------------------------------------------------------
    async def passed_over(self) -> set[PassedOver]:
        """Return the first message that each consumer passed over. One may have been acknowledged at this moment."""
        found: set[PassedOver] = set()
        async for stream, info in self._all():
            if (first := await self._first_below_floor(stream, info)) is not None:
                found.add(PassedOver(stream, info["name"], first.sequence))
        return found

    async def _first_below_floor(self, stream: str, info: dict[str, Any]) -> Stored | None:
        acknowledged: dict[str, Any] = info.get("ack_floor") or {}
        floor, subject = int(acknowledged.get("stream_seq", 0)), info["config"].get("filter_subject")
        if not floor or not subject:  # a consumer without a filter is none of ours
            return None
        first = await self._wire.first(stream, subject)
        return first if first is not None and first.sequence <= floor else None

    async def queue_again(self, passed_over: set[PassedOver]) -> list[str]:
        """Queue what these consumers passed over at the end of their streams; return the lines that were logged."""
        done: list[str] = []
        for each in passed_over:
            info = await self._wire.api(f"CONSUMER.INFO.{each.stream}.{each.consumer}")
            count = 0
            while "config" in info and (found := await self._first_below_floor(each.stream, info)) is not None:
                await self._wire.store(found.subject, found.data, headers=_facts_line(found))
                await self._wire.delete(each.stream, found.sequence)
                count += 1
            if count:
                where = f"{count} messages in {each.stream}, the first of sequence {each.sequence}"
                done.append(f"{where}, were passed over by consumer {each.consumer}: queueing them again")
                log.warning("%s", done[-1])
        return done


def _facts_line(stored: Stored) -> bytes:
    """Return the header line that tells the facts of a message, without what the server added."""
    facts = stored.header(FACTS)
    return b"" if facts is None else b"%s%s\r\n" % (FACTS, facts)


def _is_idle(info: dict[str, Any]) -> bool:
    if not str(info["name"]).startswith(("start-", "to-")):
        return False
    if info.get("num_waiting") or info.get("num_pending") or info.get("num_ack_pending"):
        return False
    now = _time(info.get("ts"))
    delivered: dict[str, Any] = info.get("delivered") or {}
    acknowledged: dict[str, Any] = info.get("ack_floor") or {}
    last = (info.get("created"), delivered.get("last_active"), acknowledged.get("last_active"))
    times = [time for each in last if (time := _time(each)) is not None]
    return now is not None and all(now - each >= IDLE_SECONDS for each in times)


def _time(text: Any) -> float | None:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return None
