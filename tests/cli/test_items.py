"""`perdure stream`: the items of a stream of an invocation, as they are and as they come."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.cli.command import clean_environment, perdure, started
from tests.cli.conftest import Run

PROGRAM = """
import asyncio
from perdure import stream, step, workflow

@step
async def count(to: int) -> int:
    numbers = stream("numbers", dict[str, int])
    for n in range(to):
        numbers.write({"n": n})
        await asyncio.sleep(0.01)
    return to

@workflow
async def counting(to: int) -> int:
    return await count(to)
"""


def test_items_are_printed_one_to_a_line(run: Run) -> None:
    assert run("stream", "done", "letters") == (0, "W\no\nr\nl\nd\n", "")
    assert run("stream", "done", "letters", "--from", "3") == (0, "l\nd\n", "")
    assert run("stream", "done", "letters", "--from", "9") == (0, "", "")
    assert run("stream", "done", "nothing") == (0, "", "")
    code, out, _ = run("stream", "done", "letters", "--from", "4", "--json")
    assert code == 0
    assert json.loads(out) == {"offset": 4, "value": "d", "step": 0, "attempt": 1}
    assert ["stream", "letters", "(5", "items)"] in [line.split() for line in run("show", "done")[1].splitlines()]
    assert json.loads(run("show", "done", "--json")[1])["streams"] == {"letters": 5}


def test_what_has_not_ended_is_printed_as_far_as_it_is_unless_it_is_followed(run: Run) -> None:
    assert run("stream", "ask-1", "letters") == (0, "b\no\ns\ns\n", "")
    assert run("stream", "done", "letters", "--follow") == (0, "W\no\nr\nl\nd\n", "")


def test_mistakes(run: Run) -> None:
    code, _, err = run("stream", "nobody", "letters")
    assert (code, err.startswith("error: ")) == (1, True)
    assert "nobody" in err
    assert run("stream", "done", "letters", "--from", "-1")[0] == 2
    code, _, err = run("stream", "done", "\n")
    assert code == 2
    assert "the name of a stream" in err


def test_followed_stream_ends_with_its_invocation_while_another_process_serves_the_file(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(PROGRAM)
    url = ["--url", "sqlite:app.db"]
    running = ["run", "app.py:counting", "150", "--id", "c", *url]
    with started(*running, cwd=tmp_path) as process:
        while perdure("show", "c", *url, cwd=tmp_path).returncode:
            assert process.poll() is None
        following = subprocess.run(
            [sys.executable, "-m", "perdure", "stream", "c", "numbers", "--follow", *url],
            cwd=tmp_path,
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert process.wait() == 0
    assert following.stderr == ""
    assert [json.loads(line) for line in following.stdout.splitlines()] == [{"n": n} for n in range(150)]
