"""Some of everything that a store writes, and what of it was acknowledged."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from msgspec import Struct, field

from perdure.core.effects import Effects, Release
from perdure.core.journal import (
    Accepted,
    Answer,
    Claimed,
    Completed,
    Entry,
    Frame,
    Message,
    OpenAwakeable,
    Pause,
    Released,
    Returned,
    Start,
    Status,
)
from perdure.core.values import encode
from perdure.errors import StoreError
from perdure.stores.port import Transition, committed
from perdure.stores.sqlite import SqliteStore

T = TypeVar("T")

INVOCATIONS = 6


class Acknowledged(Struct):
    """What a store has acknowledged; `begun` counts frames that it was asked to write, which may be there too."""

    starts: set[str] = field(default_factory=set[str])
    begun: dict[str, list[Frame]] = field(default_factory=dict[str, list[Frame]])
    frames: dict[str, list[Frame]] = field(default_factory=dict[str, list[Frame]])
    messages: dict[str, str] = field(default_factory=dict[str, str])  # for whom
    answers: set[str] = field(default_factory=set[str])
    answering: set[str] = field(default_factory=set[str])  # perhaps: it was asked for
    purged: set[str] = field(default_factory=set[str])  # perhaps: it was asked for
    refused: list[str] = field(default_factory=list[str])

    def copy(self) -> Acknowledged:
        return Acknowledged(
            {*self.starts},
            {id: [*frames] for id, frames in self.begun.items()},
            {id: [*frames] for id, frames in self.frames.items()},
            {**self.messages},
            {*self.answers},
            {*self.answering},
            {*self.purged},
        )


class Work:
    """A program for one store. What a store refuses is noted, and it goes on."""

    def __init__(self) -> None:
        self.done = Acknowledged()
        self.history: list[tuple[int, Acknowledged]] = []  # by the number of actions on the disk
        self.count_actions: Callable[[], int] = int

    @property
    def asked(self) -> Acknowledged:
        """What the store was asked for in the end: what of it was not acknowledged may be there too."""
        return self.done

    async def run(self, store: SqliteStore) -> None:
        done = self.done
        for n in range(INVOCATIONS):
            id = f"i{n}"
            if await self._try(store.submit([_start(id)])) is not None:
                done.starts.add(id)
                self._note()
        for n in range(INVOCATIONS):
            await self._run_one(store, f"i{n}", n)
        for n in range(0, INVOCATIONS, 3):
            done.purged.add(f"i{n}")
            await self._try(store.purge(1e12, limit=1, id=f"i{n}"))
        await self.end(store)

    async def end(self, store: SqliteStore) -> None:
        """Write one thing more."""
        done = self.done
        if await self._try(store.submit([_start("last")])) is not None:
            done.starts.add("last")
            self._note()

    async def _run_one(self, store: SqliteStore, id: str, n: int) -> None:
        entries: list[Entry] = [Accepted(_start(id)), Claimed(1.0, 1, "w", "3.11", "0")]
        if id not in self.done.starts:
            return
        first = Frame("w", 1.0, entries, [OpenAwakeable(0)])
        if not await self._commit(store, id, first, Effects(), "running"):
            return  # it may be there, or not
        message = Message(f"m{n}", id, 1.0, Pause())
        if await self._try(store.post(message), default=True) is not None:
            self.done.messages[message.id] = id
            self._note()
        value = Returned(0, 1.0, encode("v" * (n * 700)), message.id)
        if n % 3 == 0:
            frame = Frame("w", 2.0, [value, Completed(2.0, encode(n))])
            release = Release("k", 0, {"state": encode(n)}) if n == 0 else None
            await self._commit(
                store, id, frame, Effects((), (), (Answer(message.id),), None, release), "completed", message.id
            )
        else:
            frame = Frame("w", 2.0, [value, Released(2.0, 8e9)])
            await self._commit(store, id, frame, Effects((), (), (Answer(message.id),), 8e9), "suspended", message.id)

    async def _commit(
        self, store: SqliteStore, id: str, frame: Frame, effects: Effects, status: Status, answered: str | None = None
    ) -> bool:
        done = self.done
        known = done.frames.get(id, [])
        done.begun[id] = [*known, frame]
        released = frame.outcome is None and status == "suspended"
        done.answering.update(answer.message for answer in effects.answers)
        transition = Transition(id, len(known), frame, effects, status, released)
        if await self._try(committed(store, transition)) is None:
            return False
        done.frames[id] = [*known, frame]
        if answered is not None:
            done.answers.add(answered)
        self._note()
        return True

    def _note(self) -> None:
        self.history.append((self.count_actions(), self.done.copy()))

    async def _try(self, work: Awaitable[T], *, default: T | None = None) -> T | None:
        try:
            result = await work
        except StoreError as error:
            self.done.refused.append(f"{type(error).__name__}: {error}")
            return None
        return default if result is None else result

    def acknowledged_by(self, actions: int) -> Acknowledged:
        """Return what was acknowledged when so many actions had been done."""
        return next((done for at, done in reversed(self.history) if at <= actions), Acknowledged())


def _start(id: str) -> Start:
    key = "k" if id in ("i0", "i1") else None
    return Start(id, "work", encode({"x": id * 40}), 1e9, 1e9, 3, key=key)


async def check(store: SqliteStore, done: Acknowledged, asked: Acknowledged) -> None:
    """See that all that was acknowledged is there, and nothing that was never `asked` for."""
    assert not store.set_aside, store.set_aside
    for id in done.starts:
        start = await store.start(id)
        if id in asked.purged and start is None:
            assert not (await store.journal(id)).frames
            continue
        assert start == _start(id), f"{id}: its start"
        frames = [*(await store.journal(id)).frames]
        known = done.frames.get(id, [])
        assert frames[: len(known)] == known, f"{id}: {len(frames)} frames, {len(known)} were acknowledged"
        assert frames == asked.begun.get(id, [])[: len(frames)], f"{id}: frames that nobody wrote"
        outcome = known[-1].outcome if known else None
        if outcome is not None:
            assert await store.outcome(id) == outcome
        mail = {message.id for message in await store.mail(id)}
        for message, to in done.messages.items():
            if to == id:
                assert message in mail or message in asked.answering, f"message {message} is lost"
                assert message not in mail or message not in done.answers, f"the answer to {message} is lost"
