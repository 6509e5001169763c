"""What a start does that finds its key held: it waits, is turned away, or ends those before it.

A store asks when it puts the start into the queue of its key, and stores the messages that this calls for. They are
the decision: durable, and with ids that follow from the start, so that one repeated after a crash changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from perdure.core.failures import Failure, failure_of
from perdure.core.journal import Busy, Cancel, Failed, Message, Start
from perdure.errors import InvalidOption, KeyBusy

WhenBusy = Literal["enqueue", "reject", "interrupt", "rollback"]

_RULES: frozenset[object] = frozenset(get_args(WhenBusy))


def check_when_busy(rule: str, /) -> str:
    """Return a rule, or raise `InvalidOption` if there is none of this name."""
    if rule not in _RULES:
        raise InvalidOption(f"when_busy={rule!r}: give one of {', '.join(map(repr, get_args(WhenBusy)))}")
    return rule


def called_for(start: Start, ahead: Sequence[str], at: float, /) -> list[Message]:
    """Return the messages that a start calls for which others are `ahead` of: the holder of its key first.

    If one of them is to the start itself, it is turned away, and needs no position in the queue.
    """
    requests: dict[str, Busy | Cancel] = {}
    if start.when_busy == "reject":
        requests = {start.id: Busy(ahead[0])} if ahead else {}
    elif start.when_busy != "enqueue":
        requests = dict.fromkeys(ahead, Cancel(rollback=start.when_busy == "rollback"))
    return [Message(f"busy:{start.id}:{to}", to, at, request, start.trace) for to, request in requests.items()]


def turned_away(start: Start, busy: Busy, at: float, /) -> Failed:
    """Return the outcome of a start that is turned away."""
    assert start.key is not None
    return Failed(at, _failure(start.key, busy.holder))


def is_of_the_store(failure: Failure, /) -> bool:
    """Report whether a failure is that of a start that was turned away, with nothing in it but the names."""
    key, holder = failure.fields.get("key"), failure.fields.get("holder")
    return isinstance(key, str) and isinstance(holder, str) and failure == _failure(key, holder)


def _failure(key: str, holder: str) -> Failure:
    return failure_of(KeyBusy(f"key {key!r} is busy: invocation {holder!r} has it", key=key, holder=holder))
