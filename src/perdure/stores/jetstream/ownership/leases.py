"""Renews what workers here hold, wakes invocations, and requeues deliveries.

A held delivery is renewed three times per lease. A claim older than half a lease gets a wake at the end of its lease,
in a schedule that names the epoch of the claim, and its delivery is acknowledged; the schedule is moved forward as long
as the claim is owned. So long runs hold no delivery, and two owners never share a schedule.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from perdure.background import Tasks
from perdure.core.retry import DURATION_LIMIT_SECONDS
from perdure.stores.clock import SystemClock
from perdure.stores.jetstream.journal.journals import Journals, Tail
from perdure.stores.jetstream.layout.facts import Facts, lines_of
from perdure.stores.jetstream.layout.subjects import Layout
from perdure.stores.jetstream.ownership.holdings import Hold, Holdings, Token
from perdure.stores.jetstream.wire.protocol import WrongSequence
from perdure.stores.jetstream.wire.wire import Wire
from perdure.stores.port import LEASE_SECONDS, Delivery, Timer, Wake

RENEWALS_IN_A_LEASE = 3
LOCAL_WAKE_SECONDS = 1.0
"""Waits up to this long are timed in this process: the server's schedules fire up to a quarter of a second late."""

DEFER_SECONDS = 0.25
"""The delay before a deferred delivery is redelivered; it doubles each time."""
DEFER_LIMIT_SECONDS = 5.0
"""The longest such delay."""
DEFER_JITTER = 0.5
"""The fraction of the delay that is random."""

DUE = "=due"
LEASE = "=lease"

log = logging.getLogger("perdure.jetstream")


class LocalWake(Struct, eq=False):
    """A wake that is timed in this process; if the process dies, its unacknowledged token is redelivered instead."""

    delivery: Delivery
    due: float
    timer: Timer


class Leases:
    """Renews deliveries and claims, sets wakes, and gives deliveries back to the server."""

    def __init__(
        self, wire: Wire, layout: Layout, journals: Journals, name: str, clock: SystemClock, tasks: Tasks
    ) -> None:
        self._wire = wire
        self._layout = layout
        self._journals = journals
        self._name = name
        self._clock = clock
        self._tasks = tasks
        self.holdings: Holdings
        self.others_first: Callable[[str, str], object] = lambda _stream, _consumer: None
        """Moves the pulls of this worker behind those of other workers of a consumer."""
        self.lease = LEASE_SECONDS
        self._local_wakes: dict[str, LocalWake] = {}
        self._renewing = False

    # --- tokens -------------------------------------------------------------------------------------------------------
    def acknowledge(self, token: Token) -> None:
        if not token.done:
            token.done = True
            self._wire.acknowledge(token.reply)

    def requeue(self, token: Token) -> None:
        if not token.done:
            token.done = True
            self._wire.hand_back(token.reply)

    def defer(self, token: Token, what: str, reason: str) -> None:
        """Requeue a delivery that this process cannot act on, for another worker.

        It is redelivered, here or elsewhere, after a delay that grows: soon enough for a worker that can act on it, and
        rarely enough for one that cannot. Nothing is ever dropped.
        """
        if token.done:
            return
        token.done = True
        delay = min(DEFER_SECONDS * 2 ** min(token.times - 1, 16), DEFER_LIMIT_SECONDS)
        delay *= 1 - DEFER_JITTER * random.random()  # noqa: S311  jitter, against lockstep with the pulls
        self._wire.hand_back(token.reply, delay)
        stream, consumer = token.reply.split(".")[-7:-5]
        self.others_first(stream, consumer)
        self._wire.limited_log(
            ("defer", what),
            "%s is requeued for a worker that can act on it: %s",
            what,
            reason,
            level=logging.WARNING,
        )

    async def wake_instead(self, id: str, token: Token | None) -> None:
        """Requeue a delivery of a claimed invocation; a start, which it no longer needs, is replaced by a wake."""
        if token is not None and not token.is_start:
            self.requeue(token)
            return
        await self.wake_now(id)
        if token is not None:
            self.acknowledge(token)

    async def wake_now(self, id: str) -> None:
        """Queue a wake of an invocation."""
        with contextlib.suppress(WrongSequence):  # one is queued already
            await self._wire.store(
                self._layout.wake(id, DUE), b"", expected=0, headers=lines_of(Facts(id, kind="wake"))
            )

    def schedule_headers(self, at: float, target: str) -> bytes:
        """Return header lines that make the server put a message into `target` at a time, and not before.

        The server uses its own clock, with which the machine's agrees; the store's clock may differ from both.
        """
        at = min(at, self._clock.now() + DURATION_LIMIT_SECONDS)  # journals of earlier releases may hold any number
        when = datetime.fromtimestamp(math.ceil(self._clock.machine_at(at) * 1e6) / 1e6, UTC).isoformat(
            timespec="microseconds"
        )
        return b"Nats-Schedule: @at %s\r\nNats-Schedule-Target: %s\r\n" % (
            when.replace("+00:00", "Z").encode(),
            target.encode(),
        )

    async def set_wake(self, id: str, what: str, at: float, name: str, number: int = 0) -> None:
        """Schedule a wake of an invocation at a time; `what` names the schedule, `name` the wake.

        `number` is that of the frame whose last effect this wake is.
        """
        headers = self.schedule_headers(at, self._layout.wake(id, name))
        headers += lines_of(Facts(id, kind="wake", number=number))
        await self._wire.store(self._layout.schedule(id, what), b"", headers=headers)

    # --- local wakes --------------------------------------------------------------------------------------------------
    def may_wake_locally(self, id: str, acknowledged: Sequence[Delivery], due: float) -> bool:
        """Report whether a wake needs no schedule: it is due soon, and there is a delivery to keep until then."""
        near = min(LOCAL_WAKE_SECONDS, self.lease / RENEWALS_IN_A_LEASE)
        return due <= self._clock.now() + near and self._token_to_keep(id, acknowledged) is not None

    def _token_to_keep(self, id: str, acknowledged: Sequence[Delivery]) -> Token | None:
        hold = self.holdings.hold_of(id)
        if hold is None:
            return None
        tokens = [hold.kept, *(each.token for each in acknowledged)]
        return next((each for each in tokens if isinstance(each, Token) and not each.done), None)

    def wake_locally(self, id: str, acknowledged: Sequence[Delivery], due: float) -> None:
        """Time a wake in this process, if possible, and keep a delivery of the commit unacknowledged until then."""
        self.drop_local_wake(id)
        if not self.may_wake_locally(id, acknowledged, due):
            return
        hold, token = self.holdings.hold_of(id), self._token_to_keep(id, acknowledged)
        assert hold is not None
        assert token is not None
        kept = replace(token)
        token.done = True
        delivery = Delivery(id, hold.handler, Wake(), token=kept)
        self._local_wakes[id] = LocalWake(delivery, due, self._clock.call_at(due, partial(self._local_wake_due, id)))

    def _local_wake_due(self, id: str) -> None:
        local = self._local_wakes.pop(id, None)
        if local is not None and not self.holdings.wake(local.delivery):
            self.requeue(local.delivery.token)

    def drop_local_wake(self, id: str) -> None:
        """Cancel a local wake: a later commit decides when to wake."""
        local = self._local_wakes.pop(id, None)
        if local is not None:
            local.timer.cancel()
            self.acknowledge(local.delivery.token)

    async def _hand_over(self, local: LocalWake) -> None:
        """Schedule a local wake at the server instead."""
        local.timer.cancel()
        await self.set_wake(local.delivery.id, f"due.{self._epoch(local.delivery.id)}", local.due, DUE)
        self.acknowledge(local.delivery.token)

    def hand_over_local_wakes(self, served: Iterable[str]) -> list[Coroutine[Any, Any, None]]:
        """Schedule the local wakes of handlers that are not `served` at the server instead."""
        left = [each for each in self._local_wakes.values() if each.delivery.handler not in served]
        for each in left:
            del self._local_wakes[each.delivery.id]
        return [self._hand_over(each) for each in left]

    # --- leases -------------------------------------------------------------------------------------------------------
    def _epoch(self, id: str) -> int:
        tail = self._journals.known(id)
        return 0 if tail is None else tail.facts.epoch

    def drop_lease(self, hold: Hold) -> None:
        """Remove the wake at the end of a lease; a later owner has a schedule of its own."""
        subject = self._layout.schedule(hold.id, hold.leased)
        hold.leased = ""
        self._tasks.spawn(self._wire.purge(self._layout.stream_of(subject), subject))

    async def renew(self, others: Iterable[Token]) -> None:
        """Renew what is held, and find what was taken over. `others` are deliveries that no worker has yet."""
        if not self._wire.is_up:
            return
        now = self._wire.now()
        for token in [*others, *(local.delivery.token for local in self._local_wakes.values())]:
            self._renew_token(token, now)
        claimed = [hold for _, hold in self.holdings.holds() if self._renew_deliveries(hold, now)]
        if self._renewing:  # the journals cannot be read, as in an election: then no worker can take over either
            for hold in claimed:
                self._renew_token(hold.kept, now)
            return
        self._renewing = True
        try:
            tails = await self._journals.tails([hold.id for hold in claimed]) if claimed else {}
            for hold in claimed:
                self._renew_claim(hold, tails[hold.id], now)
        finally:
            self._renewing = False

    def _renew_deliveries(self, hold: Hold, now: float) -> bool:
        for delivery in hold.deliveries:
            self._renew_token(delivery.token, now)
        if hold.woken is not None:
            self._renew_token(hold.woken.token, now)
        return hold.claimed

    def _renew_claim(self, hold: Hold, tail: Tail, now: float) -> None:
        if self.holdings.hold_of(hold.id) is not hold or not hold.claimed:
            return
        if self._is_lost(hold, tail):
            self.lose(hold.id)
            return
        if hold.kept is not None:
            self._renew_token(hold.kept, now)
        if hold.leased or now - hold.since > self.lease / 2:
            self._tasks.spawn(self._renew_lease(hold))

    def _is_lost(self, hold: Hold, tail: Tail) -> bool:
        """Report whether another process has written. A tail without an owner may be a commit of ours in flight."""
        known = self._journals.known(hold.id)
        if tail.facts.owner == self._name or known is None or tail.sequence <= known.sequence:
            return False
        suspected, hold.suspected = hold.suspected, tail.sequence
        return tail.facts.owner != "" or suspected == tail.sequence

    def protect(self, hold: Hold) -> None:
        """Set a wake at the end of the lease now."""
        self._tasks.spawn(self._renew_lease(hold))

    async def _renew_lease(self, hold: Hold) -> None:
        name = f"lease.{self._epoch(hold.id)}"
        await self.set_wake(hold.id, name, self._clock.now() + self.lease, LEASE)
        hold.leased = name
        if self.holdings.hold_of(hold.id) is hold and hold.claimed:
            kept, hold.kept = hold.kept, None
            if kept is not None:
                self.acknowledge(kept)
        else:
            self.drop_lease(hold)

    def _renew_token(self, token: object, now: float) -> None:
        if isinstance(token, Token) and not token.done:
            if now - token.at <= self.lease:  # else others may have it by now, and `at` keeps a start from beginning
                token.at = now
            self._wire.renew(token.reply)

    def lose(self, id: str) -> None:
        """Forget an invocation that another process has claimed: nothing of it is acknowledged."""
        log.warning("invocation %s: another worker has taken it over; closing it here", id)
        self._journals.forget(id)
        self.holdings.lose(id)
        if (local := self._local_wakes.pop(id, None)) is not None:
            local.timer.cancel()
