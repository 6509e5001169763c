"""When a gRPC call is tried again: the status code decides."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

import grpc
import grpc.aio

from perdure.core.retry import Retry

RETRIED = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED}
)
"""Status codes after which a call is tried again, unless told otherwise; see `StatusRetry`."""


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


def with_codes(retry: Retry) -> Retry:
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
