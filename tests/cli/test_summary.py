from __future__ import annotations

import json
import sys
from array import array

import pytest

from perdure.cli.summary import (
    MESSAGES_LIMIT,
    SAMPLES_LIMIT,
    Tally,
    banner_text,
    duration_text,
    message_of,
    percentiles,
    summary_object,
    summary_text,
)

BANNER = """\
========================================
Concurrent Workflow Invocations (N=10)
Timeout: 5m0s per workflow
========================================

🚀 Submitting 10 workflow invocations...
"""

SUMMARY = """
========================================
Results Summary
========================================

AsyncWorkflow[user-001] completed:
  Step1: Hello

... (1 more results) ...

Failures:
       2x ValueError: bad
       1x KeyError: 'x'

Total Invocations: 6
✅ Success: 2
❌ Failed: 3
🚫 Cancelled: 1
⏱️  Total Time: 3s
📊 Avg Time per Workflow: 500ms
📈 Throughput: 2.0 workflows/sec
📐 Latency: p50 200ms, p99 400ms"""


def tally_of(*values: object, total: int | None = None) -> Tally:
    tally = Tally(len(values) if total is None else total)
    for value in values:
        tally.complete(value, 0.5)
    tally.seconds = 1.0
    return tally


def test_banner_names_the_number_of_runs_and_their_limit() -> None:
    assert banner_text(10, 300.0) == BANNER
    assert "Timeout: none\n" in banner_text(10, None)


def test_summary_shows_results_failures_counts_and_times() -> None:
    tally = Tally(6)
    tally.complete("AsyncWorkflow[user-001] completed:\n  Step1: Hello", 0.2)
    tally.complete("another", 0.4)
    del tally.samples[1]
    for error in (ValueError("bad"), KeyError("x"), ValueError("bad")):
        tally.fail(error)
    tally.cancel()
    tally.seconds = 3.0
    assert summary_text(tally) == SUMMARY


def test_summary_of_one_line_results_has_no_empty_lines_between_them() -> None:
    assert "\n\na\n1\n\nTotal Invocations: 2\n" in summary_text(tally_of("a", 1))


def test_summary_of_a_run_that_was_ended_early_says_how_many_had_not_ended() -> None:
    text = summary_text(tally_of("a", total=10))
    assert "Total Invocations: 10\n" in text
    assert "Not ended: 9\n" in text


def test_summary_of_nothing_divides_by_nothing() -> None:
    tally = Tally(3)
    assert "Throughput: 0.0" in summary_text(tally)
    assert summary_object(tally)["p50_seconds"] is None


def test_object_holds_the_same_for_programs() -> None:
    tally = tally_of({"a": 1}, "b", total=3)
    tally.fail(ValueError("bad"))
    assert json.loads(json.dumps(summary_object(tally))) == {
        "total": 3,
        "completed": 2,
        "failed": 1,
        "cancelled": 0,
        "seconds": 1.0,
        "average_seconds": 1 / 3,
        "per_second": 3.0,
        "p50_seconds": 0.5,
        "p99_seconds": 0.5,
        "results": [{"a": 1}, "b"],
        "errors": [{"message": "ValueError: bad", "count": 1}],
    }


def test_tally_of_many_runs_keeps_few_results_and_messages() -> None:
    tally = Tally(100_000)
    for number in range(50_000):
        tally.complete(f"result {number}", 0.1)
        tally.fail(ValueError(number))
    assert len(tally.samples) == SAMPLES_LIMIT
    assert len(tally.messages) == MESSAGES_LIMIT
    assert sum(tally.messages.values()) + tally.other_failures == tally.failed == 50_000
    assert sys.getsizeof(tally.latencies) < 50_000 * 10
    assert f"{50_000 - MESSAGES_LIMIT}x other messages" in summary_text(tally)


def test_message_is_one_line_of_bounded_length() -> None:
    assert message_of(ValueError("a\n  b")) == "ValueError: a b"
    assert message_of(ValueError()) == "ValueError"
    assert len(message_of(ValueError("x" * 10_000))) == 1_000


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0µs"),
        (0.00085, "850µs"),
        (0.0506, "50.6ms"),
        (0.505, "505ms"),
        (0.9996, "1s"),
        (1.25, "1.25s"),
        (59.99, "59.99s"),
        (59.999, "1m0s"),
        (300.0, "5m0s"),
        (1800.0, "30m0s"),
        (7205.0, "2h0m5s"),
    ],
)
def test_duration_is_in_the_unit_that_suits_it(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_percentile_is_the_nearest_rank() -> None:
    assert percentiles(array("d", [3.0, 1.0, 2.0, 4.0]), 50, 99) == [2.0, 4.0]
    assert percentiles(array("d", [1.0]), 50, 99) == [1.0, 1.0]
    assert percentiles(array("d", map(float, range(1, 201))), 50, 99) == [100.0, 198.0]


def test_message_of_any_origin_is_one_short_line_without_control_characters() -> None:
    message = message_of(ValueError("\x1b[31mred\n\ttab \x07" + "x" * 1_000_000))
    assert message.startswith("ValueError: \\x1b[31mred tab \\x07xxx")
    assert len(message) < 1_100
    assert message_of(ValueError(" \n ")) == "ValueError"
