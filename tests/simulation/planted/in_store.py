"""Bugs of a store."""

# ruff: noqa: SLF001  a bug is inside

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from perdure.core.effects import Release
from perdure.core.journal import Frame, Start, decode_frame, reading
from perdure.core.lifecycle import SETTLED
from perdure.errors import StoreError
from perdure.stores.local.dispatch import Dispatcher
from perdure.stores.memory import MemoryStore
from perdure.stores.notices import Feed, Notices
from perdure.stores.port import Journal, Key, Row, Transition
from tests.simulation.planted.bug import Bug, instead

LATE_SECONDS = 1.0
RETURNED_LENGTH = 6
EARLY_SECONDS = 0.01


def acknowledges_before_it_appends(patch: pytest.MonkeyPatch) -> None:
    """A commit drops its deliveries, then writes its frame: a crash between the two loses them."""

    @instead(patch, MemoryStore, "_commit")
    def commit(original: Any, store: Any, transition: Transition) -> int:
        for delivery in transition.acknowledge:
            store._dispatcher.finish(delivery)
        return original(store, transition)


def does_not_check_the_revision(patch: pytest.MonkeyPatch) -> None:
    """A commit is appended whatever revision it expects: a former owner writes on."""

    @instead(patch, MemoryStore, "_commit")
    def commit(original: Any, store: Any, transition: Transition) -> int:
        found = len(store._frames.get(transition.id, ()))
        return original(store, replace(transition, expected=found))


def loses_wakes(patch: pytest.MonkeyPatch) -> None:
    """The wake of a release is written, and no alarm is set for it."""

    @instead(patch, MemoryStore, "_set_wake")
    def set_wake(_: Any, store: Any, id: str, at: float) -> None:
        store._write("wake", id)
        store._wakes[id] = at


def forgets_wakes_that_are_late(patch: pytest.MonkeyPatch) -> None:
    """What fell due while the clock jumped, or while nothing ran, is passed over."""

    @instead(patch, MemoryStore, "_ring")
    def ring(original: Any, store: Any) -> None:
        now = store.clock.now()
        store._due = [each for each in store._due if each[0] > now - LATE_SECONDS]
        original(store)


def loses_what_a_dead_worker_held(patch: pytest.MonkeyPatch) -> None:
    """The messages that a worker held are not delivered to another when it ends."""

    @instead(patch, Dispatcher, "leave")
    def leave(original: Any, dispatcher: Any, member: Any) -> None:
        for hold in member.held.values():
            hold.deliveries = [each for each in hold.deliveries if isinstance(each.item, Start)]
            hold.claimed, hold.woken = False, None
        original(dispatcher, member)


def grants_a_key_to_the_last_in_its_queue(patch: pytest.MonkeyPatch) -> None:
    """The queue of a key is served from its end."""

    @instead(patch, MemoryStore, "_grant")
    def grant(original: Any, store: Any, name: str) -> None:
        line = store._lines.get(name)
        if line and store._keys.get(name, Key()).holder is None:
            last = next(reversed(line))
            store._lines[name] = {last: line[last], **line}
        original(store, name)


def grants_a_key_that_is_held(patch: pytest.MonkeyPatch) -> None:
    """A key goes to the next in its queue, whoever holds it."""

    @instead(patch, MemoryStore, "_grant")
    def grant(original: Any, store: Any, name: str) -> None:
        if name in store._keys and store._lines.get(name):
            store._keys[name] = Key(state=store._keys[name].state)
        original(store, name)


def grants_a_key_before_its_state_is_written(patch: pytest.MonkeyPatch) -> None:
    """The next holder of a key gets it, and the outcome is told, while the state is still on its way."""

    @instead(patch, MemoryStore, "_release")
    def release(original: Any, store: Any, id: str, released: Release) -> None:
        original(store, id, replace(released, state=None))
        if released.state is not None:
            asyncio.get_running_loop().call_later(LATE_SECONDS, write, store, released)

    def write(store: Any, released: Release) -> None:
        key = store._keys.get(released.key, Key())
        store._keys[released.key] = replace(key, state=released.state)


def tells_an_outcome_before_it_is_durable(patch: pytest.MonkeyPatch) -> None:
    """Those that wait for an outcome are told before its frame is written."""

    @instead(patch, MemoryStore, "_commit")
    def commit(original: Any, store: Any, transition: Transition) -> int:
        if (outcome := transition.outcome) is not None:
            store._soon(lambda: store._notices.settled(transition.id, outcome))
        return original(store, transition)


def purges_what_has_not_settled(patch: pytest.MonkeyPatch) -> None:
    """A sweep removes what nothing has happened to for long, whether it has ended or not."""

    @instead(patch, MemoryStore, "_is_at_rest")
    def is_at_rest(_: Any, __: Any, row: Any, before: float) -> bool:
        return row.updated_at <= before


def purges_before_the_retention_is_over(patch: pytest.MonkeyPatch) -> None:
    """A sweep removes settled invocations however young they are."""

    @instead(patch, MemoryStore, "_is_at_rest")
    def is_at_rest(original: Any, store: Any, row: Any, _: float) -> bool:
        return original(store, row, float("inf"))


def starts_before_the_delay_is_over(patch: pytest.MonkeyPatch) -> None:
    """A delayed start is queued shortly before it is due."""

    @instead(patch, MemoryStore, "_note_due")
    def note_due(original: Any, store: Any, at: float, id: str) -> None:
        original(store, at - EARLY_SECONDS if id in store._scheduled else at, id)


def skips_frames_that_it_cannot_read(patch: pytest.MonkeyPatch) -> None:
    """A journal is read without the frames that this release does not know."""

    @instead(patch, MemoryStore, "journal")
    async def journal(_: Any, store: Any, id: str) -> Journal:
        frames: list[Frame] = []
        for data in store._frames.get(id, ()):
            with suppress(StoreError):
                frames.append(decode_frame(data, id))
        return Journal(tuple(frames), len(store._frames.get(id, ())), done=id not in store._undone)


def requires_what_older_releases_did_not_write(patch: pytest.MonkeyPatch) -> None:
    """A result without its duration is taken for damage."""

    @instead(patch, reading, "_frame")
    def frame(original: Any, data: bytes) -> Frame:
        raw: Any = msgspec.msgpack.decode(data)
        if any(each[0] == "returned" and len(each) < RETURNED_LENGTH for each in raw[2]):
            raise msgspec.ValidationError(f"expected an array of length {RETURNED_LENGTH}")
        return original(data)


def tells_a_slow_watcher_the_first_change(patch: pytest.MonkeyPatch) -> None:
    """A feed keeps the first of the changes that its reader has not read, not the last."""

    @instead(patch, Feed, "push")
    def push(original: Any, feed: Any, row: Row) -> None:
        if row.id not in feed._changed:
            original(feed, row)


def does_not_tell_a_watcher_of_an_end(patch: pytest.MonkeyPatch) -> None:
    """The last change of an invocation is pushed to nobody."""

    @instead(patch, Notices, "changed")
    def changed(original: Any, notices: Any, row: Row, made: int) -> None:
        if row.status not in SETTLED:
            original(notices, row, made)


BUGS = (
    Bug(acknowledges_before_it_appends, 13, ""),
    Bug(does_not_check_the_revision, 3, "extends revision"),
    Bug(loses_wakes, 13, "have not ended"),
    Bug(forgets_wakes_that_are_late, 13, "have not ended"),
    Bug(loses_what_a_dead_worker_held, 13, ""),
    Bug(grants_a_key_to_the_last_in_its_queue, 5, "before"),
    Bug(grants_a_key_that_is_held, 5, "holds it"),
    Bug(grants_a_key_before_its_state_is_written, 17, ""),
    Bug(tells_an_outcome_before_it_is_durable, 18, "not durable"),
    Bug(purges_what_has_not_settled, 16, "has not settled"),
    Bug(purges_before_the_retention_is_over, 1, "is purged"),
    Bug(skips_frames_that_it_cannot_read, 19, "writes into a journal"),
    Bug(requires_what_older_releases_did_not_write, 14, "older release"),
    Bug(tells_a_slow_watcher_the_first_change, 20, ""),
    Bug(does_not_tell_a_watcher_of_an_end, 20, ""),
    Bug(starts_before_the_delay_is_over, 6, "is delivered earlier"),
)
