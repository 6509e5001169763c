"""gRPC in workflows: a generated stub whose every call is journaled, and the connections on which they are made.

In a body, `journaled` hands the stub a channel that opens nothing: a call becomes a step of the turn, numbered when it
is made. In the worker, `GrpcWork` makes the real call on one of `Channels`, bytes in and bytes out. `TRANSLATORS` tell
the journal how to keep what gRPC raises. Knows no store and no worker.

A journaled value is the reply as msgpack binary, or `_Reply` when the service sent metadata along.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable, Generator, Mapping, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast
from urllib.parse import quote

import msgspec

from perdure.core.codec import digest, type_name
from perdure.core.retry import Duration, Retry, seconds
from perdure.core.turn import Turn, current_turn
from perdure.errors import (
    CalledOutsideWorkflow,
    InvalidOption,
    IoInWorkflow,
    NotRepeatable,
    ServiceUnknown,
    Undecodable,
    Unencodable,
)

try:
    import grpc
    import grpc.aio
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("gRPC is not installed: pip install 'perdure[grpc]'", name=error.name) from error

if TYPE_CHECKING:
    from perdure.authoring.workflow import StepHost, StepInfo
    from perdure.core.codec import Failure, FailureTranslator

S = TypeVar("S")

INVOCATION_ID = "perdure-invocation-id"
"""Metadata: the id of the calling invocation, percent-encoded if it is not ASCII."""

IDEMPOTENCY_KEY = "perdure-idempotency-key"
"""Metadata: the same on every attempt and after every crash, so that a service can do once what is asked twice."""

ATTEMPT = "perdure-attempt"
"""Metadata: which attempt this is, from 1."""

RETRIED = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED}
)
"""Status codes after which a call is tried again, unless told otherwise; see `StatusRetry`."""

RECEIVE_LIMIT_BYTES = 64 * 1024 * 1024
"""The largest reply that is received (gRPC's own default is 4 MiB). What a store takes may be less."""

METHODS_LIMIT = 4_096
"""Methods whose names are kept ready."""

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    # A dead peer is noticed while calls wait for it. Servers take pings that are less than five minutes apart for
    # abuse and hang up, unless told otherwise: https://github.com/grpc/grpc/blob/master/doc/keepalive.md
    ("grpc.keepalive_time_ms", 6 * 60 * 1000),
    ("grpc.keepalive_timeout_ms", 20 * 1000),
    # By default gRPC waits up to two minutes before it connects again, and fails every call meanwhile: a policy of ten
    # attempts in 50 seconds could end before a service that is back was even looked for.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.max_receive_message_length", RECEIVE_LIMIT_BYTES),
)

Pairs = tuple[tuple[str, str | bytes], ...]


# --- when a call is tried again ---------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class StatusRetry(Retry):
    """A retry policy that looks at status codes: only failures with one of `codes` are tried again.

    The default follows the meaning that the gRPC guide gives the codes (https://grpc.io/docs/guides/status-codes):

    * `UNAVAILABLE`: "most likely a transient condition, which can be corrected by retrying with a backoff".
    * `RESOURCE_EXHAUSTED`: a quota or a queue is full; the service did nothing, and waiting is what it asks for.
    * `DEADLINE_EXCEEDED`: one attempt took too long. The service may have done its work all the same, as after any
      crash: it is told by the idempotency key, which is the same on every attempt.

    Not `ABORTED`, by which a service asks to repeat more than the one call (read again, then write): the body's
    affair. Not `INTERNAL`, `UNKNOWN` and the others, which say that the call or the service is wrong; neither is what
    gRPC raises without a status. Name the codes to decide otherwise: `StatusRetry(codes={...}, max_attempts=3)`.
    """

    codes: Set[grpc.StatusCode] = RETRIED
    on: tuple[type[BaseException], ...] = (grpc.RpcError,)

    def delay(self, error: BaseException, attempt: int, chance: float) -> float | None:
        """Return the seconds to wait after `attempt` failed with `error`, or None to give up."""
        if isinstance(error, grpc.aio.AioRpcError) and error.code() not in self.codes:
            return None
        return super().delay(error, attempt, chance)


DEFAULT_RETRY = StatusRetry()
_ANY_ERROR = Retry().on


def _with_codes(retry: Retry) -> Retry:
    """Add the filter by status code to a policy that says only how often and how far apart.

    A policy that names `on` is taken as it is, as is a class of the user's own: `on=(grpc.RpcError,)` means every code.
    """
    if type(retry) is not Retry or retry.on != _ANY_ERROR:
        return retry
    return StatusRetry(
        max_attempts=retry.max_attempts,
        initial=retry.initial,
        factor=retry.factor,
        maximum=retry.maximum,
        jitter=retry.jitter,
        never=retry.never,
    )


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

    `retry` decides attempts and waits; which status codes are tried again is `StatusRetry`'s default unless it names
    `on` or is a `StatusRetry`. `timeout` (seconds or a timedelta) is the deadline of each attempt of each call.
    """
    policy = DEFAULT_RETRY if retry is None else _with_codes(retry)
    limit = None if timeout is None else seconds("timeout of a stub", timeout, positive=True)
    return stub_class(_RecordingChannel(turn, policy, limit))


@dataclass(frozen=True, slots=True)
class _Method:
    """The names of a method: `/shop.Tickets/Reserve` is `Tickets.Reserve` in the journal."""

    path: str
    service: str
    name: str
    prefix: bytes  # what tells its requests from those of other methods in a digest

    @staticmethod
    @lru_cache(maxsize=METHODS_LIMIT)
    def of(path: str | bytes) -> _Method:
        text = path.decode() if isinstance(path, bytes) else path
        service, slash, method = text.removeprefix("/").rpartition("/")
        if not (service and slash and method):
            raise InvalidOption(f"{text!r} is no gRPC method: generated stubs name them /package.Service/Method")
        return _Method(text, service, f"{service.rpartition('.')[2]}.{method}", text.encode() + b"\0")


class _RecordingChannel(grpc.aio.Channel):
    """What a stub in a workflow takes for its channel. It opens nothing."""

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
        # Only a call is refused: a stub that has some streaming methods still serves for the others.
        def refuse(*_: Any, **__: Any) -> NoReturn:
            raise IoInWorkflow(
                f"{_Method.of(method).name} is a streaming method, which a workflow cannot journal: put it in a step "
                f"(an @step that opens its own channel and returns what it made of the stream)"
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
        raise IoInWorkflow("a stub in a workflow has no connection whose state it could tell: look from a step")

    async def wait_for_state_change(self, last_observed_state: object) -> NoReturn:
        self.get_state()

    async def channel_ready(self) -> NoReturn:
        self.get_state()


class _Unary:
    """What stands for `grpc.aio.UnaryUnaryMultiCallable` in a workflow."""

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
                f"in a step, make a stub of your own"
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

    def _serialized(self, request: Any) -> bytes:
        encode = self._encode
        try:
            if encode is None:
                data = request
            elif getattr(encode, "__name__", "") == "SerializeToString":
                # A protobuf message's: maps must come in one order, or the digest would differ on replay.
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
    """Return metadata as pairs, or raise `InvalidOption`: gRPC itself says only that some batch failed."""
    try:
        pairs = tuple((key, value) for key, value in metadata)
    except (TypeError, ValueError):
        raise InvalidOption(f"metadata of {name} must be pairs of a name and a value, not {metadata!r}") from None
    for key, value in pairs:
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise InvalidOption(f"metadata of {name}: {key!r} is no name; use a-z, 0-9, '_', '-' and '.'")
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
    """A reply with the metadata that came with it."""

    message: bytes
    initial: tuple[tuple[str, Any], ...]
    trailing: tuple[tuple[str, Any], ...]


_encode_reply = msgspec.msgpack.Encoder().encode
_decode_reply: Callable[[bytes], bytes | _Reply] = msgspec.msgpack.Decoder(bytes | _Reply).decode


class JournaledCall(grpc.aio.UnaryUnaryCall[Any, Any]):
    """A call made in a workflow: await it, as often as you like, for the reply or the `AioRpcError`.

    `code`, `details` and the metadata wait for its end, as they do outside. `cancel` asks for its end; awaiting it
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
        """Tell whether it has ended."""
        return self.future.done()

    def cancelled(self) -> bool:
        """Tell whether it ended as `cancel` asked."""
        return self.future.cancelled()

    def cancel(self) -> bool:
        """Ask for its end; false if it has ended."""
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
        """Wait for the end, and return what the service said about its status."""
        error = await self._end()
        if error is None:
            return "the call was cancelled by the workflow" if self.future.cancelled() else ""
        return error.details()

    async def initial_metadata(self) -> grpc.aio.Metadata:
        """Wait for the end, and return what the service sent before its reply."""
        error = await self._end()
        return grpc.aio.Metadata(*self._initial) if error is None else error.initial_metadata()

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        """Wait for the end, and return what the service sent after its reply."""
        error = await self._end()
        return grpc.aio.Metadata(*self._trailing) if error is None else error.trailing_metadata()

    async def debug_error_string(self) -> str | None:
        """Wait for the end, and return what gRPC notes for people about a failure."""
        error = await self._end()
        return "" if error is None else error.debug_error_string()

    async def _end(self) -> grpc.aio.AioRpcError | None:
        """Wait for the end; return its status if it failed. A failure without one (no such address) is raised."""
        future = self.future
        if not future.done():
            await asyncio.wait([future])  # which does not cancel the call when who waits is cancelled
        error = None if future.cancelled() else future.exception()
        if error is None or isinstance(error, grpc.aio.AioRpcError):
            return error
        raise error

    def time_remaining(self) -> NoReturn:
        """Refuse: it would differ on replay."""
        raise NotRepeatable(
            f"time_remaining() of {self._method.name} reads a clock, which no replay could repeat: put an "
            f"asyncio.timeout around the call, and ask that"
        )

    async def wait_for_connection(self) -> None:
        """Refuse: there is no connection in a workflow."""
        raise IoInWorkflow(
            f"a call in a workflow has no connection to wait for; pass wait_for_ready=True to {self._method.name}"
        )


# --- in the worker: the real call -------------------------------------------------------------------------------------
class GrpcWork:
    """A call, as the runtime runs it (a `runtime.steps.Work`)."""

    __slots__ = ("_deadline", "_deserialize", "_metadata", "_method", "_options", "_read_request", "_request", "retry")

    timeout: float | None = None
    """None, as the time limit of an attempt is the deadline of gRPC, which the service sees too."""

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
        """Make the call once; return its reply as the journal keeps it, or raise what gRPC raises."""
        method = self._method
        connection: Connection = host.channel(method.service)
        call = connection.method(method.path)(
            self._request, timeout=self._deadline, metadata=self._sent(info), **(self._options or {})
        )
        message: bytes = await call
        if self._deserialize is not None:
            self._prove(self._deserialize, message)
        initial, trailing = await call.initial_metadata(), await call.trailing_metadata()
        if initial or trailing:
            return _encode_reply(_Reply(message, _pairs(initial), _pairs(trailing)))
        return _encode_reply(message)

    async def answer_with(self, function: Callable[[Any], Any], /) -> bytes:
        """Return what a function gives for the request, as the journal keeps the reply of a service. For tests."""
        reply: Any = function(self._request if self._read_request is None else self._read_request(self._request))
        if inspect.isawaitable(reply):
            reply = await reply
        if isinstance(reply, bytes):
            return _encode_reply(reply)
        kind = type_name(cast("object", reply).__class__)
        if not hasattr(reply, "SerializeToString"):
            raise Unencodable(f"the fake of {self._method.name} gave a {kind}, which is no message", type=kind)
        message: bytes = reply.SerializeToString()
        if self._deserialize is not None:
            expected: object = self._deserialize(message).__class__
            if expected is not reply.__class__:
                text = f"the fake of {self._method.name} gave a {kind}, not a {type_name(expected)}"
                raise Unencodable(text, type=kind)
        return _encode_reply(message)

    def _sent(self, info: StepInfo) -> Pairs:
        id = info.invocation_id
        ours = (
            (INVOCATION_ID, id if id.isascii() else quote(id)),
            (IDEMPOTENCY_KEY, info.idempotency_key),
            (ATTEMPT, str(info.attempt)),
        )
        if not self._metadata:
            return ours
        theirs = {key for key, _ in self._metadata}
        return (*(pair for pair in ours if pair[0] not in theirs), *self._metadata)

    def _prove(self, deserialize: Callable[[bytes], Any], message: bytes) -> None:
        """Fail the call if its reply is not what the stub says. Once journaled, it would stand in the way for ever."""
        try:
            deserialize(message)
        except Exception as error:
            details = f"the reply of {self._method.name} does not decode: {error}"
            raise grpc.aio.AioRpcError(
                grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details
            ) from error


class Connection:
    """A channel to one address, with what was made for its methods."""

    __slots__ = ("_methods", "channel")

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self._methods: dict[str, Any] = {}

    def method(self, path: str, /) -> Any:
        """Return the multicallable of a method that takes and gives bytes."""
        try:
            return self._methods[path]
        except KeyError:
            channel: Any = self.channel  # its stubs want serializers, which bytes do without
            return self._methods.setdefault(path, channel.unary_unary(path))


class Channels:
    """Connections to services by name, one per address, opened when first used (a `runtime.worker.Channels`).

    `services` maps the name of a service, short or full (`TicketService`, `ticket.TicketService`; the full one goes
    first), to `host:port`, or to `tls://host:port` for a server that a public authority vouches for. Raises
    `InvalidOption` for what is neither.
    """

    def __init__(self, services: Mapping[str, str]) -> None:
        self._services = {_service(name): _address(name, address) for name, address in services.items()}
        self._open: dict[str, Connection] = {}  # by address
        self._by_name: dict[str, Connection] = {}  # by full name of a service

    def channel(self, service: str, /) -> Connection:
        """Return the connection to a service by its full name; `ServiceUnknown` when it was given no address."""
        connection = self._by_name.get(service)
        return connection if connection is not None else self._find(service)

    async def aclose(self) -> None:
        """Close all connections. Those needed later are opened anew."""
        connections = [*self._open.values()]
        self._open.clear()
        self._by_name.clear()
        for connection in connections:
            await connection.channel.close()

    def _find(self, service: str) -> Connection:
        address = self._services.get(service) or self._services.get(service.rpartition(".")[2])
        if address is None:
            raise ServiceUnknown(unknown(service, self._services), service=service)
        connection = self._open.get(address)
        if connection is None:
            connection = self._open[address] = Connection(_channel(address))
        self._by_name[service] = connection
        return connection


def unknown(service: str, services: Mapping[str, str]) -> str:
    """Say that a service has no address, what has one, and what to do."""
    short = service.rpartition(".")[2]
    known = f"this worker knows {', '.join(sorted(services))}" if services else "this worker was given none"
    return f"no address for the gRPC service {service}: {known}; pass services={{{short!r}: 'host:port'}} to the worker"


def _service(name: object) -> str:
    if not isinstance(name, str) or not name or name != name.strip() or "/" in name:
        raise InvalidOption(f"services: {name!r} names no gRPC service; write TicketService or ticket.TicketService")
    return name


def _address(name: str, address: object) -> str:
    """Return a checked address. `host:port` is asked for as DNS names or IP addresses only, IPv6 in brackets."""
    example = "give host:port, or tls://host:port"
    if not isinstance(address, str):
        raise InvalidOption(f"services[{name!r}] is {address!r}: {example}")
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise InvalidOption(f"services[{name!r}] is {address!r}: {example}")
    if not 0 < int(match["port"]) < 65_536:
        raise InvalidOption(f"services[{name!r}] is {address!r}: a port is between 1 and 65535")
    return address


_ADDRESS = re.compile(r"(tls://)?(?:[^\s:/\[\]@]+|\[[0-9A-Fa-f:.%\w]+\]):(?P<port>[0-9]{1,5})")


def _channel(address: str) -> grpc.aio.Channel:
    if address.startswith("tls://"):
        credentials = grpc.ssl_channel_credentials()
        return grpc.aio.secure_channel(address.removeprefix("tls://"), credentials, options=CHANNEL_OPTIONS)
    return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)


# --- in the journal: what gRPC raises ---------------------------------------------------------------------------------
class _RpcErrors:
    """Keeps the status of an RPC: code, details, metadata and the debug string.

    `AioRpcError` comes back as itself. Any other `RpcError` that can tell its code (that of a blocking stub in a step)
    holds locks and a live call, so it comes back as a subclass of its class that answers from what was recorded.
    """

    def fields_of(self, error: BaseException, /) -> Mapping[str, object] | None:
        if not isinstance(error, grpc.RpcError):
            return None
        told: Any = error
        code = _told(told, "code")
        if not isinstance(code, grpc.StatusCode):
            return None
        return {
            "code": code.name,
            "details": _told(told, "details"),
            "initial_metadata": _pairs(_told(told, "initial_metadata")),
            "trailing_metadata": _pairs(_told(told, "trailing_metadata")),
            "debug_error_string": _told(told, "debug_error_string"),
        }

    def restore(self, cls: type[BaseException], failure: Failure, /) -> BaseException | None:
        fields = failure.fields
        if not issubclass(cls, grpc.RpcError) or fields.get("code") not in grpc.StatusCode.__members__:
            return None
        status = grpc.aio.AioRpcError(
            grpc.StatusCode[fields["code"]],
            _metadata(fields["initial_metadata"]),
            _metadata(fields["trailing_metadata"]),
            fields["details"],
            fields["debug_error_string"],
        )
        if cls is grpc.aio.AioRpcError:
            return status
        error = _recorded(cls).__new__(_recorded(cls), *failure.args)
        error.__dict__["recorded"] = status
        return error


def _told(error: Any, what: str) -> Any:
    method = getattr(error, what, None)
    return method() if callable(method) else None


def _pairs(metadata: Any) -> Pairs:
    return tuple((key, value) for key, value in metadata or ())


def _metadata(pairs: Any) -> grpc.aio.Metadata:
    if not isinstance(pairs, list):
        return grpc.aio.Metadata()  # it exceeded the limit of a field, and was kept as text
    return grpc.aio.Metadata(*((key, value) for key, value in cast("list[tuple[str, str | bytes]]", pairs)))


@lru_cache(maxsize=64)
def _recorded(cls: type[BaseException]) -> type[BaseException]:
    """Return a class like `cls` whose status is that of `recorded`. It has the same name, so it records as the same."""
    body: dict[str, Any] = {name: _answer(name) for name in _STATUS}
    return type(cls.__name__, (cls,), body | {"__module__": cls.__module__, "__qualname__": cls.__qualname__})


def _answer(name: str) -> Callable[[Any], Any]:
    return lambda self: getattr(self.recorded, name)()


_STATUS = ("code", "details", "initial_metadata", "trailing_metadata", "debug_error_string", "__str__", "__repr__")

TRANSLATORS: tuple[FailureTranslator, ...] = (_RpcErrors(),)
"""What the journal needs to keep the exceptions of gRPC."""
