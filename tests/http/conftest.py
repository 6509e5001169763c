"""A site: a store, a worker on it, and the service over TCP, all real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from perdure import connect, http
from perdure.authoring.workflow import Workflow
from perdure.client import Client
from perdure.http.server import Server, address_of
from perdure.http.service import Service
from perdure.operations.interfaces import Interfaces
from tests.http.programs import WORKFLOWS


class Site:
    """What a test talks to: `http` sends requests, `client` is the client behind the service."""

    def __init__(self, client: Client, service: Service, server: Server, http: httpx.AsyncClient) -> None:
        self.client = client
        self.service = service
        self.server = server
        self.http = http

    async def get(self, path: str, **options: Any) -> httpx.Response:
        return await self.http.get(path, **options)

    async def post(self, path: str, json: Any = None, **options: Any) -> httpx.Response:
        return await self.http.post(path, json={} if json is None else json, **options)

    async def send(self, path: str, body: str | bytes, **headers: str) -> httpx.Response:
        """Post a body as it is, as JSON unless the headers say otherwise."""
        found = {"content-type": "application/json", **{name.replace("_", "-"): text for name, text in headers.items()}}
        return await self.http.post(path, content=body, headers=found)

    async def invoke(self, handler: str, input: Any, **query: Any) -> str:
        """Start an invocation, and return its id."""
        response = await self.http.post(f"/api/workflows/{handler}/invoke", json=input, params=query)
        assert response.status_code == 202, response.text
        return response.json()["invocation_id"]

    async def until(self, id: str, status: str) -> dict[str, Any]:
        """Wait until an invocation has a status, and return it."""
        while (found := (await self.get(f"/api/workflows/{id}")).json())["status"] != status:
            await asyncio.sleep(0.01)
        return found


async def site_on(
    parts: AsyncExitStack, url: str, *workflows: Workflow[..., Any], address: str = "0", **options: Any
) -> Site:
    """Enter a site with a worker of these workflows, if there are any."""
    client = await parts.enter_async_context(connect(url))
    if workflows:
        await parts.enter_async_context(client.worker(*workflows))
        interfaces = Interfaces(client.operations)
        while len(await interfaces.handlers()) < len(workflows):
            await asyncio.sleep(0.005)
    service = http.app(client, **options)
    server = await parts.enter_async_context(Server(service, address_of(address)))
    path = server.address.path
    transport = httpx.AsyncHTTPTransport(uds=path) if path else None
    base = "http://localhost" if path else str(server.address)
    requests = await parts.enter_async_context(httpx.AsyncClient(base_url=base, transport=transport, timeout=60))
    return Site(client, service, server, requests)


@pytest.fixture(params=["memory:", "sqlite:{}/store.db"])
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Site]:
    async with AsyncExitStack() as parts:
        yield await site_on(parts, request.param.format(tmp_path), *WORKFLOWS)


@pytest.fixture
async def memory_site() -> AsyncGenerator[Site]:
    async with AsyncExitStack() as parts:
        yield await site_on(parts, "memory:", *WORKFLOWS)
