"""Commits: a guarded append of the frame, then its effects, each idempotent, then the acknowledgements.

A commit whose frame is durable is never reported as failed. Its effects are retried until they are done, or until the
store closes; then the worker that takes over performs them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Coroutine, Sequence
from functools import partial
from typing import Any

from perdure.background import Tasks
from perdure.core.effects import Effects
from perdure.core.journal import Cancelled, Failed, Start
from perdure.errors import StoreClosed, StoreError
from perdure.stores.finite import check_effects, check_finite
from perdure.stores.jetstream.accepting import Accepting
from perdure.stores.jetstream.journal.blobs import Blobs
from perdure.stores.jetstream.journal.journals import NOTHING, Journals, Tail
from perdure.stores.jetstream.keys.keys import Keys
from perdure.stores.jetstream.layout.facts import ROLLUP, Facts, lines_of
from perdure.stores.jetstream.layout.subjects import Layout
from perdure.stores.jetstream.ownership.holdings import Holdings
from perdure.stores.jetstream.ownership.leases import DUE, Leases
from perdure.stores.jetstream.queue.deliveries import FAILED_SECONDS
from perdure.stores.jetstream.streams import JetStreamStreams
from perdure.stores.jetstream.watching import Watching
from perdure.stores.jetstream.wire.protocol import WrongSequence
from perdure.stores.jetstream.wire.wire import Wire
from perdure.stores.jetstream.writing import Writing
from perdure.stores.port import Clock, Committed, Transition, conflict

EFFECTS_LIMIT_SECONDS = 30.0
"""The longest back-off before effects that failed unexpectedly are retried."""

log = logging.getLogger("perdure.jetstream")


class Commits:
    """Commits transitions."""

    def __init__(
        self,
        wire: Wire,
        layout: Layout,
        blobs: Blobs,
        journals: Journals,
        keys: Keys,
        leases: Leases,
        accepting: Accepting,
        watching: Watching,
        streams: JetStreamStreams,
        writing: Writing,
        tasks: Tasks,
        name: str,
        clock: Clock,
    ) -> None:
        self._wire = wire
        self._layout = layout
        self._blobs = blobs
        self._journals = journals
        self._keys = keys
        self._leases = leases
        self._holdings: Holdings = leases.holdings
        self._accepting = accepting
        self._watching = watching
        self._streams = streams
        self._writing = writing
        self._tasks = tasks
        self._name = name
        self._clock = clock

    def commit(self, transition: Transition, told: Committed, /) -> None:
        self._writing.begin()
        try:
            check_effects(transition.id, transition.effects)
        except Exception as error:  # noqa: BLE001  reported to `told`: a retry would fail alike
            self._tell(told, 0, error)
            return
        if transition.frame is None:
            self._follow(transition, told, transition.expected)
            return
        tail = self._journals.known(transition.id)
        if tail is None and not transition.expected:
            tail = NOTHING
        if tail is None or tail.revision != transition.expected:
            self._spawn(told, self._read_and_append(transition, told))
        else:
            self._append(transition, told, tail)

    async def _read_and_append(self, transition: Transition, told: Committed) -> None:
        try:
            tail = await self._journals.tail(transition.id)
        except StoreError as error:
            self._tell(told, 0, error)
            return
        self._journals.note(transition.id, tail)
        if tail.revision != transition.expected or tail.facts.kind == "closing":
            self._conflict(transition, told, tail)
        else:
            self._append(transition, told, tail)

    def _append(self, transition: Transition, told: Committed, tail: Tail) -> None:
        frame = transition.frame
        assert frame is not None
        try:
            data, facts = self._journals.next_frame(transition, tail, self._clock.now())
            check_finite(data, frame)
        except Exception as error:  # noqa: BLE001  reported to `told`: a retry would fail alike
            self._tell(told, 0, error)
            return
        if self._blobs.is_large(data) or self._journals.is_to_be_packed(tail):
            self._spawn(told, self._append_with_pieces(transition, told, tail, data, facts))
            return
        self._put_frame(transition, told, tail, data, facts)

    async def _append_with_pieces(
        self, transition: Transition, told: Committed, tail: Tail, data: bytes, facts: Facts
    ) -> None:
        """Append a frame that is too large for a message, or that packs the frames before it."""
        try:
            if self._journals.is_to_be_packed(tail):
                facts, data = await self._journals.pack(tail, facts, data)
            facts, data = await self._blobs.save(transition.id, facts, data)
        except StoreError as error:
            self._tell(told, 0, error)
            return
        self._put_frame(transition, told, tail, data, facts)

    def _put_frame(self, transition: Transition, told: Committed, tail: Tail, data: bytes, facts: Facts) -> None:
        self._wire.put(
            self._layout.journal(transition.id),
            data,
            partial(self._appended, transition, told, tail, facts),
            expected=tail.sequence,
            headers=ROLLUP + lines_of(facts) if facts.is_pack else lines_of(facts),
        )

    def _appended(
        self,
        transition: Transition,
        told: Committed,
        tail: Tail,
        facts: Facts,
        sequence: int,
        error: StoreError | None,
    ) -> None:
        if error is None:
            self._journals.note(transition.id, Tail(sequence, facts))
            self._follow(transition, told, sequence)
        elif isinstance(error, WrongSequence):
            self._spawn(told, self._look_again(transition, told, tail))
        else:
            self._tell(told, 0, error)

    async def _look_again(self, transition: Transition, told: Committed, before: Tail) -> None:
        """Reload after a failed guard: append to a journal that was reserved or rewritten, else report the conflict."""
        try:
            tail = await self._journals.tail(transition.id)
        except StoreError as error:
            self._tell(told, 0, error)
            return
        self._journals.note(transition.id, tail)
        is_same = tail.revision == transition.expected and tail.facts.kind in ("reserved", "frame")
        if is_same and tail.sequence != before.sequence:
            self._append(transition, told, tail)
        else:
            self._conflict(transition, told, tail)

    def _conflict(self, transition: Transition, told: Committed, tail: Tail) -> None:
        id = transition.id
        if tail.facts.owner not in ("", self._name):
            self._leases.lose(id)  # before it is reported, so that nothing of it is retried here
        self._tell(told, 0, conflict(id, transition.expected))

    def _spawn(self, told: Committed, work: Coroutine[Any, Any, None]) -> None:
        """Continue a commit in a task. `told` is called whatever happens."""

        async def run() -> None:
            try:
                await work
            except asyncio.CancelledError:
                self._tell(told, 0, StoreClosed("jetstream: the store is closed"))
                raise
            except Exception as error:
                log.exception("a commit failed unexpectedly")
                self._tell(told, 0, StoreError(f"jetstream: a commit failed unexpectedly: {error!r}"))

        self._tasks.spawn(run())

    def _tell(self, told: Committed, revision: int, error: Exception | None) -> None:
        self._writing.done()
        asyncio.get_running_loop().call_soon(told, revision, error)

    # --- effects ------------------------------------------------------------------------------------------------------
    def _follow(self, transition: Transition, told: Committed, revision: int) -> None:
        effects = transition.effects
        ended = transition.released or transition.outcome is not None
        nothing = not (effects.starts or effects.messages or effects.answers or effects.release or effects.enlist)
        if (
            nothing
            and not effects.written
            and (effects.wake is None or not ended)
            and not self._may_leave_start(transition)
        ):
            self._followed(transition, told, revision)
        else:
            self._spawn(told, self._do_effects(transition, told, revision))

    def _may_leave_start(self, transition: Transition) -> bool:
        """Report whether an invocation ended before it began, so that its start may still be queued."""
        tail = self._journals.known(transition.id)
        return (
            isinstance(transition.outcome, Cancelled | Failed)
            and tail is not None
            and tail.facts.number == 1
            and not any(isinstance(each.item, Start) for each in transition.acknowledge)
        )

    async def _do_effects(self, transition: Transition, told: Committed, revision: int) -> None:
        delay = FAILED_SECONDS
        while True:
            try:
                await self.try_effects(transition)
                break
            except StoreClosed as error:
                self._tell(told, 0, error)
                return
            except StoreError as error:
                self._wire.limited_log(
                    f"follow {type(error).__name__}",
                    "the effects of a commit to invocation %s cannot be written, retrying: %s",
                    transition.id,
                    error,
                )
                await asyncio.sleep(FAILED_SECONDS)
            except Exception as error:  # noqa: BLE001  the frame is durable: its effects are retried until they are done
                self._wire.limited_log(
                    ("follow", transition.id),
                    "the effects of a commit to invocation %s failed unexpectedly, retrying: %s",
                    transition.id,
                    error,
                    exc_info=error,
                )
                await asyncio.sleep(delay)
                delay = min(2 * delay, EFFECTS_LIMIT_SECONDS)
        self._followed(transition, told, revision)

    async def try_effects(self, transition: Transition) -> None:
        id, effects = transition.id, transition.effects
        for batch in effects.written:  # in order
            await self._streams.append_of_body(id, batch)
        # Starts first: a message that a worker gets before its invocation exists is refused.
        await _all([self._accepting.send(start) for start in effects.starts])
        works: list[Awaitable[object]] = [self._accepting.put_message(message) for message in effects.messages]
        works += [self._watching.give(answer) for answer in effects.answers]
        await _all(works)
        await self._change_key(id, effects)
        ended = transition.released or transition.outcome is not None
        if ended and effects.wake is not None:
            # After the effects, like an acknowledgement: until then the earlier wake is what would redo them.
            if self._leases.may_wake_locally(id, transition.acknowledge, effects.wake):
                pass
            elif effects.wake <= self._clock.now():
                await self._leases.wake_now(id)
            else:
                facts = (self._journals.known(id) or NOTHING).facts
                await self._leases.set_wake(id, f"due.{facts.epoch}", effects.wake, DUE, facts.number)
        if self._may_leave_start(transition):
            await self._wire.purge(self._layout.stream("Q", self._layout.partition(id)), self._layout.schedules(id))
            tail = self._journals.known(id)
            if tail is not None and tail.facts.key is not None:
                subject = self._layout.delayed(id, tail.facts.key)
                await self._wire.purge(self._layout.stream_of(subject), subject)
            await self._wire.remove(self._layout.stream("Q", self._layout.partition(id)), self._layout.any_start(id))

    async def _change_key(self, id: str, effects: Effects) -> None:
        if effects.release is not None:
            await self._keys.release(id, effects.release)
        if effects.enlist is not None:
            await self._keys.enlist(id, effects.enlist)

    def _followed(self, transition: Transition, told: Committed, revision: int) -> None:
        """Report a commit whose effects are done."""
        try:
            self._report(transition)
        except Exception:
            log.exception("invocation %s: its commit is durable, but reporting it failed", transition.id)
        self._tell(told, revision, None)

    def _report(self, transition: Transition) -> None:
        ended = transition.released or transition.outcome is not None
        if (outcome := transition.outcome) is not None:
            # Only now: the caller may read the effects next, such as the state of the key.
            self._watching.settled(transition.id, outcome)
            tail = self._journals.known(transition.id)
            if tail is not None and tail.facts.wake > self._clock.now():
                subject = self._layout.schedules(transition.id)
                self._tasks.spawn(self._wire.purge(self._layout.stream_of(subject), subject))
        if transition.released and (wake := transition.effects.wake) is not None:
            self._leases.wake_locally(transition.id, transition.acknowledge, wake)
        elif ended:
            self._leases.drop_local_wake(transition.id)
        if transition.frame is not None or ended:
            self._holdings.committed(
                transition.id,
                transition.acknowledge,
                ended=ended,
                wakes=transition.released and transition.effects.wake is not None,
                now=self._wire.now(),
            )
        else:
            for delivery in transition.acknowledge:
                self._holdings.finish(delivery)


async def _all(works: Sequence[Awaitable[object]]) -> None:
    """Await all: the first alone if it is the only one, which costs no task."""
    if len(works) == 1:
        await works[0]
    elif works:
        await asyncio.gather(*works)
