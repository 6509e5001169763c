"""The memory store as several processes share it: it knows which process commits, and how long each was silent.

The tables, and the order in which they are written, are those of `stores.memory`. What is added is what a store of
many processes has: an owner that was declared dead may come back and write, if no other has claimed meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol

from msgspec.structs import replace

from perdure.core.effects import SENT_BY_WORKFLOWS, Enlist
from perdure.core.journal import Frame, Start, decode_frame, encode_frame
from perdure.core.lifecycle import SETTLED
from perdure.errors import StoreError
from perdure.stores.local.dispatch import Dispatcher, Fetch, Hold, Member
from perdure.stores.memory import MemoryStore
from perdure.stores.port import Clock, Delivery, Journal, Row, Transition, Wake
from perdure.testing.simulation.older import as_older
from perdure.testing.simulation.unreadable import LATER, claim_of
from perdure.testing.simulation.violation import Violation

LEASE_SECONDS = 15.0
"""How long a process may stand still before the store gives what it holds to others."""

CLOCKS_APART_SECONDS = 300.0
"""By how much the clocks of two processes differ at most, after all their jumps."""

LOOK_SECONDS = 10.0
"""How long after a wake was lost the store finds what is overdue."""


class WriterDied(BaseException):
    """The process that writes ends between two writes of its commit."""


class Witness(Protocol):
    """What sees every write of the store, at the moment it is made."""

    def queued(self, id: str, generation: int, key: str, /) -> None:
        """Note that an invocation took the last position in the queue of a key."""
        ...

    def wrote(self, author: Author | None, transition: Transition, frame: Frame, size: int, /) -> None:
        """Note that a frame is written, which makes the journal `size` frames long."""
        ...

    def committed(self, author: Author | None, transition: Transition, /) -> None:
        """Note that a transition is written as a whole."""
        ...

    def removed(self, ids: Collection[str], before: float, /) -> None:
        """Note that a purge of what settled by `before` has removed invocations."""
        ...


class Surroundings(Witness, Protocol):
    """What is around the store."""

    def loses(self, what: str, /) -> bool:
        """Report whether what the store pushes gets lost now."""
        ...


class Author(Protocol):
    """The process behind a commit."""

    @property
    def name(self) -> str: ...
    @property
    def member(self) -> Member | None: ...
    def now(self) -> float:
        """Return what the clock of the process shows."""
        ...


class Later:
    """The process of a later release, as the author of a frame."""

    name = LATER
    member: Member | None = None

    def __init__(self, at: float) -> None:
        self._at = at

    def now(self) -> float:
        return self._at


class SharedDispatcher(Dispatcher):
    """Knows whose commit it is told of: the owner's, or that of a process whose lease has ended.

    Wakes may be lost, as `loses` says: one of a timer is found later, when the store looks for what is overdue; one
    that says that a retry has its key, never.
    """

    author: Author | None = None
    loses: Callable[[str], bool]
    awaits_key: Callable[[str], bool]

    def __init__(self, fetch: Fetch, forget: Callable[[Delivery], None], handler_of: Callable[[str], str]) -> None:
        super().__init__(fetch, forget)
        self._handler_of = handler_of

    def committed(self, id: str, acknowledged: Iterable[Delivery], *, ended: bool) -> None:
        owner = self.owner(id)
        member = None if self.author is None else self.author.member
        if member is None or owner is member:
            super().committed(id, acknowledged, ended=ended)
        elif member in self.members:
            self._taken_over(id, member, [each.item for each in acknowledged], ended=ended)
        else:  # it has ended since it asked: what it claimed is for another
            if owner is not None:
                owner.held[id].claimed = False
            if not ended:
                self.offer(Delivery(id, self._handler_of(id), Wake(), attempt=2))

    def wake(self, delivery: Delivery) -> None:
        if self.loses("wake"):
            asyncio.get_running_loop().call_later(LOOK_SECONDS, super().wake, delivery)
        else:
            super().wake(delivery)

    def offer(self, delivery: Delivery, *, begun: bool = True) -> bool:
        is_hint = isinstance(delivery.item, Wake) and delivery.attempt == 1 and self.owner(delivery.id) is not None
        if is_hint and self.awaits_key(delivery.id) and self.loses("wake of a retry that has its key"):
            return True
        return super().offer(delivery, begun=begun)

    def _taken_over(self, id: str, member: Member, done: Sequence[object], *, ended: bool) -> None:
        """Let a member have what the journal says is its own, with what another has in hand for it."""
        before = self._owners.pop(id, None)
        held = Hold(id, self._handler_of(id)) if before is None else before.held.pop(id)
        self._owners[id] = member
        hold = member.held[id] = Hold(id, held.handler, claimed=not ended)
        hold.woken = None if ended else held.woken
        for delivery in held.deliveries:
            if not any(delivery.item is each for each in done):
                self.hand(member, replace(delivery, attempt=delivery.attempt + 1, fresh=False))
        if ended:
            for delivery in self._parked.pop(id, ()):  # as the owner's own commit would
                self.hand(member, delivery)
        self._drop_if_done(member, hold)

    def taken_away(self, id: str) -> None:
        """Offer what a member holds of an invocation anew: another process has claimed it, and is gone."""
        owner = self._owners.pop(id, None)
        for delivery in [] if owner is None else owner.held.pop(id).deliveries:
            again = replace(delivery, attempt=delivery.attempt + 1, fresh=False)
            if isinstance(delivery.item, Start):
                self._line(delivery.handler).put_first(again)
            else:
                self.offer(again)
        self.pump()

    @property
    def has_declined(self) -> bool:
        """Report whether something that was declined is to be offered again."""
        return bool(self._declined)

    def expire(self, member: Member) -> None:
        """Give what a silent member holds to others. It stays a member, and gets nothing until `revive`."""
        member.open = False
        self.leave(member)

    def revive(self, member: Member) -> None:
        member.open = True
        self.members.append(member)

    def twice(self, delivery: Delivery, again: Delivery) -> bool:
        """Deliver an item a second time, if the first delivery is still held."""
        hold = self.hold_of(delivery.id)
        if hold is None or delivery not in hold.deliveries:
            return False
        self.hand(self._owners[delivery.id], again)
        return True


class SharedStore(MemoryStore):
    """A memory store whose processes come, go and stand still. `witness` sees what is written."""

    def __init__(self, clock: Clock, witness: Surroundings) -> None:
        self._witness = witness
        self._dies_in: int | None = None
        self._purges_before = 0.0
        self.is_older = False
        self._sealed: dict[str, bytes] = {}  # the last frame of each journal that cannot be read, as it can be
        self.changes: list[Row] = []  # every row that was written to the index
        self._apart: dict[str, float] = {}  # by how much the clock of a start's author was ahead of this store's
        super().__init__(clock)
        self.clocks_apart = CLOCKS_APART_SECONDS

    def _make_dispatcher(self) -> SharedDispatcher:
        self.dispatcher = SharedDispatcher(self._fetch, self._forget, lambda id: self._rows[id].handler)
        self.dispatcher.loses = self._witness.loses
        self.dispatcher.awaits_key = lambda id: id in self._rows and self._rows[id].status in SETTLED
        return self.dispatcher

    # --- processes ----------------------------------------------------------------------------------------------------
    def expire(self, member: Member) -> None:
        """End the lease of a member that is silent."""
        if member.open:
            self.dispatcher.expire(member)

    def revive(self, member: Member) -> None:
        """Renew the lease of a member that has gone on."""
        if not member.open and member not in self.dispatcher.members:
            self.dispatcher.revive(member)
            self._offer_what_waits(member)
            self.dispatcher.pump()

    def write_as(self, author: Author | None, write: Callable[[], None], dies_in: int | None = None) -> None:
        """Write in the name of a process; it dies before write number `dies_in` from 1 of this, if there are as many.

        Raises `WriterDied` then; what was written before stays.
        """
        self.dispatcher.author, self._dies_in = author, dies_in
        try:
            write()
        except WriterDied:
            for key in [*self._lines]:  # others do what it left undone
                self._grant(key)
            raise
        finally:
            self.dispatcher.author = self._dies_in = None

    # --- what the witness sees ----------------------------------------------------------------------------------------
    def _write(self, kind: str, id: str) -> None:
        if self._dies_in is not None:
            self._dies_in -= 1
            if self._dies_in <= 0:
                self._dies_in = None
                raise WriterDied
        super()._write(kind, id)

    def _commit(self, transition: Transition) -> int:
        if transition.frame is None and transition.expected != len(self._frames.get(transition.id) or ()):
            # Of a former owner: an index of journals goes by their frames.
            transition = replace(transition, status=None, awakeables=None)
        author = self.dispatcher.author
        before = len(self._frames.get(transition.id, ()))
        try:
            revision = super()._commit(transition)
        finally:
            size = len(self._frames.get(transition.id, ()))
            if size != before and transition.frame is not None:
                self._witness.wrote(author, transition, transition.frame, size)
        self._witness.committed(author, transition)
        if transition.frame is None and transition.status in SETTLED:
            self._push_outcome(transition.id)
        return revision

    def _push_outcome(self, id: str) -> None:
        """Tell those that wait for an outcome whose writer ended before it told them."""
        outcome = decode_frame(self._frames[id][-1], id).outcome
        if outcome is not None:
            self._soon(lambda: self._notices.settled(id, outcome))

    def _index(self, row: Row) -> None:
        self.changes.append(row)
        super()._index(row)

    def _accept(self, start: Start, identity: bytes | None = None) -> bool:
        author = self.dispatcher.author
        if author is not None and start.id not in self._apart:
            self._apart[start.id] = author.now() - self.clock.now()
        return super()._accept(start, identity)

    def _due_at(self, start: Start) -> float:
        due = super()._due_at(start)
        return due if start.is_due(start.at) else due - self._apart.get(start.id, 0.0)

    def _enqueue(self, start: Start) -> None:
        if start.key is not None:
            self._witness.queued(start.id, 0, start.key)
        super()._enqueue(start)

    def _enlist(self, id: str, enlist: Enlist) -> None:
        before = self._sequence
        super()._enlist(id, enlist)
        if self._sequence != before:
            self._witness.queued(id, enlist.generation, enlist.key)

    async def purge(self, before: float, /, *, limit: int, id: str | None = None) -> int:
        self._purges_before = before
        return await super().purge(before, limit=limit, id=id)

    def _remove(self, id: str) -> None:
        super()._remove(id)
        self._witness.removed((id,), self._purges_before)

    # --- journals that cannot be read ---------------------------------------------------------------------------------
    def make_unreadable(self, id: str, kind: str) -> Frame | None:
        """Let another release claim an invocation, whose journal cannot be read then; None if that may not be now."""
        frames, row = self._frames.get(id), self._rows.get(id)
        if not frames or row is None or row.status in (*SETTLED, "paused") or id in self._undone or id in self._sealed:
            return None
        if decode_frame(frames[-1], id).outcome is not None:
            return None
        frame, raw = claim_of(frames, self.clock.now(), kind)
        self._sealed[id] = encode_frame(frame)
        frames.append(raw)
        self._index(replace(row, status="running", updated_at=self.clock.now()))
        self._witness.wrote(Later(self.clock.now()), Transition(id, len(frames) - 1, frame), frame, len(frames))
        self.dispatcher.taken_away(id)
        return frame

    def make_readable(self, id: str) -> None:
        """Let the journal of an invocation be read again, and the invocation be claimed."""
        self._frames[id][-1] = self._sealed.pop(id)
        self.dispatcher.offer(Delivery(id, self._rows[id].handler, Wake(), attempt=2))

    # --- journals of older releases -----------------------------------------------------------------------------------
    async def journal(self, id: str, /) -> Journal:
        journal = await super().journal(id)
        if not self.is_older:
            return journal
        try:
            frames = [decode_frame(as_older(data), id) for data in self._frames.get(id, ())]
            return replace(journal, frames=tuple(frames))
        except StoreError as error:
            raise Violation(14, f"{id}: its journal, as an older release wrote it: {error}") from error

    # --- what a check reads -------------------------------------------------------------------------------------------
    def frames_of(self, id: str) -> list[bytes]:
        """Return the encoded frames of a journal, as they are kept."""
        return self._frames.get(id, [])

    def was_told(self, message_id: str) -> bool:
        """Report whether a message with this id was ever accepted."""
        return message_id in self._messages or message_id in self._answers

    @property
    def has_declined(self) -> bool:
        """Report whether something that no process could take is to come again."""
        return self.dispatcher.has_declined

    def is_due(self, start: Start) -> bool:
        """Report whether a start may be delivered by now."""
        return self.clock.now() >= SharedStore._due_at(self, start)

    def unanswered(self) -> list[str]:
        """Return the ids of messages from clients that were processed without an answer."""
        ids = {message for mail in self._mail.values() for message in mail}
        done = ids - self._messages.keys() - self._answers.keys()
        return sorted(message for message in done if not message.startswith(SENT_BY_WORKFLOWS))

    def is_forgotten(self, id: str) -> bool:
        """Report whether nothing is kept of an invocation."""
        return id not in self._rows
