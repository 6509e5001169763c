"""The liveness invariant on a real server: all that a store holds is read, and held to the rules of every store.

Whatever is in the queue counts as brought, in hand or not: it comes again when who holds it falls silent. So this may
be asked at any moment, but for what is on its way from a process to the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime

from perdure.core.history import History
from perdure.core.journal import Frame, decode_message, decode_start
from perdure.core.lifecycle import SETTLED
from perdure.stores.jetstream import JetStreamStore
from perdure.stores.jetstream.care.consumers import Consumers
from perdure.stores.jetstream.index.rows import row_of
from perdure.stores.jetstream.journal.blobs import Blobs
from perdure.stores.jetstream.journal.journals import Journals, Tail, tail_of
from perdure.stores.jetstream.layout.facts import facts_of
from perdure.stores.jetstream.layout.subjects import token
from perdure.stores.jetstream.wire.protocol import Stored, header
from perdure.stores.liveness import Contents, breaches
from perdure.stores.port import Key, Row
from tests.scenarios.host import jetstream_at

SETTLE_SECONDS = 30.0
"""How long what a killed process has sent may be on its way."""
READ_TOGETHER = 100
TOLERANCE_SECONDS = 0.001
"""Schedules are in whole microseconds, rounded up."""


@asynccontextmanager
async def store_of(place: str) -> AsyncGenerator[JetStreamStore]:
    """Open the store of a lab, without a worker."""
    store = jetstream_at(place)
    await store.open()
    try:
        yield store
    finally:
        await store.aclose()


async def check_liveness(store: JetStreamStore) -> None:
    """Raise if something that must come about has nothing that will ever bring it about."""
    deadline = asyncio.get_running_loop().time() + SETTLE_SECONDS
    while found := await breaches_of(store):
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError("; ".join(found))
        await asyncio.sleep(0.1)


async def breaches_of(store: JetStreamStore) -> list[str]:
    """Say what nothing will ever bring about. Reads everything."""
    passed_over = await Consumers(store.wire, store.layout).passed_over()
    queue = await _read_queue(store)
    journals = await _read_journals(store)
    found = [*_breaches(queue, journals, await _read_keys(store, queue, journals), store.clock.now())]
    return [*found, *(f"consumer {each.consumer} passed over {each.sequence} of {each.stream}" for each in passed_over)]


@dataclass
class _Queue:
    """What the queue streams hold."""

    waiting: dict[str, Row] = field(default_factory=dict[str, Row])  # starts, by id: queued, due later, or in a line
    messages: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    wakes: dict[str, float] = field(default_factory=dict[str, float])
    lines: dict[str, list[str]] = field(default_factory=dict[str, list[str]])  # ids by key
    again: set[str] = field(default_factory=set[str])  # who stands in a line for a retry
    noted: set[str] = field(default_factory=set[str])  # keys that somebody will look at


@dataclass
class _Journals:
    tails: dict[str, Tail] = field(default_factory=dict[str, Tail])
    frames: dict[str, list[Frame]] = field(default_factory=dict[str, list[Frame]])


async def _read_queue(store: JetStreamStore) -> _Queue:
    found = _Queue()
    blobs: Blobs = vars(store)["_blobs"]
    for shard in range(store.layout.partitions):
        for each in await store.wire.all(store.layout.stream("Q", shard), ">"):
            await _take(found, each, blobs)
    return found


async def _take(found: _Queue, stored: Stored, blobs: Blobs) -> None:
    facts = facts_of(stored.headers)
    _, part, _, kind, *_ = stored.subject.split(".")
    if facts.kind == "first":
        return
    if facts.kind == "look":
        found.noted.add(stored.data.decode())
    elif facts.kind == "wake":
        at = header(stored.headers, b"Nats-Schedule: @at ")
        when = 0.0 if at is None else datetime.fromisoformat(at.decode()).timestamp() - TOLERANCE_SECONDS
        found.wakes[facts.id] = min(when, found.wakes.get(facts.id, when))
    elif facts.kind == "message":
        message = decode_message(await blobs.load(facts.id, facts, stored.data))
        found.messages.setdefault(facts.id, set()).add(message.id)
    elif part == "l" and facts.kind == "again":
        found.again.add(facts.id)
    elif facts.handler:
        start = decode_start(await blobs.load(facts.id, facts, stored.data))
        found.waiting[start.id] = row_of(facts, "pending")
        if part == "l":
            assert start.key is not None
            assert token(start.key) == kind
            found.lines.setdefault(start.key, []).append(start.id)
    else:
        raise AssertionError(f"what is {stored.subject}?")


async def _read_journals(store: JetStreamStore) -> _Journals:
    found = _Journals()
    reader: Journals = vars(store)["_journals"].apart()
    for shard in range(store.layout.partitions):
        for each in await store.wire.all(store.layout.stream("J", shard), ">"):
            found.tails[facts_of(each.headers).id] = tail_of(each)
    begun = [id for id, tail in found.tails.items() if tail.has_frames]
    for at in range(0, len(begun), READ_TOGETHER):
        some = begun[at : at + READ_TOGETHER]
        for id, read in zip(some, await asyncio.gather(*map(reader.read, some)), strict=True):
            found.frames[id], found.tails[id] = read
    return found


async def _read_keys(store: JetStreamStore, queue: _Queue, journals: _Journals) -> dict[str, Key]:
    names = {tail.facts.key for tail in journals.tails.values() if tail.facts.key is not None}
    return {name: await store.key(name) for name in names.union(queue.lines)}


def _breaches(queue: _Queue, journals: _Journals, keys: dict[str, Key], now: float) -> Iterator[str]:
    rows = dict(queue.waiting)
    unbrought: set[str] = set()
    for id, tail in journals.tails.items():
        if tail.has_frames:
            rows[id] = row_of(tail.facts)
            history = History.of(journals.frames[id])
            is_brought = id in queue.waiting or id in queue.messages or id in queue.wakes or id in queue.again
            if history.outcome is None and history.claimed and not is_brought:
                unbrought.add(id)
                yield f"invocation {id}: it is claimed, and nothing would bring it to another worker"
            elif rows[id].status == "running":
                # On this store to be claimed brings nothing by itself.
                rows[id] = row_of(tail.facts, "running" if is_brought else "suspended")
    gone = {id for id, tail in journals.tails.items() if tail.facts.kind == "gone"}
    known = {name: key for name, key in keys.items() if key.holder is None or key.holder in rows}
    for name in keys.keys() - known.keys():
        yield f"key {name} is held by {keys[name].holder}, which does not exist"
    contents = Contents(
        {id: row for id, row in rows.items() if id not in unbrought},
        journals.frames,
        queue.waiting,
        (),
        queue.messages,
        queue.wakes,
        {name: key for name, key in known.items() if key.holder not in unbrought},
        gone | unbrought,
    )
    yield from breaches(contents, now)
    yield from _key_breaches(queue, known, rows)


def _key_breaches(queue: _Queue, keys: dict[str, Key], rows: dict[str, Row]) -> Iterator[str]:
    for name, ids in queue.lines.items():
        if name in queue.noted or name not in keys:
            continue
        holder = keys[name].holder
        who = f"key {name}, for which {ids} wait"
        settling = [row.id for row in rows.values() if row.key == name and row.status in SETTLED]
        is_released_again = any(id in queue.messages or id in queue.wakes or id in queue.waiting for id in settling)
        if is_released_again:
            continue
        if holder is None:
            yield f"{who}, has no holder, and nobody will look at it"
        elif holder in ids:
            yield f"{who}, was granted to {holder}, whom nobody will tell"


async def phantoms_of(store: JetStreamStore) -> list[str]:
    """Return ids that are taken by starts that are queued nowhere: nobody was told that they were accepted."""
    queue, journals = await _read_queue(store), await _read_journals(store)
    return [id for id, tail in journals.tails.items() if tail.facts.kind == "reserved" and id not in queue.waiting]
