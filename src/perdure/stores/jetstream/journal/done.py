"""Tells whether the effects of the last frame of a journal are known to be done, and need not be redone.

The wake of an invocation that waits is set after all other effects of the frame, and carries the number of the frame:
as a schedule first, and in the queue once it is due, until the next frame. If it is found, the effects are done. If
not, nothing is known, and the invocations that the frame starts are not purged (`purge`).
"""

from __future__ import annotations

from perdure.core.journal import CallChild, Frame, SendStart
from perdure.stores.jetstream.journal.journals import Tail
from perdure.stores.jetstream.layout.facts import facts_of
from perdure.stores.jetstream.layout.subjects import Layout
from perdure.stores.jetstream.ownership.leases import DUE
from perdure.stores.jetstream.wire.wire import Wire


def starts_in(frame: Frame | None) -> set[str]:
    """Return the ids of the invocations that a frame starts."""
    if frame is None:
        return set()
    return {each.start.id for each in frame.commands if isinstance(each, CallChild | SendStart)}


async def is_done(wire: Wire, layout: Layout, id: str, tail: Tail) -> bool:
    """Report whether the effects of the last frame are known to be done."""
    facts = tail.facts
    if facts.owner or not facts.wake or facts.kind != "frame":
        return False
    stream = layout.stream("Q", layout.partition(id))
    # In the order in which it moves: from the schedule to the queue, and perhaps on to workers that serve the handler.
    for subject in (
        layout.schedule(id, f"due.{facts.epoch}"),
        layout.wake(id, DUE),
        layout.passed_on_to_any(id, DUE),
    ):
        stored = await wire.last(stream, subject)
        if stored is not None and facts_of(stored.headers).number == facts.number:
            return True
    return False
