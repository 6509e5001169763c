"""compose.yaml cannot be run where there is no Docker; what it tells the server can be checked by a real one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import textwrap
from pathlib import Path

from examples.services.nats_server import program

COMPOSE = (Path(__file__).resolve().parents[2] / "compose.yaml").read_text()


def test_configuration_of_the_nodes_is_accepted_and_syncs_always(tmp_path: Path) -> None:
    found = re.search(r"    content: \|\n(.*?)\n\n", COMPOSE, re.DOTALL)
    assert found is not None
    text = textwrap.dedent(found[1]).replace("$$", "$").replace('"/data"', json.dumps(str(tmp_path / "data")))
    (tmp_path / "server.conf").write_text(text)
    run = subprocess.run(
        [str(program()), "-t", "-c", str(tmp_path / "server.conf")],
        env={**os.environ, "NODE": "n1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert run.returncode == 0, run.stderr
    assert "sync_interval: always" in text


def test_nodes_have_the_version_that_is_required_and_the_first_the_port_of_the_seeds() -> None:
    assert "image: nats:2.15.1-alpine" in COMPOSE
    assert [*re.findall(r'"127\.0\.0\.1:(\d+):4222"', COMPOSE)] == ["4322", "4323", "4324"]
