"""What the tests of every section share: a store made anew for each, an inbox, and builders of journal types."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar, get_args

from perdure.core.effects import Effects, effects_of
from perdure.core.failures import failure_of
from perdure.core.history import History
from perdure.core.journal import (
    Accepted,
    Attempted,
    Busy,
    CallChild,
    CallStep,
    Cancel,
    Cancelled,
    CancelRequested,
    Claimed,
    Command,
    Completed,
    Entry,
    Failed,
    Fired,
    Frame,
    Granted,
    Interrupted,
    Join,
    Joined,
    Keep,
    MarkPatch,
    Message,
    OpenAwakeable,
    Outcome,
    Parent,
    Pause,
    Paused,
    Raised,
    Refused,
    Reject,
    Released,
    Request,
    Resolve,
    Resume,
    Resumed,
    Retried,
    RetryInvocation,
    Returned,
    SendStart,
    SetTimer,
    Settled,
    Start,
    Status,
    Waited,
)
from perdure.core.values import encode
from perdure.errors import PerdureError
from perdure.stores.awakeables import Awakeable
from perdure.stores.port import Delivery, Store, Subscription, Transition, committed
from perdure.stores.waits import Wait

T = TypeVar("T")

HANDLER = "contract"
STATUS_OF: dict[type[Outcome], Status] = {Completed: "completed", Failed: "failed", Cancelled: "cancelled"}
MIB = 1024 * 1024


class Inbox:
    """A subscriber that keeps its deliveries, in order."""

    def __init__(self, store: Store, handlers: Sequence[str], patience: float) -> None:
        self._patience = patience
        self._came: asyncio.Queue[Delivery] = asyncio.Queue()
        self.subscription: Subscription = store.subscribe(handlers, self._came.put_nowait)

    async def next(self) -> Delivery:
        """Return the next delivery, or fail when none comes."""
        return await within(self._patience, self._came.get(), "nothing was delivered")

    async def next_start(self) -> Delivery:
        """Return the next delivery, which must be a start."""
        delivery = await self.next()
        assert isinstance(delivery.item, Start), delivery
        return delivery

    async def next_message(self) -> tuple[Delivery, Message]:
        """Return the next delivery, which must be a message, and the message."""
        delivery = await self.next()
        assert isinstance(delivery.item, Message), delivery
        return delivery, delivery.item

    async def starts(self, count: int) -> list[str]:
        """Return the ids of the next `count` deliveries, which must be starts."""
        return [(await self.next_start()).id for _ in range(count)]

    async def stays_empty(self, seconds: float) -> None:
        """Fail when something is delivered in the next seconds."""
        await asyncio.sleep(seconds)
        assert self._came.empty(), f"delivered unexpectedly: {self._came.get_nowait()}"


async def within(seconds: float, work: Awaitable[T], otherwise: str) -> T:
    """Await, at most so long."""
    try:
        return await asyncio.wait_for(work, seconds)
    except TimeoutError:
        raise AssertionError(f"{otherwise} within {seconds} s") from None


async def called(use: Callable[[], Awaitable[T]]) -> T:
    """Call and await, so that errors of the call and of the future look the same."""
    return await use()


async def raised_by(work: Awaitable[Any], kind: type[PerdureError]) -> PerdureError:
    """Await, and return the error of this kind that it must raise."""
    try:
        value = await work
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}, but {value!r}")


class StoreCase:
    """Makes, opens and closes stores for the tests of a section. A subclass defines `make` and `reopen`."""

    patience = 60.0
    """How long to wait for something that must come: a slow machine is no fault."""
    calm = 0.03
    """How long to wait for something that must not come."""

    def make(self, **limits: int) -> Store:
        """Return a new, empty store that is not open yet, perhaps with a `key_queue_limit`."""
        raise NotImplementedError

    def reopen(self, store: Store, /) -> Store:
        """Return a new store, not open yet, over the contents of the closed `store`, as in another process."""
        raise NotImplementedError

    # --- what tests share ---------------------------------------------------------------------------------------------
    @asynccontextmanager
    async def opened(self, **limits: int) -> AsyncGenerator[Store]:
        """Make, open, and in the end close a store; `self.store` is the one now open."""
        self._ids = itertools.count()
        self.store = self.make(**limits)
        await self.store.open()
        try:
            yield self.store
        finally:
            await self.store.aclose()

    async def reopened(self) -> Store:
        """Close the store and open it again."""
        await self.store.aclose()
        self.store = self.reopen(self.store)
        await self.store.open()
        return self.store

    def inbox(self, *handlers: str, room: int = 0) -> Inbox:
        """Subscribe to handlers (by default the usual one), with room for so many starts."""
        inbox = Inbox(self.store, handlers or (HANDLER,), self.patience)
        if room:
            inbox.subscription.request(room)
        return inbox

    def start(self, id: str | None = None, *, handler: str = HANDLER, **changes: Any) -> Start:
        """Make a start; ids that are not given sort in the order made."""
        at = self.store.clock.now()
        fields: dict[str, Any] = {
            "input": encode({}),
            "at": at,
            "due": at,
            "seed": 7,
            "chosen": id is not None,
            **changes,
        }
        return Start(id or f"i{next(self._ids):06d}", handler, **fields)

    def message(self, to: str, request: Request | None = None, *, id: str | None = None) -> Message:
        """Make a message."""
        return Message(id or f"m{next(self._ids):06d}", to, self.store.clock.now(), request or Pause())

    def frame(self, *entries: Entry, commands: Sequence[Command] = (), writer: str = "w") -> Frame:
        """Make a frame."""
        return Frame(writer, self.store.clock.now(), list(entries), list(commands))

    def claim(self, epoch: int = 1) -> Claimed:
        """Make a claim."""
        return Claimed(self.store.clock.now(), epoch, "w", "3.11", "0")

    async def commit(
        self,
        start: Start,
        expected: int,
        frame: Frame | None,
        status: Status | None = None,
        *taken: Delivery,
        effects: Effects | None = None,
        awakeables: Sequence[Awakeable] | None = None,
        wait: Wait | None = None,
    ) -> int:
        """Commit a frame with its effects; `Released` in it releases the claim."""
        if effects is None:
            effects = Effects()
            if frame is not None:
                before = (await self.store.journal(start.id)).frames[:expected]
                effects = effects_of(start, frame, History.of([*before, frame]))
        released = frame is not None and any(isinstance(entry, Released) for entry in frame.entries)
        transition = Transition(start.id, expected, frame, effects, status, released, taken, awakeables, wait)
        return await within(self.patience, committed(self.store, transition), "not committed")

    async def begun(self, inbox: Inbox, start: Start | None = None) -> tuple[Start, int]:
        """Submit a start, take it, and commit the first frame of its journal."""
        start = start or self.start()
        await self.store.submit([start])
        inbox.subscription.request(1)
        delivery = await inbox.next_start()
        assert delivery.id == start.id
        first = self.frame(Accepted(start), self.claim(), commands=[CallStep(0, "s", b"d")])
        return start, await self.commit(start, 0, first, "running", delivery)

    async def suspended(self, inbox: Inbox, start: Start | None = None, wake: float | None = None) -> tuple[Start, int]:
        """Run an invocation until it waits."""
        start, revision = await self.begun(inbox, start)
        released = self.frame(Returned(0, start.at, encode(1)), Released(self.store.clock.now(), wake))
        return start, await self.commit(start, revision, released, "suspended")

    async def completed(self, inbox: Inbox, start: Start | None = None) -> Start:
        """Run an invocation to its end."""
        start, revision = await self.begun(inbox, start)
        at = self.store.clock.now()
        await self.commit(start, revision, self.frame(Completed(at, encode(start.id))), "completed")
        return start

    async def frames_of(self, id: str) -> list[Frame]:
        """Read the frames of a journal."""
        return [*(await self.store.journal(id)).frames]


def requests() -> list[Request]:
    """Return one request of each type."""
    failed = Failed(1.0, failure_of(ValueError("v")))
    found: list[Request] = [
        Resolve(1, b"\xc0"),
        Reject(1, "r"),
        Settled(0, 1, "c", failed),
        Cancel(force=True, rollback=True),
    ]
    found += [Pause(), Resume(), RetryInvocation(), Join(Start("c", "handler", b"\x80", 1.0, 1.0, 7)), Busy("h")]
    assert {type(each) for each in found} == set(get_args(Request))
    return found


def samples(start: Start) -> tuple[list[Entry], list[Command]]:
    """Return one entry and one command of each type, with every field set."""
    failure = failure_of(ValueError("wrong", 3))
    entries: list[Entry] = [
        Accepted(start, 12),
        Claimed(1.25, 3, "w", "3.13", "random"),
        Granted(1.5, 2, {"a": b"\x00\xff"}),
        Released(2.5, 1e10),
        Returned(1, 2.0, b"\x00\xff" * 8, "m1"),
        Raised(2, 2.0, failure, "m2"),
        Attempted(3, 2.0, 4, failure, 9.5),
        Fired(4, 2.0),
        Interrupted(5, 2.0),
        CancelRequested(2.0, timed_out=True, message="m3", rollback=True),
        Paused(2.0, "why\nnot", "m4"),
        Resumed(2.0, "m5"),
        Refused(2.0, "m6", "\u00e9\U0001f600"),
        Completed(2.0, b"\x01"),
        Failed(2.0, failure, 7),
        Cancelled(2.0, forced=True, message="m7"),
        Retried(2.0, 1, 7, 9, "m8", 3, 2, [7, 8]),
        Joined(2.0, Parent("up", 1, 2), "m9"),
        Waited(2.0, 3),
    ]
    commands: list[Command] = [
        CallStep(0, "step", b"digest"),
        SetTimer(1, 5.5),
        CallChild(2, start),
        SendStart(3, start),
        OpenAwakeable(4),
        MarkPatch(5, "patch"),
        Keep(6, b"value"),
    ]
    assert {type(entry) for entry in entries} == set(get_args(Entry))
    assert {type(command) for command in commands} == set(get_args(Command))
    return entries, commands
