"""`perdure list`, `show`, `journal`, `stats`."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from perdure.cli.options import index_file
from perdure.cli.tables import FIELD_LIMIT, VALUE_LIMIT, age_text, plain, shown
from perdure.core.schema import schema_of
from perdure.operations.describe import AwakeableInfo
from tests.cli.command import perdure, started
from tests.cli.conftest import Run
from tests.cli.operated import LONG

ALL = ["queued", "later", "gone", "paused", "ask-2", "ask-1", "long", "broken-2", "broken", "done"]


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# --- awakeables -------------------------------------------------------------------------------------------------------
def test_awakeables_are_those_that_wait_for_an_answer_oldest_first(run: Run, place: Path) -> None:
    code, out, _ = run("awakeables")
    assert code == 0
    lines = out.splitlines()
    assert len(lines) == 4
    assert lines[0].split() == ["id", "handler", "title", "assignees", "created", "expires", "status"]
    assert all("Is 5 right?" in line and "boss" in line and "open" in line for line in lines[1:])
    found = objects(run("awakeables", "--json")[1])
    assert [each["invocation_id"] for each in found] == ["ask-1", "ask-2", "paused"]
    assert run("awakeables", "-q", "--assignee", "boss")[1].splitlines() == [each["id"] for each in found]
    assert run("awakeables", "-q", "--handler", "hello") == (0, "", "")
    every = objects(run("awakeables", "--all", "--json")[1])
    assert {each["invocation_id"]: each["resolved"] for each in every} == {
        **{each["invocation_id"]: False for each in found},
        "gone": True,
    }


# --- list -------------------------------------------------------------------------------------------------------------
def test_list_is_a_table_newest_first(run: Run) -> None:
    code, out, err = run("list")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0].split() == ["id", "handler", "status", "created", "changed"]
    assert [line.split()[0] for line in lines[1:]] == ALL
    assert lines[-1].split()[:3] == ["done", "hello", "completed"]
    assert all(line == line.rstrip() for line in lines)


def test_list_as_json_is_an_object_on_a_line(run: Run) -> None:
    code, out, _ = run("list", "--json")
    found = objects(out)
    assert code == 0
    assert [each["id"] for each in found] == ALL
    later = found[1]
    fields = {"id", "handler", "status", "key", "tags", "created_at", "updated_at", "due"}
    assert set(later) == fields | {"waiting_for", "waiting_since", "waiting_until", "attempt"}
    assert later["waiting_until"] == later["due"]
    assert found[0]["tags"] == {"tenant": "acme", "from": "web"}
    assert later["status"] == "scheduled"
    assert datetime.fromisoformat(later["due"]) > datetime.now(UTC)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--status", "failed"], ["broken-2", "broken"]),
        (["--handler", "approval", "--id-prefix", "ask"], ["ask-2", "ask-1"]),
        (["--key", "none"], []),
        (["--tag", "tenant:acme"], ["queued"]),
        (["--tag", "tenant:acme", "--tag", "from:web"], ["queued"]),
        (["--tag", "tenant:acme", "--tag", "from:shop"], []),
        (["--created-after", "1h"], ALL),
        (["--created-before", "1h"], []),
        (["--created-before", "2000-01-01"], []),
        (["--created-after", "2000-01-01T00:00:00Z", "--limit", "2"], ALL[:2]),
        (["--all"], ALL),
    ],
    ids=str,
)
def test_list_filters(run: Run, arguments: list[str], expected: list[str]) -> None:
    code, out, _ = run("list", "--quiet", *arguments)
    assert code == 0
    assert out.splitlines() == expected


def test_list_says_how_to_go_on_and_does(run: Run) -> None:
    code, out, err = run("list", "--limit", "4")
    assert code == 0
    cursor = err.split()[err.split().index("--cursor") + 1]
    assert [line.split()[0] for line in out.splitlines()[1:]] == ALL[:4]
    assert run("list", "-q", "--cursor", cursor)[1].splitlines() == ALL[4:]


def test_list_by_a_time_that_moves_says_how_to_go_on_and_does(run: Run) -> None:
    hint = run("list", "--limit", "4", "--created-after", "52w")[2].split()
    options = hint[hint.index("--cursor") : hint.index("goes")]
    code, out, err = run("list", "-q", *options)
    assert (code, err, out.splitlines()) == (0, "", ALL[4:])
    code, _, err = run("list", "-q", "--created-after", "52w", *options[:2])
    assert code == 2
    assert "with other filters" in err


def test_list_of_nothing_prints_nothing(run: Run) -> None:
    assert run("list", "--status", "running") == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "--status", "faild"], "'faild' is not one of 'scheduled', 'pending'"),
        (["list", "--created-after", "soon"], "'soon' is not a time: give 2026-11-20"),
        (["list", "--created-before", "99999999999999999w"], "is not a time"),
        (["list", "--limit", "0"], "0 is not in the range"),
        (["list", "--limit", "1", "--all"], "exclude each other"),
        (["list", "--json", "-q"], "exclude each other"),
        (["list", "--cursor", "x"], "pass the `next` of a page"),
        (["list", "--tag", "tenant"], "'tenant' is not NAME:VALUE, as in tenant:acme"),
        (["list", "--tag", "a:1", "--tag", "a:2"], "the tag 'a' is given twice"),
        (["awakeables", "--json", "-q"], "exclude each other"),
        (["awakeables", "--assignee", ""], "assignee to look for must have at least one character"),
        (["list", "--id-prefix", ""], "id_prefix to look for must have at least one character"),
        (["list", "--url", "memory:"], "a new store in memory is empty; name a file"),
        (["list", "--url", "sqlite:"], "name a file"),
        (["list", "extra"], "unexpected extra argument"),
        (["show"], "Missing argument 'ID'"),
        (["show", "a\nb"], "characters that cannot be printed"),
        (["journal", ""], "must have at least one character"),
        (["stats", "x"], "unexpected extra argument"),
    ],
    ids=str,
)
def test_wrong_use_is_explained_with_exit_code_two(run: Run, arguments: list[str], message: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err


@pytest.mark.parametrize("verb", [["list"], ["show", "x"], ["journal", "x"], ["stats"], ["pause", "x"]], ids=str)
def test_missing_file_is_an_error_and_is_not_made(run: Run, place: Path, verb: list[str]) -> None:
    before = sorted(os.listdir(place))
    code, out, err = run(*verb, "--url", "sqlite:missing.db")
    assert (code, out) == (1, "")
    assert "missing.db: there is no such file: name the one that the workers use" in err
    assert sorted(os.listdir(place)) == before


@pytest.mark.parametrize("verb", ["show", "journal"])
def test_unknown_id_is_an_error(run: Run, verb: str) -> None:
    code, out, err = run(verb, "nobody")
    assert (code, out) == (1, "")
    assert err.startswith("error: no invocation 'nobody' here")


# --- show -------------------------------------------------------------------------------------------------------------
def fields(text: str) -> dict[str, str]:
    return {name.strip(): value.strip() for name, _, value in (line.partition("  ") for line in text.splitlines())}


def test_show_says_what_it_waits_for(run: Run, place: Path) -> None:
    code, out, _ = run("show", "ask-1")
    shown = fields(out)
    awakeable = json.loads((place / "awakeables").read_text())["ask-1"]
    assert code == 0
    assert shown["status"] == "suspended"
    assert shown["waits for"] == f"AWAKEABLE:{awakeable}"
    assert shown["awakeable"] == f"{awakeable} (open, for boss, Is 5 right?)"
    assert shown["input"] == '{"amount": 5}'
    assert shown["state"] == 'cart = {"items": ["a", "Ynl0ZXM="]}'
    assert shown["steps"] == "1 completed, 1 pending"
    assert shown["current step"].startswith(f"#1 AWAKEABLE:{awakeable}, since 20")


def test_show_says_how_it_ended(run: Run) -> None:
    assert fields(run("show", "done")[1])["result"] == "Hello, World!"
    out = run("show", "broken")[1]
    shown = fields(out)
    assert shown["error"] == r"tests.cli.operated.Broken: cannot charge 500\nsecond line \x1b[31m"
    assert "Traceback (most recent call last):" in out
    assert "\x1b" not in out
    cancelled = fields(run("show", "gone")[1])
    assert cancelled["status"] == "cancelled"
    assert cancelled["cancel requested"]
    assert cancelled["ended"]
    assert fields(run("show", "paused")[1])["waits for"] == "resume (asked for)"
    assert fields(run("show", "later")[1])["waits for"].startswith("its time, 20")
    assert (
        fields(run("show", "queued")[1])["waits for"] == "a worker that serves workflow 'hello', or a free slot of it"
    )


def test_long_values_are_cut_in_tables_and_whole_in_json(run: Run) -> None:
    out = run("show", "long")[1]
    assert len(fields(out)["input"]) == FIELD_LIMIT
    assert fields(out)["input"].endswith("…")
    (found,) = objects(run("show", "long", "--json")[1])
    assert found["input"] == {"text": LONG}


def test_show_as_json_is_one_object_with_all_there_is(run: Run) -> None:
    (found,) = objects(run("show", "ask-1", "--json")[1])
    assert found["id"] == "ask-1"
    assert found["state"] == {"cart": {"items": ["a", "Ynl0ZXM="]}}
    assert [each["step_type"].partition(":")[0] for each in found["journal"]] == ["greet", "AWAKEABLE"]
    assert found["current_step"] == found["journal"][1]
    assert found["awakeables"][0]["resolved"] is False
    assert datetime.fromisoformat(found["started_at"]).tzinfo is not None


# --- journal and stats ------------------------------------------------------------------------------------------------
def test_journal_is_a_table_of_steps(run: Run) -> None:
    code, out, _ = run("journal", "broken")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split()[:3] == ["#", "step", "status"]
    assert lines[1].split()[:3] == ["0", "greet", "completed"]
    assert lines[1].endswith("Hello, payer!")
    assert lines[2].split()[:3] == ["1", "charge", "failed"]
    assert lines[2].endswith(r"cannot charge 500\nsecond line \x1b[31m")
    assert "until 20" in run("journal", "long")[1]


def test_journal_as_json_is_an_object_on_a_line_for_each_step(run: Run) -> None:
    steps = objects(run("journal", "ask-1", "--json")[1])
    assert [each["number"] for each in steps] == [0, 1]
    assert steps[0]["result"] == "Hello, boss!"
    assert steps[1]["status"] == "pending"
    assert run("journal", "later", "--json") == (0, "", "")


def test_stats_count(run: Run) -> None:
    code, out, _ = run("stats")
    assert code == 0
    assert out.splitlines()[-1] == "10 in all"
    assert ["suspended", "3"] in [line.split() for line in out.splitlines()]
    (found,) = objects(run("stats", "--json")[1])
    assert found["total"] == 10
    assert found["by_status"]["failed"] == 2
    assert found["by_handler"] == {"approval": 4, "hello": 3, "payment": 2, "long": 1}


# --- text -------------------------------------------------------------------------------------------------------------
def test_values_are_shown_in_one_line_that_moves_no_cursor() -> None:
    assert shown("a\nb\x1b[2J\u202e") == r"a\nb\x1b[2J\u202e"
    assert shown({"a": [1, b"x"]}) == '{"a": [1, "eA=="]}'
    assert shown("x" * 500) == "x" * (VALUE_LIMIT - 1) + "…"
    assert shown("käse €") == "käse €"


def test_what_json_cannot_hold_is_shown_as_its_repr() -> None:
    assert plain({(1, 2): object}) == {"(1, 2)": repr(object)}
    assert plain(float("nan")) == "nan"
    at = datetime(2026, 11, 20, tzinfo=UTC)
    assert plain(AwakeableInfo("a", True, at, "x", "expense", "Expense", schema=schema_of(bool))) == {
        "id": "a",
        "resolved": True,
        "created_at": at.isoformat(),
        "invocation_id": "x",
        "handler": "expense",
        "title": "Expense",
        "description": None,
        "assignees": [],
        "expires_at": None,
        "schema": {"type": "boolean"},
    }


def test_age_is_told_in_a_unit_that_suits_it() -> None:
    now = datetime.now(UTC).timestamp()
    ages = {-5: "0s", 5: "5s", 119: "119s", 120: "2m", 7_200: "2h", 172_800: "2d", 1e8: "1157d"}
    assert {age: age_text(datetime.fromtimestamp(now - age, UTC)) for age in ages} == {
        age: f"{text} ago" for age, text in ages.items()
    }


# --- beside the process that serves it --------------------------------------------------------------------------------
@pytest.mark.slow
def test_reading_works_and_changing_names_the_owner_while_another_process_serves_the_file(
    run: Run, place: Path
) -> None:
    before = (place / "app.db").stat().st_ino
    with started("worker", str(Path(__file__).with_name("operated.py")), "--url", "sqlite:app.db", cwd=place) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline().startswith("Serving")
        assert run("list", "-q")[1].splitlines() == ALL
        assert fields(run("show", "ask-1")[1])["status"] == "suspended"
        assert objects(run("stats", "--json")[1])[0]["total"] == 10
        awakeable = json.loads((place / "awakeables").read_text())["ask-1"]
        changes = (["pause", "ask-1"], ["resume", "paused"], ["cancel", "ask-1", "--force"], ["retry", "broken"])
        for verb in (*changes, ["resolve", awakeable, "yes"], ["reject", awakeable, "no"], ["retry", "x", "--json"]):
            code, out, err = run(*verb)
            assert (code, out) == (1, ""), verb
            assert f"it is already served by process {worker.pid}: stop that process" in err
            assert "Only the process that serves a file can change it" in err
        assert worker.poll() is None
    assert fields(run("show", "ask-1")[1])["status"] == "suspended"
    assert (place / "app.db").stat().st_ino == before


@pytest.mark.slow
def test_reader_that_stops_reading_ends_the_command_quietly(place: Path) -> None:
    with started("list", "--json", "--url", "sqlite:app.db", cwd=place) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    assert perdure("list", "--json", "--url", "sqlite:app.db", cwd=place).returncode == 0


def test_index_is_kept_in_the_cache_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert index_file("sqlite:x.db") is None
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/ada")
    assert str(index_file("nats://n1")).startswith("/var/cache/ada/perdure/index-")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert str(index_file("nats://n1")).startswith("/home/ada/.cache/perdure/index-")
    monkeypatch.setattr(os.path, "expanduser", str)  # returns the path as it is, as for a user without a home
    assert index_file("nats://n1") is None
