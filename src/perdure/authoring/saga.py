"""Sagas: what to undo, newest first, when a block of a workflow fails.

The body runs the compensations, so a replay repeats them as any other code. Two things the core knows: a retry of the
invocation supersedes no compensation (see `Turn.retry`), and one that is tried again keeps its idempotency key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from copy import deepcopy
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, Self, TypeVar, cast, overload, runtime_checkable

from msgspec import Struct

from perdure.authoring.step import Step, StepHost, StepInfo
from perdure.authoring.workflow import Workflow
from perdure.core.retry import Retry
from perdure.core.values import encode
from perdure.errors import CompensationFailed, InvalidOption

if TYPE_CHECKING:
    from grpc.aio import UnaryUnaryMultiCallable

    from perdure.core.loop import Task
    from perdure.core.turn import Turn

P = ParamSpec("P")
S = TypeVar("S")

NAME = "saga"
"""The step that stands for compensations that failed, until the invocation is retried."""


@runtime_checkable
class Undoing(Protocol):
    """What may be a compensation."""

    @property
    def name(self) -> str: ...
    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise for arguments that it does not take."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> Awaitable[Any]: ...


class _Compensation(Struct, eq=False):
    """A call that undoes something. `first` is the number of the command that tried it first."""

    call: Undoing
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    first: int | None = None

    async def run(self, turn: Turn) -> None:
        if self.first is None:
            self.first = turn.next_number
        turn.undoing = self.first
        try:
            await self.call(*self.args, **self.kwargs)  # issues a step or a child first of all
        finally:
            turn.undoing = None


class Saga:
    """Compensations of a block, `async with ctx.saga() as saga`. They run, newest first, if it raises or is cancelled.

    All are tried. Those that fail are in a `CompensationFailed`, whose cause is what the block raised; `retry()` of the
    invocation goes on with them. Otherwise what the block raised goes on its way.
    """

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._compensations: list[_Compensation] = []
        self._is_open: bool | None = None

    async def __aenter__(self) -> Self:
        if self._is_open is not None:
            raise InvalidOption("a saga is for one block: call ctx.saga() again for another")
        self._is_open = True
        return self

    @overload
    def add_compensation(self, call: Step[P, Any] | Workflow[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> None: ...
    @overload
    def add_compensation(self, call: UnaryUnaryMultiCallable[S, Any], request: S, /, **options: Any) -> None: ...
    def add_compensation(self, call: Any, /, *args: Any, **kwargs: Any) -> None:
        """Have a step, a child or a method of a gRPC stub run with these arguments if the block fails from here on.

        The arguments are kept as they are now.

        A step may have happened although it failed: add its compensation before the call.
        """
        if not isinstance(call, Undoing):
            text = "give a step, a workflow or a method of `ctx.stub(...)`, and then its arguments"
            raise InvalidOption(f"saga.add_compensation({call!r}): {text}")
        if not self._is_open:
            raise InvalidOption(f"saga.add_compensation({call.name!r}): only inside `async with ctx.saga() as saga:`")
        call.check(args, kwargs)
        self._compensations.append(_Compensation(call, deepcopy(args), deepcopy(kwargs)))

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._is_open = False
        if error is None or isinstance(error, GeneratorExit):  # the latter: the body is dropped from memory
            return
        cancelled = await _undisturbed(self._undo(error))
        if cancelled is not None:
            raise cancelled

    async def _undo(self, error: BaseException) -> None:
        left = self._compensations[::-1]
        while left:
            failed: list[tuple[_Compensation, Exception]] = []
            for each in left:
                try:
                    await each.run(self._turn)
                except Exception as raised:  # noqa: BLE001  the others are tried too
                    failed.append((each, raised))
            if failed:
                await self._stand(failed, len(left), error)
            left = [each for each, _ in failed]

    async def _stand(self, failed: list[tuple[_Compensation, Exception]], tried: int, error: BaseException) -> None:
        """Raise, until the invocation is retried."""
        turn = self._turn
        names = ", ".join(dict.fromkeys(each.call.name for each, _ in failed))
        text = f"{len(failed)} of {tried} compensations failed ({names})"
        group = CompensationFailed(text, [raised for _, raised in failed])
        try:
            await turn.call_step(NAME, b"", bytes, _Standing(group, turn.generation_of(turn.next_number)))
        except CompensationFailed as raised:
            raise raised from error


class _Standing(Struct, eq=False):
    """The work of a step that raises in the generation that issued it, and returns once a retry runs it again."""

    error: CompensationFailed
    generation: int
    name: str = NAME
    retry: Retry = Retry(max_attempts=1)
    timeout: float | None = None

    async def run(self, host: StepHost, info: StepInfo, /) -> bytes:
        if info.generation == self.generation:
            raise self.error
        return encode(None)


async def _undisturbed(undoing: Coroutine[Any, Any, None]) -> asyncio.CancelledError | None:
    """Run to the end, whatever cancels the caller meanwhile; return such a cancellation, for it to go on after that."""
    task = cast("Task[None]", asyncio.ensure_future(undoing))
    task.is_shielded = True
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    return cancelled
