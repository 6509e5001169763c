"""Random sequences of operations, from a seed."""

from __future__ import annotations

import random
from typing import Literal, TypeVar, get_args

from msgspec import Struct

from perdure.core.journal import Status
from tests.differential.operations import (
    HANDLERS,
    Acknowledge,
    Answered,
    Awaiting,
    Close,
    Commit,
    Count,
    Decline,
    Due,
    HandBack,
    Later,
    More,
    Move,
    New,
    Open,
    Operation,
    Post,
    Purge,
    Read,
    ReadKey,
    Reopen,
    RequestKind,
    Search,
    Served,
    Submit,
    Watch,
)

T = TypeVar("T")

KEYS = ("k", "l")
LENGTH = 40


class Profile(Struct, frozen=True):
    """What the stores that are compared can be asked for.

    `waits`: something may be due in the middle of a sequence. `later`: time may jump. `counted`: room for starts is
    scarce, so that their order matters; then nothing is declined, since what was declined comes unasked, at some time.
    `batches`: several starts may be made by one call or frame: those that have no key may then go out on a server in
    any order. `ages`: a purge may be limited to some, the oldest: stores differ in whether the refusal of a late
    message makes its invocation younger. `again`: what was delivered may have to come again, in an order that a server
    does not promise.
    """

    length: int = LENGTH
    waits: bool = True
    later: bool = True
    keys: bool = True
    counted: bool = False
    batches: bool = True
    ages: bool = True
    again: bool = True


class Draw:
    """Makes one sequence. It knows which names it used, and nothing of what became of them."""

    def __init__(self, seed: int, profile: Profile) -> None:
        self._rng = random.Random(seed)
        self._profile = profile
        self._ids: list[str] = []
        self._messages: list[tuple[str, str]] = []  # ids, and whom they are for

    def sequence(self) -> list[Operation]:
        room = 2 if self._profile.counted else 1000
        operations: list[Operation] = [Open(handler, room) for handler in HANDLERS if self._rng.random() < 0.9]
        operations.append(self._submit())
        while len(operations) < self._profile.length:
            operations.append(self._next())
        return operations

    def _next(self) -> Operation:
        rng = self._rng
        makers = {
            self._submit: 14,
            self._post: 14,
            self._commit: 50,
            self._read: 9,
            self._search: 5,
            self._awaiting: 3,
            self._handle: 5,
            self._subscription: 6,
            self._wait: 4,
            self._purge: 4,
            Count: 1,
            Served: 1,
        }
        if self._profile.again:
            makers[Reopen] = 2
        if self._profile.later:
            makers[Later] = 1
        return rng.choices([*makers], [*makers.values()])[0]()

    def _id(self) -> str:
        """Return an id: mostly one that was used of late, at times one that was never."""
        if not self._ids or self._rng.random() < 0.03:
            return "nobody"
        recent = self._ids[-4:] if self._rng.random() < 0.7 else self._ids
        return self._rng.choice(recent)

    def _due(self) -> Due:
        choices: list[Due] = ["now", "now", "now", "now", "now", "far"]
        if self._profile.waits:
            choices.append("soon")
        return self._rng.choice(choices)

    def _new(self) -> New:
        rng = self._rng
        known = [id for id in self._ids if id.startswith("b")]
        again = bool(known) and rng.random() < 0.15
        id = rng.choice(known) if again else f"{rng.choice('abb')}{len(self._ids)}"
        if not again:
            self._ids.append(id)
        chosen = id.startswith("b")  # the others are as a client makes them: no other start has them
        key = rng.choice(KEYS) if self._profile.keys and rng.random() < 0.45 else None
        limit: Due | None = None
        if key is not None and rng.random() < 0.2:
            limit = "now" if rng.random() < 0.5 else "far"
        due = self._due()
        if key is not None and due == "soon" and not self._profile.later:
            due = "now"  # on a server it takes a worker to put it into the queue of its key
        value = 1 if again and rng.random() < 0.5 else 0
        handler = "g" if rng.random() < 0.2 else "h"
        tag = rng.choice("uv") if rng.random() < 0.3 else None
        return New(id, value, key, due, limit, handler, chosen, tag)

    def _submit(self) -> Submit:
        count = self._rng.choice((0, 1, 1, 1, 1, 1, 1, 2, 3)) if self._profile.batches else 1
        return Submit(tuple(self._new() for _ in range(count)))

    def _post(self) -> Post:
        rng = self._rng
        if self._messages and rng.random() < 0.12:
            id, to = rng.choice(self._messages)
        else:
            id, to = f"m{len(self._messages)}", self._id()
            self._messages.append((id, to))
        kinds: tuple[RequestKind, ...] = get_args(RequestKind)
        weights = [3, 3, 5, 1, 3, 1, 1, 4, 1]
        return Post(id, to, rng.choices(kinds, weights)[0])

    def _commit(self) -> Commit:
        rng = self._rng
        moves: tuple[Move, ...] = get_args(Move)
        move = rng.choices(moves, [22, 4, 14, 10, 16, 4, 8, 6, 3, 5, 4, 3])[0]
        late: Literal["", "zero", "one", "ahead"] = ""
        if rng.random() < 0.08:
            late = rng.choice(("zero", "one", "ahead"))
        more: list[New | Literal["step", "awakeable"]] = []
        if move in ("begin", "step") and rng.random() < 0.7:
            choices: list[str] = ["step", "step", "awakeable", "new"]
            for _ in range(rng.choice((1, 1, 2))):
                what = rng.choice(choices)
                if what == "new" and not self._profile.batches:
                    choices.remove(what)
                more.append(self._new() if what == "new" else "step" if what == "step" else "awakeable")
        wake: Literal["past", "soon", "far"] | None = None
        if move == "suspend" and rng.random() < 0.6:
            wake = rng.choice(("past", "far", "soon")) if self._profile.waits else rng.choice(("past", "far"))
        state = tuple((rng.choice("xy"), rng.choice((0, 1, None))) for _ in range(rng.choice((0, 0, 1, 2))))
        return Commit(
            self._id(),
            move,
            late,
            tuple(more),
            ends=rng.random() < 0.15,
            answers=rng.random() < 0.8,
            wake=wake,
            state=state,
        )

    def _read(self) -> Operation:
        rng = self._rng
        if rng.random() < 0.2:
            return ReadKey(rng.choice((*KEYS, "unused")))
        return Read(rng.choice(("journal", "revision", "outcome", "mail", "start", "row")), self._id())

    def _search(self) -> Search:
        rng = self._rng

        def maybe(value: T, chance: float = 0.25) -> T | None:
            return value if rng.random() < chance else None

        return Search(
            maybe(rng.choice(get_args(Status))),
            maybe(rng.choice(HANDLERS)),
            maybe(rng.choice(KEYS)),
            maybe(rng.choice(("a", "b", "b1", "%", "_", ""))),
            maybe(self._id(), 0.1),
            rng.randrange(12) if rng.random() < 0.2 else None,
            rng.randrange(12) if rng.random() < 0.2 else None,
            rng.random() < 0.2,
            rng.choice((100, 100, 1, 3)),
            maybe(rng.choice("uv")),
        )

    def _awaiting(self) -> Awaiting:
        rng = self._rng
        return Awaiting(
            rng.choice((True, True, False, None)),
            rng.choice(HANDLERS) if rng.random() < 0.2 else None,
            rng.choice(("ada", "bo")) if rng.random() < 0.2 else None,
            rng.random() < 0.2,
            rng.choice((100, 100, 1, 3)),
        )

    def _handle(self) -> Operation:
        ways: list[type[Acknowledge | HandBack | Decline]] = [Acknowledge, Acknowledge]
        if self._profile.again:
            ways += [HandBack] if self._profile.counted else [HandBack, Decline]
        return self._rng.choice(ways)(self._id())

    def _subscription(self) -> Operation:
        rng, handler = self._rng, self._rng.choice(HANDLERS)
        if rng.random() < 0.35 and self._profile.again:
            return Close(handler)
        if self._profile.counted and rng.random() < 0.6:
            return More(handler, rng.choice((1, 1, 2)))
        return Open(handler, rng.choice((0, 1, 2)) if self._profile.counted else 1000)

    def _wait(self) -> Operation:
        if self._messages and self._rng.random() < 0.5:
            return Answered(self._rng.choice(self._messages)[0])
        return Watch(self._id())

    def _purge(self) -> Purge:
        rng = self._rng
        id = self._id() if rng.random() < 0.4 else None
        return Purge(id, rng.choice((100, 100, 1, 2)) if self._profile.ages else 100, nothing=rng.random() < 0.15)
