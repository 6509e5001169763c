"""A group through a client: implements `client.run_all`.

The report has the outcome of each member in the store. So a start in flight is never abandoned: when the rule ends the
group, the start is completed, then cancelled, and the report has the member's actual outcome.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable
from typing import Any, Generic, Literal, TypeVar, cast

from msgspec import Struct

from perdure.authoring.group import (
    SETTLE_SECONDS,
    Cancelled,
    Completed,
    Ended,
    Failed,
    Group,
    Rule,
    Unsettled,
    Wait,
    check_calls,
    listed,
    name_member,
    rule_of,
)
from perdure.authoring.workflow import Call
from perdure.calls import submission_of
from perdure.core.failures import Failure, rebuild
from perdure.core.lifecycle import SETTLED
from perdure.core.retry import Duration
from perdure.errors import (
    IdConflict,
    MessageRefused,
    PerdureError,
    StoreClosed,
    StoreUnavailable,
    UnknownInvocation,
    WaitTimeout,
)
from perdure.operations.port import Operations, Outcome, Submission, Value
from perdure.runtime.worker import Translators

R = TypeVar("R")

PAUSE_LOOK_SECONDS = 0.5
"""How often a waiting report checks whether all remaining members are paused: those do not end by themselves."""

PAUSE_LOOK_LIMIT = 100
"""The most remaining members for which this is checked."""

__all__ = ["SETTLE_SECONDS", "run_group"]


async def run_group(
    operations: Operations,
    calls: Iterable[Call[R]],
    *,
    wait: Wait | None,
    concurrency: int | None,
    settle: Duration,
    translators: Translators,
) -> Group[R]:
    """Run calls through a client. When the rule is met, the remaining ones are cancelled and awaited."""
    given = listed(calls)
    check_calls(given)
    rule = rule_of(wait, concurrency, settle, len(given))
    members: list[_Member] = []
    for n, call in enumerate(given):
        try:
            members.append(_Member(call, submission_of(call.workflow, call.args, call.kwargs)))
        except PerdureError as error:
            name_member(n, error)
            raise
    return await _Run[R](operations, members, rule, translators).run()


class _Member(Struct, eq=False):
    """One member of a group, and its phase.

    It is `starting` from the submit of its start until the store has accepted it.
    """

    call: Call[Any]
    submission: Submission
    phase: Literal["waiting", "starting", "started", "ended"] = "waiting"
    began: float = 0.0
    task: asyncio.Task[None] | None = None
    is_accepted: asyncio.Event | None = None  # created when it is awaited
    ended: Ended[Any] | None = None

    @property
    def id(self) -> str:
        return self.submission.id

    def accepted(self) -> None:
        self.phase = "started"
        if self.is_accepted is not None:
            self.is_accepted.set()


class _Run(Generic[R]):
    def __init__(self, operations: Operations, members: list[_Member], rule: Rule, translators: Translators) -> None:
        self._operations = operations
        self._members = members
        self._rule = rule
        self._translators = translators
        self._room = asyncio.Semaphore(rule.concurrency)
        self._left = len(members)
        self._completed = 0
        self._enough = asyncio.Event()
        self._closed: StoreClosed | None = None

    async def run(self) -> Group[R]:
        began = time.monotonic()
        for member in self._members:
            member.task = asyncio.create_task(self._run_member(member))
        try:
            try:
                async with asyncio.timeout(self._rule.duration):
                    if self._members:
                        await self._enough.wait()
            except TimeoutError:
                pass
            await self._end_remaining()
        except BaseException:
            await self._leave()
            raise
        results = [member.ended or Cancelled("", 0.0) for member in self._members]
        return Group(cast("list[Ended[R]]", results), time.monotonic() - began)

    # --- one member ---------------------------------------------------------------------------------------------------
    async def _run_member(self, member: _Member) -> None:
        try:
            async with self._room:
                member.phase, member.began = "starting", time.monotonic()
                outcome = await self._operations.run(member.submission, member.accepted)
            self._note(member, self._ended(member, outcome))
        except asyncio.CancelledError:
            pass  # it was not started, or the report no longer waits for it
        except StoreClosed as error:
            self._closed = error
            self._enough.set()
        except Exception as error:  # noqa: BLE001  it is this member's outcome
            may_exist = member.phase == "started" or isinstance(error, (IdConflict, StoreUnavailable))
            self._note(member, Failed(member.id if may_exist else "", error, time.monotonic() - member.began))
        finally:
            member.phase = "ended"
            if member.is_accepted is not None:
                member.is_accepted.set()
            self._left -= 1
            if not self._left:
                self._enough.set()

    def _ended(self, member: _Member, outcome: Outcome) -> Ended[Any]:
        duration = time.monotonic() - member.began
        if isinstance(outcome, Value):
            try:
                return Completed(member.id, member.call.workflow.decode_result(outcome.data), duration)
            except PerdureError as error:
                return Failed(member.id, error, duration)
        if isinstance(outcome, Failure):
            return Failed(member.id, rebuild(outcome, translators=self._translators()), duration)
        return Cancelled(member.id, duration)

    def _note(self, member: _Member, ended: Ended[Any]) -> None:
        member.ended = ended
        if isinstance(ended, Completed):
            self._completed += 1
            if self._completed == self._rule.quota:
                self._enough.set()

    # --- the end ------------------------------------------------------------------------------------------------------
    async def _end_remaining(self) -> None:
        """Cancel the remaining members, wait for them, and record those that have not ended in time."""
        self._check_store()
        left = await self._cancel_remaining()
        end = time.monotonic() + self._rule.settle
        while left and (remaining := end - time.monotonic()) > 0:
            tasks = [member.task for member in left if member.task is not None]
            await asyncio.wait(tasks, timeout=min(remaining, PAUSE_LOOK_SECONDS))
            self._check_store()
            left = [member for member in left if member.phase != "ended"]
            if 0 < len(left) <= PAUSE_LOOK_LIMIT and all([await self._is_paused(member) for member in left]):
                break
        for member in left:
            if member.phase != "ended":
                member.ended = await self._unsettled(member)
        self._drop_tasks()
        self._check_store()

    def _check_store(self) -> None:
        if self._closed is not None:
            raise self._closed

    async def _cancel_remaining(self) -> list[_Member]:
        """Cancel each member that was started, durably, and return those that have not ended."""
        left: list[_Member] = []
        for member in self._members:
            if member.phase == "waiting" and member.task is not None:
                member.task.cancel()
            elif member.phase != "ended":
                left.append(member)
        await asyncio.gather(*map(self._cancel, left))
        return [member for member in left if member.phase != "ended"]

    async def _cancel(self, member: _Member) -> None:
        if member.phase == "starting":
            member.is_accepted = asyncio.Event()
            await member.is_accepted.wait()
        if member.ended is None:
            with contextlib.suppress(WaitTimeout, MessageRefused, UnknownInvocation):  # durable, or too late
                await self._operations.cancel(member.id, timeout=0)

    async def _is_paused(self, member: _Member) -> bool:
        return (await self._operations.look(member.id)).status == "paused"

    async def _unsettled(self, member: _Member) -> Ended[Any]:
        status = (await self._operations.look(member.id)).status
        if status in SETTLED:
            return self._ended(member, await self._operations.result(member.id))
        return Unsettled(member.id, cast("Any", status), time.monotonic() - member.began)

    async def _leave(self) -> None:
        """Cancel all members after the caller was cancelled, without waiting for their ends."""
        leaving = asyncio.ensure_future(self._cancel_all())
        _leaving.add(leaving)  # it continues if the caller is cancelled again
        leaving.add_done_callback(_leaving.discard)
        await asyncio.shield(leaving)

    async def _cancel_all(self) -> None:
        try:
            await self._cancel_remaining()
        except PerdureError:
            pass  # the store is closed or unavailable: the first exception tells more
        finally:
            self._drop_tasks()

    def _drop_tasks(self) -> None:
        for member in self._members:
            if member.task is not None:
                member.task.cancel()


_leaving: set[asyncio.Future[None]] = set()
"""Groups whose caller was cancelled and whose members are being cancelled. The loop keeps no strong references."""
