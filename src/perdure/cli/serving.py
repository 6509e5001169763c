"""`--http`, for the commands that serve over HTTP, and `perdure serve`, which does nothing else."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, TypeVar

import click

from perdure.cli.options import PORT_LIMIT, shown_url, url_option
from perdure.cli.process import Stopping, in_loop
from perdure.cli.reporting import reporting
from perdure.cli.terminal import show_logs
from perdure.client import Client
from perdure.connect import connect
from perdure.errors import InvalidOption
from perdure.operations.capabilities import check_public_url

if TYPE_CHECKING:
    from perdure.http.server import Address, Server

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_PORT = 8080

log = logging.getLogger("perdure.cli")


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
    """Add `--http-port`, `--http` and `--public-url`."""
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
    return port(address(public_url_option(command)))


def chosen_address(port: int | None, address: Address | None) -> Address | None:
    """Return where to listen, if anywhere."""
    if port is None:
        return address
    if address is not None:
        raise click.UsageError("--http-port and --http exclude each other")
    from perdure.http.server import Address  # noqa: PLC0415  only who serves imports it

    return Address("127.0.0.1", port)


async def begin_to_serve(
    parts: AsyncExitStack, client: Client, address: Address, public_url: str | None = None
) -> Server:
    """Serve a client over HTTP until `parts` end."""
    from perdure.http import app  # noqa: PLC0415  only who serves imports it
    from perdure.http.server import Server  # noqa: PLC0415

    return await parts.enter_async_context(Server(app(client, public_url=public_url), address))


@click.command()
@url_option
@http_options
@reporting
def serve(url: str | None, http_port: int | None, http_address: Address | None, public_url: str | None) -> int:
    """Serve the HTTP API in front of a store, without a worker, until SIGINT, SIGTERM or SIGHUP.

    On a NATS store, any number of servers and workers work beside each other. A SQLite file has one process: there,
    use `perdure worker --http-port`.
    """
    address = chosen_address(http_port, http_address) or chosen_address(DEFAULT_PORT, None)
    assert address is not None
    show_logs(logging.INFO)
    stopping = Stopping()
    serving = _serve(connect(url), address, public_url, stopping, shown_url(url))
    return in_loop(serving, stopping.begin)


async def _serve(client: Client, address: Address, public_url: str | None, stopping: Stopping, store: str) -> int:
    async with client, AsyncExitStack() as parts:
        server = await begin_to_serve(parts, client, address, public_url)
        came = stopping.expected()
        click.echo(f"Serving {store} at {server.address}. Ctrl-C stops.")
        log.info("%s: stopping", (await came).name)
    log.info("stopped")
    return 0
