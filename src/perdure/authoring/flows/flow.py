"""A flow as a workflow: it has a journal and all operations. `@flow`, and `Flow` for graphs that are made from data.

@flow(max_workers=5)
def report(graph: Graph, day: date, *, title: str = "Daily") -> str:
users = graph.add(fetch_users.bind(day), on_error=Continue(default=[]))
pages = graph.map(fetch_page.bind(Each(users), day), concurrency=8)
return graph.add(render.bind(title, pages))
"""

from __future__ import annotations

import builtins
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from inspect import Parameter
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Protocol, Self, cast, get_args, overload

import msgspec
from msgspec import UNSET

from perdure.authoring.flows import earlier
from perdure.authoring.flows.diagram import mermaid
from perdure.authoring.flows.fitting import cannot_fit
from perdure.authoring.flows.graph import Callee, Graph, Input
from perdure.authoring.flows.nodes import Node, Ref
from perdure.authoring.flows.rules import OnError, rule_problems
from perdure.authoring.flows.running import Execution, Run, Strategy
from perdure.authoring.flows.text import VERSION, FileFlow, decoded, from_first, read_into, rule_in, written
from perdure.authoring.functions import line_of, name_of
from perdure.authoring.step import Step
from perdure.authoring.workflow import Delay, Workflow
from perdure.core.busy import WhenBusy
from perdure.core.retry import Duration
from perdure.core.signature import Signature, parameters_of
from perdure.core.turn import Turn, current_turn
from perdure.core.values import encode, type_name
from perdure.errors import InvalidOption, NameTaken, PerdureError

if TYPE_CHECKING:
    from typing_extensions import ParamSpec, TypeForm, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R")
    T = TypeVar("T")
    FlowP = ParamSpec("FlowP", default=[Mapping[str, Any]])  # so that `Flow` alone is one that takes a mapping
    FlowR_co = TypeVar("FlowR_co", default=Any, covariant=True)
else:
    from typing import ParamSpec, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R")
    T = TypeVar("T")
    FlowP = ParamSpec("FlowP")
    FlowR_co = TypeVar("FlowR_co", covariant=True)

MARK = "perdure.flow"
"""The patch that marks journals with the graph of their flow. Those without it replay in the earlier form."""

_STRATEGIES: tuple[str, ...] = get_args(Strategy)


class Flow(Workflow[FlowP, FlowR_co], Graph, Generic[FlowP, FlowR_co]):
    """A workflow made of nodes: the builder for graphs that are made from data. Run it with a mapping of its inputs.

    With the strategy "concurrent" a node runs as soon as what it needs is there, at most `max_workers` calls at a time
    (None: no bound); with "sequential" they run one after another, in the order they were added. `on_error` is for
    nodes that have no rule of their own. Without `returns` the result is a mapping of all results by node name.
    """

    def __init__(
        self,
        name: str,
        *,
        strategy: Strategy = "concurrent",
        max_workers: int | None = None,
        on_error: OnError | None = None,
    ) -> None:
        async def body(inputs: Mapping[str, Any]) -> Any:
            return await self._run((inputs,), {})

        super().__init__(body, name=name)
        Graph.__init__(self, f"flow {self.name!r}")
        self.strategy: Strategy = strategy
        self.max_workers = max_workers
        _check(strategy, max_workers)
        for problem in rule_problems(on_error):
            raise InvalidOption(f"{self._title}: {problem}")
        self.on_error = on_error
        self._takes_mapping = True
        self.more: dict[str, Callee] = {}  # what else the graph of a journal may call
        self._using: tuple[Strategy | None, int | None] = (None, None)
        self._kept: tuple[list[bytes], bytes] | None = None  # what a journal gets, after that of the flows in it

    @overload
    def input(self, name: str, type: TypeForm[T], /) -> T: ...
    @overload
    def input(self, name: str, type: TypeForm[T], /, *, default: T) -> T: ...
    def input(self, name: str, type: Any, /, *, default: Any = UNSET) -> Any:
        """Declare an input, and return its node. With a `default` it need not be given."""
        if default is not UNSET:
            try:
                encode(default, f"the default of input {name!r}")
            except PerdureError as error:
                self._tell([str(error)])
        self._kept = None
        return self.take(Input(name, type, default))

    def returns(self, result: R, /) -> Flow[FlowP, R]:
        """Make a node, or a list, tuple or mapping with nodes in it, the result; return this flow, typed by it."""
        problems: list[str] = []
        self._result = self._referring(result, problems)
        self._kept = None
        if not isinstance(result, (Node, list, tuple, dict)):
            problems.append(f"the result is a node, or a list, tuple or mapping of nodes, not {result!r}")
        if problems:
            self._tell([f"returns(): {each}" for each in problems])
        return cast("Flow[FlowP, R]", self)

    def using(
        self,
        *,
        id: str | None = None,
        key: str | None = None,
        delay: Delay | None = None,
        timeout: Duration | None = None,
        tags: Mapping[str, str] | None = None,
        when_busy: WhenBusy | None = None,
        strategy: Strategy | None = None,
        max_workers: int | None = None,
    ) -> Self:
        """Return this flow with options for one start: those of a workflow, and how it is executed.

        The start records how, so a replay does the same.
        """
        other = super().using(id=id, key=key, delay=delay, timeout=timeout, tags=tags, when_busy=when_busy)
        if strategy is not None or max_workers is not None:
            _check(strategy or self.strategy, max_workers)
            other._using = (strategy or self._using[0], max_workers or self._using[1])  # noqa: SLF001
        return other

    @property
    def is_optioned(self) -> bool:
        """Whether it has options of a start: as a node it is a child then, and its nodes do not run in the parent."""
        return self.options != type(self.options)() or bool(self.execution)

    @property
    def execution(self) -> bytes:
        """How the start says that it is to be executed; empty: as the flow says."""
        return msgspec.msgpack.encode(self._using) if any(self._using) else b""

    # --- as data ------------------------------------------------------------------------------------------------------
    def dumps(self) -> str:
        """Return the graph as JSON. Steps, workflows and types go by name."""
        return msgspec.json.format(msgspec.json.encode(self._file())).decode()

    @staticmethod
    def loads(text: str | bytes, /, *, steps: Iterable[Step[..., Any] | Workflow[..., Any]]) -> Flow:
        """Return the flow that `dumps` wrote. Nothing is imported: `steps` are the steps and workflows that it calls.

        It is run with a mapping of its inputs. `InvalidOption` has all that is wrong with it.
        """
        return _flow_of(decoded(text), _by_name(steps))

    def serialize(self) -> builtins.list[Any]:
        """Return the graph as builtin values that JSON can hold."""
        return [2, msgspec.to_builtins(self._file())]

    @staticmethod
    def deserialize(data: builtins.list[Any], *, steps: Iterable[Step[..., Any] | Workflow[..., Any]]) -> Flow:
        """Return the flow that `serialize` described, also in the form of 0.1."""
        if len(data) == 2 and data[0] == VERSION:
            return _flow_of(decoded(msgspec.json.encode(data[1])), _by_name(steps))
        return _flow_of(from_first(data), _by_name(steps))

    def diagram(self) -> str:
        """Return the graph as Mermaid text."""
        return mermaid(self.plan)

    def _file(self) -> FileFlow:
        takes = "mapping" if self._takes_mapping else "names"
        settings: Any = {"strategy": self.strategy, "max_workers": self.max_workers, "rule": self.on_error}
        return written(self.name, self.plan, takes=takes, **settings)

    def check_beside(self, served: Workflow[..., Any], /) -> None:
        """Raise `NameTaken` if `served` is another workflow, or a flow with another graph."""
        if isinstance(served, Flow) and self.whole() != served.whole():
            raise NameTaken(
                f"a worker of this client serves {served.described} with another graph than "
                f"{self.described}: stop that worker first, or give one of them another name",
                name=self.name,
            )
        super().check_beside(served)

    # --- running ------------------------------------------------------------------------------------------------------
    async def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        turn = current_turn()
        if turn is None:
            return await Run(self.now()).result(self.now().values_of(args, kwargs), self.signature().returns)
        now = self.now()
        if not turn.patched(MARK):
            return await earlier.run(now, now.values_of(args, kwargs))
        mine = self.whole()
        kept = turn.keep(mine)
        execution = now if kept == mine else self._recorded(kept, turn)
        if turn.start.flow:
            strategy, max_workers = msgspec.msgpack.decode(turn.start.flow, type=tuple[Strategy | None, int | None])
            changes = {"strategy": strategy, "max_workers": max_workers}
            execution = msgspec.structs.replace(execution, **{k: v for k, v in changes.items() if v is not None})
        return await Run(execution).result(execution.values_of(args, kwargs), self.signature().returns)

    def now(self) -> Execution:
        """Return the graph as the code has it."""
        settings = (self._takes_mapping, self.strategy, self.max_workers, self.on_error)
        return Execution(self.name, self.plan, *settings, {name: each.now() for name, each in self._inner().items()})

    def _inner(self) -> dict[str, Flow[..., Any]]:
        """Return the flows among the nodes, by name."""
        return {name: each for name, each in self.called.items() if isinstance(each, Flow)}

    def whole(self) -> bytes:
        """Return the file of the graph, with those of the flows in it, which may have grown."""
        inner = self._inner()
        texts = [each.whole() for each in inner.values()]
        if self._kept is None or self._kept[0] != texts:
            file = self._file()
            file.flows = {name: _file_of(text) for name, text in zip(inner, texts, strict=True)}
            self._kept = (texts, msgspec.json.encode(file))
        return self._kept[1]

    def _recorded(self, kept: bytes, turn: Turn) -> Execution:
        """Return the graph that the journal has; pause the invocation if the code cannot run it any more."""
        try:
            return _execution_of(_file_of(kept), self.callees(), self)
        except (PerdureError, msgspec.MsgspecError) as error:
            turn.misfit(f"another graph of {self._title}", f"what cannot run it: {error}")

    def callees(self) -> dict[str, Callee]:
        """Return what the graph may call, by name, with what the flows in it may call."""
        found = {**self.more, **self.called}
        for each in self._inner().values():
            found = {**each.callees(), **found}
        return found

    def input_types(self) -> dict[str, Any]:
        """Return the types of the inputs, by name."""
        return {each.name: each.type for each in self._inputs.values()}

    def _added(self, piece: Any, problems: builtins.list[str]) -> Node:
        self._kept = None
        return super()._added(piece, problems)


def _file_of(text: bytes) -> FileFlow:
    return msgspec.json.decode(text, type=FileFlow)


def _execution_of(file: FileFlow, callees: Mapping[str, Callee], now: Flow[..., Any]) -> Execution:
    """Return the graph in a file, which `now` is in the code. A flow in it calls what its own code has, if it can."""
    graph = Graph(f"flow {file.name!r}")
    read_into(graph, file, callees, now.input_types())
    inner: dict[str, Execution] = {}
    for name, each in file.flows.items():
        called = callees[name]
        if not isinstance(called, Flow):
            raise InvalidOption(f"{name!r} was a flow, and is {called!r} now")
        inner[name] = _execution_of(each, {**callees, **called.callees()}, called)
    settings = (file.takes == "mapping", file.strategy, file.max_workers, rule_in(file.on_error))
    return Execution(file.name, graph.plan, *settings, inner)


def _flow_of(file: FileFlow, callees: Mapping[str, Callee]) -> Flow:
    flow: Flow = Flow(file.name, strategy=file.strategy, max_workers=file.max_workers, on_error=rule_in(file.on_error))
    read_into(flow, file, callees)
    flow.more = {**callees}
    return flow


def _by_name(steps: Iterable[Any]) -> dict[str, Callee]:
    found: dict[str, Callee] = {}
    for each in steps:
        if not isinstance(each, (Step, Workflow)):
            raise InvalidOption(f"steps=[{each!r}]: give steps and workflows")
        callee = cast("Callee", each)
        if found.setdefault(callee.name, callee) is not callee:
            raise InvalidOption(f"steps=: two are called {callee.name!r}")
    return found


def _check(strategy: Any, max_workers: Any) -> None:
    if strategy not in _STRATEGIES:
        raise InvalidOption(f"Flow(strategy={strategy!r}): use 'sequential' or 'concurrent'")
    if max_workers is not None and (type(max_workers) is not int or max_workers < 1):
        raise InvalidOption(f"Flow(max_workers={max_workers!r}): give at least 1, or None for no bound")


# --- the decorator ----------------------------------------------------------------------------------------------------
class _Built(Flow[FlowP, FlowR_co]):
    """A flow whose inputs are the parameters of a function."""

    def __init__(self, builder: Callable[..., Any], name: str | None, options: dict[str, Any]) -> None:
        super().__init__(name or name_of(builder), **options)

        async def body(*args: Any, **kwargs: Any) -> Any:
            return await self._run(args, kwargs)

        functools.update_wrapper(body, builder, updated=())
        vars(body).pop("__wrapped__")  # its parameters are others
        self._fn = body
        functools.update_wrapper(self, builder, updated=())
        self._builder = builder
        self._takes_mapping = False

    @property
    def described(self) -> str:
        return f"{self.where}{line_of(self._builder)}"

    def signature(self) -> Signature:
        if self._signature is None:
            self._signature = Signature.of(self._builder, skip_self=True)
        return self._signature

    def build(self) -> None:
        """Call the function, with nodes for its arguments. `InvalidOption` has all that is wrong."""
        if not parameters_of(self._builder).parameters:
            raise InvalidOption(f"{self._title} takes nothing: its first parameter is the Graph, the others its inputs")
        self._problems = []
        nodes: dict[str, Any] = {}
        args: list[Any] = []
        for one in self.signature().parameters:
            if one.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
                raise InvalidOption(f"{self._title}: its inputs have names, so {one} cannot be one")
            default = UNSET if one.default is Parameter.empty else one.default
            node = self.input(one.name, self._type_of_input(one.name), default=default)
            if one.kind is Parameter.KEYWORD_ONLY:
                nodes[one.name] = node
            else:
                args.append(node)
        result = self._builder(self, *args, **nodes)
        self.returns(result)
        if isinstance(self._result, Ref) and cannot_fit(given := self._type_of(self._result), wanted := self._wanted()):
            self._problems.append(
                f"it returns {type_name(wanted)}, and node {self._result.node!r} gives {type_name(given)}"
            )
        self.raise_problems()
        self._problems = None

    def _type_of_input(self, name: str) -> Any:
        try:
            return self.signature().types[name]
        except PerdureError:
            return Any  # it names what is not defined yet

    def _wanted(self) -> Any:
        try:
            return self.signature().returns
        except PerdureError:
            return Any


class _FlowDecorator(Protocol):
    def __call__(self, fn: Callable[Concatenate[Graph, P], R], /) -> Flow[P, R]: ...


@overload
def flow(fn: Callable[Concatenate[Graph, P], R], /) -> Flow[P, R]: ...
@overload
def flow(
    *,
    name: str | None = None,
    strategy: Strategy = "concurrent",
    max_workers: int | None = None,
    on_error: OnError | None = None,
) -> _FlowDecorator: ...
def flow(fn: Any = None, /, *, name: str | None = None, **options: Any) -> Any:
    """Make a flow of a function that builds its graph. It is called once, now, with nodes for arguments.

    Its first parameter is the `Graph`; the others are the inputs, and what it returns (a node, or a list, tuple or
    mapping of nodes) is the result. `InvalidOption` has all that is wrong with the graph.
    """
    if fn is None:
        return functools.partial(cast("Any", flow), name=name, **options)
    if inspect.iscoroutinefunction(fn):
        raise InvalidOption(f"flow {fn.__name__!r} is async: it builds a graph, and nothing in it waits; write `def`")
    if not callable(fn):
        raise InvalidOption(f"@flow goes on a function, not on {fn!r}")
    made: _Built[..., Any] = _Built(cast("Any", fn), name, options)
    made.build()
    return made
