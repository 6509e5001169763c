"""Retry policies for gRPC calls, by status code."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

import grpc
import grpc.aio

from perdure.core.retry import Retry

RETRIED = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED}
)
"""Status codes after which a call is retried by default; see `StatusRetry`."""


@dataclass(frozen=True, kw_only=True)
class StatusRetry(Retry):
    """A retry policy by status code: only failures with one of `codes` are retried.

    The default follows the gRPC guide (https://grpc.io/docs/guides/status-codes):

    * `UNAVAILABLE`: "most likely a transient condition, which can be corrected by retrying with a backoff".
    * `RESOURCE_EXHAUSTED`: a quota or a queue is full; the service did nothing, and a later attempt may succeed.
    * `DEADLINE_EXCEEDED`: one attempt took too long. The service may have done its work, as after any crash: it can
      tell by the idempotency key, which is the same on every attempt.

    Not `ABORTED`, after which more than the one call must be repeated (read again, then write): that is up to the body.
    Not `INTERNAL`, `UNKNOWN` and the others, which mean that the call or the service is wrong, nor errors without a
    status. To choose other codes: `StatusRetry(codes={...}, max_attempts=3)`.
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
    """Add the filter by status code to a policy that sets only attempts and back-off.

    A policy with `on`, or of the user's own class, is used as it is: `on=(grpc.RpcError,)` means every code.
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
