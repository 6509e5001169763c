"""gRPC in workflows: generated stubs whose calls are journaled, and connections to services.

In a body, `journaled` gives the stub a channel that opens no connection: a call becomes a step of the turn (`stub`). In
the worker, `GrpcWork` makes the real call on one of `Channels` (`channels`), bytes in and bytes out. `policy` decides
which failures are retried, and `TRANSLATORS` how journals record them (`failures`). Knows no store and no worker.
"""

from __future__ import annotations

try:
    import grpc  # noqa: F401  # pyright: ignore[reportUnusedImport]  only for the error text
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("gRPC is not installed: pip install 'perdure[grpc]'", name=error.name) from error

from perdure.integrations.grpc.channels import CHANNEL_OPTIONS, RECEIVE_LIMIT_BYTES, Channels, Connection, unknown
from perdure.integrations.grpc.failures import TRANSLATORS
from perdure.integrations.grpc.policy import DEFAULT_RETRY, RETRIED, StatusRetry
from perdure.integrations.grpc.stub import (
    ATTEMPT,
    IDEMPOTENCY_KEY,
    INVOCATION_ID,
    METHODS_LIMIT,
    GrpcWork,
    JournaledCall,
    journaled,
)

__all__ = [
    "ATTEMPT",
    "CHANNEL_OPTIONS",
    "DEFAULT_RETRY",
    "IDEMPOTENCY_KEY",
    "INVOCATION_ID",
    "METHODS_LIMIT",
    "RECEIVE_LIMIT_BYTES",
    "RETRIED",
    "TRANSLATORS",
    "Channels",
    "Connection",
    "GrpcWork",
    "JournaledCall",
    "StatusRetry",
    "journaled",
    "unknown",
]
