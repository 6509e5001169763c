"""Awakeables with a title, and with a time after which they take no answer."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from perdure.authoring.context import Context
from perdure.core.apply import apply
from perdure.core.history import History
from perdure.core.journal import (
    NOT_ASKED,
    Accepted,
    Asked,
    Entry,
    Failed,
    Frame,
    Message,
    OpenAwakeable,
    Refused,
    Resolve,
    Returned,
    SetTimer,
    decode_frame,
    describe,
    encode_frame,
)
from perdure.core.values import encode
from perdure.errors import AwakeableExpired, InvalidOption, LimitExceeded, NonRetryable
from tests.core.driver import START, Driver, in_order, make_turn, play, step


async def asks(ctx: Context) -> str:
    promise = ctx.awakeable(str, title="Expense of 12 EUR", description="*lunch*", assignees=["finance"], expires=60)
    try:
        return await promise
    except AwakeableExpired as error:
        return str(error).replace(error.awakeable_id, "ID")


def answer(driver: Driver, n: int, at: float, sent: float | None = None) -> Entry | None:
    message = Message("m", "one", at if sent is None else sent, Resolve(n, encode("yes")))
    return apply(message, History(start=START), driver.turn, at)


def test_what_people_are_told_and_when_it_expires_is_recorded():
    driver = Driver(asks)
    asked = Asked("Expense of 12 EUR", "*lunch*", ("finance",), START.due + 60, b'{"root":{"kind":"str"}}')
    assert driver.frames[0].commands == [OpenAwakeable(0, asked), SetTimer(1, START.due + 60)]
    assert decode_frame(encode_frame(driver.frames[0])) == driver.frames[0]


def test_answer_in_time_ends_the_timer():
    async def body(ctx: Context) -> str:
        return await asks(ctx) + await step("a")

    driver = Driver(body)
    driver.returns(0, "yes")
    assert driver.frames[-1].cancels == [1]
    assert [*driver.turn.pending] == [2]
    driver.finish()
    assert driver.value == "yesa"
    driver.check_replay()


def test_nobody_answers_in_time():
    driver = Driver(asks)
    driver.fires(1)
    assert driver.value == "awakeable 'Expense of 12 EUR' (ID) expired: nobody answered it in time"
    driver.check_replay()


def test_answer_after_it_has_expired_is_refused():
    async def body(ctx: Context) -> str:
        promise = ctx.awakeable(str, expires=60)
        await asyncio.wait([asyncio.ensure_future(asyncio.sleep(100))])
        return await promise

    driver = Driver(body)
    driver.fires(1)
    refused = answer(driver, 0, START.due + 61)
    assert isinstance(refused, Refused)
    assert "nothing waits for it any more" in refused.reason
    driver.finish()
    assert isinstance(driver.outcome, Failed)
    assert driver.outcome.failure.type == "perdure.errors.AwakeableExpired"
    driver.check_replay()


def test_answer_counts_if_it_was_sent_in_time_and_found_it_open():
    driver = Driver(asks)
    due = START.due + 60
    assert answer(driver, 0, due - 1) == Returned(0, due - 1, encode("yes"), "m")
    assert answer(driver, 0, due + 9, sent=due - 1) == Returned(0, due + 9, encode("yes"), "m")  # no worker ran
    late = answer(driver, 0, due + 9, sent=due)
    assert late == Refused(due + 9, "m", "this awakeable has expired")
    ahead = answer(driver, 0, due - 1, sent=due + 100)  # the clock of who sent it is ahead
    assert ahead == Returned(0, due - 1, encode("yes"), "m")


def test_awakeable_that_nobody_awaits_expires_without_a_word():
    async def body(ctx: Context) -> str:
        ctx.awakeable(str, expires=1)
        await asyncio.sleep(5)
        return "done"

    driver = Driver(body)
    driver.fires(1)
    driver.fires(2)
    assert driver.value == "done"
    assert driver.turn.unseen == []
    driver.check_replay()


@pytest.mark.parametrize("number", range(4))
def test_expiry_beside_other_waits_replays(number: int):
    async def body(ctx: Context) -> list[str]:
        one, two = ctx.awakeable(str, expires=10), ctx.awakeable(str, title="second")
        found: list[object] = [*await asyncio.gather(one, two, step("a"), return_exceptions=True)]
        return [type(each).__name__ for each in found]

    expired = number == 1
    driver = play(body, lambda: in_order(number, 0), {"": "x"})
    assert driver.value == ["AwakeableExpired" if expired else "str", "str", "str"]


def test_wait_that_ends_early_leaves_the_expiry():
    async def body(ctx: Context) -> list[str]:
        promise = ctx.awakeable(str, expires=60)
        seen: list[str] = []
        for _ in range(2):
            try:
                async with asyncio.timeout(40):
                    seen.append(await promise)
            except AwakeableExpired:
                seen.append("expired")
            except TimeoutError:
                seen.append("not yet")
        return seen

    driver = Driver(body)
    driver.fires(2)
    driver.fires(1)
    assert driver.value == ["not yet", "expired"]
    driver.check_replay()


def test_time_may_be_given_in_every_form():
    async def body(ctx: Context) -> None:
        ctx.awakeable(str, expires=timedelta(minutes=1))
        ctx.awakeable(str, expires=datetime.fromtimestamp(START.due + 60, UTC))
        ctx.awakeable(str, expires=datetime(1970, 1, 1, tzinfo=UTC))
        ctx.awakeable(str, assignees=("a", "b"))
        await step("one")

    commands = Driver(body).frames[0].commands
    assert [each.asked.expires_at for each in commands if isinstance(each, OpenAwakeable)] == [
        START.due + 60,
        START.due + 60,
        START.due,
        None,
    ]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"title": 7}, "title=7"),
        ({"description": b"x"}, "description=b'x'"),
        ({"assignees": "finance"}, "give a list of str"),
        ({"assignees": {"finance"}}, "give a list of str"),
        ({"assignees": [7]}, "assignees=7"),
        ({"expires": -1}, "expires"),
        ({"expires": "3 days"}, "expires"),
        ({"expires": datetime(2026, 12, 1, tzinfo=UTC).replace(tzinfo=None)}, "has no time zone"),
        ({"expires": datetime(9000, 12, 1, tzinfo=UTC)}, "too far in the future"),
    ],
)
def test_wrong_options_fail_the_body_where_it_asks(options: dict[str, Any], why: str):
    async def body(ctx: Context) -> str:
        try:
            ctx.awakeable(str, **options)
        except InvalidOption as error:
            return str(error)
        return "taken"

    driver = Driver(body)
    assert why in driver.value
    assert driver.frames[0].commands == []


def test_long_texts_are_refused():
    async def body(ctx: Context) -> str:
        try:
            ctx.awakeable(str, title="x" * 10_001)
        except LimitExceeded as error:
            return str(error)
        return "taken"

    assert "the limit is 10,000" in Driver(body).value


def test_code_may_tell_people_something_else_and_what_they_were_told_stands():
    async def edited(ctx: Context) -> str:
        try:
            return await ctx.awakeable(str, title="Another title", expires=7)
        except TimeoutError:
            return "expired"

    driver = Driver(asks)
    turn = make_turn(edited)
    turn.replay(driver.frames)
    assert turn.divergence is None
    assert turn.expiry_of(0) == START.due + 60


def test_journal_of_before_has_no_expiry_whatever_the_code_says_now():
    old = Frame("w", 1.0, [Accepted(START)], [OpenAwakeable(0)])
    assert old.commands == [OpenAwakeable(0, NOT_ASKED)]
    turn = make_turn(asks)
    turn.replay([old])
    assert turn.divergence is None
    assert turn.expiry_of(0) is None
    assert [*turn.pending] == [0]


def test_code_that_no_longer_asks_diverges():
    async def other(ctx: Context) -> str:
        return await step("a")

    turn = make_turn(other)
    turn.replay(Driver(asks).frames)
    assert turn.divergence is not None
    assert describe(OpenAwakeable(0, Asked("Expense of 12 EUR"))) in str(turn.divergence)


def test_time_at_rest_does_not_count():
    async def body(ctx: Context) -> str:
        promise = ctx.awakeable(str, expires=60)
        await step("a")
        try:
            return await promise
        except TimeoutError:
            return "expired"

    driver = Driver(body)
    driver.now += 10
    driver.raises(2, NonRetryable("no"))
    driver.now += 1000
    driver.retries()
    assert driver.turn.expiry_of(0) == pytest.approx(driver.now + 50, abs=0.01)
    driver.finish(in_order(2, 1))
    assert driver.value == "expired"
    driver.check_replay()
