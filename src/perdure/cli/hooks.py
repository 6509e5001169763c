"""`perdure hook` and `perdure approval-link`: what lets other systems and people in.

Hooks and their secrets are in the store, so they are managed where it is: not through a server.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any

import click

from perdure.cli.operate import opened_to_change
from perdure.cli.options import json_option, shown_url, url_option
from perdure.cli.process import in_loop
from perdure.cli.reporting import FAILURE, reporting
from perdure.cli.serving import public_url_option
from perdure.cli.tables import print_json, print_table
from perdure.client import Client
from perdure.connect import connect
from perdure.errors import StoreReadOnly
from perdure.operations.capabilities import LINK_SECONDS, rotate_keys

if TYPE_CHECKING:
    from perdure.http.verifiers import Verifier


def _secrets(_: click.Context, parameter: click.Parameter, files: Sequence[IO[bytes]]) -> list[str]:
    found: list[str] = []
    for file in files:
        try:
            with file:
                found.append(file.read().decode().strip())
        except UnicodeDecodeError as error:
            raise click.BadParameter(f"{file.name} does not hold text in UTF-8", param=parameter) from error
    return found


@click.group()
def hook() -> None:
    """Let webhooks of other systems start workflows."""


@hook.command()
@click.argument("handler")
@click.option("--standard", is_flag=True, help="They are signed by the Standard Webhooks specification (Svix).")
@click.option("--hmac-header", metavar="NAME", help="They have an HMAC of their body in this header.")
@click.option(
    "--secret-file",
    "secrets",
    type=click.File("rb"),
    multiple=True,
    callback=_secrets,
    required=True,
    help="A file with the secret; - reads it from stdin. Repeat it while a new secret replaces an old one.",
)
@click.option("--algorithm", type=click.Choice(["sha256", "sha1", "sha512"]), help="Of the HMAC.  [default: sha256]")
@click.option("--encoding", type=click.Choice(["hex", "base64"]), help="Of the HMAC.  [default: hex]")
@click.option("--prefix", metavar="TEXT", help="What stands before the HMAC, as in sha256=.")
@click.option("--timestamped", is_flag=True, help="The header is t=TIME,v1=HMAC, as Stripe's.")
@click.option(
    "--event-id",
    metavar="NAME",
    help="The header that names the event, or a JSON pointer into the body, as in /id.  [default: the whole body]",
)
@url_option
@reporting
def add(handler: str, standard: bool, secrets: list[str], url: str | None, **options: Any) -> int:
    """Let webhooks start the workflow HANDLER: they are posted to /api/hooks/HANDLER.

    In place of the hook that it may have. Servers know it after a second.
    """
    given = {name: value for name, value in options.items() if value}
    if standard == ("hmac_header" in given):
        raise click.UsageError("give either --standard or --hmac-header NAME")
    if standard and given:
        raise click.UsageError(f"--standard takes no --{next(iter(given)).replace('_', '-')}")
    from perdure.http.verifiers import Hmac, StandardWebhooks  # noqa: PLC0415  only this imports it

    verifier = StandardWebhooks(secrets) if standard else Hmac(secrets, header=given.pop("hmac_header"), **given)
    return in_loop(_add(handler, verifier, url))


async def _add(handler: str, verifier: Verifier, url: str | None) -> int:
    from perdure.http.hooks import put_hook  # noqa: PLC0415  only this imports it

    async with connect(url) as client:
        await put_hook(client.operations, handler, verifier)
    click.echo(f"Webhooks start {handler} on {shown_url(url)}: POST /api/hooks/{handler}")
    return 0


@hook.command("list")
@json_option("Print one JSON object per line.")
@url_option
@reporting
def list_(as_json: bool, url: str | None) -> int:
    """List the hooks of a store, without their secrets."""
    return in_loop(_list(as_json, url))


async def _list(as_json: bool, url: str | None) -> int:
    from perdure.http.hooks import hooks_of  # noqa: PLC0415  only this imports it

    async with connect(url, read_only=True) as client:
        found = await hooks_of(client.operations)
    if as_json:
        for handler, verifier in found.items():
            described = {"type": None} if verifier is None else verifier.described()
            print_json({"handler": handler, **described})
    elif found:
        print_table(
            ["handler", "verifier"], [[handler, repr(each or "of a newer release")] for handler, each in found.items()]
        )
    return 0


@hook.command()
@click.argument("handler")
@url_option
@reporting
def remove(handler: str, url: str | None) -> int:
    """Take the hook of the workflow HANDLER away. Servers know it after a second."""
    return in_loop(_remove(handler, url))


async def _remove(handler: str, url: str | None) -> int:
    from perdure.http.hooks import remove_hook  # noqa: PLC0415  only this imports it

    async with opened_to_change(url) as client:
        found = await remove_hook(client.operations, handler)
    if not found:
        click.echo(f"error: {handler!r} has no hook: `perdure hook list` lists those that there are", err=True)
        return FAILURE
    click.echo(f"Webhooks no longer start {handler}.")
    return 0


@click.command("approval-link")
@click.argument("awakeable_id", metavar="AWAKEABLE")
@click.option("--callback", is_flag=True, help="A URL to which another system posts the value, as JSON.")
@click.option(
    "--expires",
    type=click.FloatRange(min=1),
    default=LINK_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="How long the link is valid.",
)
@public_url_option
@url_option
@reporting
def approval_link(awakeable_id: str, callback: bool, expires: float, public_url: str | None, url: str | None) -> int:
    """Print a link to a page on which anyone who has it can answer an awakeable, once."""

    async def link(client: Client) -> str:
        make = client.callback_link if callback else client.approval_link
        return await make(awakeable_id, expires=expires, public_url=public_url)

    async def print_link() -> int:
        try:
            async with connect(url, read_only=True) as client:  # a file that another process serves, too
                made = await link(client)
        except StoreReadOnly:  # it has no key yet
            async with opened_to_change(url) as client:
                made = await link(client)
        click.echo(made)
        return 0

    return in_loop(print_link())


@click.command("rotate-link-key")
@click.option("--revoke", is_flag=True, help="Make all links that there are worthless.")
@url_option
@reporting
def rotate_link_key(revoke: bool, url: str | None) -> int:
    """Sign links with a new key from now on. Those that there are stay valid until they expire, unless --revoke."""
    return in_loop(_rotate(revoke, url))


async def _rotate(revoke: bool, url: str | None) -> int:
    async with opened_to_change(url) as client:
        await rotate_keys(client.operations, revoke=revoke)
    kept = "All earlier links are worthless" if revoke else "Earlier links stay valid until they expire"
    click.echo(f"{shown_url(url)} signs links with a new key. {kept}.")
    return 0


COMMANDS = (hook, approval_link, rotate_link_key)
