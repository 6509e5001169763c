"""`perdure run`: one run or many of a workflow, with its worker in the same process."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from dataclasses import dataclass
from typing import Any

import click

from perdure.authoring.workflow import Workflow
from perdure.cli.arguments import NUMBER, Arguments, numbered
from perdure.cli.batch import run_batch
from perdure.cli.options import services_option, shown_url, url_option
from perdure.cli.process import fix_hash_seed, in_loop
from perdure.cli.reporting import FAILURE, reporting
from perdure.cli.summary import message_of
from perdure.cli.target import load
from perdure.cli.terminal import show_logs
from perdure.cli.values import as_builtin, to_text
from perdure.client import Client
from perdure.connect import connect, url_in_use
from perdure.errors import InvocationCancelled, StoreError

TIMEOUT_SECONDS = 300.0
CONCURRENCY = 100
WORKER_SLOTS = 100
"""Invocations with a step in progress, at least: a run may start children."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to run. `id` is a prefix if there are many runs; no `timeout`: that of the workflow, else the default."""

    count: int = 1
    concurrency: int = CONCURRENCY
    timeout: float | None = None
    services: dict[str, str]
    url: str | None = None
    max_concurrent: int | None = None
    id: str | None = None
    key: str | None = None
    no_worker: bool = False
    as_json: bool = False

    @property
    def slots(self) -> int:
        return self.max_concurrent or max(WORKER_SLOTS, min(self.concurrency, self.count))


@click.command()
@click.argument("target")
@click.argument("arguments", metavar="[ARG]...", nargs=-1)
@click.option("--count", type=click.IntRange(min=1), default=1, show_default=True, help="How many times to run it.")
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    default=CONCURRENCY,
    show_default=True,
    help="How many runs are under way at a time.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help=f"Limit of each run; 0 sets none.  [default: the workflow's own, else {TIMEOUT_SECONDS:.0f}]",
)
@services_option
@url_option
@click.option(
    "--max-concurrent",
    type=click.IntRange(min=1),
    help=f"How many invocations have steps in progress at a time.  [default: --concurrency, at least {WORKER_SLOTS}]",
)
@click.option("--id", help="Id of the run, of many its beginning: the same command again takes up what is left.")
@click.option("--key", help="Runs of one key go one at a time, in order, and share state.")
@click.option("--no-worker", is_flag=True, help="Start and wait only: workers elsewhere serve the store.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@reporting
def run(target: str, arguments: tuple[str, ...], **options: Any) -> int:
    """Run a workflow, and print its result.

    TARGET is app.py:workflow or pkg.app:workflow; a module with one workflow needs no name. A worker for all workflows
    of the module runs in the same process, unless --no-worker says that others serve the store.

    Each ARG is JSON; where JSON is a string, the quotes may be left out. NAME=VALUE passes by name if there is a
    parameter NAME; other text with a = is passed as it is. {i} in an ARG or in --key is the number of the run: 001,
    002 and so on, without zeros where it is a number in JSON. Put -- before arguments that begin with a dash.

    With --count, --id=batch gives the runs the ids batch-000001, batch-000002 and so on. The same command again, on
    the same store, then runs only what had not ended, and takes the other results from their journals. The time limit
    of a run counts from its first start, however long nobody ran it in between: --timeout 0 if that may be long.
    """
    fix_hash_seed()
    chosen = Options(**options)
    if NUMBER in (chosen.id or ""):
        raise click.UsageError(f"--id takes no {NUMBER}: with --count, the number is added to it")
    if chosen.no_worker:
        _check_others_serve(chosen)
    found = load(target)
    workflow = found.workflow
    passed = Arguments(workflow, arguments)
    show_logs(logging.WARNING)
    return in_loop(_run(workflow, found.workflows, passed, chosen))


async def _run(
    workflow: Workflow[..., Any], served: list[Workflow[..., Any]], passed: Arguments, options: Options
) -> int:
    limited = workflow if options.timeout == 0 else _limited(workflow, options.timeout)
    client = connect(options.url, retention=None)  # what is due is for those that serve the store all the time
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(client)
        if not options.no_worker:
            worker = client.worker(*served, max_concurrent=options.slots, services=options.services or None)
            await stack.enter_async_context(worker)
        if options.count == 1:
            return await _once(client, limited, passed, options)

        async def one(number: int) -> Any:
            args, kwargs = passed.of_run(number)
            return await client.run(_of_run(limited, options, number), *args, **kwargs)

        tally = await run_batch(
            one,
            count=options.count,
            concurrency=options.concurrency,
            timeout=limited.options.timeout,
            as_json=options.as_json,
        )
    return 0 if tally.completed == tally.total else FAILURE


def _check_others_serve(options: Options) -> None:
    if url_in_use(options.url).startswith(("memory:", "sqlite:")):
        text = f"--no-worker: {shown_url(options.url)} is served by the process that opens it: leave the option out"
        raise click.UsageError(text)
    if options.services or options.max_concurrent:
        raise click.UsageError("--service and --max-concurrent are for the worker that --no-worker leaves out")


def _limited(workflow: Workflow[..., Any], timeout: float | None) -> Workflow[..., Any]:
    if timeout is None and workflow.options.timeout is not None:
        return workflow
    return workflow.using(timeout=TIMEOUT_SECONDS if timeout is None else timeout)


def _of_run(workflow: Workflow[..., Any], options: Options, number: int) -> Workflow[..., Any]:
    """Return the workflow with the id and key of one run."""
    if options.id is None and options.key is None:
        return workflow
    id = options.id if options.id is None or options.count == 1 else f"{options.id}-{number:06d}"
    return workflow.using(id=id, key=None if options.key is None else numbered(options.key, number))


async def _once(client: Client, workflow: Workflow[..., Any], passed: Arguments, options: Options) -> int:
    began = time.perf_counter()
    args, kwargs = passed.of_run(1)
    handle = await client.start(_of_run(workflow, options, 1), *args, **kwargs)
    outcome: dict[str, Any] = {"id": handle.id}
    try:
        value = await handle.result()
    except StoreError:
        raise
    except Exception as error:  # noqa: BLE001  it is printed
        outcome["status"] = "cancelled" if isinstance(error, InvocationCancelled) else "failed"
        outcome["error"] = message_of(error)
        if not options.as_json:
            what = f"workflow {workflow.name} ({handle.id})"
            click.echo(f"error: {what} {outcome['status']}: {outcome['error']}", err=True)
    else:
        outcome |= {"status": "completed", "result": as_builtin(value)}
        if not options.as_json:
            click.echo(to_text(value))
    if options.as_json:
        click.echo(json.dumps({**outcome, "seconds": time.perf_counter() - began}, ensure_ascii=False))
    return 0 if outcome["status"] == "completed" else FAILURE
