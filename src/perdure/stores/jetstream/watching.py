"""Pushes to waiting callers: outcomes of invocations, answers to messages, changes of rows.

The server pushes each at most once. Awaited outcomes and answers, and invocations that are watched one by one, are also
polled, in case a push was lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from functools import partial

import msgspec
from msgspec.structs import replace

from perdure.background import Tasks
from perdure.core.effects import SENT_BY_WORKFLOWS
from perdure.core.history import History
from perdure.core.journal import Answer, Message, Outcome, Status
from perdure.core.lifecycle import SETTLED
from perdure.errors import StoreDamaged
from perdure.stores.jetstream.index.rows import row_of
from perdure.stores.jetstream.journal.blobs import Blobs
from perdure.stores.jetstream.journal.journals import Journals
from perdure.stores.jetstream.keys.keys import Keys
from perdure.stores.jetstream.layout.facts import Facts, facts_of, lines_of
from perdure.stores.jetstream.layout.subjects import EVENTS, Layout
from perdure.stores.jetstream.streams import JetStreamStreams
from perdure.stores.jetstream.wire.protocol import WrongSequence
from perdure.stores.jetstream.wire.wire import Wire
from perdure.stores.notices import Feed, Notices
from perdure.stores.port import Filter, gone_row

POLL_SECONDS = 1.0
"""How often awaited outcomes and answers are polled."""
POLLED_LIMIT = 1_000
"""Outcomes that are polled at a time at most."""

ANSWER_KEPT_SECONDS = 7 * 86_400
"""How long the answer to a client's message is kept."""

POLLED_CHANGES_LIMIT = 100
"""Invocations that are watched one by one of which so many are polled at a time at most."""

POLLED_ANSWERS_LIMIT = 100
"""Answers that are polled at a time at most."""

_encode_outcome = msgspec.msgpack.Encoder().encode
_decode_outcome: Callable[[bytes], Outcome] = msgspec.msgpack.Decoder(Outcome).decode

_encode_answer = msgspec.msgpack.Encoder().encode
_decode_answer = msgspec.msgpack.Decoder(Answer).decode


class Watching:
    """Publishes outcomes, answers and changes, and delivers them to waiting callers."""

    def __init__(
        self,
        wire: Wire,
        layout: Layout,
        notices: Notices,
        journals: Journals,
        keys: Keys,
        blobs: Blobs,
        tasks: Tasks,
        streams: JetStreamStreams,
    ) -> None:
        self._wire = wire
        self._layout = layout
        self._notices = notices
        self._journals = journals
        self._keys = keys
        self._blobs = blobs
        self._tasks = tasks
        self._streams = streams
        self._watched: dict[str, int] = {}  # subscriptions to outcomes, by invocation
        self._answers: dict[str, int] = {}  # subscriptions to answers, by message
        self._listening = False  # whether there is a subscription to changes of rows
        self._polled: dict[str, int] = {}  # by invocation that is watched, the last message of its journal when polled

    def begin(self) -> None:
        self._poll = asyncio.get_running_loop().call_later(POLL_SECONDS, self._poll_all)

    def close(self) -> None:
        self._poll.cancel()

    # --- outcomes -----------------------------------------------------------------------------------------------------

    async def outcome(self, id: str, /) -> Outcome | None:
        tail = await self._journals.tail(id)
        if tail.facts.status not in SETTLED or not tail.has_frames:
            return None
        if tail.facts.key is not None and (key := await self._keys.read(tail.facts.key)).holder == id:
            history = History.of((await self._journals.read(id))[0])
            if key.granted_to(id, history.generation):
                return None  # only once its key is released: the caller may read the state of the key next
            return history.outcome  # it is to be retried
        frame = await self._journals.last_frame(id)
        if frame is None:
            return None
        for batch in frame.written:
            if not await self._streams.is_written(id, batch):
                return None  # only once its streams are whole: the caller may read them next
        if frame.outcome is not None:
            return frame.outcome
        return History.of((await self._journals.read(id))[0]).outcome

    def settled(self, id: str, outcome: Outcome) -> None:
        asyncio.get_running_loop().call_soon(self._notices.settled, id, outcome)
        data = _encode_outcome(outcome)
        self._wire.publish(self._layout.settled(id), b"" if self._blobs.is_large(data) else data)

    def watch(self, id: str, /) -> asyncio.Future[Outcome]:
        if id not in self._watched:
            self._watched[id] = self._wire.subscribe(self._layout.settled(id), partial(self._was_settled, id))
        future = self._notices.watch(id)
        future.add_done_callback(lambda _: self._unwatch(id))
        return future

    def _unwatch(self, id: str) -> None:
        if not self._notices.is_watched(id) and (sid := self._watched.pop(id, None)) is not None:
            self._wire.unsubscribe(sid)
            self._wire.forget(sid)

    def _was_settled(self, id: str, _subject: str, _reply: str, data: bytes, _headers: bytes) -> None:
        outcome = _decode_outcome(data) if data else None
        if outcome is not None:
            self._notices.settled(id, outcome)
        else:
            self._tasks.spawn(self._read_outcome(id))

    async def _read_outcome(self, id: str) -> None:
        outcome = await self.outcome(id)
        if outcome is not None:
            self._notices.settled(id, outcome)

    async def _poll_outcomes(self) -> None:
        ids = [*self._watched][:POLLED_LIMIT]
        if not ids:
            return
        for id in ids:  # moved to the end: others are polled next time
            if (sid := self._watched.pop(id, None)) is not None:
                self._watched[id] = sid
        for id, tail in (await self._journals.tails(ids)).items():
            if tail.facts.status in SETTLED:
                self._tasks.spawn(self._read_outcome(id))  # each in its own task: a failure stops no other

    def events(self, filter: Filter, /) -> Feed:
        feed = self._notices.events(filter)
        self._listen()
        return feed

    # --- answers ------------------------------------------------------------------------------------------------------

    async def give(self, answer: Answer) -> None:
        """Store an answer; the server pushes it to subscribers."""
        if answer.message.startswith(SENT_BY_WORKFLOWS):
            return
        await self.store_answer(answer)
        self._answered(answer)

    async def store_answer(self, answer: Answer, expected: int | None = None) -> None:
        """Store an answer, perhaps only in the place of an earlier one."""
        with contextlib.suppress(WrongSequence):
            await self._wire.store(
                self._layout.answer(answer.message),
                _encode_answer(answer),
                expected=expected,
                headers=b"Nats-TTL: %ds\r\n" % ANSWER_KEPT_SECONDS,
            )

    def _answered(self, answer: Answer) -> None:
        asyncio.get_running_loop().call_soon(self._notices.answered, answer)

    async def read_answer(self, message_id: str) -> Answer | None:
        subject = self._layout.answer(message_id)
        stored = await self._wire.last(self._layout.stream_of(subject), subject)
        try:
            return None if stored is None else _decode_answer(stored.data)
        except msgspec.DecodeError as error:
            raise StoreDamaged(f"jetstream: the answer to message {message_id!r} does not decode: {error}") from error

    async def unanswered(self, messages: Sequence[Message]) -> list[Message]:
        """Return those of these messages that have no answer."""
        subjects = [self._layout.answer(message.id) for message in messages]
        answers = await asyncio.gather(*(self._wire.last(self._layout.stream_of(each), each) for each in subjects))
        return [message for message, answer in zip(messages, answers, strict=True) if answer is None]

    async def answer(self, message_id: str) -> Answer:
        """Wait for an answer: subscribe first, then read."""
        if message_id not in self._answers:
            subject = self._layout.told(self._layout.answer(message_id))
            self._answers[message_id] = self._wire.subscribe(subject, partial(self._answer_came))
        future = self._notices.await_answer(message_id)
        try:
            known = await self.read_answer(message_id)
            return known if known is not None else await future
        finally:
            if not future.done():
                future.cancel()
            if not self._notices.is_awaited(message_id) and (sid := self._answers.pop(message_id, None)) is not None:
                self._wire.unsubscribe(sid)
                self._wire.forget(sid)

    def _answer_came(self, _subject: str, _reply: str, data: bytes, _headers: bytes) -> None:
        self._notices.answered(_decode_answer(data))

    async def _poll_answers(self) -> None:
        """Read the awaited answers, in case a push was lost."""
        for message_id in [*self._answers][:POLLED_ANSWERS_LIMIT]:
            if (sid := self._answers.pop(message_id, None)) is not None:  # moved to the end
                self._answers[message_id] = sid
            self._tasks.spawn(self._poll_answer(message_id))

    async def _poll_answer(self, message_id: str) -> None:
        if (answer := await self.read_answer(message_id)) is not None:
            self._notices.answered(answer)

    # --- changes ------------------------------------------------------------------------------------------------------
    def _listen(self) -> None:
        """Subscribe to changes of rows."""
        if not self._listening:
            self._listening = True
            for kind in ("j", "q", "t"):
                self._wire.subscribe(f"{self._layout.namespace}.{EVENTS}.{kind}.>", self._changed)

    def _changed(self, _subject: str, _reply: str, _data: bytes, headers: bytes) -> None:
        facts = facts_of(headers)
        if facts.kind == "gone" and self._notices.watched:
            self._notices.changed(gone_row(facts.id), self._notices.feeds_made)
        elif facts.id and not facts.quiet and facts.kind in ("frame", "start", "reserved") and self._notices.watched:
            self._notices.changed(row_of(facts), self._notices.feeds_made)

    def announce(self, facts: Facts, status: Status) -> None:
        """Publish a change that the server does not republish."""
        subject = self._layout.told(self._layout.schedule(facts.id, "start"))
        self._wire.publish_with(subject, lines_of(replace(facts, status=status)))

    async def _poll_changes(self) -> None:
        """Read the invocations that are watched one by one: the last change of one may be all that its watcher gets."""
        ids = self._notices.followed()
        self._polled = {id: self._polled[id] for id in ids if id in self._polled}
        if not ids:
            return
        if len(ids) > POLLED_CHANGES_LIMIT:
            ids = random.sample(ids, POLLED_CHANGES_LIMIT)
        for id, tail in (await self._journals.tails(ids)).items():
            if tail.sequence and self._polled.get(id) != tail.sequence:
                self._polled[id] = tail.sequence
                self._notices.missed_of(id)

    def missed(self) -> None:
        """Tell feeds to list again: changes may have been missed while there was no connection."""
        self._notices.missed()

    # --- lost pushes --------------------------------------------------------------------------------------------------
    def _poll_all(self) -> None:
        """Poll what is awaited, a part at a time."""
        self._poll = asyncio.get_running_loop().call_later(POLL_SECONDS, self._poll_all)
        if self._wire.is_up:
            self._tasks.spawn(self._poll_outcomes())
            self._tasks.spawn(self._poll_answers())
            self._tasks.spawn(self._poll_changes())
