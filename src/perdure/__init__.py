"""Perdure: plain asyncio, made durable. Start with `connect`, `@step` and `@workflow`."""

from perdure.client import Client, Handle, Stats
from perdure.connect import connect
from perdure.context import Awakeable, Context
from perdure.core.journal import Status
from perdure.core.retry import Retry
from perdure.describe import Invocation
from perdure.errors import (
    ChildCancelled,
    InvocationCancelled,
    InvocationTimedOut,
    KeyDeadlock,
    NonRetryable,
    PerdureError,
    RemoteError,
    WaitTimeout,
)
from perdure.flow import Continue, Flow, Skip, Stop
from perdure.group import (
    Cancelled,
    Completed,
    Failed,
    Group,
    WaitDuration,
    WaitForever,
    WaitForQuota,
    WaitQuotaOrDuration,
)
from perdure.listing import Page
from perdure.runtime.worker import Worker
from perdure.workflow import Call, Step, StepCall, StepInfo, Workflow, step, step_info, workflow

__version__ = "0.1.0"

__all__ = [
    "Awakeable",
    "Call",
    "Cancelled",
    "ChildCancelled",
    "Client",
    "Completed",
    "Context",
    "Continue",
    "Failed",
    "Flow",
    "Group",
    "Handle",
    "Invocation",
    "InvocationCancelled",
    "InvocationTimedOut",
    "KeyDeadlock",
    "NonRetryable",
    "Page",
    "PerdureError",
    "RemoteError",
    "Retry",
    "Skip",
    "Stats",
    "Status",
    "Step",
    "StepCall",
    "StepInfo",
    "Stop",
    "WaitDuration",
    "WaitForQuota",
    "WaitForever",
    "WaitQuotaOrDuration",
    "WaitTimeout",
    "Worker",
    "Workflow",
    "connect",
    "step",
    "step_info",
    "workflow",
]
