"""`perdure token` and `perdure audit`: who may use the HTTP API, and who did what with it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import click
from msgspec.structs import asdict

from perdure.cli.options import json_option, shown_url, url_option
from perdure.cli.process import in_loop
from perdure.cli.reporting import reporting
from perdure.cli.tables import print_json, print_table
from perdure.client import Client
from perdure.connect import connect
from perdure.operations.access import ROLES, Access, Role, Token, check_access, new_token
from perdure.operations.audit import Link, read_all

DAYS_LIMIT = 36_500
"""The longest life of a token."""

json_lines = json_option("Print one JSON object per line.")


@click.group()
def token() -> None:
    """Make, list and revoke the tokens of a store, by which callers use its HTTP API."""


@token.command()
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), default="read", show_default=True, help="What it permits.")
@click.option("--payloads", is_flag=True, help="Let it see inputs, results, state and errors, not only statuses.")
@click.option("--handler", "handlers", multiple=True, metavar="NAME", help="Only these workflows. May be repeated.")
@click.option("--key-prefix", "prefixes", multiple=True, metavar="TEXT", help="Only keys that begin with one of these.")
@click.option("--days", type=click.IntRange(1, DAYS_LIMIT), help="It expires after so many days.")
@url_option
@reporting
def add(
    name: str,
    role: Role,
    payloads: bool,
    handlers: tuple[str, ...],
    prefixes: tuple[str, ...],
    days: int | None,
    url: str | None,
) -> int:
    """Make a token called NAME, and print it. It is not kept, and cannot be shown again."""
    access = check_access(Access(name, role, payloads, handlers or None, prefixes or None))

    async def adding(client: Client) -> int:
        expires = None if days is None else datetime.now(UTC) + timedelta(days=days)
        made = await client.operations.add_token(access, expires=expires)
        found = await client.operations.tokens()
        now = datetime.now(UTC)
        click.echo(made)
        if not any(each.access.may("admin") and each.is_valid(now) for each in found):
            click.echo(
                "From now on every request needs a token, and no token of this store permits to make others.", err=True
            )
        return 0

    return _with_client(url, adding)


@token.command()
@reporting
def make() -> int:
    """Print a token without recording it anywhere: for the file that PERDURE_ADMIN_TOKEN_FILE names."""
    click.echo(new_token(Access("admin", "admin", payloads=True))[1])
    return 0


@token.command("list")
@json_lines
@url_option
@reporting
def list_tokens(as_json: bool, url: str | None) -> int:
    """List the tokens of a store, the oldest first."""

    async def listing(client: Client) -> int:
        found = await client.operations.tokens()
        if as_json:
            for each in found:
                print_json(_token_fields(each))
        elif found:
            rows = [[str(value) for value in _token_fields(each).values()] for each in found]
            print_table([*_token_fields(found[0])], rows)
        else:
            click.echo(f"{shown_url(url)} has recorded no tokens.")
        return 0

    return _with_client(url, listing, read_only=True)


def _token_fields(token: Token) -> dict[str, object]:
    access = token.access
    state = "revoked" if token.revoked_at else "valid" if token.is_valid(datetime.now(UTC)) else "expired"
    return {
        "id": token.id,
        "name": access.name,
        "role": access.role + (" + payloads" if access.payloads else ""),
        "limits": ", ".join([*(access.handlers or ()), *(f"{each}…" for each in access.key_prefixes or ())]),
        "status": state,
        "expires": _shown(token.expires),
        "last_used": _shown(token.last_used),
    }


def _shown(at: datetime | None) -> str:
    return "" if at is None else at.isoformat(timespec="seconds")


@token.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@url_option
@reporting
def revoke(ids: tuple[str, ...], url: str | None) -> int:
    """Revoke tokens for good. Servers, open streams and waits hear of it within 5 seconds."""

    async def revoking(client: Client) -> int:
        for id in ids:
            await client.operations.revoke_token(id)
            click.echo(f"Revoked {id}.")
        return 0

    return _with_client(url, revoking)


@click.command()
@click.option("--verify", is_flag=True, help="Only check that no piece was changed or removed since.")
@json_lines
@url_option
@reporting
def audit(verify: bool, as_json: bool, url: str | None) -> int:
    """Print who did what over HTTP, the oldest first, and check that nothing was changed since.

    The last line names the hash of the last piece. Who notes it elsewhere can tell later that nothing before was
    changed: it is in the list that --json prints, as `hash`.
    """

    async def reading(client: Client) -> int:
        last: Link | None = None
        first = 0
        async for link in read_all(client.operations):
            first = first or link.piece.number
            last = link
            if not verify:
                _print_piece(link, as_json)
        if last is None:
            click.echo("The audit is empty.", err=True)
        elif not as_json:
            click.echo(f"Pieces {first} to {last.piece.number} follow each other. The last has the hash {last.hash}.")
        return 0

    return _with_client(url, reading, read_only=True)


def _print_piece(link: Link, as_json: bool) -> None:
    for each in link.piece.entries:
        fields = {**asdict(each), "at": _shown(each.at)}
        if as_json:
            print_json({"piece": link.piece.number, "hash": link.hash, **fields})
        else:
            click.echo("  ".join(map(str, fields.values())))


def _with_client(url: str | None, act: Callable[[Client], Awaitable[int]], *, read_only: bool = False) -> int:
    async def acting() -> int:
        async with connect(url, read_only=read_only) as client:
            return await act(client)

    return in_loop(acting())
