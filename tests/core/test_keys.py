"""Keyed invocations in the turn: the body begins with its key and sees the state that it was granted."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from perdure.authoring.context import Context
from perdure.core.journal import (
    Accepted,
    CancelRequested,
    Entry,
    Failed,
    Frame,
    Granted,
    Parent,
    Paused,
    Resumed,
    Returned,
)
from perdure.core.turn import Turn, timed_out
from perdure.core.values import encode
from perdure.errors import InvocationTimedOut
from tests.core.driver import START, Driver, close_all, make_turn, step

KEYED = replace(START, key="user-1", timeout=5.0)


@pytest.fixture(autouse=True)
def closed():
    yield
    close_all()


async def increment(ctx: Context) -> int:
    count = ctx.get("count", int, default=0)
    await step("look")
    ctx.set("count", count + 1)
    await step("write")
    return ctx.get("count", int, default=0)


def granted(count: int, generation: int = 0) -> Granted:
    return Granted(1000.0, generation, {"count": encode(count)})


def keyed(turn: Turn, *entries: Entry) -> None:
    for entry in entries:
        turn.deliver(entry)


def test_no_body_runs_before_its_key_is_granted():
    turn = make_turn(increment, KEYED)
    keyed(turn, Accepted(KEYED))
    assert not turn.begun
    assert turn.waits_for_key
    keyed(turn, granted(5))
    assert turn.begun
    assert not turn.waits_for_key


def test_the_body_sees_the_state_of_its_key_and_replay_sees_the_same():
    driver = Driver(increment, KEYED)
    driver.give(granted(5))
    driver.finish()
    assert driver.value == 6
    driver.check_replay()
    assert [frame.state for frame in driver.frames if frame.state] == [{"count": encode(6)}]


def test_a_grant_during_a_pause_begins_the_body_when_the_pause_ends():
    turn = make_turn(increment, KEYED)
    keyed(turn, Accepted(KEYED), Paused(1000.0, "because"), granted(5))
    assert not turn.begun
    keyed(turn, Resumed(1001.0))
    assert turn.begun
    frames = [
        Frame("w", 1000.0, [Accepted(KEYED), Paused(1000.0, "because")]),
        Frame("w", 1001.0, [granted(5), Resumed(1001.0)], turn.ready().commands),
    ]
    again = make_turn(increment, KEYED)
    again.replay(frames)
    assert again.divergence is None
    assert again.begun


def test_a_resumed_body_still_waits_for_its_key():
    turn = make_turn(increment, KEYED)
    keyed(turn, Accepted(KEYED), Paused(1000.0, "because"), Resumed(1001.0))
    assert not turn.begun
    keyed(turn, granted(1))
    assert turn.begun


def test_a_journal_without_a_grant_replays_to_a_body_that_has_not_begun():
    turn = make_turn(increment, KEYED)
    turn.replay([Frame("w", 1000.0, [Accepted(KEYED)]), Frame("w", 1000.0, [timed_out(KEYED, 1005.0)])])
    assert not turn.begun


async def fails_at_the_end(ctx: Context) -> int:
    count = ctx.get("count", int, default=0)
    ctx.set("count", count + 1)
    await step("first")
    await step("second")
    return ctx.get("count", int, default=0)


def test_a_retry_sees_the_state_of_its_new_grant():
    driver = Driver(fails_at_the_end, KEYED)
    driver.give(granted(5))
    driver.returns(0)
    driver.raises(1, ValueError("no"))
    assert isinstance(driver.outcome, Failed)
    turn = make_turn(fails_at_the_end, KEYED)
    entries = turn.retry(driver.frames, 1, 2000.0, "m")
    assert not isinstance(entries, str)
    again: list[Entry] = [granted(100, 1), *entries, Returned(1, 2001.0, encode(None))]
    keyed(turn, *again)
    ready = turn.ready()
    assert ready.outcome is not None
    frames = [*driver.frames, Frame("w", 2000.0, [*again, ready.outcome], ready.commands, ready.state)]
    replayed = make_turn(fails_at_the_end, KEYED)
    replayed.replay(frames)
    assert replayed.divergence is None, str(replayed.divergence)
    assert replayed.state == turn.state == {"count": encode(100)}


def test_who_ran_out_of_time_in_line_can_be_retried():
    turn = make_turn(increment, KEYED)
    late = timed_out(KEYED, 1005.0)
    assert late.failure.type.endswith(InvocationTimedOut.__name__)
    entries = turn.retry([Frame("w", 1005.0, [Accepted(KEYED), late])], 1, 2000.0, "m")
    assert not isinstance(entries, str)
    keyed(turn, granted(3, 1), *entries)
    assert turn.begun
    assert turn.divergence is None


def test_a_cancellation_reaches_a_body_that_has_its_key():
    driver = Driver(increment, KEYED)
    driver.give(granted(1))
    driver.give(CancelRequested(1001.0))
    driver.interrupts(0)
    assert driver.outcome is not None


def test_keys_held_are_those_of_the_ancestors_and_its_own():
    assert make_turn(increment, KEYED).keys_held == ("user-1",)
    child = replace(KEYED, key=None, held=("a", "b"), parent=Parent("up", 0, 1))
    assert make_turn(increment, child).keys_held == ("a", "b")
    assert make_turn(increment, replace(child, key="c")).keys_held == ("a", "b", "c")
