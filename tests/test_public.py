"""The public surface is pinned: a name is added or taken away here first, on purpose."""

from __future__ import annotations

import types

import perdure

PUBLIC = {
    # authors
    *("Context", "Retry", "Step", "StepCall", "StepInfo", "Webhook", "Workflow", "step", "step_info", "workflow"),
    # callers
    *("Awakeable", "Call", "Client", "Handle", "Invocation", "Page", "Stats", "Status", "Worker", "connect"),
    # groups
    *("Cancelled", "Completed", "Failed", "Group", "Unsettled"),
    *("WaitDuration", "WaitForQuota", "WaitForever", "WaitQuotaOrDuration"),
    # flows
    *("Continue", "Each", "Flow", "Graph", "Profile", "Skip", "Stop", "flow"),
    # bulk jobs
    *("BulkJob", "BulkPreview", "BulkProgress"),
    # documents
    *("Check", "Delete", "Document", "Documents", "Put", "RevisionConflict"),
    # schedules
    *("Schedule", "ScheduleHandle", "ScheduleInfo"),
    # streams
    *("StreamItem", "StreamWriter", "stream"),
    # sagas
    *("CompensationFailed", "Saga"),
    # errors
    *("ChildCancelled", "InvocationCancelled", "InvocationTimedOut", "KeyBusy", "KeyDeadlock", "NonRetryable"),
    *("PerdureError", "RemoteError", "WaitTimeout"),
}


def test_all_lists_exactly_the_public_names() -> None:
    assert len(perdure.__all__) == len(set(perdure.__all__))
    assert set(perdure.__all__) == PUBLIC


def test_every_public_name_exists_and_knows_its_documentation() -> None:
    aliases = {"Status"}  # of a Literal, which cannot hold a docstring
    undocumented = [name for name in set(perdure.__all__) - aliases if not getattr(perdure, name).__doc__]
    assert not undocumented


def test_nothing_else_looks_public() -> None:
    loose = {
        name
        for name, value in vars(perdure).items()
        if not (name.startswith("_") or isinstance(value, types.ModuleType) or name == "annotations")
    }
    assert loose <= set(perdure.__all__)
