"""Decides what to do with an invocation whose journal was just read. Pure; `runner` carries it out.

    journal, start, key, deliveries  ->  Unknown | Settled | TakeOver | Begin

A settled invocation is finished by `finish`, one that another worker still claims is taken over by `take_over`.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from perdure.core.apply import apply, may_retry, repeats, reply_to
from perdure.core.effects import NO_EFFECTS, Enlist, Release
from perdure.core.history import DEATHS_LIMIT
from perdure.core.journal import Accepted, Answer, Entry, Frame, Granted, Message, Paused, Refused, Released, Start
from perdure.core.turn import Turn
from perdure.runtime.record import Record
from perdure.stores.awakeables import made_by
from perdure.stores.port import Delivery, Transition, Wake


# --- which way it goes ------------------------------------------------------------------------------------------------
class Unknown(Struct, frozen=True):
    """The store knows no such invocation: acknowledge the deliveries."""


class Settled(Struct, frozen=True):
    """It has ended: finish what its last owner left undone, and refuse messages or retry."""

    start: Start


class TakeOver(Struct, frozen=True):
    """A worker may have begun it and died: claim it by a frame of its own before the body runs."""

    start: Start


class Begin(Struct, frozen=True):
    """Make the turn, replay these frames, and go on."""

    start: Start
    frames: Sequence[Frame]


Opening = Unknown | Settled | TakeOver | Begin


def opening(record: Record, frames: Sequence[Frame], inbox: Sequence[Delivery], *, must_claim: bool) -> Opening:
    """Decide what to do with an invocation. `must_claim` says that a delivery came again."""
    history, start = record.history, record.start
    if start is None:
        return Unknown()
    if history.outcome is not None:
        return Settled(start)
    if not frames and not has_start(inbox):
        return Begin(start, ())  # it is not due yet: only a cancellation is delivered now, and ends it
    if must_claim or (history.claimed and not record.owned):
        return TakeOver(start)
    if not record.has_written:
        record.redo = record.effects_to_redo(start)
    return Begin(start, frames)


def has_start(inbox: Sequence[Delivery]) -> bool:
    for each in inbox:  # noqa: SIM110  a generator would double the cost
        if type(each.item) is Start:
            return True
    return False


# --- taking over ------------------------------------------------------------------------------------------------------
class Claim(Struct, frozen=True):
    """The frame that takes an invocation over. `inbox` has the remaining deliveries; it may be paused, for a reason."""

    transition: Transition
    inbox: list[Delivery]
    paused_because: str | None


def take_over(record: Record, start: Start, inbox: Sequence[Delivery], at: float) -> Claim:
    """Claim an invocation from an owner that did not release it, and redo the effects of the frame before.

    An invocation whose owners keep dying is paused.
    """
    history = record.history
    entries: list[Entry] = [record.claim(at)] if record.revision else [Accepted(start), record.claim(at)]
    # A start that comes again without a frame: a worker died before claiming it.
    deaths = history.deaths + (history.unclaimed_deaths if record.revision else 1)
    reason: str | None = None
    if deaths >= DEATHS_LIMIT:
        reason = f"{deaths} workers in a row died while they ran it, without a new entry in its journal"
        entries += [Paused(at, reason), Released(at)]
    frame = Frame(record.writer.name, at, entries)
    effects = record.effects_to_redo(start)
    record.add(frame)
    record.status = "paused" if history.paused is not None else "running"
    record.owned = reason is None
    starts = [each for each in inbox if not isinstance(each.item, Message)]
    messages = [each for each in inbox if isinstance(each.item, Message)]
    transition = Transition(record.id, record.revision, frame, effects, record.status, reason is not None, starts)
    return Claim(transition, messages, reason)


# --- what has settled -------------------------------------------------------------------------------------------------
class Done(Struct, frozen=True):
    """There is nothing more to do."""


class Retry(Struct, frozen=True):
    """A delivery asks for a retry, and may have it now."""

    delivery: Delivery
    message: Message


class WaitForKey(Struct, frozen=True):
    """A retry waits in the queue of its key."""


class Finish(Struct, frozen=True):
    """The transition for a settled invocation, the remaining deliveries, and what comes next."""

    transition: Transition
    inbox: list[Delivery]
    then: Done | Retry | WaitForKey


def finish(record: Record, start: Start, deliveries: Sequence[Delivery], at: float) -> Finish:
    """Finish what a settled invocation's last owner may have left undone, and refuse what came too late.

    If a retry is among the deliveries, it comes next, and later deliveries wait.
    """
    answers: list[Answer] = []
    replies: list[Message] = []
    taken, inbox = [*deliveries], list[Delivery]()
    then: Done | Retry | WaitForKey = Done()
    enlist: Enlist | None = None
    for position, delivery in enumerate(deliveries):
        message = delivery.item
        if not isinstance(message, Message):
            continue
        if may_retry(message, record.history):
            following = record.history.generation + 1
            if start.key is None or record.key.granted_to(record.id, following):
                taken, inbox = [*deliveries[:position]], [*deliveries[position + 1 :]]
                then = Retry(delivery, message)
            else:  # the message stays unanswered until a wake says that we hold the key
                inbox = [each for each in deliveries[position:] if not isinstance(each.item, Wake)]
                taken = [each for each in deliveries if each not in inbox]
                enlist = Enlist(start.key, following)
                then = WaitForKey()
            break
        if (reply := reply_to(message, start, record.history, at)) is not None:
            replies.append(reply)
        if (answer := _late_answer(record, message, at)) is not None:
            answers.append(answer)
    effects = record.effects_to_redo(start)
    messages = (*effects.messages, *replies)
    release = effects.release
    if release is None and start.key is not None and _is_held_for_nothing(record):
        release = Release(start.key, record.key.generation)
    effects = replace(effects, messages=messages, answers=(*effects.answers, *answers), release=release, enlist=enlist)
    awakeables = made_by(start, record.history) if record.history.awakeables else None
    transition = Transition(record.id, record.revision, None, effects, record.history.status, True, taken, awakeables)
    return Finish(transition, inbox, then)


def _is_held_for_nothing(record: Record) -> bool:
    """Report whether an invocation that has settled and released its key holds it again.

    An owner that stood still while another ran a retry may ask for the key of that retry once more.
    """
    key = record.key
    return record.all_done and key.holder == record.id and key.generation <= record.history.generation


def _late_answer(record: Record, message: Message, at: float) -> Answer | None:
    if repeats(message, record.history, at):
        return Answer(message.id)
    entry = apply(message, record.history, None, at)
    if record.history.messages.get(message.id, "") is None:
        return Answer(message.id)  # it was applied while the invocation ran
    return Answer(message.id, entry.reason) if isinstance(entry, Refused) else None


# --- retries ----------------------------------------------------------------------------------------------------------
def retry_entries(
    record: Record, turn: Turn, frames: Sequence[Frame], at: float, message: Message
) -> list[Entry] | str:
    """Run a fresh turn to the cut of a retry; return the entries to record, or why it cannot be retried."""
    generation = record.history.generation + 1
    entries = turn.retry(frames, generation, at, message.id)
    if isinstance(entries, str):
        return entries
    if turn.start.key is not None:
        entries.insert(0, Granted(at, generation, record.key.state, record.key.grant))
    for entry in entries:
        turn.deliver(entry)
    return entries if turn.divergence is None else record.explain(turn)


def refuse_retry(record: Record, start: Start, delivery: Delivery, message: Message, why: str) -> Transition:
    """Return the transition that refuses a retry; the key that was granted for it goes to the next."""
    release = None if start.key is None else Release(start.key, record.history.generation + 1)
    effects = replace(NO_EFFECTS, answers=(Answer(message.id, why),), release=release)
    return Transition(record.id, record.revision, None, effects, record.history.status, True, [delivery])
