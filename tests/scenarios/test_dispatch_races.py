"""Races between what is read from a store's tables and what is pushed: each start goes out once, to one owner."""

from __future__ import annotations

import asyncio

from perdure.core.journal import Start
from perdure.stores.local.dispatch import Dispatcher, Page
from perdure.stores.port import Delivery, Wake


def start(number: int) -> Delivery:
    begin = Start(f"i{number}", "h", b"\x80", 1.0, 1.0, 7)
    return Delivery(begin.id, "h", begin, fresh=True, token=number)


async def test_start_that_was_read_before_it_was_announced_goes_out_once() -> None:
    async def fetch(_handler: str, after: int, _limit: int) -> Page:
        return Page([start(1)] if after < 1 else [], 1, whole=True)

    got: list[Delivery] = []
    dispatcher = Dispatcher(fetch, lambda _: None)
    member = dispatcher.join({"h"}, got.append)
    member.request(10)
    await asyncio.sleep(0.01)
    assert [each.id for each in got] == ["i1"]
    dispatcher.committed("i1", got, ended=True)  # it is over before its commit is announced
    dispatcher.queue(start(1))
    dispatcher.pump()
    assert [each.id for each in got] == ["i1"]
    dispatcher.queue(start(2))
    dispatcher.pump()
    assert [each.id for each in got] == ["i1", "i2"]
    dispatcher.close()


async def test_start_of_an_invocation_that_somebody_owns_goes_to_its_owner() -> None:
    async def fetch(_handler: str, _after: int, _limit: int) -> Page:
        return Page([], 0, whole=True)

    first: list[Delivery] = []
    second: list[Delivery] = []
    dispatcher = Dispatcher(fetch, lambda _: None)
    owner = dispatcher.join({"h"}, first.append)
    dispatcher.offer(Delivery("i1", "h", Wake(), attempt=2))
    other = dispatcher.join({"h"}, second.append)
    other.request(1)
    await asyncio.sleep(0.01)
    dispatcher.queue(start(1))
    dispatcher.pump()
    assert [type(each.item) for each in first] == [Wake, Start]
    assert second == []
    owner.close()
    assert {type(each.item) for each in second} == {Wake, Start}
    other.close()
    dispatcher.close()
