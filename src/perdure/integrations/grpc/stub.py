"""Generated stubs whose calls are journaled: the stub in the body, and the work in the worker.

A journaled value is the reply as msgpack binary, or a `_Reply` if the service sent metadata.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast
from urllib.parse import quote

import grpc
import grpc.aio
import msgspec

from perdure.core.retry import Duration, Retry, seconds
from perdure.core.turn import Turn, current_turn
from perdure.core.values import digest, type_name
from perdure.errors import (
    CalledOutsideWorkflow,
    InvalidOption,
    IoInWorkflow,
    NotRepeatable,
    Undecodable,
    Unencodable,
)
from perdure.integrations.grpc.failures import Pairs, pairs_of
from perdure.integrations.grpc.policy import DEFAULT_RETRY, with_codes
from perdure.tracing import HEADER, here

if TYPE_CHECKING:
    from perdure.authoring.step import StepHost, StepInfo
    from perdure.integrations.grpc.channels import Connection

S = TypeVar("S")

INVOCATION_ID = "perdure-invocation-id"
"""Metadata: the id of the calling invocation, percent-encoded if it is not ASCII."""

IDEMPOTENCY_KEY = "perdure-idempotency-key"
"""Metadata: the same on every attempt and after every crash, so that a service can drop a repeated request."""

ATTEMPT = "perdure-attempt"
"""Metadata: which attempt this is, from 1."""

METHODS_LIMIT = 4_096
"""Methods whose parsed names are cached."""


# --- in the body: a stub that records its calls -----------------------------------------------------------------------
def journaled(
    stub_class: Callable[[grpc.aio.Channel], S],
    turn: Turn,
    /,
    *,
    retry: Retry | None = None,
    timeout: Duration | None = None,
) -> S:
    """Return a generated stub whose calls are steps of the turn.

    `retry` sets attempts and back-off; the status codes are those of `StatusRetry` by default, unless it sets `on` or
    is a `StatusRetry`. `timeout` (seconds or a timedelta) is the deadline of each attempt of each call.
    """
    policy = DEFAULT_RETRY if retry is None else with_codes(retry)
    limit = None if timeout is None else seconds("timeout of a stub", timeout, positive=True)
    return stub_class(_RecordingChannel(turn, policy, limit))


@dataclass(frozen=True, slots=True)
class _Method:
    """The names of a method: `/shop.Tickets/Reserve` is `Tickets.Reserve` in the journal."""

    path: str
    service: str
    name: str
    prefix: bytes  # separates its requests from those of other methods in a digest

    @staticmethod
    @lru_cache(maxsize=METHODS_LIMIT)
    def of(path: str | bytes) -> _Method:
        text = path.decode() if isinstance(path, bytes) else path
        service, slash, method = text.removeprefix("/").rpartition("/")
        if not (service and slash and method):
            raise InvalidOption(f"{text!r} is not a gRPC method: generated stubs name them /package.Service/Method")
        return _Method(text, service, f"{service.rpartition('.')[2]}.{method}", text.encode() + b"\0")


class _RecordingChannel(grpc.aio.Channel):
    """The channel of a stub in a workflow. It opens no connection."""

    def __init__(self, turn: Turn, retry: Retry, timeout: float | None) -> None:
        self._turn = turn
        self._retry = retry
        self._timeout = timeout

    def unary_unary(
        self,
        method: Any,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool | None = False,
    ) -> Any:
        return _Unary(
            self._turn, self._retry, self._timeout, _Method.of(method), request_serializer, response_deserializer
        )

    def _streaming(self, method: Any, *_: Any, **__: Any) -> Any:
        # Only the call is refused: the other methods of a stub with streaming methods can be used.
        def refuse(*_: Any, **__: Any) -> NoReturn:
            raise IoInWorkflow(
                f"{_Method.of(method).name} is a streaming method, which a workflow cannot journal: call it in a step "
                f"(an @step that opens its own channel and returns the result of the stream)"
            )

        return refuse

    unary_stream = stream_unary = stream_stream = _streaming

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def close(self, grace: float | None = None) -> None:
        """Do nothing: the worker's connections are its own."""

    def get_state(self, try_to_connect: bool = False) -> NoReturn:
        raise IoInWorkflow("a stub in a workflow has no connection, and so no state of one: check it in a step")

    async def wait_for_state_change(self, last_observed_state: object) -> NoReturn:
        self.get_state()

    async def channel_ready(self) -> NoReturn:
        self.get_state()


class _Unary:
    """Replaces `grpc.aio.UnaryUnaryMultiCallable` in a workflow."""

    __slots__ = ("_decode", "_deserialize", "_encode", "_method", "_retry", "_timeout", "_turn")

    def __init__(
        self,
        turn: Turn,
        retry: Retry,
        timeout: float | None,
        method: _Method,
        serialize: Callable[..., bytes] | None,
        deserialize: Callable[[bytes], Any] | None,
    ) -> None:
        self._turn = turn
        self._retry = retry
        self._timeout = timeout
        self._method = method
        self._encode = serialize
        self._decode = deserialize

    def __call__(
        self,
        request: Any,
        *,
        timeout: Duration | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> JournaledCall:
        """Issue the call. `timeout` bounds one attempt; all other options are passed on and not journaled."""
        method, turn = self._method, self._turn
        if current_turn() is not turn:
            raise CalledOutsideWorkflow(
                f"{method.name} was called on a stub of a workflow's context, but not in the body of that workflow: "
                f"in a step, create a stub of your own"
            )
        data = self._serialized(request)
        options: dict[str, Any] | None = None
        if credentials is not None or wait_for_ready is not None or compression is not None:
            options = {"credentials": credentials, "wait_for_ready": wait_for_ready, "compression": compression}
        work = GrpcWork(
            method,
            data,
            self._decode,
            self._retry,
            self._timeout if timeout is None else seconds(f"timeout of {method.name}", timeout, positive=True),
            () if metadata is None else _checked(metadata, method.name),
            options,
            getattr(cast("object", request).__class__, "FromString", None),
        )
        call = JournaledCall(method, self._decode)
        call.future = turn.call_step(method.name, digest(method.prefix + data), call.decode, work)
        return call

    @property
    def name(self) -> str:
        """The name of its steps."""
        return self._method.name

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise `Unencodable` for a request that the method does not take."""
        self._serialized(inspect.signature(self.__call__).bind(*args, **kwargs).arguments["request"])

    def _serialized(self, request: Any) -> bytes:
        encode = self._encode
        try:
            if encode is None:
                data = request
            elif getattr(encode, "__name__", "") == "SerializeToString":
                # Protobuf: maps need a fixed order, or the digest would differ on replay.
                data = encode(request, deterministic=True)
            else:
                data = encode(request)
        except Exception as error:
            kind = type_name(cast("object", request).__class__)
            raise Unencodable(
                f"the request of {self._method.name}, a {kind}, cannot be serialized: {error}", type=kind
            ) from error
        if not isinstance(data, bytes):
            raise Unencodable(
                f"the request of {self._method.name} serializes to {type(data).__name__}, not bytes",
                type=type(data).__name__,
            )
        return data


def _checked(metadata: Any, name: str) -> Pairs:
    """Return metadata as pairs; `InvalidOption` if it is invalid, for which gRPC reports only a failed batch."""
    try:
        pairs = tuple((key, value) for key, value in metadata)
    except (TypeError, ValueError):
        raise InvalidOption(f"metadata of {name} must be pairs of a name and a value, not {metadata!r}") from None
    for key, value in pairs:
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise InvalidOption(f"metadata of {name}: {key!r} is not a name: use a-z, 0-9, '_', '-' and '.'")
        if key.endswith("-bin"):
            if not isinstance(value, bytes):
                raise InvalidOption(f"metadata of {name}: {key!r} must be bytes, as its name ends in -bin")
        elif not _VALUE.fullmatch(value if isinstance(value, str) else _text_of(value)):
            raise InvalidOption(
                f"metadata of {name}: the value of {key!r} must be printable ASCII; for bytes let the name end in -bin"
            )
    return cast("Pairs", pairs)


# https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md, Custom-Metadata
_KEY = re.compile(r"[0-9a-z_.-]+")
_VALUE = re.compile(r"[\x20-\x7e]*")


def _text_of(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else "\0"


class _Reply(msgspec.Struct, frozen=True, array_like=True):
    """A reply with its metadata."""

    message: bytes
    initial: tuple[tuple[str, Any], ...]
    trailing: tuple[tuple[str, Any], ...]


_encode_reply = msgspec.msgpack.Encoder().encode
_decode_reply: Callable[[bytes], bytes | _Reply] = msgspec.msgpack.Decoder(bytes | _Reply).decode


class JournaledCall(grpc.aio.UnaryUnaryCall[Any, Any]):
    """A call in a workflow. Awaiting it, any number of times, gives the reply or raises the `AioRpcError`.

    `code`, `details` and the metadata wait for its end, as outside of workflows. `cancel` requests its end; awaiting it
    then raises `CancelledError` once that is journaled.
    """

    __slots__ = ("_deserialize", "_initial", "_method", "_trailing", "future")

    future: asyncio.Future[Any]

    def __init__(self, method: _Method, deserialize: Callable[[bytes], Any] | None) -> None:
        self._method = method
        self._deserialize = deserialize
        self._initial: Pairs = ()
        self._trailing: Pairs = ()

    def decode(self, value: bytes) -> Any:
        """Return the message of a journaled value."""
        try:
            reply = _decode_reply(value)
            if isinstance(reply, _Reply):
                self._initial, self._trailing = reply.initial, reply.trailing
                reply = reply.message
            return reply if self._deserialize is None else self._deserialize(reply)
        except Exception as error:
            name, reason = f"the reply of {self._method.name}", str(error)
            text = f"a recorded value does not decode as {name}: {reason}"
            raise Undecodable(text, annotation=name, reason=reason) from error

    def __await__(self) -> Generator[Any, Any, Any]:
        return self.future.__await__()

    def __hash__(self) -> int:
        return hash(self.future)  # a serial number: sets of calls iterate in the same order on replay

    __eq__ = object.__eq__

    def __repr__(self) -> str:
        return f"<call of {self._method.name}: {self.future!r}>"

    def done(self) -> bool:
        """Report whether it has ended."""
        return self.future.done()

    def cancelled(self) -> bool:
        """Report whether it was cancelled."""
        return self.future.cancelled()

    def cancel(self) -> bool:
        """Request its end; return false if it has ended."""
        return self.future.cancel()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call `callback` with this call once it has ended."""
        self.future.add_done_callback(lambda _: callback(self))

    async def code(self) -> grpc.StatusCode:
        """Wait for the end, and return its status code."""
        error = await self._end()
        if error is None:
            return grpc.StatusCode.CANCELLED if self.future.cancelled() else grpc.StatusCode.OK
        return error.code()

    async def details(self) -> str | None:  # pyright: ignore[reportIncompatibleMethodOverride]  None when there are none
        """Wait for the end, and return the details of the status."""
        error = await self._end()
        if error is None:
            return "the call was cancelled by the workflow" if self.future.cancelled() else ""
        return error.details()

    async def initial_metadata(self) -> grpc.aio.Metadata:
        """Wait for the end, and return the metadata sent before the reply."""
        error = await self._end()
        return grpc.aio.Metadata(*self._initial) if error is None else error.initial_metadata()

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        """Wait for the end, and return the metadata sent after the reply."""
        error = await self._end()
        return grpc.aio.Metadata(*self._trailing) if error is None else error.trailing_metadata()

    async def debug_error_string(self) -> str | None:
        """Wait for the end, and return gRPC's debugging text about a failure."""
        error = await self._end()
        return "" if error is None else error.debug_error_string()

    async def _end(self) -> grpc.aio.AioRpcError | None:
        """Wait for the end; return the status if it failed. A failure without a status (no address) is raised."""
        future = self.future
        if not future.done():
            await asyncio.wait([future])  # a cancelled waiter does not cancel the call
        error = None if future.cancelled() else future.exception()
        if error is None or isinstance(error, grpc.aio.AioRpcError):
            return error
        raise error

    def time_remaining(self) -> NoReturn:
        """Refuse: it would differ on replay."""
        raise NotRepeatable(
            f"time_remaining() of {self._method.name} reads a clock, which a replay cannot repeat: use an "
            f"asyncio.timeout around the call"
        )

    async def wait_for_connection(self) -> None:
        """Refuse: there is no connection in a workflow."""
        raise IoInWorkflow(
            f"a call in a workflow has no connection to wait for; pass wait_for_ready=True to {self._method.name}"
        )


# --- in the worker: the real call -------------------------------------------------------------------------------------
class GrpcWork:
    """A call, as run by a worker (a `runtime.steps.Work`)."""

    __slots__ = ("_deadline", "_deserialize", "_metadata", "_method", "_options", "_read_request", "_request", "retry")

    timeout: float | None = None
    """None: gRPC's own deadline, which the service gets too, bounds an attempt."""

    def __init__(
        self,
        method: _Method,
        request: bytes,
        deserialize: Callable[[bytes], Any] | None,
        retry: Retry,
        deadline: float | None,
        metadata: Pairs,
        options: dict[str, Any] | None,
        read_request: Callable[[bytes], Any] | None = None,
    ) -> None:
        self._method = method
        self._request = request
        self._read_request = read_request
        self._deserialize = deserialize
        self.retry = retry
        self._deadline = deadline
        self._metadata = metadata
        self._options = options

    @property
    def name(self) -> str:
        return self._method.name

    async def run(self, host: StepHost, info: StepInfo, /) -> bytes:
        """Make the call once; return the reply as it is journaled, or raise the error of gRPC."""
        method = self._method
        connection: Connection = host.channel(method.service)
        call = connection.method(method.path)(
            self._request, timeout=self._deadline, metadata=self._sent(info), **(self._options or {})
        )
        message: bytes = await call
        if self._deserialize is not None:
            self._check_reply(self._deserialize, message)
        initial, trailing = await call.initial_metadata(), await call.trailing_metadata()
        if initial or trailing:
            return _encode_reply(_Reply(message, pairs_of(initial), pairs_of(trailing)))
        return _encode_reply(message)

    async def answer_with(self, function: Callable[[Any], Any], /) -> bytes:
        """Call a function instead of the service; return its reply as it is journaled. For tests."""
        reply: Any = function(self._request if self._read_request is None else self._read_request(self._request))
        if inspect.isawaitable(reply):
            reply = await reply
        if isinstance(reply, bytes):
            return _encode_reply(reply)
        kind = type_name(cast("object", reply).__class__)
        if not hasattr(reply, "SerializeToString"):
            raise Unencodable(f"the fake of {self._method.name} returned a {kind}, which is not a message", type=kind)
        message: bytes = reply.SerializeToString()
        if self._deserialize is not None:
            expected: object = self._deserialize(message).__class__
            if expected is not reply.__class__:
                text = f"the fake of {self._method.name} returned a {kind}, not a {type_name(expected)}"
                raise Unencodable(text, type=kind)
        return _encode_reply(message)

    def _sent(self, info: StepInfo) -> Pairs:
        id = info.invocation_id
        ours = (
            (INVOCATION_ID, id if id.isascii() else quote(id)),
            (IDEMPOTENCY_KEY, info.idempotency_key),
            (ATTEMPT, str(info.attempt)),
            *(((HEADER, trace),) if (trace := here.get()) else ()),
        )
        if not self._metadata:
            return ours
        theirs = {key for key, _ in self._metadata}
        return (*(pair for pair in ours if pair[0] not in theirs), *self._metadata)

    def _check_reply(self, deserialize: Callable[[bytes], Any], message: bytes) -> None:
        """Fail the call if its reply does not decode. Once journaled, it would block the invocation for ever."""
        try:
            deserialize(message)
        except Exception as error:
            details = f"the reply of {self._method.name} does not decode: {error}"
            raise grpc.aio.AioRpcError(
                grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details
            ) from error
