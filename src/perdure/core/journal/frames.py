"""Frames: what one commit adds to a journal."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from perdure.core.journal.commands import Command
from perdure.core.journal.entries import Cancelled, Completed, Entry, Failed, Outcome
from perdure.core.streams import Batch


class Frame(Struct, frozen=True, array_like=True, gc=False):
    """What one commit added to a journal: entries, the commands issued in answer, and changes of state.

    `writer` names the worker that wrote it: after a write with an unknown outcome it tells our frame from another
    worker's. `state` maps a name to its encoded value, or to None if it was deleted. `cancels` are the commands that
    the body asked to end. `at` is when the frame was written. `written` is what the body wrote to streams.
    """

    writer: str
    at: float
    entries: list[Entry]
    commands: list[Command] = []
    state: dict[str, bytes | None] = {}
    cancels: list[int] = []
    written: list[Batch] = []

    @property
    def outcome(self) -> Outcome | None:
        """The outcome, if this frame settles its invocation."""
        last = self.entries[-1] if self.entries else None
        return last if type(last) is Completed or type(last) is Failed or type(last) is Cancelled else None


encode_frame = msgspec.msgpack.Encoder().encode
