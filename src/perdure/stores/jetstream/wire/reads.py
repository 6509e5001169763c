"""Reads of streams, from the leader or batched from any replica; deletions; pulls and acknowledgements."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from perdure.errors import StoreError, StoreUnavailable
from perdure.stores.jetstream.wire.access import shown
from perdure.stores.jetstream.wire.checks import stream_gone
from perdure.stores.jetstream.wire.link import RETRY_SECONDS, Link, fail
from perdure.stores.jetstream.wire.protocol import (
    NO_MESSAGE,
    NO_STREAM,
    NOT_DELETED,
    UNAVAILABLE,
    Stored,
    decode_last,
    encode,
    header,
    raise_error,
    status_of,
)

PATIENCE_SECONDS = 3.0
"""How long a stream may not respond before it is checked whether it exists."""
BATCH_LIMIT = 1_000
"""Messages that one batched read returns at most: the server refuses more than 1,024 subjects."""
BATCH_BYTES = 8 * 1024 * 1024
"""Bytes that one batched read returns, approximately: the server drops a client that reads too slowly."""


class Reads(Link):
    """A link that reads streams."""

    async def _why_silent(self, stream: str) -> StoreError | None:
        """Return an error if a stream does not exist; log if no server answers."""
        try:
            answer = await self.request(f"$JS.API.STREAM.INFO.{stream}")
        except StoreError as refused:
            return refused
        if answer is not None and status_of(answer[1]) != UNAVAILABLE:
            error: dict[str, Any] = msgspec.json.decode(answer[0]).get("error") or {}
            if error.get("err_code") == NO_STREAM:
                return stream_gone(stream)
        if self._up:
            where = shown(self.servers[0])
            self.limited_log(
                "silent",
                "the NATS server at %s is connected, but its JetStream does not answer: is it enabled, and are enough "
                "nodes of the cluster up? Retrying, without limit",
                where,
            )
        return None

    # --- reads --------------------------------------------------------------------------------------------------------
    async def _direct(self, stream: str, body: object) -> tuple[list[Stored], int]:
        """Read several messages; return them, and how many more there are."""
        found: list[Stored] = []
        future: asyncio.Future[int] = self._loop.create_future()

        def answered(data: bytes, headers: bytes) -> bool:
            if future.done():
                return True
            status = status_of(headers)
            if status in (0, 100):
                subject, sequence = header(headers, b"Nats-Subject: "), header(headers, b"Nats-Sequence: ")
                assert subject is not None
                assert sequence is not None
                found.append(Stored(subject.decode(), int(sequence), data, headers))
                return False
            if status == 204:
                future.set_result(int(header(headers, b"Nats-Num-Pending: ") or 0))
            elif status == 404:
                future.set_result(0)
            else:
                said = headers.split(b"\r\n", 1)[0][9:].decode()
                future.set_exception(StoreUnavailable(f"jetstream: {stream} cannot be read: {said}"))
            return True

        def lost() -> None:
            if not future.done():
                future.set_exception(
                    StoreUnavailable(f"jetstream: {stream} cannot be read: no connection, or no answer")
                )

        self._request(f"$JS.API.DIRECT.GET.{stream}", encode(body), answered, lost, partial(fail, future))
        return found, await future

    async def _read(self, stream: str, once: Callable[[], Awaitable[Any]]) -> Any:
        """Read, with retries until there is an answer, or until it is known that the stream does not exist."""
        begun = self._loop.time()
        while True:
            try:
                return await once()
            except StoreUnavailable as error:
                last = error
                self.check_open()
                await asyncio.sleep(RETRY_SECONDS)
                self.check_open()
            if self._up and self._loop.time() - begun > PATIENCE_SECONDS:
                begun = self._loop.time()
                if (error := await self._why_silent(stream)) is not None:
                    raise error
                self.limited_log(f"read {stream}", "%s; retrying", last)

    async def _page(
        self, stream: str, subject: str, sequence: int, limit: int, size: int = BATCH_BYTES
    ) -> tuple[list[Stored], int]:
        """Return the first matching messages from a sequence on, and how many more there are at least.

        Any replica answers. One that lags returns an earlier state, without gaps: so the leader is asked for what may
        follow. Then no message is missing, but some may have been removed meanwhile.
        """
        body = {"seq": sequence, "next_by_subj": subject, "batch": limit, "max_bytes": size}
        found, more = await self._read(stream, lambda: self._direct(stream, body))
        if not more and self.is_clustered:
            behind = found[-1].sequence + 1 if found else sequence
            if (next := await self.first(stream, subject, behind)) is not None:
                return [*found, next], 1
        return found, more

    async def all(self, stream: str, subject: str) -> list[Stored]:
        """Return all messages whose subject matches, in order, perhaps with some that were just removed."""
        found: list[Stored] = []
        more = 1
        while more:
            some, more = await self._page(stream, subject, found[-1].sequence + 1 if found else 1, BATCH_LIMIT)
            found += some
            more = more if some else 0
        return found

    async def batch(
        self, stream: str, subject: str, sequence: int = 1, limit: int = BATCH_LIMIT, *, size: int = BATCH_BYTES
    ) -> list[Stored]:
        """Return the first matching messages from a sequence on, in order; empty only if there are none.

        They have about `size` bytes at most, but for the first one.
        """
        return (await self._page(stream, subject, sequence, limit, size))[0]

    async def count(self, stream: str, subject: str) -> int:
        """Return how many messages have a subject that matches, according to any replica."""
        body = {"seq": 1, "next_by_subj": subject, "batch": 1}
        found, more = await self._read(stream, lambda: self._direct(stream, body))
        return len(found) + more

    async def last_of(self, stream: str, subjects: Sequence[str]) -> dict[str, Stored]:
        """Return the last message of each of these literal subjects that has one, according to any replica."""
        found: dict[str, Stored] = {}
        for begin in range(0, len(subjects), BATCH_LIMIT):
            body = {"multi_last": [*subjects[begin : begin + BATCH_LIMIT]], "batch": BATCH_LIMIT}
            messages, _ = await self._read(stream, lambda body=body: self._direct(stream, body))
            found.update({each.subject: each for each in messages})
        return found

    async def last(self, stream: str, subject: str) -> Stored | None:
        """Return the last message whose subject matches, from the leader."""
        return await self._of_leader(stream, {"last_by_subj": subject})

    async def first(self, stream: str, subject: str, sequence: int = 1) -> Stored | None:
        """Return the first matching message from a sequence on, from the leader.

        Not a batch of one: for a batch, the server counts all messages that match.
        """
        return await self._of_leader(stream, {"seq": sequence, "next_by_subj": subject})

    async def _of_leader(self, stream: str, which: object) -> Stored | None:
        async def once() -> Stored | None:
            answer = await self.request(f"$JS.API.STREAM.MSG.GET.{stream}", encode(which))
            if answer is None or status_of(answer[1]) == 503:
                raise StoreUnavailable(f"jetstream: {stream} cannot be read: no connection, or no answer")
            last = decode_last(answer[0])
            if last.error is not None:
                if last.error.err_code == NO_MESSAGE:
                    return None
                if last.error.code == 503:
                    raise StoreUnavailable(f"jetstream: {stream}: {last.error.description}")
                raise_error(msgspec.json.decode(answer[0]), stream)
            found = last.message
            assert found is not None
            return Stored(found.subject, found.seq, found.data, found.hdrs)

        return await self._read(stream, once)

    async def purge(self, stream: str, subject: str) -> int:
        """Remove all messages whose subject matches, and return how many. Never of what a consumer delivers: `remove`.

        The server (2.15.1) moves the floor of such a consumer past what it has delivered before a purged message and
        nobody has acknowledged yet. After the next acknowledgements it never delivers that again.
        """
        answer = await self.api(f"STREAM.PURGE.{stream}", {"filter": subject})
        raise_error(answer, stream)
        return int(answer.get("purged", 0))

    async def remove(self, stream: str, subject: str) -> None:
        """Remove messages that may have been delivered: one after the other, the last one first."""
        while (found := await self.last(stream, subject)) is not None:
            await self.delete(stream, found.sequence)

    async def delete(self, stream: str, sequence: int) -> None:
        """Remove one message, unless it is removed already."""
        answer = await self.api(f"STREAM.MSG.DELETE.{stream}", {"seq": sequence, "no_erase": True})
        if answer.get("error", {}).get("err_code", NO_MESSAGE) not in NOT_DELETED:
            raise_error(answer, stream)

    # --- deliveries ---------------------------------------------------------------------------------------------------
    def pull(self, stream: str, consumer: str, inbox: str, *, batch: int, expires: float, heartbeat: float) -> None:
        """Request up to `batch` messages of a consumer on `inbox`. Times are in seconds."""
        body = {"batch": batch, "expires": int(expires * 1e9), "idle_heartbeat": int(heartbeat * 1e9)}
        self.publish(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}", encode(body), inbox)

    def acknowledge(self, reply: str) -> None:
        self.publish(reply, b"+ACK")

    def renew(self, reply: str) -> None:
        """Restart the ack wait of a delivery that is still in progress."""
        self.publish(reply, b"+WPI")

    def hand_back(self, reply: str, delay: float = 0.0) -> None:
        """Negatively acknowledge a delivery: it is redelivered after a delay in seconds."""
        self.publish(reply, b'-NAK {"delay": %d}' % int(delay * 1e9) if delay else b"-NAK")
