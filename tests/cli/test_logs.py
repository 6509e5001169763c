"""`--log json` and `--access-log`, in processes of their own."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cli.command import perdure
from tests.http import watched
from tests.http.processes import Process

pytestmark = pytest.mark.slow

PROGRAMS = str(Path(watched.__file__))


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_every_line_of_a_worker_is_json(tmp_path: Path) -> None:
    worker = Process(tmp_path, "worker", PROGRAMS, "--log", "json", "--access-log")
    try:
        with httpx.Client(base_url=worker.base, timeout=60) as http:
            while len(http.get("/api/handlers").json()["handlers"]) < len(watched.WATCHED):
                time.sleep(0.02)
            started = http.post("/api/workflows/fails/invoke?wait=60", json="book").json()
            http.get(f"/api/workflows/{started['invocation_id']}")
    finally:
        lines = lines_of(worker.stop(signal.SIGTERM))
    id = started["invocation_id"]
    (attempt, *others) = [line for line in lines if line["logger"] == "perdure.worker"]
    assert (attempt["invocation"], attempt["step"], attempt["attempt"], len(others)) == (id, "breaks", 1, 2)
    broken = next(line for line in lines if line["logger"] == "shop")
    assert (broken["invocation"], broken["handler"], broken["step"]) == (id, "fails", "breaks")
    assert "ValueError: no book left" in broken["exception"]
    access = [line for line in lines if line["logger"] == "perdure.http.access"]
    assert {"method": "GET", "route": "/api/workflows/{id}", "status": 200}.items() <= access[-1].items()
    assert id not in json.dumps(access)
    assert lines[-1]["message"] == "stopped"
    assert {line["level"] for line in lines} == {"INFO", "WARNING", "ERROR"}


def test_text_is_the_default_and_there_is_no_access_log(tmp_path: Path) -> None:
    worker = Process(tmp_path, "worker", PROGRAMS)
    httpx.get(f"{worker.base}/health")
    text = worker.stop(signal.SIGTERM)
    assert "INFO perdure.cli: stopped" in text
    assert "/health" not in text


def test_run_logs_json_and_warnings_of_python_too(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import logging, warnings\n"
        "from perdure import step, workflow\n"
        "@step\n"
        "async def warns() -> str:\n"
        "    warnings.warn('old', UserWarning)\n"
        "    logging.getLogger('shop').warning('%d boxes', 'three')\n"
        "    return 'ok'\n"
        "@workflow\n"
        "async def go() -> str:\n"
        "    return await warns()\n"
    )
    ran = perdure("run", "app.py", "--url", "memory:", "--id", "r-1", "--log", "json", cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (0, "ok\n")
    warned, boxes = lines_of(ran.stderr)
    assert "UserWarning: old" in warned["message"]
    assert boxes["message"].startswith("'%d boxes' with ('three',)")
    assert {line["invocation"] for line in (warned, boxes)} == {"r-1"}


def test_program_that_has_set_logging_up_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import logging\n"
        "from perdure import workflow\n"
        "logging.basicConfig(format='OWN %(message)s')\n"
        "@workflow\n"
        "async def go() -> str:\n"
        "    return 'ok'\n"
    )
    ran = perdure("run", "app.py", "--url", "memory:", "--log", "json", cwd=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "OWN --log json has no effect: the program has set logging up\n")


def test_options_of_the_http_api_without_it_are_wrong_use(tmp_path: Path) -> None:
    given = ("--access-log", "--public-url", "https://perdure.example", "--trusted-proxy", "10.0.0.0/8")
    ran = perdure("worker", PROGRAMS, "--url", "memory:", *given, cwd=tmp_path)
    assert ran.returncode == 2
    text = "--access-log, --public-url, --trusted-proxy: this is for the HTTP API: give --http-port or --http too"
    assert text in ran.stderr


def test_wrong_format_is_wrong_use(tmp_path: Path) -> None:
    ran = perdure("serve", "--log", "xml", cwd=tmp_path)
    assert ran.returncode == 2
    assert "'xml' is not one of 'text', 'json'" in ran.stderr
