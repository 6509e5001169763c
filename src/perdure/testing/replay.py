"""Replay of an exported history: a journal of production as a regression test. No store, no worker, no step runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from perdure.authoring.context import Context
from perdure.authoring.workflow import Workflow
from perdure.connect import make_stub, opened_history, translators_in_use
from perdure.core.exported import Loaded, load
from perdure.core.history import History
from perdure.core.journal import Cancelled, Failed, Frame
from perdure.core.turn import Turn
from perdure.errors import Diverged, InvalidOption, PerdureError

if TYPE_CHECKING:
    from perdure.encryption import Codec


def replay(workflow: Workflow[..., Any], history: bytes | str, /, *, codec: Codec | None = None) -> None:
    """Run a workflow's body over a history from `Handle.export`, and raise `Diverged` if it no longer fits.

    Its `journal` and `code` are the two sides. An input or result that no longer decodes is a divergence too: it would
    pause the invocation. A history whose values are sealed needs the `codec` of its store, or PERDURE_KEYS_FILE. Raises
    `Undecodable` if it is no exported history, `InvalidOption` for one of another
    workflow. Call it from sync or async tests::

        @pytest.mark.parametrize("path", Path("tests/histories").glob("checkout-*.json"), ids=str)
        def test_invocations_that_are_under_way_fit_the_code(path):
            replay(checkout, path.read_bytes())
    """
    loaded = opened_history(load(history), codec)
    start = loaded.start
    if start.handler not in (workflow.name, *workflow.aliases):
        raise InvalidOption(
            f"the history is one of workflow {start.handler!r}, not of {workflow.name!r}; "
            "if that was renamed, name the old one among its aliases"
        )
    # In a thread of its own, since a task of the turn cannot be entered while one of an async test is.
    with ThreadPoolExecutor(1, thread_name_prefix="perdure-replay") as thread:
        thread.submit(_replay, workflow, loaded).result()


def _replay(workflow: Workflow[..., Any], loaded: Loaded) -> None:
    start, frames = loaded.start, loaded.frames
    try:
        body = workflow.body(start)
    except PerdureError as error:
        raise _diverged(loaded, "its input", f"another: {error}") from error
    if frames and ended_without_its_body(frames):
        frames = frames[:-1]
    turn = _ExportedTurn(
        start,
        body,
        workflow.encode_result,
        secret=b"",
        translators=translators_in_use,
        stubs=make_stub,
        context=Context,
    )
    turn.awakeables = loaded.awakeables
    try:
        turn.replay(frames)
        divergence = turn.divergence
    finally:
        turn.close()
    if divergence is not None:
        raise _diverged(loaded, divergence.recorded, divergence.issued)


def ended_without_its_body(frames: Sequence[Frame]) -> bool:
    """Report whether the outcome is not one of the body: cancelled by force or before it began, or late for its key."""
    match frames[-1].outcome:
        case Cancelled(forced=forced, message=message):
            return forced or message is not None  # a cancellation that the body took part in names no message
        case Failed():
            return History.of(frames).waits_for_key
        case _:
            return False


class _ExportedTurn(Turn):
    """A turn that knows the ids of its awakeables, and not the secret behind them."""

    awakeables: dict[tuple[int, int], str]

    def name_awakeable(self, generation: int, n: int) -> str:
        known = self.awakeables.get((generation, n))
        return known if known is not None else super().name_awakeable(generation, n)


def _diverged(loaded: Loaded, journal: str, code: str) -> Diverged:
    id, python = loaded.start.id, f"{sys.version_info.major}.{sys.version_info.minor}"
    recorded = History.of(loaded.frames).python
    hint = f" (recorded by Python {recorded}, now {python})" if recorded and recorded != python else ""
    text = f"the code diverges from the history of invocation {id!r}: it has {journal}, the code now asks for {code}"
    return Diverged(text + hint, invocation_id=id, journal=journal, code=code)
