"""From the work queue to the workers of this process.

The server delivers to any worker that pulls; the journal tells which process owns the invocation. A start goes through
`admission`, a message or wake through `routing`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine
from functools import partial
from typing import Any

from perdure.background import Tasks
from perdure.core.busy import called_for
from perdure.core.journal import Message, Start, decode_message, decode_start
from perdure.errors import NewerJournal, StoreClosed, StoreDamaged, StoreError, StoreFull, StoreUnavailable
from perdure.stores.clock import SystemClock
from perdure.stores.jetstream.journal.blobs import Blobs
from perdure.stores.jetstream.journal.journals import Journals
from perdure.stores.jetstream.keys.keys import GRANTED, LIMIT, Keys
from perdure.stores.jetstream.layout.settings import (
    consumer_of_keys,
    consumer_of_messages,
    consumer_of_passed_on,
    consumer_of_starts,
)
from perdure.stores.jetstream.layout.streams import ensure_consumer
from perdure.stores.jetstream.layout.subjects import Layout
from perdure.stores.jetstream.ownership.holdings import Actions, Hold, Holdings, Member, Token
from perdure.stores.jetstream.ownership.leases import RENEWALS_IN_A_LEASE, Leases
from perdure.stores.jetstream.queue.admission import Admission
from perdure.stores.jetstream.queue.finding import Finder
from perdure.stores.jetstream.queue.pulls import Arrival, Puller
from perdure.stores.jetstream.queue.routing import FAILED_SECONDS, Routing
from perdure.stores.jetstream.watching import Watching
from perdure.stores.jetstream.wire.wire import Wire
from perdure.stores.port import Delivery, Wake

MESSAGES_LIMIT = 500
"""Messages and wakes in flight to a worker, per partition."""
PREFETCH_SHARE = 8
"""One start is prefetched for this many that the process has room for."""
PREFETCH_LIMIT = 64
"""Starts that are prefetched at most."""
PULL_LEAST = 16
"""Starts that are requested from each partition at least, if there is room for that many in all."""
QUEUED_SECONDS = 2.0
"""How long a prefetched start may wait for room here before it is requeued for other processes."""
GIVING_BACK_SECONDS = 5.0
"""How long closing waits until what is held here is given back."""
PARKED_SECONDS = 0.5
"""How often messages for invocations that have not begun are routed again."""

log = logging.getLogger("perdure.jetstream")


class Deliveries:
    """Pulls deliveries, and gives them to the workers of this process."""

    def __init__(
        self,
        wire: Wire,
        layout: Layout,
        journals: Journals,
        keys: Keys,
        blobs: Blobs,
        finder: Finder,
        watching: Watching,
        tasks: Tasks,
        name: str,
        clock: SystemClock,
        python: str,
    ) -> None:
        self._wire = wire
        self._layout = layout
        self._keys = keys
        self._blobs = blobs
        self._tasks = tasks
        self._name = name
        self._clock = clock
        self._python = python
        self._offers: dict[str, list[int]] = {}  # by handler: subscriptions to offers of its invocations
        self.leases = leases = Leases(wire, layout, journals, name, clock, tasks)
        self.holdings = leases.holdings = Holdings(
            layout.partition,
            Actions(
                leases.acknowledge,
                leases.requeue,
                leases.defer,
                lambda id, token: tasks.spawn(leases.wake_instead(id, token)),
                leases.drop_lease,
                leases.protect,
                lambda: self._admission.admit_soon(),
                self._want_soon,
                self._left,
            ),
        )
        self.routing = Routing(
            wire, layout, journals, blobs, leases, self.holdings, finder, watching, tasks, name, python
        )
        self._admission = Admission(wire, layout, journals, leases, self.holdings, finder, self.routing, tasks, clock)
        leases.others_first = self._others_first
        self._pullers: dict[str, list[Puller]] = {}
        self._remaking: set[tuple[str, str]] = set()  # consumers, by stream and name
        self._joining: asyncio.Task[None] | None = None
        self._start_pullers: list[Puller] = []
        self._wanting = False
        self._ahead = 0  # how many starts to prefetch, as last computed
        self._looks: dict[str, list[Token]] = {}
        self.post: Callable[[Message], Awaitable[None]]  # makes a message durable
        self._open = True
        self._timers: dict[str, asyncio.TimerHandle] = {}

    # --- workers ------------------------------------------------------------------------------------------------------
    def begin(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._wire.subscribe(self._layout.offers(self._name), partial(self.routing.offered, False))

    def every(self, name: str, seconds: float, work: Callable[[], Any]) -> None:
        """Call `work` periodically."""

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
        self.leases.lease = lease
        member = self.holdings.join(handlers, deliver, partitions, lost)
        for each in {*handlers} - self._offers.keys():
            to_any, to_holder = self._layout.offers_of(self._python, each), self._layout.offers_to_holder(each)
            self._offers[each] = [
                self._wire.subscribe(to_any, partial(self.routing.offered, True), group="workers"),
                self._wire.subscribe(to_holder, self.routing.offered_to_holder),
            ]
        before, self._joining = self._joining, None
        self._joining = self._tasks.spawn(self._serve(before))
        self.every("renew", lease / RENEWALS_IN_A_LEASE, self._renew)
        self.every("parked", PARKED_SECONDS, self.routing.look_at_parked)
        self.every("pull", 1.0, self._want)
        self.every("queued", QUEUED_SECONDS / 4, self._requeue_waiting)
        self.holdings.pump()
        return member

    async def ready(self) -> None:
        """Wait until all handlers served here are pulled."""
        if self._joining is not None:
            await asyncio.wait([self._joining])

    async def _serve(self, before: asyncio.Task[None] | None) -> None:
        """Create the consumers of all handlers served now, and pull from them."""
        if before is not None:
            await asyncio.wait([before])
        layout = self._layout
        served = sorted(self.holdings.served())
        while self._open:
            try:
                lease = self.leases.lease
                pulls = [
                    self._pull(
                        each,
                        *consumer_of_starts(layout, each, lease),
                        partial(self._starts_wanted, each),
                        self._took(self._start_came),
                    )
                    for each in served
                ]
                pulls.append(
                    self._pull(
                        "", *consumer_of_messages(layout, lease), _messages_wanted, self._took(self._message_came)
                    )
                )
                pulls.append(
                    self._pull("", *consumer_of_keys(layout, lease), _messages_wanted, self._took(self._key_came))
                )
                pulls += [
                    self._pull(
                        each,
                        *consumer_of_passed_on(layout, each, lease),
                        _messages_wanted,
                        self._took(self._message_came),
                    )
                    for each in served
                ]
                await asyncio.gather(*pulls)
            except StoreClosed:
                return
            except Exception as error:  # noqa: BLE001  without consumers this worker gets nothing: retry
                traced = None if isinstance(error, StoreError) else error
                text = "the consumers cannot be created, retrying: %s"
                self._wire.limited_log(("consumers", type(error)), text, error, exc_info=traced)
                await asyncio.sleep(FAILED_SECONDS)
            else:
                break
        self._want()

    async def _pull(
        self,
        handler: str,
        name: str,
        settings: dict[str, Any],
        wanted: Callable[[int], int],
        arrived: Callable[[Arrival], None],
    ) -> None:
        """Pull a consumer of one handler, or of all if it is empty, unless the workers that serve it leave first."""
        if name in self._pullers:
            return
        streams = [self._layout.stream("Q", partition) for partition in range(self._layout.partitions)]
        each = [
            {**settings, "filter_subject": settings["filter_subject"].format(partition)}
            for partition in range(len(streams))
        ]
        await asyncio.gather(
            *(ensure_consumer(self._wire, stream, name, found) for stream, found in zip(streams, each, strict=True))
        )
        is_served = self.holdings.serves(handler) if handler else bool(self.holdings.members)
        if self._open and is_served:
            self._pullers[name] = [
                Puller(
                    self._wire,
                    stream,
                    name,
                    partial(wanted, partition),
                    arrived,
                    partial(self._missed, stream, name, found),
                    self.leases.lease,
                )
                for partition, (stream, found) in enumerate(zip(streams, each, strict=True))
            ]
            self._note_start_pullers()
            self._want()

    def _others_first(self, stream: str, consumer: str) -> None:
        """Move the pulls of this worker behind those of others: it requeued a delivery that it cannot act on."""
        for puller in self._pullers.get(consumer, ()):
            if puller.stream == stream and (before := puller.move_back(self._wire.now())) is not None:
                self._loop.call_later(FAILED_SECONDS, self._wire.forget, before)

    def _note_start_pullers(self) -> None:
        starts = [pullers for name, pullers in self._pullers.items() if name.startswith("start-")]
        self._start_pullers = [puller for pullers in starts for puller in pullers]

    def _missed(self, stream: str, name: str, settings: dict[str, Any]) -> None:
        """Create a deleted consumer again. What the old one had delivered unacknowledged is redelivered."""
        if (stream, name) not in self._remaking and self._open:
            self._remaking.add((stream, name))
            self._tasks.spawn(self._make_again(stream, name, settings))

    async def _make_again(self, stream: str, name: str, settings: dict[str, Any]) -> None:
        try:
            if await ensure_consumer(self._wire, stream, name, settings):
                log.warning(
                    "consumer %s of %s was deleted: created it again, all unacknowledged messages are redelivered",
                    name,
                    stream,
                )
            await asyncio.sleep(FAILED_SECONDS)
        finally:
            self._remaking.discard((stream, name))

    def _left(self, _: Member) -> None:
        """Stop pulling for handlers that no worker here serves any more."""
        served = self.holdings.served()
        for each in self._offers.keys() - served:
            for sid in self._offers.pop(each):
                self._wire.unsubscribe(sid)
                self._wire.forget(sid)
        names = {consumer_of_starts(self._layout, handler, 0)[0] for handler in served}
        names |= {consumer_of_passed_on(self._layout, handler, 0)[0] for handler in served}
        if served:
            names |= {consumer_of_messages(self._layout, 0)[0], consumer_of_keys(self._layout, 0)[0]}
        for handing in self.leases.hand_over_local_wakes(served):
            self._tasks.spawn(handing)
        for name in [name for name in self._pullers if name not in names]:
            for puller in self._pullers.pop(name):
                puller.stop()
                self._loop.call_later(FAILED_SECONDS, puller.forget)
        self._note_start_pullers()

    async def close(self) -> None:
        """Requeue everything at the server, for other processes, without waiting for leases to end."""
        self._open = self.routing.is_open = self._admission.is_open = False
        for timer in self._timers.values():
            timer.cancel()
        for pullers in self._pullers.values():
            for puller in pullers:
                puller.stop()
        await self._wire.flush()  # no delivery arrives after this
        await self._tasks.cancel()
        for each in self._tokens_waiting():
            self.leases.requeue(each)
        last = [giving for hold in self.holdings.close() for giving in self._give_back(hold)]
        last += self.leases.hand_over_local_wakes(())
        if not self._wire.is_up:
            for each in last:
                each.close()
        elif last:
            _, left = await asyncio.wait([self._tasks.spawn(each) for each in last], timeout=GIVING_BACK_SECONDS)
            if left:
                log.warning("%d invocations could not be handed over: they are redelivered instead", len(left))
                await self._tasks.cancel()

    def _tokens_waiting(self) -> list[Token]:
        """Return the tokens of deliveries that no worker has yet."""
        waiting = [*self.holdings.waiting(), *(delivery for delivery, _ in self.routing.came)]
        tokens = [delivery.token for delivery in waiting if isinstance(delivery.token, Token)]
        return tokens + [each for looks in self._looks.values() for each in looks]

    def _give_back(self, hold: Hold) -> list[Coroutine[Any, Any, None]]:
        """Requeue the deliveries of a hold; a claim, and a start that has begun, become wakes."""
        found: list[Coroutine[Any, Any, None]] = []
        for delivery in (*hold.deliveries, hold.woken):
            if delivery is None or not isinstance(delivery.token, Token):
                continue
            if isinstance(delivery.item, Wake):
                found.append(self.leases.wake_instead(hold.id, delivery.token))
            else:
                self.leases.requeue(delivery.token)
        if hold.claimed:
            found.append(self.leases.wake_instead(hold.id, hold.kept))
        return found

    def reconnected(self) -> None:
        for pullers in self._pullers.values():
            for puller in pullers:
                puller.reset()
        self._want()
        if self.holdings.members:
            self._renew()

    def _requeue_waiting(self) -> None:
        self.holdings.requeue_waiting(self._loop.time() - min(QUEUED_SECONDS, self.leases.lease))

    def _renew(self) -> None:
        self._tasks.spawn(self.leases.renew(self._tokens_waiting()))

    # --- pulling ------------------------------------------------------------------------------------------------------
    def _want_soon(self) -> None:
        """Request starts in the next iteration of the loop: the number wanted may have changed."""
        if not self._wanting and self._open:
            self._wanting = True
            self._loop.call_soon(self._want_starts)

    def _want_starts(self) -> None:
        self._wanting = False
        capacity = sum(len(member.held) + member.credit for member in self.holdings.members)
        self._ahead = min(PREFETCH_LIMIT, capacity // PREFETCH_SHARE)
        if self._wire.is_up:
            now = self._loop.time()
            for puller in self._start_pullers:
                puller.ask(now)

    def _want(self) -> None:
        """Renew all pulls. Pulls of messages renew themselves, unless they were lost."""
        self._want_starts()
        if self._wire.is_up:
            now = self._loop.time()
            for pullers in self._pullers.values():
                for puller in pullers:
                    puller.ask(now)

    def _starts_wanted(self, handler: str, partition: int) -> int:
        """Return how many starts of a handler to request from a partition."""
        room = self.holdings.room(handler, partition)
        if room <= 0:
            return 0
        return max(-(-(room + self._ahead) // self._layout.partitions), min(room, PULL_LEAST))

    # --- arrivals -----------------------------------------------------------------------------------------------------
    def _token(self, arrival: Arrival) -> Token:
        now = self._loop.time()
        return Token(arrival.reply, arrival.sequence, now, now)

    def _took(self, take: Callable[[Arrival], None]) -> Callable[[Arrival], None]:
        """Return a callback that takes arrivals, and defers one that cannot be taken."""

        def came(arrival: Arrival) -> None:
            try:
                take(arrival)
            except Exception as error:  # noqa: BLE001  a message may hold anything
                self._defer(arrival, error)

        return came

    def _take_later(self, arrival: Arrival, take: Coroutine[Any, Any, None]) -> None:
        """Take an arrival in the background; if the store closes before that ends, it is given back."""

        def ended(task: asyncio.Task[None]) -> None:
            if task.cancelled():
                self.leases.requeue(self._token(arrival))

        self._tasks.spawn(self._take(arrival, take)).add_done_callback(ended)

    async def _take(self, arrival: Arrival, take: Coroutine[Any, Any, None]) -> None:
        """Take an arrival that has to be read first, or defer it if it cannot be taken."""
        try:
            await take
        except (StoreClosed, StoreUnavailable):
            raise  # it is not renewed, so it is redelivered
        except Exception as error:  # noqa: BLE001  a message may hold anything
            self._defer(arrival, error)

    def _defer(self, arrival: Arrival, error: Exception) -> None:
        """Leave an arrival that cannot be taken to other workers."""
        if not isinstance(error, StoreError):
            kind = ("arrival", type(error).__name__)
            self._wire.limited_log(kind, "the message on %s cannot be processed", arrival.subject, exc_info=error)
        if isinstance(error, NewerJournal) and arrival.facts.id:
            self._tasks.spawn(self.routing.offer_unread(arrival, error))
        else:
            what = f"message {arrival.sequence} on {arrival.subject}"
            self.leases.defer(self._token(arrival), what, str(error) or type(error).__name__)

    def _start_came(self, arrival: Arrival) -> None:
        if arrival.facts.blob:
            self._take_later(arrival, self._large_start_came(arrival))
            return
        self._queue_start(arrival, decode_start(arrival.data))

    async def _large_start_came(self, arrival: Arrival) -> None:
        data = await self._blobs.load(arrival.facts.id, arrival.facts, arrival.data)
        self._queue_start(arrival, decode_start(data))

    def _queue_start(self, arrival: Arrival, start: Start) -> None:
        delivery = Delivery(start.id, start.handler, start, arrival.attempt, token=self._token(arrival))
        self.holdings.queue(delivery)
        self.holdings.pump()

    def _message_came(self, arrival: Arrival) -> None:
        if arrival.facts.blob:
            self._take_later(arrival, self._large_message_came(arrival))
        elif arrival.facts.kind == "wake" and arrival.facts.id:
            name = arrival.subject.rpartition(".")[2]
            token = self._token(arrival)
            token.urgent = name in (GRANTED, LIMIT)
            token.number = arrival.facts.number
            self.routing.route_soon(Delivery(arrival.facts.id, "", Wake(), arrival.attempt, token=token), name)
        else:
            self._route_message(arrival, decode_message(arrival.data))

    async def _large_message_came(self, arrival: Arrival) -> None:
        data = await self._blobs.load(arrival.facts.id, arrival.facts, arrival.data)
        self._route_message(arrival, decode_message(data))

    def _route_message(self, arrival: Arrival, message: Message) -> None:
        name = arrival.subject.rpartition(".")[2]
        self.routing.route_soon(Delivery(message.to, "", message, arrival.attempt, token=self._token(arrival)), name)

    def _key_came(self, arrival: Arrival) -> None:
        if arrival.facts.kind == "look":
            self.look_at_key(arrival.data.decode(), self._token(arrival))
        else:
            self._take_later(arrival, self._enter(arrival))

    async def _enter(self, arrival: Arrival) -> None:
        """Put a start into the queue of its key: a delayed one, which is due now, or one with a rule of its own."""
        start = decode_start(await self._blobs.load(arrival.facts.id, arrival.facts, arrival.data))
        token = self._token(arrival)
        if start.key is None:
            raise StoreDamaged(
                f"jetstream: the start of invocation {start.id!r} is among those with a key, but has none"
            )
        await self._keys.join(start.key, [start], self._clock.now())
        if start.timeout is not None:
            await self.leases.set_wake(start.id, "limit", start.due + start.timeout, LIMIT)
        if start.when_busy != "enqueue":
            await self._keys.look(start.key)  # it may be the first
            for message in called_for(start, await self._keys.ahead(start), self._clock.now()):
                await self.post(message)
        self.leases.acknowledge(token)

    def look_at_key(self, name: str, token: Token) -> None:
        """Look at a key, once for all notes that have arrived."""
        looks = self._looks.get(name)
        if looks is not None:
            looks.append(token)
            return
        self._looks[name] = [token]
        self._tasks.spawn(self._look(name))

    def notes_of(self, name: str) -> int:
        """Return how many notes for a key are not acknowledged yet."""
        return len(self._looks.get(name, ()))

    async def _look(self, name: str) -> None:
        while (looks := self._looks[name]) and self._open:
            count = len(looks)  # a note that arrives during this look needs another
            try:
                await self._keys.look(name)
            except StoreClosed:
                return
            except (StoreUnavailable, StoreFull) as error:
                self._wire.limited_log("keys", "key %r cannot be granted, retrying: %s", name, error)
                await asyncio.sleep(FAILED_SECONDS)
                continue
            except Exception as error:  # noqa: BLE001  only this key is affected
                traced = None if isinstance(error, StoreError) else error
                self._wire.limited_log(("key", name), "key %r cannot be granted: %s", name, error, exc_info=traced)
                for token in self._looks.pop(name):
                    self.leases.defer(token, f"key {name!r}", str(error))
                return
            for token in looks[:count]:
                self.leases.acknowledge(token)
            del looks[:count]
        del self._looks[name]


def _messages_wanted(_partition: int) -> int:
    return MESSAGES_LIMIT
