"""Cancels an invocation whose body has not begun: there is nothing to clean up, so no worker is needed."""

from __future__ import annotations

from perdure.core.effects import Effects, effects_of
from perdure.core.history import History
from perdure.core.journal import Accepted, Cancelled, Frame, Message, Start


def cancelled_unbegun(start: Start, message: Message, writer: str, at: float, /) -> tuple[Frame, Effects]:
    """Return the only frame of such an invocation, which answers `message`, and its effects."""
    frame = Frame(writer, at, [Accepted(start), Cancelled(at, message=message.id)])
    return frame, effects_of(start, frame, History.of([frame]))
