"""What schedules decide: where runs are placed while another has not ended, and what is kept of them."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from perdure.core import schedule
from perdure.core.schedule import (
    Cause,
    Overlap,
    Plan,
    Record,
    Run,
    Timing,
    arrange,
    carried_out,
    carried_over,
    check_schedule_name,
    decode_record,
    delay_of,
    encode_record,
    is_same_plan,
    must_cancel,
    tick_id,
    trigger_id,
)
from perdure.errors import BadId

NOW = 1_800_000_000.0
PLAN = Plan(Timing(cron="* * * * *"), "report", b"input", b"digest")


def record(overlap: Overlap = "skip", **fields: Any) -> Record:
    return Record(replace(PLAN, overlap=overlap), NOW, NOW, int(NOW), **fields)


def runs(*ids: str, cause: Cause = "tick") -> tuple[Run, ...]:
    return tuple(Run(id, int(NOW), cause) for id in ids)


def names(found: tuple[Run, ...] | list[Run]) -> str:
    return "".join(each.id for each in found)


# --- the overlap rule -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("overlap", "busy", "starting", "waiting", "skipped"),
    [
        ("skip", False, "a", "", "bc"),
        ("skip", True, "", "", "abc"),
        ("queue", False, "a", "bc", ""),
        ("queue", True, "", "abc", ""),
        ("cancel", False, "a", "c", "b"),
        ("cancel", True, "", "c", "ab"),
        ("allow", False, "abc", "", ""),
        ("allow", True, "abc", "", ""),
    ],
)
def test_ticks_are_placed_by_the_overlap_rule(
    overlap: Overlap, busy: bool, starting: str, waiting: str, skipped: str
) -> None:
    placed, left_out = arrange(record(overlap), runs("a", "b", "c"), NOW, busy=busy)
    assert (names(placed.starting), names(placed.waiting), names(left_out)) == (starting, waiting, skipped)
    assert placed.skipped == len(skipped)
    assert placed.starting_since == (NOW if starting else 0.0)


@pytest.mark.parametrize("overlap", ["skip", "queue", "cancel"])
def test_what_waits_goes_first_and_one_at_a_time(overlap: Overlap) -> None:
    before = record(overlap, waiting=runs("a", "b", cause="backfill"))
    placed, _ = arrange(before, (), NOW, busy=False)
    assert (names(placed.starting), names(placed.waiting)) == ("a", "b")
    still, _ = arrange(before, (), NOW, busy=True)
    assert still == before
    paused = replace(before, paused_at=NOW)
    assert arrange(paused, (), NOW, busy=False)[0] == paused
    triggered = replace(paused, waiting=runs("t", cause="trigger") + before.waiting)
    placed, _ = arrange(triggered, (), NOW, busy=False)
    assert (names(placed.starting), names(placed.waiting)) == ("t", "ab")


def test_where_runs_may_overlap_all_that_waits_starts_at_once() -> None:
    placed, _ = arrange(record("allow", waiting=runs("a", "b")), runs("c"), NOW, busy=True)
    assert (names(placed.starting), placed.waiting) == ("abc", ())


def test_tick_that_comes_while_another_is_to_be_started_is_placed_as_if_that_ran() -> None:
    before = record(starting=runs("a"), starting_since=NOW - 5)
    placed, skipped = arrange(before, runs("b"), NOW, busy=False)
    assert (names(placed.starting), names(skipped), placed.starting_since) == ("a", "b", NOW - 5)


def test_queue_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "WAITING_LIMIT", 2)
    placed, skipped = arrange(record("queue"), runs("a", "b", "c"), NOW, busy=True)
    assert (names(placed.waiting), names(skipped)) == ("ab", "c")


def test_newest_tick_overtakes_a_backfill_and_replaces_what_waits_besides() -> None:
    before = record("cancel", waiting=runs("t", cause="trigger") + runs("x", "y", cause="backfill"))
    placed, skipped = arrange(before, runs("a"), NOW, busy=True)
    assert (names(placed.waiting), names(skipped)) == ("axy", "t")


def test_only_a_tick_or_a_trigger_cancels_what_runs() -> None:
    assert must_cancel(record("cancel", waiting=runs("a")))
    assert must_cancel(record("cancel", waiting=runs("a", cause="trigger")))
    assert not must_cancel(record("cancel", waiting=runs("a", cause="backfill")))
    assert not must_cancel(record("cancel"))
    assert not must_cancel(record("queue", waiting=runs("a")))
    assert not must_cancel(record("cancel", waiting=runs("a"), paused_at=NOW))
    assert must_cancel(record("cancel", waiting=runs("a", cause="trigger"), paused_at=NOW))


# --- what is kept -----------------------------------------------------------------------------------------------------
def test_runs_that_were_started_are_remembered_the_last_ones() -> None:
    before = record(starting=runs("a", "b"), starting_since=NOW, runs=tuple("0123456789"))
    after = carried_out(before, ["a"])
    assert after.runs == (*"123456789", "b")
    assert (after.starting, after.starting_since, after.started, after.refused) == ((), 0.0, 1, 1)


def test_ticks_that_no_worker_got_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "WAITING_LIMIT", 2)
    before = record(waiting=runs("a"))
    after = carried_over("n", before, [1, 2, 3], 4, NOW + 60)
    assert names(after.waiting) == "an@1970-01-01T00:00:01Z"
    assert (after.cursor, after.missed) == (int(NOW) + 60, 6)
    assert carried_over("n", before, [], 0, NOW - 60) == before  # the clock was set back


def test_record_survives_its_encoding() -> None:
    full = record("queue", paused_at=NOW, note="ü", starting=runs("a"), waiting=runs("b", cause="trigger"))
    assert decode_record(encode_record(full)) == full
    assert decode_record(encode_record(record())) == record()


def test_equal_plans_are_told_by_the_digest_of_the_input() -> None:
    assert is_same_plan(PLAN, replace(PLAN, input=b"the same, encoded by another caller"))
    assert not is_same_plan(PLAN, replace(PLAN, digest=b"other"))
    assert not is_same_plan(PLAN, replace(PLAN, timing=Timing(cron="*/2 * * * *")))
    assert not is_same_plan(PLAN, replace(PLAN, interface=b"of a newer release"))
    without = replace(PLAN, digest=b"")
    assert is_same_plan(without, replace(without))
    assert not is_same_plan(without, replace(without, input=b"other"))


# --- names ------------------------------------------------------------------------------------------------------------
def test_id_of_a_tick_names_its_schedule_and_its_time() -> None:
    assert tick_id("nightly", 1_800_000_000) == "nightly@2027-01-15T08:00:00Z"
    assert trigger_id("nightly", 1_800_000_000.9, b"\x01\xff") == "nightly@2027-01-15T08:00:00Z-01ff"


@pytest.mark.parametrize("name", ["", ".", "..", "a\n", "a" * 161, 5])
def test_name_that_cannot_be_kept_is_refused(name: Any) -> None:
    with pytest.raises(BadId):
        check_schedule_name(name)


@pytest.mark.parametrize("name", ["nightly", "a/b", "ada@example.org", "ü", "a" * 160])
def test_any_other_name_will_do(name: str) -> None:
    assert check_schedule_name(name) == name


def test_jitter_is_the_same_for_one_tick_and_differs_between_ticks() -> None:
    assert delay_of("n", 1, 0.0) == 0.0
    found = [delay_of("n", instant, 60.0) for instant in range(200)]
    assert found == [delay_of("n", instant, 60.0) for instant in range(200)]
    assert all(0 <= each < 60 for each in found)
    assert len({*found}) == 200
    assert min(found) < 5
    assert max(found) > 55
