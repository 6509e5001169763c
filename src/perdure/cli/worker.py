"""`perdure worker`: serves workflows until a signal says to stop."""

from __future__ import annotations

import logging
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import click

from perdure.cli.options import log_option, services_option, shown_url, url_option
from perdure.cli.process import Stopping, fix_hash_seed, in_loop
from perdure.cli.reporting import reporting
from perdure.cli.serving import Serving, begin_to_serve, chosen_address, http_options
from perdure.cli.target import load
from perdure.cli.terminal import show_logs
from perdure.client import Client
from perdure.connect import SHARDS_LIMIT, connect
from perdure.core.retry import seconds
from perdure.runtime.retention import RETENTION_SECONDS
from perdure.runtime.worker import LEASE_SECONDS, STOP_GRACE_SECONDS, Worker

if TYPE_CHECKING:
    from perdure.http.server import Address

log = logging.getLogger("perdure.cli")


def _partitions(_: click.Context, parameter: click.Parameter, text: str | None) -> list[int] | None:
    if text is None:
        return None
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = (each.strip() for each in part.partition("-"))
        numbers = range(0)
        if first.isdecimal() and (last.isdecimal() or not dash):
            numbers = range(int(first), int(last or first) + 1)
        if not numbers or numbers[-1] >= SHARDS_LIMIT:
            expected = f"give numbers from 0 to {SHARDS_LIMIT - 1}, as in 0,2-3"
            raise click.BadParameter(f"{text!r} names no partitions: {expected}", param=parameter)
        found.update(numbers)
    return sorted(found)


@click.command()
@click.argument("targets", metavar="TARGET...", nargs=-1, required=True)
@url_option
@click.option(
    "--max-concurrent",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="How many invocations have steps in progress at a time.",
)
@services_option
@click.option(
    "--partitions",
    callback=_partitions,
    metavar="N[,N|-M]...",
    help="On NATS: take new work only from these partitions, as in 0,2-3.  [default: all]",
)
@click.option(
    "--lease",
    type=click.FloatRange(min=1),
    default=LEASE_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="On NATS: how long this worker may be silent before others take over.",
)
@click.option(
    "--drain-timeout",
    type=click.FloatRange(min=0),
    default=STOP_GRACE_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="How long steps in progress may take to end after a signal.",
)
@click.option(
    "--retention",
    type=click.FloatRange(min=0),
    default=RETENTION_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="How long completed, cancelled and failed invocations are kept; 0 keeps them for ever.",
)
@http_options
@log_option
@reporting
def worker(
    targets: tuple[str, ...],
    url: str | None,
    max_concurrent: int,
    services: dict[str, str],
    partitions: list[int] | None,
    lease: float,
    drain_timeout: float,
    retention: float,
    http_port: int | None,
    http_address: Address | None,
    public_url: str | None,
    trusted_proxies: tuple[str, ...],
    access_log: bool,
    log_format: str,
) -> int:
    """Serve workflows until SIGINT, SIGTERM or SIGHUP.

    TARGET is app.py or pkg.app, for all workflows of the module, or app.py:workflow for one. After the signal the
    worker begins nothing new and lets steps in progress end; a second signal ends the process at once. Either way
    nothing is lost: the next worker goes on from the journal.
    """
    address = chosen_address(http_port, http_address)
    only_http = {"--access-log": access_log, "--public-url": public_url, "--trusted-proxy": trusted_proxies}
    if address is None and (given := [name for name, value in only_http.items() if value]):
        raise click.UsageError(f"{', '.join(given)}: this is for the HTTP API: give --http-port or --http too")
    grace = seconds("--drain-timeout", drain_timeout)
    fix_hash_seed()
    found = [load(target) for target in targets]
    served = [each for target in found for each in ([target.workflow] if target.name else target.workflows)]
    served = list({id(each): each for each in served}.values())
    show_logs(logging.INFO, log_format)
    client = connect(url, retention=retention or None)
    running = client.worker(
        *served, max_concurrent=max_concurrent, services=services or None, partitions=partitions, lease=lease
    )
    names = ", ".join(sorted(each.name for each in served))
    serving = f"Serving {names} on {shown_url(url)}, at most {max_concurrent} at a time."
    stopping = Stopping()
    over_http = None if address is None else Serving(address, public_url, trusted_proxies, access_log)
    return in_loop(_serve(client, running, stopping, serving, grace, over_http), stopping.begin)


async def _serve(
    client: Client, worker: Worker, stopping: Stopping, serving: str, drain_timeout: float, over_http: Serving | None
) -> int:
    _observe(client)
    async with client, worker as running:
        async with AsyncExitStack() as parts:  # no request comes to a worker that takes nothing new
            if over_http is not None:
                server = await begin_to_serve(parts, client, over_http)
                serving += f" HTTP at {server.address}."
            came = stopping.expected()
            click.echo(f"{serving} Ctrl-C stops.")
            log.info("%s: stopping; steps in progress have %g s to end", (await came).name, drain_timeout)
        await running.stop(drain_timeout)
    log.info("stopped")
    return 0


def _observe(client: Client) -> None:
    """Let the meter provider of OpenTelemetry observe the worker, if the program has set one."""
    if "opentelemetry.sdk.metrics" in sys.modules:
        from perdure.integrations.telemetry import observe  # noqa: PLC0415  telemetry is an extra

        observe(client)
