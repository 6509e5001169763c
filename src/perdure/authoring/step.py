"""The decorator `@step`, and calls of steps.

Called in a workflow, a step becomes a command of the turn that runs the body. Called elsewhere, it is the plain
function.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar, cast, overload

from msgspec import Struct

from perdure.authoring.functions import check_step, copy_of, is_async, mark_async, name_of
from perdure.core.ids import check_name, idempotency_key
from perdure.core.recording import encode_as
from perdure.core.retry import DEFAULT_RETRY, Duration, Retry, seconds
from perdure.core.signature import Signature
from perdure.core.turn import current_turn
from perdure.core.types import decoder
from perdure.errors import CalledOutsideWorkflow, NotAWorkflow

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)


# --- inside a step ----------------------------------------------------------------------------------------------------
class StepInfo(Struct, frozen=True, eq=False):
    """Information for a running step. `attempt` counts from 1; `handler` is the name of its workflow.

    `number` is that of the step in the journal of its invocation.

    `epoch` is the number of the claim under which the worker runs it, 0 if it began before the claim was durable. With
    a key, `grant` is the number of the key's grant, greater than that of every earlier one. Both tell a worker that has
    lost the invocation from the one that has it now: see `documents.put_all(..., fence=step_info())`.
    """

    invocation_id: str
    attempt: int
    _key_parts: tuple[int, int, str]  # generation, number and name
    epoch: int = 0
    key: str | None = None
    grant: int | None = None
    handler: str = ""
    number: int = 0

    @property
    def step(self) -> str:
        """The name of the step."""
        return self._key_parts[2]

    @property
    def generation(self) -> int:
        """How often the invocation had been retried when the step was first called."""
        return self._key_parts[0]

    @property
    def idempotency_key(self) -> str:
        """The same on every attempt and after every crash: send it with requests that must take effect once."""
        return idempotency_key(self.invocation_id, *self._key_parts)

    def __repr__(self) -> str:
        return f"StepInfo({self.invocation_id!r}, step={self.step!r}, attempt={self.attempt})"


current_step: ContextVar[StepInfo] = ContextVar("perdure_step")


def step_info() -> StepInfo:
    """Return the information for the running step; `CalledOutsideWorkflow` if no workflow called this step."""
    try:
        return current_step.get()
    except LookupError:
        raise CalledOutsideWorkflow("step_info() works only inside a step that a workflow called") from None


class Work(Protocol):
    """The work of a step's command."""

    @property
    def name(self) -> str: ...
    @property
    def retry(self) -> Retry: ...
    @property
    def timeout(self) -> float | None: ...

    def run(self, host: StepHost, info: StepInfo, /) -> Coroutine[Any, Any, bytes]:
        """Run one attempt; return the encoded result."""
        ...


class StepHost(Protocol):
    """The part of a worker that a running step may use."""

    async def in_thread(self, fn: Callable[[], Any], /) -> Any: ...
    def channel(self, service: str, /) -> Any: ...


# --- steps ------------------------------------------------------------------------------------------------------------
class Step(Generic[P, R_co]):
    """A function whose outcome is journaled when a workflow calls it. A call is always awaited.

    `fn` is the plain function. `name` is its name in journals.
    """

    def __init__(
        self, fn: Callable[..., Any], *, retry: Retry | None, timeout: Duration | None, name: str | None
    ) -> None:
        self._static = isinstance(fn, staticmethod)
        self._class = isinstance(fn, classmethod)
        if isinstance(fn, (staticmethod, classmethod)):
            fn = cast("Callable[..., Any]", fn.__func__)  # pyright: ignore[reportUnknownMemberType]
        if isinstance(fn, Step):
            raise NotAWorkflow(f"step {cast('Step[..., Any]', fn).name!r} is already a step: decorate it once")
        check_step(fn)
        self.fn: Callable[P, Any] = fn
        self._rename(name_of(fn) if name is None else name)
        self.retry = retry or DEFAULT_RETRY
        self.timeout = None if timeout is None else seconds(f"timeout of step {self.name!r}", timeout, positive=True)
        self.is_async = is_async(fn)
        self._signature: Signature | None = None
        self._bound: dict[str, Signature] = {}
        functools.update_wrapper(self, fn, updated=())
        if getattr(fn, "__isabstractmethod__", False):
            self.__isabstractmethod__ = True

    def __repr__(self) -> str:
        return f"<step {self.name!r}>"

    @property
    def __closure__(self) -> Any:
        """The cells of the function: a class decorator that makes the class anew (attrs) sets its `super()` there."""
        return getattr(self.fn, "__closure__", None)

    async def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R_co:
        turn = current_turn()
        if turn is None:
            return await self._plain(args, kwargs)
        signature = self._signature or self.signature()
        digest, checks = signature.digest_and_checks(args, kwargs)
        work = StepWork(self, args, kwargs, self.name, self.retry, self.timeout)
        given = signature.given(args, kwargs) if turn.replaying else None
        return await turn.call_step(self.name, digest, self.decode_result, work, checks, given)

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise `InputRefused` or `Unencodable` for arguments that the step does not take."""
        self.signature().digest_and_checks(args, kwargs)

    def using(self, *, retry: Retry | None = None, timeout: Duration | None = None, name: str | None = None) -> Self:
        """Return this step with other options: `timeout` bounds one attempt, in seconds or as a timedelta."""
        other = copy_of(self)
        if retry is not None:
            other.retry = retry
        if timeout is not None:
            other.timeout = seconds(f"timeout of step {self.name!r}", timeout, positive=True)
        if name is not None:
            other._rename(name)  # noqa: SLF001
        return other

    def _rename(self, name: str) -> None:
        self.name = check_name("a step's name", name)
        self._result = f"the result of step {self.name!r}"  # for error texts

    def bind(self, /, *args: P.args, **kwargs: P.kwargs) -> StepCall[R_co]:
        """Return this step with its arguments, without calling it."""
        return StepCall(self, args, kwargs)

    @overload
    def __get__(self, obj: None, owner: type, /) -> Self: ...
    @overload
    def __get__(self: Step[Concatenate[T, Q], S], obj: T, owner: type | None = None, /) -> Step[Q, S]: ...
    def __get__(self, obj: Any, owner: Any = None, /) -> Any:
        target = owner if self._class else obj
        if self._static or target is None:
            return self
        bound = copy_of(self)
        bound.fn = self.fn.__get__(target)
        signature = self._bound.get("signature")
        if signature is None:
            signature = self._bound["signature"] = Signature.of(self.fn, skip_self=True)
        bound._signature = signature  # noqa: SLF001
        bound._static = True  # noqa: SLF001
        return bound

    def signature(self) -> Signature:
        """Return the parameters and types, which are resolved on the first call."""
        if self._signature is None:
            self._signature = Signature.of(self.fn)
        return self._signature

    async def _plain(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.is_async:
            return await self.fn(*args, **kwargs)
        result = await asyncio.to_thread(self.fn, *args, **kwargs)
        return await result if inspect.isawaitable(result) else result

    @functools.cached_property
    def decode_result(self) -> Callable[[bytes], Any]:
        """Decodes a result by the annotation."""
        return decoder(self._returns)

    def encode_result(self, value: Any, /) -> bytes:
        """Encode a result; `Unencodable` if that is impossible or the result does not match the annotation."""
        return encode_as(value, self._returns, self._result)

    @functools.cached_property
    def _returns(self) -> Any:
        return self.signature().returns


mark_async(Step)


class StepWork(Struct, eq=False):
    """A call of a step, as run by a worker."""

    step: Step[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    name: str
    retry: Retry
    timeout: float | None

    async def run(self, host: StepHost, info: StepInfo, /) -> bytes:
        """Run one attempt; return the encoded result."""
        step = self.step
        value = await step.fn(*self.args, **self.kwargs) if step.is_async else await self.call(host)
        return step.encode_result(value)

    async def call(self, host: StepHost, /) -> Any:
        """Run one attempt; return its result."""
        step = self.step
        if step.is_async:
            return await step.fn(*self.args, **self.kwargs)
        value = await host.in_thread(functools.partial(step.fn, *self.args, **self.kwargs))
        return await value if inspect.isawaitable(value) else value


class StepCall(Struct, Generic[R_co], frozen=True):
    """A step with its arguments, not yet called, for `Flow.add`."""

    step: Step[..., R_co]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _StepDecorator(Protocol):
    @overload
    def __call__(self, fn: Callable[P, Awaitable[R]], /) -> Step[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Step[P, R]: ...


@overload
def step(
    fn: Callable[P, Awaitable[R]],
    /,
    *,
    retry: Retry | None = None,
    timeout: Duration | None = None,
    name: str | None = None,
) -> Step[P, R]: ...
@overload
def step(
    fn: Callable[P, R], /, *, retry: Retry | None = None, timeout: Duration | None = None, name: str | None = None
) -> Step[P, R]: ...
@overload
def step(*, retry: Retry | None = None, timeout: Duration | None = None, name: str | None = None) -> _StepDecorator: ...
def step(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    retry: Retry | None = None,
    timeout: Duration | None = None,
    name: str | None = None,
) -> Any:
    """Make a function a step: when a workflow calls it, its outcome is journaled, and it never runs again after that.

    `retry` is the retry policy (default: ten attempts over about 50 seconds). `timeout` bounds one attempt, in seconds
    or as a timedelta. `name` is the name in journals (default: the function's). Plain functions run in a thread.
    """
    if fn is None:
        return cast("Any", functools.partial(step, retry=retry, timeout=timeout, name=name))
    return cast("Any", Step(fn, retry=retry, timeout=timeout, name=name))
