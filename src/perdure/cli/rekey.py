"""`perdure rekey`: seals all that a store keeps under the first of its keys, so that the others can be dropped.

The job is durable. This process works on it, or that of the server that it is asked through; if it is gone, a worker
goes on, or the command when it is called again.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping

import click

from perdure.cli.look import opened_to_look
from perdure.cli.operate import opened_to_change
from perdure.cli.options import json_option, url_option
from perdure.cli.process import in_loop
from perdure.cli.progress import LINE_SECONDS
from perdure.cli.reporting import FAILURE, reporting
from perdure.cli.tables import FIELD_LIMIT, print_json, shown
from perdure.cli.terminal import say
from perdure.client import Client
from perdure.operations.rekey import RekeyProgress

LOOK_SECONDS = 0.2
"""How often the command looks how far the job is."""
WAITING_SECONDS = 30.0
"""How long it stays while nothing is left but what waits in queues."""
LEFT_LIMIT = 10
"""Things that stay as they are which are printed; the job keeps some more."""


@click.command()
@click.option("--dry-run", is_flag=True, help="Count how much is sealed under each key, and change nothing.")
@json_option("Print the job, or with --dry-run the numbers, as one JSON object.")
@url_option
@reporting
def rekey(dry_run: bool, as_json: bool, url: str | None) -> int:
    """Seal all that a store keeps under the first of its keys, also while workers serve it.

    Put the new key first in every process before. When this command says so, the others can be dropped. It can be
    interrupted, and goes on when it is called again. The exit code is 1 if something is left.
    """
    return in_loop(_count(url, as_json) if dry_run else _rekey(url, as_json))


async def _count(url: str | None, as_json: bool) -> int:
    under: Counter[str] = Counter()
    async with opened_to_look(url) as client:
        after: str | None = ""
        while after is not None:
            part = await client.operations.count_sealed(after)
            under.update(part.under)
            after = part.next
    if as_json:
        print_json(dict(under))
    else:
        click.echo("\n".join(f"{count:,} values under {name!r}" for name, count in under.most_common()) or "no values")
    return 0


async def _rekey(url: str | None, as_json: bool) -> int:
    async with opened_to_change(url) as client:
        found = await _follow(client, await client.operations.begin_rekey())
    if as_json:
        print_json(found)
    else:
        _print(found)
    return 0 if found.state == "done" else FAILURE


async def _follow(client: Client, found: RekeyProgress) -> RekeyProgress:
    """Show how far the job is until it has ended, or nothing is left but what waits."""
    say(f"sealing under key {found.key!r}: it goes on if this command is interrupted, and called again")
    last = moved = time.monotonic()
    while found.ended_at is None and time.monotonic() < moved + WAITING_SECONDS:
        await asyncio.sleep(LOOK_SECONDS)
        again, now = await client.operations.rekey() or found, time.monotonic()
        if again.state == "running":
            moved = now
        found = again
        if now > last + LINE_SECONDS:
            say(f"pass {found.passes + 1}: {found.seen:,} seen, {found.changed:,} sealed anew")
            last = now
    return found


def _print(found: RekeyProgress) -> None:
    others = {name: count for name, count in found.under.items() if name != found.key}
    click.echo(f"{found.changed:,} rows or messages are sealed anew. {_under(found.under)}.")
    if found.state == "done":
        click.echo(f"Nothing is sealed under another key than {found.key!r}: the others can be dropped.")
        click.echo("Backups, exports, and the free pages of an SQLite file keep what they have.")
        return
    for each in found.left[:LEFT_LIMIT]:
        say(f"  {each.what}: {shown(each.why, FIELD_LIMIT)}")
    if len(found.left) > LEFT_LIMIT:
        say("  and more")
    keep = f"Keep {' and '.join(map(repr, others))}" if others else "Keep the other keys"
    if found.state == "waiting":
        click.echo(f"{found.waiting:,} wait in queues, and keep their key until a worker has them. {keep} until then.")
        click.echo("Workers go on with it: call this command again to see whether it is done.")
    else:
        click.echo(f"What is named above is left as it is. {keep} for as long as it is needed.")


def _under(under: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} values are under {name!r}" for name, count in under.items()) or "There are no values"
