"""Decides one round: from arrivals to the next frame. Pure; `runner` carries it out.

arrivals, deliveries, due times  ->  turn  ->  Round  ->  Transition
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

from msgspec import Struct
from msgspec.structs import replace

from perdure.core.apply import apply, repeats, reply_to
from perdure.core.effects import NO_EFFECTS, effects_of
from perdure.core.journal import (
    Answer,
    Answering,
    Attempted,
    CallStep,
    Cancelled,
    CancelRequested,
    Entry,
    Fired,
    Frame,
    Granted,
    Interrupted,
    Message,
    Outcome,
    Paused,
    Refused,
    Released,
    Resume,
    Resumed,
    SetTimer,
    Start,
    settles_before_begin,
)
from perdure.core.streams import batches
from perdure.core.turn import Pending, Ready, Turn, timed_out
from perdure.core.unbegun import outcome_unbegun
from perdure.runtime.agenda import DEADLINE
from perdure.runtime.opening import has_start
from perdure.runtime.record import Record
from perdure.runtime.waits import A_WORKER, wait_of
from perdure.stores.port import Delivery, Transition
from perdure.stores.waits import Wait


class Round(Struct, eq=False):
    """The contents of a round's frame, and what the runner has left to do."""

    at: float
    entries: list[Entry] = []
    answers: tuple[Answer, ...] = ()
    taken: list[Delivery] = []  # to be acknowledged by the commit
    inbox: list[Delivery] = []  # messages that came too late: refused once the outcome is durable
    attempted: tuple[Attempted, ...] = ()  # due times of next attempts
    begins: bool = False  # the body had not begun before
    resumed: bool = False  # commands that wait for an answer must be taken up


# --- what arrived -----------------------------------------------------------------------------------------------------
def gather(record: Record, turn: Turn, arrivals: Sequence[Answering], inbox: list[Delivery], at: float) -> Round:
    """Deliver all arrivals to the turn, one fact at a time, and begin the body if it may begin."""
    round = Round(at)
    round.begins = begins = not turn.begun
    if begins:
        turn.wait_until(at)
        if not _begin(record, turn, inbox, round):
            return round
    for entry in arrivals:
        if type(entry) is Attempted and _unwanted(turn, entry.n):
            entry = Interrupted(entry.n, entry.at, entry.took)
        turn.deliver(entry)
        round.entries.append(entry)
        if type(entry) is Attempted:
            round.attempted += (entry,)
    for delivery in inbox:
        if type(delivery.item) is not Message:
            round.taken.append(delivery)
        elif turn.ended:
            round.inbox.append(delivery)
        else:
            round.taken.append(delivery)
            take_message(record, delivery.item, turn, round)
    if begins and (waited := turn.waited()) is not None:  # before the facts: a retry may cut the frame between them
        round.entries.insert(0, waited)
    return round


def _unwanted(turn: Turn, n: int) -> bool:
    """Report whether the body has cancelled a step: there is no further attempt, and nothing else would end it."""
    pending = turn.pending.get(n)
    return pending is not None and pending.cancel_requested


def _begin(record: Record, turn: Turn, inbox: list[Delivery], round: Round) -> bool:
    """Begin the body if it may; false if the invocation was cancelled before it could run."""
    if (request := turn.cancelled_unbegun) is not None:
        ended = timed_out(turn.start, round.at) if request.timed_out else Cancelled(round.at, message=request.message)
        _end_unseen(record, ended, inbox, round)
        return False
    may_begin = record.may_begin(turn, has_start=has_start(inbox))
    if (record.revision == 0 or not may_begin) and _ended_unseen(record, inbox, round):
        return False
    if turn.waits_for_key:
        if may_begin:
            key = record.key
            record.granted = granted = Granted(round.at, record.history.generation, key.state, key.grant)
            record.history.note(granted)
            turn.deliver(granted)
    elif record.history.paused is None:
        turn.begin()
    return True


def _ended_unseen(record: Record, inbox: list[Delivery], round: Round) -> bool:
    """Settle an invocation that was ended before its body could run. Other messages are refused after that."""
    start = record.start
    assert start is not None
    for delivery in inbox:
        if type(delivery.item) is Message and settles_before_begin(delivery.item):
            rest = [each for each in inbox if each is not delivery]
            _end_unseen(record, outcome_unbegun(start, delivery.item, round.at), rest, round)
            round.taken.append(delivery)
            return True
    return False


def _end_unseen(record: Record, outcome: Outcome, inbox: list[Delivery], round: Round) -> None:
    for delivery in inbox:
        (round.inbox if isinstance(delivery.item, Message) else round.taken).append(delivery)
    record.history.note(outcome)
    round.entries.append(outcome)


def take_message(record: Record, message: Message, turn: Turn | None, round: Round) -> None:
    """Apply a message, or repeat the answer to it."""
    history = record.history
    if message.id in history.messages:
        round.answers += (Answer(message.id, history.messages[message.id]),)
        return
    if repeats(message, history, round.at):
        round.answers += (Answer(message.id),)
        return
    entry = apply(message, history, turn, round.at)
    if entry is None:
        start = record.start
        if start is not None and (reply := reply_to(message, start, history, round.at)) is not None:
            record.redo = replace(record.redo, messages=(*record.redo.messages, reply))
        return
    history.note(entry)
    round.entries.append(entry)
    if turn is None:
        return
    if not isinstance(entry, Resumed):
        turn.deliver(entry)
        return
    round.resumed = True
    goes_on = turn.begun and not round.begins  # if it begins now, `gather` sees to its time
    if goes_on:
        turn.wait_until(round.at)
    turn.deliver(entry)
    if goes_on and (waited := turn.waited()) is not None:
        round.entries.insert(-1, waited)


def fire_due(
    record: Record, turn: Turn, pop: Callable[[float], int | None], running: Container[int], round: Round
) -> list[tuple[int, Pending]]:
    """Deliver due times to the turn; return the steps whose next attempt is due."""
    again: list[tuple[int, Pending]] = []
    if record.history.paused is not None or record.history.outcome is not None:
        return again
    at = round.at
    while (n := pop(at)) is not None:
        entry: Entry | None = None
        if n == DEADLINE and turn.waits_for_key:  # it never ran: there is nothing to clean up
            late = timed_out(turn.start, at)
            record.history.note(late)
            round.entries.append(late)
            break
        if n == DEADLINE:
            entry = CancelRequested(at, timed_out=True)
        elif (pending := turn.pending.get(n)) is not None:
            if isinstance(pending.command, SetTimer):
                entry = Fired(n, at)
            elif n not in running and not pending.cancel_requested:
                again.append((n, pending))
        if entry is not None:
            turn.deliver(entry)
            round.entries.append(entry)
    return again


def gather_stuck(record: Record, why: str, arrivals: Sequence[Answering], inbox: list[Delivery], at: float) -> Round:
    """Pause an invocation that the code here does not fit; only messages that need no code are applied."""
    round = Round(at)
    key = None if record.start is None else record.start.key
    if key is not None and record.history.granted != record.history.generation:
        if _ended_unseen(record, inbox, round):
            return round  # its body has not run, and on resuming the cancellation would begin it without its key
    if record.history.paused is None:
        paused = Paused(at, why)
        record.history.note(paused)
        round.entries.append(paused)
    round.entries += arrivals
    for delivery in inbox:
        round.taken.append(delivery)
        message = delivery.item
        if not isinstance(message, Message):
            continue
        if isinstance(message.request, Resume) and message.id not in record.history.messages:
            refused = Refused(at, message.id, why)
            record.history.note(refused)
            round.entries.append(refused)
        else:
            take_message(record, message, None, round)
    return round


# --- the frame --------------------------------------------------------------------------------------------------------
def outcome_of(record: Record, ready: Ready, round: Round) -> tuple[Ready, Outcome | None]:
    """Return the body's requests to write, and the outcome, if there is one."""
    outcome = record.history.outcome  # a forced cancellation has set one
    if outcome is not None:
        ready = Ready()
        ready.cancels = (
            record.history.open_children()
        )  # a forced cancellation acts for the body, which would have asked for these
    elif ready.outcome is not None:
        outcome = ready.outcome
        round.entries.append(outcome)
    return ready, outcome


def may_hold(ready: Ready, round: Round) -> bool:
    """Report whether steps may start before the first frame: on a first delivery whose body asked for steps only."""
    if round.entries or round.answers or not ready.commands or ready.state or ready.cancels or ready.written:
        return False
    for command in ready.commands:  # noqa: SIM110  a generator would double the cost
        if type(command) is not CallStep:
            return False
    return True


def is_empty(ready: Ready, round: Round) -> bool:
    """Report whether a round brought nothing to record."""
    return not (round.entries or ready.commands or ready.state or ready.cancels or ready.written)


def compose(
    record: Record,
    start: Start,
    turn: Turn | None,
    round: Round,
    ready: Ready,
    outcome: Outcome | None,
    released: Released | None,
) -> Transition:
    """Make the next frame and its effects. `released` ends the claim until the wake, or until something comes."""
    at = round.at
    entries, history = round.entries, record.history
    if not record.owned or not record.revision or record.granted is not None:
        entries = [*record.preamble(start, at), *entries]
    if released is not None:
        entries.append(released)
    if outcome is not None and entries[-1] is not outcome:
        entries.remove(outcome)
        entries.append(outcome)
    written = [
        batch
        for name, items in ready.written.items()
        for batch in batches(name, items, first=history.written.get(name, 0), attempt=history.generation + 1)
    ]
    commands = record.with_trace(start, entries, ready.commands) if ready.commands else ready.commands
    frame = Frame(record.writer.name, at, entries, commands, ready.state, ready.cancels, written)
    record.add(frame, [each.item.trace for each in round.taken if type(each.item) is Message])
    effects = effects_of(start, frame, record.history)
    if round.answers or record.redo is not NO_EFFECTS:
        effects = record.with_redo(effects, round.answers)
    status = record.history.status
    changed = status if status != record.status or released is not None else None
    wait = record.wait
    if changed is not None or round.attempted or wait is not None:
        wait = None if outcome is not None else wait_of(turn, at, at_rest=released is not None)
        if wait != record.wait:
            changed = status
    record.status, record.wait = status, wait
    record.owned = released is None and outcome is None
    open = record.open_awakeables(start, turn) if record.history.awakeables else None
    taken = round.taken
    return Transition(record.id, record.revision, frame, effects, changed, released is not None, taken, open, wait)


def release_now(record: Record, arrivals: Sequence[Answering], taken: Sequence[Delivery], at: float) -> Transition:
    """Return the transition that hands an invocation over when its worker stops."""
    wake = at if record.history.paused is None else None
    frame = Frame(record.writer.name, at, [*arrivals, Released(at, wake)])
    record.add(frame)
    effects = replace(NO_EFFECTS, wake=wake)
    wait = None if wake is None else Wait(A_WORKER, at)
    return Transition(record.id, record.revision, frame, effects, record.history.status, True, taken, wait=wait)
