"""Does one operation on every store, waits until each has delivered what the first has, and compares the answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from msgspec import Struct, field
from msgspec.structs import replace

from perdure.core.journal import (
    Cancel,
    Completed,
    Join,
    Message,
    Parent,
    Pause,
    Reject,
    Request,
    Resolve,
    Resume,
    RetryInvocation,
    Settled,
    Start,
)
from perdure.core.values import encode
from perdure.errors import PerdureError
from perdure.stores.port import Delivery, Key, Transition, Wake, committed
from tests.differential import normal
from tests.differential.asking import query, read
from tests.differential.bodies import Body, Hand, Plan, plan
from tests.differential.comparing import Comparison, Difference
from tests.differential.operations import (
    Acknowledge,
    Answered,
    Awaiting,
    Change,
    Close,
    Commit,
    Count,
    Decline,
    HandBack,
    Later,
    More,
    New,
    Open,
    Operation,
    Post,
    Purge,
    Read,
    ReadKey,
    Reopen,
    Search,
    Served,
    Submit,
    Watch,
    shown,
)
from tests.differential.sides import Side
from tests.differential.state import FAR_SECONDS, State

SKIPPED = "skipped"


class Trace(Struct):
    """The answers to each operation, by store."""

    sides: list[str]
    answers: list[list[object]] = field(default_factory=list[list[object]])
    after: list[str] = field(default_factory=list[str])


class World:
    """Several stores, and what a worker on each of them knows: the same on all, or it is a difference."""

    def __init__(self, sides: Sequence[Side], patience: float) -> None:
        self._state = State(sides, patience)
        self._comparison = Comparison(self._state)
        self.trace = Trace([side.name for side in sides])

    # --- a run --------------------------------------------------------------------------------------------------------
    async def run(self, operations: Sequence[Operation]) -> None:
        """Do all operations, and raise `Difference` at the first after which the stores differ."""
        for side in self._state.sides:
            await side.open()
        try:
            for number, operation in enumerate(operations):
                await self._step(number, operation)
            await self._at_rest(len(operations))
        finally:
            for side in self._state.sides:
                await side.close()

    async def _step(self, number: int, operation: Operation) -> None:
        if self._state.clock is not None:
            self._state.clock.move_to(self._state.clock.now() + 0.001)
        answers = await self._do(operation)
        self.trace.answers.append(answers)
        self._same(number, answers, "")
        self.trace.after.append(await self._comparison.settled(number))

    async def _at_rest(self, number: int) -> None:
        """See that nothing more comes, and that all say the same of all in the end."""
        await asyncio.sleep(0.01)
        await self._comparison.settled(number)
        for id in self._state.starts:
            for what in ("journal", "mail", "row", "start", "outcome"):
                await self._compare(number, Read(what, id))
        await self._compare(number, Search())
        await self._compare(number, Awaiting(None))
        await self._compare(number, Count())

    async def _compare(self, number: int, operation: Operation) -> None:
        self._same(number, await self._do(operation), f"in the end, to {shown(operation)}, ")

    def _same(self, number: int, answers: Sequence[object], where: str) -> None:
        for side, answer in zip(self._state.sides, answers, strict=True):
            if answer != answers[0]:
                what = f"{where}{side.name} answers {answer!r}, {self._state.first.name} {answers[0]!r}"
                raise Difference(number, what)

    # --- operations ---------------------------------------------------------------------------------------------------
    async def _do(self, operation: Operation) -> list[object]:
        match operation:
            case Read(what=what, id=id):
                return await self._each(lambda side: read(side, what, id))
            case ReadKey():
                return await self._read_key(operation)
            case Search() | Awaiting() | Count() | Served():
                return await self._each(lambda side: query(self._state, side, operation))
            case Answered(message=message):
                return self._await_answer(message)
            case Watch(id=id):
                return self._wait(f"outcome {id}", lambda side: side.store.watch(id))
            case _:
                return await self._change(operation)

    async def _change(self, operation: Change) -> list[object]:
        match operation:
            case Submit(starts=starts):
                return await self._submit(starts)
            case Post():
                return await self._post(operation)
            case Commit():
                return await self._commit(operation)
            case Acknowledge() | HandBack() | Decline():
                return self._deal_with(operation)
            case Open() | More() | Close():
                return self._subscription(operation)
            case Reopen():
                return await self._reopen()
            case Later():
                return await self._later()
            case Purge():
                return await self._purge(operation)

    async def _each(self, use: Callable[[Side], Awaitable[Any]]) -> list[object]:
        return [await _said(use, side) for side in self._state.sides]

    def _skipped(self) -> list[object]:
        return [SKIPPED] * len(self._state.sides)

    def _start_of(self, new: New, parent: Parent | None = None, sender: str | None = None) -> Start:
        at = self._state.time()
        due = self._state.when(new.due, at)
        limit = None
        if new.limit is not None:
            limit = self._state.when(new.limit, due) - due + (FAR_SECONDS if new.due == "far" else 0.0)
        value = encode({"x": new.value})
        tags = () if new.tag is None else (("t", new.tag),)
        return Start(
            *(new.id, new.handler, value, at, due, 7, new.key, limit, parent, new.chosen), sender=sender, tags=tags
        )

    async def _submit(self, news: Sequence[New]) -> list[object]:
        starts = [self._start_of(new) for new in news]
        answers = await self._each(lambda side: side.store.submit(starts))
        if isinstance(answers[0], list):
            for start, is_new in zip(starts, cast("list[bool]", answers[0]), strict=True):
                if is_new:
                    self._state.exists(start)
        if any(new.due == "soon" for new in news):
            await self._comparison.soon()
        return answers

    async def _post(self, operation: Post) -> list[object]:
        message = Message(operation.id, operation.to, self._state.time(), self._request(operation))
        if isinstance(message.request, Cancel) and self._state.may_settle_itself(operation.to):
            return self._skipped()
        if message.id in self._state.gone:
            return self._skipped()
        self._state.messages.setdefault(message.id, message)
        answers = await self._each(lambda side: side.store.post(message))
        if isinstance(message.request, Cancel) and operation.to in self._state.bodies:
            self._state.bodies[operation.to].cancel_sent = True
        return answers

    def _request(self, operation: Post) -> Request:
        match operation.request:
            case "pause":
                return Pause()
            case "resume":
                return Resume()
            case "cancel" | "force":
                return Cancel(operation.request == "force")
            case "resolve":
                return Resolve(1, encode("v"))
            case "reject":
                return Reject(1, "no")
            case "settled":
                return Settled(0, 1, "c", Completed(1.0, encode(1)))
            case "retry":
                return RetryInvocation()
            case "join":
                return Join(Start(operation.to, "h", b"\x80", 1.0, 1.0, 7, parent=Parent("other", 0, 1)))

    # --- commits ------------------------------------------------------------------------------------------------------
    async def _commit(self, operation: Commit) -> list[object]:
        id = operation.id
        body = self._state.bodies.get(id)
        if body is None or id in self._state.declined or body.start.handler not in self._state.open:
            return self._skipped()
        hand = await self._hand(body)
        started: list[Start] = []
        for new in operation.more:
            if isinstance(new, New):
                n = body.next_n() + operation.more.index(new)
                is_child = len(started) % 2 == 0 and new.id != id
                parent = Parent(id, body.history.generation, n) if is_child else None
                started.append(self._start_of(new, parent, None if is_child else id))
        wake = (
            None
            if operation.wake is None
            else self._state.when("now" if operation.wake == "past" else operation.wake, hand.at)
        )
        if any(self._state.may_settle_itself(child.id) for child in body.history.children.values()):
            operation = replace(operation, ends=False)
        planned = plan(operation, body, hand, started, wake)
        if planned is None:
            return self._skipped()
        if any(start.id == id or start.id in self._state.purged for start in started):
            return self._skipped()  # on a server what a frame starts again is dropped once it was purged
        answers = [await self._committed(side, operation, planned) for side in self._state.sides]
        if isinstance(answers[0], int):
            self._note_commit(body, planned)
        if operation.wake == "soon" or any(isinstance(new, New) and new.due == "soon" for new in operation.more):
            await self._comparison.soon()
        return answers

    async def _hand(self, body: Body) -> Hand:
        deliveries = self._state.first.in_hand.get(body.start.id, [])
        messages = [each.item for each in deliveries if isinstance(each.item, Message)]
        key = Key() if body.start.key is None else await self._state.first.store.key(body.start.key)
        has_start = any(isinstance(each.item, Start) for each in deliveries)
        has_wake = any(isinstance(each.item, Wake) for each in deliveries)
        return Hand(has_start, has_wake, messages, key, self._state.time())

    async def _committed(self, side: Side, operation: Commit, planned: Plan) -> object:
        id = operation.id
        expected = side.revision(id)
        match operation.late if planned.frame is not None else "":
            case "zero":
                expected = 0
            case "one":
                expected = [0, 0, *side.revisions.get(id, [])][-2]
            case "ahead":
                expected += 1_000_000
            case _:
                pass
        taken = [each for each in side.in_hand.get(id, ()) if planned.takes(each)]
        told = (planned.effects, planned.status, planned.released, taken, planned.awakeables)
        transition = Transition(id, expected, planned.frame, *told)

        async def commit(side: Side) -> int:
            return await committed(side.store, transition)

        answer = await _said(commit, side)
        if not isinstance(answer, int):
            return answer
        side.take(id, lambda each: each in taken)
        if planned.frame is not None:
            grown = answer > side.revision(id)
            side.revisions.setdefault(id, []).append(answer)
            return len(side.revisions[id]) if grown else f"revision {answer} after {side.revisions[id]}"
        return side.number_of(id, answer)

    def _note_commit(self, body: Body, planned: Plan) -> None:
        if planned.frame is not None:
            body.frames.append(planned.frame)
            body.effects = planned.effects
        ended = planned.released or (planned.frame is not None and planned.frame.outcome is not None)
        body.owned = not ended
        for start in planned.effects.starts:
            self._state.exists(start)
        for message in planned.effects.messages:
            self._state.messages.setdefault(message.id, message)
            if isinstance(message.request, Cancel) and message.to in self._state.bodies:
                self._state.bodies[message.to].cancel_sent = True

    # --- deliveries ---------------------------------------------------------------------------------------------------
    def _may_acknowledge(self, body: Body) -> Callable[[Delivery], bool]:
        """Tell what a worker acknowledges without a commit: what its journal has dealt with, and wakes."""
        history = body.history
        answered = history.messages

        def may(delivery: Delivery) -> bool:
            match delivery.item:
                case Start():
                    return bool(body.frames)
                case Message(id=id):
                    return id in answered
                case _:
                    return bool(body.frames) and not history.claimed

        return may

    def _deal_with(self, operation: Acknowledge | HandBack | Decline) -> list[object]:
        match operation:
            case Acknowledge(id=id):
                return self._acknowledge(id)
            case HandBack(id=id):
                return self._hand_back(id)
            case Decline(id=id):
                return self._decline(id)

    def _acknowledge(self, id: str) -> list[object]:
        body = self._state.bodies.get(id)
        if body is None or id not in self._state.first.in_hand:
            return self._skipped()
        may = self._may_acknowledge(body)
        answers: list[object] = []
        for side in self._state.sides:
            taken = side.take(id, may)
            for each in taken:
                side.subscription(body.start.handler).acknowledge(each)
            answers.append(None)
        return answers

    def _hand_back(self, id: str) -> list[object]:
        body = self._state.bodies.get(id)
        if body is None or body.frames or "start" not in self._comparison.held(self._state.first).get(id, ()):
            return self._skipped()
        for side in self._state.sides:
            for each in side.take(id, lambda each: isinstance(each.item, Start)):
                side.subscription(body.start.handler).hand_back(each)
        return [None] * len(self._state.sides)

    def _decline(self, id: str) -> list[object]:
        body = self._state.bodies.get(id)
        if body is None or id not in self._state.first.in_hand:
            return self._skipped()
        for side in self._state.sides:
            [first, *_] = side.take(id, lambda _: True)
            side.subscription(body.start.handler).decline(first, "it cannot be run here")
        body.owned = False
        self._state.declined.add(id)
        return [None] * len(self._state.sides)

    def _subscription(self, operation: Open | More | Close) -> list[object]:
        handler = operation.handler
        if (handler in self._state.open) == isinstance(operation, Open):
            return self._skipped()
        for side in self._state.sides:
            match operation:
                case Open(room=room):
                    side.subscribe(handler, room)
                case More(room=room):
                    side.request(handler, room)
                case Close():
                    side.unsubscribe(handler)
        if isinstance(operation, Open):
            self._state.open.add(handler)
        elif isinstance(operation, Close):
            self._state.open.discard(handler)
            self._disown(handler)
        return [None] * len(self._state.sides)

    def _disown(self, handler: str | None) -> None:
        for id, body in self._state.bodies.items():
            if handler is None or body.start.handler == handler:
                body.owned = False
                self._state.declined.discard(id)

    async def _reopen(self) -> list[object]:
        for side in self._state.sides:
            await side.reopen()
        self._state.open.clear()
        self._disown(None)
        return [None] * len(self._state.sides)

    async def _later(self) -> list[object]:
        if self._state.clock is None:
            return self._skipped()
        self._state.clock.move_to(self._state.clock.now() + 2 * FAR_SECONDS)
        await self._comparison.all_due_is_queued()
        return [None] * len(self._state.sides)

    # --- retention ----------------------------------------------------------------------------------------------------
    async def _purge(self, operation: Purge) -> list[object]:
        before = 0.0 if operation.nothing else 1e12
        id = operation.id
        if await self._may_be_started_again(id):
            return self._skipped()
        first = await self._state.first.store.purge(before, limit=operation.limit, id=id)
        answers: list[object] = [first]
        for side in self._state.sides[1:]:
            removed = await side.store.purge(before, limit=operation.limit, id=id)
            deadline = time.monotonic() + self._state.patience / 4
            # What was acknowledged a moment ago may still be on its way to the store, and a wake that was replaced may
            # come at this moment: it is asked again.
            while removed < first and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
                self._comparison.acknowledge_hints(side)
                removed += await side.store.purge(before, limit=first - removed, id=id)
            answers.append(removed)
        for each in [*self._state.bodies]:
            if await self._state.first.store.row(each) is None:
                del self._state.bodies[each]
                self._state.purged.add(each)
                self._state.gone.update(id for id, message in self._state.messages.items() if message.to == each)
                for side in self._state.sides:
                    side.revisions.pop(each, None)
        return answers

    async def _may_be_started_again(self, id: str | None) -> bool:
        """Tell whether a store may keep what a frame has started, since it cannot tell yet that its effects are done.

        One that writes a frame and its effects in one transaction need not keep it.
        """
        for parent, body in self._state.bodies.items():
            if any(id in (None, start.id) for start in body.effects.starts):
                journals = [await side.store.journal(parent) for side in self._state.sides]
                if not all(journal.done for journal in journals):
                    return True
        return False

    async def _read_key(self, operation: ReadKey) -> list[object]:
        """Read a key. On a server a process with a worker grants it, and may be about to."""
        if not self._state.open and not self._state.are_local:
            return self._skipped()
        deadline = time.monotonic() + self._state.patience / 4
        while True:
            answers = await self._each(lambda side: query(self._state, side, operation))
            if all(answer == answers[0] for answer in answers) or time.monotonic() > deadline:
                return answers
            await asyncio.sleep(0.01)

    def _await_answer(self, id: str) -> list[object]:
        message = self._state.messages.get(id)
        if message is None or id in self._state.gone:
            return self._skipped()
        return self._wait(f"answer {id}", lambda side: asyncio.ensure_future(side.store.answer(id)))

    def _wait(self, name: str, begin: Callable[[Side], asyncio.Future[Any]]) -> list[object]:
        if name in self._state.first.waits:
            return self._skipped()
        for side in self._state.sides:
            side.waits[name] = begin(side)
        return [None] * len(self._state.sides)


async def _said(use: Callable[[Side], Awaitable[Any]], side: Side) -> object:
    """Return what a store answers, or its error as text. An error that is not ours passes: no store may raise it."""
    try:
        return await use(side)
    except PerdureError as error:
        return normal.error(error)
