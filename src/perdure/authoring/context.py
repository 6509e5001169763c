"""The context: the operations of a workflow that plain asyncio does not have."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator, Iterable, MutableMapping, Sequence
from datetime import UTC, datetime
from random import Random
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast, overload
from uuid import UUID

from msgspec.structs import replace

from perdure.authoring.children import run_children
from perdure.authoring.group import SETTLE_SECONDS, Group, Wait
from perdure.authoring.saga import Saga
from perdure.authoring.streams import StreamWriter
from perdure.authoring.workflow import Delay, checked_delay, due_at
from perdure.core.context import BodyContext
from perdure.core.ids import check_name, seed_of
from perdure.core.journal import NOT_ASKED, Asked, Start
from perdure.core.retry import Duration, Retry
from perdure.core.schema import answer_schema
from perdure.core.turn import Turn
from perdure.core.types import decoder, validator
from perdure.core.values import agrees, encode
from perdure.errors import InvalidOption, LimitExceeded, Undecodable

if TYPE_CHECKING:
    import grpc.aio
    from typing_extensions import TypeForm

    from perdure.authoring.workflow import Call, Workflow

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


TEXT_LIMIT_BYTES = 10_000
"""The longest title, description or assignee of an awakeable."""


class Awakeable(Generic[T_co]):
    """A promise that is resolved from outside, by its `id`. Awaiting it survives restarts and holds no memory."""

    def __init__(self, id: str, future: asyncio.Future[T_co]) -> None:
        self.id = id
        self._future = future

    def __await__(self) -> Generator[Any, Any, T_co]:
        # Shielded: a wait that ends early, as in `asyncio.timeout`, leaves the promise open for another wait.
        return asyncio.shield(self._future).__await__()


class Context(BodyContext):
    """The context of one invocation. It is passed to a first parameter that is annotated `Context`."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn

    @property
    def invocation_id(self) -> str:
        """The id of this invocation."""
        return self._turn.start.id

    @property
    def key(self) -> str | None:
        """The key that this invocation holds, if it was started with one."""
        return self._turn.start.key

    @property
    def is_replaying(self) -> bool:
        """Whether the body is replaying: what it does now was done before."""
        return self._turn.replaying

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger named after the workflow, silent while replaying."""
        return _WorkflowLogger(logging.getLogger(f"perdure.workflow.{self._turn.start.handler}"), self._turn)

    @property
    def random(self) -> Random:
        """A random number generator that gives the same numbers on replay."""
        return self._turn.random

    def now(self) -> datetime:
        """Return the time of the last entry delivered to the body, in UTC. It is the same on replay."""
        return datetime.fromtimestamp(self._turn.loop.time(), UTC)

    def uuid4(self) -> UUID:
        """Return a random UUID that is the same on replay."""
        return UUID(int=self._turn.random.getrandbits(128), version=4)

    def patched(self, name: str, /) -> bool:
        """Report whether this invocation has the change `name`; false if it passed this point before the change."""
        return self._turn.patched(check_name("a patch's name", name))

    # --- state --------------------------------------------------------------------------------------------------------
    @overload
    def get(self, name: str, type: TypeForm[T], /, default: T) -> T: ...
    @overload
    def get(self, name: str, type: TypeForm[T], /, default: None = None) -> T | None: ...
    def get(self, name: str, type: Any, /, default: Any = None) -> Any:
        """Return a copy of the value under `name`, decoded as `type`, or `default` when there is none."""
        data = self._turn.state.get(name)
        return default if data is None else decoder(type)(data)

    def set(self, name: str, value: object, /) -> None:
        """Set the value under `name`; it is recorded with the next frame."""
        data = encode(value, f"the state {name!r}")
        self._turn.set_state(check_name("a state's name", name), data, lambda then: agrees(value, decoder(Any)(then)))

    def delete(self, name: str, /) -> None:
        """Delete the value under `name`."""
        self._turn.set_state(check_name("a state's name", name), None)

    def saga(self) -> Saga:
        """Return a block that undoes what was done in it if it fails: `async with ctx.saga() as saga:`."""
        return Saga(self._turn)

    def stream(self, name: str, type: TypeForm[T], /) -> StreamWriter[T]:
        """Return a writer to the stream `name` of this invocation. Items are recorded with the next frame.

        So each is written once, whatever dies meanwhile; and a replay writes nothing.
        """
        return StreamWriter(name, type, _BodySink(self._turn))

    # --- other invocations, promises and services ---------------------------------------------------------------------
    def send(self, workflow: Workflow[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> str:
        """Start another workflow exactly once, without waiting for it, and return its id. It outlives the sender."""
        turn = self._turn

        def start(id: str) -> Start:
            return workflow.start_of(args, kwargs, id=id, at=turn.loop.time(), seed=seed_of(id))

        return turn.send(start, workflow.given(args, kwargs))

    def awakeable(
        self,
        type: TypeForm[T],
        /,
        *,
        title: str | None = None,
        description: str | None = None,
        assignees: Sequence[str] = (),
        expires: Delay | None = None,
    ) -> Awakeable[T]:
        """Return a promise of a value of `type`, to be resolved from outside.

        `title`, `description` and `assignees` are told to people who look for what waits for them; they are no
        permission. After `expires` (seconds, a timedelta or an aware datetime) it takes no answer, and awaiting it
        raises `AwakeableExpired`, a `TimeoutError`.
        """
        turn, read, validate = self._turn, decoder(type), validator(type)
        told = NOT_ASKED
        if title is not None or description is not None or assignees or expires is not None:
            told = _asked(turn, title, description, assignees, expires)
        asked = replace(told, schema=schema) if (schema := answer_schema(type)) else told

        def decode(data: bytes) -> T:
            try:
                return validate(data)  # it was given from outside, as builtin types
            except Undecodable:
                if turn.replaying:
                    return read(data)  # it was valid when it was recorded
                raise

        id, future = turn.open_awakeable(decode, asked)
        return Awakeable(id, future)

    def stub(
        self, stub: Callable[[grpc.aio.Channel], S], /, *, retry: Retry | None = None, timeout: Duration | None = None
    ) -> S:
        """Return a generated gRPC stub whose every call is journaled. Addresses come from the worker's `services`."""
        return cast("S", self._turn.make_stub(stub, retry, timeout))

    async def run_all(
        self,
        calls: Iterable[Call[R]],
        /,
        *,
        wait: Wait | None = None,
        concurrency: int | None = None,
        settle: Duration = SETTLE_SECONDS,
    ) -> Group[R]:
        """Run several workflows as children, at most `concurrency` at a time, and gather their outcomes in order.

        When `wait` is over, the remaining children are cancelled, and awaited for at most `settle` seconds; those that
        have not ended then are `Unsettled`.
        """
        return await run_children(self._turn, calls, wait=wait, concurrency=concurrency, settle=settle)


def _asked(turn: Turn, title: object, description: object, assignees: object, expires: Delay | None) -> Asked:
    for name, text in (("title", title), ("description", description)):
        if text is not None:
            _check_text(name, text)
    if isinstance(assignees, str) or not isinstance(assignees, Sequence):
        raise InvalidOption(f"ctx.awakeable(assignees={assignees!r}): give a list of str")
    for each in cast("Sequence[object]", assignees):
        _check_text("assignees", each)
    expires_at = None
    if expires is not None:
        expires_at = due_at(checked_delay(expires, "expires"), turn.loop.time(), "expires")
    return Asked(cast("Any", title), cast("Any", description), tuple(cast("Sequence[str]", assignees)), expires_at)


def _check_text(name: str, text: object) -> None:
    if not isinstance(text, str):
        raise InvalidOption(f"ctx.awakeable({name}={text!r}): give a str")
    if len(data := encode(text, f"the {name} of an awakeable")) > TEXT_LIMIT_BYTES:
        raise LimitExceeded(
            f"ctx.awakeable({name}={text[:20]!r}…): {len(data):,} bytes, and the limit is {TEXT_LIMIT_BYTES:,}",
            size=len(data),
            limit=TEXT_LIMIT_BYTES,
        )


class _BodySink:
    """Takes what a body writes to streams. It has room always: the limit of a stream bounds what is written."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn

    def write(self, name: str, item: bytes, /) -> None:
        self._turn.write(name, item)

    def offer(self, name: str, item: bytes, /) -> bool:
        self._turn.write(name, item)
        return True

    async def drain(self) -> None:
        pass


class _WorkflowLogger(logging.LoggerAdapter[logging.Logger]):
    """Silent while replaying; adds the invocation's id and handler to what the call has as `extra`."""

    def __init__(self, logger: logging.Logger, turn: Turn) -> None:
        super().__init__(logger)
        self._about = {"invocation_id": turn.start.id, "handler": turn.start.handler}
        self._turn = turn

    def process(self, msg: object, kwargs: MutableMapping[str, Any]) -> tuple[object, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(kwargs.get("extra") or {}), **self._about}
        return msg, kwargs

    def isEnabledFor(self, level: int) -> bool:
        return not self._turn.replaying and self.logger.isEnabledFor(level)
