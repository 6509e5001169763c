"""`perdure pause`, `resume`, `cancel`, `retry`, `resolve`, `reject`, on a file that nobody serves, or not yet."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from perdure import connect
from tests.cli.command import started
from tests.cli.conftest import Run
from tests.cli.operated import SERVED

OPERATED = str(Path(__file__).with_name("operated.py"))
PATIENCE_SECONDS = 20.0


def described(run: Run, id: str) -> dict[str, Any]:
    code, out, err = run("show", id, "--json")
    assert code == 0, err
    return json.loads(out)


def awakeable(place: Path, id: str) -> str:
    return json.loads((place / "awakeables").read_text())[id]


def applied_by_a_worker(run: Run, place: Path, *ids: str) -> dict[str, dict[str, Any]]:
    """Let a worker in a process of its own serve the file until nothing that was accepted for these waits."""
    with started("worker", OPERATED, "--url", "sqlite:app.db", cwd=place) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline().startswith("Serving")
        end = time.monotonic() + PATIENCE_SECONDS
        found = [described(run, id) for id in ids]
        while any(each["mail"] or each["status"] == "running" for each in found):
            assert time.monotonic() < end, found
            time.sleep(0.02)
            found = [described(run, id) for id in ids]
        worker.terminate()
        worker.wait(timeout=20)
    return {each["id"]: each for each in found}


def applied_here(run: Run, *ids: str) -> dict[str, dict[str, Any]]:
    """Let a worker in this process serve the file until nothing that was accepted for these waits."""

    async def serve() -> None:
        async with connect("sqlite:app.db") as client, client.worker(*SERVED), asyncio.timeout(PATIENCE_SECONDS):
            for id in ids:
                while (found := await client.handle(id).describe()).mail or found.status == "running":
                    await asyncio.sleep(0.005)

    asyncio.run(serve())
    return {id: described(run, id) for id in ids}


# --- accepted now, applied by the next worker -------------------------------------------------------------------------
@pytest.mark.slow
def test_each_verb_is_accepted_and_the_next_worker_applies_it(run: Run, place: Path) -> None:
    (place / "repaired").touch()
    verbs = {
        "long": ["pause", "long"],
        "paused": ["resume", "paused"],
        "later": ["cancel", "later"],
        "queued": ["cancel", "--force", "queued"],
        "broken": ["retry", "broken"],
        "ask-1": ["resolve", awakeable(place, "ask-1"), '"yes"'],
        "ask-2": ["reject", awakeable(place, "ask-2"), "too dear"],
    }
    for id, verb in verbs.items():
        code, out, err = run(*verb)
        assert (code, err) == (0, "")
        assert out.startswith(f"{verb[0]} of ")
        if id == "later":  # it is not due, so its body cannot have begun: no worker is needed
            assert out == f"{verb[0]} of {id}: applied\n"
            assert described(run, id)["mail"] == []
            continue
        assert "accepted, not yet applied: no worker serves workflow" in out
        assert "perdure worker APP.py --url sqlite:app.db" in out
        (mail,) = described(run, id)["mail"]
        assert mail.split()[0] == verb[0]
        assert mail in run("show", id)[1]
    found = applied_by_a_worker(run, place, *verbs)
    statuses = {id: each["status"] for id, each in found.items()}
    assert statuses == {
        "long": "paused",
        "paused": "suspended",
        "later": "cancelled",
        "queued": "cancelled",
        "broken": "completed",
        "ask-1": "completed",
        "ask-2": "failed",
    }
    assert found["broken"]["result"] == 500
    assert found["broken"]["retries"] == 1
    assert found["ask-1"]["result"] == "yes"
    assert "too dear" in found["ask-2"]["error"]


def test_pause_and_resume_are_applied_in_the_order_told(run: Run) -> None:
    for verb in ("pause", "resume", "pause", "resume"):
        assert run(verb, "ask-1")[0] == 0, verb
    assert described(run, "ask-1")["mail"] == ["pause", "resume", "pause", "resume"]
    found = applied_here(run, "ask-1")["ask-1"]
    assert (found["status"], found["paused_because"]) == ("suspended", None)


def test_value_of_the_wrong_shape_is_refused_by_the_worker_and_nothing_is_lost(run: Run, place: Path) -> None:
    assert run("resolve", awakeable(place, "ask-1"), "[1, 2]")[0] == 0
    found = applied_here(run, "ask-1")["ask-1"]
    assert (found["status"], found["awakeables"][0]["resolved"]) == ("suspended", False)
    assert run("resolve", awakeable(place, "ask-1"), "bare text")[0] == 0
    assert applied_here(run, "ask-1")["ask-1"]["result"] == "bare text"


def test_many_are_retried_at_once_and_one_that_is_refused_does_not_keep_the_others(run: Run, place: Path) -> None:
    (place / "repaired").touch()
    failed = run("list", "-q", "--status", "failed")[1].split()
    code, out, err = run("retry", *failed, "nobody", "done", failed[0])
    assert code == 1
    assert [line.split()[2] for line in out.splitlines()] == [f"{id}:" for id in failed]
    assert err.splitlines()[0].startswith("error: no invocation 'nobody' here")
    assert err.splitlines()[1] == (
        "error: cannot retry invocation 'done': it is completed, and only a failed invocation can be retried"
    )
    found = applied_here(run, *failed)
    assert {each["status"] for each in found.values()} == {"completed"}


def test_outcomes_as_json_are_an_object_on_a_line(run: Run, place: Path) -> None:
    code, out, err = run("pause", "ask-1", "done", "--json")
    assert (code, err) == (1, "")
    accepted, refused = (json.loads(line) for line in out.splitlines())
    assert (accepted["verb"], accepted["id"], accepted["outcome"]) == ("pause", "ask-1", "accepted")
    assert refused["outcome"] == "refused"
    assert refused["text"].startswith("cannot pause invocation 'done': it is completed, and only a ")
    id = awakeable(place, "ask-1")
    (resolved,) = (json.loads(line) for line in run("resolve", id, "--json")[1].splitlines())
    assert (resolved["id"], resolved["invocation_id"], resolved["outcome"]) == (id, "ask-1", "accepted")


# --- refused now ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pause", "done"], "cannot pause invocation 'done': it is completed"),
        (["pause", "paused"], "cannot pause invocation 'paused': it is paused"),
        (["pause", "gone"], "cannot pause invocation 'gone': it is cancelled"),
        (["resume", "ask-1"], "cannot resume invocation 'ask-1': it is suspended"),
        (["resume", "queued"], "cannot resume invocation 'queued': it is pending"),
        (["cancel", "done"], "cannot cancel invocation 'done': it is completed"),
        (["cancel", "--force", "broken"], "cannot cancel invocation 'broken': it is failed"),
        (["cancel", "gone"], "cannot cancel invocation 'gone': it is cancelled"),
        (["retry", "done"], "cannot retry invocation 'done': it is completed"),
        (["retry", "gone"], "cannot retry invocation 'gone': it is cancelled"),
        (["retry", "later"], "cannot retry invocation 'later': it is scheduled"),
        (["pause", "nobody"], "no invocation 'nobody' here"),
    ],
    ids=str,
)
def test_what_the_status_does_not_allow_is_refused_and_changes_nothing(
    run: Run, arguments: list[str], message: str
) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {message}")
    if arguments[-1] != "nobody":
        assert described(run, arguments[-1])["mail"] == []


def test_what_was_told_before_counts(run: Run) -> None:
    assert run("pause", "ask-1")[0] == 0
    code, _, err = run("pause", "ask-1")
    assert code == 1
    assert "it is paused once what was accepted before is applied (pause)" in err
    assert run("cancel", "ask-1")[0] == 0
    assert described(run, "ask-1")["mail"] == ["pause", "cancel"]


def test_awakeable_that_has_an_answer_is_refused(run: Run, place: Path) -> None:
    id = awakeable(place, "ask-1")
    assert run("resolve", id, "yes")[0] == 0
    for verb in (["resolve", id, "again"], ["reject", id, "no"]):
        code, _, err = run(*verb)
        assert code == 1
        assert "an answer to awakeable #1 is accepted already, and waits for a worker" in err
    applied_here(run, "ask-1")
    code, _, err = run("resolve", id, "again")
    assert (code, err) == (1, "error: invocation 'ask-1' refuses the message: it is completed\n")
    code, _, err = run("resolve", awakeable(place, "gone"))
    assert (code, err) == (1, "error: invocation 'gone' refuses the message: it is cancelled\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pause"], "Missing argument 'ID...'"),
        (["resolve"], "Missing argument 'AWAKEABLE'"),
        (["reject", "x"], "Missing argument 'REASON'"),
        (["resolve", "nope", "1"], "'nope': this store handed out no such awakeable"),
        (["reject", "ask-1~0~1~0000000000000000", "no"], "this store handed out no such awakeable"),
        (["resolve", "{id}", "{oops"], "the value is not JSON"),
        (["pause", "--force", "x"], "No such option"),
        (["cancel", "x", "--url", "memory:"], "a new store in memory is empty; name a file"),
    ],
    ids=str,
)
def test_wrong_use_is_explained_with_exit_code_two(run: Run, place: Path, arguments: list[str], message: str) -> None:
    given = [each.replace("{id}", awakeable(place, "ask-1")) for each in arguments]
    code, out, err = run(*given)
    assert (code, out) == (2, "")
    assert message in err
    assert described(run, "ask-1")["mail"] == []


def test_backup_copies_a_store_that_nobody_serves_and_the_copy_is_one(run: Run, place: Path) -> None:
    code, out, err = run("backup", "copy.db")
    assert (code, out, err) == (0, "sqlite:app.db is copied to copy.db.\n", "")
    _, listed, _ = run("list", "--json")
    code, copied, _ = run("list", "--json", "--url", "sqlite:copy.db")
    assert (code, copied) == (0, listed)
    code, _, err = run("backup", "copy.db")
    assert code == 1
    assert "it exists, and a backup overwrites nothing" in err
