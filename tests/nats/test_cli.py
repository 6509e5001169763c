"""The command line on a NATS server: streams are made once, workers serve partitions, all can be looked at."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.services.nats_server import Options, Server, server
from perdure.cli import main
from tests.cli.command import APP, perdure, started

pytestmark = pytest.mark.slow


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "app.py").write_text(APP)
    with server(tmp_path / "nats") as found:
        yield found


def test_streams_are_made_once_and_differences_are_refused(node: Server, tmp_path: Path) -> None:
    def init(*options: str) -> tuple[int, str]:
        run = perdure("nats", "init", "--url", node.url, *options, cwd=tmp_path)
        return run.returncode, (run.stdout or run.stderr).strip()

    assert init("--shards", "2") == (0, f"Made the streams of a new store on {node.url}: 2 partitions, 1 replica each.")
    assert init() == (0, f"There is a store on {node.url}: 2 partitions, 1 replica each.")
    code, text = init("--shards", "8")
    assert (code, "is one of 2 partitions, not 8: the number cannot be changed" in text) == (1, True)
    code, text = init("--replicas", "3")
    assert (
        code,
        "the streams exist, with 1 replicas each: change each with `nats stream edit --replicas 3`" in text,
    ) == (1, True)


def test_only_a_nats_store_has_streams(tmp_path: Path) -> None:
    run = perdure("nats", "init", "--url", "sqlite:x.db", cwd=tmp_path)
    assert run.returncode != 0
    assert "'sqlite:x.db': only a nats:// store has streams" in run.stderr


def test_warning_about_lost_writes_ends_when_it_is_noted_that_all_is_synced(node: Server, tmp_path: Path) -> None:
    url = ("--url", node.url)
    (tmp_path / "app.py").write_text(APP)
    first = perdure("run", "app.py:hello", "World", *url, cwd=tmp_path)
    assert (first.returncode, first.stdout) == (0, "Hello, World!\n")
    assert "keeps one copy of everything. Unless it runs with `sync_interval: always`" in first.stderr
    look = perdure("stats", *url, cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path / "cache"))  # it writes nothing
    assert (look.returncode, look.stderr) == (0, "")
    assert stat.S_IMODE((tmp_path / "cache/perdure").stat().st_mode) == 0o700
    assert perdure("nats", "init", "--synced", *url, cwd=tmp_path).returncode == 0
    second = perdure("run", "app.py:hello", "World", *url, cwd=tmp_path)
    assert (second.returncode, second.stdout, second.stderr) == (0, "Hello, World!\n", "")


def test_store_that_nobody_made_is_not_made_by_looking(node: Server, tmp_path: Path) -> None:
    run = perdure("list", "--url", node.url, cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert run.returncode == 1
    assert "there is no store yet: `perdure nats init` or the first worker creates it" in run.stderr


def test_workers_of_all_partitions_do_what_others_wait_for(node: Server, tmp_path: Path) -> None:
    url = ("--url", node.url)
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    assert perdure("nats", "init", "--shards", "3", *url, cwd=tmp_path).returncode == 0
    with (
        started("worker", "app.py", *url, "--partitions", "0-1", "--lease", "5", cwd=tmp_path) as one,
        started("worker", "app.py", *url, "--partitions", "2", cwd=tmp_path) as other,
    ):
        for worker in (one, other):
            assert worker.stdout is not None
            assert re.fullmatch(rf"Serving .* on {node.url}, at most 100 .*\n", worker.stdout.readline())
        batch = ("--no-worker", "--count", "20", "--id", "job", "--json", *url)
        run = perdure("run", "app.py:twice", *batch, cwd=tmp_path)
        assert json.loads(run.stdout)["completed"] == 20, run.stdout + run.stderr
        stats = json.loads(perdure("stats", "--json", *url, cwd=tmp_path, **cache).stdout)
        assert stats["by_status"] == {"completed": 20}
        shown = json.loads(perdure("show", "job-000007", "--json", *url, cwd=tmp_path, **cache).stdout)
        assert (shown["status"], shown["handler"]) == ("completed", "twice")
        listed = perdure("list", "--json", *url, cwd=tmp_path, **cache).stdout
        assert len(re.findall(r'"job-0000\d\d"', listed)) == 20
        for worker in (one, other):
            worker.terminate()
            worker.communicate(timeout=30)
            assert worker.returncode == 0
    steps = (tmp_path / "steps.log").read_text().split("\n")
    assert len([line for line in steps if line]) == 40
    assert [*(tmp_path / "cache" / "perdure").glob("index-*.db")]


def test_partition_that_the_store_does_not_have_is_explained(node: Server, tmp_path: Path) -> None:
    run = perdure("worker", "app.py", "--url", node.url, "--partitions", "4", cwd=tmp_path)
    assert run.returncode == 2
    assert "worker(partitions=[4]): this store has the partitions 0 to 3" in run.stderr


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--partitions", "x"), "'x' names no partitions: give numbers"),
        (("--partitions", "1-"), "'1-' names no partitions"),
        (("--partitions", "900"), "'900' names no partitions"),
        (("--lease", "0.5"), "--lease"),
    ],
)
def test_wrong_options_of_a_worker_are_explained(
    capsys: pytest.CaptureFixture[str], options: tuple[str, ...], why: str
) -> None:
    assert main(("worker", "app.py", *options)) == 2
    assert why in capsys.readouterr().err


def test_token_in_the_url_is_not_shown(tmp_path: Path) -> None:
    run = perdure("stats", "--url", "nats://s3cret@127.0.0.1:1", cwd=tmp_path)
    assert run.returncode == 1
    assert "s3cret" not in run.stdout + run.stderr
    assert "no NATS server at nats://127.0.0.1:1" in run.stderr


COMMANDS = (
    ("worker", "app.py"),
    ("run", "app.py:hello", "World", "--no-worker"),
    ("list",),
    ("nats", "init"),
)


@pytest.mark.parametrize(
    ("options", "environment", "why"),
    [
        (None, {}, "no NATS server at {url}: "),
        (
            Options(users={"bob": "s3cret"}),
            {"NATS_USER": "bob", "NATS_PASSWORD": "wr0ng"},
            "refuses these credentials",
        ),
        (Options(jetstream=False), {}, "{url}: JetStream does not answer"),
        (Options(max_payload=8_000), {}, "max_payload is 8,000 bytes, and must be at least 65,536"),
    ],
)
def test_server_that_cannot_be_used_is_one_line_for_every_command(
    options: Options | None, environment: dict[str, str], why: str, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(APP)
    with server(tmp_path / "nats", options=options) as node:
        if options is None:
            node.stop()
        for command in COMMANDS:
            run = perdure(*command, "--url", node.url, cwd=tmp_path, **environment)
            assert (run.returncode, run.stdout) == (1, ""), command
            assert why.format(url=node.url) in run.stderr, command
            assert run.stderr.count("\n") == 1, command
            assert "wr0ng" not in run.stderr
