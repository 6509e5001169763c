"""What every store must do, as one suite of tests: subclass `StoreContract`, give it `make` and `reopen`, run pytest.

It sees the Store protocol and nothing else, and asks for no more than the weakest store can promise: revisions grow,
and not by one; the attempt number is a hint above 1; an effect is idempotent, not free.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar, get_args

from perdure.core.codec import encode, failure_of
from perdure.core.effects import Effects, Enlist, Release, effects_of
from perdure.core.history import History
from perdure.core.journal import (
    Accepted,
    Answer,
    Attempted,
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
)
from perdure.errors import Conflict, IdConflict, LimitExceeded, PerdureError, StoreClosed, UnknownInvocation
from perdure.stores.port import Delivery, Events, Filter, Key, Row, Store, Subscription, Transition, Wake, committed

T = TypeVar("T")

HANDLER = "contract"
STATUS_OF: dict[type[Outcome], Status] = {Completed: "completed", Failed: "failed", Cancelled: "cancelled"}
MIB = 1024 * 1024


class Inbox:
    """A subscriber that keeps what it is given, in order."""

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
    """Call and await, so that it is the same whether the call raises or the future."""
    return await use()


async def raised_by(work: Awaitable[Any], kind: type[PerdureError]) -> PerdureError:
    """Await what must raise an error of a kind, and return it."""
    try:
        value = await work
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}, but {value!r}")


class StoreContract:
    """The suite. A subclass defines `make` and `reopen`; each test makes a store of its own."""

    patience = 5.0
    """Seconds in which what must come has to come."""
    calm = 0.03
    """Seconds of silence that are taken for nothing coming."""

    def make(self, **limits: int) -> Store:
        """Return a new, empty store that is not open yet, perhaps with a `line_limit`."""
        raise NotImplementedError

    def reopen(self, store: Store, /) -> Store:
        """Return, not open yet, the store that `store`, now closed, was, as another process would find it."""
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
    ) -> int:
        """Commit a frame with the effects that follow from it; `Released` in it releases the claim."""
        if effects is None:
            effects = Effects()
            if frame is not None:
                before = (await self.store.journal(start.id)).frames[:expected]
                effects = effects_of(start, frame, History.of([*before, frame]))
        released = frame is not None and any(isinstance(entry, Released) for entry in frame.entries)
        transition = Transition(start.id, expected, frame, effects, status, released, taken)
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
        """Bring an invocation to where it waits."""
        start, revision = await self.begun(inbox, start)
        released = self.frame(Returned(0, start.at, encode(1)), Released(self.store.clock.now(), wake))
        return start, await self.commit(start, revision, released, "suspended")

    async def completed(self, inbox: Inbox, start: Start | None = None) -> Start:
        """Bring an invocation to its end."""
        start, revision = await self.begun(inbox, start)
        at = self.store.clock.now()
        await self.commit(start, revision, self.frame(Completed(at, encode(start.id))), "completed")
        return start

    async def frames_of(self, id: str) -> list[Frame]:
        """Read the frames of a journal."""
        return [*(await self.store.journal(id)).frames]

    # --- submit -------------------------------------------------------------------------------------------------------
    async def test_new_start_is_accepted_and_can_be_read(self) -> None:
        async with self.opened() as store:
            start = self.start(key="k", timeout=3.5, parent=Parent("p", 0, 4), held=("a", "b"))
            assert await store.submit([start]) == [True]
            assert await store.start(start.id) == start
            row = await store.row(start.id)
            assert row is not None
            assert (row.id, row.handler, row.status, row.key) == (start.id, HANDLER, "pending", "k")
            assert (row.created_at, row.due) == (start.at, start.due)
            assert (await store.journal(start.id)).frames == ()

    async def test_existing_id_with_the_same_start_changes_nothing(self) -> None:
        async with self.opened() as store:
            for chosen in (True, False):
                first = self.start(f"again-{chosen}", chosen=chosen)
                assert await store.submit([first]) == [True]
                later = self.start(f"again-{chosen}", chosen=chosen, seed=8)
                assert await store.submit([later]) == [False]
                assert await store.start(first.id) == first
            assert len(await store.search(Filter())) == 2

    async def test_existing_id_with_another_input_or_handler_is_a_conflict_and_none_is_accepted(self) -> None:
        async with self.opened() as store:
            first = self.start("taken", input=encode({"x": 1}))
            await store.submit([first])
            others = (
                self.start("taken", input=encode({"x": 2})),
                self.start("taken", handler="other", input=first.input),
            )
            for other in others:
                error = await raised_by(store.submit([self.start("before"), other, self.start("after")]), IdConflict)
                assert "taken" in str(error)
            assert await store.row("before") is None
            assert await store.row("after") is None
            assert await store.start("taken") == first

    async def test_conflict_of_one_submit_does_not_fail_another_of_the_same_moment(self) -> None:
        async with self.opened() as store:
            await store.submit([self.start("taken", input=encode({"x": 1}))])
            good, bad = self.start("good"), self.start("taken", input=encode({"x": 2}))
            results = await asyncio.gather(
                store.submit([self.start("early")]), store.submit([bad]), store.submit([good]), return_exceptions=True
            )
            assert results[0] == [True]
            assert isinstance(results[1], IdConflict)
            assert results[2] == [True]

    async def test_two_submits_of_one_id_in_the_same_moment_accept_it_once(self) -> None:
        async with self.opened() as store:
            for chosen in (True, False):
                starts = [self.start(f"same-{chosen}", chosen=chosen) for _ in range(5)]
                results = await asyncio.gather(*(store.submit([start]) for start in starts))
                assert sorted(new for (new,) in results) == [False] * 4 + [True]
            assert len(await store.search(Filter())) == 2

    async def test_many_starts_in_one_call_are_told_apart(self) -> None:
        async with self.opened() as store:
            await store.submit([self.start("b")])
            assert await store.submit([self.start("a"), self.start("b"), self.start("c")]) == [True, False, True]
            assert await store.submit([]) == []
            assert await store.submit([self.start() for _ in range(1_000)]) == [True] * 1_000

    async def test_one_id_twice_in_one_call_is_accepted_once_or_is_a_conflict(self) -> None:
        async with self.opened() as store:
            assert await store.submit([self.start("twice"), self.start("twice")]) == [True, False]
            differing = [self.start("other", input=encode({"x": 1})), self.start("other", input=encode({"x": 2}))]
            await raised_by(store.submit(differing), IdConflict)
            assert await store.row("other") is None

    async def test_accepted_start_survives_reopening(self) -> None:
        async with self.opened() as store:
            start = self.start()
            await store.submit([start])
            store = await self.reopened()
            assert await store.start(start.id) == start
            delivery = await self.inbox(room=1).next_start()
            assert (delivery.id, delivery.item) == (start.id, start)
            assert await store.submit([start]) == [False]

    async def test_delayed_start_is_delivered_when_due_and_not_before(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox(room=5)
            due = store.clock.now() + 0.15
            await store.submit([self.start("late", due=due), self.start("now")])
            assert await inbox.starts(1) == ["now"]
            row = await store.row("late")
            assert row is not None
            assert (row.status, row.due) == ("scheduled", due)
            assert await inbox.starts(1) == ["late"]
            assert store.clock.now() >= due
            await inbox.stays_empty(self.calm)

    async def test_delayed_start_survives_reopening(self) -> None:
        async with self.opened() as store:
            due = store.clock.now() + 0.15
            await store.submit([self.start("late", due=due)])
            await self.reopened()
            assert await self.inbox(room=1).starts(1) == ["late"]
            assert self.store.clock.now() >= due

    async def test_delayed_start_that_falls_due_while_nobody_serves_it_is_kept(self) -> None:
        async with self.opened() as store:
            await store.submit([self.start("late", due=store.clock.now() + 0.05)])
            await asyncio.sleep(0.1)
            assert await self.inbox(room=1).starts(1) == ["late"]

    async def test_delayed_starts_and_others_submitted_as_they_fall_due_are_all_delivered(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox(room=100_000)
            now = store.clock.now()
            late = [self.start(due=now + 0.02 + n / 1_000) for n in range(60)]
            await store.submit(late)
            expected = {start.id for start in late}
            while store.clock.now() < now + 0.1:
                start = self.start()
                expected.add(start.id)
                await store.submit([start])
                await asyncio.sleep(0)
            assert set(await inbox.starts(len(expected))) == expected

    # --- deliveries ---------------------------------------------------------------------------------------------------
    async def test_starts_are_delivered_within_what_was_requested(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            await store.submit([self.start(f"s{n}") for n in range(5)])
            await inbox.stays_empty(self.calm)
            inbox.subscription.request(2)
            assert await inbox.starts(2) == ["s0", "s1"]
            await inbox.stays_empty(self.calm)
            inbox.subscription.request(1)
            inbox.subscription.request(2)
            assert await inbox.starts(3) == ["s2", "s3", "s4"]

    async def test_starts_of_a_handler_come_in_the_order_accepted(self) -> None:
        async with self.opened() as store:
            before = [self.start() for _ in range(50)]
            for start in before[:10]:
                await store.submit([start])
            await store.submit(before[10:])
            inbox = self.inbox(room=100)
            await asyncio.sleep(0)
            after = [self.start() for _ in range(50)]
            await asyncio.gather(*(store.submit([start]) for start in after))
            assert await inbox.starts(100) == [start.id for start in (*before, *after)]

    async def test_only_starts_of_served_handlers_come(self) -> None:
        async with self.opened() as store:
            await store.submit([self.start("a", handler="one"), self.start("b", handler="two"), self.start("c")])
            one, both = self.inbox("one", room=5), self.inbox("two", "three", room=5)
            assert await one.starts(1) == ["a"]
            assert await both.starts(1) == ["b"]
            await store.submit([self.start("d", handler="three")])
            assert await both.starts(1) == ["d"]
            await one.stays_empty(self.calm)
            await both.stays_empty(self.calm)
            assert store.serves("one")
            assert not store.serves("nobody's")

    async def test_each_start_goes_to_one_subscriber(self) -> None:
        async with self.opened() as store:
            first, second = self.inbox(room=10), self.inbox(room=10)
            await store.submit([self.start(f"s{n:02d}") for n in range(20)])
            came = await asyncio.gather(first.starts(10), second.starts(10))
            assert sorted(itertools.chain(*came)) == [f"s{n:02d}" for n in range(20)]
            await first.stays_empty(self.calm)
            await second.stays_empty(self.calm)

    async def test_unacknowledged_starts_come_again_in_order_after_their_subscriber_closes(self) -> None:
        async with self.opened() as store:
            first = self.inbox(room=3)
            await store.submit([self.start(f"s{n}") for n in range(4)])
            assert await first.starts(3) == ["s0", "s1", "s2"]
            first.subscription.close()
            second = self.inbox(room=4)
            again = [await second.next_start() for _ in range(4)]
            assert [delivery.id for delivery in again] == ["s0", "s1", "s2", "s3"]
            assert all(delivery.attempt > 1 for delivery in again[:3])
            assert again[3].attempt == 1
            await first.stays_empty(self.calm)

    async def test_unacknowledged_start_goes_to_a_subscriber_that_waits_already(self) -> None:
        async with self.opened() as store:
            first = self.inbox(room=1)
            await store.submit([self.start("a")])
            await first.next_start()
            second = self.inbox(room=1)
            await second.stays_empty(self.calm)
            first.subscription.close()
            delivery = await second.next_start()
            assert (delivery.id, delivery.attempt > 1) == ("a", True)

    async def test_unacknowledged_start_comes_again_after_reopening(self) -> None:
        async with self.opened() as store:
            await store.submit([self.start("a")])
            await self.inbox(room=1).next_start()
            await self.reopened()
            delivery = await self.inbox(room=1).next_start()
            assert (delivery.id, delivery.attempt > 1) == ("a", True)

    async def test_acknowledged_message_does_not_come_again(self) -> None:
        async with self.opened():
            inbox = self.inbox()
            start, _ = await self.suspended(inbox)
            await self.store.post(self.message(start.id))
            delivery, _ = await inbox.next_message()
            inbox.subscription.acknowledge(delivery)
            await asyncio.sleep(self.calm)  # an acknowledgement is not awaited
            inbox.subscription.close()
            await self.inbox(room=5).stays_empty(self.calm)
            await self.reopened()
            await self.inbox(room=5).stays_empty(self.calm)

    async def test_start_handed_back_goes_to_who_has_room(self) -> None:
        async with self.opened() as store:
            first = self.inbox(room=1)
            await store.submit([self.start("a"), self.start("b")])
            delivery = await first.next_start()
            second = self.inbox()
            first.subscription.hand_back(delivery)
            second.subscription.request(2)
            assert await second.starts(2) == ["a", "b"]

    async def test_message_handed_back_goes_to_somebody_else(self) -> None:
        async with self.opened() as store:
            first = self.inbox()
            start, _ = await self.suspended(first)
            message = self.message(start.id)
            await store.post(message)
            delivery, _ = await first.next_message()
            second = self.inbox()
            first.subscription.hand_back(delivery)
            assert (await second.next_message())[1] == message

    async def test_claimed_invocation_comes_to_another_when_its_owner_closes(self) -> None:
        async with self.opened():
            first = self.inbox()
            start, _ = await self.begun(first)
            second = self.inbox()
            first.subscription.close()
            delivery = await second.next()
            assert (delivery.id, delivery.attempt > 1) == (start.id, True)

    async def test_claimed_invocation_comes_again_after_reopening(self) -> None:
        async with self.opened():
            start, _ = await self.begun(self.inbox())
            await self.reopened()
            delivery = await self.inbox(room=1).next()
            assert (delivery.id, delivery.attempt > 1) == (start.id, True)

    async def test_nothing_comes_for_what_is_settled_or_waits(self) -> None:
        async with self.opened():
            inbox = self.inbox()
            await self.completed(inbox)
            await self.suspended(inbox)
            inbox.subscription.close()
            await self.inbox(room=5).stays_empty(self.calm)
            await self.reopened()
            await self.inbox(room=5).stays_empty(self.calm)

    # --- commit -------------------------------------------------------------------------------------------------------
    async def test_revision_grows_with_every_frame_and_the_journal_tells_the_last(self) -> None:
        async with self.opened() as store:
            start, first = await self.begun(self.inbox())
            second = await self.commit(start, first, self.frame(Returned(0, 1.0, encode(1))))
            third = await self.commit(start, second, self.frame(Fired(1, 1.0)))
            assert 0 < first < second < third
            journal = await store.journal(start.id)
            assert journal.revision == third
            assert len(journal.frames) == 3

    async def test_conflicting_commit_does_nothing_at_all(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            other, _ = await self.suspended(inbox)
            start, revision = await self.begun(inbox)
            await store.post(self.message(start.id))
            delivery, message = await inbox.next_message()
            now = await self.commit(start, revision, self.frame(Returned(0, 1.0, encode(1))))
            before = await store.row(start.id)
            late = self.frame(Paused(1.0, "r", message.id), Released(1.0, 1.0), writer="zombie")
            effects = Effects((self.start("child"),), (self.message(other.id),), (Answer(message.id),), 1.0)
            for expected in (0, revision, now + 1_000_000):
                error = await raised_by(
                    self.commit(start, expected, late, "suspended", delivery, effects=effects), Conflict
                )
                assert start.id in str(error)
            assert (await store.journal(start.id)).revision == now
            assert await store.row(start.id) == before
            assert await store.row("child") is None
            await inbox.stays_empty(self.calm)
            await self.reopened()
            inbox = self.inbox(room=5)  # a store may keep a claim by the start that was never acknowledged
            came: set[type] = set()
            for _ in range(2):
                delivery = await inbox.next()
                came.add(type(delivery.item))
                inbox.subscription.acknowledge(delivery)
            assert came == {Wake, Message}, "the claim and its message are still there"

    async def test_conflict_of_one_commit_does_not_fail_others_of_the_same_moment(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            begun = [await self.begun(inbox) for _ in range(3)]
            again = self.frame(Returned(0, 1.0, encode(1)))
            await self.commit(*begun[1], again)
            results = await asyncio.gather(
                *(self.commit(start, revision, again) for start, revision in begun),
                store.submit([self.start("same moment")]),
                return_exceptions=True,
            )
            assert [type(result) for result in results] == [int, Conflict, int, list]
            for start, _ in begun:
                assert len(await self.frames_of(start.id)) == 2

    async def test_of_two_commits_at_one_revision_in_the_same_moment_one_wins(self) -> None:
        async with self.opened():
            inbox = self.inbox()
            for rivals in (2, 5):
                start, revision = await self.begun(inbox)
                frames = [self.frame(Returned(0, 1.0, encode(n)), writer=str(n)) for n in range(rivals)]
                results = await asyncio.gather(
                    *(self.commit(start, revision, frame) for frame in frames), return_exceptions=True
                )
                assert sum(isinstance(result, int) for result in results) == 1
                assert sum(isinstance(result, Conflict) for result in results) == rivals - 1
                winner = next(frame for frame, result in zip(frames, results, strict=True) if isinstance(result, int))
                assert (await self.frames_of(start.id))[-1] == winner

    async def test_first_frame_needs_an_empty_journal(self) -> None:
        async with self.opened():
            start, revision = await self.begun(self.inbox())
            await raised_by(self.commit(start, 0, self.frame(Accepted(start), writer="other")), Conflict)
            assert (await self.store.journal(start.id)).revision == revision

    async def test_effects_of_a_commit_happen(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            parent, _ = await self.suspended(inbox)
            start, revision = await self.begun(inbox)
            await store.post(self.message(start.id, id="asked"))
            delivery, _ = await inbox.next_message()
            child = self.start(parent=Parent(start.id, 0, 1), chosen=False)
            told = self.message(parent.id)
            effects = Effects((child,), (told,), (Answer("asked", "no"),))
            frame = self.frame(Refused(1.0, "asked", "no"), commands=[CallChild(1, child)])
            await self.commit(start, revision, frame, None, delivery, effects=effects)
            inbox.subscription.request(1)
            came = {type(each.item): each for each in (await inbox.next(), await inbox.next())}
            assert came[Start].item == child
            assert came[Message].item == told
            assert await store.answer("asked") == Answer("asked", "no")

    async def test_redo_of_effects_changes_nothing_that_was_done(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            parent, _ = await self.suspended(inbox)
            start, revision = await self.begun(inbox)
            child, told = self.start(chosen=False), self.message(parent.id)
            effects = Effects((child,), (told,), (Answer("m", None),), None)
            frame = self.frame(Returned(0, 1.0, encode(1)), commands=[SendStart(1, child)])
            revision = await self.commit(start, revision, frame, effects=effects)
            for _ in range(2):
                assert await self.commit(start, revision, None, effects=effects) == revision
            inbox.subscription.request(9)
            came = [await inbox.next(), await inbox.next()]
            assert {type(each.item) for each in came} == {Start, Message}
            await inbox.stays_empty(self.calm)
            assert (await store.journal(start.id)).revision == revision

    async def test_redo_does_what_was_not_done(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start, revision = await self.begun(inbox)
            frame = self.frame(Returned(0, 1.0, encode(1)))
            revision = await self.commit(start, revision, frame, effects=Effects())
            await store.post(self.message(start.id, id="m"))
            await inbox.next_message()
            child = self.start(chosen=False)
            await self.commit(start, revision, None, effects=Effects((child,), (), (Answer("m"),)))
            inbox.subscription.request(1)
            assert (await inbox.next_start()).item == child
            assert await store.answer("m") == Answer("m")

    async def test_deliveries_acknowledged_by_a_commit_do_not_come_again(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start, revision = await self.begun(inbox)
            await store.post(self.message(start.id, id="m"))
            delivery, _ = await inbox.next_message()
            frame = self.frame(Paused(1.0, "r", "m"), Released(1.0))
            await self.commit(start, revision, frame, "paused", delivery)
            inbox.subscription.close()
            await self.inbox(room=5).stays_empty(self.calm)
            await self.reopened()
            await self.inbox(room=5).stays_empty(self.calm)

    async def test_start_of_an_existing_id_among_the_effects_is_dropped(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            existing = await self.completed(inbox, self.start("mine", input=encode({"x": 1})))
            start, revision = await self.begun(inbox)
            other = self.start("mine", input=encode({"x": 2}))
            effects = Effects((other, self.start("new")))
            await self.commit(start, revision, self.frame(Fired(1, 1.0)), effects=effects)
            assert await store.start("mine") == existing
            assert await store.row("new") is not None

    async def test_settling_ends_the_claim(self) -> None:
        async with self.opened():
            inbox = self.inbox()
            await self.completed(inbox)
            inbox.subscription.close()
            await self.inbox(room=1).stays_empty(self.calm)

    async def test_journal_gives_back_every_entry_and_command(self) -> None:
        async with self.opened() as store:
            start, revision = await self.begun(self.inbox())
            entries, commands = samples(start)
            frames = [self.frame(entry) for entry in entries if not isinstance(entry, (Completed, Failed, Cancelled))]
            frames += [self.frame(commands=[command]) for command in commands]
            everything = Frame("wörker", 1.5, [*entries[:8]], commands, {"a": encode([1]), "b": None}, [3, 4])
            frames.append(everything)
            for frame in frames:
                revision = await self.commit(start, revision, frame, effects=Effects())
            assert (await self.frames_of(start.id))[1:] == frames
            store = await self.reopened()
            journal = await store.journal(start.id)
            assert [*journal.frames[1:]] == frames
            assert journal.revision == revision

    async def test_journal_gives_back_every_outcome(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            outcomes = [
                entry for entry in samples(self.start())[0] if isinstance(entry, (Completed, Failed, Cancelled))
            ]
            statuses: dict[type, Status] = {Completed: "completed", Failed: "failed", Cancelled: "cancelled"}
            settled: dict[str, Any] = {}
            for outcome in outcomes:
                start, revision = await self.begun(inbox)
                await self.commit(start, revision, self.frame(outcome), statuses[type(outcome)], effects=Effects())
                settled[start.id] = outcome
            for _ in range(2):
                for id, outcome in settled.items():
                    assert await store.outcome(id) == outcome
                    row = await store.row(id)
                    assert row is not None
                    assert row.status == statuses[type(outcome)]
                store = await self.reopened()

    async def test_unknown_id_has_no_journal_start_row_or_outcome(self) -> None:
        async with self.opened() as store:
            journal = await store.journal("nobody")
            assert (journal.frames, journal.revision) == ((), 0)
            assert await store.start("nobody") is None
            assert await store.row("nobody") is None
            assert await store.outcome("nobody") is None

    async def test_journal_read_later_does_not_change_what_was_read(self) -> None:
        async with self.opened() as store:
            start, revision = await self.begun(self.inbox())
            before = await store.journal(start.id)
            await self.commit(start, revision, self.frame(Fired(1, 1.0)))
            assert len(before.frames) == 1

    # --- messages -----------------------------------------------------------------------------------------------------
    async def test_message_goes_to_who_serves_its_invocation(self) -> None:
        async with self.opened() as store:
            inbox, other = self.inbox(), self.inbox("other", room=5)
            start, _ = await self.suspended(inbox)
            for request in requests():
                message = self.message(start.id, request)
                await store.post(message)
                delivery, got = await inbox.next_message()
                assert (delivery.id, delivery.handler, got) == (start.id, HANDLER, message)
                inbox.subscription.acknowledge(delivery)
            await other.stays_empty(self.calm)

    async def test_second_message_of_one_id_changes_nothing(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start, revision = await self.suspended(inbox)
            await asyncio.gather(*(store.post(self.message(start.id, Pause(), id="m")) for _ in range(3)))
            await store.post(self.message(start.id, Resume(), id="m"))
            delivery, message = await inbox.next_message()
            assert message.request == Pause()
            frame = self.frame(self.claim(2), Paused(1.0, "r", "m"), Released(1.0))
            await self.commit(start, revision, frame, "paused", delivery)
            await store.post(self.message(start.id, Pause(), id="m"))
            assert await store.answer("m") == Answer("m")
            await inbox.stays_empty(self.calm)

    async def test_message_to_nobody_is_refused(self) -> None:
        async with self.opened() as store:
            error = await raised_by(store.post(self.message("nobody")), UnknownInvocation)
            assert "nobody" in str(error)

    async def test_message_to_nobody_does_not_fail_others_of_the_same_moment(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start, _ = await self.suspended(inbox)
            results = await asyncio.gather(
                store.post(self.message(start.id)),
                store.post(self.message("nobody")),
                store.submit([self.start("x")]),
                return_exceptions=True,
            )
            assert (results[0], results[2]) == (None, [True])
            assert isinstance(results[1], UnknownInvocation)
            await inbox.next_message()
            await inbox.stays_empty(self.calm)

    async def test_message_for_a_queued_start_is_delivered_after_it_to_the_same_subscriber(self) -> None:
        async with self.opened() as store:
            first, second = self.inbox(), self.inbox()
            start = self.start()
            await store.submit([start])
            messages = [self.message(start.id), self.message(start.id)]
            for message in messages:
                await store.post(message)
            await first.stays_empty(self.calm)
            second.subscription.request(1)
            assert [(await second.next()).item for _ in range(3)] == [start, *messages]
            await first.stays_empty(self.calm)

    async def test_message_for_a_queued_start_is_delivered_after_it_when_the_first_subscriber_closes(self) -> None:
        async with self.opened() as store:
            first = self.inbox(room=1)
            start = self.start()
            message = self.message(start.id)
            await store.submit([start])
            await first.next_start()
            await store.post(message)
            await first.next_message()
            second = self.inbox()
            first.subscription.close()
            await second.stays_empty(self.calm)
            second.subscription.request(1)
            assert [(await second.next()).item for _ in range(2)] == [start, message]

    async def test_message_for_a_queued_start_is_delivered_after_it_after_reopening(self) -> None:
        async with self.opened() as store:
            start = self.start()
            message = self.message(start.id)
            await store.submit([start])
            await store.post(message)
            await self.reopened()
            inbox = self.inbox()
            await inbox.stays_empty(self.calm)
            inbox.subscription.request(1)
            assert [(await inbox.next()).item for _ in range(2)] == [start, message]

    async def test_message_for_a_claimed_invocation_goes_to_its_owner(self) -> None:
        async with self.opened() as store:
            idle, owner = self.inbox(), self.inbox()
            start, revision = await self.begun(owner)
            for _ in range(3):
                await store.post(self.message(start.id))
                delivery, _ = await owner.next_message()
                revision = await self.commit(start, revision, self.frame(Fired(1, 1.0)), None, delivery)
            await idle.stays_empty(self.calm)

    async def test_unacknowledged_message_comes_again(self) -> None:
        async with self.opened() as store:
            first = self.inbox()
            start, _ = await self.suspended(first)
            message = self.message(start.id)
            await store.post(message)
            await first.next_message()
            first.subscription.close()
            second = self.inbox()
            delivery, again = await second.next_message()
            assert (again, delivery.attempt > 1) == (message, True)
            await self.reopened()
            delivery, again = await self.inbox().next_message()
            assert (again, delivery.attempt > 1) == (message, True)

    async def test_message_posted_while_nobody_serves_its_invocation_waits(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start, _ = await self.suspended(inbox)
            inbox.subscription.close()
            message = self.message(start.id)
            await store.post(message)
            assert (await self.inbox().next_message())[1] == message

    async def test_message_that_settled_invocation_gets_is_delivered_to_be_refused(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start = await self.completed(inbox)
            await store.post(self.message(start.id, Cancel(), id="late"))
            delivery, _ = await inbox.next_message()
            revision = (await store.journal(start.id)).revision
            transition = Transition(
                start.id, revision, None, Effects((), (), (Answer("late", "too late"),)), "completed", True, [delivery]
            )
            await committed(store, transition)
            assert await store.answer("late") == Answer("late", "too late")
            row = await store.row(start.id)
            assert row is not None
            assert row.status == "completed"

    async def test_answer_can_be_awaited_before_it_is_given_and_read_after(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start, revision = await self.suspended(inbox)
            await store.post(self.message(start.id, id="m"))
            waiting = [asyncio.ensure_future(store.answer("m")) for _ in range(2)]
            delivery, _ = await inbox.next_message()
            await asyncio.sleep(0)
            assert not any(each.done() for each in waiting)
            frame = self.frame(self.claim(2), Paused(1.0, "r", "m"), Released(1.0))
            await self.commit(start, revision, frame, "paused", delivery)
            for each in waiting:
                assert await within(self.patience, each, "no answer") == Answer("m")
            assert await store.answer("m") == Answer("m")
            store = await self.reopened()
            assert await within(self.patience, store.answer("m"), "no answer") == Answer("m")

    async def test_answer_is_given_to_its_own_message_only(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start, revision = await self.begun(inbox)
            await store.post(self.message(start.id, id="one"))
            await store.post(self.message(start.id, id="two"))
            waiting = asyncio.ensure_future(store.answer("two"))
            delivery, _ = await inbox.next_message()
            await self.commit(start, revision, self.frame(Refused(1.0, "one", "r")), None, delivery)
            assert await store.answer("one") == Answer("one", "r")
            await asyncio.sleep(self.calm)
            assert not waiting.done()
            waiting.cancel()

    async def test_given_up_wait_for_an_answer_leaves_others_waiting(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start, revision = await self.begun(inbox)
            await store.post(self.message(start.id, id="m"))
            given_up, kept = (asyncio.ensure_future(store.answer("m")) for _ in range(2))
            await asyncio.sleep(self.calm)
            given_up.cancel()
            delivery, _ = await inbox.next_message()
            await self.commit(start, revision, self.frame(Refused(1.0, "m", "r")), None, delivery)
            assert await within(self.patience, kept, "no answer") == Answer("m", "r")

    # --- watching -----------------------------------------------------------------------------------------------------
    async def test_outcome_is_pushed_to_all_who_watch(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start, revision = await self.begun(inbox)
            watches = [store.watch(start.id) for _ in range(3)]
            elsewhere = store.watch("somebody else")
            watches.pop().cancel()
            assert await store.outcome(start.id) is None
            outcome = Completed(2.0, encode("done"))
            await self.commit(start, revision, self.frame(outcome), "completed")
            for watch in watches:
                assert await within(self.patience, watch, "not pushed") == outcome
            assert not elsewhere.done()
            elsewhere.cancel()
            assert await store.outcome(start.id) == outcome

    async def test_who_registers_then_reads_misses_nothing(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()

            async def result(id: str) -> Any:
                watch = store.watch(id)
                outcome = await store.outcome(id)
                if outcome is None:
                    return await within(self.patience, watch, "not pushed")
                watch.cancel()
                return outcome

            for pauses in range(6):
                start, revision = await self.begun(inbox)
                outcome = Completed(2.0, encode("done"))
                settling = asyncio.ensure_future(self.commit(start, revision, self.frame(outcome), "completed"))
                for _ in range(pauses):
                    await asyncio.sleep(0)
                assert await result(start.id) == outcome
                await settling

    async def test_commit_is_told_once_and_never_before_it_returns(self) -> None:
        async with self.opened() as store:
            start, revision = await self.begun(self.inbox())
            told: list[tuple[int, Exception | None]] = []
            frame = self.frame(Fired(1, 1.0))
            store.commit(Transition(start.id, revision, frame), lambda at, error: told.append((at, error)))
            assert told == []
            await raised_by(committed(store, Transition(start.id, revision, frame)), Conflict)
            await asyncio.sleep(self.calm)
            assert told == [((await store.journal(start.id)).revision, None)]

    async def test_one_that_fails_when_told_does_not_keep_others_from_being_told(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            begun = [await self.begun(inbox) for _ in range(6)]
            failures: list[object] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context["exception"]))
            fault = RuntimeError("whoever is told fails")

            def fail(revision: int, error: Exception | None) -> None:
                raise fault

            commits: list[Awaitable[int]] = []
            for failing, other in zip(begun[::2], begun[1::2], strict=True):
                store.commit(Transition(failing[0].id, failing[1], self.frame(Fired(1, 1.0))), fail)
                commits.append(self.commit(*other, self.frame(Fired(2, 1.0))))
            await asyncio.gather(*commits)
            assert failures == [fault] * 3

    async def test_push_comes_only_when_the_outcome_can_be_read(self) -> None:
        async with self.opened() as store:
            start, revision = await self.begun(self.inbox())
            watch = store.watch(start.id)
            frame = self.frame(Completed(2.0, b"\xc0"))
            committed(store, Transition(start.id, revision, frame, status="completed"))
            assert await within(self.patience, watch, "not pushed") == await store.outcome(start.id)

    # --- wakes --------------------------------------------------------------------------------------------------------
    async def test_wake_comes_once_and_never_early(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            due = store.clock.now() + 0.1
            start, _ = await self.suspended(inbox, wake=due)
            delivery = await inbox.next()
            assert store.clock.now() >= due
            assert (delivery.id, type(delivery.item)) == (start.id, Wake)
            inbox.subscription.acknowledge(delivery)
            await inbox.stays_empty(self.calm)

    async def test_wake_that_is_due_already_comes_at_once(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            for back in (0.0, 0.001, 100.0):
                start, _ = await self.suspended(inbox, wake=store.clock.now() - back)
                while (await inbox.next()).id != start.id:
                    pass  # one before, which was not acknowledged

    async def test_many_wakes_at_all_times_each_come(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            begun = [await self.begun(inbox) for _ in range(100)]
            now = store.clock.now()
            commits: list[Awaitable[int]] = []
            due: dict[str, float] = {}
            for n, (start, revision) in enumerate(begun):
                due[start.id] = now + n / 1_000
                frame = self.frame(Released(now, due[start.id]))
                commits.append(self.commit(start, revision, frame, "suspended"))
            await asyncio.gather(*commits)
            woken: set[str] = set()
            while len(woken) < len(due):
                delivery = await inbox.next()
                assert store.clock.now() >= due[delivery.id]
                woken.add(delivery.id)

    async def test_wakes_set_while_others_fire_each_come(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            for _ in range(40):
                start, _ = await self.suspended(inbox, wake=store.clock.now() + 0.001)
                woken = ""
                while woken != start.id:  # those before may come again: nothing was released since
                    delivery = await inbox.next()
                    woken = delivery.id
                    inbox.subscription.acknowledge(delivery)

    async def test_wake_survives_reopening(self) -> None:
        async with self.opened() as store:
            due = store.clock.now() + 0.1
            start, _ = await self.suspended(self.inbox(), wake=due)
            await self.reopened()
            delivery = await self.inbox().next()
            assert (delivery.id, type(delivery.item)) == (start.id, Wake)
            assert self.store.clock.now() >= due

    async def test_wake_that_falls_due_while_nobody_serves_it_is_kept(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start, _ = await self.suspended(inbox, wake=store.clock.now() + 0.03)
            inbox.subscription.close()
            await asyncio.sleep(0.06)
            assert (await self.inbox().next()).id == start.id

    async def test_wake_in_hand_comes_to_another_when_its_holder_closes(self) -> None:
        async with self.opened() as store:
            first = self.inbox()
            start, _ = await self.suspended(first, wake=store.clock.now())
            await first.next()
            first.subscription.close()
            assert (await self.inbox().next()).id == start.id

    async def test_wake_that_falls_due_while_a_message_is_in_hand_is_not_lost(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            due = store.clock.now() + 0.4  # a slow machine has the message in hand before
            start, _ = await self.suspended(inbox, wake=due)
            await store.post(self.message(start.id))
            delivery, _ = await inbox.next_message()
            await asyncio.sleep(max(0.0, due - store.clock.now()) + 0.05)
            inbox.subscription.acknowledge(delivery)
            woken = await inbox.next()
            assert (woken.id, type(woken.item)) == (start.id, Wake)

    async def test_next_release_replaces_the_wake(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            now = store.clock.now()
            start, revision = await self.suspended(inbox, wake=now + 0.4)
            other, other_revision = await self.suspended(inbox, wake=now + 0.4)
            frame = self.frame(self.claim(2), Returned(1, 1.0, b"\xc0"), Released(now, now + 0.5))
            await self.commit(start, revision, frame, "suspended")
            frame = self.frame(self.claim(2), Returned(1, 1.0, b"\xc0"), Released(now, None))
            await self.commit(other, other_revision, frame, "suspended")
            due = now + 0.5
            while True:
                delivery = await inbox.next()
                # A wake is a hint: one that was replaced may still come. The one that counts must.
                assert isinstance(delivery.item, Wake)
                inbox.subscription.acknowledge(delivery)
                if delivery.id == start.id and store.clock.now() >= due:
                    return

    async def test_wake_of_settled_invocation_is_gone(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start, revision = await self.suspended(inbox, wake=store.clock.now() + 0.5)
            frame = self.frame(self.claim(2), Completed(1.0, b"\xc0"))
            await self.commit(start, revision, frame, "completed")
            await self.reopened()
            await self.inbox(room=1).stays_empty(self.calm)

    # --- keys ---------------------------------------------------------------------------------------------------------
    async def granted(self, inbox: Inbox, id: str) -> tuple[Start, int]:
        """Take the next start, which must be this one and hold its key; commit its first frame, with the grant."""
        delivery = await inbox.next_start()
        start = delivery.item
        assert isinstance(start, Start)
        assert start.id == id
        assert start.key is not None
        key = await self.store.key(start.key)
        assert key.granted_to(id, 0)
        grant = Granted(self.store.clock.now(), 0, key.state)
        first = self.frame(Accepted(start), self.claim(), grant, commands=[CallStep(0, "s", b"d")])
        return start, await self.commit(start, 0, first, "running", delivery)

    async def settled(self, start: Start, revision: int, outcome: Outcome | None = None, **state: bytes | None) -> int:
        """End an invocation, with changes of its key's state."""
        outcome = outcome or Completed(self.store.clock.now(), b"\xc0")
        frame = Frame("w", self.store.clock.now(), [outcome], [], state)
        return await self.commit(start, revision, frame, STATUS_OF[type(outcome)])

    async def test_key_that_nobody_used_has_no_holder_and_no_state(self) -> None:
        async with self.opened() as store:
            assert await store.key("unused") == Key()

    async def test_starts_of_a_key_come_one_at_a_time_in_the_order_accepted(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox(room=100)
            await store.submit([self.start(f"a{n}", key="k") for n in range(3)])
            await store.submit([self.start("a3", key="k"), self.start("other", key="l"), self.start("plain")])
            first = [await inbox.next_start() for _ in range(3)]
            assert {each.id for each in first} == {"a0", "other", "plain"}
            start, head = first[[each.id for each in first].index("a0")].item, "a0"
            assert isinstance(start, Start)
            frame = self.frame(Accepted(start), self.claim(), Granted(start.at, 0))
            revision = await self.commit(start, 0, frame, "running", *(d for d in first if d.id == head))
            for following in ("a1", "a2", "a3"):
                await inbox.stays_empty(self.calm)
                await self.settled(start, revision)
                start, revision = await self.granted(inbox, following)
            await self.settled(start, revision)
            assert (await store.key("k")).holder is None

    async def test_state_of_a_key_goes_from_holder_to_holder(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox(room=100)
            await store.submit([self.start(f"a{n}", key="k") for n in range(4)])
            start, revision = await self.granted(inbox, "a0")
            await self.settled(start, revision, x=b"1", y=b"2")
            start, revision = await self.granted(inbox, "a1")
            assert await store.key("k") == Key("a1", 0, {"x": b"1", "y": b"2"})
            failed = Failed(start.at, failure_of(ValueError("no")))
            await self.settled(start, revision, failed, x=None, y=b"3")
            start, revision = await self.granted(inbox, "a2")
            assert (await store.key("k")).state == {"y": b"3"}
            await self.settled(start, revision)
            store = await self.reopened()
            assert await store.key("k") == Key("a3", 0, {"y": b"3"})
            start, revision = await self.granted(self.inbox(room=1), "a3")
            await self.settled(start, revision, y=None)
            assert await store.key("k") == Key()

    async def test_line_and_holder_survive_reopening(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox(room=100)
            await store.submit([self.start(f"a{n}", key="k") for n in range(3)])
            start, revision = await self.granted(inbox, "a0")
            revision = await self.commit(start, revision, self.frame(Released(start.at)), "suspended")
            store = await self.reopened()
            inbox = self.inbox(room=100)
            await store.submit([self.start("a3", key="k")])
            await inbox.stays_empty(self.calm)
            await self.settled(start, revision)
            for following in ("a1", "a2", "a3"):
                start, revision = await self.granted(inbox, following)
                await self.settled(start, revision)

    async def test_holder_that_was_never_taken_comes_after_reopening(self) -> None:
        async with self.opened() as store:
            await store.submit([self.start("a0", key="k"), self.start("a1", key="k")])
            await self.reopened()
            inbox = self.inbox(room=5)
            start, revision = await self.granted(inbox, "a0")
            await inbox.stays_empty(self.calm)
            await self.settled(start, revision)
            await self.granted(inbox, "a1")

    async def test_delayed_start_takes_its_place_in_the_line_when_it_is_due(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox(room=100)
            await store.submit([self.start("late", key="k", due=store.clock.now() + 0.1)])
            await store.submit([self.start("a0", key="k"), self.start("a1", key="k")])
            start, revision = await self.granted(inbox, "a0")
            await asyncio.sleep(0.15)
            for following in ("a1", "late"):
                await self.settled(start, revision)
                start, revision = await self.granted(inbox, following)

    async def test_who_waits_for_its_key_can_be_cancelled_and_leaves_the_line(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox(room=100)
            await store.submit([self.start(f"a{n}", key="k") for n in range(3)])
            start, revision = await self.granted(inbox, "a0")
            await store.post(self.message("a1", Pause()))
            await inbox.stays_empty(self.calm)
            await store.post(self.message("a1", Cancel()))
            delivery, message = await inbox.next_message()
            waiting = await store.start("a1")
            assert waiting is not None
            ended = self.frame(Accepted(waiting), Cancelled(waiting.at, message=message.id))
            await self.commit(waiting, 0, ended, "cancelled", delivery)
            _, late = await inbox.next_message()  # it waited for a start that will not come now
            assert isinstance(late.request, Pause)
            assert await store.key("k") == Key("a0")
            await self.settled(start, revision)
            await self.granted(inbox, "a2")

    async def test_release_by_who_does_not_hold_the_key_changes_nothing(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox(room=100)
            await store.submit([self.start(f"a{n}", key="k") for n in range(3)])
            start, revision = await self.granted(inbox, "a0")
            await self.settled(start, revision, x=b"1")
            await self.granted(inbox, "a1")
            for generation in (0, 1):
                again = Effects(release=Release("k", generation, {"x": b"lost"}))
                await self.commit(start, revision, None, "completed", effects=again)
            assert await store.key("k") == Key("a1", 0, {"x": b"1"})
            await inbox.stays_empty(self.calm)

    async def test_redone_release_grants_the_key_once(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox(room=100)
            await store.submit([self.start(f"a{n}", key="k") for n in range(3)])
            start, revision = await self.granted(inbox, "a0")
            revision = await self.settled(start, revision, x=b"1")
            redo = Effects(release=Release("k", 0, {"x": b"1"}))
            await self.commit(start, revision, None, "completed", effects=redo)
            await self.granted(inbox, "a1")
            await inbox.stays_empty(self.calm)

    async def test_who_enlists_is_woken_when_the_key_is_its_own(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox(room=100)
            await store.submit([self.start(f"a{n}", key="k") for n in range(3)])
            first, revision = await self.granted(inbox, "a0")
            failed = Failed(first.at, failure_of(ValueError("no")))
            revision = await self.settled(first, revision, failed, x=b"1")
            second, second_revision = await self.granted(inbox, "a1")
            for _ in range(2):  # a redo takes no second place
                await self.commit(first, revision, None, "failed", effects=Effects(enlist=Enlist("k", 1)))
            await inbox.stays_empty(self.calm)
            await self.settled(second, second_revision, x=b"2")
            third, third_revision = await self.granted(inbox, "a2")
            await store.submit([self.start("a3", key="k")])
            await self.settled(third, third_revision)
            woken = await inbox.next()
            assert (woken.id, woken.item) == ("a0", Wake())
            assert await store.key("k") == Key("a0", 1, {"x": b"2"})
            await self.commit(first, revision, None, "failed", effects=Effects(enlist=Enlist("k", 1)))
            await self.commit(first, revision, None, "failed", effects=Effects(release=Release("k", 0, {"x": b"lost"})))
            assert await store.key("k") == Key("a0", 1, {"x": b"2"})
            await self.commit(first, revision, None, "failed", woken, effects=Effects(release=Release("k", 1)))
            await self.granted(inbox, "a3")

    async def test_who_enlists_for_a_free_key_is_woken_at_once(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox(room=100)
            await store.submit([self.start("a0", key="k")])
            start, revision = await self.granted(inbox, "a0")
            revision = await self.settled(start, revision, Failed(start.at, failure_of(ValueError("no"))))
            await self.commit(start, revision, None, "failed", effects=Effects(enlist=Enlist("k", 1)))
            assert (await inbox.next()).id == "a0"
            assert await store.key("k") == Key("a0", 1)

    async def test_who_waits_for_its_key_is_woken_at_its_time_limit(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox(room=100)
            await store.submit([self.start("a0", key="k"), self.start("a1", key="k", timeout=0.1)])
            await self.granted(inbox, "a0")
            woken = await inbox.next()
            assert (woken.id, woken.item) == ("a1", Wake())
            start = await store.start("a1")
            assert start is not None
            assert store.clock.now() >= start.due + 0.1

    async def test_line_that_is_full_refuses_a_client_and_takes_what_workflows_send(self) -> None:
        async with self.opened(line_limit=2) as store:
            inbox = self.inbox(room=100)
            await store.submit([self.start(f"a{n}", key="k") for n in range(3)])
            start, revision = await self.granted(inbox, "a0")
            refused = self.start("refused", key="k")
            error = await raised_by(store.submit([self.start("with", key="l"), refused]), LimitExceeded)
            assert "'k'" in str(error)
            assert await store.row("refused") is None
            assert await store.row("with") is None
            sent = self.start("sent", key="k")
            frame = self.frame(Returned(0, start.at, b"\xc0"), commands=[SendStart(1, sent)])
            revision = await self.commit(start, revision, frame)
            assert await store.row("sent") is not None
            await self.settled(start, revision)
            start, revision = await self.granted(inbox, "a1")
            await self.settled(start, revision)
            assert await store.submit([refused]) == [True]
            for following in ("a2", "sent", "refused"):
                start, revision = await self.granted(inbox, following)
                await self.settled(start, revision)

    async def test_keys_granted_while_thousands_of_others_wait_all_come(self) -> None:
        async with self.opened() as store:
            ids = [f"a{n:04d}" for n in range(600)]
            await store.submit([self.start(id, key=f"k{int(id[1:]) % 200}") for id in ids])
            inbox = self.inbox(room=50)
            came: list[str] = []
            while len(came) < len(ids):
                delivery = await inbox.next_start()
                start = delivery.item
                assert isinstance(start, Start)
                came.append(start.id)
                ended = self.frame(Accepted(start), Granted(start.at, 0), Completed(start.at, b"\xc0"))
                await self.commit(start, 0, ended, "completed", delivery)
                inbox.subscription.request(1)
            assert sorted(came) == ids
            for key in range(200):
                assert [id for id in came if int(id[1:]) % 200 == key] == ids[key::200]

    # --- the index ----------------------------------------------------------------------------------------------------
    async def test_search_lists_newest_first_whatever_the_status(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            now = store.clock.now()
            settled = await self.completed(inbox, self.start("done", at=now - 5))
            waiting, _ = await self.suspended(inbox, self.start("waits", at=now - 4))
            running, _ = await self.begun(inbox, self.start("runs", at=now - 3))
            queued, scheduled = self.start("queued", at=now - 2), self.start("scheduled", at=now - 1, due=now + 900)
            await store.submit([queued, scheduled])
            expected = [scheduled, queued, running, waiting, settled]
            for _ in range(2):
                rows = await store.search(Filter())
                assert [row.id for row in rows] == [start.id for start in expected]
                assert [row.status for row in rows] == ["scheduled", "pending", "running", "suspended", "completed"]
                for row, start in zip(rows, expected, strict=True):
                    assert (row.handler, row.key, row.created_at, row.due) == (HANDLER, None, start.at, start.due)
                    assert await store.row(row.id) == row
                store = await self.reopened()

    async def test_search_filters_and_all_filters_together(self) -> None:
        async with self.opened() as store:
            now = store.clock.now()
            await store.submit(
                [
                    self.start("a1", key="k", at=now),
                    self.start("a2", key="other", at=now + 1),
                    self.start("b1", handler="two", key="k", at=now + 2),
                    self.start("b2", handler="two", at=now + 3, due=now + 900),
                ]
            )
            cases = {
                Filter(handler="two"): ["b2", "b1"],
                Filter(key="k"): ["b1", "a1"],
                Filter(status="scheduled"): ["b2"],
                Filter(status="completed"): [],
                Filter(id_prefix="a"): ["a2", "a1"],
                Filter(id_prefix="a2"): ["a2"],
                Filter(id_prefix="%"): [],
                Filter(handler="two", key="k", status="pending", id_prefix="b"): ["b1"],
                Filter(handler="two", key="k", status="scheduled"): [],
                Filter(limit=3): ["b2", "b1", "a2"],
                Filter(id="a2"): ["a2"],
                Filter(id="a"): [],
                Filter(created_after=now + 1): ["b2", "b1", "a2"],
                Filter(created_before=now + 1): ["a1"],
                Filter(created_after=now + 1, created_before=now + 3, handler="two"): ["b1"],
            }
            for filter, expected in cases.items():
                assert [row.id for row in await store.search(filter)] == expected, filter

    async def test_search_goes_on_page_by_page_without_gaps_or_repeats(self) -> None:
        async with self.opened() as store:
            now = store.clock.now()
            await store.submit([self.start(f"p{n:02d}", at=now + n // 4) for n in range(25)])
            seen: list[Row] = []
            before = None
            while page := await store.search(Filter(before=before, limit=7)):
                seen += page
                before = (page[-1].created_at, page[-1].id)
            assert [row.id for row in seen] == [f"p{n:02d}" for n in reversed(range(25))]

    async def test_pages_neither_repeat_nor_lose_anything_while_new_ones_arrive(self) -> None:
        async with self.opened() as store:
            now = store.clock.now()
            await store.submit([self.start(f"p{n:02d}", at=now + n) for n in range(20)])
            seen: list[str] = []
            before = None
            while page := await store.search(Filter(before=before, limit=6)):
                seen += [row.id for row in page]
                before = (page[-1].created_at, page[-1].id)
                await store.submit([self.start(f"new{len(seen)}", at=now + 100 + len(seen))])
            assert seen == [f"p{n:02d}" for n in reversed(range(20))]

    # --- changes ------------------------------------------------------------------------------------------------------
    async def changes(self, events: Events) -> list[tuple[str, Status]]:
        """Return what changed next, as ids and statuses."""
        rows = await within(self.patience, events.next(), "no change was pushed")
        assert rows is not None
        return [(row.id, row.status) for row in rows]

    async def test_every_change_of_status_is_pushed_with_its_row(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            events = store.events(Filter())
            now = store.clock.now()
            late = self.start("late", at=now, due=now + 0.2)
            await store.submit([late])
            assert await self.changes(events) == [("late", "scheduled")]
            assert await self.changes(events) == [("late", "pending")]
            inbox.subscription.request(1)
            delivery = await inbox.next_start()
            first = self.frame(Accepted(late), self.claim(), commands=[CallStep(0, "s", b"d")])
            revision = await self.commit(late, 0, first, "running", delivery)
            assert await self.changes(events) == [("late", "running")]
            revision = await self.commit(late, revision, self.frame(Released(now)), "suspended")
            rows = await within(self.patience, events.next(), "no change was pushed")
            assert rows == [await store.row("late")]
            await self.commit(late, revision, self.frame(Completed(now, encode(1))), "completed")
            assert await self.changes(events) == [("late", "completed")]
            events.close()

    async def test_only_changes_that_pass_the_filter_are_pushed(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            cases = {
                Filter(id="b"): [("b", "completed")],
                Filter(status="suspended"): [("c", "suspended")],
                Filter(id_prefix="a"): [("ab", "completed"), ("aa", "completed")],
                Filter(handler="other"): [],
            }
            feeds = [store.events(filter) for filter in cases]
            for id in ("ab", "b", "aa"):
                await self.completed(inbox, self.start(id))
            await self.suspended(inbox, self.start("c"))
            await self.all_is_told()
            for feed, expected in zip(feeds, cases.values(), strict=True):
                assert (await self.changes(feed) if expected else []) == expected
                feed.close()

    async def all_is_told(self) -> None:
        """Wait until all changes so far are pushed: changes are pushed in order."""
        last = self.start()
        events = self.store.events(Filter(id=last.id))
        await self.store.submit([last])
        await self.changes(events)
        events.close()

    async def test_slow_reader_gets_the_newest_of_each_the_latest_change_last(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            events = store.events(Filter(id_prefix="x"))
            first, second = self.start("x1"), self.start("x2")
            await store.submit([first, second])
            await self.suspended(inbox, first)
            await self.completed(inbox, second)
            await self.all_is_told()
            assert await self.changes(events) == [("x1", "suspended"), ("x2", "completed")]

    async def test_closing_the_store_ends_a_reader_after_what_it_was_told(self) -> None:
        async with self.opened() as store:
            events, waiting = store.events(Filter(id_prefix="x")), store.events(Filter(id="nobody"))
            reading = asyncio.ensure_future(waiting.next())
            await store.submit([self.start("x")])
            await self.all_is_told()
            await store.aclose()
            assert await self.changes(events) == [("x", "pending")]
            for ended in (events.next(), reading):
                await raised_by(within(self.patience, ended, "the reader waits on"), StoreClosed)

    async def test_mail_is_what_was_accepted_and_not_answered_oldest_first(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start, revision = await self.suspended(inbox)
            other, _ = await self.suspended(inbox)
            at = store.clock.now()
            pause = Message("z", start.id, at, Pause())
            resume, cancel = Message("y", start.id, at + 1, Resume()), Message("x", start.id, at + 2, Cancel())
            for message in (pause, cancel, resume):
                await store.post(message)
            await store.post(self.message(other.id))
            assert await store.mail(start.id) == [pause, resume, cancel]
            delivery = next(each for each in [await inbox.next() for _ in range(4)] if each.item == pause)
            await self.commit(start, revision, self.frame(Paused(at, "asked for", "z")), "paused", delivery)
            store = await self.reopened()
            assert await store.mail(start.id) == [resume, cancel]
            assert await store.mail("nobody") == []

    async def test_revision_is_that_of_the_journal_and_zero_without_one(self) -> None:
        async with self.opened() as store:
            assert await store.revision("nobody") == 0
            inbox = self.inbox()
            start, revision = await self.suspended(inbox)
            inbox.subscription.close()
            await store.submit([self.start("queued")])
            assert await store.revision("queued") == 0
            assert await store.revision(start.id) == revision == (await store.journal(start.id)).revision

    async def test_messages_posted_while_nobody_serves_come_in_the_order_sent(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start, _ = await self.suspended(inbox)
            inbox.subscription.close()
            at = store.clock.now()
            sent = [Message(id, start.id, at + n, Pause()) for n, id in enumerate("zaybxc")]
            for message in sent:
                await store.post(message)
            await self.reopened()
            again = self.inbox()
            assert [(await again.next_message())[1] for _ in sent] == sent

    async def test_counts_include_what_is_queued_scheduled_and_settled(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            assert (await store.counts()).by_status == {}
            await self.completed(inbox)
            await self.completed(inbox)
            await self.suspended(inbox)
            late = store.clock.now() + 900
            await store.submit([self.start(handler="two"), self.start(handler="two", due=late)])
            for _ in range(2):
                counts = await store.counts()
                assert counts.by_status == {"completed": 2, "suspended": 1, "pending": 1, "scheduled": 1}
                assert counts.by_handler == {HANDLER: 3, "two": 2}
                store = await self.reopened()

    async def test_time_of_the_last_change_is_in_the_index(self) -> None:
        async with self.opened() as store:
            start = self.start(at=store.clock.now() - 50)
            await self.completed(self.inbox(), start)
            row = await store.row(start.id)
            assert row is not None
            assert start.at + 49 < row.updated_at <= store.clock.now()

    # --- retention ----------------------------------------------------------------------------------------------------
    async def purge(self, id: str | None = None, limit: int = 100) -> int:
        """Remove what has settled by now."""
        return await within(self.patience, self.store.purge(self.store.clock.now(), limit=limit, id=id), "not purged")

    async def is_unknown(self, id: str) -> bool:
        """Tell whether nothing is left of an invocation."""
        store = self.store
        left = (await store.row(id), await store.start(id), await store.outcome(id), (await store.journal(id)).frames)
        return left == (None, None, None, ()) and id not in [row.id for row in await store.search(Filter())]

    async def test_purged_invocation_is_unknown_to_everything(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            start, revision = await self.suspended(inbox)
            message = self.message(start.id)
            await store.post(message)
            told, _ = await inbox.next_message()
            end = self.frame(self.claim(2), CancelRequested(1.0, message=message.id), Cancelled(1.0))
            await self.commit(start, revision, end, "cancelled", told)
            assert await self.purge() == 1
            for _ in range(2):
                assert await self.is_unknown(start.id)
                assert (await store.counts()).by_status == {}
                for again in (message, self.message(start.id)):
                    await raised_by(store.post(again), UnknownInvocation)
                inbox = self.inbox(room=5)
                await inbox.stays_empty(self.calm)
                store = await self.reopened()

    async def test_id_of_a_purged_invocation_can_be_used_anew(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            await self.completed(inbox, self.start("again", input=encode({"x": 1})))
            await self.purge()
            other = self.start("again", input=encode({"x": 2}))
            assert await store.submit([other]) == [True]
            inbox.subscription.request(1)
            assert (await inbox.next_start()).item == other

    async def test_purge_keeps_what_has_not_settled(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            running, _ = await self.begun(inbox)
            waiting, _ = await self.suspended(inbox)
            paused, revision = await self.suspended(inbox)
            pause = self.frame(self.claim(2), Paused(1.0, "why"), Released(1.0))
            await self.commit(paused, revision, pause, "paused")
            queued, late = self.start(), self.start(due=store.clock.now() + 900)
            await store.submit([queued, late])
            assert await self.purge() == 0
            for start in (running, waiting, paused, queued, late):
                assert await self.purge(start.id) == 0
                assert await store.start(start.id) == start
            assert await self.purge("nobody") == 0

    async def test_purge_removes_the_oldest_first_within_its_limit(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            ids = [(await self.completed(inbox)).id for _ in range(5)]
            times = [row.updated_at for row in reversed(await store.search(Filter()))]
            assert await store.purge(times[0] - 1, limit=10) == 0
            assert await self.purge(limit=2) == 2
            assert [await self.is_unknown(id) for id in ids] == [True, True, False, False, False]
            assert await self.purge(ids[4]) == 1
            assert await store.purge(times[2], limit=10) >= 1
            assert [await self.is_unknown(id) for id in ids[:3]] == [True] * 3
            assert await self.is_unknown(ids[4])

    async def test_purge_keeps_what_has_a_message_without_an_answer(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            served, unserved = await self.completed(inbox), await self.completed(inbox)
            await store.post(self.message(served.id))
            await inbox.next_message()  # in hand
            assert await self.purge(served.id) == 0
            inbox.subscription.close()
            await store.post(self.message(unserved.id))  # in nobody's
            assert await self.purge() == 0
            store = await self.reopened()
            assert await self.purge() == 0
            inbox = self.inbox()
            for _ in range(2):
                told, got = await inbox.next_message()
                effects = Effects(answers=(Answer(got.id, "too late"),))
                revision = (await store.journal(got.to)).revision
                transition = Transition(got.to, revision, None, effects, "completed", True, [told])
                await committed(store, transition)
            assert await self.purge() == 2

    async def test_purge_keeps_what_is_in_hand(self) -> None:
        async with self.opened() as store:
            inbox, start = self.inbox(room=1), self.start()
            await store.submit([start])
            delivery = await inbox.next_start()
            settled = self.frame(Accepted(start), self.claim(), Completed(1.0, encode(1)))
            await self.commit(start, 0, settled, "completed")  # without acknowledging the start
            assert await self.purge() == 0
            inbox.subscription.acknowledge(delivery)
            assert await self.purge() == 1

    async def test_message_and_purge_of_the_same_moment_do_not_both_succeed(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            starts = [await self.completed(inbox) for _ in range(40)]
            inbox.subscription.close()
            for n, start in enumerate(starts):
                purge = asyncio.ensure_future(self.purge(start.id))
                for _ in range(n % 5):
                    await asyncio.sleep(0)
                [posted] = await asyncio.gather(store.post(self.message(start.id)), return_exceptions=True)
                purged, gone = await purge, await self.is_unknown(start.id)
                assert isinstance(posted, UnknownInvocation) == gone
                assert purged == gone

    async def test_purge_beside_commits_leaves_them_whole(self) -> None:
        async with self.opened():
            inbox = self.inbox()
            old = [await self.completed(inbox) for _ in range(30)]
            living = [await self.suspended(inbox) for _ in range(10)]
            more = self.frame(self.claim(2), Returned(1, 1.0, encode(2)), Released(2.0))
            results = await asyncio.gather(
                *(self.commit(start, revision, more, "suspended") for start, revision in living),
                *(self.purge(limit=10) for _ in range(6)),
            )
            assert sum(results[10:]) >= 10
            while await self.purge():
                pass
            assert all([await self.is_unknown(start.id) for start in old])
            await self.reopened()
            assert [len(await self.frames_of(start.id)) for start, _ in living] == [3] * 10

    # --- payloads -----------------------------------------------------------------------------------------------------
    async def test_payloads_of_every_size_come_back_unchanged(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            for size in (0, 1, MIB, 20 * MIB):
                payload = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
                start = self.start(input=payload)
                await store.submit([start])
                inbox.subscription.request(1)
                delivery = await inbox.next_start()
                assert delivery.item == start
                message = self.message(start.id, Resolve(1, payload))
                await store.post(message)
                told, got = await inbox.next_message()
                assert got == message
                frame = Frame("w", 1.0, [Accepted(start), self.claim(), Returned(0, 1.0, payload)], [], {"s": payload})
                revision = await self.commit(start, 0, frame, "running", delivery, effects=Effects())
                settled = self.frame(Completed(1.0, payload))
                await self.commit(start, revision, settled, "completed", told)
                assert await self.frames_of(start.id) == [frame, settled]
                assert await store.outcome(start.id) == settled.entries[0]
            store = await self.reopened()
            rows = await store.search(Filter())
            assert len(rows) == 4
            outcomes = [await store.outcome(row.id) for row in rows]
            sizes = sorted(len(each.value) for each in outcomes if isinstance(each, Completed))
            assert sizes == [0, 1, MIB, 20 * MIB]

    async def test_payload_limit_is_a_number_of_bytes(self) -> None:
        async with self.opened() as store:
            assert store.payload_limit >= MIB

    # --- the store itself ---------------------------------------------------------------------------------------------
    async def test_secret_stays_the_same(self) -> None:
        async with self.opened() as store:
            secret = store.secret
            assert secret
            assert (await self.reopened()).secret == secret

    async def test_closed_store_says_so_and_waits_end(self) -> None:
        async with self.opened() as store:
            start, revision = await self.begun(self.inbox())
            watch = store.watch(start.id)
            answer = asyncio.ensure_future(store.answer("never"))
            await asyncio.sleep(self.calm)
            await store.aclose()
            uses: list[Callable[[], Awaitable[object]]] = [
                lambda: watch,
                lambda: answer,
                lambda: store.submit([self.start("x")]),
                lambda: store.post(self.message(start.id)),
                lambda: committed(store, Transition(start.id, revision, self.frame(Fired(1, 1.0)))),
                lambda: store.journal(start.id),
                lambda: store.outcome(start.id),
                lambda: store.search(Filter()),
                lambda: store.counts(),
                lambda: store.row(start.id),
                lambda: store.start(start.id),
                lambda: store.answer("m"),
            ]
            for use in uses:
                await raised_by(within(self.patience, called(use), "not refused"), StoreClosed)
            store = await self.reopened()
            assert (await store.journal(start.id)).revision == revision

    async def test_what_waits_to_be_written_when_the_store_closes_is_written(self) -> None:
        async with self.opened() as store:
            pending = [store.submit([self.start(f"s{n}")]) for n in range(10)]
            await store.aclose()
            results = await asyncio.gather(*pending, return_exceptions=True)
            store = await self.reopened()
            for n, result in enumerate(results):
                assert result == [True], result
                assert await store.row(f"s{n}") is not None


def requests() -> list[Request]:
    """Return one request of each type."""
    failed = Failed(1.0, failure_of(ValueError("v")))
    found: list[Request] = [Resolve(1, b"\xc0"), Reject(1, "r"), Settled(0, 1, "c", failed), Cancel(force=True)]
    found += [Pause(), Resume(), RetryInvocation(), Join(Start("c", "handler", b"\x80", 1.0, 1.0, 7))]
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
        CancelRequested(2.0, timed_out=True, message="m3"),
        Paused(2.0, "why\nnot", "m4"),
        Resumed(2.0, "m5"),
        Refused(2.0, "m6", "\u00e9\U0001f600"),
        Completed(2.0, b"\x01"),
        Failed(2.0, failure, 7),
        Cancelled(2.0, forced=True, message="m7"),
        Retried(2.0, 1, 7, 9, "m8", 3, 2, [7, 8]),
        Joined(2.0, Parent("up", 1, 2), "m9"),
    ]
    commands: list[Command] = [
        CallStep(0, "step", b"digest"),
        SetTimer(1, 5.5),
        CallChild(2, start),
        SendStart(3, start),
        OpenAwakeable(4),
        MarkPatch(5, "patch"),
    ]
    assert {type(entry) for entry in entries} == set(get_args(Entry))
    assert {type(command) for command in commands} == set(get_args(Command))
    return entries, commands
