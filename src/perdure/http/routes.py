"""The table of routes: method, path, who may, what it takes and gives. Router, checks and OpenAPI are made from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from enum import Enum
from functools import cache
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec
from msgspec import Struct
from starlette.responses import Response

from perdure.http.exchange import Exchange
from perdure.http.problems import Problem
from perdure.operations.access import Role

QUERY_LIMIT = 100
"""Query parameters of one request."""

IDEMPOTENCY_KEY_LIMIT = 255
"""Characters of an idempotency key."""

Method = Literal["GET", "POST", "PUT", "DELETE"]
Needed = Role | Literal["anybody"]
"""The role that a route needs. What anybody may use tells nothing, or is guarded by a proof of its own."""

Endpoint = Callable[[Exchange, Any], Awaitable[Response]]
"""Answers a request. The second argument is its query, an instance of the route's `query`."""


class NoQuery(Struct, forbid_unknown_fields=True):
    """A route that takes no query parameters."""


class AnyQuery(Struct):
    """A route that ignores query parameters: its URL goes to people, and programs on the way add some to it."""


class Body(Enum):
    """What a request may have as its body."""

    NONE = "none"
    INPUT = "the input of a handler, as JSON"
    EXACT = "the arguments of an operation, in msgpack"
    AS_SENT = "bytes of any content type"
    FORM = "the fields of a form, as a browser sends them"


JSON = "application/json"
HTML = "text/html"
ANY = "*/*"
MEDIA_TYPES = {
    Body.EXACT: "application/msgpack",
    Body.AS_SENT: ANY,
    Body.FORM: "application/x-www-form-urlencoded",
}
"""The content types of requests whose bodies are not JSON."""


class Route(Struct, frozen=True):
    """One operation. `path` has parameters in braces, each a whole segment; `gives` is the type of what it answers.

    `gives_too` are other answers that are no problems, by status. `headers` are those of the request that mean
    something here. `also` are the statuses of problems beside those that every route may answer with. A route that
    `shows_payloads` serves only callers who may see them. What is `audited` follows
    from method and role, unless it is said here.

    `is_signed`: what makes a request valid is in the request itself, a signature or a capability. So it does not matter
    where it comes from or who sends it.
    """

    method: Method
    path: str
    role: Needed
    endpoint: Endpoint
    summary: str
    query: type[Struct] = NoQuery
    body: Body | type[Struct] = Body.NONE
    gives: Any = None
    status: int = 200
    media: str = "application/json"
    gives_too: tuple[tuple[int, Any], ...] = ()
    headers: tuple[str, ...] = ()
    also: tuple[int, ...] = ()
    shows_payloads: bool = False
    audited: bool | None = None
    is_signed: bool = False

    @property
    def is_audited(self) -> bool:
        """Whether it is recorded who used it: it changes something, or shows what may not be shown unnoticed."""
        return self.method != "GET" and self.role not in ("read", "anybody") if self.audited is None else self.audited

    @property
    def parameters(self) -> list[str]:
        """The names of the parameters in the path."""
        return [each[1:-1] for each in self.path.split("/") if each.startswith("{")]

    @property
    def name(self) -> str:
        """A name for the operation, made of its method and path."""
        words = [each.strip("{}").replace(":", "_").replace(".", "_") for each in self.path.split("/") if each]
        return "_".join([self.method.lower(), *(word for word in words if word != "api")])


class Router:
    """Finds the route of a request by its raw path. Each segment is decoded once, after the path was split.

    A shape says which segments of a path are literal. Routes are looked up by their literal segments, for each shape of
    that length: those with more of them come first.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        self._shapes: dict[int, list[_Shape]] = {}
        for route in routes:
            pattern = route.path.encode().split(b"/")
            literal = tuple(n for n, part in enumerate(pattern) if not part.startswith(b"{"))
            shapes = self._shapes.setdefault(len(pattern), [])
            shape = next((each for each in shapes if each.literal == literal), None)
            if shape is None:
                shape = _Shape(literal, tuple(n for n in range(len(pattern)) if n not in literal), {})
                shapes.append(shape)
                shapes.sort(key=lambda each: -len(each.literal))
            shape.routes.setdefault(tuple(pattern[n] for n in literal), {}).setdefault(route.method, route)

    def match(self, method: str, raw_path: bytes) -> tuple[Route, dict[str, str]]:
        """Return the route and its parameters, or raise a `Problem`."""
        segments = raw_path.split(b"/")
        wanted = "GET" if method == "HEAD" else method
        allowed: set[str] = set()
        for shape in self._shapes.get(len(segments), ()):
            found = shape.routes.get(tuple([segments[n] for n in shape.literal]))
            if found is None or not all(segments[n] for n in shape.parameters):
                continue
            if (route := found.get(wanted)) is not None:
                names = route.parameters
                return route, {name: _decoded(segments[n]) for name, n in zip(names, shape.parameters, strict=True)}
            allowed.update(found, ["HEAD"] if "GET" in found else [])
        shown = raw_path.decode("ascii", "replace")
        if allowed:
            methods = ", ".join(sorted(allowed))
            text = f"{shown} takes {methods}, not {method}"
            raise Problem(405, "wrong-method", text, headers={"Allow": methods})
        raise Problem(404, "no-such-route", f"there is nothing at {shown}: /openapi.json lists what there is")


class _Shape(Struct, frozen=True):
    """Paths of one length: the places of their literal segments and of their parameters, and their routes."""

    literal: tuple[int, ...]
    parameters: tuple[int, ...]
    routes: dict[tuple[bytes, ...], dict[str, Route]]


def _decoded(segment: bytes) -> str:
    try:
        return unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        shown = segment.decode("ascii", "replace")
        raise Problem(400, "bad-path", f"{shown!r} in the path is not UTF-8, percent-encoded") from None


def query_items(query: bytes) -> list[tuple[str, str]]:
    """Return the names and texts in the query of a URL, or raise a `Problem`."""
    try:
        return parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=QUERY_LIMIT)
    except UnicodeDecodeError:
        raise Problem(400, "bad-query", "the query is not UTF-8, percent-encoded") from None
    except ValueError:
        raise Problem(400, "bad-query", f"the query has more than {QUERY_LIMIT} parameters") from None


def query_of(route: Route, items: Iterable[tuple[str, str]]) -> Struct:
    """Return the query parameters by the type of the route, or raise a `Problem` that names the wrong one."""
    fields = _fields_of(route.query)
    found: dict[str, Any] = {}
    for name, text in items:
        field = fields.get(name)
        if field is None:
            known = f"this route takes {', '.join(fields)}" if fields else "this route takes none"
            raise _wrong_query(name, f"there is no such parameter: {known}")
        if _is_list(field.type):
            found.setdefault(name, []).append(text)
        elif name in found:
            raise _wrong_query(name, "it is given twice")
        else:
            found[name] = text
    for name, text in found.items():
        try:
            found[name] = msgspec.convert(text, fields[name].type, strict=False)
            if found[name] is None:  # "null"
                raise msgspec.ValidationError("expected a value")
        except msgspec.ValidationError as error:
            raise _wrong_query(name, f"{str(error).lower()}, got {str(text)[:60]!r}") from None
    missing = [name for name, field in fields.items() if field.required and name not in found]
    if missing:
        raise _wrong_query(missing[0], "it is missing")
    return route.query(**{fields[name].name: value for name, value in found.items()})


@cache  # as many as there are routes
def _fields_of(type: type[Struct]) -> dict[str, msgspec.structs.FieldInfo]:
    return {field.encode_name: field for field in msgspec.structs.fields(type)}


def _is_list(type: Any) -> bool:
    return getattr(type, "__origin__", None) is list


def _wrong_query(name: str, why: str) -> Problem:
    return Problem(400, "bad-query", f"query parameter {name!r}: {why}", wrong=[(name, why)])
