"""The page about production: what it tells a server is accepted by a real one, and what it names exists."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import click

from examples.services.nats_server import program
from perdure.cli import commands
from perdure.stores.jetstream.wire.access import ENVIRONMENT

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "run-on-jetstream.md").read_text()


def test_configuration_of_a_node_is_accepted(tmp_path: Path) -> None:
    found = re.search(r"```conf\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    (tmp_path / "server.conf").write_text(found[1].replace("/var/lib/nats", str(tmp_path / "data")))
    command = [str(program()), "-t", "-c", str(tmp_path / "server.conf")]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert run.returncode == 0, run.stderr


def test_options_and_variables_are_those_that_there_are() -> None:
    for name, variable in ENVIRONMENT.items():
        assert f"`{name}`" in PAGE
        assert f"`{variable}`" in PAGE
    for line in re.findall(r"^perdure (.*)$", PAGE, re.MULTILINE):
        words = line.split()
        command: click.Command = commands
        while isinstance(command, click.Group):
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        assert known.issuperset(word for word in words if word.startswith("--")), line
