"""The command line. Knows the client and connect, and click and rich, which nothing outside this package imports.

`main` is the console script. Each verb is a click command: `run` and `worker` have modules of their own, `look` holds
the verbs that only read, `operate` those that change an invocation, `bulk` those that change many, `hooks` those that
let others in, `rekey` that for the keys of a sealed store. `reporting` turns an error into a line and an exit code: 1
for a failure, 2 for wrong usage, 128 plus the number of the signal that ended it.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

import click

from perdure.cli import bulk, hooks, look, operate
from perdure.cli.access import audit, token
from perdure.cli.dev import dev
from perdure.cli.nats import nats
from perdure.cli.process import ended, open_standard_streams
from perdure.cli.rekey import rekey
from perdure.cli.reporting import UNWRITABLE, report, report_unwritable
from perdure.cli.run import run
from perdure.cli.schedule import schedule
from perdure.cli.serving import serve
from perdure.cli.worker import worker


@click.group(
    invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}
)
@click.version_option(package_name="perdure", message="perdure %(version)s")
@click.pass_context
def commands(context: click.Context) -> None:
    """Durable plain asyncio: run workflows, serve them, look at them, operate on them."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


commands.add_command(run)
commands.add_command(worker)
commands.add_command(dev)
commands.add_command(serve)
commands.add_command(token)
commands.add_command(audit)
commands.add_command(nats)
commands.add_command(schedule)
commands.add_command(rekey)
for verb in (*look.COMMANDS, *operate.COMMANDS, *bulk.COMMANDS, *hooks.COMMANDS):
    commands.add_command(verb)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, by default that of this process, and return its exit code."""
    open_standard_streams()
    try:
        code = commands.main(arguments, prog_name="perdure", standalone_mode=False)
    except click.ClickException as error:
        code = report(error)
    except click.Abort:
        code = 128 + signal.SIGINT
    except OSError as error:
        if error.errno not in UNWRITABLE or error.filename is not None:
            raise
        code = report_unwritable(error)
    return ended(code if isinstance(code, int) else 0)
