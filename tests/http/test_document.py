"""Requests that follow from the OpenAPI document, right and wrong ones, against a real server process."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from perdure.http.api import ROUTES
from perdure.operations.access import Access, new_token
from tests.http.processes import ENVIRONMENT

CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance"),
    *("response_headers_conformance", "response_schema_conformance", "unsupported_method", "ignored_auth"),
)
EXAMPLES = 5
"""Requests that are made up for each route, beside those that cover its parameters one by one."""

SERVED = """
from perdure.http import api
from tests.http.programs import *

api.UNKNOWN_SECONDS = api.WAIT_LIMIT_SECONDS = api.APPLY_SECONDS = 0.1
"""
"""What the worker serves, with short waits: many of the requests that are made up wait for nothing."""


@pytest.mark.slow
@pytest.mark.limit(600)
def test_answers_are_those_of_the_document(tmp_path: Path) -> None:
    text = new_token(Access("admin"))[1]
    (tmp_path / "token").write_text(text)
    (tmp_path / "served.py").write_text(SERVED)
    command = [sys.executable, "-m", "perdure", "worker", "served.py", "--url", "sqlite:store.db", "--http-port", "0"]
    environment = {**ENVIRONMENT, "PERDURE_ADMIN_TOKEN_FILE": "token"}
    server = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        found = re.search(r"http://[\d.]+:\d+", server.stdout.readline())
        assert found is not None
        headers = {"Authorization": f"Bearer {text}"}
        with httpx.Client(base_url=found[0], headers=headers, timeout=60) as client:
            while not client.get("/api/handlers").json()["handlers"]:
                pass
            for id in ("0", "1"):  # ids that are likely to be made up
                client.post(f"/api/workflows/add/invoke?id={id}", json=3).raise_for_status()
        tested = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run", f"{found[0]}/openapi.json"),
                *("--header", f"Authorization: Bearer {text}", "--checks", ",".join(CHECKS)),
                *("--max-examples", str(EXAMPLES), "--phases", "coverage,fuzzing", "--no-shrink", "--no-color"),
                *("--exclude-path-regex", "/api/client/|/events$", "--request-timeout", "60", "--warnings", "off"),
                *("--generation-deterministic", "--continue-on-failure"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate()
    assert tested.returncode == 0, tested.stdout[-10_000:] + tested.stderr[-2_000:]
    counted = re.search(r"Tested: (\d+)", tested.stdout)
    assert counted is not None
    expected = [each for each in ROUTES if not each.path.endswith(("/events", "/openapi.json"))]
    assert int(counted[1]) >= len(expected)
