from __future__ import annotations

from typing import get_args

import pytest

from perdure.core.journal import Status
from perdure.core.lifecycle import SETTLED, TABLE, Event, Verb, diagram, refusal, refusing_status

STATUSES: tuple[Status, ...] = get_args(Status)
EVENTS: tuple[Event, ...] = get_args(Event)
VERBS: tuple[Verb, ...] = get_args(Verb)

LEGAL = """
    scheduled due     pending      scheduled run           running    scheduled pause         paused
    scheduled cancel  cancelled    pending   run           running    pending   pause         paused
    pending   cancel  pending      pending   end_cancelled cancelled  running   suspend       suspended
    running   pause   paused       running   cancel        running    running   complete      completed
    running   fail    failed       running   end_cancelled cancelled  suspended run           running
    suspended pause   paused       suspended cancel        suspended  suspended end_cancelled cancelled
    paused    resume  running      paused    cancel        paused     paused    end_cancelled cancelled
    failed    retry   running
"""
WORDS = LEGAL.split()
MOVES = {
    (status, event): following for status, event, following in zip(WORDS[::3], WORDS[1::3], WORDS[2::3], strict=True)
}


def test_the_table_allows_these_moves_and_no_others():
    assert {(status, event): TABLE[status][event] for status in TABLE for event in TABLE[status]} == MOVES


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("verb", VERBS)
def test_what_the_table_does_not_allow_is_refused_with_the_status(status: Status, verb: Verb):
    reason = refusal(status, verb)
    if (status, verb) in MOVES:
        assert reason is None
    else:
        assert reason is not None
        assert reason.startswith(f"it is {status}, and only a ")
        assert refusing_status(reason) == status


def test_refusals_read_well_and_other_reasons_are_none():
    assert refusal("completed", "retry") == "it is completed, and only a failed invocation can be retried"
    assert refusal("paused", "pause") == (
        "it is paused, and only a scheduled, pending, running or suspended invocation can be paused"
    )
    assert refusing_status("the value has the wrong shape") is None


def test_every_status_has_a_row_and_every_event_a_use():
    assert set(TABLE) == set(STATUSES)
    assert {event for events in TABLE.values() for event in events} == set(EVENTS)


def test_only_a_retry_leaves_a_settled_status():
    assert {"completed", "failed", "cancelled"} == SETTLED
    assert [(status, [*TABLE[status]]) for status in TABLE if status in SETTLED] == [
        ("completed", []),
        ("failed", ["retry"]),
        ("cancelled", []),
    ]


def test_every_status_is_reached_and_every_unsettled_one_can_end():
    def reached(status: Status) -> set[Status]:
        seen: list[Status] = [status]
        for one in seen:
            for following in TABLE[one].values():
                if following not in seen:
                    seen.append(following)
        return set(seen)

    assert reached("scheduled") | {"scheduled"} == set(STATUSES)
    for status in set(STATUSES) - SETTLED:
        assert reached(status) >= SETTLED


def test_the_diagram_has_a_line_for_every_status():
    lines = diagram().splitlines()
    assert [line.split()[0] for line in lines] == list(TABLE)
    assert lines[0] == "scheduled  due -> pending, pause -> paused, cancel -> cancelled, run -> running"
    assert lines[5] == "completed  (for ever)"
