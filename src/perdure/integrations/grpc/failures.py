"""How journals record the exceptions of gRPC."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import grpc
import grpc.aio

if TYPE_CHECKING:
    from perdure.core.failures import Failure, FailureTranslator

Pairs = tuple[tuple[str, str | bytes], ...]


class _RpcErrors:
    """Records the status of an RPC: code, details, metadata and the debug string.

    `AioRpcError` is restored as it was. Any other `RpcError` with a code, as raised by a blocking stub in a step, holds
    locks and a live call: it is restored as a subclass of its class with the recorded status.
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
            "initial_metadata": pairs_of(_told(told, "initial_metadata")),
            "trailing_metadata": pairs_of(_told(told, "trailing_metadata")),
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


def pairs_of(metadata: Any) -> Pairs:
    """Return metadata as pairs of a name and a value."""
    return tuple((key, value) for key, value in metadata or ())


def _metadata(pairs: Any) -> grpc.aio.Metadata:
    if not isinstance(pairs, list):
        return grpc.aio.Metadata()  # it exceeded the limit of a field, and was recorded as text
    return grpc.aio.Metadata(*((key, value) for key, value in cast("list[tuple[str, str | bytes]]", pairs)))


@lru_cache(maxsize=64)
def _recorded(cls: type[BaseException]) -> type[BaseException]:
    """Return a subclass of `cls` with the status of `recorded`. It has the same name, so it is recorded as the same."""
    body: dict[str, Any] = {name: _answer(name) for name in _STATUS}
    return type(cls.__name__, (cls,), body | {"__module__": cls.__module__, "__qualname__": cls.__qualname__})


def _answer(name: str) -> Callable[[Any], Any]:
    return lambda self: getattr(self.recorded, name)()


_STATUS = ("code", "details", "initial_metadata", "trailing_metadata", "debug_error_string", "__str__", "__repr__")

TRANSLATORS: tuple[FailureTranslator, ...] = (_RpcErrors(),)
"""The translators for exceptions of gRPC."""
