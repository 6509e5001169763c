"""The Store protocol over another store, which gets sealed values only. The package's docstring has the overview."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from perdure.background import RateLimitedLog
from perdure.core.exported import Loaded
from perdure.core.journal import Answer, Message, Outcome, Start
from perdure.counters import StoreCounters
from perdure.errors import IdConflict, InvalidOption, Unopened
from perdure.stores.awakeables import Awakeable, AwakeableFilter
from perdure.stores.port import (
    LEASE_SECONDS,
    Clock,
    Committed,
    Counts,
    Delivery,
    Events,
    Filter,
    Journal,
    Key,
    Minute,
    Row,
    Store,
    Subscription,
    Transition,
    identity_of,
)
from perdure.stores.rewriting import Part, Rewriting
from perdure.stores.sealed.documents import SealedDocuments
from perdure.stores.sealed.fields import TEXT, Fields, Opening, Sealing, Showing, is_sealed, no_codec
from perdure.stores.sealed.kept import read_kept, retire, unlock
from perdure.stores.sealed.resealing import Counting, Resealing
from perdure.stores.sealed.streams import SealedStreams
from perdure.stores.sealed.walk import (
    answer_with,
    awakeable_with,
    effects_with,
    frame_with,
    key_with,
    message_with,
    outcome_with,
    start_with,
)

if TYPE_CHECKING:
    from perdure.encryption import Codec

NO_SECRET = b"sealed"
"""Where the secret is not known. The ids of awakeables that are shown then answer nothing."""
UNOPENED_AT_ONCE = 1_000
UNOPENED_WAIT_SECONDS = 1.0
"""After so many in a row that do not open, how long a worker waits before it takes more starts."""
FRAMES_AT_ONCE = 200
"""Frames that are opened without giving others a turn on the loop."""

log = logging.getLogger("perdure.store")


async def sealed(store: Store, codec: Codec | None) -> Store:
    """Return an open store, sealed by the codec. Without one: the store itself, or what can be seen of a sealed one."""
    if codec is None and await read_kept(store) is None:
        return store
    found = Sealed(store, codec)
    await found.unlock()
    return found


def opened(history: Loaded, codec: Codec) -> Loaded:
    """Return a sealed history with its values open. Its store is not there: the digest of its start is not compared."""
    opening = Opening(codec, history.sealed_in, None, lambda: math.inf)
    return replace(
        history,
        start=start_with(opening, history.start),
        frames=tuple(frame_with(opening, history.start.id, each) for each in history.frames),
    )


class Sealed:
    """Seals what goes to `inner`, and opens what comes from it."""

    def __init__(self, inner: Store, codec: Codec | None) -> None:
        self.inner = inner
        self.clock: Clock = inner.clock
        self.clocks_apart = inner.clocks_apart
        self.payload_limit = inner.payload_limit
        self.store_id = b""
        self._codec = codec
        self._secret: bytes | None = None
        self._reports = RateLimitedLog(log)

    # --- open and close -----------------------------------------------------------------------------------------------
    async def open(self) -> None:
        await self.inner.open()
        try:
            await self.unlock()
        except BaseException:
            await self.inner.aclose()
            raise

    async def unlock(self) -> None:
        """Read what the store keeps for itself, once `inner` is open."""
        digests = None
        if self._codec is not None:
            kept, secrets = await unlock(self.inner, self._codec)
            self.store_id, self._secret, digests = kept.store, secrets.awakeables, secrets.digests
        elif (found := await read_kept(self.inner)) is not None:
            self.store_id = found[0].store
        self._sealing = Sealing(self._codec, self.store_id, digests)
        opening = Opening(self._codec, self.store_id, digests, self.clock.now)
        self._showing = Showing(opening)
        self._opening: Fields = opening
        self._opens = opening
        self.documents = SealedDocuments(self.inner.documents, self._sealing, opening)
        self.streams = SealedStreams(self.inner.streams, self._sealing, opening)

    async def aclose(self) -> None:
        await self.inner.aclose()

    @property
    def secret(self) -> bytes:
        if self._secret is None:
            raise no_codec()
        return self._secret

    @property
    def shown(self) -> Sealed:
        """The same store for people: in place of a value that does not open, it says so."""
        return _Shown(self)

    # --- keys of the codec --------------------------------------------------------------------------------------------
    @property
    def sealed_under(self) -> str | None:
        return None if self._codec is None else self._codec.names[0]

    def counting(self) -> Counting:
        return Counting()

    def resealing(self) -> Resealing:
        if self._codec is None:
            raise no_codec()
        return Resealing(self._sealing, self._opens, self._codec.names[0])

    async def retire(self) -> None:
        if self._codec is None:
            raise no_codec()
        await retire(self.inner, self._codec)

    async def rewrite(self, rewriting: Rewriting, after: str = "", /) -> Part:
        """Rewrite what is within: sealed values."""
        return await self.inner.rewrite(rewriting, after)

    # --- starts and messages ------------------------------------------------------------------------------------------
    def submit(self, starts: Sequence[Start], /) -> asyncio.Future[list[bool]]:
        for start in starts:
            if not start.digest:
                raise InvalidOption(
                    f"the start of invocation {start.id!r} has no digest, by which a sealed store compares it: "
                    "start it through the client"
                )
        accepting = self.inner.submit([start_with(self._sealing, each) for each in starts])
        if self._codec is None or not self._codec.takes_plain(self.clock.now()):
            return accepting
        return asyncio.ensure_future(self._accepted(starts, accepting))

    async def _accepted(self, starts: Sequence[Start], accepting: asyncio.Future[list[bool]]) -> list[bool]:
        """Submit, where invocations may have been accepted before the store was sealed: their digests are not keyed."""
        try:
            return await accepting
        except IdConflict:
            were_known = [await self._is_kept_plain(each) for each in starts]
            if not any(were_known):
                raise
        rest = [start_with(self._sealing, each) for each, known in zip(starts, were_known, strict=True) if not known]
        are_new = iter(await self.inner.submit(rest) if rest else ())
        return [False if known else next(are_new) for known in were_known]

    async def _is_kept_plain(self, start: Start) -> bool:
        found = await self.inner.start(start.id)
        return found is not None and not is_sealed(found.input) and identity_of(found) == identity_of(start)

    def post(self, message: Message, /) -> asyncio.Future[None]:
        return self.inner.post(message_with(self._sealing, message))

    async def answer(self, message_id: str, /) -> Answer:
        answer = await self.inner.answer(message_id)
        # A store refuses by itself what is for nobody: such a reason is its own, and holds no value.
        is_plain = answer.refused is not None and not answer.refused.startswith(TEXT)
        return answer if is_plain else answer_with(self._opening, answer)

    # --- deliveries ---------------------------------------------------------------------------------------------------
    def subscribe(
        self,
        handlers: Collection[str],
        deliver: Callable[[Delivery], None],
        *,
        partitions: Collection[int] | None = None,
        lost: Callable[[str], None] | None = None,
        lease: float = LEASE_SECONDS,
    ) -> Subscription:
        subscription = _SealedSubscription(self._opening, self._reports, deliver, lost)
        subscription.inner = self.inner.subscribe(
            handlers, subscription.take, partitions=partitions, lost=lost, lease=lease
        )
        return subscription

    def commit(self, transition: Transition, told: Committed, /) -> None:
        try:
            sealed = self._sealed(transition)
        except Exception as error:  # noqa: BLE001  it is told instead
            asyncio.get_running_loop().call_soon(told, 0, error)
            return
        self.inner.commit(sealed, told)

    def _sealed(self, transition: Transition) -> Transition:
        frame, awakeables, sealing = transition.frame, transition.awakeables, self._sealing
        return replace(
            transition,
            frame=None if frame is None else frame_with(sealing, transition.id, frame),
            effects=effects_with(sealing, transition.id, transition.effects),
            acknowledge=[_inner_of(each) for each in transition.acknowledge],
            awakeables=None if awakeables is None else [awakeable_with(sealing, each) for each in awakeables],
        )

    # --- reading ------------------------------------------------------------------------------------------------------
    async def journal(self, id: str, /) -> Journal:
        journal = await self.inner.journal(id)
        frames = [*journal.frames]
        for n, frame in enumerate(frames):
            frames[n] = frame_with(self._opening, id, frame)
            if not (n + 1) % FRAMES_AT_ONCE:
                await asyncio.sleep(0)
        return replace(journal, frames=tuple(frames))

    async def revision(self, id: str, /) -> int:
        return await self.inner.revision(id)

    async def outcome(self, id: str, /) -> Outcome | None:
        outcome = await self.inner.outcome(id)
        return None if outcome is None else outcome_with(self._opening, id, outcome)

    def watch(self, id: str, /) -> asyncio.Future[Outcome]:
        watching = self.inner.watch(id)
        opened: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def push(pushed: asyncio.Future[Outcome]) -> None:
            if opened.done():
                if not pushed.cancelled():
                    pushed.exception()  # nobody waits for it any more
                return
            try:
                opened.set_result(outcome_with(self._opening, id, pushed.result()))
            except asyncio.CancelledError:
                opened.cancel()
            except Exception as error:  # noqa: BLE001  who waits gets it
                opened.set_exception(error)

        watching.add_done_callback(push)
        opened.add_done_callback(lambda _: watching.cancel())
        return opened

    async def start(self, id: str, /) -> Start | None:
        start = await self.inner.start(id)
        return None if start is None else start_with(self._opening, start)

    async def key(self, name: str, /) -> Key:
        return key_with(self._opening, name, await self.inner.key(name))

    async def mail(self, id: str, /) -> list[Message]:
        return [message_with(self._opening, each) for each in await self.inner.mail(id)]

    async def awakeables(self, filter: AwakeableFilter, /) -> list[Awakeable]:
        """List awakeables. They are for people: one whose texts do not open does not hide the others."""
        return [awakeable_with(self._showing, each) for each in await self.inner.awakeables(filter)]

    # --- what holds no values -----------------------------------------------------------------------------------------
    def events(self, filter: Filter, /) -> Events:
        return self.inner.events(filter)

    def serves(self, handler: str, /) -> bool | None:
        return self.inner.serves(handler)

    def served(self) -> Collection[str]:
        return self.inner.served()

    async def row(self, id: str, /) -> Row | None:
        return await self.inner.row(id)

    async def search(self, filter: Filter, /) -> list[Row]:
        return await self.inner.search(filter)

    async def counts(self) -> Counts:
        return await self.inner.counts()

    async def minutes(
        self, since: float, /, *, handler: str | None = None, within: float | None = None
    ) -> list[Minute]:
        return await self.inner.minutes(since, handler=handler, within=within)

    @property
    def counters(self) -> StoreCounters:
        return self.inner.counters

    async def purge(self, before: float, /, *, limit: int, id: str | None = None) -> int:
        return await self.inner.purge(before, limit=limit, id=id)


class _Shown(Sealed):
    """A sealed store as it is shown to people."""

    def __init__(self, store: Sealed) -> None:
        vars(self).update(vars(store))
        self._opening = self._showing
        self._secret = self._secret or NO_SECRET


class _SealedSubscription:
    """Opens deliveries. One that does not open is declined, for a worker that has its key."""

    inner: Subscription

    def __init__(
        self,
        opening: Fields,
        reports: RateLimitedLog,
        deliver: Callable[[Delivery], None],
        lost: Callable[[str], None] | None,
    ) -> None:
        self._opening = opening
        self._reports = reports
        self._deliver = deliver
        self._lost = lost
        self._is_open = True
        self._declining: set[str] = set()  # invocations that go back in the next round of the loop, with all they have
        self._starts_missing = 0
        self._in_a_row = 0  # invocations that did not open since a start did

    def take(self, delivery: Delivery) -> None:
        item = delivery.item
        try:
            if isinstance(item, Start):
                item = start_with(self._opening, item)
                self._in_a_row = 0
            elif isinstance(item, Message):
                item = message_with(self._opening, item)
        except Unopened as error:
            self._starts_missing += isinstance(item, Start)
            if delivery.id not in self._declining:
                self._declining.add(delivery.id)
                # Later: the store is in the middle of handing it over.
                asyncio.get_running_loop().call_soon(self._decline, delivery, str(error))
            return
        self._deliver(Delivery(delivery.id, delivery.handler, item, delivery.attempt, delivery.fresh, delivery))

    def _decline(self, delivery: Delivery, reason: str) -> None:
        self._declining.discard(delivery.id)
        if not self._is_open:
            return
        self._reports("unopened", "invocation %s is set aside: %s", delivery.id, reason)
        if self._lost is not None:
            self._lost(delivery.id)  # what else this worker holds of it goes back too
        self.inner.decline(delivery, reason)
        missing, self._starts_missing = self._starts_missing, 0
        self._in_a_row += 1
        if missing:  # the worker asked for starts that it has not got
            wait = 0.0 if self._in_a_row < UNOPENED_AT_ONCE else UNOPENED_WAIT_SECONDS
            asyncio.get_running_loop().call_later(wait, self._request_again, missing)

    def _request_again(self, starts: int) -> None:
        if self._is_open:
            self.inner.request(starts)

    def request(self, starts: int, /) -> None:
        self.inner.request(starts)

    def acknowledge(self, delivery: Delivery, /) -> None:
        self.inner.acknowledge(_inner_of(delivery))

    def hand_back(self, delivery: Delivery, /) -> None:
        self.inner.hand_back(_inner_of(delivery))

    def decline(self, delivery: Delivery, reason: str, /) -> None:
        self.inner.decline(_inner_of(delivery), reason)

    def close(self) -> None:
        self._is_open = False
        self.inner.close()


def _inner_of(delivery: Delivery) -> Delivery:
    """Return the delivery of the store within. One that a worker made itself has none, and stands for itself."""
    inner = delivery.token
    if not isinstance(inner, Delivery):
        return delivery
    inner.attempt = delivery.attempt
    return inner
