"""Checks on replay: whether the code does what its journal recorded."""

from __future__ import annotations

from msgspec import Struct

from perdure.core.journal import Cancelled, Command, Frame, Outcome, describe
from perdure.core.pending import Ready


class Divergence(Struct, frozen=True):
    """The first difference between the code and its journal: both sides, as text."""

    recorded: str
    issued: str

    def __str__(self) -> str:
        return f"the journal has {self.recorded}, the code now asks for {self.issued}"


def left_over(command: Command, /) -> Divergence:
    """Return the divergence of code that did not issue a recorded command."""
    return Divergence(describe(command), "nothing there")


def difference(ready: Ready, frame: Frame, /) -> Divergence | None:
    """Compare state, cancellations and end of a body with those that a frame recorded."""
    if ready.state != frame.state:
        return Divergence(f"changes of state {sorted(frame.state)}", f"{sorted(ready.state)}, or other values")
    forced = is_forced(frame.outcome)
    if ready.cancels != frame.cancels and not forced:
        return Divergence(f"an end asked for commands {frame.cancels}", f"that of {ready.cancels}")
    if type(ready.outcome) is not type(frame.outcome) and not forced:
        return Divergence(_describe_outcome(frame.outcome), _describe_outcome(ready.outcome))
    return None


def is_forced(outcome: Outcome | None, /) -> bool:
    """Report whether an invocation was cancelled by force, which the body does not see."""
    return isinstance(outcome, Cancelled) and outcome.forced


def _describe_outcome(outcome: Outcome | None) -> str:
    return "no end of the body here" if outcome is None else f"the body's end here, {type(outcome).__name__.lower()}"
