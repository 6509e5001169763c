"""The service over HTTP: routes over the operations, as an ASGI application.

`app(client)` is the application; `server` runs it in a process of its own or beside a worker. It sees the operations
and nothing behind them. Starlette and uvicorn are imported with it, and not with `perdure`.
"""

from __future__ import annotations

from collections.abc import Collection

from perdure.client import Client
from perdure.errors import InvalidOption
from perdure.http import schedules
from perdure.http.api import ROUTES
from perdure.http.clients import routes
from perdure.http.guard import LOCAL_NAMES, Guard
from perdure.http.service import BODY_LIMIT_BYTES, WAITING_LIMIT, Service

__all__ = ["app"]


def app(
    client: Client,
    /,
    *,
    open: bool = False,
    allowed_hosts: Collection[str] | None = None,
    max_waiting: int = WAITING_LIMIT,
    max_body: int = BODY_LIMIT_BYTES,
) -> Service:
    """Return an ASGI application over a client, to be served or mounted. It neither opens nor closes the client.

    `open=True` says that whoever reaches it may do everything: it checks neither where a request comes from nor who
    sends it, and what it is mounted in must. Without it, requests must name `allowed_hosts` (default: the names of this
    machine's loopback) and come neither through a proxy nor from a page of another site. At most `max_waiting` requests
    wait for results at a time; others get 429. Bodies have at most `max_body` bytes.
    """
    if max_waiting < 1 or max_body < 1:
        raise InvalidOption(f"app(max_waiting={max_waiting}, max_body={max_body}): give at least 1")
    guard = None if open else Guard(LOCAL_NAMES if allowed_hosts is None else allowed_hosts)
    every = (*ROUTES, *schedules.ROUTES, *routes())
    return Service(client.operations, every, guard, waiting_limit=max_waiting, body_limit=max_body)
