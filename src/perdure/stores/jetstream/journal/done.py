"""Whether what follows from the last frame of a journal is known to be done, so that it is not done again.

A wake that an invocation asks for when it waits is set after all else that follows from its frame, and names the frame
by its number: in a schedule first, in the queue when it is due, until the next frame. Whoever finds it knows. Where
there is none, nothing is known, and what the frame starts is kept (`purge`).
"""

from __future__ import annotations

from perdure.core.journal import CallChild, Frame, SendStart
from perdure.stores.jetstream.journal.journals import Tail
from perdure.stores.jetstream.layout.facts import facts_of
from perdure.stores.jetstream.layout.subjects import Layout
from perdure.stores.jetstream.ownership.leases import DUE
from perdure.stores.jetstream.wire.wire import Wire


def starts_in(frame: Frame | None) -> set[str]:
    """Return the ids of what a frame starts."""
    if frame is None:
        return set()
    return {each.start.id for each in frame.commands if isinstance(each, CallChild | SendStart)}


async def is_done(wire: Wire, layout: Layout, id: str, tail: Tail) -> bool:
    """Tell whether the effects of the last frame are known to be done; False where nothing tells."""
    facts = tail.facts
    if facts.owner or not facts.wake or facts.kind != "frame":
        return False
    stream = layout.stream("Q", layout.partition(id))
    # In the order in which it moves on: from the schedule to the queue, and there perhaps to the workers that serve it.
    for subject in (
        layout.schedule(id, f"due.{facts.epoch}"),
        layout.wake(id, DUE),
        layout.passed_on_to_any(id, DUE),
    ):
        stored = await wire.last(stream, subject)
        if stored is not None and facts_of(stored.headers).number == facts.number:
            return True
    return False
