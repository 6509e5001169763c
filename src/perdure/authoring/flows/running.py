"""The body of every flow: runs the graph that the journal has, whatever the code has become meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from copy import deepcopy
from typing import Any, Literal, cast

from msgspec import UNSET, Struct

from perdure.authoring.flows.fitting import cannot_fit
from perdure.authoring.flows.graph import Bound, Calling, Choosing, Mapped, Piece, Plan, needs_of
from perdure.authoring.flows.nodes import Ref, Varying, filled, refs_in
from perdure.authoring.flows.rules import Continue, OnError, Skip
from perdure.authoring.step import Step
from perdure.core.ids import ID_LENGTH_LIMIT
from perdure.core.retry import Retry
from perdure.core.types import decoder
from perdure.core.values import encode
from perdure.errors import InputRefused, NodeSkipped

Strategy = Literal["sequential", "concurrent"]


class Execution(Struct, frozen=True):
    """A graph, and how to run it. `flows` are the graphs of the flows that are nodes of it, by name."""

    name: str
    plan: Plan
    takes_mapping: bool
    strategy: Strategy
    max_workers: int | None
    on_error: OnError | None
    flows: Mapping[str, Execution]

    def values_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of the inputs, by name."""
        inputs = self.plan.inputs
        if self.takes_mapping:
            given = {**args[0]} if len(args) == 1 and not kwargs else {**kwargs["inputs"]}
        else:
            given = {**dict(zip(inputs, args, strict=False)), **kwargs}
        defaults = {each.name: each.default for each in inputs.values() if each.default is not UNSET}
        if not given.keys() <= inputs.keys() <= (given.keys() | defaults.keys()):
            raise InputRefused(f"flow {self.name!r} takes the inputs {sorted(inputs)}, not {sorted(given)}")
        if self.takes_mapping:
            given = {name: decoder(inputs[name].type)(encode(value)) for name, value in given.items()}
        return {**deepcopy(defaults), **given}


class Skipped:
    """Stands for the result of a node that was skipped."""


SKIPPED = Skipped()


class Run:
    """One run of a graph: of a flow, or of one that is a node of the run `of`."""

    def __init__(self, execution: Execution, path: str = "", of: Run | None = None) -> None:
        self._execution = execution
        self._path = path  # what the names of its nodes begin with
        self.is_sequential = execution.strategy == "sequential" or (of is not None and of.is_sequential)
        self.rooms: list[asyncio.Semaphore] = [] if of is None else [*of.rooms]
        if execution.max_workers is not None:
            self.rooms.insert(0, asyncio.Semaphore(execution.max_workers))  # the inner one first

    async def result(self, values: dict[str, Any], returns: Any = Any) -> Any:
        """Run all nodes, and return the result; `returns` is its annotation."""
        pieces = self._execution.plan.pieces
        if self.is_sequential:
            for piece in pieces.values():
                values[piece.name] = await self._settled(piece, values)
        else:
            await self._run_concurrently(values)
        wanted = self._execution.plan.result
        if wanted is UNSET:
            return {name: values[name] for name in pieces if values[name] is not SKIPPED}
        if isinstance(wanted, Ref) and values[wanted.node] is SKIPPED and not cannot_fit(None, returns):
            return None
        for ref in refs_in(wanted):
            if values[ref.node] is SKIPPED:
                node = self._path + ref.node
                needs = f"the result of flow {self._execution.name!r} needs it"
                raise NodeSkipped(f"node {node!r} was skipped, and {needs}", node=node)
        return filled(wanted, values)

    async def _run_concurrently(self, values: dict[str, Any]) -> None:
        running: dict[str, asyncio.Task[None]] = {}

        async def run(piece: Piece) -> None:
            for needed in needs_of(piece):
                if needed in running:
                    await running[needed]
            values[piece.name] = await self._settled(piece, values)

        try:
            async with asyncio.TaskGroup() as group:
                for piece in self._execution.plan.pieces.values():
                    running[piece.name] = group.create_task(run(piece))
        except* Exception as failures:  # noqa: BLE001  passed on as the one that came first
            raise first_of(failures) from None

    async def _settled(self, piece: Piece, values: Mapping[str, Any]) -> Any:
        """Run a node, and do with its failure what its rule says."""
        if any(values[needed] is SKIPPED for needed in needs_of(piece)):
            return SKIPPED
        default = self._execution.on_error
        rule = (piece.on_error or default) if isinstance(piece, Calling) else default
        try:
            match piece:
                case Calling():
                    return await self._called(piece.bound, self._path + piece.name, values, rule)
                case Mapped():
                    return await self._mapped(piece, values)
                case Choosing():
                    return await self._chosen(piece, values, rule)
        except Exception as error:
            match rule:
                case Skip():
                    return SKIPPED
                case Continue(default=value):
                    return deepcopy(value)
                case _:
                    error.add_note(f"in node {self._path + piece.name!r} of flow {self._execution.name!r}")
                    raise

    # --- calls --------------------------------------------------------------------------------------------------------
    async def _called(self, bound: Bound, path: str, values: Mapping[str, Any], rule: OnError | None) -> Any:
        args, kwargs = filled(bound.args, values), filled({**bound.kwargs}, values)
        return await self._call(bound.callee, args, kwargs, path, rule)

    async def _call(
        self, callee: Any, args: Sequence[Any], kwargs: Mapping[str, Any], path: str, rule: OnError | None
    ) -> Any:
        """Make a call: a step, a child, or a flow, whose nodes run here."""
        inner = self._execution.flows.get(callee.name)
        if isinstance(callee, Step):
            retry = rule if isinstance(rule, Retry) else None
            step = cast("Step[..., Any]", callee).using(name=_fitting(path), retry=retry)
            return await self._in_room(step, args, kwargs)
        if inner is not None and not callee.is_optioned:
            run = Run(inner, f"{path}.", self)
            return await run.result(inner.values_of(args, kwargs), callee.signature().returns)
        return await self._in_room(callee, args, kwargs)

    async def _in_room(self, callee: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        async with AsyncExitStack() as stack:
            for room in self.rooms:
                await stack.enter_async_context(room)
            return await cast("Awaitable[Any]", callee(*args, **kwargs))

    async def _chosen(self, piece: Choosing, values: Mapping[str, Any], rule: OnError | None) -> Any:
        path = f"{self._path}{piece.name}."
        asked = piece.condition
        if isinstance(asked, Bound):
            asked = await self._called(asked, path + asked.callee.name, values, rule)
        elif isinstance(asked, Ref):
            asked = asked.of(values)
        chosen = piece.then if asked else piece.otherwise
        return None if chosen is None else await self._called(chosen, path + chosen.callee.name, values, rule)

    # --- maps ---------------------------------------------------------------------------------------------------------
    async def _mapped(self, piece: Mapped, values: Mapping[str, Any]) -> list[Any]:
        rows = _rows(piece, values)
        default = self._execution.on_error
        rule = piece.on_error or (default if isinstance(default, Retry) else None)
        allowed = _tolerated(piece, len(rows))
        at_once = 1 if self.is_sequential else piece.concurrency
        room = asyncio.Semaphore(at_once or max(1, len(rows)))
        found: list[Any] = [SKIPPED] * len(rows)
        failed = 0

        async def run(n: int) -> None:
            nonlocal failed
            async with room:
                path = f"{self._path}{piece.name}[{n}]"
                try:
                    found[n] = await self._call(piece.bound.callee, *rows[n], path, rule)
                except Exception as error:
                    failed += 1
                    if failed > allowed:
                        error.add_note(f"in element {n} of node {self._path + piece.name!r}")
                        raise
                    if isinstance(rule, Continue):
                        found[n] = deepcopy(rule.default)

        try:
            async with asyncio.TaskGroup() as group:
                for n in range(len(rows)):
                    group.create_task(run(n))
        except* Exception as failures:  # noqa: BLE001  passed on as the one that came first
            raise first_of(failures) from None
        return [each for each in found if each is not SKIPPED]


def _rows(piece: Mapped, values: Mapping[str, Any]) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Return the arguments of each call of a map."""
    marked = [filled(each.items, values) for each in piece.bound.given if isinstance(each, Varying)]
    lists = [_listed(each) for each in marked]
    lengths = {len(each) for each in lists}
    if len(lengths) > 1:
        raise ValueError(f"the Each arguments of node {piece.name!r} have {sorted(lengths)} elements: they go together")
    rows: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    for n in range(lengths.pop()):
        mine = iter([each[n] for each in lists])

        def given(argument: Any, mine: Iterator[Any] = mine) -> Any:
            return next(mine) if isinstance(argument, Varying) else filled(argument, values)

        args = tuple(given(each) for each in piece.bound.args)
        rows.append((args, {name: given(each) for name, each in piece.bound.kwargs.items()}))
    return rows


def _listed(elements: Any) -> list[Any]:
    """Return the elements of a map, in an order that is the same in every process: that of a set is not."""
    is_set = isinstance(elements, (set, frozenset))
    return sorted(cast("Iterable[Any]", elements), key=encode) if is_set else [*elements]


def _tolerated(piece: Mapped, count: int) -> int:
    """Return how many elements of a map may fail."""
    if piece.tolerate is None:
        return count if isinstance(piece.on_error, (Skip, Continue)) else 0
    if isinstance(piece.tolerate, int):
        return piece.tolerate
    return int(piece.tolerate * count + 1e-9)  # 0.29 * 100 is a little below 29


def _fitting(path: str) -> str:
    """Return the name of a step for a path: its end, if it is too long."""
    return path if len(path) <= ID_LENGTH_LIMIT else "…" + path[1 - ID_LENGTH_LIMIT :]


def first_of(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the failure of a group that came first."""
    error = failures.exceptions[0]
    return (
        first_of(cast("BaseExceptionGroup[BaseException]", error)) if isinstance(error, BaseExceptionGroup) else error
    )
