"""The vocabulary of a journal: what is remembered of one invocation, for ever.

A journal is a sequence of *frames*. A frame holds the *entries* that were committed together (facts: a step returned,
a timer fired) and the *commands* that the workflow body issued in answer to them. These types are the wire types:
they are what the stores write, byte for byte. Fields may be added at the end with a default; nothing is ever
repurposed or removed, because journals of every release must replay on the current code.

All times are seconds since the Unix epoch, as floats.
"""

from __future__ import annotations

from perdure.core.journal.commands import (
    Arguments,
    CallChild,
    CallStep,
    Command,
    MarkPatch,
    OpenAwakeable,
    SendStart,
    SetTimer,
    changed_arguments,
    describe,
    repeats,
)
from perdure.core.journal.entries import (
    Accepted,
    Answering,
    Attempted,
    Cancelled,
    CancelRequested,
    Claimed,
    Completed,
    Entry,
    Failed,
    Fired,
    Granted,
    Interrupted,
    Joined,
    Outcome,
    Paused,
    Raised,
    Refused,
    Released,
    Resumed,
    Retried,
    Returned,
)
from perdure.core.journal.frames import (
    Frame,
    encode_frame,
)
from perdure.core.journal.reading import decode_frame, decode_message, decode_start
from perdure.core.journal.requests import (
    Answer,
    Cancel,
    Join,
    Message,
    Pause,
    Reject,
    Request,
    Resolve,
    Resume,
    RetryInvocation,
    Settled,
    encode_message,
    settles_before_begin,
)
from perdure.core.journal.starts import (
    Parent,
    Start,
    encode_start,
)
from perdure.core.journal.status import STATUSES, Status, known_status

__all__ = [
    "STATUSES",
    "Accepted",
    "Answer",
    "Answering",
    "Arguments",
    "Attempted",
    "CallChild",
    "CallStep",
    "Cancel",
    "CancelRequested",
    "Cancelled",
    "Claimed",
    "Command",
    "Completed",
    "Entry",
    "Failed",
    "Fired",
    "Frame",
    "Granted",
    "Interrupted",
    "Join",
    "Joined",
    "MarkPatch",
    "Message",
    "OpenAwakeable",
    "Outcome",
    "Parent",
    "Pause",
    "Paused",
    "Raised",
    "Refused",
    "Reject",
    "Released",
    "Request",
    "Resolve",
    "Resume",
    "Resumed",
    "Retried",
    "RetryInvocation",
    "Returned",
    "SendStart",
    "SetTimer",
    "Settled",
    "Start",
    "Status",
    "changed_arguments",
    "decode_frame",
    "decode_message",
    "decode_start",
    "describe",
    "encode_frame",
    "encode_message",
    "encode_start",
    "known_status",
    "repeats",
    "settles_before_begin",
]
