"""`python -m perdure.testing.converge`: runs with kills on both stores, what is shown of a difference, bad options."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from perdure import connect
from perdure.testing.converge import run
from perdure.testing.converge.folder import Folder, FolderOutside
from perdure.testing.converge.options import BadOption, Options, check
from perdure.testing.converge.plan import Plan, plan
from perdure.testing.converge.verdict import differences, shown
from perdure.testing.programs import Interpreter, Program, encode
from perdure.testing.programs.program import Work
from tests.cli.command import hear_interrupts

OPTIONS = Options("sqlite", programs=60, seed=5, kill_every=1.0, workers=2, stuck_after=120.0)
SLOWEST_SECONDS = 64.0
"""Between two kills, where a process takes that long to start."""


def run_to_end(options: Options, folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run in this process; on a slow machine, with kills that are further apart."""
    while True:
        place = folder / f"{options.kill_every:g}"
        place.mkdir()
        try:
            with run.place(options, place) as url:
                code = asyncio.run(run.Run(options, url, Folder(place)).run())
        except BadOption:  # a process takes longer to start
            assert options.kill_every < SLOWEST_SECONDS
            options = replace(options, kill_every=2 * options.kill_every)
            continue
        return code, capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("store", ["sqlite", "nats"])
def test_programs_come_to_what_the_model_says_while_processes_are_killed(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told = run_to_end(replace(OPTIONS, store=store), tmp_path, capsys)
    assert code == 0, told
    last = re.fullmatch(r"60 programs, (\d+) kills, difference 0", told.splitlines()[-1])
    assert last is not None, told
    assert int(last[1]) > 0


@pytest.mark.slow
def test_run_in_which_nothing_ends_shows_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = replace(OPTIONS, programs=5, kill_every=SLOWEST_SECONDS, stuck_after=3.0, serve=False)
    code, told = run_to_end(options, tmp_path, capsys)
    assert code == 1
    assert "seed 5: nothing has ended for 3 s" in told
    assert "5 invocations have not ended" in told
    assert "p1: pending" in told
    assert "claim: epoch 0, worker none" in told
    assert "journal of p1, 0 frames" in told


async def test_difference_is_shown_with_seed_program_both_sides_and_journal(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    interpreter = Interpreter(FolderOutside(folder))
    ran = Program("p1", [Work("v1")], chosen=True)
    async with connect("memory:") as client, client.worker(interpreter.workflow):
        await client.run(interpreter.started(ran), encode(ran).decode())
        right = Plan([], [ran])
        assert await differences(client, interpreter, folder, right, kills=0) == []
        wrong = replace(right, roots=[replace(ran, operations=[Work("v2")])])
        (found,) = await differences(client, interpreter, folder, wrong, kills=0)
        text = await shown(found, client, wrong, seed=7)
        folder.append("runs", folder.lines("runs")[0])
        (again,) = await differences(client, interpreter, folder, right, kills=0)
    assert "seed 7: p1 came to ['p1', 'v1 2'], and should to ['p1', 'v2 2']" in text
    assert '"value":"v2"' in text
    assert "journal of p1" in text
    assert "Completed(" in text
    assert "ran 2 times, with 0 kills" in again.text


def test_plan_follows_from_the_seed() -> None:
    assert plan(3, 50) == plan(3, 50)
    assert plan(3, 50) != plan(4, 50)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"store": "memory"}, "--store memory: give sqlite or nats"),
        ({"programs": -1}, "--programs -1: give more than 0"),
        ({"workers": 0}, "--workers 0: give more than 0"),
        ({"kill_every": -2.0}, "--kill-every -2: give more than 0"),
        ({"kill_every": float("nan")}, "--kill-every nan: give more than 0"),
        ({"kill_every": float("inf")}, "--kill-every inf: give more than 0, and a finite number"),
        ({"stuck_after": 0.0}, "--stuck-after 0: give more than 0"),
        ({"seed": -3}, "--seed -3: give 0 or more"),
        ({"url": "nats://somewhere"}, "give one that begins with sqlite:"),
        ({"store": "nats", "url": "http://me:secret@n1"}, "--url http://me:***@n1: with --store nats, give one that"),
    ],
)
def test_option_that_cannot_be_is_named(change: dict[str, object], text: str) -> None:
    with pytest.raises(BadOption, match=re.escape(text)):
        check(replace(OPTIONS, **change))


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "perdure.testing.converge", *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_command_line_says_what_is_wrong() -> None:
    bad = command("--store", "memory")
    assert bad.returncode == 2
    assert "--store memory: give sqlite or nats" in bad.stderr
    hasty = command("--store", "sqlite", "--kill-every", "0.001", "--programs", "1")
    assert hasty.returncode == 2
    assert re.search(r"--kill-every 0.001: a process takes [\d.]+ s until it serves", hasty.stderr)


def test_secure_server_may_be_named() -> None:
    assert check(replace(OPTIONS, store="nats", url="tls://n1,n2")).url == "tls://n1,n2"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("url", "told"), [("sqlite:", "name a file"), ("sqlite:no-such-folder/it.db", "no-such-folder does not exist")]
)
def test_store_that_cannot_be_opened_is_one_line(url: str, told: str, tmp_path: Path) -> None:
    refused = subprocess.run(
        [sys.executable, "-m", "perdure.testing.converge", "--store", "sqlite", "--url", url],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert told in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.slow
def test_interrupted_run_ends_without_a_traceback() -> None:
    running = subprocess.Popen(
        [sys.executable, "-m", "perdure.testing.converge", "--store", "sqlite", "--programs", "10000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interrupts,  # a shell that runs the tests in the background has them ignored
    )
    with running:
        assert running.stdout is not None
        assert "10000 programs on sqlite" in running.stdout.readline()
        running.send_signal(signal.SIGINT)
        try:
            told, errors = running.communicate(timeout=60)
        finally:
            running.kill()
    assert (running.returncode, errors) == (130, "")
    (kept,) = re.findall(r"what was noted and logged is in (.+)", told)
    shutil.rmtree(kept)


@pytest.mark.slow
def test_store_that_is_in_use_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path / 'mine.db'}"
    interpreter = Interpreter(FolderOutside(Folder(tmp_path)))

    async def use() -> None:
        async with connect(url) as client:
            await client.start(interpreter.workflow, "{}")

    asyncio.run(use())
    refused = command("--store", "sqlite", "--url", url, "--kill-every", str(SLOWEST_SECONDS))
    assert refused.returncode == 2
    assert "there are 1 invocations; give a store of its own" in refused.stderr


@pytest.mark.slow
def test_run_without_a_server_says_where_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_SERVER", "/nowhere/nats-server")
    missing = command("--store", "nats", "--programs", "1", "--kill-every", str(SLOWEST_SECONDS))
    assert missing.returncode == 2
    assert "/nowhere/nats-server" in missing.stderr
