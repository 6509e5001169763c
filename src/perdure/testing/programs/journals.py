"""What must hold of the journal of every invocation that has ended, whatever happened to its workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from perdure.core.history import History
from perdure.core.journal import Accepted, Claimed, Frame, Released, Retried, Returned


def flaws(frames: Sequence[Frame]) -> Iterator[str]:
    """Say what is wrong: accepted once, settled once and last, every answer once, epochs rising, one writer a claim."""
    entries = [entry for frame in frames for entry in frame.entries]
    if sum(isinstance(entry, Accepted) for entry in entries) != 1:
        yield "it is not accepted once"
    epochs = [entry.epoch for entry in entries if isinstance(entry, Claimed)]
    if epochs != sorted(set(epochs)):
        yield f"epochs {epochs}"
    retried = any(isinstance(entry, Retried) for entry in entries)
    answered = [entry.n for entry in entries if isinstance(entry, Returned)]
    if len(answered) != len(set(answered)) and not retried:
        yield f"answered twice: {answered}"
    outcomes = [place for place, frame in enumerate(frames) if frame.outcome is not None]
    if outcomes != [len(frames) - 1] and not retried:
        yield f"settled by the frames {outcomes} of {len(frames)}"
    if History.of(frames).outcome is None:
        yield "it has not ended"
    owner = ""
    for frame in frames:  # after a claim, only the claimant writes, until he lets go
        claimed = any(isinstance(entry, Claimed) for entry in frame.entries)
        if not claimed and owner not in ("", frame.writer):
            yield f"{frame.writer} wrote into what {owner} had claimed"
        released = bool(frame.entries) and isinstance(frame.entries[-1], Released)
        owner = "" if released or frame.outcome is not None else frame.writer
