"""`perdure nats`: prepares a NATS server for a store."""

from __future__ import annotations

import click

from perdure.cli.options import shown_url, url_option
from perdure.cli.process import in_loop
from perdure.cli.reporting import reporting
from perdure.connect import REPLICAS, SHARDS_LIMIT, make_streams


@click.group()
def nats() -> None:
    """Prepare a NATS server or cluster."""


@nats.command()
@url_option
@click.option(
    "--replicas",
    type=click.Choice([str(each) for each in REPLICAS]),
    default="1",
    show_default=True,
    help="On how many servers each stream is kept.",
)
@click.option(
    "--shards",
    type=click.IntRange(1, SHARDS_LIMIT),
    help="How many partitions the streams have, for ever.  [default: 4, or what the store has]",
)
@click.option("--synced", is_flag=True, help="Note that the server runs with `sync_interval: always`: ends a warning.")
@reporting
def init(url: str | None, replicas: str, shards: int | None, synced: bool) -> int:
    """Make the streams of a store.

    Existing streams and their contents stay unchanged; other numbers than theirs are an error. On one server the first
    worker makes the streams by itself; on three, run this first.
    """
    return in_loop(_init(url, int(replicas), shards, synced))


async def _init(url: str | None, replicas: int, shards: int | None, synced: bool) -> int:
    found, new = await make_streams(url, replicas=replicas, shards=shards, synced=synced)
    where = f"{shown_url(url)}: {found} partitions, {replicas} {'replica' if replicas == 1 else 'replicas'} each"
    click.echo(f"Made the streams of a new store on {where}." if new else f"There is a store on {where}.")
    return 0
