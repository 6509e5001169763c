"""The OpenAPI document (3.1) of the routes, made from their table and types."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

import msgspec
from msgspec import Struct

from perdure.http.problems import MEDIA_TYPE, ProblemDocument
from perdure.http.routes import HTML, IDEMPOTENCY_KEY_LIMIT, MEDIA_TYPES, Body, Route

COMPONENTS = "#/components/schemas/{name}"
EVERY_ROUTE = (400, 401, 403, 405, 421, 429, 500, 503)
"""Statuses of problems that every route may answer with."""
NO_CONTENT = 204
WITH_BODY = (408, 413, 415)
"""... and every route that takes a body."""

ANSWERS = {
    200: "It has ended.",
    202: "It is durable. It has not ended, or not been applied, yet.",
}
"""What an answer means that a route gives beside its usual one."""

HEADERS: dict[str, dict[str, Any]] = {
    "Idempotency-Key": {"type": "string", "pattern": f"^[!-~]{{1,{IDEMPOTENCY_KEY_LIMIT}}}$"},
}
"""The schemas of request headers, where they say more than that it is text."""

Json = dict[str, Any]


def document_of(routes: Iterable[Route]) -> Json:
    """Return the document."""
    routes = [*routes]
    types = [ProblemDocument, *(each.gives for each in routes if each.gives is not None)]
    types += [type for each in routes for _, type in each.gives_too]
    types += [each.body for each in routes if isinstance(each.body, type)]
    _, components = msgspec.json.schema_components([*dict.fromkeys(types)], ref_template=COMPONENTS)
    paths: dict[str, Json] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Perdure", "version": version("perdure")},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}, {}],
    }


def _operation(route: Route) -> Json:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in route.parameters
    ]
    found: Json = {
        "operationId": route.name,
        "summary": route.summary,
        "x-role": route.role,
        **({"security": []} if route.role == "anybody" else {}),
        "parameters": [*parameters, *_query(route.query), *map(_header, route.headers)],
        "responses": _responses(route),
    }
    if route.method != "GET":
        found["requestBody"] = _body(route)
    return found


def _header(name: str) -> Json:
    schema = HEADERS.get(name, {"type": "string"})
    return {"name": name, "in": "header", "required": False, "schema": schema}


def _query(type: type[Struct]) -> list[Json]:
    found: list[Json] = []
    for field in msgspec.structs.fields(type):
        (schema,), _ = msgspec.json.schema_components([field.type], ref_template=COMPONENTS)
        if isinstance(field.default, int | float | str):
            schema = {**schema, "default": field.default}
        found.append({"name": field.encode_name, "in": "query", "required": field.required, "schema": schema})
    return found


def _body(route: Route) -> Json:
    if route.body in (Body.EXACT, Body.AS_SENT, Body.FORM):
        return {"required": route.body is Body.EXACT, "content": {MEDIA_TYPES[route.body]: {}}}
    schema: Json = {}
    if isinstance(route.body, type):
        schema = _reference(route.body)
    elif route.body is Body.NONE:
        schema = {"type": "object", "additionalProperties": False}
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _responses(route: Route) -> Json:
    content: Json = {} if route.gives is None else {"schema": _reference(route.gives)}
    described: Json = {} if route.status == NO_CONTENT else {"content": {route.media: content}}
    found: Json = {str(route.status): {"description": "As asked.", **described}}
    for status, type in route.gives_too:
        content = {"application/json": {"schema": _reference(type)}}
        found[str(status)] = {"description": ANSWERS[status], "content": content}
    for status in sorted({*EVERY_ROUTE, *(WITH_BODY if route.method != "GET" else (415,)), *route.also}):
        problem: Json = {MEDIA_TYPE: {"schema": _reference(ProblemDocument)}}
        if route.media == HTML and status in route.also:
            problem = {HTML: {}}
        found[str(status)] = {"description": "A problem.", "content": problem}
    return found


def _reference(type: Any) -> Json:
    return {"$ref": COMPONENTS.format(name=type.__name__)}
