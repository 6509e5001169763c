"""Applies messages to an invocation: returns the entry, or the reason for a refusal. One file per verb.

A retry needs a turn that has run to the failure, see `Turn.retry`; this package only decides whether it may.
"""

from __future__ import annotations

from typing import assert_never

from perdure.core.apply.awakeable import reject, repeats, resolve
from perdure.core.apply.busy import busy
from perdure.core.apply.cancel import cancel
from perdure.core.apply.child import settled
from perdure.core.apply.join import join, reply_to
from perdure.core.apply.pause import pause, resume
from perdure.core.apply.retry import may_retry, retry
from perdure.core.history import History
from perdure.core.journal import (
    Busy,
    Cancel,
    Entry,
    Join,
    Message,
    Pause,
    Reject,
    Resolve,
    Resume,
    RetryInvocation,
    Settled,
)
from perdure.core.turn import Turn

__all__ = ["apply", "may_retry", "repeats", "reply_to"]


def apply(message: Message, history: History, turn: Turn | None, at: float, /) -> Entry | None:
    """Return the entry that a message becomes, `Refused` with the reason, or None when it needs none.

    `turn` may be None only while the invocation is paused with code that diverges from its journal, or settled.
    """
    match message.request:
        case Resolve() as request:
            return resolve(request, message, history, turn, at)
        case Reject() as request:
            return reject(request, message, history, turn, at)
        case Settled() as request:
            return settled(request, message, history, turn, at)
        case Cancel() as request:
            return cancel(request, message, history, at)
        case Pause():
            return pause(message, history, at)
        case Resume():
            return resume(message, history, at)
        case Join() as request:
            return join(request, message, history, turn, at)
        case Busy():
            return busy(message, at)
        case RetryInvocation():
            return retry(message, history, at)
        case _:
            assert_never(message.request)
