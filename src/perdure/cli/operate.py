"""`perdure pause`, `resume`, `cancel`, `retry`, `resolve`, `reject`: what tells an invocation something.

A file has one process that serves it. If another one does, nothing is changed from here, and it is named. If none does,
what is told is made durable; the next worker that serves the workflow applies it, since that takes the workflow's code.
What can be seen from the journal to be refused then is refused now.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import click

from perdure.cli.options import json_option, shown_url, url_option
from perdure.cli.process import in_loop
from perdure.cli.reporting import FAILURE, reporting
from perdure.cli.tables import print_json
from perdure.cli.values import reader
from perdure.client import Client
from perdure.connect import connect
from perdure.core.ids import parse_awakeable_id
from perdure.core.lifecycle import SETTLED, TABLE, Event, Verb, refusal
from perdure.errors import IllegalTransition, MessageRefused, PerdureError, StoreError, StoreLocked, WaitTimeout
from perdure.operations.describe import Invocation

Tell = Callable[[Client], Awaitable[None]]
"""Tells one invocation something, and ends when it is applied."""

ANSWER_SECONDS = 0.0
"""How long to wait until it is applied. Here nobody is there to apply it: who opens a file for writing is alone."""

ids_argument = click.argument("ids", metavar="ID...", nargs=-1, required=True)
outcome_option = json_option("Print one JSON object on a line for each.")


@click.command()
@ids_argument
@outcome_option
@url_option
@reporting
def pause(ids: tuple[str, ...], as_json: bool, url: str | None) -> int:
    """Let invocations begin nothing new until they are resumed."""
    return _tell_all("pause", ids, lambda client, id: client.handle(id).pause(timeout=ANSWER_SECONDS), as_json, url)


@click.command()
@ids_argument
@outcome_option
@url_option
@reporting
def resume(ids: tuple[str, ...], as_json: bool, url: str | None) -> int:
    """End the pause of invocations."""
    return _tell_all("resume", ids, lambda client, id: client.handle(id).resume(timeout=ANSWER_SECONDS), as_json, url)


@click.command()
@ids_argument
@click.option("--force", is_flag=True, help="Skip cleanup: end it from the journal alone.")
@outcome_option
@url_option
@reporting
def cancel(ids: tuple[str, ...], force: bool, as_json: bool, url: str | None) -> int:
    """Cancel invocations, letting their cleanup code run."""
    return _tell_all(
        "cancel",
        ids,
        lambda client, id: client.handle(id).cancel(force=force, timeout=ANSWER_SECONDS),
        as_json,
        url,
    )


@click.command()
@ids_argument
@outcome_option
@url_option
@reporting
def retry(ids: tuple[str, ...], as_json: bool, url: str | None) -> int:
    """Run failed invocations again, each from the step that made it fail.

    All that failed: perdure retry $(perdure list --status failed --quiet)
    """
    return _tell_all("retry", ids, lambda client, id: client.handle(id).retry(timeout=ANSWER_SECONDS), as_json, url)


@click.command()
@click.argument("awakeable_id", metavar="AWAKEABLE")
@click.argument("value", required=False)
@outcome_option
@url_option
@reporting
def resolve(awakeable_id: str, value: str | None, as_json: bool, url: str | None) -> int:
    """Give an awakeable its value.

    VALUE is JSON; text that is none, and does not begin like an object, a list or a string, is taken as it is. Without
    it, the value is null. `perdure show ID` lists the awakeables of an invocation. Put -- before a negative number.
    """
    given = None if value is None else _read(value)

    async def tell(client: Client) -> None:
        await client.resolve(awakeable_id, given, timeout=ANSWER_SECONDS)

    return in_loop(_answer_awakeable("resolve", awakeable_id, tell, as_json, url))


@click.command()
@click.argument("awakeable_id", metavar="AWAKEABLE")
@click.argument("reason")
@outcome_option
@url_option
@reporting
def reject(awakeable_id: str, reason: str, as_json: bool, url: str | None) -> int:
    """Fail an awakeable, for a REASON that the workflow gets."""

    async def tell(client: Client) -> None:
        await client.reject(awakeable_id, reason, timeout=ANSWER_SECONDS)

    return in_loop(_answer_awakeable("reject", awakeable_id, tell, as_json, url))


COMMANDS = (pause, resume, cancel, retry, resolve, reject)


def _read(value: str) -> Any:
    try:
        return reader(Any)(value)
    except ValueError as error:
        raise click.UsageError(f"the value is no JSON: {error}") from error


# --- what the verbs share ---------------------------------------------------------------------------------------------
@asynccontextmanager
async def _opened_to_change(url: str | None) -> AsyncGenerator[Client]:
    """Open a store that exists, or say who has it."""
    async with connect(url, read_only=True):
        pass  # it exists, and is one: opening it to change it would make it
    client = connect(url)
    try:
        await client.opened()
    except StoreLocked as error:
        text = f"{error}: only that process can change it; ask it, or stop it first"
        raise StoreLocked(text, pid=error.pid) from error
    async with client:
        yield client


def _tell_all(
    verb: Verb, ids: Sequence[str], tell: Callable[[Client, str], Awaitable[None]], as_json: bool, url: str | None
) -> int:
    async def told(client: Client, id: str) -> None:
        _check_status(await client.handle(id).describe(), verb)
        await tell(client, id)

    async def all_of_them() -> int:
        async with _opened_to_change(url) as client:
            codes = [await _report(verb, id, id, told(client, id), client, as_json, url) for id in dict.fromkeys(ids)]
        return max(codes)

    return in_loop(all_of_them())


async def _answer_awakeable(verb: str, awakeable_id: str, tell: Tell, as_json: bool, url: str | None) -> int:
    async with _opened_to_change(url) as client:
        id, _, n = parse_awakeable_id(awakeable_id, (await client.opened()).secret)

        async def told() -> None:
            _check_awakeable(await client.handle(id).describe(), awakeable_id, n)
            await tell(client)

        return await _report(verb, awakeable_id, id, told(), client, as_json, url)


def _check_status(described: Invocation, verb: Verb) -> None:
    """Refuse what is illegal in the status that an invocation has, once all that it was told before is applied."""
    status = described.status
    for told in described.mail:
        status = TABLE[status].get(cast("Event", told), status)
    reason = refusal(status, verb)
    if reason is not None:
        if status != described.status:
            reason = f"it is {status} once what was accepted before is applied ({', '.join(described.mail)})"
        text = f"cannot {verb} invocation {described.id!r}: {reason}"
        raise IllegalTransition(text, invocation_id=described.id, reason=reason, status=status)


def _check_awakeable(described: Invocation, awakeable_id: str, n: int) -> None:
    """Refuse an answer to an awakeable that has one."""
    id, why = described.id, None
    if described.status in SETTLED and not described.mail:
        why = f"it is {described.status}"
    elif any(each.id == awakeable_id and each.resolved for each in described.awakeables):
        why = f"awakeable #{n} is resolved or rejected already"
    elif {f"resolve #{n}", f"reject #{n}"}.intersection(described.mail):
        why = f"an answer to awakeable #{n} is accepted already, and waits for a worker"
    if why is not None:
        raise MessageRefused(f"invocation {id!r} refuses the message: {why}", invocation_id=id, reason=why)


async def _report(
    verb: str, what: str, id: str, told: Awaitable[None], client: Client, as_json: bool, url: str | None
) -> int:
    """Print what became of it, and return the exit code: a refusal of one does not keep the others from being told."""
    try:
        await told
        became, text = "applied", f"{verb} of {what}: applied"
    except WaitTimeout:
        handler = (await client.handle(id).describe()).handler
        became = "accepted"
        text = (
            f"{verb} of {what}: accepted, not yet applied: nobody serves workflow {handler!r} here. The next worker "
            f"that does applies it: perdure worker APP.py --url {shown_url(url)}"
        )
    except StoreError:
        raise
    except PerdureError as error:
        became, text = "refused", f"error: {error}"
    if as_json:
        print_json(
            {"verb": verb, "id": what, "invocation_id": id, "outcome": became, "text": text.removeprefix("error: ")}
        )
    else:
        click.echo(text, err=became == "refused")
    return FAILURE if became == "refused" else 0
