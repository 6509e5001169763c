"""Decides what to tell the index of what an invocation waits for. Pure."""

from __future__ import annotations

from perdure.core.journal import CallStep, SetTimer, step_type
from perdure.core.turn import Turn
from perdure.stores.waits import Wait

A_WORKER = "a worker"
"""What an invocation waits for that its worker gave up, since it stops."""
NOTHING = "something that nothing can bring: its body waits at"


def wait_of(turn: Turn | None, at: float, *, at_rest: bool) -> Wait | None:
    """Return what a body waits for; None if it is paused, or has not begun.

    A step that is tried again comes first, and is all that is told of a body that is not at rest; then the oldest
    command; and timers only if there is nothing else.
    """
    if turn is None or turn.paused or not turn.begun:
        return None
    waits = [
        each
        for each in turn.pending.values()
        if type(each.command) is not SetTimer and (each.future is None or not each.future.done())
    ]
    failed = [each for each in waits if each.attempts]
    if failed:
        again = min(failed, key=lambda each: each.retry_due)
        assert isinstance(again.command, CallStep)
        return Wait(again.command.name, again.since, again.retry_due, again.attempts + 1, len(waits) - 1)
    if not at_rest:
        return None
    if waits:
        return Wait(step_type(waits[0].command), waits[0].since, more=len(waits) - 1)
    if (stuck_at := turn.stuck_at) is not None:
        return Wait(f"{NOTHING} {stuck_at}", at)
    timers = [(each.command, each.since) for each in turn.pending.values() if isinstance(each.command, SetTimer)]
    if not timers:
        return None
    timer, since = min(timers, key=lambda each: each[0].due)
    return Wait(step_type(timer), since, timer.due, more=len(timers) - 1)
