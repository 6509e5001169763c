"""Streams in the core: what a body writes, once however often it is replayed; batches; numbers of attempts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.authoring.context import Context
from perdure.core.failures import failure_of
from perdure.core.history import History
from perdure.core.journal import (
    Accepted,
    Attempted,
    CallStep,
    Claimed,
    Completed,
    Entry,
    Failed,
    Frame,
    Paused,
    Raised,
    Released,
    Retried,
    Returned,
)
from perdure.core.streams import BATCH_BYTES, ITEM_LIMIT_BYTES, Batch, batches, check_item, items_of
from perdure.errors import CalledOutsideWorkflow, LimitExceeded, StoreDamaged
from tests.core.driver import START, Body, Driver, make_turn, step

BAD = ValueError("bad")


def writes(ctx: Context, *items: object, name: str = "log") -> None:
    for item in items:
        ctx.stream(name, Any).write(item)


# --- what a body writes -----------------------------------------------------------------------------------------------
async def talks(ctx: Context) -> str:
    writes(ctx, "begins", 1)
    writes(ctx, "aside", name="other")
    await asyncio.gather(step("a"), step("b"))
    writes(ctx, "middle")
    await ctx.stream("log", str).drain()
    await step("c")
    ctx.stream("log", str).write_nowait("ends")
    return "done"


@pytest.mark.parametrize("evict", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 9])
def test_each_item_is_in_one_frame_however_often_the_body_is_replayed(evict: bool, batch: int) -> None:
    driver = Driver(talks, batch=batch, evict=evict)
    driver.finish()
    assert driver.value == "done"
    assert driver.written("log") == [("begins", 1), (1, 1), ("middle", 1), ("ends", 1)]
    assert driver.written("other") == [("aside", 1)]
    driver.check_replay()


def test_code_that_writes_other_items_is_no_divergence() -> None:
    async def silent(ctx: Context) -> str:
        await asyncio.gather(step("a"), step("b"))
        writes(ctx, "more", "and more")
        await step("c")
        return "done"

    driver = Driver(talks)
    driver.finish()
    turn = make_turn(silent, START)
    turn.replay(driver.frames)
    assert turn.divergence is None
    assert turn.ready().written == {}


def test_writer_of_a_body_is_for_its_body() -> None:
    kept: list[Context] = []

    async def gives(ctx: Context) -> None:
        kept.append(ctx)

    Driver(gives).finish()
    with pytest.raises(CalledOutsideWorkflow, match="is for its body"):
        writes(kept[0], "x")


def test_stream_has_a_limit_that_counts_what_was_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.core.issuer.STREAM_LIMIT_BYTES", 25)

    async def body(ctx: Context) -> str:
        writes(ctx, "x" * 8, "y" * 8)
        await step("a")
        try:
            writes(ctx, "z" * 8)
        except LimitExceeded as error:
            return str(error)
        return "no limit"

    driver = Driver(body, evict=True)
    driver.finish()
    assert driver.value.startswith("stream 'log' has 27 bytes with what is written now")


# --- retries ----------------------------------------------------------------------------------------------------------
def failing(body: Body, **answers: Any) -> Driver:
    driver = Driver(body)
    driver.finish(answers=answers)
    assert isinstance(driver.outcome, Failed)
    return driver


async def fails_at_b(ctx: Context) -> str:
    writes(ctx, "before a")
    await step("a")
    writes(ctx, "before b")
    try:
        await step("b")
    finally:
        writes(ctx, "after b")
    return "done"


def test_what_was_written_before_a_retry_stays_and_what_comes_tells_its_generation() -> None:
    driver = failing(fails_at_b, b=BAD)
    driver.retries()
    driver.finish(answers={"b": BAD})
    driver.retries()
    driver.finish()
    assert driver.written("log") == [("before a", 1), ("before b", 1), ("after b", 1), ("after b", 2), ("after b", 3)]
    driver.check_replay()


def test_repaired_body_writes_what_it_had_not_written_before_it_raised() -> None:
    repaired: list[str] = []

    async def raises(ctx: Context) -> str:
        await step("a")
        writes(ctx, "one", "two")
        if not repaired:
            raise BAD
        writes(ctx, "three")
        await step("b")
        writes(ctx, "four")
        return "done"

    driver = failing(raises)
    repaired.append("yes")
    driver.retries()
    driver.finish()
    assert driver.written("log") == [("one", 1), ("two", 1), ("three", 2), ("four", 2)]


# --- batches ----------------------------------------------------------------------------------------------------------
@given(st.lists(st.integers(0, 40_000), max_size=12), st.integers(0, 9))
def test_batches_hold_all_items_in_order(sizes: list[int], first: int) -> None:
    items = [bytes([n]) * size for n, size in enumerate(sizes)]
    found = [*batches("s", items, first=first, attempt=2, step=7)]
    assert [item for batch in found for item in items_of(batch)] == items
    assert [batch.first for batch in found] == [first + sum(b.count for b in found[:n]) for n in range(len(found))]
    for batch in found:
        assert (batch.name, batch.attempt, batch.step) == ("s", 2, 7)
        assert batch.count == len(items_of(batch)) > 0
        assert batch.count == 1 or len(batch.data) <= BATCH_BYTES + 10


def test_item_of_the_largest_size_is_a_batch_of_less_than_a_mebibyte() -> None:
    (batch,) = batches("s" * 200, [bytes(ITEM_LIMIT_BYTES)], first=0, attempt=1)
    assert len(batch.data) < 2**20 - 16 * 1024


def test_item_that_is_too_large_is_refused_and_a_batch_that_does_not_decode_is_damage() -> None:
    check_item("s", ITEM_LIMIT_BYTES)
    with pytest.raises(LimitExceeded, match="an item of stream 's' takes 1,000,001 bytes"):
        check_item("s", ITEM_LIMIT_BYTES + 1)
    with pytest.raises(StoreDamaged, match="items of stream 's' do not decode"):
        items_of(Batch("s", 0, 1, b"\x01"))


# --- numbers of attempts ----------------------------------------------------------------------------------------------
CALLED = CallStep(0, "s", b"")
LATER = CallStep(1, "t", b"")
FAILURE = failure_of(BAD)
AT = 5.0


def journal(*frames: tuple[Entry | CallStep, ...]) -> History:
    """Fold frames, given as their entries and commands."""
    history = History()
    for each in frames:
        entries = [one for one in each if not isinstance(one, CallStep)]
        commands = [one for one in each if isinstance(one, CallStep)]
        frame = Frame("w", AT, [*entries], [*commands], written=[Batch("s", 0, 1, b"")])
        for entry in frame.entries:
            history.note(entry)  # as the runtime does, before the frame is written
        history.add(frame)
    return history


def claim(epoch: int) -> Claimed:
    return Claimed(AT, epoch, "w", "3.11", "0")


BEGUN = (Accepted(START), claim(1), CALLED)


@pytest.mark.parametrize(
    ("frames", "failed", "number"),
    [
        ([BEGUN], 0, 1),
        ([BEGUN], 2, 3),
        ([BEGUN, (claim(2),)], 0, 2),
        ([BEGUN, (claim(2),), (claim(3),)], 1, 4),
        ([BEGUN, (Attempted(0, AT, 1, FAILURE, 9.0), Released(AT, 9.0)), (claim(2),)], 1, 2),
        ([BEGUN, (Released(AT, AT),), (claim(2),)], 0, 2),
        ([BEGUN, (Paused(AT, "why"), Released(AT)), (claim(2),)], 0, 2),
        ([BEGUN, (Returned(0, AT, b""), Released(AT)), (claim(2),)], 0, 1),
    ],
    ids=["first", "third", "after a death", "after two", "after a wait", "stopped", "paused", "waited for others"],
)
def test_attempt_counts_those_that_were_cut_off(frames: list[Any], failed: int, number: int) -> None:
    assert journal(*frames).attempt_of(0, failed) == number


def test_step_that_is_issued_after_a_death_begins_with_its_first_attempt() -> None:
    history = journal(BEGUN, (claim(2),), (Returned(0, AT, b""), LATER))
    assert history.attempt_of(1, 0) == 1
    history.add(Frame("w", AT, [claim(3)]))
    assert history.attempt_of(1, 0) == 2


@given(st.lists(st.sampled_from(["fails", "dies", "waits", "retried"]), max_size=12))
def test_numbers_of_attempts_of_one_step_only_grow(events: list[str]) -> None:
    history, epoch, failed, generation, numbers = journal(BEGUN), 1, 0, 0, [1]
    for event in events:
        entries: list[Entry] = []
        if event in ("fails", "waits"):
            failed += 1
            entries = [Attempted(0, AT, failed, FAILURE, 9.0)]
        if event == "waits":
            entries.append(Released(AT, 9.0))
            history.add(Frame("w", AT, entries))
            entries = []
        if event == "retried":
            history.add(Frame("w", AT, [Raised(0, AT, FAILURE), Failed(AT, FAILURE, 0)]))
            generation, failed = generation + 1, 0
        if event != "fails":
            epoch += 1
            entries = [claim(epoch)]
        if event == "retried":
            entries.append(Retried(AT, generation, 0, 0, "m", 0, 1))
        history.add(Frame("w", AT, entries, [CALLED] if event == "retried" else []))
        numbers.append(history.attempt_of(0, failed))
    assert numbers == [*range(1, len(numbers) + 1)]


def test_attempt_after_a_completed_generation_is_one_more() -> None:
    ended = (Raised(0, AT, FAILURE), Failed(AT, FAILURE, 0))
    history = journal(BEGUN, ended, (claim(2), Retried(AT, 1, 0, 0, "m", 0, 1), CALLED))
    assert history.attempt_of(0, 0) == 2
    assert journal(BEGUN, (Completed(AT, b""),)).written == {"s": 1}
