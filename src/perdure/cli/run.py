"""`perdure run`: one run or many of a workflow, with its worker in the same process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import click

from perdure.authoring.workflow import Workflow
from perdure.cli.arguments import NUMBER, Arguments, numbered
from perdure.cli.batch import run_batch
from perdure.cli.options import log_option, services_option, shown_url, tag_option, url_option
from perdure.cli.process import fix_hash_seed, in_loop
from perdure.cli.reporting import FAILURE, reporting
from perdure.cli.summary import message_of
from perdure.cli.target import load
from perdure.cli.terminal import say, show_logs
from perdure.cli.values import as_builtin, to_text
from perdure.client import Client
from perdure.connect import connect, url_in_use
from perdure.errors import InvocationCancelled, StoreError
from perdure.runtime.worker import STOP_GRACE_SECONDS, Worker

TIMEOUT_SECONDS = 300.0
CONCURRENCY = 100
STEPS_SHOWN = 5
"""Steps in progress that the message of an interruption names."""
WORKER_SLOTS = 100
"""Least number of slots: a run may start children."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a run. With --count, `id` is a prefix. Without `timeout`: the workflow's own, else the default."""

    count: int = 1
    concurrency: int = CONCURRENCY
    timeout: float | None = None
    services: dict[str, str]
    url: str | None = None
    max_concurrent: int | None = None
    id: str | None = None
    key: str | None = None
    tags: dict[str, str] | None = None
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
    help="How many runs are in progress at a time.",
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
@click.option("--id", help="Id of the run; with --count, a prefix. Repeating the command runs what has not ended.")
@click.option("--key", help="Runs of one key go one at a time, in order, and share state.")
@tag_option("A tag of the runs, to find them by; repeat it for more.")
@click.option("--no-worker", is_flag=True, help="Start and wait only: workers elsewhere serve the store.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@log_option
@reporting
def run(target: str, arguments: tuple[str, ...], log_format: str, **options: Any) -> int:
    """Run a workflow, and print its result.

    TARGET is app.py:workflow or pkg.app:workflow; a module with one workflow needs no name. A worker for all workflows
    of the module runs in the same process, unless --no-worker says that others serve the store.

    Each ARG is JSON; a JSON string may leave its quotes out. NAME=VALUE passes by name if there is a parameter NAME;
    other text with a = is passed as it is. {i} in an ARG or in --key is the number of the run: 001,
    002 and so on, without zeros where it is a number in JSON. Put -- before arguments that begin with a dash.

    With --count, --id=batch gives the runs the ids batch-000001, batch-000002 and so on. The same command again, on
    the same store, then runs only those that have not ended, and reads the other results from their journals. The time
    limit of a run counts from its first start, also while no process runs it: give --timeout 0 if that may be long.
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
    show_logs(logging.WARNING, log_format)
    interruption = Interruption(target, chosen)
    return in_loop(_run(workflow, found.workflows, passed, chosen, interruption), interruption.begin)


async def _run(
    workflow: Workflow[..., Any],
    served: list[Workflow[..., Any]],
    passed: Arguments,
    options: Options,
    interruption: Interruption,
) -> int:
    limited = workflow if options.timeout == 0 else _limited(workflow, options.timeout)
    client = connect(options.url, retention=None)  # purging is left to processes that serve the store all the time
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(client)
        if not options.no_worker:
            worker = client.worker(*served, max_concurrent=options.slots, services=options.services or None)
            interruption.worker = await stack.enter_async_context(worker)
        interruption.began = True
        if options.count == 1:
            return await _once(client, limited, passed, options, interruption)

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


class Interruption:
    """The reaction to the first signal: print what it waits for and what becomes of the runs, and cancel."""

    def __init__(self, target: str, options: Options) -> None:
        self._target = target
        self._options = options
        self.worker: Worker | None = None
        self.began = False
        """Whether runs may have been started."""
        self.id: str | None = None
        """The id of a single run, once the store has accepted it."""

    def begin(self, number: signal.Signals, command: asyncio.Task[Any]) -> None:
        if self.began:
            with contextlib.suppress(OSError):  # the terminal is closed
                say(f"{number.name}: {self._waited_for()}. {self._what_stays()}")
        command.cancel()

    def _waited_for(self) -> str:
        steps = Counter(self.worker.steps_in_progress if self.worker is not None else ())
        if not steps:
            return "stopping"
        names = [name if count == 1 else f"{name} ({count})" for name, count in steps.most_common(STEPS_SHOWN)]
        more = ", ..." if len(steps) > STEPS_SHOWN else ""
        limit = f"{STOP_GRACE_SECONDS:g} s"
        return f"waiting up to {limit} for steps in progress: {', '.join(names)}{more}; a second signal ends at once"

    def _what_stays(self) -> str:
        options = self._options
        url = shown_url(options.url)
        if url.startswith("memory:"):
            return "The store is in memory: what has not ended is lost."
        what = "What has not ended" if self.id is None else f"Run {self.id}"
        if options.no_worker:
            return f"{what} stays in {url} and goes on with its workers."
        module = self._target.rpartition(":")[0] or self._target
        text = f"{what} stays in {url} and goes on with the next worker: perdure worker {module}"
        text += f" --url {url}" if options.url is not None else ""
        return f"{text}, or this command again." if options.id is not None else f"{text}."


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
    """Return the workflow with the id, key and tags of one run."""
    if options.id is None and options.key is None and options.tags is None:
        return workflow
    id = options.id if options.id is None or options.count == 1 else f"{options.id}-{number:06d}"
    key = None if options.key is None else numbered(options.key, number)
    return workflow.using(id=id, key=key, tags=options.tags)


async def _once(
    client: Client, workflow: Workflow[..., Any], passed: Arguments, options: Options, interruption: Interruption
) -> int:
    began = time.perf_counter()
    args, kwargs = passed.of_run(1)
    handle = await client.start(_of_run(workflow, options, 1), *args, **kwargs)
    interruption.id = handle.id
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
