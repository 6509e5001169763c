"""`perdure dev`: the worker begins anew when the code changes, and invocations go on by the new code."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from perdure.cli.dev import files_in
from tests.http.processes import ENVIRONMENT

APP = """
import asyncio
from perdure import Context, workflow

@workflow
async def hello(ctx: Context, name: str) -> str:
    await ctx.awakeable(str)
    return "ANSWER " + name
"""


class Dev:
    """`perdure dev` in a process of its own, with its lines as they come."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "dev.log"
        command = [sys.executable, "-m", "perdure", "dev", "app.py", "--http-port", "0"]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT)

    def said(self, pattern: str, times: int = 1) -> str:
        """Wait until a line matches for so many times; return what its group matched last."""
        while len(found := re.findall(pattern, self._log.read_text())) < times:
            assert self.process.poll() is None, self._log.read_text()
            time.sleep(0.02)
        return found[-1]

    def base(self, times: int) -> str:
        return self.said(r"HTTP at (http://[\d.:]+)\.", times)


@pytest.mark.slow
def test_worker_begins_anew_when_the_code_changes(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    dev = Dev(tmp_path)
    try:
        base = dev.base(1)
        while not httpx.get(f"{base}/api/handlers").json()["handlers"]:
            pass
        id = httpx.post(f"{base}/api/workflows/hello/invoke", json="ada").json()["invocation_id"]
        (tmp_path / "app.py").write_text(APP.replace("ANSWER", "Hello"))
        dev.said(r"(app\.py) changed: beginning anew")
        base = dev.base(2)
        (awakeable,) = httpx.get(f"{base}/api/workflows/{id}").json()["awakeables"]
        httpx.post(f"{base}/api/awakeables/{awakeable}/resolve", json={"result": "go"}).raise_for_status()
        assert httpx.get(f"{base}/api/workflows/{id}/result?wait=30").json()["result"] == "Hello ada"
        (tmp_path / "app.py").write_text("this is no Python")
        dev.said("importing app.py failed: (SyntaxError)")
        dev.said("The worker has ended. (It) begins anew when a file changes")
        (tmp_path / "app.py").write_text(APP)
        assert httpx.get(f"{dev.base(3)}/health").status_code == 200
        dev.process.send_signal(signal.SIGTERM)
        assert dev.process.wait(30) == 0
        dev_log = (tmp_path / "dev.log").read_text()
        assert "Traceback" not in dev_log.replace("this is no Python", "")
    finally:
        dev.process.kill()
        dev.process.wait()


def test_files_of_environments_and_hidden_folders_are_not_looked_at(tmp_path: Path) -> None:
    for name in ("app.py", "pkg/inner.py", ".git/a.py", "env/lib/a.py", "node_modules/a.py", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "env/pyvenv.cfg").write_text("")
    os.symlink(tmp_path / "nothing", tmp_path / "broken.py")
    assert {*files_in(tmp_path)} == {"app.py", "pkg/inner.py"}
