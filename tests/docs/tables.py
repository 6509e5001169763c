"""What the documentation shows of the code itself. `make docs-tables` writes it anew, and a test compares it."""

from __future__ import annotations

from pathlib import Path

from perdure import errors
from perdure.core import lifecycle
from perdure.http import approvals, inbound, schedules
from perdure.http.api import ROUTES
from perdure.http.metrics import METRICS

DOCS = Path(__file__).resolve().parents[2] / "docs"


def transitions() -> str:
    """The table of transitions."""
    return lifecycle.diagram() + "\n"


def tree() -> str:
    """The tree of errors, as the docstring of its module draws it."""
    drawn = (errors.__doc__ or "").partition("::\n\n")[2].partition("\n\nThe first argument")[0]
    return "".join(f"{line.removeprefix('    ')}\n" for line in drawn.splitlines())


def routes() -> str:
    """The routes of the HTTP API."""
    found = (*ROUTES, *schedules.ROUTES, *inbound.ROUTES, *approvals.ROUTES)
    width = max(len(each.path) for each in found)
    return "".join(
        f"{each.method:6} {each.path:{width}} {each.role:8} {each.summary.partition('. ')[0].rstrip('.')}\n"
        for each in found
    )


def metrics() -> str:
    """The metrics."""
    return "".join(
        f"{each.shown_name}{{{', '.join(each.labels)}}} {each.kind}\n    {each.help}\n".replace("{}", "")
        for each in METRICS
    )


TABLES = {
    "reference/statuses.md": transitions,
    "reference/errors.md": tree,
    "reference/http.md": routes,
    "reference/metrics.md": metrics,
}
"""Each is the one text block of its page."""


def main() -> None:
    for page, table in TABLES.items():
        path = DOCS / page
        before, _, rest = path.read_text().partition("```text\n")
        path.write_text(f"{before}```text\n{table()}{rest[rest.index('```') :]}")


if __name__ == "__main__":
    main()
