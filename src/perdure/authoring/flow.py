"""Flows: a workflow written as a graph of steps. An edge is an argument: the node that it comes from, used as a value.

    flow = Flow("report", max_workers=5)
    day = flow.input("day", str)
    users = flow.add(fetch_users.bind(day), on_error=Continue(default=[]))
    flow.returns(flow.add(report.bind(users=users)))

A flow is a workflow: it has the same journal and the same operations, and it is run with a mapping of its inputs.
"""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast

from msgspec import Struct

from perdure.authoring.step import Step, StepCall
from perdure.authoring.workflow import Workflow
from perdure.core.ids import check_name
from perdure.core.retry import Retry
from perdure.core.types import decoder
from perdure.core.values import encode, type_name
from perdure.errors import InputRefused, InvalidOption, NameTaken

if TYPE_CHECKING:
    from typing_extensions import TypeForm

R = TypeVar("R")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

NODES_LIMIT = 10_000
"""Nodes and inputs of one flow."""
SERIAL_VERSION = 1


# --- what to do when a node fails -------------------------------------------------------------------------------------
class Stop(Struct, frozen=True):
    """Fail the flow; nodes that have begun are cancelled. The default."""


class Skip(Struct, frozen=True):
    """Skip the node, and the nodes that need it."""


class Continue(Struct, Generic[T_co], frozen=True):
    """Go on with `default` in place of the result."""

    default: T_co


OnError = Stop | Skip | Retry | Continue[Any]


# --- the graph --------------------------------------------------------------------------------------------------------
class Node(Struct, frozen=True, eq=False):
    """A value to come: an input, or the result of a step. To the type checker it looks like that value."""

    name: str


class _Input(Struct, frozen=True):
    name: str
    type: Any


class _Task(Struct, frozen=True):
    name: str
    step: Step[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    on_error: OnError

    def needs(self) -> list[str]:
        """Return the names of the nodes among the arguments."""
        return [each.name for each in (*self.args, *self.kwargs.values()) if isinstance(each, Node)]


class _Skipped:
    """Stands for the result of a skipped node."""


_SKIPPED = _Skipped()


class Flow(Workflow[[Mapping[str, Any]], Any]):
    """A workflow made of nodes. `strategy="sequential"` runs them one after another, in the order they were added.

    With "concurrent" a node runs as soon as what it needs is there, at most `max_workers` at a time (None: no bound).
    The result is the result of the node given to `returns`, else a mapping of all results by node name.
    """

    def __init__(
        self, name: str, *, strategy: Literal["sequential", "concurrent"] = "concurrent", max_workers: int | None = None
    ) -> None:
        if strategy not in ("sequential", "concurrent"):
            raise InvalidOption(f"Flow(strategy={strategy!r}): use 'sequential' or 'concurrent'")
        if max_workers is not None and max_workers < 1:
            raise InvalidOption(f"Flow(max_workers={max_workers}): give at least 1, or None for no bound")

        async def body(inputs: Mapping[str, Any]) -> Any:
            return await self._run(inputs)

        super().__init__(body, name=name)
        self.strategy = strategy
        self.max_workers = max_workers
        self._inputs: dict[str, _Input] = {}
        self._tasks: dict[str, _Task] = {}
        self._result_node: str | None = None

    def input(self, name: str, type: TypeForm[T], /) -> T:
        """Declare an input, and return its node."""
        self._check_new(name)
        self._inputs[name] = _Input(name, type)
        return cast("T", Node(name))

    def add(
        self,
        call: StepCall[R],
        /,
        *,
        name: str | None = None,
        on_error: Stop | Skip | Retry | Continue[R] | None = None,
    ) -> R:
        """Add a step's call, and return its node. Arguments that are nodes are edges."""
        chosen = name or self._free_name(call.step.name)
        self._check_new(chosen)
        task = _Task(chosen, call.step, call.args, call.kwargs, on_error or Stop())
        for needed in task.needs():
            self._check_known(needed)
        self._tasks[chosen] = task
        return cast("R", Node(chosen))

    def returns(self, node: object, /) -> None:
        """Make the result of a node the result of the flow."""
        if not isinstance(node, Node):
            raise InvalidOption(f"flow {self.name!r}: returns() takes a node, not {node!r}")
        self._check_known(node.name)
        self._result_node = node.name

    # --- as data ------------------------------------------------------------------------------------------------------
    def serialize(self) -> builtins.list[Any]:
        """Return the graph as builtin values. Steps go by name, input types and constants as they are encoded."""
        head = [SERIAL_VERSION, self.name, self.strategy, self.max_workers, self._result_node]
        inputs = [[each.name, type_name(each.type)] for each in self._inputs.values()]
        tasks = [
            [
                task.name,
                task.step.name,
                [_dumped(each) for each in task.args],
                {key: _dumped(each) for key, each in task.kwargs.items()},
                _dumped_rule(task.on_error),
            ]
            for task in self._tasks.values()
        ]
        return [head, inputs, tasks]

    @staticmethod
    def deserialize(data: builtins.list[Any], *, steps: Iterable[Step[..., Any]]) -> Flow:
        """Return the flow that `serialize` described. Its inputs are checked by the steps that take them."""
        known = {step.name: step for step in steps}
        try:
            (version, name, strategy, max_workers, returns), inputs, tasks = data
            if version != SERIAL_VERSION:
                raise InvalidOption(f"a flow serialized by version {version} is not known here: upgrade perdure")
            flow = Flow(name, strategy=strategy, max_workers=max_workers)
            for input_name, _ in inputs:
                flow.input(input_name, Any)
            for task_name, step_name, args, kwargs, rule in tasks:
                step = known.get(step_name)
                if step is None:
                    raise InvalidOption(f"flow {name!r} needs step {step_name!r}: pass it in steps=[...]")
                loaded = {key: _loaded(each) for key, each in kwargs.items()}
                call = StepCall(step, tuple(_loaded(each) for each in args), loaded)
                flow.add(call, name=task_name, on_error=_loaded_rule(rule))
            if returns is not None:
                flow.returns(Node(returns))
        except (TypeError, ValueError, KeyError, IndexError) as error:
            if isinstance(error, InvalidOption):
                raise
            raise InvalidOption(f"this is not a flow that serialize() returned: {error}") from error
        return flow

    # --- running ------------------------------------------------------------------------------------------------------
    async def _run(self, inputs: Mapping[str, Any]) -> Any:
        values = self._checked(inputs)
        if self.strategy == "sequential":
            for task in self._tasks.values():
                values[task.name] = await self._run_node(task, values)
        else:
            await self._run_concurrently(values)
        if self._result_node is not None:
            value = values[self._result_node]
            return None if value is _SKIPPED else value
        return {name: values[name] for name in self._tasks if values[name] is not _SKIPPED}

    async def _run_concurrently(self, values: dict[str, Any]) -> None:
        room = asyncio.Semaphore(self.max_workers or max(1, len(self._tasks)))
        running: dict[str, asyncio.Task[None]] = {}

        async def run(task: _Task) -> None:
            for needed in task.needs():
                if needed in running:
                    await running[needed]
            async with room:
                values[task.name] = await self._run_node(task, values)

        try:
            async with asyncio.TaskGroup() as group:
                for task in self._tasks.values():
                    running[task.name] = group.create_task(run(task))
        except* Exception as failures:  # noqa: BLE001  passed on as the one that came first
            raise _first(failures) from None

    async def _run_node(self, task: _Task, values: Mapping[str, Any]) -> Any:
        if any(values[needed] is _SKIPPED for needed in task.needs()):
            return _SKIPPED
        args = [values[each.name] if isinstance(each, Node) else each for each in task.args]
        kwargs = {key: values[each.name] if isinstance(each, Node) else each for key, each in task.kwargs.items()}
        rule = task.on_error
        step = task.step.using(retry=rule) if isinstance(rule, Retry) else task.step
        try:
            return await step.using(name=task.name)(*args, **kwargs)
        except Exception:
            match rule:
                case Skip():
                    return _SKIPPED
                case Continue(default=default):
                    return default
                case _:
                    raise

    def _checked(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        if inputs.keys() != self._inputs.keys():
            raise InputRefused(f"flow {self.name!r} takes the inputs {sorted(self._inputs)}, not {sorted(inputs)}")
        return {name: decoder(each.type)(encode(inputs[name])) for name, each in self._inputs.items()}

    def _check_new(self, name: str) -> None:
        check_name("a node's name", name)
        if name in self._inputs or name in self._tasks:
            raise NameTaken(f"flow {self.name!r} has a node called {name!r}: give this one another name=", name=name)
        if len(self._inputs) + len(self._tasks) >= NODES_LIMIT:
            raise InvalidOption(f"flow {self.name!r} has {NODES_LIMIT} nodes, and that is the limit")

    def _check_known(self, name: str) -> None:
        if name not in self._inputs and name not in self._tasks:
            raise InvalidOption(f"flow {self.name!r} has no node {name!r}: it belongs to another flow")

    def _free_name(self, name: str) -> str:
        number, free = 2, name
        while free in self._inputs or free in self._tasks:
            number, free = number + 1, f"{name}-{number}"
        return free


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    error = failures.exceptions[0]
    return _first(cast("BaseExceptionGroup[BaseException]", error)) if isinstance(error, BaseExceptionGroup) else error


def _dumped(value: object) -> Any:
    return {"node": value.name} if isinstance(value, Node) else {"value": decoder(Any)(encode(value))}


def _loaded(data: Mapping[str, Any]) -> Any:
    return Node(data["node"]) if "node" in data else data["value"]


def _dumped_rule(rule: OnError) -> Any:
    match rule:
        case Stop():
            return "stop"
        case Skip():
            return "skip"
        case Continue(default=default):
            return {"continue": decoder(Any)(encode(default))}
        case Retry():
            wait = [float(each) for each in (rule.factor, rule.jitter)]
            return {"retry": [rule.max_attempts, _seconds(rule.initial), _seconds(rule.maximum), *wait]}


def _loaded_rule(data: Any) -> OnError:
    match data:
        case "stop":
            return Stop()
        case "skip":
            return Skip()
        case {"continue": default}:
            return Continue(default)
        case {"retry": [max_attempts, initial, maximum, factor, jitter]}:
            return Retry(max_attempts=max_attempts, initial=initial, maximum=maximum, factor=factor, jitter=jitter)
        case _:
            raise InvalidOption(f"{data!r} is not a rule for failures")


def _seconds(duration: Any) -> float:
    return float(duration.total_seconds()) if hasattr(duration, "total_seconds") else float(duration)
