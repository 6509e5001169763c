"""`--http`, for the commands that serve over HTTP, and `perdure serve`, which does nothing else."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, TypeVar

import click

from perdure.cli.options import PORT_LIMIT, log_option, shown_url, url_option
from perdure.cli.process import Stopping, in_loop
from perdure.cli.reporting import reporting
from perdure.cli.terminal import show_logs
from perdure.client import Client
from perdure.connect import connect

if TYPE_CHECKING:
    from perdure.http.server import Address, Server

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_PORT = 8080

log = logging.getLogger("perdure.cli")


access_log_option = click.option(
    "--access-log", is_flag=True, help="Log each HTTP request at INFO: its route, status and duration, and no ids."
)


def _address(_: click.Context, parameter: click.Parameter, text: str | None) -> Address | None:
    if text is None:
        return None
    from perdure.errors import InvalidOption  # noqa: PLC0415
    from perdure.http.server import address_of  # noqa: PLC0415  only who serves imports it

    try:
        return address_of(text)
    except InvalidOption as error:
        raise click.BadParameter(str(error), param=parameter) from error


def http_options(command: F) -> F:
    """Add `--http-port`, `--http` and `--access-log`."""
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
    return port(address(access_log_option(command)))


def chosen_address(port: int | None, address: Address | None) -> Address | None:
    """Return where to listen, if anywhere."""
    if port is None:
        return address
    if address is not None:
        raise click.UsageError("--http-port and --http exclude each other")
    from perdure.http.server import Address  # noqa: PLC0415  only who serves imports it

    return Address("127.0.0.1", port)


async def begin_to_serve(parts: AsyncExitStack, client: Client, address: Address, *, access_log: bool) -> Server:
    """Serve a client over HTTP until `parts` end."""
    from perdure.http import app  # noqa: PLC0415  only who serves imports it
    from perdure.http.server import Server  # noqa: PLC0415

    return await parts.enter_async_context(Server(app(client, access_log=access_log), address))


@click.command()
@url_option
@http_options
@log_option
@reporting
def serve(
    url: str | None, http_port: int | None, http_address: Address | None, access_log: bool, log_format: str
) -> int:
    """Serve the HTTP API in front of a store, without a worker, until SIGINT, SIGTERM or SIGHUP.

    On a NATS store, any number of servers and workers work beside each other. A SQLite file has one process: there,
    use `perdure worker --http-port`.
    """
    address = chosen_address(http_port, http_address) or chosen_address(DEFAULT_PORT, None)
    assert address is not None
    show_logs(logging.INFO, log_format)
    stopping = Stopping()
    return in_loop(_serve(connect(url), address, stopping, shown_url(url), access_log), stopping.begin)


async def _serve(client: Client, address: Address, stopping: Stopping, store: str, access_log: bool) -> int:
    async with client, AsyncExitStack() as parts:
        server = await begin_to_serve(parts, client, address, access_log=access_log)
        came = stopping.expected()
        click.echo(f"Serving {store} at {server.address}. Ctrl-C stops.")
        log.info("%s: stopping", (await came).name)
    log.info("stopped")
    return 0
