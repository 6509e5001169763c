"""Options of several verbs, and how their texts are read."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from perdure.connect import DEFAULT_URL, url_in_use, without_secrets
from perdure.operations.listing import STATUSES

PORT_LIMIT = 65_535
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

url_option = click.option(
    "--url",
    metavar="URL",
    help=f"memory:, sqlite:PATH, nats://HOST:PORT or http://HOST:PORT.  [default: $PERDURE_URL, else {DEFAULT_URL}]",
)


def json_option(help: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option `--json` with a help text."""
    return click.option("--json", "as_json", is_flag=True, help=help)


log_option = click.option(
    "--log",
    "log_format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How logs are written to stderr: as text, or as a JSON object per line.",
)


def duration_of(text: str) -> timedelta | None:
    """Return the duration in a text such as 90s, 15m, 2h, 7d or 1w; None if it is none. Raises `OverflowError`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text)
    return None if found is None else timedelta(**{_UNITS[found[2]]: float(found[1])})


def _tags(_: click.Context, parameter: click.Parameter, texts: Sequence[str]) -> dict[str, str] | None:
    found: dict[str, str] = {}
    for text in texts:
        name, colon, value = text.partition(":")
        if not (name and colon and value):
            raise click.BadParameter(f"{text!r} is not NAME:VALUE, as in tenant:acme", param=parameter)
        if name in found:
            raise click.BadParameter(f"the tag {name!r} is given twice", param=parameter)
        found[name] = value
    return found or None


def tag_option(help: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option `--tag`, which may be repeated, with a help text."""
    return click.option("--tag", "tags", multiple=True, callback=_tags, metavar="NAME:VALUE", help=help)


def moment(_: click.Context, parameter: click.Parameter, text: str | None) -> datetime | None:
    """Read a time: ISO 8601, local unless it names a zone, or how long ago it was."""
    if text is None:
        return None
    try:
        if (ago := duration_of(text)) is not None:
            return datetime.now(UTC) - ago
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        text = f"{text!r} is not a time: give 2026-11-20, 2026-11-20T12:00:00Z, or how long ago, as in 90m"
        raise click.BadParameter(text, param=parameter) from error


def filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the filters of invocations, each by the name that `Filters` has for it."""
    options = (
        click.option("--status", type=click.Choice(STATUSES), help="Only those of this status."),
        click.option("--handler", metavar="NAME", help="Only those of this workflow."),
        click.option("--key", help="Only those of this key."),
        click.option("--id-prefix", metavar="TEXT", help="Only those whose id begins with this."),
        tag_option("Only those that have this tag; repeat it for those that have all of them."),
        click.option(
            "--created-after", callback=moment, metavar="TIME", help="Only those created at this time or later."
        ),
        click.option("--created-before", callback=moment, metavar="TIME", help="Only those created before this time."),
    )
    for each in reversed(options):
        command = each(command)
    return command


def _services(_: click.Context, parameter: click.Parameter, texts: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, address = service_of(text, parameter)
        if found.setdefault(name, address) != address:
            raise click.BadParameter(f"{name} is given twice, as {found[name]} and {address}", param=parameter)
    return found


def service_of(text: str, parameter: click.Parameter | None = None) -> tuple[str, str]:
    """Return the name and the address in `NAME=HOST:PORT`."""
    name, _, address = text.partition("=")
    host, _, port = address.rpartition(":")
    if not name.strip() or not host or not port.isdecimal() or not 0 < int(port) <= PORT_LIMIT:
        raise click.BadParameter(f"{text!r} is not NAME=HOST:PORT, as in HelloService=127.0.0.1:9090", param=parameter)
    return name.strip(), address


services_option = click.option(
    "--service",
    "services",
    multiple=True,
    metavar="NAME=HOST:PORT",
    callback=_services,
    help="Address of a gRPC service, by its short or full name. Repeat it for more services.",
)


def index_file(url: str | None) -> Path | None:
    """Return the file in which this user keeps the index of a NATS store; None for an embedded store."""
    used = url_in_use(url)
    if not used.startswith(("nats:", "tls:")):
        return None
    name = hashlib.blake2b(shown_url(used).encode(), digest_size=8).hexdigest()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "")
    if not folder.is_absolute():  # to be ignored, by the specification
        folder = Path(os.path.expanduser("~")) / ".cache"
    return folder / "perdure" / f"index-{name}.db" if folder.is_absolute() else None  # a user without a home


def shown_url(url: str | None) -> str:
    """Return the URL that `connect(url)` uses, without its password or token."""
    return without_secrets(url_in_use(url))
