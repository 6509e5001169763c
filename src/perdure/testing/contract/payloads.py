"""Payloads come back unchanged."""

from perdure.core.effects import Effects
from perdure.core.journal import (
    Accepted,
    Completed,
    Frame,
    Resolve,
    Returned,
)
from perdure.stores.port import Filter
from perdure.testing.contract.shared import MIB, StoreCase


class Payloads(StoreCase):
    """Payloads come back unchanged."""

    async def test_payloads_of_every_size_come_back_unchanged(self) -> None:
        async with self.opened() as store:
            inbox = self.inbox()
            for size in (0, 1, MIB, 20 * MIB):
                payload = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
                start = self.start(input=payload)
                await store.submit([start])
                inbox.subscription.request(1)
                delivery = await inbox.next_start()
                assert delivery.item == start
                message = self.message(start.id, Resolve(1, payload))
                await store.post(message)
                told, got = await inbox.next_message()
                assert got == message
                frame = Frame("w", 1.0, [Accepted(start), self.claim(), Returned(0, 1.0, payload)], [], {"s": payload})
                revision = await self.commit(start, 0, frame, "running", delivery, effects=Effects())
                settled = self.frame(Completed(1.0, payload))
                await self.commit(start, revision, settled, "completed", told)
                assert await self.frames_of(start.id) == [frame, settled]
                assert await store.outcome(start.id) == settled.entries[0]
            store = await self.reopened()
            rows = await store.search(Filter())
            assert len(rows) == 4
            outcomes = [await store.outcome(row.id) for row in rows]
            sizes = sorted(len(each.value) for each in outcomes if isinstance(each, Completed))
            assert sizes == [0, 1, MIB, 20 * MIB]

    async def test_payload_limit_is_a_number_of_bytes(self) -> None:
        async with self.opened() as store:
            assert store.payload_limit >= MIB
