"""Graphs: calls whose arguments are values to come, how they are added, and what is checked."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from msgspec import UNSET, Struct

from perdure.authoring.flows.fitting import cannot_fit, element_of, list_of
from perdure.authoring.flows.nodes import Node, Ref, Varying, changed, refs_in
from perdure.authoring.flows.rules import Continue, OnError, Skip, Stop, rule_problems
from perdure.authoring.step import Step, StepCall
from perdure.authoring.workflow import Call, Workflow
from perdure.core.ids import check_name
from perdure.core.retry import Retry
from perdure.core.values import encode, type_name
from perdure.errors import InputRefused, InvalidOption, NameTaken, PerdureError

if TYPE_CHECKING:
    from collections.abc import Sequence

R = TypeVar("R")
S = TypeVar("S")

PROBLEMS_SHOWN = 20
"""Problems of a graph that its error names."""
NODES_LIMIT = 10_000
"""Nodes and inputs of one flow."""

Callee = Step[..., Any] | Workflow[..., Any]


# --- the graph as data ------------------------------------------------------------------------------------------------
class Input(Struct, frozen=True):
    """An input of a flow. `default` is unset if it must be given."""

    name: str
    type: Any
    default: Any = UNSET


class Bound(Struct, frozen=True):
    """A call, with `Ref`s where its arguments are nodes, and `Each` around those that differ in a map."""

    callee: Callee
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def given(self) -> list[Any]:
        """All arguments."""
        return [*self.args, *self.kwargs.values()]

    @property
    def returns(self) -> Any:
        """The annotation of the result; Any if it cannot be told."""
        return _annotation_of(lambda: self.callee.signature().returns)


class Calling(Struct, frozen=True):
    """A node that is one call."""

    name: str
    bound: Bound
    on_error: OnError | None = None


class Mapped(Struct, frozen=True):
    """A node that is one call for each element.

    `tolerate`: how many may fail, or which share of them; None: as `on_error` says.
    """

    name: str
    bound: Bound
    on_error: OnError | None = None
    concurrency: int | None = None
    tolerate: float | None = None


class Choosing(Struct, frozen=True):
    """A node that is one of two calls, or none. `condition` is a call, a node or a value."""

    name: str
    condition: Any
    then: Bound
    otherwise: Bound | None = None


Piece = Calling | Mapped | Choosing


def bounds_of(piece: Piece) -> list[Bound]:
    """Return the calls of a node."""
    if isinstance(piece, Choosing):
        return [each for each in (piece.condition, piece.then, piece.otherwise) if isinstance(each, Bound)]
    return [piece.bound]


def needs_of(piece: Piece) -> list[str]:
    """Return the names of the nodes that a node needs, each once, in the order of its arguments."""
    given = [value for bound in bounds_of(piece) for value in bound.given]
    if isinstance(piece, Choosing):
        given.append(piece.condition)
    return [*dict.fromkeys(ref.node for ref in refs_in(given))]


class Plan(Struct, frozen=True):
    """A graph: inputs and nodes in the order in which they were added, and the result, which may hold `Ref`s."""

    inputs: Mapping[str, Input]
    pieces: Mapping[str, Piece]
    result: Any = UNSET


# --- building ---------------------------------------------------------------------------------------------------------
class Graph:
    """What is added to: a flow, or the first parameter of a function under `@flow`."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._inputs: dict[str, Input] = {}
        self._pieces: dict[str, Piece] = {}
        self._result: Any = UNSET
        self._problems: list[str] | None = None  # where all are told at once
        self._numbers: dict[str, int] = {}  # where to look for a name that is free
        self.called: dict[str, Callee] = {}
        """What its nodes call, by name, without the options of a start."""

    @property
    def plan(self) -> Plan:
        """The graph as it is now."""
        return Plan(self._inputs, self._pieces, self._result)

    def add(
        self,
        call: StepCall[R] | Call[R],
        /,
        *,
        name: str | None = None,
        on_error: Stop | Skip | Retry | Continue[R] | None = None,
    ) -> R:
        """Add a call of a step, a workflow or a flow; return its node.

        Arguments that are nodes, or lists, tuples and mappings with nodes in them, are edges. `name` is that of the
        node (default: of what is called).
        """
        with_name, problems = self._named(name, call), [*_rule_problems(on_error, call)]
        bound = self._bound(call, problems)
        return cast("R", self._added(Calling(with_name, bound, on_error), problems))

    def map(
        self,
        call: StepCall[R] | Call[R],
        /,
        *,
        name: str | None = None,
        concurrency: int | None = None,
        tolerate: float | None = None,
        on_error: Stop | Skip | Retry | Continue[R] | None = None,
    ) -> list[R]:
        """Add a call for each element of its `Each` arguments; return the node of the list of results, in their order.

        `concurrency` bounds how many run at a time. `on_error` is for one element: with Skip it is left out, with
        Continue its default is in its place. `tolerate` is how many elements may fail (an int), or which share of them
        (a float below 1), before the node fails: by default none, or any number where `on_error` says what to do.
        """
        with_name, problems = self._named(name, call), [*_rule_problems(on_error, call)]
        bound = self._bound(call, problems)
        return cast("list[R]", self._added(Mapped(with_name, bound, on_error, concurrency, tolerate), problems))

    @overload
    def when(
        self,
        condition: bool | StepCall[bool] | Call[bool],
        /,
        *,
        then: StepCall[R] | Call[R],
        otherwise: StepCall[S] | Call[S],
        name: str | None = None,
    ) -> R | S: ...
    @overload
    def when(
        self, condition: bool | StepCall[bool] | Call[bool], /, *, then: StepCall[R] | Call[R], name: str | None = None
    ) -> R | None: ...
    def when(self, condition: Any, /, *, then: Any, otherwise: Any = None, name: str | None = None) -> Any:
        """Add a choice: only the call that is chosen runs. Without `otherwise` the node is None then."""
        problems: list[str] = []
        with_name = self._named(name or "when", None)
        if isinstance(condition, (StepCall, Call)):
            asked: Any = self._bound(condition, problems)
            problems += _misfit("the condition", asked.returns, bool)
        else:
            asked = self._referring(condition, problems)
            if isinstance(asked, Ref):
                problems += _misfit(f"node {asked.node!r}, the condition,", self._type_of(asked), bool)
        first = self._bound(then, problems)
        second = None if otherwise is None else self._bound(otherwise, problems)
        return self._added(Choosing(with_name, asked, first, second), problems)

    # --- for what is read ---------------------------------------------------------------------------------------------
    def take(self, input: Input) -> Node:
        """Declare an input, and return its node."""
        self._check_new(input.name)
        self._inputs[input.name] = input
        return Node(self, input.name)

    def fill(self, pieces: Iterable[Piece], result: Any, problems: list[str]) -> None:
        """Add nodes that are made, and the result. All that is wrong with them, or is known to be, is told at once."""
        told, self._problems = self._problems, [*problems]
        try:
            for piece in pieces:
                self._check_new(piece.name)
                found = [each for bound in bounds_of(piece) for each in self._argument_problems(bound)]
                self._added(piece, found)
            for ref in refs_in(result):
                if ref.node not in self._inputs and ref.node not in self._pieces:
                    self._problems.append(f"the result needs {ref.node!r}, which is not there")
            self._result = result
            self.raise_problems()
        finally:
            self._problems = told

    def raise_problems(self) -> None:
        """Raise `InvalidOption` with all that was wrong so far."""
        if self._problems:
            shown = self._problems[:PROBLEMS_SHOWN]
            more = len(self._problems) - len(shown)
            rest = f"\n  and {more} more" if more else ""
            raise InvalidOption(f"{self._title} cannot be built:\n  " + "\n  ".join(shown) + rest)

    # --- checks -------------------------------------------------------------------------------------------------------
    def _added(self, piece: Piece, problems: list[str]) -> Node:
        problems = [*problems, *_piece_problems(piece), *self._callee_problems(piece)]
        if problems:
            self._tell([f"node {piece.name!r}: {each}" for each in problems])
        self._pieces[piece.name] = piece
        return Node(self, piece.name)

    def _callee_problems(self, piece: Piece) -> Iterator[str]:
        for callee in (bound.callee for bound in bounds_of(piece) if bound.callee is not NOTHING):
            plain = callee if isinstance(callee, Step) else callee.original
            if not _are_one(self.called.get(callee.name, plain), plain):
                yield f"what another node calls {callee.name!r} is not this {plain!r}: give one of them another name"
            elif isinstance(plain, Graph) and _reaches(plain, self):
                yield f"{self._title} cannot contain itself: call workflow.ref({callee.name!r}), which runs as a child"
            else:
                self.called.setdefault(callee.name, plain)

    def _tell(self, problems: Sequence[str]) -> None:
        """Raise what is wrong, or keep it until the whole graph is there."""
        if self._problems is None:
            raise InvalidOption(f"{self._title}: {'; '.join(problems)}")
        self._problems += problems

    def _named(self, name: str | None, call: Any) -> str:
        """Return the name of a new node."""
        if name is None:
            return self._free_name(getattr(_callee_of(call), "name", "node"))
        if name == "when":
            return self._free_name(name)
        self._check_new(name)
        return name if name not in self._inputs and name not in self._pieces else self._free_name(name)

    def _check_new(self, name: str) -> None:
        check_name("a node's name", name)
        if name in self._inputs or name in self._pieces:
            text = f"{self._title} has a node called {name!r}: give this one another name="
            if self._problems is None:
                raise NameTaken(text, name=name)
            self._problems.append(text)
        if len(self._inputs) + len(self._pieces) >= NODES_LIMIT:
            raise InvalidOption(f"{self._title} has {NODES_LIMIT:,} nodes, and that is the limit")

    def _free_name(self, name: str) -> str:
        free, number = name, self._numbers.get(name, 2)
        while free in self._inputs or free in self._pieces:
            number, free = number + 1, f"{name}-{number}"
        self._numbers[name] = number
        self._check_new(free)
        return free

    def _bound(self, call: Any, problems: list[str]) -> Bound:
        """Return a call with references for its nodes, and check it."""
        callee = _callee_of(call)
        if callee is None:
            problems.append(f"{call!r} is no bound call: give step.bind(...) or workflow.bind(...)")
            return Bound(NOTHING, (), {})
        args = tuple(self._referring(each, problems) for each in call.args)
        bound = Bound(callee, args, {name: self._referring(each, problems) for name, each in call.kwargs.items()})
        problems += self._argument_problems(bound)
        return bound

    def _referring(self, value: Any, problems: list[str]) -> Any:
        """Return an argument with references in place of nodes."""

        def change(found: Any) -> Any:
            if isinstance(found, Varying):
                problems.append("Each(...) is an argument of its own, not a part of one")
            elif not isinstance(found, Node):
                try:
                    encode(found, "the value")
                except PerdureError as error:
                    problems.append(f"a value that cannot be recorded: {error}")
            else:
                return self._ref(found, problems)
            return found

        if isinstance(value, Varying):
            return Varying(changed(value.items, change))
        return changed(value, change)

    def _ref(self, node: Node, problems: list[str]) -> Ref:
        name, parts, graph = node.__node__, node.__parts__, node.__graph__
        if graph is not self or (name not in self._inputs and name not in self._pieces):
            problems.append(f"{node!r} belongs to another flow")
        return Ref(name, parts)

    def _argument_problems(self, bound: Bound) -> Iterator[str]:
        try:
            signature = bound.callee.signature()
            matched = signature.matched(bound.args, bound.kwargs, f"{bound.callee.name!r}")
        except InputRefused as error:
            yield str(error)
            return
        except PerdureError:
            return  # a reference by name takes anything
        for name, value in matched:
            wanted = _annotation_of(lambda name=name: signature.types[name])
            if isinstance(value, Varying):
                given = element_of(whole := self._type_of(value.items))
                if not isinstance(value.items, (Ref, list, tuple)) or cannot_fit(whole, Iterable):
                    yield f"{name}=Each(...) of {type_name(whole)}: give a list, or the node of one"
            else:
                given = self._type_of(value)
            yield from _misfit(f"{name!r}", given, wanted)

    def _type_of(self, value: Any) -> Any:
        """Return the annotation of what gives a value; Any if it cannot be told."""
        if not isinstance(value, Ref):
            is_collection = isinstance(value, (list, tuple, dict, Varying))
            return Any if is_collection else type(cast("object", value))
        if value.parts:
            return Any
        if value.node in self._inputs:
            return self._inputs[value.node].type
        match self._pieces.get(value.node):
            case Calling(bound=bound):
                return bound.returns
            case Mapped(bound=bound):
                return list_of(bound.returns)
            case _:
                return Any


async def _nothing(*_: Any, **__: Any) -> Any: ...


NOTHING: Callee = Step(_nothing, retry=None, timeout=None, name="nothing")
"""Stands in a graph that is refused for what is no call, or is not there."""


def _callee_of(call: Any) -> Callee | None:
    """Return what a bound call calls; None for what is none."""
    if isinstance(call, StepCall):
        return cast("StepCall[Any]", call).step
    return cast("Call[Any]", call).workflow if isinstance(call, Call) else None


def _rule_problems(rule: object, call: object) -> Iterator[str]:
    yield from rule_problems(rule)
    if isinstance(rule, Retry) and not isinstance(call, StepCall):
        yield "on_error=Retry(...) is the policy of a step: a workflow's own steps have theirs"


def _piece_problems(piece: Piece) -> Iterator[str]:
    """Yield what is wrong with a node, whether it was added or read."""
    has_each = any(isinstance(each, Varying) for bound in bounds_of(piece) for each in bound.given)
    if not isinstance(piece, Mapped):
        if has_each:
            yield "Each(...) is for graph.map(...)"
        if isinstance(piece, Choosing) and not isinstance(piece.condition, (Bound, Ref, bool)):
            yield f"a condition is a node, a bool or a bound call that gives one, not {piece.condition!r}"
        return
    concurrency: Any = piece.concurrency
    if not has_each:
        yield "one argument of a map must be Each(...): what differs from call to call"
    if concurrency is not None and (type(concurrency) is not int or concurrency < 1):
        yield f"concurrency={concurrency!r}: give at least 1, or None for no bound"
    if piece.tolerate is not None and not _is_tolerance(piece.tolerate):
        yield f"tolerate={piece.tolerate!r}: give a number of elements, or a share below 1 as a float"


def _are_one(one: Callee, other: Callee) -> bool:
    """Report whether two callees of one name are the same, whatever their options."""
    if isinstance(one, Step) or isinstance(other, Step):
        return isinstance(one, Step) and isinstance(other, Step) and one.fn == other.fn
    return one.original is other.original or (one.is_reference and other.is_reference)


def _reaches(graph: Graph, wanted: Graph) -> bool:
    """Report whether a graph is, or contains, another."""
    return graph is wanted or any(_reaches(each, wanted) for each in graph.called.values() if isinstance(each, Graph))


def _misfit(what: str, given: Any, wanted: Any) -> Iterator[str]:
    if cannot_fit(given, wanted):
        yield f"{what} takes {type_name(wanted)}, and gets {type_name(given)}"


def _is_tolerance(value: object) -> bool:
    if type(value) is int:
        return value >= 0
    return type(value) is float and 0 <= value < 1


def _annotation_of(read: Any) -> Any:
    """Return an annotation; Any if it names what is not defined yet."""
    try:
        found = read()
    except Exception:  # noqa: BLE001  annotations may be anything; the call itself says what is wrong
        return Any
    return Any if found is inspect.Parameter.empty else found
