"""Journals that no worker of this release can read, for a while: a later release wrote them, or nobody knows who.

A worker of a later release claims an invocation and records something that this release does not know; or a frame holds
what no release would write. After a while the journal can be read: the workers are upgraded, or it was repaired. Until
then every worker must leave that invocation alone, hand back what it holds of it, and serve all that do not wait for
it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from perdure.core.history import History
from perdure.core.journal import Claimed, Frame, decode_frame, encode_frame
from perdure.testing.programs import Program, all_of

LATER = "later release"
PYTHON = "3.99"

NAMED_LATER = ["hereafter", 1.0]
"""An entry of a later release."""

UNKNOWN = [17, "what is this?"]
"""An entry of no release."""

HAND_BACK_SECONDS = 300.0
"""By then a worker has handed back what it could not read, even if it stood still meanwhile."""

SERVED_SECONDS = 3_000.0
"""By then all others have ended."""


def claim_of(frames: Sequence[bytes], at: float, kind: str) -> tuple[Frame, bytes]:
    """Return a frame that claims an invocation, and its bytes with an entry more, which this release cannot read."""
    epoch = History.of(decode_frame(data) for data in frames).epoch
    frame = Frame(LATER, at, [Claimed(at, epoch + 1, LATER, PYTHON, "0")])
    raw: Any = msgspec.msgpack.decode(encode_frame(frame))
    raw[2].append(NAMED_LATER if kind == LATER else UNKNOWN)
    return frame, msgspec.msgpack.encode(raw)


def not_waiting_for(tag: str, roots: Collection[Program]) -> set[str]:
    """Return the tags of all that need not wait for a program: none of theirs has a key in common with its tree."""
    trees: Mapping[str, list[Program]] = {root.tag: [*all_of(root)] for root in roots}
    waiting = {root for root, tree in trees.items() if any(each.tag == tag for each in tree)}
    while True:
        keys = {each.key for root in waiting for each in trees[root]} - {None}
        more = {root for root, tree in trees.items() if root not in waiting and any(each.key in keys for each in tree)}
        if not more:
            return {each.tag for root, tree in trees.items() if root not in waiting for each in tree}
        waiting |= more
