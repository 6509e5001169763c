"""The index of awakeables on JetStream: headers tell which are open, journals what people are told of them."""

from __future__ import annotations

from typing import Any

import pytest

from examples.services.nats_server import Server
from perdure import Client
from perdure.connect import client_from
from perdure.stores.jetstream import JetStreamStore
from tests import test_awakeables as everywhere
from tests.scenarios.lab import until
from tests.test_awakeables import ALL, are_open, expense, titles, two

pytestmark = pytest.mark.limit(120)


@pytest.mark.parametrize(
    "name",
    [
        "open_ones_are_listed_with_all_that_describe_tells_of_them",
        "each_answer_takes_one_off_the_list",
        "one_whose_wait_was_given_up_stays_open_and_one_whose_time_is_over_does_not",
        "one_is_listed_while_its_invocation_does_something_else",
        "retry_opens_again_what_it_keeps",
        "listing_goes_on_over_many_pages",
    ],
)
async def test_as_on_every_store(client: Client, name: str) -> None:
    async with client.worker(*ALL):
        await getattr(everywhere, f"test_{name}")(client)


async def test_another_process_lists_them_and_reads_each_journal_once(
    nats: Server, namespace: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    reads = JetStreamStore.read_awakeables

    async def noted(self: JetStreamStore, id: str, open: Any) -> Any:
        read.append(id)
        return await reads(self, id, open)

    async with client.worker(*ALL):
        handles = [await client.start(expense, 1), await client.start(two)]
        await until(lambda: _has_listed(client, 3))
        monkeypatch.setattr(JetStreamStore, "read_awakeables", noted)
        async with client_from(lambda: JetStreamStore([nats.url], namespace=namespace)) as other:
            first = next(each for each in [each async for each in other.awakeables()] if each.title == "first")
            assert sorted(read) == sorted(each.id for each in handles)
            await client.resolve(first.id, 1)
            await until(lambda: _has_listed(other, 2))
            assert len(read) == 2  # what was answered needs no journal


async def _has_listed(client: Client, count: int) -> bool:
    return len(await titles(client)) == count


async def test_what_is_settled_is_not_read_to_list_what_is_open(nats: Server, namespace: str, client: Client) -> None:
    async with client.worker(*ALL):
        handle = await client.start(expense, 1)
        [asked] = await are_open(client, "1 EUR")
        await client.resolve(asked.id, True)
        await handle.result()
    async with client_from(lambda: JetStreamStore([nats.url], namespace=namespace)) as other:
        assert await titles(other) == []
        assert await titles(other, False) == ["1 EUR"]
        await handle.purge()

        async def is_gone() -> bool:
            return await titles(other, None) == []

        await until(is_gone)


async def test_index_of_a_machine_is_shared_by_its_processes(
    nats: Server, namespace: str, client: Client, tmp_path: Any
) -> None:
    async with client.worker(*ALL):
        await client.start(expense, 1)
        await are_open(client, "1 EUR")
        path = tmp_path / "index.db"
        for _ in range(2):
            async with client_from(lambda: JetStreamStore([nats.url], namespace=namespace, index=path)) as other:
                assert await titles(other) == ["1 EUR"]
