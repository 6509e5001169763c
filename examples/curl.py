"""The HTTP API of an example: where it is served, and requests that are shown as commands for a shell."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import httpx

from perdure import Client, http
from perdure.errors import InvalidOption
from perdure.http import StandardWebhooks
from perdure.http.server import Server, address_of

PORT = 8080


async def served(
    parts: AsyncExitStack, client: Client, port: int, hooks: Mapping[str, StandardWebhooks] | None = None
) -> str:
    """Serve the API at a port, or at a free one if that is taken; return its URL."""
    try:
        server = await parts.enter_async_context(Server(http.app(client, hooks=hooks), address_of(str(port))))
    except InvalidOption:
        server = await parts.enter_async_context(Server(http.app(client, hooks=hooks), address_of("0")))
    return f"http://localhost:{server.address.port}"


class Curl:
    """Shows requests as commands for a shell, sends them, and shows what came."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._http = httpx.AsyncClient(base_url=base)

    async def aclose(self) -> None:
        await self._http.aclose()

    async def get(self, path: str) -> Any:
        print(f'$ curl "{self._base}{path}"')
        return self._shown(await self._http.get(path))

    async def post(self, path: str, body: object) -> Any:
        print(f"$ {self.command(path, body)}")
        headers = {"Content-Type": "application/json"}
        return self._shown(await self._http.post(path, content=json.dumps(body), headers=headers))

    def command(self, path: str, body: object) -> str:
        """Return the command that posts a body."""
        text = shlex.quote(json.dumps(body))
        return f"curl -X POST {self._base}{path} \\\n  -H 'Content-Type: application/json' \\\n  -d {text}"

    def _shown(self, response: httpx.Response) -> Any:
        print(json.dumps(found := response.json(), indent=2, ensure_ascii=False), "\n")
        return found
