"""Perdure: plain asyncio, made durable. Start with `connect`, `@step` and `@workflow`."""

from perdure.authoring.context import Awakeable, Context
from perdure.authoring.flows.flow import Flow, flow
from perdure.authoring.flows.graph import Graph
from perdure.authoring.flows.nodes import Each
from perdure.authoring.flows.rules import Continue, Skip, Stop
from perdure.authoring.group import (
    Cancelled,
    Completed,
    Failed,
    Group,
    Unsettled,
    WaitDuration,
    WaitForever,
    WaitForQuota,
    WaitQuotaOrDuration,
)
from perdure.authoring.saga import Saga
from perdure.authoring.step import Step, StepCall, StepInfo, step, step_info
from perdure.authoring.streams import StreamItem, StreamWriter, stream
from perdure.authoring.webhook import Webhook
from perdure.authoring.workflow import Call, Workflow, workflow
from perdure.bulk import BulkJob
from perdure.client import Client
from perdure.connect import connect
from perdure.core.journal import Status
from perdure.core.retry import Retry
from perdure.documents import Check, Delete, Document, Documents, Put
from perdure.errors import (
    ChildCancelled,
    CompensationFailed,
    InvocationCancelled,
    InvocationTimedOut,
    KeyBusy,
    KeyDeadlock,
    NonRetryable,
    PerdureError,
    RemoteError,
    RevisionConflict,
    WaitTimeout,
)
from perdure.handle import Handle
from perdure.operations.bulk import BulkPreview, BulkProgress
from perdure.operations.describe import Invocation
from perdure.operations.listing import Page
from perdure.operations.port import Stats
from perdure.operations.schedules import ScheduleInfo
from perdure.profile import Profile
from perdure.runtime.worker import Worker
from perdure.schedules import Schedule, ScheduleHandle

__version__ = "0.1.0"

__all__ = [
    "Awakeable",
    "BulkJob",
    "BulkPreview",
    "BulkProgress",
    "Call",
    "Cancelled",
    "Check",
    "ChildCancelled",
    "Client",
    "CompensationFailed",
    "Completed",
    "Context",
    "Continue",
    "Delete",
    "Document",
    "Documents",
    "Each",
    "Failed",
    "Flow",
    "Graph",
    "Group",
    "Handle",
    "Invocation",
    "InvocationCancelled",
    "InvocationTimedOut",
    "KeyBusy",
    "KeyDeadlock",
    "NonRetryable",
    "Page",
    "PerdureError",
    "Profile",
    "Put",
    "RemoteError",
    "Retry",
    "RevisionConflict",
    "Saga",
    "Schedule",
    "ScheduleHandle",
    "ScheduleInfo",
    "Skip",
    "Stats",
    "Status",
    "Step",
    "StepCall",
    "StepInfo",
    "Stop",
    "StreamItem",
    "StreamWriter",
    "Unsettled",
    "WaitDuration",
    "WaitForQuota",
    "WaitForever",
    "WaitQuotaOrDuration",
    "WaitTimeout",
    "Webhook",
    "Worker",
    "Workflow",
    "connect",
    "flow",
    "step",
    "step_info",
    "stream",
    "workflow",
]
