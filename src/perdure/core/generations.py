"""Generations: which part of a journal still holds after retries, and where a retry cuts it.

A retry of a failed invocation supersedes the cause of the failure and everything after it. Nothing is removed from the
journal: a `Retried` entry says how much of it is kept, and this module reads journals accordingly. It does not run the
body: `Turn.retry` finds how many commands the body had issued at the cut.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from perdure.core.journal import (
    Attempted,
    CancelRequested,
    Entry,
    Failed,
    Fired,
    Frame,
    Interrupted,
    Paused,
    Raised,
    Resumed,
    Retried,
    Returned,
)
from perdure.core.values import type_name
from perdure.errors import InvocationTimedOut

_FOR_THE_BODY = (Returned, Raised, Attempted, Fired, Interrupted, CancelRequested)


def current(frames: Sequence[Frame], /) -> Sequence[Frame]:
    """Return the frames that are valid in the current generation, for reading.

    A frame that was cut has the state and cancellations of the frame that follows it.
    """
    if not any(type(entry) is Retried for frame in frames for entry in frame.entries):
        return frames
    held: list[Frame] = []
    for frame in frames:
        if (retried := retry_in(frame)) is not None:
            held = keep(held, retried)
        held.append(frame)
    return held


def replayable(frames: Sequence[Frame], /) -> Sequence[Frame]:
    """Return the frames to replay in the current generation: a frame that was cut is joined with the next one."""
    held = current(frames)
    return held if held is frames else joined(held)


def retry_in(frame: Frame, /) -> Retried | None:
    """Return the retry with which a frame begins, perhaps after a claim."""
    return next((entry for entry in frame.entries if isinstance(entry, Retried)), None)


def keep(held: Sequence[Frame], retried: Retried, /) -> list[Frame]:
    """Return the frames that a retry keeps of those that were current before it; the last one is the one it cuts."""
    cut = held[retried.frames]
    commands = [command for command in cut.commands if command.n < retried.issued]
    entries = cut.entries[: retried.entries]
    kept = [*held[: retried.frames], Frame(cut.writer, cut.at, entries, commands, written=cut.written)]
    return _without_held(kept, retried.cause)


def joined(held: Sequence[Frame], /) -> list[Frame]:
    """Return frames as they are replayed: one that was cut continues in the next."""
    whole: list[Frame] = []
    for frame in held:
        if retry_in(frame) is None:
            whole.append(frame)
            continue
        before = whole.pop()
        entries, commands = [*before.entries, *frame.entries], [*before.commands, *frame.commands]
        written = [*before.written, *frame.written]
        whole.append(replace(frame, entries=entries, commands=commands, written=written))
    return whole


class Cut(Struct, frozen=True):
    """Where a retry cuts the current frames. `later` are the facts for the body that were delivered after that.

    `causes` are the commands whose failures made the invocation fail; the cut is before the first of them. Without
    causes, the journal is kept to its end. `is_end`: nothing was issued after the cut. `at` is when the superseded part
    began. `unwanted` are causes that came after the cut too, of commands that the body had asked to end.
    """

    frames: int
    entries: int
    causes: tuple[int, ...]
    later: tuple[Entry, ...]
    at: float
    is_end: bool = False
    unwanted: tuple[int, ...] = ()


def cut_of(held: Sequence[Frame], failed: Failed, /) -> Cut:
    """Find where to cut the current frames of an invocation that has failed.

    If the body raised the failure of a command, the cut is before that failure; of several, before the one delivered
    first. If the time limit had passed, it is before that. Otherwise the body itself raised, and everything is kept but
    the last ends of what it had cancelled, which the body may not request again when it runs with other code.
    """
    delivered = _in_order_of_delivery(held)
    left = _before_unwanted(held, delivered)
    causes = failed.causes or ([] if failed.cause is None else [failed.cause])
    timed_out = not causes and failed.failure.type == type_name(InvocationTimedOut)
    for index, (place, entry) in enumerate(delivered):
        later = delivered[index + 1 :]
        if index == left:
            break
        if isinstance(entry, Raised) and entry.n in causes:
            first = (entry.n, *(n for n in causes if n != entry.n))
            return Cut(*place, first, tuple(each for _, each in later), entry.at)
        if timed_out and isinstance(entry, CancelRequested) and entry.timed_out:
            return Cut(*place, (), tuple(each for _, each in later), entry.at)
    return _cut_at_the_end(held, delivered, left, failed.at, tuple(causes))


def _cut_at_the_end(
    held: Sequence[Frame], delivered: Sequence[_Delivered], left: int, at: float, causes: tuple[int, ...]
) -> Cut:
    if left == len(delivered):
        return Cut(len(held) - 1, len(held[-1].entries) - 1, (), (), at, is_end=True)  # all but the outcome
    later = tuple(each for _, each in delivered[left:])
    if left == 0:  # requested before any fact
        began = _began(held)
        return Cut(began, _entries_before_facts(held[began]), (), later, at, unwanted=causes)
    (number, index), before = delivered[left - 1]
    is_there = held[number].entries[index : index + 1] == [before]  # and did not wait for the end of a pause
    return Cut(number, index + is_there, (), later, at, unwanted=causes)


def _before_unwanted(held: Sequence[Frame], delivered: Sequence[_Delivered]) -> int:
    """Count the facts before the last ones, which are answers to what the body had asked to end.

    If the body issued more after that, only interruptions are such.
    """
    asked = {n for frame in held for n in frame.cancels}
    left = len(delivered)
    while left and isinstance(entry := delivered[left - 1][1], (Returned, Raised, Interrupted)) and entry.n in asked:
        left -= 1
    cut = delivered[left - 1][0][0] if left else _began(held)
    if left == len(delivered) or not any(frame.commands for frame in held[cut + 1 :]):
        return left
    left = len(delivered)
    while left and isinstance(entry := delivered[left - 1][1], Interrupted) and entry.n in asked:
        left -= 1
    return left


def _began(held: Sequence[Frame]) -> int:
    """Return the number of the frame in which the body began."""
    return next((number for number, frame in enumerate(held) if frame.commands), 0)


def _entries_before_facts(frame: Frame) -> int:
    facts = (index for index, entry in enumerate(frame.entries) if isinstance(entry, _FOR_THE_BODY))
    return next(facts, len(frame.entries))


_Place = tuple[int, int]
_Delivered = tuple[_Place, Entry]
"""A fact for the body, or a retry, and its position in the journal."""


def _in_order_of_delivery(held: Sequence[Frame]) -> list[_Delivered]:
    """Return the facts for the body in the order of delivery: those of a pause come after it."""
    delivered: list[_Delivered] = []
    waiting: list[Entry] = []
    paused = False
    for number, frame in enumerate(held):
        for index, entry in enumerate(frame.entries):
            if isinstance(entry, Paused):
                paused = True
            elif isinstance(entry, Resumed):
                delivered += [((number, index + 1), each) for each in waiting]
                waiting, paused = [], False
            elif isinstance(entry, Retried):
                waiting, paused = [], False
                delivered.append(((number, index), entry))
            elif isinstance(entry, Attempted) or (isinstance(entry, _FOR_THE_BODY) and not paused):
                delivered.append(((number, index), entry))
            elif isinstance(entry, _FOR_THE_BODY):
                waiting.append(entry)
    return delivered


def _without_held(kept: list[Frame], cause: int | None) -> list[Frame]:
    """Leave out a failure that arrived during a pause and all later facts: the cut is between them."""
    places = [
        (number, index)
        for number, frame in enumerate(kept)
        for index, entry in enumerate(frame.entries)
        if cause is not None and isinstance(entry, Raised) and entry.n == cause
    ]
    if not places:
        return kept
    first, after = places[0]
    for number in range(first, len(kept)):
        entries = [
            entry
            for index, entry in enumerate(kept[number].entries)
            if not isinstance(entry, _FOR_THE_BODY)
            or isinstance(entry, Attempted)
            or (number == first and index < after)
        ]
        kept[number] = replace(kept[number], entries=entries)
    return kept
