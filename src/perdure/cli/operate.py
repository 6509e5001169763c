"""`perdure pause`, `resume`, `cancel`, `retry`, `resolve`, `reject`: send a message to an invocation.

One process serves a file. If another process serves it, the command changes nothing and names that process. If none
does, the message is made durable, and the next worker that serves the workflow applies it, since that takes the
workflow's code; a message that the journal shows to be illegal is refused at once.

Where other processes may serve the store (NATS), the command waits for the worker's answer.
"""

from __future__ import annotations

import asyncio
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
from perdure.connect import connect, url_in_use
from perdure.core.lifecycle import SETTLED, TABLE, Event, Verb, refusal
from perdure.errors import IllegalTransition, MessageRefused, PerdureError, StoreError, StoreLocked, WaitTimeout
from perdure.operations.describe import Invocation

WAIT_SECONDS = 10.0
"""How long to wait for the answer of a worker in another process."""

STORE_WAIT_SECONDS = 1.0
"""How long to wait, if no other process can serve the store, for a cancellation that needs no worker."""

Tell = Callable[[Client, float], Awaitable[None]]
"""Sends one message to an invocation; returns when it is applied, or after a number of seconds."""

TellOne = Callable[[Client, str, float], Awaitable[None]]

ids_argument = click.argument("ids", metavar="ID...", nargs=-1, required=True)
outcome_option = json_option("Print one JSON object per line.")


@click.command()
@ids_argument
@outcome_option
@url_option
@reporting
def pause(ids: tuple[str, ...], as_json: bool, url: str | None) -> int:
    """Pause invocations: they begin nothing new until they are resumed."""
    return _tell_all("pause", ids, lambda client, id, wait: client.handle(id).pause(timeout=wait), as_json, url)


@click.command()
@ids_argument
@outcome_option
@url_option
@reporting
def resume(ids: tuple[str, ...], as_json: bool, url: str | None) -> int:
    """Resume paused invocations."""
    return _tell_all("resume", ids, lambda client, id, wait: client.handle(id).resume(timeout=wait), as_json, url)


@click.command()
@ids_argument
@click.option("--force", is_flag=True, help="Skip cleanup: end it from the journal alone.")
@outcome_option
@url_option
@reporting
def cancel(ids: tuple[str, ...], force: bool, as_json: bool, url: str | None) -> int:
    """Cancel invocations, letting their cleanup code run."""
    return _tell_all(
        "cancel", ids, lambda client, id, wait: client.handle(id).cancel(force=force, timeout=wait), as_json, url
    )


@click.command()
@ids_argument
@outcome_option
@url_option
@reporting
def retry(ids: tuple[str, ...], as_json: bool, url: str | None) -> int:
    """Run failed invocations again, each from the step that made it fail.

    All that failed: perdure bulk retry --status failed
    """
    return _tell_all("retry", ids, lambda client, id, wait: client.handle(id).retry(timeout=wait), as_json, url)


@click.command()
@click.argument("awakeable_id", metavar="AWAKEABLE")
@click.argument("value", required=False)
@outcome_option
@url_option
@reporting
def resolve(awakeable_id: str, value: str | None, as_json: bool, url: str | None) -> int:
    """Give an awakeable its value.

    VALUE is JSON. Text that is not JSON, and does not begin like an object, a list or a string, is a string. Without
    VALUE, the value is null. `perdure show ID` lists the awakeables of an invocation. Put -- before a negative number.
    """
    given = None if value is None else _read(value)

    async def tell(client: Client, wait: float) -> None:
        await client.resolve(awakeable_id, given, timeout=wait)

    return in_loop(_answer_awakeable("resolve", awakeable_id, tell, as_json, url))


@click.command()
@click.argument("awakeable_id", metavar="AWAKEABLE")
@click.argument("reason")
@outcome_option
@url_option
@reporting
def reject(awakeable_id: str, reason: str, as_json: bool, url: str | None) -> int:
    """Fail an awakeable, with a REASON for the workflow."""

    async def tell(client: Client, wait: float) -> None:
        await client.reject(awakeable_id, reason, timeout=wait)

    return in_loop(_answer_awakeable("reject", awakeable_id, tell, as_json, url))


@click.command()
@click.argument("target", metavar="TARGET", type=click.Path())
@url_option
@reporting
def backup(target: str, url: str | None) -> int:
    """Copy a store to TARGET, a file that does not exist yet, also while a worker serves it.

    The copy is a store like any other: perdure list --url sqlite:TARGET
    """
    return in_loop(_back_up(target, url))


async def _back_up(target: str, url: str | None) -> int:
    async with connect(url, read_only=True) as client:
        await client.backup(target)
    click.echo(f"{shown_url(url)} is copied to {target}.")
    return 0


COMMANDS = (pause, resume, cancel, retry, resolve, reject, backup)


def _read(value: str) -> Any:
    try:
        return reader(Any)(value)
    except ValueError as error:
        raise click.UsageError(f"the value is not JSON: {error}") from error


# --- what the verbs share ---------------------------------------------------------------------------------------------
@asynccontextmanager
async def opened_to_change(url: str | None, *, new: bool = False) -> AsyncGenerator[Client]:
    """Open an existing store, or name the process that serves it. With `new`, make one if there is none."""
    if not new:
        async with connect(url, read_only=True):
            pass  # check that it exists and is a store: opening it for writing would create it
    client = connect(url)
    try:
        await client.operations.open()
    except StoreLocked as error:
        text = f"{error}. Only the process that serves a file can change it"
        raise StoreLocked(text, pid=error.pid) from error
    async with client:
        yield client


def _tell_all(verb: Verb, ids: Sequence[str], tell: TellOne, as_json: bool, url: str | None) -> int:
    async def told(client: Client, id: str) -> None:
        described = await client.handle(id).describe()
        _check_status(described, verb)
        await tell(client, id, _wait_of(url, verb, described))

    async def all_of_them() -> int:
        async with opened_to_change(url) as client:
            telling = {id: asyncio.ensure_future(told(client, id)) for id in dict.fromkeys(ids)}
            codes = [await _report(verb, id, id, done, client, as_json, url) for id, done in telling.items()]
        return max(codes)

    return in_loop(all_of_them())


async def _answer_awakeable(verb: str, awakeable_id: str, tell: Tell, as_json: bool, url: str | None) -> int:
    async with opened_to_change(url) as client:
        id, n = await client.operations.awakeable(awakeable_id)

        async def told() -> None:
            described = await client.handle(id).describe()
            _check_awakeable(described, awakeable_id, n)
            await tell(client, _wait_of(url, verb, described))

        return await _report(verb, awakeable_id, id, told(), client, as_json, url)


def is_alone(url: str | None) -> bool:
    """Report whether no other process can serve a store that this one has opened to change it."""
    return url_in_use(url).startswith(("memory:", "sqlite:"))


def _why_not(url: str | None) -> str:
    return "no worker serves" if is_alone(url) else f"within {WAIT_SECONDS:g} s no worker has answered that serves"


def _wait_of(url: str | None, verb: str, described: Invocation) -> float:
    """Return how long to wait until a message is applied: a file that this process opened has no worker."""
    if not is_alone(url):
        return WAIT_SECONDS
    return STORE_WAIT_SECONDS if verb == "cancel" and described.status in ("scheduled", "pending") else 0.0


def _check_status(described: Invocation, verb: Verb) -> None:
    """Refuse a verb that is illegal in the status that follows from all earlier messages."""
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


def _why_not_yet(verb: str, what: str, described: Invocation, url: str | None) -> str:
    """Say what a message waits for that is accepted and not applied."""
    if not is_alone(url) and described.status == "failed" and described.waiting_for is not None:
        return f"{verb} of {what}: accepted; it waits for {described.waiting_for}"
    return (
        f"{verb} of {what}: accepted, not yet applied: {_why_not(url)} workflow {described.handler!r}. The next worker "
        f"that serves it applies it: perdure worker APP.py --url {shown_url(url)}"
    )


async def _report(
    verb: str, what: str, id: str, told: Awaitable[None], client: Client, as_json: bool, url: str | None
) -> int:
    """Print the answer to each message, and return the exit code. A refusal does not stop the messages to others."""
    try:
        await told
        became, text = "applied", f"{verb} of {what}: applied"
    except WaitTimeout:
        became, text = "accepted", _why_not_yet(verb, what, await client.handle(id).describe(), url)
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
