"""Pulls from one consumer: requests messages as they are wanted, and again when a pull was lost."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

from msgspec import Struct

from perdure.stores.jetstream.layout.facts import Facts, facts_of
from perdure.stores.jetstream.wire.protocol import header, status_of
from perdure.stores.jetstream.wire.wire import Wire
from perdure.stores.port import LEASE_SECONDS

EXPIRES_SECONDS = 30.0
"""How long a pull waits at the server at most before it is renewed."""
EXPIRES_LEAST_SECONDS = 2.0
EXPIRES_SHARE = 2
"""A pull expires within a lease divided by this: a process that hangs has no pull left when its leases end."""
EXPIRES_JITTER = 0.5
"""The fraction of that time that is random."""
HEARTBEAT_SECONDS = 3.0
SILENCE_SECONDS = 8.0
"""Without a heartbeat for this long, a pull is considered lost: the server was restarted, or a route broke."""
STATUS_HEARTBEAT = 100
STATUS_NO_RESPONDERS = 503
MOVE_BACK_SECONDS = 0.2
"""The shortest time between two moves to the back of the waiting pulls."""
AGAIN_SECONDS = 0.25
"""How long after a refused pull the next one is sent."""

log = logging.getLogger("perdure.jetstream")


class Arrival(Struct, eq=False):
    """A message as a consumer delivered it."""

    subject: str
    reply: str
    facts: Facts
    data: bytes
    attempt: int
    sequence: int


class Puller:
    """Keeps pull requests to one consumer outstanding."""

    def __init__(
        self,
        wire: Wire,
        stream: str,
        consumer: str,
        wanted: Callable[[], int],
        arrived: Callable[[Arrival], None],
        missed: Callable[[], None],
        lease: float = LEASE_SECONDS,
    ) -> None:
        self._wire = wire
        self.stream = stream
        self._consumer = consumer
        self._wanted = wanted
        self._arrived = arrived
        self._missed = missed  # the consumer does not answer: it may have been deleted
        self._outstanding = 0
        self._low = 0  # when no more than these are outstanding, more are requested
        self._heard = 0.0
        self._not_before = 0.0
        self._moved_back = 0.0
        self._open = True
        self._expires = min(EXPIRES_SECONDS, max(EXPIRES_LEAST_SECONDS, lease / EXPIRES_SHARE))
        self._inbox = wire.new_inbox()
        self._sid = wire.subscribe(self._inbox, self._came)

    def ask(self, now: float) -> None:
        """Pull if less than half of the wanted messages are outstanding."""
        if not self._open or now < self._not_before:
            return
        if self._outstanding and now > self._heard + SILENCE_SECONDS:
            log.warning("a pull from %s in %s has fallen silent: sending it again", self._consumer, self.stream)
            self._outstanding = 0
        wanted = self._wanted()
        if self._outstanding > wanted // 2 or wanted <= 0:
            return
        batch = wanted - self._outstanding
        if not self._outstanding:
            self._heard = now
        self._outstanding += batch
        self._low = wanted // 2
        # With equal times, the pull that has waited longest, which the server serves first, would always be the same
        # worker's.
        expires = self._expires * (1 - EXPIRES_JITTER * random.random())  # noqa: S311  jitter
        self._wire.pull(
            self.stream,
            self._consumer,
            self._inbox,
            batch=batch,
            expires=expires,
            heartbeat=min(HEARTBEAT_SECONDS, expires / 3),
        )

    def reset(self) -> None:
        """Forget outstanding pulls: the connection was replaced."""
        self._outstanding = 0

    def move_back(self, now: float) -> int | None:
        """Move behind the pulls of other workers; return the old subscription, to be forgotten once it has drained.

        The server serves the pull that has waited longest, and one that is never used up stays first: a delivery that
        this worker requeued because it cannot act on it would come back to it again and again.
        """
        if not self._open or now < self._moved_back + MOVE_BACK_SECONDS:
            return None
        self._moved_back = now
        before = self._sid
        self._wire.unsubscribe(before)  # the server drops a pull whose inbox has no subscription
        self._inbox = self._wire.new_inbox()
        self._sid = self._wire.subscribe(self._inbox, self._came)
        self._outstanding = 0
        self.ask(now)
        return before

    def stop(self) -> None:
        """Stop pulling. Messages in flight still arrive, until the connection closes."""
        self._open = False
        self._wire.unsubscribe(self._sid)

    def forget(self) -> None:
        self._wire.forget(self._sid)

    def _came(self, subject: str, reply: str, data: bytes, headers: bytes) -> None:
        now = self._heard = self._wire.now()
        status = status_of(headers)
        if status:
            if status != STATUS_HEARTBEAT:
                left = header(headers, b"Nats-Pending-Messages: ")
                self._outstanding = max(0, self._outstanding - int(left)) if left is not None else 0
                if status != 408:
                    self._not_before = now + AGAIN_SECONDS
                if self._open and (status == STATUS_NO_RESPONDERS or b"Consumer Deleted" in headers):
                    self._missed()
                self.ask(now)
            return
        self._outstanding = max(0, self._outstanding - 1)
        tokens = reply.split(".")
        self._arrived(Arrival(subject, reply, facts_of(headers), data, int(tokens[-5]), int(tokens[-4])))
        if self._outstanding <= self._low:
            self._low = -1  # only once: a worker without room asks again when it has some
            self.ask(now)
