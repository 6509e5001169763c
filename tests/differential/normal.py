"""What may differ from store to store, each with the sentence that allows it. Everything else is compared as it is."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from perdure.core.journal import Answer, Frame, Message, Outcome, Settled
from perdure.stores.port import Counts, Key, Row
from tests.differential.bodies import WRITER


def row(found: Row | None) -> object:
    """The time of the last change is the store's own: only its presence is compared."""
    return None if found is None else replace(found, updated_at=float(found.updated_at > 0))


def key(found: Key) -> Key:
    """The numbers of grants grow, and mean nothing else."""
    return replace(found, grant=int(found.grant > 0))


def counts(found: Counts) -> Counts:
    """A start that waits for its key may count as one that waits for a worker, or not."""
    return replace(found, due_since={})


def frames(found: Sequence[Frame]) -> list[Frame]:
    """A frame that the store wrote itself, for what was cancelled before it began, has its own time and writer."""
    return [each if each.writer == WRITER else _by_the_store(each) for each in found]


def _by_the_store(frame: Frame) -> Frame:
    entries = [replace(each, at=0.0) if hasattr(each, "at") else each for each in frame.entries]
    return replace(frame, writer="the store", at=0.0, entries=entries)


def mail(found: Sequence[Message]) -> list[Message]:
    """Oldest first; those of one time, such as the messages of one frame, in any order.

    An outcome that the store wrote itself has its own time, and so has the message that tells it.
    """
    assert [each.at for each in found] == sorted(each.at for each in found), f"not oldest first: {found}"
    return sorted(map(_timeless, found), key=lambda each: (each.at, each.id))


def _timeless(message: Message) -> Message:
    request = message.request
    if not isinstance(request, Settled):
        return message
    return replace(message, at=0.0, request=replace(request, outcome=outcome(request.outcome)))


def outcome(found: Outcome | None) -> Outcome | None:
    """The same of outcomes; the journals are compared with their times."""
    return None if found is None else replace(found, at=0.0)


def told(wait: asyncio.Future[Any]) -> str:
    """What a caller that waits for an answer or an outcome was told."""
    if (failed := wait.exception()) is not None:
        return repr(failed)
    result = wait.result()
    return repr(result if isinstance(result, Answer) else outcome(result))


def error(raised: Exception) -> str:
    """Revisions grow, and their numbers mean nothing else (`Store.commit`): they are left out of the text."""
    text = re.sub(r"revision \d+", "revision #", str(raised))
    return f"{type(raised).__name__}: {text}"
