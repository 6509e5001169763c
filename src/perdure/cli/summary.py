"""The outcomes of many runs, counted in bounded memory, and the text of the summary."""

from __future__ import annotations

import math
from array import array
from typing import Any

from perdure.cli.values import as_builtin, to_text

SAMPLES_LIMIT = 3
"""Results that are kept for display."""
MESSAGES_LIMIT = 5
"""Different error messages that are kept; the others are only counted."""
TEXT_LIMIT = 1_000
"""Characters of a result or message that are shown."""

RULE = "=" * 40


class Tally:
    """Counts the outcomes of runs. It keeps a few results and messages, and eight bytes for each completed run."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.completed = 0
        self.failed = 0
        self.cancelled = 0
        self.seconds = 0.0
        self.latencies = array("d")
        self.samples: list[Any] = []
        self.messages: dict[str, int] = {}
        self.other_failures = 0

    @property
    def ended(self) -> int:
        return self.completed + self.failed + self.cancelled

    @property
    def per_second(self) -> float:
        return self.ended / self.seconds if self.seconds else 0.0

    @property
    def average_seconds(self) -> float:
        return self.seconds / self.ended if self.ended else 0.0

    def complete(self, value: Any, seconds: float) -> None:
        self.completed += 1
        self.latencies.append(seconds)
        if len(self.samples) < SAMPLES_LIMIT:
            self.samples.append(value)

    def fail(self, error: BaseException) -> None:
        self.failed += 1
        message = message_of(error)
        if message in self.messages or len(self.messages) < MESSAGES_LIMIT:
            self.messages[message] = self.messages.get(message, 0) + 1
        else:
            self.other_failures += 1

    def cancel(self) -> None:
        self.cancelled += 1


def message_of(error: BaseException) -> str:
    """Return the class and the text of an exception, in one line."""
    text = str(error)
    return one_line(f"{type(error).__name__}: {text}" if text.strip() else type(error).__name__)


def one_line(text: str) -> str:
    """Return any text as one short line without control characters."""
    cut = _shortened(" ".join(text[: 2 * TEXT_LIMIT].split()))
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in cut)


# --- as text ----------------------------------------------------------------------------------------------------------
def banner_text(total: int, timeout: float | None) -> str:
    """Return the text above a batch."""
    limit = "none" if timeout is None else f"{duration_text(timeout)} per workflow"
    title = f"Concurrent Workflow Invocations (N={total})"
    return f"{RULE}\n{title}\nTimeout: {limit}\n{RULE}\n\n🚀 Submitting {total} workflow invocations...\n"


def summary_text(tally: Tally) -> str:
    """Return the text below a batch."""
    lines = ["", RULE, "Results Summary", RULE, ""]
    samples = [_shortened(to_text(value)) for value in tally.samples]
    if tally.completed > len(samples):
        samples.append(f"... ({tally.completed - len(samples)} more results) ...")
    if samples:
        apart = "\n\n" if any("\n" in sample for sample in samples) else "\n"
        lines += [apart.join(samples), ""]
    if tally.messages:
        lines += ["Failures:", *(f"  {count:>6}x {message}" for message, count in tally.messages.items())]
        if tally.other_failures:
            lines.append(f"  {tally.other_failures:>6}x other messages")
        lines.append("")
    lines += [f"Total Invocations: {tally.total}", f"✅ Success: {tally.completed}", f"❌ Failed: {tally.failed}"]
    if tally.cancelled:
        lines.append(f"🚫 Cancelled: {tally.cancelled}")
    if tally.ended < tally.total:
        lines.append(f"⏳ Not ended: {tally.total - tally.ended}")
    lines += [
        f"⏱️  Total Time: {duration_text(tally.seconds)}",
        f"📊 Avg Time per Workflow: {duration_text(tally.average_seconds)}",
        f"📈 Throughput: {tally.per_second:,.1f} workflows/sec",
    ]
    if tally.latencies:
        p50, p99 = (duration_text(seconds) for seconds in percentiles(tally.latencies, 50, 99))
        lines.append(f"📐 Latency: p50 {p50}, p99 {p99}")
    return "\n".join(lines)


def duration_text(seconds: float) -> str:
    """Return a duration in the unit that suits it: 850µs, 50.7ms, 1.25s, 5m0s, 2h0m5s."""
    if seconds < 0.0009995:
        return f"{seconds * 1e6:.0f}µs"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.3g}ms"
    if seconds < 59.995:
        return f"{seconds:.2f}".rstrip("0").rstrip(".") + "s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60}m{rest}s"


def percentiles(values: array[float], *percents: int) -> list[float]:
    """Return percentiles of the values, by nearest rank."""
    ordered = sorted(values)
    return [ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] for percent in percents]


def _shortened(text: str) -> str:
    return text if len(text) <= TEXT_LIMIT else text[: TEXT_LIMIT - 1] + "…"


# --- as JSON ----------------------------------------------------------------------------------------------------------
def summary_object(tally: Tally) -> dict[str, Any]:
    """Return the summary for programs. Times are in seconds."""
    p50, p99 = percentiles(tally.latencies, 50, 99) if tally.latencies else (None, None)
    return {
        "total": tally.total,
        "completed": tally.completed,
        "failed": tally.failed,
        "cancelled": tally.cancelled,
        "seconds": tally.seconds,
        "average_seconds": tally.average_seconds,
        "per_second": tally.per_second,
        "p50_seconds": p50,
        "p99_seconds": p99,
        "results": [as_builtin(value) for value in tally.samples],
        "errors": [{"message": message, "count": count} for message, count in tally.messages.items()],
    }
