"""When schedules tick: cron expressions on the clocks of the world, also where these are set forward and back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core.schedule import Timing
from perdure.errors import InvalidOption
from perdure.operations import ticks
from perdure.operations.ticks import check_timing, due, ticks_after, whole_seconds, zone

BERLIN = ZoneInfo("Europe/Berlin")
"""The clock is set from 2:00 to 3:00 on 2026-03-29, and from 3:00 to 2:00 on 2026-10-25."""


def at(text: str, zone: ZoneInfo | Any = UTC) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=zone).timestamp())


def local(cron: str, after: str, count: int, zone: str = "Europe/Berlin") -> list[str]:
    """The next times, on the clock there."""
    found = islice(ticks_after(Timing(cron=cron, timezone=zone), at(after)), count)
    return [f"{datetime.fromtimestamp(each, ZoneInfo(zone)):%d. %H:%M %z}" for each in found]


def test_time_that_does_not_exist_comes_right_after_the_gap() -> None:
    assert local("30 2 * * *", "2026-03-27T12:00", 3) == ["28. 02:30 +0100", "29. 03:00 +0200", "30. 02:30 +0200"]


def test_several_times_that_do_not_exist_are_one_after_the_gap() -> None:
    assert local("0,20,40 2,3 * * *", "2026-03-29T00:00", 4) == [
        *("29. 03:00 +0200", "29. 03:20 +0200", "29. 03:40 +0200"),
        "30. 02:00 +0200",
    ]


def test_time_that_exists_twice_comes_once() -> None:
    assert local("30 2 * * *", "2026-10-23T12:00", 3) == ["24. 02:30 +0200", "25. 02:30 +0200", "26. 02:30 +0100"]


@pytest.mark.parametrize("after", ["2026-10-25T00:30", "2026-10-25T00:45", "2026-10-25T01:15", "2026-10-25T01:30"])
def test_it_does_not_come_again_for_whoever_asks_between_the_two(after: str) -> None:
    assert local("30 2 * * *", after, 1) == ["26. 02:30 +0100"]


def test_by_the_hour_the_gap_has_no_ticks_and_the_hour_that_comes_twice_has_both() -> None:
    assert local("30 * * * *", "2026-03-29T00:00", 3) == ["29. 01:30 +0100", "29. 03:30 +0200", "29. 04:30 +0200"]
    assert local("30 * * * *", "2026-10-25T00:00", 3) == ["25. 02:30 +0200", "25. 02:30 +0100", "25. 03:30 +0100"]


def test_clock_that_moves_at_midnight_and_by_half_an_hour() -> None:
    assert local("15 0 * * *", "2026-09-05T12:00", 2, "America/Santiago") == ["06. 01:00 -0300", "07. 00:15 -0300"]
    assert local("15 2 * * *", "2026-10-03T00:00", 2, "Australia/Lord_Howe") == ["04. 02:30 +1100", "05. 02:15 +1100"]


def test_days_of_month_and_week_are_those_of_debian() -> None:
    assert local("0 12 1 * MON", "2026-06-01T12:00", 3, "UTC") == [
        *("08. 12:00 +0000", "15. 12:00 +0000", "22. 12:00 +0000"),
    ]
    assert local("0 12 L * *", "2026-02-01T00:00", 2, "UTC") == ["28. 12:00 +0000", "31. 12:00 +0000"]


@pytest.mark.parametrize(
    "cron", ["30 2 * * *", "0 3 * * *", "*/20 * * * *", "15 1-4 * * *", "0 0,2 25-29 * *", "*/30 30 2 * * *"]
)
@given(
    first=st.integers(at("2026-03-28T00:00"), at("2026-03-30T00:00"))
    | st.integers(at("2026-10-24T00:00"), at("2026-10-26T00:00"))
)
def test_ticks_are_the_same_from_wherever_they_are_asked_for(cron: str, first: int) -> None:
    timing = Timing(cron=cron, timezone="Europe/Berlin")
    found = [*islice(ticks_after(timing, first), 6)]
    assert all(one < other for one, other in pairwise([first, *found]))
    for one, other in pairwise(found):
        assert next(ticks_after(timing, one)) == other
    assert next(ticks_after(timing, found[0] - 1)) == found[0]


@given(st.integers(1, 10**7), st.integers(0, 4 * 10**9))
def test_intervals_count_from_the_epoch(every: int, after: int) -> None:
    one, other = islice(ticks_after(Timing(every=every), after), 2)
    assert after < one <= after + every
    assert one % every == 0
    assert other == one + every


@pytest.mark.parametrize(
    ("timing", "why"),
    [
        (Timing(), "give one of the two"),
        (Timing(cron="* * * * *", every=5), "give one of the two"),
        (Timing(every=0), "at least 1"),
        (Timing(every=-5), "at least 1"),
        (Timing(every=10**12), "at least 1"),
        (Timing(every=5, timezone="Europe/Berlin"), "counts in UTC"),
        *((Timing(cron=cron), "give five fields") for cron in ("", "soon", "* * * *", "60 * * * *", "* * * * * * *")),
        *((Timing(cron=cron), "give five fields") for cron in ("*/0 * * * *", "5-1 * * * *", "* * 30 2 *", "@daily")),
        *((Timing(cron=cron), "ASCII") for cron in ("² * * * *", "1," * 200 + "1 * * * *", "\0 * * * *ü")),
        (Timing(cron="0 0 31 2,4,6 *"), "bad day-of-month"),
        (Timing(cron=b"* * * * *"), "as str"),  # type: ignore[arg-type]
        (Timing(cron="* * * * *", timezone=None), "as str"),  # type: ignore[arg-type]
        *(
            (Timing(cron="* * * * *", timezone=name), "no time zone")
            for name in ("Mars/Base", "", ".", "../../etc/passwd", "/etc/passwd", "Europe", "x" * 5_000, "\0", "\ud800")
        ),
    ],
)
def test_what_never_comes_or_cannot_be_understood_is_refused(timing: Timing, why: str) -> None:
    with pytest.raises(InvalidOption, match=why):
        check_timing(timing)


@given(st.text("0123456789*,-/#LW MONFRI", max_size=30).map(lambda text: f"{text} * * * *") | st.text(max_size=40))
def test_no_text_does_more_than_being_refused(cron: str) -> None:
    try:
        check_timing(Timing(cron=cron))
    except InvalidOption:
        return
    assert next(ticks_after(Timing(cron=cron), 0)) > 0


def test_end_of_the_calendar_ends_the_ticks() -> None:
    last = int(datetime(9999, 12, 31, 22, tzinfo=UTC).timestamp())
    assert [*ticks_after(Timing(cron="0 * * * *"), last)] == [last + 3600]
    assert [*ticks_after(Timing(every=3600), last)] == [last + 3600]


def test_intervals_are_whole_seconds() -> None:
    assert (whole_seconds(90.0), whole_seconds(timedelta(hours=1))) == (90, 3600)
    for wrong in (0, 1.5, -1, float("nan"), timedelta(milliseconds=1), "5"):
        with pytest.raises(InvalidOption):
            whole_seconds(wrong)  # type: ignore[arg-type]


def test_zones_are_found_once() -> None:
    assert zone("Europe/Berlin") is zone("Europe/Berlin")


# --- what is due ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("timing", [Timing(every=60), Timing(cron="* * * * *")])
def test_ticks_that_are_too_old_are_counted_and_the_others_decided(timing: Timing) -> None:
    assert due(timing, 0, 600, 0.0) == ([*range(60, 601, 60)], 600, 0)
    assert due(timing, 0, 599, 300.0) == ([300, 360, 420, 480, 540], 599, 4)
    assert due(timing, 0, 599, 300.5) == ([360, 420, 480, 540], 599, 5)
    assert due(timing, 120, 179, 100.0) == ([], 179, 0)
    assert due(timing, 120, 600, 1_000.0) == ([], 600, 8)


@pytest.mark.parametrize("timing", [Timing(every=60), Timing(cron="* * * * *")])
def test_a_long_downtime_is_decided_piece_by_piece_and_counted_up_to_a_limit(
    timing: Timing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ticks, "DECIDED_LIMIT", 3)
    monkeypatch.setattr(ticks, "MISSED_LIMIT", 5)
    assert due(timing, 0, 3_600, 3_300.0) == ([3_300, 3_360, 3_420], 3_420, 5)
    assert due(timing, 3_420, 3_600, 3_300.0) == ([3_480, 3_540, 3_600], 3_600, 0)
