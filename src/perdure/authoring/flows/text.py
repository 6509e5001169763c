"""Graphs as JSON, and back. What is called goes by name; nothing is imported.

A value that JSON has no form for is written as everywhere (`core.json_values`). An argument says what it is: a value, a
node, a collection that holds nodes, or what differs from call to call.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, cast, get_args

import msgspec
from msgspec import UNSET, Struct, UnsetType

from perdure.authoring.flows.fitting import list_of
from perdure.authoring.flows.graph import (
    NOTHING,
    PROBLEMS_SHOWN,
    Bound,
    Callee,
    Calling,
    Choosing,
    Graph,
    Input,
    Mapped,
    Piece,
    Plan,
    bounds_of,
    needs_of,
)
from perdure.authoring.flows.nodes import Part, Ref, Varying
from perdure.authoring.flows.rules import Continue, OnError, Skip, Stop
from perdure.authoring.step import Step
from perdure.authoring.workflow import Workflow
from perdure.core.json_values import from_json, to_json
from perdure.core.retry import Retry, seconds
from perdure.core.schema import ANY, Schema
from perdure.core.types import decoder
from perdure.core.values import encode, type_name
from perdure.errors import InvalidOption, PerdureError

VERSION = 2
TEXT_LIMIT_BYTES = 16 * 1024 * 1024
"""The longest graph that is read."""

_ANYTHING = Schema(ANY)


# --- the file ---------------------------------------------------------------------------------------------------------
class FilePart(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A part of a node's value, as `nodes.Part`."""

    key: str | int
    attribute: bool = False


class FileArgument(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One of these, with `parts` of a node."""

    value: Any = UNSET
    node: str | None = None
    parts: list[FilePart] = []
    items: list[FileArgument] | None = msgspec.field(default=None, name="list")
    fixed: list[FileArgument] | None = msgspec.field(default=None, name="tuple")
    pairs: list[tuple[FileArgument, FileArgument]] | None = msgspec.field(default=None, name="map")
    each: FileArgument | None = None


class FileCall(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A call by name. The options are those of a workflow, and of a flow. Seconds; `delay` may be a time."""

    name: str
    args: list[FileArgument] = []
    kwargs: dict[str, FileArgument] = {}
    id: str | None = None
    key: str | None = None
    timeout: float | None = None
    delay: float | datetime | None = None
    tags: dict[str, str] = {}
    execution: tuple[Literal["sequential", "concurrent"] | None, int | None] | None = None


class FileRule(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What to do when a node fails. Seconds."""

    rule: Literal["stop", "skip", "continue", "retry"]
    default: Any = UNSET
    max_attempts: int | None = None
    initial: float = 0.0
    factor: float = 1.0
    maximum: float = 0.0
    jitter: float = 0.0


class FileNode(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A node: a call, a map, or a choice, which `asks` a call or has a `condition`."""

    name: str
    call: FileCall
    on_error: FileRule | None = None
    is_map: bool = False
    concurrency: int | None = None
    tolerate: int | float | None = None
    condition: FileArgument | None = None
    asks: FileCall | None = None
    otherwise: FileCall | None = None


class FileInput(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """An input. Its type is for people: what is loaded takes that of the parameter to which it goes."""

    name: str
    type: str = "Any"
    default: Any = UNSET


class FileFlow(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A graph. `takes` says whether a start gives the inputs by name, or as one mapping.

    `flows` are the graphs of the flows among the nodes, where the whole is needed.
    """

    perdure_flow: int
    name: str
    takes: Literal["names", "mapping"]
    inputs: list[FileInput]
    nodes: list[FileNode]
    result: FileArgument | None = None
    strategy: Literal["sequential", "concurrent"] = "concurrent"
    max_workers: int | None = None
    on_error: FileRule | None = None
    flows: dict[str, FileFlow] = {}


# --- writing ----------------------------------------------------------------------------------------------------------
def written(
    name: str,
    plan: Plan,
    *,
    takes: Literal["names", "mapping"],
    strategy: Any,
    max_workers: int | None,
    rule: OnError | None,
) -> FileFlow:
    """Return a graph as what its file has."""
    return FileFlow(
        VERSION,
        name,
        takes,
        [FileInput(each.name, type_name(each.type), _default(each)) for each in plan.inputs.values()],
        [_node(each) for each in plan.pieces.values()],
        None if plan.result is UNSET else _argument(plan.result),
        strategy,
        max_workers,
        _rule(rule),
    )


def _default(input: Input) -> Any:
    return UNSET if input.default is UNSET else _value(input.default)


def _node(piece: Piece) -> FileNode:
    match piece:
        case Calling():
            return FileNode(piece.name, _call(piece.bound), _rule(piece.on_error))
        case Mapped():
            first = (piece.name, _call(piece.bound), _rule(piece.on_error))
            return FileNode(*first, is_map=True, concurrency=piece.concurrency, tolerate=piece.tolerate)
        case Choosing(condition=asked):
            found = FileNode(piece.name, _call(piece.then))
            found.otherwise = None if piece.otherwise is None else _call(piece.otherwise)
            if isinstance(asked, Bound):
                found.asks = _call(asked)
            else:
                found.condition = _argument(asked)
            return found


def _call(bound: Bound) -> FileCall:
    args = [_argument(each) for each in bound.args]
    made = FileCall(bound.callee.name, args, {name: _argument(each) for name, each in bound.kwargs.items()})
    if not isinstance(bound.callee, Step):
        options = bound.callee.options
        made.id, made.key, made.timeout, made.tags = options.id, options.key, options.timeout, dict(options.tags)
        made.delay = options.delay.total_seconds() if isinstance(options.delay, timedelta) else options.delay
        made.execution = msgspec.msgpack.decode(bound.callee.execution) if bound.callee.execution else None
    return made


def _argument(value: Any) -> FileArgument:
    match value:
        case Ref():
            return FileArgument(node=value.node, parts=[FilePart(each.key, each.is_attribute) for each in value.parts])
        case Varying():
            return FileArgument(each=_argument(value.items))
        case list() if _holds_nodes(value):
            return FileArgument(items=[_argument(each) for each in cast("list[Any]", value)])
        case tuple():
            return FileArgument(fixed=[_argument(each) for each in cast("tuple[Any, ...]", value)])
        case dict() if _holds_nodes(value):
            items = cast("dict[Any, Any]", value).items()
            return FileArgument(pairs=[(_argument(key), _argument(each)) for key, each in items])
        case _:
            return FileArgument(value=_value(value))


def _holds_nodes(value: Any) -> bool:
    match value:
        case Ref() | Varying() | tuple():
            return True
        case list():
            return any(map(_holds_nodes, cast("list[Any]", value)))
        case dict():
            items = cast("dict[Any, Any]", value)
            return any(map(_holds_nodes, [*items, *items.values()]))
        case _:
            return False


def _value(value: Any) -> Any:
    return to_json(_ANYTHING, encode(value))


def _rule(rule: OnError | None) -> FileRule | None:
    match rule:
        case None:
            return None
        case Stop():
            return FileRule("stop")
        case Skip():
            return FileRule("skip")
        case Continue(default=default):
            return FileRule("continue", default=_value(default))
        case Retry():
            initial, maximum = seconds("initial", rule.initial), seconds("maximum", rule.maximum)
            return FileRule("retry", UNSET, rule.max_attempts, initial, rule.factor, maximum, rule.jitter)


# --- reading ----------------------------------------------------------------------------------------------------------
def decoded(text: str | bytes) -> FileFlow:
    """Decode the file of a graph. `InvalidOption` says what is wrong, and where."""
    data = text.encode() if isinstance(text, str) else text
    if len(data) > TEXT_LIMIT_BYTES:
        raise InvalidOption(f"this flow has {len(data):,} bytes, and the limit is {TEXT_LIMIT_BYTES:,}")
    try:
        version = msgspec.json.decode(data, type=_Versioned).perdure_flow
        if version != VERSION:
            raise InvalidOption(
                f"a flow of version {version} is not known here, which reads {VERSION}: upgrade perdure"
            )
        return msgspec.json.decode(data, type=FileFlow)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise InvalidOption(f"this is no flow that dumps() returned: {error}") from None


class _Versioned(Struct):
    perdure_flow: int


def read_into(
    graph: Graph, file: FileFlow, callees: Mapping[str, Callee], types: Mapping[str, Any] | None = None
) -> None:
    """Build a graph from its file; `types` are those of inputs. `InvalidOption` has all that is wrong."""
    _Reading(graph, file, callees, types).read()


class _Reading:
    def __init__(
        self, graph: Graph, file: FileFlow, callees: Mapping[str, Callee], types: Mapping[str, Any] | None = None
    ) -> None:
        self._graph = graph
        self._types = types or {}
        self._file = file
        self._callees = callees
        self.problems: list[str] = []

    def read(self) -> None:
        pieces = {each.name: self._piece(each) for each in self._file.nodes}
        names = [each.name for each in (*self._file.inputs, *self._file.nodes)]
        self.problems += [f"two nodes are called {name!r}" for name in {*names} if names.count(name) > 1][:1]
        types = {**_input_types(pieces.values()), **self._types}
        for each in self._file.inputs:
            wanted = types.get(each.name, Any)
            default = UNSET if each.default is UNSET else self._value(each.default, f"input {each.name!r}", wanted)
            self._graph.take(Input(each.name, wanted, default))
        ordered = self._ordered(pieces, {each.name for each in self._file.inputs})
        result = UNSET if self._file.result is None else self._argument(self._file.result, "the result")
        self._graph.fill([pieces[name] for name in ordered], result, self.problems)

    def _ordered(self, pieces: Mapping[str, Piece], known: set[str]) -> list[str]:
        """Return the nodes, each after those that it needs."""
        left = {name: {*needs_of(piece)} for name, piece in pieces.items()}
        for name, needs in left.items():
            self.problems += [
                f"node {name!r} needs {need!r}, which is not there" for need in sorted(needs - known - left.keys())
            ]
        waiting: dict[str, list[str]] = {}
        count: dict[str, int] = {}
        for name, needs in left.items():
            count[name] = len(inner := needs & left.keys())
            for need in inner:
                waiting.setdefault(need, []).append(name)
        ready = [name for name in left if not count[name]]
        place = {name: n for n, name in enumerate(left)}
        ordered: list[str] = []
        for name in ready:  # it grows
            ordered.append(name)
            for each in waiting.get(name, []):
                count[each] -= 1
                if not count[each]:
                    ready.append(each)
        if circle := [name for name in left if count[name]]:
            self.problems.append(f"these nodes need each other, in a circle: {', '.join(circle[:PROBLEMS_SHOWN])}")
        return sorted(ordered, key=place.__getitem__) if _is_sorted(left, place) else ordered

    def _piece(self, node: FileNode) -> Piece:
        where = f"node {node.name!r}"
        bound = self._bound(node.call, where)
        rule = self.rule(node.on_error, where, bound.returns)
        if node.is_map:
            return Mapped(node.name, bound, rule, node.concurrency, node.tolerate)
        if node.asks is not None:
            condition: Any = self._bound(node.asks, where)
        elif node.condition is not None:
            condition = self._argument(node.condition, where)
        else:
            return Calling(node.name, bound, rule)
        otherwise = None if node.otherwise is None else self._bound(node.otherwise, where)
        return Choosing(node.name, condition, bound, otherwise)

    def _bound(self, call: FileCall, where: str) -> Bound:
        callee = self._callees.get(call.name)
        if callee is None:
            self.problems.append(f"{where} calls {call.name!r}, which is not there: pass it in steps=[...]")
            return Bound(NOTHING, (), {})
        if not isinstance(callee, Step):
            try:
                callee = _optioned(callee, call)
            except PerdureError as error:
                self.problems.append(f"{where}: {error}")
        args = tuple(self._argument(each, where) for each in call.args)
        bound = Bound(callee, args, {name: self._argument(each, where) for name, each in call.kwargs.items()})
        return _typed(bound)

    def _argument(self, argument: FileArgument, where: str) -> Any:
        match argument:
            case FileArgument(node=str() as node):
                return Ref(node, tuple(Part(each.key, each.attribute) for each in argument.parts))
            case FileArgument(each=FileArgument() as items):
                return Varying(self._argument(items, where))
            case FileArgument(items=list() as items):
                return [self._argument(each, where) for each in items]
            case FileArgument(fixed=list() as items):
                return tuple(self._argument(each, where) for each in items)
            case FileArgument(pairs=list() as pairs):
                try:
                    return {self._argument(key, where): self._argument(each, where) for key, each in pairs}
                except TypeError as error:
                    self.problems.append(f"{where} has a mapping with a key that cannot be one: {error}")
                    return None
            case FileArgument(value=UnsetType()):
                self.problems.append(f"{where} has an argument that says nothing")
                return None
            case _:
                return self._value(argument.value, where)

    def _value(self, value: Any, where: str, wanted: Any = Any) -> Any:
        """Return a value, of a type if it can be one."""
        try:
            found = from_json(_ANYTHING, value)
        except PerdureError as error:
            self.problems.append(f"{where} has a value that cannot be read: {error}")
            return None
        return _decoded(found, wanted)

    def rule(self, rule: FileRule | None, where: str, returns: Any = Any) -> OnError | None:
        if rule is None:
            return None
        if rule.rule == "continue":
            return Continue(None if rule.default is UNSET else self._value(rule.default, where, returns))
        if rule.rule == "retry":
            try:
                return Retry(
                    max_attempts=rule.max_attempts,
                    initial=rule.initial,
                    factor=rule.factor,
                    maximum=rule.maximum,
                    jitter=rule.jitter,
                )
            except PerdureError as error:
                self.problems.append(f"{where}: {error}")
        return Skip() if rule.rule == "skip" else Stop()


def rule_in(rule: FileRule | None) -> OnError | None:
    """Return the rule for a whole flow."""
    reading = _Reading(Graph("a flow"), FileFlow(VERSION, "", "names", [], []), {})
    found = reading.rule(rule, "the flow")
    if reading.problems:
        raise InvalidOption("; ".join(reading.problems))
    return found


def _is_sorted(left: Mapping[str, set[str]], place: Mapping[str, int]) -> bool:
    return all(place[need] < place[name] for name, needs in left.items() for need in needs if need in place)


def _input_types(pieces: Iterable[Piece]) -> dict[str, Any]:
    """Return the types of inputs that some call takes as they are, or element by element: those of its parameters."""
    found: dict[str, Any] = {}
    for bound in (bound for piece in pieces for bound in bounds_of(piece)):
        for name, value in _matched(bound):
            wanted = _type_of(bound, name)
            if isinstance(value, Varying):
                value, wanted = value.items, list_of(wanted)
            if isinstance(value, Ref) and not value.parts:
                found.setdefault(value.node, wanted)
    return found


def _matched(bound: Bound) -> list[tuple[str, Any]]:
    try:
        return bound.callee.signature().matched(bound.args, bound.kwargs, "")
    except PerdureError:
        return []  # it is told where the node is added


def _type_of(bound: Bound, name: str) -> Any:
    try:
        return bound.callee.signature().types[name]
    except Exception:  # noqa: BLE001  annotations may be anything
        return Any


def _of_type(value: Any, wanted: Any) -> Any:
    """Return an argument with constants of a type: also those in collections that hold nodes."""
    match value:
        case Ref():
            return value
        case Varying(items=items):
            return Varying(_of_type(items, list_of(wanted)))
        case list() | tuple() if _holds_nodes(value):
            values = cast("Sequence[Any]", value)
            types = get_args(wanted)
            same = len(types) == 1 or Ellipsis in types
            each = [types[0]] * len(values) if same else types if len(types) == len(values) else [Any] * len(values)
            found = [_of_type(*pair) for pair in zip(values, each, strict=True)]
            return found if isinstance(value, list) else tuple(found)
        case dict() if _holds_nodes(value):
            key, item = types if len(types := get_args(wanted)) == 2 else (Any, Any)
            items = cast("dict[Any, Any]", value).items()
            return {_of_type(one, key): _of_type(other, item) for one, other in items}
        case _:
            return _decoded(encode(value), wanted)


def _decoded(data: bytes, wanted: Any) -> Any:
    """Return a value as one of a type; as builtin values if it is none, which is told where it is used."""
    try:
        return decoder(wanted)(data)
    except PerdureError:
        return decoder(Any)(data)


def _optioned(callee: Workflow[..., Any], call: FileCall) -> Callee:
    """Return what a call calls, with its options and no others."""
    how = {} if call.execution is None else dict(zip(("strategy", "max_workers"), call.execution, strict=True))
    if how and not isinstance(callee, Graph):
        raise InvalidOption(f"{callee.name!r} is no flow now, and has no strategy")
    options = {"id": call.id, "key": call.key, "timeout": call.timeout, "delay": call.delay, "tags": call.tags, **how}
    given: Any = {name: value for name, value in options.items() if value not in (None, {})}
    return callee.original.using(**given)


def _typed(bound: Bound) -> Bound:
    """Return a call whose constants have the types of its parameters: a file has builtin values only."""
    signature = bound.callee.signature()
    names = [each.name for each in signature.parameters]

    def typed(name: str, value: Any) -> Any:
        return _of_type(value, _type_of(bound, name))

    if len(bound.args) > len(names):
        return bound
    args = tuple(typed(name, value) for name, value in zip(names, bound.args, strict=False))
    return Bound(bound.callee, args, {name: typed(name, value) for name, value in bound.kwargs.items()})


# --- the form of 0.1 --------------------------------------------------------------------------------------------------
def from_first(data: Any) -> FileFlow:
    """Return the graph in what `serialize` returned before it had a version 2."""
    try:
        (version, name, strategy, max_workers, returns), inputs, tasks = data
        if version != 1:
            raise InvalidOption(f"a flow serialized by version {version} is not known here: upgrade perdure")
        nodes = [
            FileNode(task, FileCall(step, [*map(_first_argument, args)], _first_kwargs(kwargs)), _first_rule(rule))
            for task, step, args, kwargs, rule in tasks
        ]
        result = None if returns is None else FileArgument(node=returns)
        takes = [FileInput(name, type) for name, type in inputs]
        file = FileFlow(VERSION, name, "mapping", takes, nodes, result, strategy, max_workers)
        found = msgspec.convert(msgspec.to_builtins(file), FileFlow)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, msgspec.MsgspecError) as error:
        raise InvalidOption(f"this is no flow that serialize() returned: {error}") from error
    text = f"flow {name!r} was serialized by an earlier release: serialize it again, to keep collections in arguments"
    warnings.warn(text, DeprecationWarning, stacklevel=3)
    return found


def _first_argument(data: Mapping[str, Any]) -> FileArgument:
    return FileArgument(node=data["node"]) if "node" in data else FileArgument(value=_value(data["value"]))


def _first_kwargs(kwargs: Mapping[str, Any]) -> dict[str, FileArgument]:
    return {name: _first_argument(each) for name, each in kwargs.items()}


def _first_rule(rule: Any) -> FileRule | None:
    match rule:
        case "stop":
            return None
        case "skip":
            return FileRule("skip")
        case {"continue": default}:
            return FileRule("continue", default=_value(default))
        case {"retry": [max_attempts, initial, maximum, factor, jitter]}:
            return FileRule("retry", UNSET, max_attempts, initial, factor, maximum, jitter)
        case _:
            raise ValueError(f"{rule!r} is no rule for failures")
