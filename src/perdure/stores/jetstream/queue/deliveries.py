"""From the queue to the workers of this process: what came is looked at, then handed over, offered or passed on.

A delivery goes to any worker that pulls; the journal says whose it is. A start is given to a worker only after the
journal's leader said that there is no journal. A message for an invocation that another process owns is offered to that
process. Who serves no such handler passes it on to those who do. What another minor version of Python has run goes to
workers of that version, as long as there are any: the order of commands may differ between versions.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Sequence
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct

from perdure.core.journal import Message, Start, decode_message, decode_start, settles_before_begin
from perdure.errors import StoreClosed, StoreError
from perdure.stores.jetstream.journal.blobs import Blobs
from perdure.stores.jetstream.journal.journals import Journals, Tail
from perdure.stores.jetstream.keys.keys import GRANTED, LIMIT, Keys
from perdure.stores.jetstream.layout.layout import Facts, Layout, facts_of, lines_of
from perdure.stores.jetstream.layout.layout import token as escape
from perdure.stores.jetstream.layout.streams import ensure_consumer
from perdure.stores.jetstream.ownership.hands import Hands, Hold, Member, Post, Token
from perdure.stores.jetstream.ownership.keeping import DUE, RENEWALS_IN_A_LEASE, Keeper
from perdure.stores.jetstream.queue.pulls import Arrival, Puller
from perdure.stores.jetstream.wire.wire import UNAVAILABLE, Wire, WrongSequence, status_of
from perdure.stores.port import Clock, Delivery, Wake

MESSAGES_LIMIT = 500
"""Messages and wakes that are on their way to a worker, of each shard."""
PREFETCH_SHARE = 8
"""Of so many starts that a process may have in hand, one more is fetched before there is room."""
PREFETCH_LIMIT = 64
PULL_LEAST = 16
"""Starts that are asked of each shard at least, if there is room for as many in all."""
QUEUED_SECONDS = 2.0
"""How long a start that was fetched and finds no room here is kept, before it is given back: others may have some."""
OFFER_TIMEOUT_SECONDS = 0.5
PARKED_SECONDS = 0.5
"""How often a message for an invocation that has not begun is looked at again."""
WAITED_SECONDS = 0.25
"""A start that has waited for longer goes out with the messages that came for it, whoever holds those."""
FAILED_SECONDS = 1.0
"""How long after a failure to look at what came it is looked at again."""


TAKEN, NOT_MINE, NOBODY = b"taken", b"not mine", b"nobody"
"""What becomes of an offer; the last, that nobody listens, is what the server says."""

log = logging.getLogger("perdure.jetstream")


class Offer(Struct, frozen=True, array_like=True):
    """A delivery as one process offers it to another, who may acknowledge it then."""

    id: str
    message: bytes | None
    attempt: int
    reply: str
    sequence: int
    urgent: bool
    number: int = 0


_encode_offer = msgspec.msgpack.Encoder().encode
_decode_offer = msgspec.msgpack.Decoder(Offer).decode


Otherwise = Callable[[Delivery, str, Tail], None]
"""What becomes of a delivery that nobody took: it, the last token of its subject, the end of its journal."""


class Deliveries:
    """Everything between the queue and the hands of workers."""

    def __init__(
        self,
        wire: Wire,
        layout: Layout,
        journals: Journals,
        keys: Keys,
        blobs: Blobs,
        name: str,
        clock: Clock,
        find_start: Callable[[str, Tail], Coroutine[Any, Any, tuple[Start, bool] | None]],
        refuse: Callable[[Message], Coroutine[Any, Any, None]],
        python: str,
    ) -> None:
        self._wire = wire
        self._layout = layout
        self._journals = journals
        self._keys = keys
        self._blobs = blobs
        self._name = name
        self._clock = clock
        self._find_start = find_start
        self._refuse = refuse
        self._python = python
        self._offers: dict[str, int] = {}  # handlers whose invocations may be offered to this process
        self.keeper = keeper = Keeper(wire, layout, journals, name, clock, self.spawn)
        self.hands = keeper.hands = Hands(
            layout.shard,
            Post(
                keeper.acknowledge,
                keeper.give_up,
                lambda id, token: self.spawn(keeper.wake_instead(id, token)),
                keeper.drop_lease,
                keeper.protect,
                self._examine_soon,
                self._want_soon,
                self._left,
            ),
        )
        self._pullers: dict[str, list[Puller]] = {}
        self._remaking: set[tuple[str, str]] = set()  # consumers, by stream and name
        self._joining: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._came: list[tuple[Delivery, str]] = []  # messages and wakes to be routed, with the subjects' last tokens
        self._routing = False
        self._examining = False
        self._wanting = False
        self._looks: dict[str, list[Token]] = {}
        self._open = True
        self._timers: dict[str, asyncio.TimerHandle] = {}

    # --- life ---------------------------------------------------------------------------------------------------------
    def begin(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._wire.subscribe(self._layout.offers(self._name), partial(self._offered, False))

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run something beside the rest, and log how it fails."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and self._open:
            if not isinstance(error, StoreError):
                log.error("%s", error, exc_info=error)
            elif not isinstance(error, StoreClosed):
                self._wire.complaints.say(type(error).__name__, "%s", error)

    def every(self, name: str, seconds: float, work: Callable[[], Any]) -> None:
        """Call again and again."""

        def call() -> None:
            if self._open:
                self._timers[name] = self._loop.call_later(seconds, call)
                work()

        if (timer := self._timers.get(name)) is not None:
            timer.cancel()
        self._timers[name] = self._loop.call_later(seconds, call)

    def join(
        self,
        handlers: Collection[str],
        deliver: Callable[[Delivery], None],
        partitions: Collection[int] | None,
        lost: Callable[[str], None] | None,
        lease: float,
    ) -> Member:
        """Add a worker."""
        self.keeper.lease = lease
        member = self.hands.join(handlers, deliver, partitions, lost)
        for each in {*handlers} - self._offers.keys():
            subject = self._layout.offers_of(self._python, each)
            self._offers[each] = self._wire.subscribe(subject, partial(self._offered, True), group="workers")
        before, self._joining = self._joining, None
        self._joining = asyncio.ensure_future(self._serve(before))
        self._tasks.add(self._joining)
        self._joining.add_done_callback(self._ended)
        self.every("renew", lease / RENEWALS_IN_A_LEASE, self._renew)
        self.every("parked", PARKED_SECONDS, self._look_at_parked)
        self.every("pull", 1.0, self._want)
        self.every("queued", QUEUED_SECONDS / 4, self._give_up_queued)
        self.hands.pump()
        return member

    async def ready(self) -> None:
        """Wait until what is served is pulled."""
        if self._joining is not None:
            await asyncio.wait([self._joining])

    async def _serve(self, before: asyncio.Task[None] | None) -> None:
        """Pull for the handlers that are served now."""
        if before is not None:
            await asyncio.wait([before])
        layout = self._layout
        served = sorted({handler for member in self.hands.members for handler in member.handlers})
        while self._open:
            try:
                lease = self.keeper.lease
                pulls = [
                    self._pull(
                        *layout.consumer_of_starts(each, lease), partial(self._starts_wanted, each), self._start_came
                    )
                    for each in served
                ]
                pulls.append(self._pull(*layout.consumer_of_messages(lease), _messages_wanted, self._message_came))
                pulls.append(self._pull(*layout.consumer_of_keys(lease), _messages_wanted, self._key_came))
                pulls += [
                    self._pull(*layout.consumer_of_passed_on(each, lease), _messages_wanted, self._message_came)
                    for each in served
                ]
                await asyncio.gather(*pulls)
            except StoreClosed:
                return
            except StoreError as error:
                self._wire.complaints.say("consumers", "the consumers cannot be made, trying again: %s", error)
                await asyncio.sleep(FAILED_SECONDS)
            else:
                break
        self._want()

    async def _pull(
        self, name: str, settings: dict[str, Any], wanted: Callable[[int], int], arrived: Callable[[Arrival], None]
    ) -> None:
        if name in self._pullers:
            return
        streams = [self._layout.stream("Q", shard) for shard in range(self._layout.shards)]
        each = [
            {**settings, "filter_subject": settings["filter_subject"].format(shard)} for shard in range(len(streams))
        ]
        await asyncio.gather(
            *(ensure_consumer(self._wire, stream, name, found) for stream, found in zip(streams, each, strict=True))
        )
        if self._open:
            self._pullers[name] = [
                Puller(
                    self._wire,
                    stream,
                    name,
                    partial(wanted, shard),
                    arrived,
                    partial(self._missed, stream, name, found),
                    self.keeper.lease,
                )
                for shard, (stream, found) in enumerate(zip(streams, each, strict=True))
            ]
            self._want()

    def _missed(self, stream: str, name: str, settings: dict[str, Any]) -> None:
        """Make a consumer again that somebody has deleted. What it had delivered then comes once more."""
        if (stream, name) not in self._remaking and self._open:
            self._remaking.add((stream, name))
            self.spawn(self._make_again(stream, name, settings))

    async def _make_again(self, stream: str, name: str, settings: dict[str, Any]) -> None:
        try:
            if await ensure_consumer(self._wire, stream, name, settings):
                log.warning(
                    "consumer %s of %s was gone, and is made again: all that was in hand comes again", name, stream
                )
            await asyncio.sleep(FAILED_SECONDS)
        finally:
            self._remaking.discard((stream, name))

    def _left(self, _: Member) -> None:
        """Stop pulling for handlers that nobody serves any more."""
        served = {handler for member in self.hands.members for handler in member.handlers}
        for each in self._offers.keys() - served:
            self._wire.unsubscribe(sid := self._offers.pop(each))
            self._wire.forget(sid)
        names = {self._layout.consumer_of_starts(handler, 0)[0] for handler in served}
        names |= {self._layout.consumer_of_passed_on(handler, 0)[0] for handler in served}
        if served:
            names |= {self._layout.consumer_of_messages(0)[0], self._layout.consumer_of_keys(0)[0]}
        for handing in self.keeper.hand_naps_over(served):
            self.spawn(handing)
        for name in [name for name in self._pullers if name not in names]:
            for puller in self._pullers.pop(name):
                puller.stop()
                self._loop.call_later(FAILED_SECONDS, puller.forget)

    async def close(self) -> None:
        """Give everything back to the server, for others, at once."""
        self._open = False
        for timer in self._timers.values():
            timer.cancel()
        for pullers in self._pullers.values():
            for puller in pullers:
                puller.stop()
        await self._wire.flush()  # nothing comes after this
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for each in self._tokens_waiting():
            self.keeper.give_up(each)
        last = [giving for hold in self.hands.close() for giving in self._give_back(hold)]
        last += self.keeper.hand_naps_over(())
        if self._wire.is_up:
            await asyncio.gather(*last)
        else:
            for each in last:
                each.close()

    def _tokens_waiting(self) -> list[Token]:
        """Return what acknowledges that which is in nobody's hands yet."""
        waiting = [*self.hands.waiting(), *(delivery for delivery, _ in self._came)]
        tokens = [delivery.token for delivery in waiting if isinstance(delivery.token, Token)]
        return tokens + [each for looks in self._looks.values() for each in looks]

    def _give_back(self, hold: Hold) -> list[Coroutine[Any, Any, None]]:
        """Give what was in hand to the server; a claim, and a start that has begun, as wakes."""
        found: list[Coroutine[Any, Any, None]] = []
        for delivery in (*hold.deliveries, hold.woken):
            if delivery is None or not isinstance(delivery.token, Token):
                continue
            if isinstance(delivery.item, Wake):
                found.append(self.keeper.wake_instead(hold.id, delivery.token))
            else:
                self.keeper.give_up(delivery.token)
        if hold.claimed:
            found.append(self.keeper.wake_instead(hold.id, hold.kept))
        return found

    def reconnected(self) -> None:
        for pullers in self._pullers.values():
            for puller in pullers:
                puller.reset()
        self._want()
        if self.hands.members:
            self._renew()

    def _give_up_queued(self) -> None:
        self.hands.give_up_queued(self._loop.time() - min(QUEUED_SECONDS, self.keeper.lease))

    def _renew(self) -> None:
        self.spawn(self.keeper.renew(self._tokens_waiting()))

    # --- pulling ------------------------------------------------------------------------------------------------------
    def _want_soon(self) -> None:
        if not self._wanting and self._open:
            self._wanting = True
            self._loop.call_soon(self._want)

    def _want(self) -> None:
        self._wanting = False
        now = self._loop.time()
        for pullers in self._pullers.values():
            for puller in pullers:
                puller.ask(now)

    def _starts_wanted(self, handler: str, shard: int) -> int:
        """Return how many starts of a handler are wanted of a shard."""
        room = self.hands.room(handler, shard)
        if room <= 0:
            return 0
        in_hand = sum(len(member.held) + member.credit for member in self.hands.members)
        shards = self._layout.shards
        ahead = min(PREFETCH_LIMIT, in_hand // PREFETCH_SHARE)
        return max(-(-(room + ahead) // shards), min(room, PULL_LEAST))

    # --- arrivals -----------------------------------------------------------------------------------------------------
    def _token(self, arrival: Arrival) -> Token:
        now = self._loop.time()
        return Token(arrival.reply, arrival.sequence, now, now)

    def _start_came(self, arrival: Arrival) -> None:
        if arrival.facts.blob:
            self.spawn(self._large_start_came(arrival))
            return
        self._queue_start(arrival, decode_start(arrival.data))

    async def _large_start_came(self, arrival: Arrival) -> None:
        data = await self._blobs.load(arrival.facts.id, arrival.facts, arrival.data)
        self._queue_start(arrival, decode_start(data))

    def _queue_start(self, arrival: Arrival, start: Start) -> None:
        delivery = Delivery(start.id, start.handler, start, arrival.attempt, token=self._token(arrival))
        self.hands.queue(delivery)
        self.hands.pump()

    def _message_came(self, arrival: Arrival) -> None:
        if arrival.facts.blob:
            self.spawn(self._large_message_came(arrival))
        elif arrival.facts.kind == "wake":
            name = arrival.subject.rpartition(".")[2]
            token = self._token(arrival)
            token.urgent = name in (GRANTED, LIMIT)
            token.number = arrival.facts.number
            self._route_soon(Delivery(arrival.facts.id, "", Wake(), arrival.attempt, token=token), name)
        else:
            self._route_message(arrival, decode_message(arrival.data))

    async def _large_message_came(self, arrival: Arrival) -> None:
        data = await self._blobs.load(arrival.facts.id, arrival.facts, arrival.data)
        self._route_message(arrival, decode_message(data))

    def _route_message(self, arrival: Arrival, message: Message) -> None:
        name = arrival.subject.rpartition(".")[2]
        self._route_soon(Delivery(message.to, "", message, arrival.attempt, token=self._token(arrival)), name)

    def _key_came(self, arrival: Arrival) -> None:
        if arrival.facts.kind == "look":
            self.look_at_key(arrival.data.decode(), self._token(arrival))
        else:
            self.spawn(self._enter(arrival))

    async def _enter(self, arrival: Arrival) -> None:
        """Give a delayed start its place in the line of its key, now that it is due."""
        start = decode_start(await self._blobs.load(arrival.facts.id, arrival.facts, arrival.data))
        token = self._token(arrival)
        assert start.key is not None
        await self._keys.join(start.key, [start], self._clock.now())
        if start.timeout is not None:
            await self.keeper.set_wake(start.id, "limit", start.due + start.timeout, LIMIT)
        self.keeper.acknowledge(token)

    def look_at_key(self, name: str, token: Token) -> None:
        """Look at a key, once for all who asked meanwhile."""
        looks = self._looks.get(name)
        if looks is not None:
            looks.append(token)
            return
        self._looks[name] = [token]
        self.spawn(self._look(name))

    async def _look(self, name: str) -> None:
        while (looks := self._looks[name]) and self._open:
            try:
                await self._keys.look(name)
            except StoreClosed:
                return
            except StoreError as error:
                self._wire.complaints.say("keys", "key %r cannot be granted, trying again: %s", name, error)
                await asyncio.sleep(FAILED_SECONDS)
                continue
            count = len(looks)
            for token in looks[:count]:
                self.keeper.acknowledge(token)
            del looks[:count]
        del self._looks[name]

    # --- starts -------------------------------------------------------------------------------------------------------
    def _examine_soon(self) -> None:
        if not self._examining and self._open:
            self._examining = True
            self.spawn(self._examine())

    async def _examine(self) -> None:
        """Look at the journals of starts that are to go out, many at a time, and hand those over that are new."""
        try:
            while self.hands.taken and self._open:
                batch = [*self.hands.taken]
                if waited := [delivery for _, delivery in batch if self._has_waited(delivery)]:
                    await self._park_mail(waited)
                # Last, and nothing is awaited after it: a step may begin on its word.
                tails = await self._journals.tails([*dict.fromkeys(delivery.id for _, delivery in batch)])
                for _ in batch:
                    member, delivery = self.hands.taken.popleft()
                    self._start_examined(member, delivery, tails[delivery.id])
        finally:
            self._examining = False
            if self.hands.taken and self._open:  # it failed
                self._loop.call_later(FAILED_SECONDS, self._examine_soon)

    def _has_waited(self, delivery: Delivery) -> bool:
        """Tell whether somebody may have sent messages to a start, and wait for what becomes of them."""
        start = delivery.item
        assert isinstance(start, Start)
        return delivery.attempt > 1 or start.due > start.at or start.at + WAITED_SECONDS < self._clock.now()

    async def _park_mail(self, starts: Sequence[Delivery]) -> None:
        """Have the messages for starts go out with them: another process may hold those, and may be dead."""
        shard_of = self._layout.shard
        shards = sorted({shard_of(start.id) for start in starts})
        have_some = dict(zip(shards, await asyncio.gather(*map(self._has_mail, shards)), strict=True))
        await asyncio.gather(*(self._park_mail_of(start) for start in starts if have_some[shard_of(start.id)]))

    async def _has_mail(self, shard: int) -> bool:
        """Tell whether there are messages for anybody."""
        stream = self._layout.stream("Q", shard)
        for subject in self._layout.all_messages(shard):
            if await self._wire.first(stream, subject) is not None:
                return True
        return False

    async def _park_mail_of(self, delivery: Delivery) -> None:
        mail = await self.mail(delivery.id)
        if not mail:
            return
        parked = self.hands.unpark(delivery.id)
        here = {each.item.id for each in parked if isinstance(each.item, Message)}
        parked += [Delivery(delivery.id, delivery.handler, each) for each in mail if each.id not in here]
        for each in sorted(parked, key=_sent_at):
            self.hands.offer(each, begun=False)

    async def mail(self, id: str) -> list[Message]:
        """Read the messages for an invocation that nobody has acknowledged, oldest first."""
        stream = self._layout.stream("Q", self._layout.shard(id))
        subjects = (self._layout.messages(id), self._layout.all_passed_on(id))
        stored = await asyncio.gather(*(self._wire.all(stream, subject) for subject in subjects))
        found: dict[str, Message] = {}
        for each in (*stored[0], *stored[1]):
            facts = facts_of(each.headers)
            if facts.kind == "message":
                message = decode_message(await self._blobs.load(id, facts, each.data))
                found[message.id] = message
        return sorted(found.values(), key=lambda each: each.at)

    def _start_examined(self, member: Member, delivery: Delivery, tail: Tail) -> None:
        if tail.has_frames:
            # It began already, and what was to be acknowledged was not, or is a second copy: like a wake.
            self.hands.not_taken(member)
            wake = Delivery(delivery.id, delivery.handler, Wake(), max(2, delivery.attempt), token=delivery.token)
            self._route_soon(wake, DUE)
        elif tail.facts.kind == "gone":
            self.hands.not_taken(member)
            self.keeper.acknowledge(delivery.token)
        elif self._loop.time() - delivery.token.at > self.keeper.lease:
            # This process stood still. Others may have it by now, and have begun since the journal was read.
            self.hands.not_taken(member)
        else:
            delivery.fresh = True
            if tail.sequence:
                self._journals.note(delivery.id, tail)
            self.hands.hand_taken(member, delivery)

    # --- messages and wakes -------------------------------------------------------------------------------------------
    def _route_soon(self, delivery: Delivery, name: str) -> None:
        if not self._came and (member := self.hands.owner(delivery.id)) is not None:
            self._hand_to_owner(member, delivery)
            return
        self._came.append((delivery, name))  # behind those that are looked at, of which some may be for the same
        self._route_those_that_came()

    def _hand_to_owner(self, member: Member, delivery: Delivery) -> None:
        hold = member.held[delivery.id]
        if any(_is_same(delivery, each) for each in hold.deliveries):
            for each in hold.deliveries:
                if _is_same(delivery, each):
                    each.token = delivery.token  # it came again: this is what acknowledges it now
        elif isinstance(delivery.item, Wake) and not delivery.token.urgent:
            self.hands.wake(delivery)
        else:
            delivery.handler = hold.handler
            self.hands.hand(member, delivery)

    async def _route_all(self) -> None:
        try:
            while self._came and self._open:
                batch = [*self._came]
                tails = await self._journals.tails([*dict.fromkeys(delivery.id for delivery, _ in batch)])
                del self._came[: len(batch)]
                for delivery, name in batch:
                    self._route(delivery, name, tails[delivery.id])
        finally:
            self._routing = False
            if self._came and self._open:  # it failed
                self._loop.call_later(FAILED_SECONDS, self._route_those_that_came)

    def _route_those_that_came(self) -> None:
        if not self._routing and self._open:
            self._routing = True
            self.spawn(self._route_all())

    def _route(self, delivery: Delivery, name: str, tail: Tail) -> None:
        if (member := self.hands.owner(delivery.id)) is not None:
            self._hand_to_owner(member, delivery)
        elif tail.facts.kind == "gone":
            self.spawn(self._drop(delivery))
        elif not tail.has_frames:
            self.spawn(self._route_before_begin(delivery, name, tail))
        elif tail.facts.owner not in ("", self._name):
            self.spawn(self._offer(delivery, name, tail, self._layout.offers(tail.facts.owner), self._deliver_here))
        else:
            self._deliver_here(delivery, name, tail)

    async def _drop(self, delivery: Delivery) -> None:
        """Refuse what is for an invocation that nobody has, or no longer."""
        if isinstance(delivery.item, Message):
            await self._refuse(delivery.item)
        self.keeper.acknowledge(delivery.token)

    def _deliver_here(self, delivery: Delivery, name: str, tail: Tail) -> None:
        """Deliver to a worker of this process, unless one of the Python that has run the invocation takes it."""
        delivery.handler, python = tail.facts.handler, tail.facts.python
        if self.hands.serves(delivery.handler) and python not in ("", self._python):
            subject = self._layout.offers_of(python, delivery.handler)
            self.spawn(self._offer(delivery, name, tail, subject, self._deliver_to_other_python))
        else:
            self._deliver_to_worker(delivery, name, tail)

    def _deliver_to_other_python(self, delivery: Delivery, name: str, tail: Tail) -> None:
        text = "invocation %s (%s) was run by Python %s, of which no worker takes it: it goes on with %s"
        log.warning(text, delivery.id, delivery.handler, tail.facts.python, self._python)
        self._deliver_to_worker(delivery, name, tail)

    def _deliver_to_worker(self, delivery: Delivery, name: str, tail: Tail) -> None:
        if tail.facts.owner:  # he is gone
            delivery.attempt = max(2, delivery.attempt)
        if not self.hands.serves(delivery.handler):
            self.spawn(self._pass_on(delivery, name))
        elif isinstance(delivery.item, Wake) and not delivery.token.urgent:
            self.hands.wake(delivery)
        else:
            self.hands.offer(delivery)

    async def _route_before_begin(self, delivery: Delivery, name: str, tail: Tail) -> None:
        """Find out about an invocation without a journal, and keep what is for it until its start goes out here."""
        found = await self._find_start(delivery.id, tail)
        if (member := self.hands.owner(delivery.id)) is not None:
            self._hand_to_owner(member, delivery)
            return
        if found is None:
            again = await self._journals.tail(delivery.id)
            if again.has_frames:
                self._route(delivery, name, again)
            else:
                await self._drop(delivery)
            return
        start, put_off = found
        delivery.handler = start.handler
        if not self.hands.serves(start.handler):
            await self._pass_on(delivery, name)
        elif isinstance(delivery.item, Message):
            self.hands.offer(delivery, begun=put_off and settles_before_begin(delivery.item))
        elif name == LIMIT and put_off:
            self.hands.offer(delivery)
        else:
            self.keeper.acknowledge(delivery.token)  # its start is what brings it

    async def _pass_on(self, delivery: Delivery, name: str) -> None:
        """Give a delivery to the queue of those who serve its handler."""
        item = delivery.item
        subject = self._layout.passed_on(delivery.handler, delivery.id, name)
        try:
            if isinstance(item, Message):
                facts, data = await self._blobs.save(
                    item.to, Facts(item.to, kind="message"), msgspec.msgpack.encode(item)
                )
            else:
                facts, data = Facts(delivery.id, kind="wake", number=delivery.token.number), b""
            await self._wire.store(subject, data, expected=0, headers=lines_of(facts))
        except WrongSequence:
            log.debug("%s was passed on already", subject)
        self.keeper.acknowledge(delivery.token)

    def _look_at_parked(self) -> None:
        """Route those again whose invocation may have begun elsewhere."""
        if ids := [*dict.fromkeys(delivery.id for delivery in self.hands.parked())]:
            self.spawn(self._look_at(ids))

    async def _look_at(self, ids: list[str]) -> None:
        for id, tail in (await self._journals.tails(ids)).items():
            if tail.has_frames or tail.facts.kind == "gone":
                for each in self.hands.unpark(id):
                    if each.token is not None:  # otherwise it is in the hands of somebody else
                        self._route(each, escape(each.item.id) if isinstance(each.item, Message) else DUE, tail)

    # --- offers -------------------------------------------------------------------------------------------------------
    async def _offer(self, delivery: Delivery, name: str, tail: Tail, subject: str, otherwise: Otherwise) -> None:
        """Offer a delivery to who listens on a subject; if nobody takes it, and it is still as it was, do otherwise."""
        answer = await self._ask(subject, delivery)
        if answer == TAKEN:
            return
        again = await self._journals.tail(delivery.id)
        if (again.facts.owner, again.facts.epoch) != (tail.facts.owner, tail.facts.epoch):
            self._route(delivery, name, again)
        elif delivery.attempt == 1 and (answer is None or (answer == NOBODY and tail.facts.owner)):
            # Who is silent may be busy, and an owner may be reconnecting: he is asked once more, and has had his time.
            await asyncio.sleep(min(OFFER_TIMEOUT_SECONDS, self.keeper.lease / 4))
            delivery.attempt = 2
            self._route_soon(delivery, name)
        else:
            otherwise(delivery, name, again)

    async def _ask(self, subject: str, delivery: Delivery) -> bytes | None:
        """Offer a delivery, and return the answer: TAKEN, so that it is acknowledged there, NOT_MINE or NOBODY.

        None: there was no answer in time.
        """
        item, token = delivery.item, delivery.token
        message = msgspec.msgpack.encode(item) if isinstance(item, Message) else None
        if message is not None and self._blobs.is_large(message):
            message = b""
        offer = Offer(delivery.id, message, delivery.attempt, token.reply, token.sequence, token.urgent, token.number)
        try:
            async with asyncio.timeout(OFFER_TIMEOUT_SECONDS):
                answer = await self._wire.request(subject, _encode_offer(offer))
        except TimeoutError:
            return None
        if answer is None:
            return None
        if status_of(answer[1]) == UNAVAILABLE:
            return NOBODY
        if answer[0] == TAKEN:
            token.done = True
        return answer[0]

    def _offered(self, is_for_all: bool, _subject: str, reply: str, data: bytes, _headers: bytes) -> None:
        """Take what is offered to this process, if it owns the invocation; or what is for all who serve a handler."""
        offer = _decode_offer(data)
        if not self._open or not (is_for_all or self.hands.owner(offer.id) is not None):
            self._wire.publish(reply, NOT_MINE)
            return
        self._wire.publish(reply, TAKEN)
        if offer.message == b"":
            self.spawn(self._fetch_offered(offer))
            return
        item: Message | Wake = Wake() if offer.message is None else decode_message(offer.message)
        token = Token(offer.reply, offer.sequence, self._loop.time(), urgent=offer.urgent, number=offer.number)
        name = escape(item.id) if isinstance(item, Message) else DUE
        self._route_soon(Delivery(offer.id, "", item, offer.attempt, token=token), name)

    async def _fetch_offered(self, offer: Offer) -> None:
        """Read a large message that was offered; if it fails, the message is not renewed, and comes again."""
        stream = offer.reply.split(".")[-7]
        shard = self._layout.shard(offer.id)
        found = await self._wire.first(stream, f"{self._layout.namespace}.q.{shard}.>", offer.sequence)
        if found is not None and found.sequence == offer.sequence:
            facts = facts_of(found.headers)
            message = decode_message(await self._blobs.load(offer.id, facts, found.data))
            token = Token(offer.reply, offer.sequence, self._loop.time())
            self._route_soon(Delivery(offer.id, "", message, offer.attempt, token=token), escape(message.id))


def _messages_wanted(_shard: int) -> int:
    return MESSAGES_LIMIT


def _sent_at(delivery: Delivery) -> float:
    return delivery.item.at if isinstance(delivery.item, Message) else 0.0


def _is_same(one: Delivery, other: Delivery) -> bool:
    """Tell whether two deliveries are of one message in the queue."""
    return (
        isinstance(one.token, Token)
        and isinstance(other.token, Token)
        and one.token.sequence == other.token.sequence
        and type(one.item) is type(other.item)
        and one.token.reply.split(".")[2:4] == other.token.reply.split(".")[2:4]
    )
