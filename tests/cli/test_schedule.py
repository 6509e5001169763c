"""`perdure schedule`: on a file that nobody serves, on one that is served, and over a server."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from tests.cli.command import perdure, started
from tests.cli.conftest import Run

OPERATED = str(Path(__file__).with_name("operated.py"))
NIGHTLY = ("--cron", "0 3 * * *", "--timezone", "Europe/Berlin")
TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ"


def add(run: Run, name: str, *more: str, workflow: str = "hello", argument: str = "Ada") -> tuple[int, str, str]:
    return run("schedule", "add", name, f"{OPERATED}:{workflow}", argument, *more)


def test_schedule_is_added_shown_paused_and_removed(run: Run) -> None:
    code, out, err = add(
        run, "nightly", *NIGHTLY, "--overlap", "queue", "--catch-up", "2h", "--tag", "a:b", "--key", "k"
    )
    assert (code, err) == (0, "")
    assert re.fullmatch(rf"nightly: is set; next at {TIME}\n", out)
    again = add(run, "nightly", *NIGHTLY, "--overlap", "queue", "--catch-up", "120m", "--tag", "a:b", "--key", "k")
    assert again[1] == out.replace("is set", "unchanged")
    add(run, "often", "--every", "15m", "--jitter", "5")
    code, out, err = run("schedule", "list")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == ["name", "nightly", "often"]
    assert "0 3 * * * (Europe/Berlin)" in out
    assert "every 15m0s" in out
    listed = [json.loads(line) for line in run("schedule", "list", "--json")[1].splitlines()]
    assert [(each["name"], each["overlap"], each["jitter"]) for each in listed] == [
        ("nightly", "queue", 0.0),
        ("often", "skip", 5.0),
    ]
    assert run("schedule", "pause", "nightly", "the disk is full")[1] == "nightly: paused\n"
    code, out, _ = run("schedule", "show", "nightly")
    assert re.search(rf"^paused +since {TIME} the disk is full$", out, re.MULTILINE)
    assert re.search(r"^catches up with +2h0m0s$", out, re.MULTILINE)
    assert re.search(r"^tags +a:b$", out, re.MULTILINE)
    assert json.loads(run("schedule", "show", "nightly", "--json")[1])["note"] == "the disk is full"
    assert run("schedule", "resume", "nightly")[1] == "nightly: resumed\n"
    times = run("schedule", "next", "nightly", "--count", "3")[1].splitlines()
    assert len(times) == 3
    assert all(re.fullmatch(TIME, each) for each in times)
    assert run("schedule", "remove", "nightly")[1] == "nightly: removed\n"
    assert run("schedule", "remove", "nightly")[0] == 1
    assert [json.loads(each)["name"] for each in run("schedule", "list", "--json")[1].splitlines()] == ["often"]


def test_run_is_triggered_and_the_past_made_up_for(run: Run) -> None:
    add(run, "often", "--every", "1h", "--overlap", "queue")
    code, triggered, err = run("schedule", "trigger", "often")
    assert (code, err) == (0, "")
    code, out, err = run("schedule", "backfill", "often", "2026-01-01T00:00:00Z", "2026-01-01T02:00:00Z")
    assert (code, err) == (0, "")
    assert out.splitlines() == [f"often@2026-01-01T0{hour}:00:00Z" for hour in range(3)]
    shown = json.loads(run("schedule", "show", "often", "--json")[1])
    assert (shown["running"], shown["waiting"]) == ([triggered.strip()], out.splitlines())
    assert run("list", "--quiet", "--id-prefix", "often@")[1] == triggered  # no worker has run it yet


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("add", "n", f"{OPERATED}:hello", "Ada"), 2, "give one of the two"),
        (("add", "n", f"{OPERATED}:hello", "Ada", "--cron", "soon"), 2, "five fields"),
        (("add", "n", f"{OPERATED}:hello", "Ada", "--every", "soon"), 2, "not a duration"),
        (("add", "n", f"{OPERATED}:hello", "Ada", "--every", "9" * 400 + "w"), 2, "not a duration"),
        (("add", "n", f"{OPERATED}:hello", "Ada", "--every", "60", "--timezone", "Europe/Berlin"), 2, "UTC"),
        (("add", "n", f"{OPERATED}:hello", "--every", "60"), 2, "missing a required argument"),
        (("add", "n", f"{OPERATED}:hello", "Ada", "--every", "60", "--overlap", "never"), 2, "'never'"),
        (("add", "..", f"{OPERATED}:hello", "Ada", "--every", "60"), 2, "in a URL"),
        (("add", "n", f"{OPERATED}:nobody", "Ada", "--every", "60"), 2, "no workflow 'nobody'"),
        (("show", "none"), 1, "no schedule 'none'"),
        (("next", "none", "--count", "1000"), 2, "1000"),
        (("trigger", "none"), 1, "no schedule 'none'"),
        (("backfill", "none", "soon", "1s"), 2, "not a time"),
    ],
)
def test_wrong_use_is_explained(run: Run, arguments: tuple[str, ...], code: int, text: str) -> None:
    found, out, err = run("schedule", *arguments)
    assert (found, out) == (code, "")
    assert text in err
    assert run("schedule", "list") == (0, "", "")


@pytest.mark.slow
def test_file_that_is_served_is_looked_at_and_changed_through_its_server(run: Run, place: Path) -> None:
    add(run, "often", "--every", "1h")
    with started("worker", OPERATED, "--url", "sqlite:app.db", "--http-port", "0", cwd=place) as worker:
        assert worker.stdout is not None
        lines = [worker.stdout.readline()]
        while (found := re.search(r"http://[\d.]+:\d+", lines[-1])) is None:
            assert lines[-1], lines
            lines.append(worker.stdout.readline())
        assert run("schedule", "next", "often")[0] == 0
        code, _, err = run("schedule", "trigger", "often")
        assert code == 1
        assert "Only the process that serves a file can change it" in err
        server = ("--url", found[0])
        triggered = perdure("schedule", "trigger", "often", *server, cwd=place)
        assert triggered.returncode == 0, triggered.stderr
        id = triggered.stdout.strip()
        while json.loads(run("show", id, "--json")[1])["result"] != "Hello, Ada!":
            time.sleep(0.02)
        put = perdure("schedule", "add", "often", f"{OPERATED}:hello", "Ada", "--every", "2h", *server, cwd=place)
        assert put.stdout.startswith("often: is set;")
        worker.terminate()
        worker.wait(timeout=20)
