"""The sync door: any coroutine of the client, from threads without a loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from perdure import connect, step, workflow
from perdure.errors import InvalidOption, StoreClosed


@step
def add(number: int) -> int:
    return number + 1


@workflow
async def adds(number: int) -> int:
    return await add(number)


@workflow
async def fails() -> None:
    raise LookupError("nothing here")


def test_sync_caller_runs_workflows_from_many_threads(tmp_path: Path) -> None:
    client = connect(f"sqlite:{tmp_path}/b.db")
    with client.blocking(client.worker(adds, fails)) as wait:
        assert wait(client.run(adds, 1)) == 2

        def run(number: int) -> int:
            return wait(client.run(adds, number))

        with ThreadPoolExecutor(4) as pool:
            assert [*pool.map(run, range(20))] == [*range(1, 21)]
        assert len([*wait.each(client.list(handler="adds"))]) == 21
        with pytest.raises(LookupError, match="nothing here"):
            wait(client.run(fails))


def test_blocking_a_loop_is_refused() -> None:
    client = connect("memory:")
    with client.blocking() as wait:

        async def inside() -> None:
            with pytest.raises(InvalidOption, match="await"):
                wait(client.stats())

        asyncio.run(inside())


def test_client_that_cannot_open_says_so(tmp_path: Path) -> None:
    client = connect(f"sqlite:{tmp_path}/missing/b.db")
    with pytest.raises(Exception, match="does not exist"), client.blocking():
        pass


def program(tmp_path: Path, source: str) -> subprocess.CompletedProcess[str]:
    """Run a program that keeps a door for its whole life."""
    file = tmp_path / "program.py"
    file.write_text(
        "import atexit, os, sys\n"
        "from perdure import connect, step, workflow\n"
        "from perdure.errors import StoreClosed\n"
        "@step\n"
        "def add(n: int) -> int:\n"
        "    return n + 1\n"
        "@workflow\n"
        "async def adds(n: int) -> int:\n"
        "    return await add(n)\n"
        "client = connect('sqlite:life.db')\n"
        "wait = client.blocking(client.worker(adds))\n" + source
    )
    return subprocess.run(
        [sys.executable, str(file)], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )


def test_door_for_the_life_of_a_process_opens_on_its_first_call_and_closes_at_exit(tmp_path: Path) -> None:
    done = program(tmp_path, "print(wait(client.run(adds, 1)))\nprint(wait(client.run(adds, 2)))\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n3\n", "")
    with connect(f"sqlite:{tmp_path}/life.db").blocking() as wait:  # its lock is free
        assert wait is not None


def test_call_at_exit_is_refused_in_words(tmp_path: Path) -> None:
    source = (
        "def late():\n"
        "    try:\n"
        "        wait(client.run(adds, 1))\n"
        "    except StoreClosed as error:\n"
        "        print(error)\n"
        "atexit.register(late)\n"
    )
    for first in ("", "wait(client.run(adds, 1))\n"):
        done = program(tmp_path, source + first)
        assert (done.returncode, done.stderr) == (0, "")
        assert "process is ending" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_call_in_a_forked_child_is_refused_in_words_and_the_parent_goes_on(tmp_path: Path) -> None:
    done = program(
        tmp_path,
        "wait(client.run(adds, 1))\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    try:\n"
        "        wait(client.run(adds, 1))\n"
        "    except StoreClosed as error:\n"
        "        print(error, flush=True)\n"
        "    sys.exit(7)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)\n"
        "print(wait(client.run(adds, 5)))\n",
    )
    text, code, after = done.stdout.splitlines()
    assert "fork" in text
    assert (code, after, done.returncode) == ("7", "6", 0), done.stderr


def test_door_that_was_left_is_closed(tmp_path: Path) -> None:
    client = connect(f"sqlite:{tmp_path}/b.db")
    with client.blocking(client.worker(adds)) as wait:
        assert wait(client.run(adds, 1)) == 2
    with pytest.raises(StoreClosed):
        wait(client.run(adds, 1))
