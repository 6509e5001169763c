"""Slots without a loop: never more than the limit, runners before starts, one entry for a start that comes twice."""

from __future__ import annotations

from perdure.runtime.slots import Slots
from perdure.stores.port import Delivery, Wake


class Runner:
    def __init__(self) -> None:
        self.has_slot = False
        self.closed = False


def start(id: str) -> Delivery:
    return Delivery(id, "handler", Wake())


def test_runner_that_waits_gets_the_next_free_slot_before_any_start() -> None:
    slots = Slots[Runner](1)
    first, second = Runner(), Runner()
    assert slots.acquire(first)
    assert not slots.acquire(second)
    assert not slots.acquire(second)
    assert slots.keep_waiting(start("a"), is_start=True)
    slots.release(first)
    assert slots.next_runner() is second
    assert slots.next_runner() is None
    assert slots.next_start() is None
    slots.release(second)
    assert [each.id for each in slots.next_start() or ()] == ["a"]
    assert slots.next_start() is None


def test_runner_that_closed_while_it_waited_gets_none() -> None:
    slots = Slots[Runner](1)
    first, second, third = Runner(), Runner(), Runner()
    assert slots.acquire(first)
    assert not slots.acquire(second)
    assert not slots.acquire(third)
    second.closed = True
    slots.release(first)
    assert slots.next_runner() is third
    assert not second.has_slot
    assert slots.taken == 1


def test_start_that_comes_twice_waits_once_and_its_mail_with_it() -> None:
    slots = Slots[Runner](1)
    holder = Runner()
    slots.take(holder)
    deliveries = [start("a"), start("a"), start("b")]
    assert all(slots.keep_waiting(each, is_start=True) for each in deliveries)
    assert slots.keep_waiting(mail := start("a"), is_start=False)
    slots.release(holder)
    assert slots.next_start() == [deliveries[0], deliveries[1], mail]
    slots.drop("b")
    assert slots.next_start() is None


def test_room_counts_what_is_taken_asked_for_and_waiting() -> None:
    slots = Slots[Runner](5)
    assert slots.ask() == 5
    assert slots.ask() == 0
    slots.start_came()
    slots.take(Runner())
    assert slots.ask() == 0
    slots.start_came()
    assert slots.ask() == 1
    slots.forget()
    assert slots.ask() == 4


def test_start_that_came_unasked_is_counted_like_any_other() -> None:
    slots = Slots[Runner](1)
    assert slots.ask() == 1
    slots.start_came()
    slots.take(holder := Runner())
    slots.start_came()
    assert slots.keep_waiting(start("unasked"), is_start=True)
    assert slots.ask() == 0
    slots.release(holder)
    assert slots.next_start()
    slots.take(Runner())
    assert slots.ask() == 1  # the store owes nothing then, and the one slot is taken
    assert slots.ask() == 0
