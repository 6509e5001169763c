"""A group as the children of a workflow: implements `ctx.run_all`.

It runs in the body, with the body's clock and journal, so a replay reports the same. A child that was cancelled may
still complete: the report has its actual outcome.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from msgspec import Struct

from perdure.authoring import earlier_group
from perdure.authoring.group import (
    Cancelled,
    Completed,
    Ended,
    Failed,
    Group,
    Rule,
    Unsettled,
    Wait,
    WaitForever,
    check_calls,
    listed,
    name_member,
    rule_of,
)
from perdure.core.ids import seed_of
from perdure.core.journal import Parent, Returned, Start
from perdure.core.lifecycle import SETTLED
from perdure.core.retry import DEFAULT_RETRY, Duration, Retry
from perdure.core.turn import CommandFuture, Turn
from perdure.core.types import decoder
from perdure.core.values import encode
from perdure.errors import ChildCancelled, PerdureError

if TYPE_CHECKING:
    from perdure.authoring.workflow import Call

R = TypeVar("R")

MARK = "perdure.run_all"
"""The patch that marks journals with this form of group. Journals without it replay in the earlier form."""

STATUSES = "perdure.statuses"
"""The step that reads the statuses of members that have not ended."""


async def run_children(
    turn: Turn, calls: Iterable[Call[R]], *, wait: Wait | None, concurrency: int | None, settle: Duration
) -> Group[R]:
    """Run calls as children of the workflow whose turn this is."""
    members = listed(calls)
    if members and not turn.patched(MARK):
        rule = wait or WaitForever()
        return await earlier_group.run_children(turn.start.id, members, wait=rule, concurrency=concurrency)
    check_calls(members)
    rule = rule_of(wait, concurrency, settle, len(members))
    for n, call in enumerate(members):
        try:
            call.workflow.start_of(call.args, call.kwargs, id="-", at=turn.loop.now, seed=0, held=turn.keys_held)
        except PerdureError as error:
            name_member(n, error)
            raise
    return await _Children(turn, members, rule).run()


class _Child(Struct, eq=False):
    """One member: its future and id once it is issued, and its outcome once it has ended."""

    id: str = ""
    began: float = 0.0
    future: asyncio.Future[Any] | None = None
    ended: Ended[Any] | None = None


class _Children(Generic[R]):
    def __init__(self, turn: Turn, calls: list[Call[R]], rule: Rule) -> None:
        self._turn = turn
        self._calls = calls
        self._rule = rule
        self._now = asyncio.get_running_loop().time
        self._children = [_Child() for _ in calls]
        self._issued = 0
        self._running = 0
        self._completed = 0
        self._news: deque[int] = deque()
        self._wake = asyncio.Event()

    async def run(self) -> Group[R]:
        began = self._now()
        try:
            try:
                async with asyncio.timeout(self._rule.duration):
                    await self._run_until_enough()
            except TimeoutError:
                pass
            self._ask_to_end()
            try:
                async with asyncio.timeout(self._rule.settle if self._running else None):
                    await self._collect_all()
            except TimeoutError:
                await self._report_unsettled()
        except asyncio.CancelledError:
            self._ask_to_end()
            await self._collect_all()
            raise
        results = [child.ended or Cancelled("", 0.0) for child in self._children]
        return Group(cast("list[Ended[R]]", results), self._now() - began)

    async def _run_until_enough(self) -> None:
        quota = self._rule.quota
        while quota is None or self._completed < quota:
            while self._issued < len(self._calls) and self._running < self._rule.concurrency:
                self._issue(self._issued)
                self._issued += 1
            if not self._running:
                return
            await self._collect()

    def _ask_to_end(self) -> None:
        for child in self._children[: self._issued]:
            if child.future is not None and child.ended is None:
                child.future.cancel()

    async def _collect_all(self) -> None:
        while self._running:
            await self._collect()

    async def _collect(self) -> None:
        """Wait until at least one child has ended, and record the outcomes of those that have."""
        await self._wake.wait()
        self._wake.clear()
        while self._news:
            child, call = self._children[n := self._news.popleft()], self._calls[n]
            if child.ended is None:
                child.ended = _ended(child, self._now() - child.began, call.workflow.decode_result)
                self._running -= 1
                self._completed += isinstance(child.ended, Completed)

    def _issue(self, n: int) -> None:
        call, child, turn = self._calls[n], self._children[n], self._turn
        child.began = self._now()

        def start(id: str, parent: Parent) -> Start:
            made = call.workflow.start_of(
                call.args,
                call.kwargs,
                id=id,
                at=turn.loop.time(),
                seed=seed_of(id),
                parent=parent,
                held=turn.keys_held,
            )
            child.id = made.id
            return made

        try:
            child.future = turn.call_child(
                start, call.workflow.decode_result, call.workflow.given(call.args, call.kwargs)
            )
        except PerdureError as error:  # such as an input that is too large: it is this member's outcome
            child.ended = Failed("", error, 0.0)
            return
        self._running += 1
        child.future.add_done_callback(partial(self._note_end, n))

    def _note_end(self, n: int, future: asyncio.Future[Any]) -> None:
        if not future.cancelled():
            future.exception()  # marks it as retrieved: the report has it
        self._news.append(n)
        self._wake.set()

    async def _report_unsettled(self) -> None:
        """Record the statuses of members that have not ended in time, and await those that the index has as settled."""
        left = [child for child in self._children if child.future is not None and child.ended is None]
        ids = [child.id for child in left]
        statuses: list[str] = await self._turn.call_step(STATUSES, b"", decoder(list[str]), _Statuses(ids))
        settled: list[_Child] = []
        for child, status in zip(left, statuses, strict=True):
            if status in SETTLED:
                settled.append(child)
            elif child.ended is None:
                child.ended = Unsettled(child.id, cast("Any", status), self._now() - child.began)
        while any(child.ended is None for child in settled):
            await self._collect()


def _ended(child: _Child, duration: float, decode: Callable[[bytes], Any]) -> Ended[Any]:
    future = child.future
    assert future is not None
    if future.cancelled():  # by the group; the child may still have completed
        answer = future.answer if isinstance(future, CommandFuture) else None
        if isinstance(answer, Returned):
            try:
                return Completed(child.id, decode(answer.value), duration)
            except PerdureError as error:
                return Failed(child.id, error, duration)
        return Cancelled(child.id, duration)
    error = future.exception()
    if error is None:
        return Completed(child.id, future.result(), duration)
    if isinstance(error, ChildCancelled) and error.invocation_id == child.id:
        return Cancelled(child.id, duration)
    return Failed(child.id, error, duration)


class Index(Protocol):
    """The part of a worker that the step for statuses needs."""

    async def status_of(self, id: str, /) -> str: ...


class _Statuses(Struct, eq=False):
    """The step that reads the statuses of invocations."""

    ids: list[str]
    name: str = STATUSES
    retry: Retry = DEFAULT_RETRY
    timeout: float | None = None

    def run(self, host: Any, info: object, /) -> Coroutine[Any, Any, bytes]:
        return self._read(cast("Index", host))

    async def _read(self, index: Index) -> bytes:
        return encode([await index.status_of(id) for id in self.ids])
