"""The table of routes: method, path, who may, what it takes and gives. Router, checks and OpenAPI are made from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from enum import Enum
from functools import cache
from typing import Any, Literal
from urllib.parse import unquote_to_bytes

import msgspec
from msgspec import Struct
from starlette.responses import Response

from perdure.http.exchange import Exchange
from perdure.http.problems import Problem

Method = Literal["GET", "POST"]
Role = Literal["anybody", "read", "operate", "admin"]
"""Who may use a route; each may what those before it may."""

Endpoint = Callable[[Exchange, Any], Awaitable[Response]]
"""Answers a request. The second argument is its query, an instance of the route's `query`."""


class NoQuery(Struct, forbid_unknown_fields=True):
    """A route that takes no query parameters."""


class Body(Enum):
    """What a request may have as its body."""

    NONE = "none"
    INPUT = "the input of a handler, as JSON"
    EXACT = "the arguments of an operation, in msgpack"


class Route(Struct, frozen=True):
    """One operation. `path` has parameters in braces, each a whole segment; `gives` is the type of what it answers.

    `also` are the statuses of problems beside those that every route may answer with.
    """

    method: Method
    path: str
    role: Role
    endpoint: Endpoint
    summary: str
    query: type[Struct] = NoQuery
    body: Body | type[Struct] = Body.NONE
    gives: Any = None
    status: int = 200
    media: str = "application/json"
    also: tuple[int, ...] = ()

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
    """Finds the route of a request by its raw path. Each segment is decoded once, after the path was split."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes = [(route, route.path.encode().split(b"/")) for route in routes]

    def match(self, method: str, raw_path: bytes) -> tuple[Route, dict[str, str]]:
        """Return the route and its parameters, or raise a `Problem`."""
        segments = raw_path.split(b"/")
        allowed: dict[str, tuple[Route, dict[str, str]]] = {}
        for route, pattern in self._routes:
            found = _parameters(pattern, segments)
            if found is not None:
                allowed.setdefault(route.method, (route, found))
        wanted = "GET" if method == "HEAD" else method
        if wanted in allowed:
            return allowed[wanted]
        shown = raw_path.decode("ascii", "replace")
        if allowed:
            methods = ", ".join(sorted({*allowed, *(["HEAD"] if "GET" in allowed else [])}))
            text = f"{shown} takes {methods}, not {method}"
            raise Problem(405, "wrong-method", text, headers={"Allow": methods})
        raise Problem(404, "no-such-route", f"there is nothing at {shown}: /openapi.json lists what there is")


def _parameters(pattern: list[bytes], segments: list[bytes]) -> dict[str, str] | None:
    """Return the parameters of a path that fits, None for one that does not."""
    if len(pattern) != len(segments):
        return None
    found: dict[str, str] = {}
    for part, segment in zip(pattern, segments, strict=True):
        if part.startswith(b"{"):
            if not segment:
                return None
            found[part[1:-1].decode()] = _decoded(segment)
        elif part != segment:
            return None
    return found


def _decoded(segment: bytes) -> str:
    try:
        return unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        shown = segment.decode("ascii", "replace")
        raise Problem(400, "bad-path", f"{shown!r} in the path is not UTF-8, percent-encoded") from None


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


def by_role(routes: Iterable[Route]) -> Mapping[Role, list[Route]]:
    """Return the routes of each role."""
    found: dict[Role, list[Route]] = {}
    for route in routes:
        found.setdefault(route.role, []).append(route)
    return found
