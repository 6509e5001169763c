"""What authors write: `@step` and `@workflow`, and what a call of either means where it is made.

Inside a workflow a call becomes a command of the turn that runs the body; anywhere else a step is the plain function
and a workflow is an error that names `client.run`. Nothing is registered: a decorated function is a value, and a
worker serves what it is given.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar, cast, final, overload

from msgspec import Struct
from msgspec.structs import replace

from perdure.core.codec import decoder, encode, encode_as
from perdure.core.ids import check_name, idempotency_key, seed_of
from perdure.core.journal import Parent, Start
from perdure.core.retry import DEFAULT_RETRY, DURATION_LIMIT_SECONDS, Duration, Retry, seconds
from perdure.core.signature import Signature, identity_of_arguments
from perdure.core.turn import Turn, current_turn
from perdure.errors import (
    CalledOutsideWorkflow,
    InputRefused,
    InvalidOption,
    KeyDeadlock,
    NotAsync,
    NotAWorkflow,
    Undecodable,
    Unencodable,
)

if TYPE_CHECKING:
    from typing_extensions import TypeForm  # in every type checker's own stubs: nothing to install

    from perdure.authoring.context import Context

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)

Delay = float | timedelta | datetime
"""How long to wait, or until when (an aware datetime)."""


# --- inside a step ----------------------------------------------------------------------------------------------------
class StepInfo:
    """What a running step may know of itself. `attempt` counts from 1."""

    __slots__ = ("_place", "attempt", "invocation_id")

    def __init__(self, invocation_id: str, generation: int, n: int, name: str, attempt: int) -> None:
        self.invocation_id = invocation_id
        self.attempt = attempt
        self._place = (generation, n, name)

    @property
    def idempotency_key(self) -> str:
        """The same on every attempt and after every crash: send it along with what must happen once."""
        return idempotency_key(self.invocation_id, *self._place)

    def __repr__(self) -> str:
        return f"StepInfo({self.invocation_id!r}, step={self._place[2]!r}, attempt={self.attempt})"


current_step: ContextVar[StepInfo] = ContextVar("perdure_step")


def step_info() -> StepInfo:
    """Return what the running step may know of itself; `CalledOutsideWorkflow` when no workflow called this step."""
    try:
        return current_step.get()
    except LookupError:
        raise CalledOutsideWorkflow("step_info() is for the inside of a step that a workflow called") from None


class Work(Protocol):
    """What a step's command needs to run."""

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
    """What a running step may use of its worker."""

    async def in_thread(self, fn: Callable[[], Any], /) -> Any: ...
    def channel(self, service: str, /) -> Any: ...


# --- steps ------------------------------------------------------------------------------------------------------------
class Step(Generic[P, R_co]):
    """A function whose outcome is journaled when a workflow calls it. Awaited wherever it is called.

    `fn` is the plain function. `name` is what journals call it.
    """

    def __init__(
        self, fn: Callable[..., Any], *, retry: Retry | None, timeout: Duration | None, name: str | None
    ) -> None:
        self._static = isinstance(fn, staticmethod)
        self._class = isinstance(fn, classmethod)
        if isinstance(fn, (staticmethod, classmethod)):
            fn = cast("Callable[..., Any]", fn.__func__)  # pyright: ignore[reportUnknownMemberType]
        if not callable(fn):
            raise NotAWorkflow(f"@step goes on a function, not on {fn!r}")
        self._fn = fn
        self._rename(name or _name_of(fn))
        self.retry = retry or DEFAULT_RETRY
        self.timeout = None if timeout is None else seconds(f"timeout of step {self.name!r}", timeout, positive=True)
        self.is_async = _is_async(fn)
        self._signature: Signature | None = None
        self._bound: dict[str, Signature] = {}
        functools.update_wrapper(self, fn, updated=())

    @property
    def fn(self) -> Callable[P, Any]:
        """The plain function."""
        return self._fn

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, None, R_co]:
        turn = current_turn()
        return self._plain(args, kwargs) if turn is None else self._durable(turn, args, kwargs)

    def using(self, *, retry: Retry | None = None, timeout: Duration | None = None, name: str | None = None) -> Self:
        """Return this step with other options: `timeout` bounds one attempt, in seconds or as a timedelta."""
        other = _copy(self)
        if retry is not None:
            other.retry = retry
        if timeout is not None:
            other.timeout = seconds(f"timeout of step {self.name!r}", timeout, positive=True)
        if name is not None:
            other._rename(name)  # noqa: SLF001
        return other

    def _rename(self, name: str) -> None:
        self.name = check_name("a step's name", name)
        self._result = f"the result of step {self.name!r}"  # for texts

    def bind(self, /, *args: P.args, **kwargs: P.kwargs) -> StepCall[R_co]:
        """Return this step with its arguments, not yet called."""
        return StepCall(self, args, kwargs)

    @overload
    def __get__(self, obj: None, owner: type, /) -> Self: ...
    @overload
    def __get__(self: Step[Concatenate[T, Q], S], obj: T, owner: type | None = None, /) -> Step[Q, S]: ...
    def __get__(self, obj: Any, owner: Any = None, /) -> Any:
        target = owner if self._class else obj
        if self._static or target is None:
            return self
        bound = _copy(self)
        bound._fn = self._fn.__get__(target)  # noqa: SLF001
        signature = self._bound.get("signature")
        if signature is None:
            signature = self._bound["signature"] = Signature.of(self._fn, skip_self=True)
        bound._signature = signature  # noqa: SLF001
        bound._static = True  # noqa: SLF001
        return bound

    def signature(self) -> Signature:
        """Return the parameters and types, which are resolved once."""
        if self._signature is None:
            self._signature = Signature.of(self._fn)
        return self._signature

    async def _plain(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.is_async:
            return await self._fn(*args, **kwargs)
        result = await asyncio.to_thread(self._fn, *args, **kwargs)
        return await result if inspect.isawaitable(result) else result

    async def _durable(self, turn: Turn, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        digest = (self._signature or self.signature()).digest(args, kwargs)
        work = StepWork(self, args, kwargs, self.name, self.retry, self.timeout)
        return await turn.call_step(self.name, digest, self.decode_result, work)

    @functools.cached_property
    def decode_result(self) -> Callable[[bytes], Any]:
        """Decodes a result by the annotation."""
        return decoder(self._returns)

    def encode_result(self, value: Any, /) -> bytes:
        """Encode a result, or raise `Unencodable` when it cannot be, or is not what the annotation says."""
        return encode_as(value, self._returns, self._result)

    @functools.cached_property
    def _returns(self) -> Any:
        return self.signature().returns


class StepWork(Struct, eq=False):
    """A step's call, as the runtime runs it."""

    step: Step[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    name: str
    retry: Retry
    timeout: float | None

    async def run(self, host: StepHost, info: StepInfo, /) -> bytes:
        """Run one attempt; return the encoded result."""
        step = self.step
        if step.is_async:
            value = await step.fn(*self.args, **self.kwargs)
        else:
            value = await host.in_thread(functools.partial(step.fn, *self.args, **self.kwargs))
            if inspect.isawaitable(value):
                value = await value
        return step.encode_result(value)


class StepCall(Struct, Generic[R_co], frozen=True):
    """A step with its arguments, not yet called: what `Flow.add` takes."""

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
    """Make a function a step: its outcome is journaled when a workflow calls it, and it never runs again after that.

    `retry` says when a failure is tried again (ten attempts over about 50 seconds); `timeout` bounds one attempt, in
    seconds or as a timedelta; `name` is what journals call it (the function's name). Plain functions run in a thread.
    """
    if fn is None:
        return cast("Any", functools.partial(step, retry=retry, timeout=timeout, name=name))
    return cast("Any", Step(fn, retry=retry, timeout=timeout, name=name))


# --- workflows --------------------------------------------------------------------------------------------------------
class StartOptions(Struct, frozen=True):
    """How one invocation is to be started."""

    id: str | None = None
    key: str | None = None
    delay: Delay | None = None
    timeout: float | None = None


class Workflow(Generic[P, R_co]):
    """A durable async function. Run it with `client.run`, or call it from another workflow as a child.

    `fn` is the plain function. `name` is its handler; `aliases` are older names under which journals may know it.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        name: str | None = None,
        aliases: Sequence[str] = (),
        timeout: Duration | None = None,
        loose: _Loose | None = None,
        reference: bool = False,
    ) -> None:
        if not inspect.iscoroutinefunction(fn):
            if not callable(fn):
                raise NotAWorkflow(f"@workflow goes on an async function, not on {fn!r}")
            raise NotAsync(f"workflow {_where(fn)} is not async: write `async def`; plain functions can be steps")
        self._fn = fn
        self.name = check_name("a workflow's name", name or _name_of(fn))
        if isinstance(aliases, str):
            raise InvalidOption(f"workflow {self.name!r}: aliases must be a list of names, not one str")
        self.aliases = tuple(check_name("a workflow's alias", alias) for alias in aliases)
        limit = None if timeout is None else seconds(f"timeout of workflow {self.name!r}", timeout, positive=True)
        self._options = StartOptions(timeout=limit)
        self._signature: Signature | None = None
        self._loose = loose
        self._reference = reference
        functools.update_wrapper(self, fn, updated=())

    @property
    def fn(self) -> Callable[..., Coroutine[Any, Any, Any]]:
        """The plain function."""
        return self._fn

    @property
    def is_reference(self) -> bool:
        """Whether the code lives elsewhere: a worker cannot serve it."""
        return self._reference

    @property
    def where(self) -> str:
        """Where the function is defined, for messages."""
        return _where(self._fn)

    @property
    def options(self) -> StartOptions:
        """What `using` has set."""
        return self._options

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, None, R_co]:
        turn = current_turn()
        if turn is None:
            where = (
                f"from here, use `await client.run({self.name}, ...)`, or `{self.name}.fn(...)` for the plain function"
            )
            raise CalledOutsideWorkflow(f"workflow {self.name!r} can be called only from a workflow: {where}")
        return self._child(turn, args, kwargs)

    def bind(self, /, *args: P.args, **kwargs: P.kwargs) -> Call[R_co]:
        """Return this workflow with its options and arguments, not yet started."""
        return Call(self, args, kwargs)

    def using(
        self,
        *,
        id: str | None = None,
        key: str | None = None,
        delay: Delay | None = None,
        timeout: Duration | None = None,
    ) -> Self:
        """Return this workflow with options for one start.

        `id` makes the start idempotent. Invocations of one `key` run one at a time, in order, and share state. `delay`
        (seconds, timedelta, or an aware datetime) puts the start off; `timeout` bounds the run from when it is due.
        """
        other = _copy(self)
        changes: dict[str, Any] = {}
        if id is not None:
            changes["id"] = check_name("an invocation's id", id)
        if key is not None:
            changes["key"] = check_name("a key", key)
        if delay is not None:
            changes["delay"] = _checked_delay(delay)
        if timeout is not None:
            changes["timeout"] = seconds(f"timeout of workflow {self.name!r}", timeout, positive=True)
        other._options = replace(self._options, **changes)  # noqa: SLF001
        return other

    # --- for the engine -----------------------------------------------------------------------------------------------
    def signature(self) -> Signature:
        """Return the parameters and types, which are resolved once."""
        if self._signature is None:
            from perdure.authoring.context import Context  # noqa: PLC0415  the two modules name each other

            self._signature = Signature.of(self._fn, skip_context=Context)
        return self._signature

    def start_of(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        id: str,
        at: float,
        seed: int,
        parent: Parent | None = None,
        held: tuple[str, ...] = (),
    ) -> Start:
        """Make the start of an invocation, or raise `InputRefused`. `id` is used unless the options choose one.

        `held` are the keys of the ancestors that wait for it.
        """
        options = self._options
        if options.key in held:
            raise KeyDeadlock(
                f"workflow {self.name!r} needs key {options.key!r}, which its parent or an ancestor holds while it "
                "waits: call it without the key, or send it instead",
                key=options.key,
            )
        data, identity = self.encode_arguments(args, kwargs)
        return Start(
            options.id or id,
            self.name,
            data,
            at,
            at if options.delay is None else due_at(options.delay, at),
            seed,
            options.key,
            options.timeout,
            parent,
            options.id is not None,
            held,
            identity,
        )

    def encode_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes, bytes]:
        """Return the encoded arguments and the digest that tells inputs apart, or raise `InputRefused`."""
        if self._loose is not None:
            return self._loose.encode(args, kwargs, self.name), identity_of_arguments(args, kwargs)
        signature = self.signature()
        data = signature.encode(args, kwargs, f"workflow {self.name!r}", check=True)
        return data, signature.identity(args, kwargs)

    def body(self, start: Start, /) -> Callable[[Turn], Coroutine[Any, Any, Any]]:
        """Return what makes the coroutine of an invocation; `Undecodable` when its input does not fit any more."""
        signature = self.signature()
        args, kwargs = signature.decode(_named(start.input, signature))
        fn = self._fn
        if not signature.takes_context:
            return lambda _: fn(*args, **kwargs)
        from perdure.authoring.context import Context  # noqa: PLC0415  the two modules name each other

        return lambda turn: fn(Context(turn), *args, **kwargs)

    def encode_result(self, value: Any, /) -> bytes:
        """Encode what the body returned, or raise `Unencodable`."""
        return encode_as(value, self._returns, f"the result of workflow {self.name!r}")

    @functools.cached_property
    def decode_result(self) -> Callable[[bytes], Any]:
        """Decodes a result by the annotation."""
        return decoder(self._returns)

    @functools.cached_property
    def _returns(self) -> Any:
        return self._loose.returns if self._loose is not None else self.signature().returns

    async def _child(self, turn: Turn, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        def start(id: str, parent: Parent) -> Start:
            held = turn.keys_held
            return self.start_of(args, kwargs, id=id, at=turn.loop.now, seed=seed_of(id), parent=parent, held=held)

        return await turn.call_child(start, self.decode_result)


class Call(Struct, Generic[R_co], frozen=True):
    """A workflow with its options and arguments, not yet started: what `run_all` takes."""

    workflow: Workflow[..., R_co]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@final
class _Anything:
    """No value has this type: a first parameter that accepts it accepts everything (Any, object, a type variable)."""


class _WorkflowDecorator(Protocol):
    @overload
    def __call__(
        self, fn: Callable[Concatenate[_Anything, P], Awaitable[R]], /
    ) -> Workflow[Concatenate[Any, P], R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[Context, P], Awaitable[R]], /) -> Workflow[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, Awaitable[R]], /) -> Workflow[P, R]: ...


class _WorkflowFactory:
    """The type of `workflow`: a decorator, with and without options, and `workflow.ref`."""

    @overload
    def __call__(
        self, fn: Callable[Concatenate[_Anything, P], Awaitable[R]], /
    ) -> Workflow[Concatenate[Any, P], R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[Context, P], Awaitable[R]], /) -> Workflow[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, Awaitable[R]], /) -> Workflow[P, R]: ...
    @overload
    def __call__(
        self, *, name: str | None = None, aliases: Sequence[str] = (), timeout: Duration | None = None
    ) -> _WorkflowDecorator: ...
    def __call__(self, fn: Any = None, **options: Any) -> Any:
        """Make an async function a workflow.

        `name` is its handler (the function's name), `aliases` older names of it, `timeout` its time limit in seconds
        or as a timedelta.
        """
        make: Any = Workflow
        return functools.partial(make, **options) if fn is None else make(fn, **options)

    @overload
    def ref(self, fn: Callable[P, Awaitable[R]], /) -> Workflow[P, R]: ...
    @overload
    def ref(self, name: str, /) -> Workflow[..., Any]: ...
    @overload
    def ref(self, name: str, /, *, takes: TypeForm[S], returns: TypeForm[T]) -> Workflow[[S], T]: ...
    def ref(self, fn: Any, /, **types: Any) -> Any:
        """Name a workflow that lives elsewhere: by a function without a body, or by name, with types or without."""
        make = cast("Any", functools.partial(cast("Any", Workflow), reference=True))
        if not isinstance(fn, str):
            return make(fn)
        loose = _Loose((types["takes"],), types["returns"]) if types else _Loose(None, Any)
        return make(_elsewhere, name=fn, loose=loose)


workflow = _WorkflowFactory()


async def _elsewhere(*_: Any, **__: Any) -> Any:
    raise CalledOutsideWorkflow("a workflow known only by its name has no code here: it lives in another program")


class _Loose(Struct, frozen=True):
    """The types of a workflow whose parameter names are not known here. Its positional arguments are recorded as such.

    `takes` are the types of the positional arguments, or None to take anything.
    """

    takes: tuple[Any, ...] | None
    returns: Any

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> bytes:
        if self.takes is not None and (len(args) != len(self.takes) or kwargs):
            raise InputRefused(f"workflow {name!r} takes {len(self.takes)} positional argument, not {len(args)}")
        for value, type in zip(args, self.takes or (), strict=False):
            try:
                encode_as(value, type, f"the argument of workflow {name!r}")
            except Unencodable as error:
                raise InputRefused(f"workflow {name!r}: {error}") from error
        return encode({_POSITIONAL: list(args), **kwargs}, f"the arguments of workflow {name!r}")


_POSITIONAL = "*"
_POSITIONAL_FIRST = encode(_POSITIONAL)


def _named(data: bytes, signature: Signature) -> bytes:
    """Give positional arguments, recorded by a caller who did not know their names, the names they have here."""
    if data[1:3] != _POSITIONAL_FIRST:
        return data
    recorded: dict[str, Any] = decoder(dict[str, Any])(data)
    args: list[Any] = recorded.pop(_POSITIONAL)
    names = [one.name for one in signature.parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    rest = next((one.name for one in signature.parameters if one.kind is one.VAR_POSITIONAL), None)
    named = dict(zip(names, args, strict=False))
    if len(args) > len(names):
        if rest is None:
            raise Undecodable(f"the input of {signature.name} has {len(args)} arguments, and it takes {len(names)}")
        named[rest] = args[len(names) :]
    return encode({**named, **recorded})


# --- inside -----------------------------------------------------------------------------------------------------------
def _copy(original: T) -> T:
    other = object.__new__(type(original))
    other.__dict__.update(original.__dict__)
    return other


def _name_of(fn: Any) -> str:
    while isinstance(fn, functools.partial):
        fn = cast("functools.partial[Any]", fn).func
    return getattr(fn, "__name__", None) or type(fn).__name__


def _where(fn: Any) -> str:
    return f"{getattr(fn, '__module__', '?')}.{getattr(fn, '__qualname__', _name_of(fn))}"


def _is_async(fn: Any) -> bool:
    while isinstance(fn, functools.partial):
        fn = cast("functools.partial[Any]", fn).func
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004


def _checked_delay(delay: Delay) -> Delay:
    if isinstance(delay, datetime):
        if delay.tzinfo is None:
            raise InvalidOption(f"delay={delay!r} has no time zone: give an aware datetime, or seconds")
        return delay
    return seconds("delay", delay)


def due_at(delay: Delay, at: float) -> float:
    """Return when a start that is put off at `at` is due."""
    if isinstance(delay, datetime):
        due = delay.timestamp()
        if due > at + DURATION_LIMIT_SECONDS:
            raise InvalidOption(f"delay={delay!r} is too far in the future")
        return max(due, at)
    return at + seconds("delay", delay)
