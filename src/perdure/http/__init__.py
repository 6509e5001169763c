"""The service over HTTP: routes over the operations, as an ASGI application.

`app(client)` is the application; `server` runs it in a process of its own or beside a worker. It sees the operations
and nothing behind them. Starlette and uvicorn are imported with it, and not with `perdure`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping
from urllib.parse import urlsplit

from perdure.client import Client
from perdure.errors import InvalidOption
from perdure.http import approvals, inbound, schedules
from perdure.http.api import ROUTES
from perdure.http.bodies import BODY_LIMIT_BYTES
from perdure.http.clients import routes
from perdure.http.gate import SOCKET, ByLogin, ByToken, Gate, Login, Open, Sources, Tokens
from perdure.http.guard import LOCAL_NAMES, Guard
from perdure.http.service import WAITING_LIMIT, Service
from perdure.http.sessions import Sessions
from perdure.http.verifiers import Hmac, StandardWebhooks, Verifier
from perdure.operations.access import Access, Token, new_token
from perdure.operations.capabilities import check_public_url
from perdure.operations.port import Operations

__all__ = ["Access", "Hmac", "StandardWebhooks", "Token", "app", "new_token"]


def app(
    client: Client,
    /,
    *,
    tokens: Iterable[Token] | None = None,
    authenticate: Login | None = None,
    open: bool = False,
    allowed_hosts: Collection[str] | None = None,
    public_url: str | None = None,
    trusted_proxies: Collection[str] = (),
    max_waiting: int = WAITING_LIMIT,
    max_body: int = BODY_LIMIT_BYTES,
    hooks: Mapping[str, Verifier] | None = None,
    access_log: bool = False,
) -> Service:
    """Return an ASGI application over a client, to be served or mounted. It neither opens nor closes the client.

    Who makes a request, and what it may do, is told by `tokens`, or by `authenticate`, which gets the ASGI scope of
    each request and returns an `Access`, or None for nobody; `open=True` says that whoever reaches it may do
    everything: what it is mounted in must check that. Without any of these, the tokens of the store count
    (`perdure token add`). While the store has never had one, requests must name `allowed_hosts` (default: the names of
    this machine's loopback) and come neither through a proxy nor from a page of another site.

    `public_url` is what callers call the application, such as `https://perdure.example`: the only source of absolute
    URLs. `hooks` are verifiers by the name of the workflow that a webhook starts, beside those that the store has.
    `trusted_proxies` are addresses or networks (`10.0.0.0/8`, or `unix` for a socket file) whose
    `X-Forwarded-For` is believed. At most `max_waiting` requests wait for results at a time; others get 429. Bodies
    have at most `max_body` bytes. `access_log` logs each request, as a line of `perdure.http.access` at INFO, without
    ids.
    """
    if max_waiting < 1 or max_body < 1:
        raise InvalidOption(f"app(max_waiting={max_waiting}, max_body={max_body}): give at least 1")
    gate = gate_of(
        client.operations,
        tokens=tokens,
        authenticate=authenticate,
        is_open=open,
        allowed_hosts=allowed_hosts,
        public_url=public_url,
        trusted_proxies=trusted_proxies,
    )
    return service_of(
        client,
        gate,
        public_url=public_url,
        max_waiting=max_waiting,
        max_body=max_body,
        hooks=hooks,
        access_log=access_log,
    )


def service_of(
    client: Client,
    gate: Gate,
    *,
    public_url: str | None = None,
    max_waiting: int = WAITING_LIMIT,
    max_body: int = BODY_LIMIT_BYTES,
    hooks: Mapping[str, Verifier] | None = None,
    access_log: bool = False,
) -> Service:
    """Return the application behind a gate."""
    return Service(
        client.operations,
        (*ROUTES, *schedules.ROUTES, *inbound.ROUTES, *approvals.ROUTES, *routes()),
        gate,
        public_url="" if public_url is None else check_public_url(public_url),
        waiting_limit=max_waiting,
        body_limit=max_body,
        hooks=hooks or {},
        counters=client.counters,
        access_log=access_log,
    )


def gate_of(
    operations: Operations,
    *,
    tokens: Iterable[Token] | None = None,
    authenticate: Login | None = None,
    is_open: bool = False,
    allowed_hosts: Collection[str] | None = None,
    public_url: str | None = None,
    trusted_proxies: Collection[str] = (),
    more_tokens: Iterable[Token] = (),
    is_server: bool = False,
    is_strict: bool = False,
) -> Gate:
    """Return what tells who makes a request.

    `more_tokens` are accepted beside those of the store. `is_server`: it is a server of its own, whose names are the
    address that it is bound to and the public URL. `is_strict`: it serves nobody without a token.
    """
    given = (tokens is not None) + (authenticate is not None) + is_open
    if given > 1:
        raise InvalidOption("app(tokens=…, authenticate=…, open=…): give one of them")
    if isinstance(allowed_hosts, str):
        raise InvalidOption(f"app(allowed_hosts={allowed_hosts!r}): give a list of names, as in ['perdure.example']")
    origin = None if public_url is None else _origin_of(public_url)
    sources = Sources(_checked_proxies(trusted_proxies))
    if is_open:
        return Open()
    public = () if public_url is None else (urlsplit(public_url).hostname or "",)
    names = {*(LOCAL_NAMES if allowed_hosts is None else allowed_hosts), *public}
    hosts = Guard(names, origin=origin, bound=is_server) if is_server or allowed_hosts is not None else None
    if authenticate is not None:
        return ByLogin(authenticate, hosts, sources)
    listed = None if tokens is None else [_checked_token(each) for each in tokens]
    return ByToken(
        Tokens(operations, listed, [*more_tokens]),
        Sessions(operations),
        Guard(names, origin=origin),
        hosts=hosts,
        sources=sources,
        is_strict=is_strict or listed is not None,
    )


def _origin_of(public_url: str) -> str:
    found = urlsplit(check_public_url(public_url))
    return f"{found.scheme}://{found.netloc}"


def _checked_proxies(proxies: Collection[str]) -> Collection[str]:
    if isinstance(proxies, str):
        raise InvalidOption(f"trusted_proxies={proxies!r}: give a list, as in ['10.0.0.0/8']")
    for each in proxies:
        if each != SOCKET:
            try:
                ipaddress.ip_network(each)
            except ValueError as error:
                raise InvalidOption(f"trusted_proxies: {error}: give addresses or networks, or 'unix'") from error
    return proxies


def _checked_token(token: Token) -> Token:
    if not isinstance(token, Token):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidOption(
            f"app(tokens=[{type(token).__name__}]): give http.Token, as perdure.http.new_token makes it"
        )
    return token
