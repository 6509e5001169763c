"""The decorator `@workflow`, and calls of workflows.

Called in a workflow, another workflow becomes a child: a command of the turn that runs the body. Called elsewhere, it
is an error that names `client.run`. Nothing is registered: a worker serves the workflows that it is given.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar, cast, final, overload

from msgspec import Struct
from msgspec.structs import replace

from perdure.authoring.by_name import GivenLoosely, Loose, elsewhere, is_loose, named
from perdure.authoring.functions import check_workflow, copy_of, is_same_code, line_of, mark_async, name_of, where_of
from perdure.authoring.step import Step
from perdure.core.busy import WhenBusy, check_when_busy
from perdure.core.context import BodyContext
from perdure.core.ids import check_name, check_new_id, seed_of
from perdure.core.journal import Arguments, Parent, Start
from perdure.core.recording import encode_as
from perdure.core.retry import DURATION_LIMIT_SECONDS, Duration, seconds
from perdure.core.signature import Signature, identity_of_arguments
from perdure.core.tags import Tags, check_tags
from perdure.core.turn import Turn, current_turn
from perdure.core.types import decoder
from perdure.errors import CalledOutsideWorkflow, InvalidOption, KeyDeadlock, NameTaken, NotAWorkflow

if TYPE_CHECKING:
    from typing_extensions import TypeForm  # in every type checker's own stubs: nothing to install

    from perdure.core.interface import Interface


C = TypeVar("C", bound=BodyContext)
P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)

Delay = float | timedelta | datetime
"""A delay in seconds or as a timedelta, or the time to start (an aware datetime)."""


class StartOptions(Struct, frozen=True):
    """The options of one start."""

    id: str | None = None
    key: str | None = None
    delay: Delay | None = None
    timeout: float | None = None
    tags: Tags = ()
    when_busy: WhenBusy = "enqueue"


class Workflow(Generic[P, R_co]):
    """A durable async function. Run it with `client.run`, or call it from another workflow as a child.

    `fn` is the plain function. `name` is its handler; `aliases` are older names that journals may have.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        name: str | None = None,
        aliases: Sequence[str] = (),
        timeout: Duration | None = None,
        loose: Loose | None = None,
        reference: bool = False,
    ) -> None:
        if isinstance(fn, staticmethod):
            fn = cast("Callable[..., Any]", fn.__func__)
        if isinstance(fn, Workflow | Step):
            kind = "workflow" if isinstance(fn, Workflow) else "step"
            raise NotAWorkflow(f"{cast('Any', fn).name!r} is already a {kind}: decorate the function once")
        check_workflow(fn)
        self._fn = fn
        self.name = check_name("a workflow's name", name_of(fn) if name is None else name)
        self._where, self._the_result = (
            f"workflow {self.name!r}",
            f"the result of workflow {self.name!r}",
        )  # for error texts
        if isinstance(aliases, str):
            raise InvalidOption(f"workflow {self.name!r}: aliases must be a list of names, not one str")
        self.aliases = tuple(check_name("a workflow's alias", alias) for alias in aliases)
        limit = None if timeout is None else seconds(f"timeout of workflow {self.name!r}", timeout, positive=True)
        self.options = StartOptions(timeout=limit)  # set by `using`
        self._original: Workflow[P, R_co] = self  # of copies with other options: what is resolved is resolved once
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
        """Whether this is a reference to code in another program, which a worker cannot serve."""
        return self._reference

    @property
    def original(self) -> Workflow[P, R_co]:
        """This workflow without the options that `using` added."""
        return self._original

    @property
    def where(self) -> str:
        """Where the function is defined, for error texts."""
        return where_of(self._fn)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, None, R_co]:
        turn = current_turn()
        if turn is None:
            where = (
                f"from here, use `await client.run({self.name}, ...)`, or `{self.name}.fn(...)` for the plain function"
            )
            raise CalledOutsideWorkflow(f"workflow {self.name!r} can be called only from a workflow: {where}")
        return self._child(turn, args, kwargs)

    def __repr__(self) -> str:
        return f"<workflow {self.name!r}>"

    def bind(self, /, *args: P.args, **kwargs: P.kwargs) -> Call[R_co]:
        """Return this workflow with its options and arguments, without starting it."""
        return Call(self, args, kwargs)

    def using(
        self,
        *,
        id: str | None = None,
        key: str | None = None,
        delay: Delay | None = None,
        timeout: Duration | None = None,
        tags: Mapping[str, str] | None = None,
        when_busy: WhenBusy | None = None,
    ) -> Self:
        """Return this workflow with options for one start.

        `id` makes the start idempotent. Invocations of one `key` run one at a time, in order, and share state. `delay`
        (seconds, a timedelta, or an aware datetime) delays the start; `timeout` bounds the run from when it is due.
        `tags` (at most 20) are names and values to find it by, as in `client.list(tags={"tenant": "acme"})`.
        `when_busy` says what a start by a client does if its key is held: "enqueue" (the default) waits, "reject" fails
        with `KeyBusy`, "interrupt" cancels the holder and all that wait before it, and "rollback" drops what these set
        besides.
        """
        other = copy_of(self)
        changes: dict[str, Any] = {}
        if id is not None:
            changes["id"] = check_new_id(id)
        if key is not None:
            changes["key"] = check_name("a key", key)
        if delay is not None:
            changes["delay"] = checked_delay(delay)
        if timeout is not None:
            changes["timeout"] = seconds(f"timeout of workflow {self.name!r}", timeout, positive=True)
        if tags is not None:
            changes["tags"] = check_tags(tags)
        if when_busy is not None:
            changes["when_busy"] = check_when_busy(when_busy)
        other.options = replace(self.options, **changes)
        return other

    # --- for the engine -----------------------------------------------------------------------------------------------
    def signature(self) -> Signature:
        """Return the parameters and types, which are resolved on the first call."""
        if self._signature is None:
            original = self._original
            made = Signature.of(self._fn, skip_context=BodyContext) if original is self else original.signature()
            self._signature = made
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
        """Return the start of an invocation; `InputRefused` if the arguments do not fit. An id in the options wins.

        `held` are the keys of the ancestors that wait for it.
        """
        options = self.options
        if options.key in held:
            raise KeyDeadlock(
                f"workflow {self.name!r} needs key {options.key!r}, which its parent or an ancestor holds while it "
                "waits: call it without the key, or send it instead",
                key=options.key,
            )
        if options.when_busy != "enqueue":
            raise InvalidOption(
                f"workflow {self.name!r}: when_busy={options.when_busy!r} is for starts by a client. What a workflow "
                "calls or sends waits for its key: leave when_busy out, or start it in a step"
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
            tags=options.tags,
            interface=self.interface_hash,
            flow=self.execution,
        )

    @functools.cached_property
    def interface(self) -> Interface | None:
        """What it takes and returns, as data; None for a reference by name. Raises `AnnotationUnresolved`."""
        from perdure.core.interface import interface_of  # noqa: PLC0415  most programs import it a little later

        if self._original is not self:
            return self._original.interface
        if self._loose is not None:
            return None
        description = inspect.getdoc(self._fn) or ""
        return interface_of(self.signature(), self._returns, description.partition("\n\n")[0])

    @functools.cached_property
    def interface_hash(self) -> bytes:
        """The name of the interface, as starts carry it; empty if it has none."""
        if self._original is not self:
            return self._original.interface_hash
        try:
            return b"" if self.interface is None else self.interface.hash
        except Exception:  # noqa: BLE001  annotations may be anything; the worker that publishes it logs why
            return b""

    @property
    def execution(self) -> bytes:
        """How it is to be executed, where the start says so: for flows."""
        return b""

    def check_beside(self, served: Workflow[..., Any], /) -> None:
        """Raise `NameTaken` if `served`, which a worker here serves by this name, has other code: that would run."""
        if not (self.is_reference or served.is_reference or is_same_code(self.fn, served.fn)):
            raise NameTaken(
                f"a worker of this client serves workflow {self.name!r} with other code: {served.described}, not "
                f"{self.described}: stop that worker first (the next one continues its invocations), or give one of "
                "them another name",
                name=self.name,
            )

    @property
    def described(self) -> str:
        """Where the function is defined, with file and line, for error texts."""
        return f"{self.where}{line_of(self._fn)}"

    def encode_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes, bytes]:
        """Return the encoded arguments and the digest that identifies the input; `InputRefused` if they do not fit."""
        if self._loose is not None:
            return self._loose.encode(args, kwargs, self.name), identity_of_arguments(args, kwargs)
        signature = self._signature or self.signature()
        data = signature.encode(args, kwargs, self._where, check=True)
        return data, signature.identity(args, kwargs)

    def given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """Return the arguments of a start, for comparison with recorded ones."""
        return self.signature().given(args, kwargs) if self._loose is None else GivenLoosely(args, kwargs)

    def body(self, start: Start, /) -> Callable[[Turn], Coroutine[Any, Any, Any]]:
        """Return a function that makes the coroutine of an invocation; `Undecodable` if its input no longer fits."""
        signature, data = self._signature or self.signature(), start.input
        if is_loose(data):
            args, kwargs = signature.decode(named(data, signature), validated=False)
        else:
            args, kwargs = signature.decode(data)
        fn = self._fn
        if not signature.takes_context:
            return lambda _: fn(*args, **kwargs)
        return lambda turn: fn(turn.context, *args, **kwargs)

    def encode_result(self, value: Any, /) -> bytes:
        """Encode the return value of the body; `Unencodable` if that is impossible."""
        return encode_as(value, self._returns, self._the_result)

    @functools.cached_property
    def decode_result(self) -> Callable[[bytes], Any]:
        """Decodes a result by the annotation."""
        return decoder(self._returns)

    @functools.cached_property
    def _returns(self) -> Any:
        return self._loose.returns if self._loose is not None else self.signature().returns

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise `InputRefused` or `Unencodable` for arguments that the workflow does not take."""
        self.encode_arguments(args, kwargs)

    async def _child(self, turn: Turn, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        def start(id: str, parent: Parent) -> Start:
            held = turn.keys_held
            return self.start_of(args, kwargs, id=id, at=turn.loop.time(), seed=seed_of(id), parent=parent, held=held)

        return await turn.call_child(start, self.decode_result, self.given(args, kwargs))


mark_async(Workflow)


class Call(Struct, Generic[R_co], frozen=True):
    """A workflow with its options and arguments, not yet started, for `run_all`."""

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
    def __call__(self, fn: Callable[Concatenate[C, P], Awaitable[R]], /) -> Workflow[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, Awaitable[R]], /) -> Workflow[P, R]: ...


class _WorkflowFactory:
    """The type of `workflow`: a decorator, with and without options, and `workflow.ref`."""

    @overload
    def __call__(
        self, fn: Callable[Concatenate[_Anything, P], Awaitable[R]], /
    ) -> Workflow[Concatenate[Any, P], R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[C, P], Awaitable[R]], /) -> Workflow[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, Awaitable[R]], /) -> Workflow[P, R]: ...
    @overload
    def __call__(
        self, *, name: str | None = None, aliases: Sequence[str] = (), timeout: Duration | None = None
    ) -> _WorkflowDecorator: ...
    def __call__(self, fn: Any = None, **options: Any) -> Any:
        """Make an async function a workflow.

        `name` is its handler (default: the function's name). `aliases` are older names of it. `timeout` bounds a run,
        in seconds or as a timedelta.
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
        """Refer to a workflow in another program: by a function without a body, or by name, with or without types."""
        make = cast("Any", functools.partial(cast("Any", Workflow), reference=True))
        if not isinstance(fn, str):
            return make(fn)
        loose = Loose((types["takes"],), types["returns"]) if types else Loose(None, Any)
        return make(elsewhere, name=fn, loose=loose)


workflow = _WorkflowFactory()


def checked_delay(delay: Delay, name: str = "delay") -> Delay:
    """Return a delay, or raise `InvalidOption`; `name` is the option, for error texts."""
    if isinstance(delay, datetime):
        if delay.tzinfo is None:
            raise InvalidOption(f"{name}={delay!r} has no time zone: give an aware datetime, or seconds")
        return delay
    return seconds(name, delay)


def due_at(delay: Delay, at: float, name: str = "delay") -> float:
    """Return when a delay from `at` on is over; `name` is the option, for error texts."""
    if isinstance(delay, datetime):
        due = delay.timestamp()
        if due > at + DURATION_LIMIT_SECONDS:
            raise InvalidOption(f"{name}={delay!r} is too far in the future")
        return max(due, at)
    return at + seconds(name, delay)
