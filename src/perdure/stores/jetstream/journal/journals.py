"""Journals on a stream: one message per frame, guarded by the sequence of the frame before.

The revision of a journal is the sequence of its last frame, which grows with gaps. Before the first frame a subject may
hold a reservation: the start, if a client chose its id or it has a key. After the last frame it may hold a mark that
the journal is closing, then a tombstone. Each frame carries the running checksum of the journal. The frames of long
journals are in segments (`packs`).
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

from perdure.core.journal import (
    Accepted,
    Claimed,
    Frame,
    Start,
    Status,
    decode_frame,
    decode_start,
    encode_frame,
    encode_start,
)
from perdure.errors import NewerJournal, StoreDamaged
from perdure.stores.jetstream.journal.blobs import Blobs
from perdure.stores.jetstream.journal.packs import (
    PACK_FRAMES,
    Pack,
    Segment,
    decode_pack,
    decode_segment,
    encode_pack,
    encode_segment,
)
from perdure.stores.jetstream.layout.facts import (
    JOURNAL_KINDS,
    ROLLUP,
    UNREADABLE,
    Facts,
    facts_of,
    facts_of_start,
    lines_of,
    problem_of,
)
from perdure.stores.jetstream.layout.subjects import Layout
from perdure.stores.jetstream.wire.protocol import PerhapsStored, Stored, WrongSequence
from perdure.stores.jetstream.wire.reads import BATCH_LIMIT
from perdure.stores.jetstream.wire.wire import Wire
from perdure.stores.port import Transition
from perdure.stores.rewriting import Left, Rewriting, rewritten, rewritten_frame

T = TypeVar("T")

TAILS_LIMIT = 20_000
"""Tails of journals that are cached, so that appending needs no read."""

Tails = dict[str, "Tail"]

log = logging.getLogger("perdure.jetstream")


class Tail(Struct, frozen=True):
    """The last message on the subject of a journal: its sequence (0: there is none) and its facts."""

    sequence: int = 0
    facts: Facts = Facts(kind="none")

    @property
    def has_frames(self) -> bool:
        return self.facts.kind in ("frame", "closing")

    @property
    def problem(self) -> str:
        """Why this release must not act on the invocation; empty if it may."""
        return problem_of(self.facts) if self.sequence else ""

    @property
    def revision(self) -> int:
        """The revision, as the Store protocol defines it."""
        return (self.facts.revision or self.sequence) if self.has_frames else 0


NOTHING = Tail()


def tail_of(stored: Stored | None) -> Tail:
    return NOTHING if stored is None else Tail(stored.sequence, facts_of(stored.headers))


class Journals:
    """Reads journals, and appends to those that this store owns."""

    def __init__(self, wire: Wire, layout: Layout, blobs: Blobs, name: str) -> None:
        self._wire = wire
        self._layout = layout
        self._blobs = blobs
        self._name = name
        self.copies = 1  # replicas of each stream, as of the opening of the store
        self._tails: OrderedDict[str, Tail] = OrderedDict()

    @property
    def _replicated(self) -> bool:
        """Report whether a replica that lags may answer a direct read. Replicas may be added while workers run."""
        return self.copies > 1 or self._wire.is_clustered

    def apart(self) -> Journals:
        """Return a reader of the same journals with its own cache of tails."""
        other = Journals(self._wire, self._layout, self._blobs, self._name)
        other.copies = self.copies
        return other

    # --- tails --------------------------------------------------------------------------------------------------------
    def known(self, id: str) -> Tail | None:
        """Return the cached tail of a journal."""
        return self._tails.get(id)

    def note(self, id: str, tail: Tail) -> None:
        if tail is NOTHING:
            self._tails.pop(id, None)
            return
        self._tails[id] = tail
        self._tails.move_to_end(id)
        if len(self._tails) > TAILS_LIMIT:
            self._tails.popitem(last=False)

    def forget(self, id: str) -> None:
        self._tails.pop(id, None)

    async def tail(self, id: str) -> Tail:
        """Read the tail of a journal, from the leader."""
        return (await self.tails([id]))[id]

    async def tails(self, ids: Sequence[str]) -> Tails:
        """Read the tails of journals. The leader confirms that a journal does not exist."""
        layout = self._layout
        found: Tails = {}
        by_partition: dict[int, list[str]] = {}
        for id in ids:
            by_partition.setdefault(layout.partition(id), []).append(id)

        async def read(partition: int, mine: list[str]) -> None:
            stream = layout.stream("J", partition)
            if self._replicated:
                for begin in range(
                    0, len(mine), BATCH_LIMIT
                ):  # the server drops API requests beyond the length of its queue
                    some = mine[begin : begin + BATCH_LIMIT]
                    lasts = await asyncio.gather(*(self._wire.last(stream, layout.journal(id)) for id in some))
                    found.update({id: tail_of(last) for id, last in zip(some, lasts, strict=True)})
                return
            subjects = {layout.journal(id): id for id in mine}
            last = await self._wire.last_of(stream, [*subjects])
            found.update({id: tail_of(last.get(subject)) for subject, id in subjects.items()})

        if len(by_partition) == 1:
            [(partition, mine)] = by_partition.items()
            await read(partition, mine)
        else:
            await asyncio.gather(*(read(partition, mine) for partition, mine in by_partition.items()))
        return found

    # --- reading ------------------------------------------------------------------------------------------------------
    async def read(self, id: str) -> tuple[list[Frame], Tail]:
        """Read all frames of a journal, or raise `StoreDamaged`."""
        encoded, tail = await _twice(lambda: self._encoded(id))
        self.note(id, tail)
        return [decode_frame(data, id) for data in encoded], tail

    async def _encoded(self, id: str) -> tuple[list[bytes], Tail]:
        """Read all frames of a journal as they are stored."""
        subject = self._layout.journal(id)
        stored = await self._wire.all(self._layout.stream_of(subject), subject)
        tail = tail_of(stored[-1] if stored else None)
        if tail.facts.kind == UNREADABLE.kind:
            raise _damaged(id, tail.sequence, "the header of its last message does not decode")
        if tail.problem:
            raise NewerJournal(
                f"invocation {id!r}: {tail.problem}", invocation_id=id, kind="status", tag=tail.facts.status
            )
        return await self._checked(id, stored), tail

    async def _checked(self, id: str, stored: Iterable[Stored], names: list[str] | None = None) -> list[bytes]:
        """Return the frames in the messages of a journal, and add the names of all that is in pieces."""
        names = [] if names is None else names
        frames: list[bytes] = []
        sum = 0
        for each in stored:
            facts = facts_of(each.headers)
            if facts.kind == "gone" or (facts.kind == "frame" and facts.number == 1):
                # Purged or rewritten while it was read, or as read from a replica that lags.
                frames, sum = [], 0
            if facts.kind not in JOURNAL_KINDS:
                raise _damaged(id, each.sequence, "this is not a message of a journal")
            if facts.kind != "frame":
                continue
            data = await self._blobs.load(id, facts, each.data)
            names += [facts.blob] if facts.blob else []
            if facts.is_pack:  # it includes those before it, which may also have come with an earlier page
                pack = decode_pack(data)
                frames = [frame for name in pack.segments for frame in await self._segment(id, name, names)]
                sum, data = pack.sum, pack.frame
                if _sum_of(frames) != sum:
                    raise _damaged(id, each.sequence, f"the checksum of the {len(frames)} frames before it is wrong")
            sum = zlib.crc32(data, sum)
            if facts.number != len(frames) + 1:
                raise _damaged(id, each.sequence, f"frame {facts.number} where {len(frames) + 1} was expected")
            if facts.sum != sum:
                raise _damaged(id, each.sequence, f"the checksum of frame {facts.number} is wrong")
            frames.append(data)
        return frames

    async def _segment(self, id: str, name: str, names: list[str] | None = None) -> list[bytes]:
        segment = decode_segment(await self._blobs.fetch(id, name))
        if names is not None:
            names += [name, *segment.large.values()]
        for index, large in segment.large.items():
            segment.frames[index] = await self._blobs.fetch(id, large)
        return segment.frames

    async def _frame(self, id: str, facts: Facts, data: bytes) -> Frame:
        """Return the frame of a message."""
        data = await self._blobs.load(id, facts, data)
        return decode_frame(decode_pack(data).frame if facts.is_pack else data, id)

    async def _first_frame(self, id: str, facts: Facts, data: bytes) -> Frame:
        """Return the first of the frames that a message holds."""
        if not facts.is_pack:
            return await self._frame(id, facts, data)
        pack = decode_pack(await self._blobs.load(id, facts, data))
        return decode_frame((await self._segment(id, pack.segments[0]))[0], id)

    async def start(self, id: str) -> Start | None:
        """Return the start in the reservation or first frame of a journal.

        Read from the leader: if there is none, callers report that the invocation does not exist.
        """
        return await _twice(lambda: self._start(id))

    async def _start(self, id: str) -> Start | None:
        subject = self._layout.journal(id)
        stream, sequence = self._layout.stream_of(subject), 0
        while (each := await self._wire.first(stream, subject, sequence + 1)) is not None:
            facts, sequence = facts_of(each.headers), each.sequence
            if facts.kind == "reserved":
                return decode_start(await self._blobs.load(id, facts, each.data))
            if facts.kind == "frame":
                accepted = (await self._first_frame(id, facts, each.data)).entries[0]
                return accepted.start if isinstance(accepted, Accepted) else None
        return None

    async def last_frame(self, id: str) -> Frame | None:
        """Return the last frame of a journal."""
        return await _twice(lambda: self._last_frame(id))

    async def _last_frame(self, id: str) -> Frame | None:
        subject = self._layout.journal(id)
        last = await self._wire.last(self._layout.stream_of(subject), subject)
        if last is None:
            return None
        facts = facts_of(last.headers)
        if facts.kind != "frame":
            frames, _ = await self.read(id)
            return frames[-1] if frames else None
        return await self._frame(id, facts, last.data)

    # --- packing ------------------------------------------------------------------------------------------------------
    @staticmethod
    def is_to_be_packed(tail: Tail) -> bool:
        """Report whether the next frame packs those before it. If that fails, it is due again `PACK_FRAMES` later."""
        loose = tail.facts.number - tail.facts.packed if tail.has_frames else 0
        return loose > 0 and loose % PACK_FRAMES == 0

    async def pack(self, tail: Tail, facts: Facts, data: bytes) -> tuple[Facts, bytes]:
        """Pack all frames up to a tail with the next one; return the facts and payload of its message.

        The frames to be replaced are read and verified first. If one is missing, nothing is packed.
        """
        try:
            loose = await self._loose(facts.id, tail)
        except StoreDamaged:  # a piece is missing, perhaps since it was rewritten meanwhile
            loose = None
        if loose is None:
            log.warning("the journal of invocation %s is not packed: not all of it could be read", facts.id)
            return facts, data
        segments, segment = loose
        name = await self._blobs.keep(facts.id, encode_segment(segment))
        facts = replace(facts, packed=tail.facts.number, has_blobs=True)
        return facts, encode_pack(Pack([*segments, name], tail.facts.sum, data))

    async def _loose(self, id: str, tail: Tail) -> tuple[list[str], Segment] | None:
        """Return the existing segments, and the frames after them up to a tail; None if a frame is missing."""
        subject = self._layout.journal(id)
        segments: list[str] = []
        segment = Segment()
        number = sum = 0
        for each in await self._wire.all(self._layout.stream_of(subject), subject):
            facts, frame = facts_of(each.headers), each.data
            if facts.kind != "frame":
                continue
            if facts.number == 1:  # rewritten while it was read
                number, sum, segment = 0, 0, Segment()
            if facts.is_pack:
                pack = decode_pack(await self._blobs.load(id, facts, frame))
                segments, segment = pack.segments, Segment()
                number, sum, frame = facts.packed, pack.sum, pack.frame
            large = "" if facts.is_pack else facts.blob
            number, sum = number + 1, facts.sum if large else zlib.crc32(frame, sum)
            if (number, sum) != (facts.number, facts.sum):
                return None
            if large:
                segment.large[len(segment.frames)] = large
            segment.frames.append(frame)
        return (segments, segment) if (number, sum) == (tail.facts.number, tail.facts.sum) else None

    # --- rewriting ----------------------------------------------------------------------------------------------------
    async def frames_in(self, id: str, facts: Facts, data: bytes) -> list[bytes]:
        """Return the encoded frames that a message holds, unverified."""
        data = await self._blobs.load(id, facts, data)
        if not facts.is_pack:
            return [data]
        pack = decode_pack(data)
        return [*[frame for name in pack.segments for frame in await self._segment(id, name)], pack.frame]

    async def rewrite(self, id: str, rewriting: Rewriting) -> bool | Left:
        """Rewrite a journal as one message; report whether anything has changed.

        Its guard is the message that was the last one when it was read: nothing that was written since is lost. Owner,
        number and revision stay. The guard of the owner's next commit fails then, and `Commits` finds the same revision
        under another sequence, and appends to that.
        """
        subject = self._layout.journal(id)
        stored = await self._wire.all(self._layout.stream_of(subject), subject)
        tail, names = tail_of(stored[-1] if stored else None), list[str]()
        if tail.problem:
            return Left(f"invocation {id!r}", tail.problem)
        facts = tail.facts
        if facts.kind == "closing":
            return Left(f"invocation {id!r}", "it is being purged", waits=True)
        if facts.kind == "reserved":
            names += [facts.blob] if facts.blob else []
            before = await self._blobs.load(id, facts, stored[-1].data)
            if (data := rewritten(before, decode_start, encode_start, rewriting.start)) == before:
                return False
            made: list[str] = []
        elif facts.kind == "frame":
            frames = await self._checked(id, stored, names)
            again = [rewritten_frame(rewriting, id, each) for each in frames]
            if again == frames:
                return False
            names += [blob for each in stored if (blob := facts_of(each.headers).blob) and blob not in names]
            data, sum, made = await self._packed(id, again)
            facts = replace(facts, sum=sum, packed=len(again) - 1, quiet=facts.quiet or len(again) > 1)
            has_blobs = facts.has_blobs or bool(made) or self._blobs.is_large(data)
            facts = replace(facts, revision=tail.revision, has_blobs=has_blobs)
        else:
            return False
        facts, data = await self._blobs.save(id, replace(facts, blob=""), data)
        try:
            await self._wire.store(subject, data, expected=tail.sequence, headers=ROLLUP + lines_of(facts))
        except PerhapsStored:
            names = []  # a message that came after it may name its pieces
        except WrongSequence:
            names = [*made, *([facts.blob] if facts.blob else [])]
        for name in names:
            await self._blobs.remove(id, name)
        return True

    async def _packed(self, id: str, frames: Sequence[bytes]) -> tuple[bytes, int, list[str]]:
        """Return a payload that has these frames, with the last one outside of segments; its sum; what is in pieces."""
        *before, last = frames
        if not before:
            return last, zlib.crc32(last), []
        sum, segments, made = _sum_of(before), list[str](), list[str]()
        for at in range(0, len(before), PACK_FRAMES):
            segment = Segment([*before[at : at + PACK_FRAMES]])
            for index, frame in enumerate(segment.frames):
                if self._blobs.is_large(frame):
                    segment.large[index], segment.frames[index] = await self._blobs.keep(id, frame), b""
            segments.append(await self._blobs.keep(id, encode_segment(segment)))
            made += [segments[-1], *segment.large.values()]
        return encode_pack(Pack(segments, sum, last)), zlib.crc32(last, sum), made

    # --- appending ----------------------------------------------------------------------------------------------------
    def next_frame(self, transition: Transition, tail: Tail, at: float) -> tuple[bytes, Facts]:
        """Return the encoded frame of a transition, and its facts."""
        frame = transition.frame
        assert frame is not None
        data = encode_frame(frame)
        facts = tail.facts
        entries = frame.entries
        if facts.kind not in ("frame", "closing"):
            first = entries[0] if entries else None
            if type(first) is Accepted:
                facts = facts_of_start(first.start, "running", at)
            facts = replace(facts, kind="frame", number=0, sum=0, epoch=0, blob="", identity="", status="running")
        epoch, python = facts.epoch, facts.python
        for entry in entries:
            if type(entry) is Claimed:
                epoch, python = entry.epoch, entry.python
        ended = transition.released or transition.outcome is not None
        changed: Status | None = transition.status
        if changed is None and not tail.has_frames:
            changed = "running"
        wake = transition.effects.wake if transition.released else None
        asks, open = facts.asks, facts.open
        if transition.awakeables is not None:
            asks = asks or bool(transition.awakeables)
            open = tuple((each.generation, each.n) for each in transition.awakeables if each.is_open)
        elif transition.released:
            asks = bool(asks)
        return data, Facts(
            transition.id,
            facts.handler,
            facts.status if changed is None else changed,
            facts.key,
            facts.parent,
            facts.created_at,
            facts.due,
            facts.at if changed is None else at,
            "frame",
            facts.number + 1,
            zlib.crc32(data, facts.sum),
            epoch,
            "" if ended else self._name,
            quiet=changed is None,
            wake=facts.wake if wake is None else wake,
            has_blobs=facts.has_blobs or bool(facts.blob) or self._blobs.is_large(data),
            packed=facts.packed,
            python=python,
            asks=asks,
            open=open,
            tags=facts.tags,
            wait=facts.wait if changed is None else transition.wait,
        )


async def _twice(read: Callable[[], Awaitable[T]]) -> T:
    """Read a journal, and again if something is missing: it may have been rewritten meanwhile, in other pieces."""
    try:
        return await read()
    except StoreDamaged:
        return await read()


def _sum_of(frames: Iterable[bytes]) -> int:
    sum = 0
    for frame in frames:
        sum = zlib.crc32(frame, sum)
    return sum


def _damaged(id: str, sequence: int, what: str) -> StoreDamaged:
    text = f"jetstream: the journal of invocation {id!r} is damaged at sequence {sequence}: {what}; restore a backup"
    return StoreDamaged(text)
