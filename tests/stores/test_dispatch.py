"""The dispatcher of the embedded stores, where two ways lead to one delivery."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from perdure.core.journal import Message, Pause
from perdure.stores.local.dispatch import Dispatcher, Page
from perdure.stores.port import Delivery
from tests.stores.test_sqlite_file import start


@pytest.mark.parametrize("room", [1, 5])
async def test_a_start_that_was_read_before_its_grant_is_told_goes_out_once(room: int) -> None:
    """A second copy would be taken for fresh, and run again, after the first has settled."""
    other = Delivery("other", "work", start("other"), fresh=True, token=11)
    keyed = Delivery("keyed1", "work", start("keyed1"), fresh=True, token=12)

    async def fetch(_handler: str, _after: int, _limit: int) -> Page:
        return Page([other, keyed], 12, whole=True)

    got: list[str] = []
    dispatcher = Dispatcher(fetch, lambda _: None)
    member = dispatcher.join(["work"], lambda delivery: got.append(delivery.id))
    member.request(room)
    expected = ["other", "keyed1"]
    await until(lambda: got == expected[:room])
    dispatcher.queue_granted(Delivery("keyed1", "work", start("keyed1"), fresh=True, token=12))
    member.request(10)
    assert got == expected
    dispatcher.close()


async def test_a_message_that_waits_for_its_start_is_known_to_be_here_when_another_is_in_hand() -> None:
    async def fetch(_handler: str, after: int, _limit: int) -> Page:
        return Page([], after, whole=True)

    dispatcher = Dispatcher(fetch, lambda _: None)
    dispatcher.join(["work"], lambda _: None)
    first, second = (Message(id, "a", 1.0, Pause()) for id in ("first", "second"))
    dispatcher.offer(Delivery("a", "work", first), begun=False)
    dispatcher.offer(Delivery("a", "work", second))
    assert dispatcher.holds(first)
    assert dispatcher.holds(second)
    dispatcher.close()


async def test_what_is_declined_after_the_store_has_ended_is_left_alone() -> None:
    async def fetch(_handler: str, after: int, _limit: int) -> Page:
        return Page([], after, whole=True)

    got: list[Delivery] = []
    dispatcher = Dispatcher(fetch, lambda _: None)
    member = dispatcher.join(["work"], got.append)
    dispatcher.offer(Delivery("a", "work", Message("m", "a", 1.0, Pause())))
    dispatcher.close()
    member.decline(got[0], "it cannot be taken")
    assert len(got) == 1


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not reached():
            await asyncio.sleep(0)
