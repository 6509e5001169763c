"""`--http`, for the commands that serve over HTTP, and `perdure serve`, which does nothing else."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from msgspec import Struct

from perdure.cli.options import PORT_LIMIT, log_option, shown_url, url_option
from perdure.cli.process import Stopping, in_loop
from perdure.cli.reporting import reporting
from perdure.cli.terminal import show_logs
from perdure.client import Client
from perdure.connect import connect
from perdure.errors import InvalidOption
from perdure.operations.capabilities import check_public_url

if TYPE_CHECKING:
    from perdure.http.server import Address, Server
    from perdure.operations.access import Token

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_PORT = 8080
ADMIN_TOKEN_FILE = "PERDURE_ADMIN_TOKEN_FILE"
"""The environment variable that names a file with a token, which permits everything."""

log = logging.getLogger("perdure.cli")


access_log_option = click.option(
    "--access-log", is_flag=True, help="Log each HTTP request at INFO: its route, status and duration, and no ids."
)


def _address(_: click.Context, parameter: click.Parameter, text: str | None) -> Address | None:
    if text is None:
        return None
    from perdure.http.server import address_of  # noqa: PLC0415  only who serves imports it

    try:
        return address_of(text)
    except InvalidOption as error:
        raise click.BadParameter(str(error), param=parameter) from error


def _public_url(_: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    try:
        return None if text is None else check_public_url(text)
    except InvalidOption as error:
        raise click.BadParameter(str(error), param=parameter) from error


public_url_option = click.option(
    "--public-url",
    metavar="URL",
    callback=_public_url,
    help="What the HTTP API is called from outside, as in https://perdure.example.com: links begin with it.",
)


def http_options(command: F) -> F:
    """Add `--http-port`, `--http`, `--public-url`, `--trusted-proxy` and `--access-log`."""
    port = click.option(
        "--http-port",
        type=click.IntRange(0, PORT_LIMIT),
        metavar="PORT",
        help="Serve the HTTP API on this port of 127.0.0.1; 0 chooses a free one.",
    )
    address = click.option(
        "--http",
        "http_address",
        callback=_address,
        metavar="ADDRESS",
        help="Serve the HTTP API at HOST:PORT of this machine, or unix:PATH.",
    )
    proxy = click.option(
        "--trusted-proxy",
        "trusted_proxies",
        multiple=True,
        metavar="NETWORK",
        help="A proxy whose X-Forwarded-For is believed, as in 10.0.0.0/8, or `unix`. May be repeated.",
    )
    return port(address(public_url_option(proxy(access_log_option(command)))))


def chosen_address(port: int | None, address: Address | None) -> Address | None:
    """Return where to listen, if anywhere."""
    if port is None:
        return address
    if address is not None:
        raise click.UsageError("--http-port and --http exclude each other")
    from perdure.http.server import Address  # noqa: PLC0415  only who serves imports it

    return Address("127.0.0.1", port)


class Serving(Struct, frozen=True):
    """How the HTTP API is served: where, what callers call it, and which proxies are believed."""

    address: Any
    public_url: str | None = None
    trusted_proxies: tuple[str, ...] = ()
    access_log: bool = False


async def begin_to_serve(parts: AsyncExitStack, client: Client, serving: Serving) -> Server:
    """Serve a client over HTTP until `parts` end. With an admin token in a file, or one in the store, by tokens."""
    from perdure import http  # noqa: PLC0415  only who serves imports it
    from perdure.http.server import Server  # noqa: PLC0415

    given = _admin_token()
    gate = http.gate_of(
        client.operations,
        public_url=serving.public_url,
        trusted_proxies=serving.trusted_proxies,
        more_tokens=[] if given is None else [given],
        is_server=True,
        is_strict=given is not None,
    )
    service = http.service_of(client, gate, public_url=serving.public_url, access_log=serving.access_log)
    return await parts.enter_async_context(Server(service, serving.address))


def _admin_token() -> Token | None:
    """Return the token in the file that the environment names, if it names one."""
    path = os.environ.get(ADMIN_TOKEN_FILE)
    if not path:
        return None
    from perdure.operations.access import Access, token_of  # noqa: PLC0415  only who serves imports it

    try:
        text = Path(path).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise InvalidOption(f"{ADMIN_TOKEN_FILE}={path}: it cannot be read: {error}") from error
    try:
        return token_of(text.strip(), Access("admin", "admin", payloads=True))
    except InvalidOption as error:
        raise InvalidOption(f"{ADMIN_TOKEN_FILE}={path}: {error}") from error


@click.command()
@url_option
@http_options
@log_option
@reporting
def serve(
    url: str | None,
    http_port: int | None,
    http_address: Address | None,
    public_url: str | None,
    trusted_proxies: tuple[str, ...],
    access_log: bool,
    log_format: str,
) -> int:
    """Serve the HTTP API in front of a store, without a worker, until SIGINT, SIGTERM or SIGHUP.

    On a NATS store, any number of servers and workers work beside each other. A SQLite file has one process: there,
    use `perdure worker --http-port`.
    """
    address = chosen_address(http_port, http_address) or chosen_address(DEFAULT_PORT, None)
    assert address is not None
    show_logs(logging.INFO, log_format)
    stopping = Stopping()
    serving = Serving(address, public_url, trusted_proxies, access_log)
    return in_loop(_serve(connect(url), serving, stopping, shown_url(url)), stopping.begin)


async def _serve(client: Client, serving: Serving, stopping: Stopping, store: str) -> int:
    async with client, AsyncExitStack() as parts:
        server = await begin_to_serve(parts, client, serving)
        came = stopping.expected()
        click.echo(f"Serving {store} at {server.address}. Ctrl-C stops.")
        log.info("%s: stopping", (await came).name)
    log.info("stopped")
    return 0
