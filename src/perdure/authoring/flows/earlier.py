"""The body of flows whose journals have no graph: those that releases before it began. It issues the same again."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from perdure.authoring.flows.graph import Calling, Plan, needs_of
from perdure.authoring.flows.nodes import Ref, filled
from perdure.authoring.flows.rules import Continue, Skip
from perdure.authoring.flows.running import SKIPPED, Execution, first_of
from perdure.core.retry import Retry


async def run(execution: Execution, values: dict[str, Any]) -> Any:
    """Run a graph of steps, as the first form of flows did."""
    plan = execution.plan
    if execution.strategy == "sequential":
        for piece in _callings(plan):
            values[piece.name] = await _run_node(piece, values)
    else:
        await _run_concurrently(plan, execution.max_workers, values)
    if isinstance(plan.result, Ref):
        found = values[plan.result.node]
        return None if found is SKIPPED else found
    return {name: values[name] for name in plan.pieces if values[name] is not SKIPPED}


def _callings(plan: Plan) -> list[Calling]:
    return [each for each in plan.pieces.values() if isinstance(each, Calling)]


async def _run_concurrently(plan: Plan, max_workers: int | None, values: dict[str, Any]) -> None:
    room = asyncio.Semaphore(max_workers or max(1, len(plan.pieces)))
    running: dict[str, asyncio.Task[None]] = {}

    async def run_one(piece: Calling) -> None:
        for needed in needs_of(piece):
            if needed in running:
                await running[needed]
        async with room:
            values[piece.name] = await _run_node(piece, values)

    try:
        async with asyncio.TaskGroup() as group:
            for piece in _callings(plan):
                running[piece.name] = group.create_task(run_one(piece))
    except* Exception as failures:  # noqa: BLE001  passed on as the one that came first
        raise first_of(failures) from None


async def _run_node(piece: Calling, values: Mapping[str, Any]) -> Any:
    if any(values[needed] is SKIPPED for needed in needs_of(piece)):
        return SKIPPED
    args, kwargs = filled(piece.bound.args, values), filled({**piece.bound.kwargs}, values)
    callee: Any = piece.bound.callee
    rule = piece.on_error
    step = callee.using(name=piece.name, retry=rule if isinstance(rule, Retry) else None)
    try:
        return await step(*args, **kwargs)
    except Exception:
        match rule:
            case Skip():
                return SKIPPED
            case Continue(default=default):
                return default
            case _:
                raise
