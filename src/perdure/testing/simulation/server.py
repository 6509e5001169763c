"""The store as a process of its own: it knows which process asks, and tells one that another has taken over."""

from __future__ import annotations

from collections.abc import Callable, Collection
from random import Random
from typing import TYPE_CHECKING, cast

from msgspec.structs import replace

from perdure.core.journal import Claimed, Frame, Start
from perdure.stores.port import Delivery, Transition
from perdure.testing.simulation.clock import ProcessClock
from perdure.testing.simulation.loop import Process, World
from perdure.testing.simulation.plan import Noise
from perdure.testing.simulation.shared import LEASE_SECONDS, Author, Later, SharedStore, Witness, WriterDied
from perdure.testing.simulation.trace import Trace
from perdure.testing.simulation.unreadable import HAND_BACK_SECONDS, SERVED_SECONDS
from perdure.testing.simulation.violation import Violation

if TYPE_CHECKING:
    from perdure.testing.simulation.face import Face


class Server:
    """Runs the store in a process that never ends but for an outage. `witness` sees what is written."""

    def __init__(self, world: World, witness: Witness, noise: Noise, chance: Random, trace: Trace) -> None:
        self.process = Process(world, "store")
        self.store = SharedStore(ProcessClock(self.process), self)
        self.trace = trace
        self.noise = noise
        self.chance = chance
        self._witness = witness
        self.unreadable: set[str] = set()
        self.at_last_readable: Callable[[str], None] = lambda _: None  # called when all others must have ended
        self._met: dict[tuple[Face, str], float] = {}  # who cannot read what, and since when
        self._claims: dict[str, Face] = {}  # the process of the last claim of each invocation

    # --- messages between processes -----------------------------------------------------------------------------------
    def delay(self) -> float:
        """Draw how late a message to a process is."""
        noise = self.noise
        return self.chance.random() * noise.delay if noise.late and self.chance.random() < noise.late else 0.0

    def loses(self, what: str, /) -> bool:
        """Draw whether what is pushed gets lost."""
        if not self.noise.lost or self.chance.random() >= self.noise.lost:
            return False
        self.trace.note("loses", more=what)
        self.trace.count(f"{what} lost")
        return True

    def write(self, face: Face, write: Callable[[], None], dies_in: int | None = None) -> None:
        """Write for a process, which shows that it lives; it may end on the way."""
        self.renew(face)
        try:
            self.store.write_as(face, write, dies_in)
        except WriterDied:
            self.trace.count("crash between append and acknowledgement")
            face.crash()

    def breach(self, number: int, text: str) -> None:
        """Report that an invariant does not hold."""
        self.process.world.report(Violation(number, text))

    # --- leases -------------------------------------------------------------------------------------------------------
    def ended(self, face: Face, after: float) -> None:
        """Give what an ended process held to others, once the store notices."""
        self.process.receive(self._leave, face, delay=after)

    def _leave(self, face: Face) -> None:
        face.close_feeds()
        if face.member is not None and face.member.open:
            self.trace.note("leaves", more=face.name)
            face.member.close()

    def stands_still(self, face: Face, seconds: float) -> None:
        """End the lease of a process that stands still for longer."""
        if seconds > LEASE_SECONDS:
            self.process.receive(self.expire, face, delay=LEASE_SECONDS)

    def expire(self, face: Face) -> None:
        """End the lease of a process, which does not know it."""
        if face.member is not None and face.member.open and not face.process.is_ended:
            self.trace.note("expires", more=face.name)
            self.trace.count("lease of a living process ended")
            face.is_zombie = True
            self.store.expire(face.member)

    def renew(self, face: Face) -> None:
        """Take a process back that has shown life."""
        if face.member is not None and not face.process.is_ended:
            self.store.revive(face.member)

    # --- journals that cannot be read ---------------------------------------------------------------------------------
    def make_unreadable(self, id: str, kind: str, seconds: float) -> None:
        """Let no process read a journal for a while."""
        frame = self.store.make_unreadable(id, kind)
        if frame is None:
            return
        self.trace.count(f"journal that cannot be read: {kind}")
        self.unreadable.add(id)
        self.process.call_later(seconds, self._make_readable, id, seconds)

    def _make_readable(self, id: str, seconds: float) -> None:
        now = self.process.world.now
        for (face, met), since in [*self._met.items()]:
            if met == id and now - since > HAND_BACK_SECONDS and not face.process.is_ended:
                self.breach(19, f"{face.name} cannot read {id}, and has not handed it back after {now - since:.0f} s")
        if seconds >= SERVED_SECONDS:
            self.at_last_readable(id)
        self.unreadable.discard(id)
        self.trace.note("readable", id)
        self.store.make_readable(id)

    def met_unreadable(self, face: Face, id: str) -> None:
        """Note that a process has met a journal that it cannot read."""
        if id in self.unreadable and face.name.startswith("worker"):
            self.trace.count("journal that a worker cannot read")
            self._met.setdefault((face, id), self.process.world.now)

    def handed_back(self, face: Face, id: str) -> None:
        """Note that a process holds nothing of an invocation any more."""
        self._met.pop((face, id), None)

    # --- deliveries ---------------------------------------------------------------------------------------------------
    def deliver(self, face: Face, delivery: Delivery) -> None:
        """Pass a delivery on: late perhaps, and perhaps twice."""
        delay = self.delay()
        self.trace.note("delivers", delivery.id, (face.name, type(delivery.item).__name__, delivery.attempt))
        if isinstance(start := delivery.item, Start) and not self.store.is_due(start):
            self.breach(6, f"{start.id} is due at {start.due}, and is delivered earlier")
        face.process.receive(face.take, delivery, delay=delay)
        if self.noise.twice and self.chance.random() < self.noise.twice:
            self.process.receive(self._deliver_again, delivery, delay=self.chance.random() * self.noise.delay)

    def _deliver_again(self, delivery: Delivery) -> None:
        again = replace(delivery, attempt=delivery.attempt + 1, fresh=False)
        if self.store.dispatcher.twice(delivery, again):
            self.trace.count("delivery duplicated")

    # --- the witness --------------------------------------------------------------------------------------------------
    def queued(self, id: str, generation: int, key: str, /) -> None:
        self._witness.queued(id, generation, key)

    def wrote(self, author: Author | None, transition: Transition, frame: Frame, size: int, /) -> None:
        if transition.id in self.unreadable:
            self.breach(19, f"{transition.id}: {author and author.name} writes into a journal that it cannot read")
        self._witness.wrote(author, transition, frame, size)
        if author is not None and any(type(entry) is Claimed for entry in frame.entries):
            self._claimed(author, transition.id)
        if transition.released or frame.outcome is not None:
            self._claims.pop(transition.id, None)

    def _claimed(self, author: Author, id: str) -> None:
        """Tell the process that had claimed an invocation, and not released it, that another has."""
        face = None if isinstance(author, Later) else cast("Face", author)
        self._tell_lost(id, face)
        if face is not None:
            self._claims[id] = face

    def _tell_lost(self, id: str, face: Face | None) -> None:
        before = self._claims.pop(id, None)
        if before is not None and before is not face and not self.loses("notice of a take-over"):
            before.tell_lost(id)

    def committed(self, author: Author | None, transition: Transition, /) -> None:
        self._witness.committed(author, transition)

    def removed(self, ids: Collection[str], before: float, /) -> None:
        self._witness.removed(ids, before)
