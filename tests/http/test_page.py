"""The commands of docs/how-to/http.md, sent by curl to a worker that serves that page's program."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.docs.test_docs import DOCS, blocks, matches
from tests.http.processes import ENVIRONMENT, Process

PAGE = DOCS / "how-to/http.md"
SESSION = re.compile(r"^```session\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_commands_of_the_page_print_what_it_shows(tmp_path: Path) -> None:
    program = next(each for each in blocks(PAGE) if each.file == "app.py")
    (tmp_path / "app.py").write_text(program.text)
    server = Process(tmp_path, "worker", "app.py")
    while not httpx.get(f"{server.base}/api/handlers").json()["handlers"]:
        pass
    commands = [each for text in SESSION.findall(PAGE.read_text()) for each in text.removeprefix("$ ").split("\n$ ")]
    assert len(commands) == 6
    for each in commands:
        command, _, expected = each.partition("\n")
        sent = command.replace("localhost:8080", server.base.removeprefix("http://"))
        printed = subprocess.run(sent, shell=True, capture_output=True, text=True, check=True, timeout=30).stdout
        assert matches(f"{expected.rstrip()}\n", printed), f"$ {command}\n{printed}"
    (ask,) = [each.text for each in blocks(PAGE) if each.is_fragment]
    (tmp_path / "ask.py").write_text(ask.replace("http://127.0.0.1:8080", server.base))
    asking = subprocess.Popen(
        [sys.executable, "ask.py"], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    while len(waiting := httpx.get(f"{server.base}/api/awakeables?open=true").json()["awakeables"]) < 2:
        pass
    answer = {"result": {"approved": True}}
    httpx.post(f"{server.base}/api/awakeables/{waiting[1]['id']}/resolve", json=answer).raise_for_status()
    assert asking.communicate(timeout=60)[0] == "120.00 paid to Ada\n"
    server.stop(signal.SIGTERM)
