"""What a worker knows of an invocation, and the transitions that it would commit: the same on every store."""

from __future__ import annotations

from collections.abc import Callable, Collection

from msgspec import Struct, field

from perdure.core.effects import NO_EFFECTS, Effects, Enlist, Release, effects_of
from perdure.core.failures import failure_of
from perdure.core.history import History
from perdure.core.journal import (
    Accepted,
    Answer,
    Asked,
    CallChild,
    CallStep,
    Cancel,
    Cancelled,
    CancelRequested,
    Claimed,
    Command,
    Completed,
    Entry,
    Failed,
    Frame,
    Granted,
    Join,
    Joined,
    Message,
    OpenAwakeable,
    Pause,
    Paused,
    Raised,
    Refused,
    Reject,
    Released,
    Resolve,
    Resume,
    Resumed,
    Returned,
    SendStart,
    Settled,
    Start,
    Status,
)
from perdure.core.unbegun import ended_unbegun
from perdure.core.values import encode
from perdure.stores.awakeables import Awakeable, made_by
from perdure.stores.port import Delivery, Key
from tests.differential.operations import Commit

WRITER = "w"


class Body(Struct):
    """An invocation as its worker knows it."""

    start: Start
    frames: list[Frame] = field(default_factory=list[Frame])
    owned: bool = False  # it was claimed, and the worker has been there since
    effects: Effects = NO_EFFECTS  # of the last frame
    cancel_sent: bool = False  # the store may settle it before it begins

    @property
    def history(self) -> History:
        return History.of(self.frames)

    @property
    def is_settled_by_store(self) -> bool:
        """Whether the store cancelled it before it began."""
        return bool(self.frames) and self.frames[0].writer != WRITER

    def steps(self) -> list[int]:
        """Return the steps that have no result."""
        issued = [each.n for frame in self.frames for each in frame.commands if isinstance(each, CallStep)]
        ended = {each.n for frame in self.frames for each in frame.entries if isinstance(each, Returned)}
        return [n for n in issued if n not in ended]

    def next_n(self) -> int:
        return sum(len(frame.commands) for frame in self.frames)


class Plan(Struct):
    """A transition, but for what differs from store to store: its revision, and the deliveries."""

    frame: Frame | None
    effects: Effects
    status: Status | None
    released: bool
    takes: Callable[[Delivery], bool]
    awakeables: list[Awakeable] | None = None


class Hand(Struct):
    """What a worker has of an invocation when it commits."""

    has_start: bool
    has_wake: bool
    messages: list[Message]
    key: Key
    at: float


def plan(operation: Commit, body: Body, hand: Hand, started: list[Start], wake: float | None) -> Plan | None:
    """Return what a worker commits, or None if the operation means nothing here."""
    if not (hand.has_start or hand.has_wake or hand.messages or body.owned):
        return None
    history = body.history
    if not body.frames and not hand.has_start:
        return _ends_unbegun(body.start, hand)
    if history.outcome is not None:
        return _after_the_end(operation, body, history, hand)
    if operation.move in ("enlist", "leave key"):
        return None
    if operation.move == "effects again":
        if not body.frames:
            return None
        return Plan(None, body.effects, None, False, _none)
    return _goes_on(operation, body, history, hand, started, wake)


def _none(_: Delivery) -> bool:
    return False


def _ends_unbegun(start: Start, hand: Hand) -> Plan | None:
    """End an invocation that was cancelled before it was due, or had to wait for its key for too long."""
    cancel = next((each for each in hand.messages if isinstance(each.request, Cancel)), None)
    if cancel is not None:
        frame, effects, status = ended_unbegun(start, cancel, WRITER, hand.at)
        return Plan(frame, effects, status, False, _takes([cancel]))
    if not hand.has_wake:
        return None
    frame = Frame(WRITER, hand.at, [Accepted(start), Failed(hand.at, failure_of(TimeoutError("late")))])
    return Plan(frame, effects_of(start, frame, History.of([frame])), "failed", False, _takes([]))


def _takes(messages: list[Message], known: Collection[str] = ()) -> Callable[[Delivery], bool]:
    """Acknowledge starts, wakes, these messages and those `known`: what the journal holds goes with the frame."""
    ids = {each.id for each in messages} | {*known}

    def takes(delivery: Delivery) -> bool:
        match delivery.item:
            case Message(id=id):
                return id in ids
            case _:
                return True

    return takes


def _after_the_end(operation: Commit, body: Body, history: History, hand: Hand) -> Plan | None:
    """Refuse what came too late; or queue for the key again, to be retried."""
    key, following = body.start.key, history.generation + 1
    status = history.status
    if operation.move == "enlist":
        if key is None or not isinstance(history.outcome, Failed):
            return None
        return Plan(None, Effects(enlist=Enlist(key, following)), status, True, _takes([]))
    if operation.move == "leave key":
        if key is None:
            return None
        return Plan(None, Effects(release=Release(key, following)), status, True, _takes([]))
    if not operation.answers:
        return Plan(None, body.effects, status, True, _takes([]))
    known = history.messages
    answers = tuple(Answer(each.id, known.get(each.id, "too late")) for each in hand.messages)
    effects = Effects((), (), answers)
    return Plan(None, effects, status, True, _takes(hand.messages))


def _goes_on(
    operation: Commit, body: Body, history: History, hand: Hand, started: list[Start], wake: float | None
) -> Plan | None:
    at, start = hand.at, body.start
    entries: list[Entry] = [] if body.frames else [Accepted(start)]
    if not body.owned:
        entries.append(Claimed(at, history.epoch + 1, "w", "3.11", "0"))
    if start.key is not None and not body.frames:
        entries.append(Granted(at, 0, hand.key.state))
    answered = hand.messages if operation.answers else []
    entries += [_applied(each, history, at) for each in answered]
    steps = body.steps()
    if operation.move in ("step", "suspend") and steps:
        entries += [Returned(n, at, encode(n)) for n in (steps[:1] if operation.move == "step" else steps)]
    commands = _commands(operation, body, started)
    state: dict[str, bytes | None] = {}
    if start.key is not None:
        state = {name: None if value is None else encode(value) for name, value in operation.state}
    # A child that is cancelled and granted the key by one frame may be settled by the store or by a worker.
    lets_key_go = start.key is not None and _outcome(operation.move, at) is not None
    cancels = history.open_children() if operation.ends and not lets_key_go else []
    if operation.move == "pause":
        entries += [Paused(at, "asked for"), Released(at)]
    elif operation.move == "suspend":
        entries.append(Released(at, wake))
    elif (outcome := _outcome(operation.move, at)) is not None:
        entries.append(outcome)
    if not (entries or commands or state or cancels):
        return None
    frame = Frame(WRITER, at, entries, commands, state, cancels)
    after = History.of([*body.frames, frame])
    effects = effects_of(start, frame, after)
    released = operation.move in ("pause", "suspend")
    status = after.status
    changed = status if released or not body.frames or status != history.status else None
    told = [each for each in made_by(start, after) if each.is_open or after.outcome is not None]
    takes = _takes(answered, history.messages)
    return Plan(frame, effects, changed, released, takes, told if after.awakeables else None)


def _outcome(move: str, at: float) -> Completed | Failed | Cancelled | None:
    match move:
        case "begin and complete" | "complete":
            return Completed(at, encode("done"))
        case "fail":
            return Failed(at, failure_of(ValueError("no")))
        case "cancel":
            return Cancelled(at)
        case _:
            return None


def _commands(operation: Commit, body: Body, started: list[Start]) -> list[Command]:
    commands: list[Command] = []
    starts = iter(started)
    for n, what in enumerate(operation.more, body.next_n()):
        match what:
            case "step":
                commands.append(CallStep(n, "s", b"d"))
            case "awakeable":
                commands.append(OpenAwakeable(n, Asked(f"#{n}", assignees=("ada", "bo")[: n % 3])))
            case _:
                started_by_it = next(starts)
                commands.append(
                    SendStart(n, started_by_it) if started_by_it.parent is None else CallChild(n, started_by_it)
                )
    return commands


def _applied(message: Message, history: History, at: float) -> Entry:
    """Return an entry that answers a message. What the engine would decide is no matter here."""
    id = message.id
    if id in history.messages and history.messages[id] is not None:
        return Refused(at, id, history.messages[id] or "")
    match message.request:
        case Pause():
            return Paused(at, "asked for", id)
        case Resume():
            return Resumed(at, id)
        case Cancel():
            return CancelRequested(at, message=id)
        case Resolve(n=n, value=value):
            return Returned(n, at, value, id)
        case Reject(n=n, reason=reason):
            return Raised(n, at, failure_of(ValueError(reason)), id)
        case Settled(n=n):
            return Returned(n, at, encode(n), id)
        case Join(start=start) if start.parent is not None:
            return Joined(at, start.parent, id)
        case _:
            return Refused(at, id, "no")
