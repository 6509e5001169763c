"""Removes the consumers of handlers that no worker serves any more.

A consumer is idle when no worker pulls from it and it has nothing pending. Nothing is lost with it: a worker that
serves the handler again creates a new one, which delivers everything that is queued.
"""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any

from perdure.stores.jetstream.layout.subjects import Layout
from perdure.stores.jetstream.wire.protocol import raise_error
from perdure.stores.jetstream.wire.wire import Wire

IDLE_SECONDS = 3_600.0
"""How long a consumer must have been idle before it is removed."""

ConsumerName = tuple[str, str]
"""A stream and a consumer of it."""

log = logging.getLogger("perdure.jetstream")


class Consumers:
    """Finds and removes idle consumers."""

    def __init__(self, wire: Wire, layout: Layout) -> None:
        self._wire = wire
        self._layout = layout

    async def idle(self) -> dict[ConsumerName, str]:
        """Return the idle consumers, each with its time of creation."""
        found: dict[ConsumerName, str] = {}
        for partition in range(self._layout.partitions):
            stream = self._layout.stream("Q", partition)
            offset = 0
            while True:
                answer = await self._wire.api(f"CONSUMER.LIST.{stream}", {"offset": offset})
                raise_error(answer, stream)
                page: list[dict[str, Any]] = answer.get("consumers") or []
                found.update({(stream, each["name"]): each["created"] for each in page if _is_idle(each)})
                offset += len(page)
                if not page or offset >= int(answer.get("total", 0)):
                    break
        return found

    async def remove(self, consumers: dict[ConsumerName, str]) -> list[str]:
        """Remove consumers; return the lines that were logged."""
        done: list[str] = []
        for stream, name in consumers:
            await self._wire.api(f"CONSUMER.DELETE.{stream}.{name}")
            done.append(f"consumer {name} of {stream} is removed: no worker serves its handler any more")
            log.info("%s", done[-1])
        return done


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
