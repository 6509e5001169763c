"""The routes about callers: who one is, sessions of the page, tokens, and the audit."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from msgspec import Meta, Struct
from starlette.responses import Response

from perdure.http.exchange import Exchange, json_response
from perdure.http.gate import ByToken
from perdure.http.problems import Problem
from perdure.http.routes import NoQuery, Route
from perdure.http.sessions import COOKIES, SESSION_HOURS
from perdure.operations.access import Access, Role, Token, check_access
from perdure.operations.audit import Entry


class Me(Struct, frozen=True):
    """The caller: its name, by what it is known, and what it may do. null: it is not limited."""

    name: str
    means: str
    role: Role
    payloads: bool
    handlers: tuple[str, ...] | None
    key_prefixes: tuple[str, ...] | None


async def me(exchange: Exchange, _: NoQuery) -> Response:
    access = exchange.access
    shown = Me(
        access.name,
        exchange.admitted.means,
        access.role,
        access.payloads,
        access.handlers,
        access.key_prefixes,
    )
    return json_response(shown)


# --- sessions ---------------------------------------------------------------------------------------------------------
class SessionBody(Struct, forbid_unknown_fields=True):
    """The token for which a session stands."""

    token: str


class SessionView(Struct, frozen=True):
    """A session has begun. Its cookie comes beside this; `secret` goes with every request, as `Perdure-Session`."""

    name: str
    secret: str
    expires: datetime


async def log_in(exchange: Exchange, _: NoQuery) -> Response:
    gate = _gate_of(exchange)
    token = await gate.log_in(exchange.request, exchange.struct(SessionBody).token)
    exchange.target = token.access.name
    id, secret, expires = await gate.sessions.begin(token)
    response = json_response(SessionView(token.access.name, secret, expires))
    _set_cookie(exchange, response, id, int(SESSION_HOURS * 3600))
    return response


async def log_out(exchange: Exchange, _: NoQuery) -> Response:
    gate = _gate_of(exchange)
    for name in COOKIES if exchange.admitted.means == "session" else ():
        if (cookie := exchange.request.cookies.get(name)) is not None:
            await gate.sessions.end(cookie)
    response = Response(status_code=204)
    _set_cookie(exchange, response, "", 0)
    return response


def _set_cookie(exchange: Exchange, response: Response, id: str, seconds: int) -> None:
    secure = exchange.service.is_https(exchange.request)
    name = COOKIES[0] if secure else COOKIES[1]
    response.set_cookie(name, id, max_age=seconds, path="/", secure=secure, httponly=True, samesite="strict")


def _gate_of(exchange: Exchange) -> ByToken:
    gate = exchange.service.gate
    if not isinstance(gate, ByToken) or not gate.is_named:
        raise Problem(409, "no-sessions", "sessions stand for tokens, and none are in use here")
    return gate


# --- tokens -----------------------------------------------------------------------------------------------------------
class TokenView(Struct, frozen=True):
    """A token, without its secret."""

    id: str
    name: str
    role: Role
    payloads: bool
    handlers: tuple[str, ...] | None
    key_prefixes: tuple[str, ...] | None
    created_at: datetime | None
    expires: datetime | None
    revoked_at: datetime | None
    last_used: datetime | None


class TokenList(Struct, frozen=True):
    """All tokens, the oldest first."""

    tokens: list[TokenView]


class TokenBody(Struct, forbid_unknown_fields=True):
    """What a token permits: `handlers` and `key_prefixes` limit it, if they are given."""

    name: str
    role: Role = "read"
    payloads: bool = False
    handlers: tuple[str, ...] | None = None
    key_prefixes: tuple[str, ...] | None = None
    expires: datetime | None = None


class TokenMade(Struct, frozen=True):
    """A new token. Its text is shown this once."""

    token: str


async def list_tokens(exchange: Exchange, _: NoQuery) -> Response:
    found = await exchange.operations.tokens()
    return json_response(TokenList([_token_view(each) for each in found]))


async def add_token(exchange: Exchange, _: NoQuery) -> Response:
    body = exchange.struct(TokenBody)
    access = check_access(Access(body.name, body.role, body.payloads, body.handlers, body.key_prefixes))
    exchange.target = body.name
    if body.expires is not None and body.expires.tzinfo is None:
        why = "it has no time zone: 2026-12-31T00:00:00Z has one"
        raise Problem(422, "value-refused", f"expires: {why}", wrong=[("/expires", why)])
    return json_response(TokenMade(await exchange.operations.add_token(access, expires=body.expires)), 201)


async def revoke_token(exchange: Exchange, _: NoQuery) -> Response:
    await exchange.operations.revoke_token(exchange.parameters["id"])
    return Response(status_code=204)


def _token_view(token: Token) -> TokenView:
    access, times = token.access, (token.created_at, token.expires, token.revoked_at, token.last_used)
    return TokenView(token.id, access.name, access.role, access.payloads, access.handlers, access.key_prefixes, *times)


# --- the audit --------------------------------------------------------------------------------------------------------
class AuditQuery(Struct):
    """The number of the piece after which to begin."""

    after: Annotated[int, Meta(ge=0)] = 0


class AuditPiece(Struct, frozen=True):
    """Some entries, the hash of the piece before, and the hash of this one (SHA-256, hexadecimal)."""

    number: int
    before: str
    hash: str
    entries: tuple[Entry, ...]


class AuditPage(Struct, frozen=True):
    """Some pieces, the oldest first, and the number after which the next page begins: null at the end."""

    pieces: list[AuditPiece]
    next: int | None


async def show_audit(exchange: Exchange, query: AuditQuery) -> Response:
    found = await exchange.operations.audit(query.after)
    pieces = [AuditPiece(each.piece.number, each.piece.before, each.hash, each.piece.entries) for each in found]
    return json_response(AuditPage(pieces, pieces[-1].number if pieces else None))


ADMIN_ROUTES: tuple[Route, ...] = (
    Route("GET", "/api/me", "read", me, "Who you are, and what you may do.", gives=Me),
    Route(
        *("POST", "/api/session", "anybody", log_in, "Begin a session of the page."),
        body=SessionBody,
        gives=SessionView,
        also=(401, 409, 422),
        audited=True,
    ),
    Route("DELETE", "/api/session", "read", log_out, "End the session.", status=204, also=(409,), audited=True),
    Route("GET", "/api/tokens", "admin", list_tokens, "List tokens.", gives=TokenList),
    Route(
        *("POST", "/api/tokens", "admin", add_token, "Make a token, which is shown this once."),
        body=TokenBody,
        gives=TokenMade,
        status=201,
        also=(422,),
    ),
    Route("POST", "/api/tokens/{id}/revoke", "admin", revoke_token, "Revoke a token for good.", status=204),
    Route("GET", "/api/audit", "admin", show_audit, "Read the audit.", AuditQuery, gives=AuditPage),
)
