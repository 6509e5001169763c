"""`perdure bulk` and `perdure jobs`: on a file that nobody serves, and over a server with a worker."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure import connect
from tests.cli.command import perdure
from tests.cli.conftest import Run
from tests.cli.operated import SERVED
from tests.cli.test_operate import OPERATED, applied_here
from tests.http.processes import Process


def ids_of_jobs(run: Run) -> list[str]:
    code, out, err = run("jobs", "--json")
    assert (code, err) == (0, "")
    return [json.loads(line)["id"] for line in out.splitlines()]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What somebody answers to questions, in order; the questions are asked on stderr."""
    given: list[str] = []

    def answer(_: str) -> str:
        return given.pop(0)

    monkeypatch.setattr("click.termui.visible_prompt_func", answer)
    yield given
    assert not given


def test_job_on_a_file_that_nobody_serves_waits_for_a_worker(run: Run, place: Path, answers: list[str]) -> None:
    answers.append("y")
    code, out, err = run("bulk", "retry", "--status", "failed", "--handler", "payment")
    assert code == 0
    assert err.splitlines()[0] == "2 invocations match."
    (id,) = ids_of_jobs(run)
    assert out.startswith(f"bulk job {id}: accepted, not yet begun: no worker serves this store. ")
    assert "perdure worker APP.py --url sqlite:app.db" in out
    assert run("jobs", id)[1] == (
        "filters: status=failed handler=payment\nretry is running: 0 of 2 invocations, 0 applied\n"
    )
    (place / "repaired").touch()
    found = carried_out(run, id)
    assert (found["state"], found["applied"], found["refused"]) == ("done", 2, 0)
    described = applied_here(run, "broken", "broken-2")
    assert {each["status"] for each in described.values()} == {"completed"}
    code, out, _ = run("jobs")
    assert code == 0
    assert [line.split()[:4] for line in out.splitlines()] == [
        ["id", "verb", "filters", "state"],
        [id, "retry", "status=failed", "handler=payment"],
    ]


def carried_out(run: Run, id: str) -> dict[str, object]:
    """Let a worker in this process serve the file until a job has ended, and return it."""

    async def serve() -> None:
        async with connect("sqlite:app.db") as client, client.worker(*SERVED):
            await (await client.bulk_job(id)).result(timeout=60)

    asyncio.run(serve())
    return json.loads(run("jobs", id, "--json")[1])


@pytest.mark.parametrize("answer", ["n", ""])
def test_no_begins_nothing(run: Run, answers: list[str], answer: str) -> None:
    answers.append(answer)
    code, out, err = run("bulk", "purge", "--status", "failed")
    assert (code, out) == (130, "")
    assert "2 invocations match." in err
    assert ids_of_jobs(run) == []


def test_nothing_that_matches_asks_nothing(run: Run) -> None:
    assert run("bulk", "retry", "--status", "running") == (0, "", "No invocation matches: there is nothing to do.\n")


def test_yes_asks_nothing_and_json_is_one_object(run: Run) -> None:
    code, out, err = run("bulk", "cancel", "--force", "--tag", "tenant:acme", "--yes", "--json")
    assert (code, err) == (0, "1 invocation matches.\n")
    job = json.loads(out)
    assert (job["verb"], job["force"], job["filters"]) == ("cancel", True, {"tags": {"tenant": "acme"}})
    assert (job["state"], job["expected"]) == ("running", 1)
    code, out, _ = run("jobs", job["id"], "--stop")
    assert (code, out) == (0, "filters: tag=tenant:acme\ncancel is stopped: 0 of 1 invocations, 0 applied\n")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["bulk"], 2, "Missing argument"),
        (["bulk", "explode", "--status", "failed"], 2, "'explode' is not one of 'pause', 'resume'"),
        (["bulk", "retry"], 2, "give a filter"),
        (["bulk", "retry", "--status", "faild"], 2, "'faild' is not one of"),
        (["bulk", "retry", "--status", "failed", "--force"], 2, "only a cancellation can be forced"),
        (["bulk", "retry", "--created-after", "soon"], 2, "is not a time"),
        (["bulk", "retry", "--handler", ""], 2, "handler to look for"),
        (["jobs", "--stop"], 2, "--stop needs the id of a job"),
        (["jobs", "nobody"], 1, "no bulk job 'nobody' here"),
        (["jobs", "nobody", "--stop"], 1, "no bulk job 'nobody' here"),
        (["jobs", "a\nb"], 2, "cannot be printed"),
    ],
)
def test_wrong_uses_are_told(run: Run, arguments: list[str], code: int, message: str) -> None:
    found, out, err = run(*arguments)
    assert (found, out) == (code, "")
    assert message in err


@pytest.mark.slow
def test_job_is_followed_over_a_server_to_its_end(run: Run, place: Path) -> None:
    (place / "repaired").touch()
    (place / "app.db").rename(place / "store.db")
    server = Process(place, "worker", OPERATED)
    url = ("--url", server.base)
    done = perdure("bulk", "retry", "--handler", "payment", "--yes", *url, cwd=place)
    assert (done.returncode, done.stdout) == (0, "retry is done: 2 of 2 invocations, 2 applied\n"), done.stderr
    assert done.stderr.startswith("2 invocations match.\nbulk job ")
    refused = perdure("bulk", "resume", "--status", "cancelled", "--yes", *url, cwd=place)
    assert (refused.returncode, refused.stdout) == (1, "resume is done: 1 of 1 invocations, 0 applied, 1 refused\n")
    assert "\n  gone: it is cancelled, and only a paused invocation can be resumed" in refused.stderr
    listed = perdure("jobs", *url, cwd=place).stdout.splitlines()
    assert [line.split()[1] for line in listed] == ["verb", "resume", "retry"]
    server.stop(signal.SIGTERM)
