"""Stores that earlier releases made are opened by the code of today: nothing that was acknowledged is lost or changed.

Each folder beside this file holds a SQLite file and the streams of JetStream as one release left them, and what its
client told of them. Whatever waited in them goes on to its right end. They are for ever: more may be added, none is
made again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from examples.services.nats_server import Server, server
from perdure import Client, connect
from perdure.connect import translators_in_use
from perdure.core.exported import load
from perdure.core.journal import Frame
from perdure.core.lifecycle import SETTLED
from perdure.operations.local import store_behind
from perdure.runtime.worker import Worker
from perdure.testing import replay
from tests.old import make, programs, scenes
from tests.old.make import Then
from tests.old.scenes import ALL, MAIL, Scene

pytestmark = pytest.mark.slow

FOLDERS = sorted(each for each in Path(__file__).parent.glob("20*") if each.is_dir())
BY_HANDLER = {each.name: each for each in programs.NOW}
REWORDED = ("waiting_for", "traceback")
"""Words for people, which may change."""


DUE = "begins soon"
"""It was scheduled, and its time has come since: it is pending as soon as the store is served."""


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def folder(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(params=["sqlite", "jetstream"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def then(folder: Path, kind: str) -> Then:
    return make.then(folder, kind)


@pytest.fixture
def old_nats(kind: str, tmp_path: Path) -> Iterator[Server | None]:
    if kind == "sqlite":
        yield None
        return
    with server(tmp_path / "nats") as nats:
        yield nats


@pytest.fixture
async def url(folder: Path, old_nats: Server | None, tmp_path: Path) -> str:
    """The old store, on this machine."""
    if old_nats is None:
        make.put_file(folder, tmp_path / "store.db")
        return f"sqlite:{tmp_path / 'store.db'}"
    await make.put_streams(folder, old_nats.url)
    return old_nats.url


@pytest.fixture
async def client(url: str) -> AsyncIterator[Client]:
    programs.ran.clear()
    programs.broken.clear()
    programs.hanging.clear()
    async with connect(url, retention=None) as connected:
        yield connected


def worker(client: Client, *, always_replay: bool = False) -> Worker:
    """Make a worker of all workflows that keeps nothing live, if it is to replay."""
    return Worker(
        lambda: store_behind(client.operations),
        programs.NOW,
        always_replay=always_replay,
        cache=0 if always_replay else 1_000,
        translators=translators_in_use,
        lease=1.0,
    )


def frames(history: str | bytes) -> tuple[Frame, ...]:
    """Return the frames as this release reads them: fields that are newer than the history have their defaults."""
    return load(history).frames


def says_more(now: Any, then: Any) -> bool:
    """Report whether a description says all that an old one said; it may have fields that are new."""
    if isinstance(now, dict) and isinstance(then, dict):
        told = cast("dict[str, Any]", then)
        return all(name in now and says_more(now[name], value) for name, value in told.items())
    if isinstance(now, list) and isinstance(then, list):
        pairs = zip(cast("list[Any]", now), cast("list[Any]", then), strict=False)
        return len(cast("list[Any]", now)) == len(cast("list[Any]", then)) and all(says_more(*pair) for pair in pairs)
    return now == then


def with_due_pending(told: Then) -> Then:
    """Say of what is due by now that it is pending, whether it was told before or after its status has changed."""
    due, counts = told.invocations[DUE], told.stats["by_status"]
    for each in (due.row, due.described):
        if each["status"] == "scheduled":
            each["status"] = "pending"
        each.pop("updated_at", None)
    counts["pending"] = counts.get("pending", 0) + counts.pop("scheduled", 0)
    return told


# --- looking ----------------------------------------------------------------------------------------------------------
async def test_old_store_is_listed_counted_and_described_as_it_was(client: Client, then: Then) -> None:
    now = with_due_pending(msgspec.json.decode(msgspec.json.encode(await make.tell(client, [])), type=Then))
    then = with_due_pending(then)
    assert {id: told.row["status"] for id, told in now.invocations.items()} == {
        id: told.row["status"] for id, told in then.invocations.items()
    }
    for id, told in then.invocations.items():
        seen = now.invocations[id]
        told.row.pop("waiting_for", None)  # rows of then did not tell
        assert says_more(seen.row, told.row), id
        for name, value in told.described.items():
            if name not in REWORDED:
                assert says_more(seen.described[name], value), (id, name, seen.described[name], value)
        assert bool(seen.described.get("waiting_for")) == bool(told.described.get("waiting_for")), id
        assert load(seen.history) == load(told.history), id
    assert {name: now.stats[name] for name in then.stats} == then.stats
    assert now.states == then.states


async def test_awakeables_of_an_old_store_are_listed(client: Client, then: Then) -> None:
    described = [await client.handle(id).describe() for id in then.invocations]
    expected = {
        each.id for one in described if one.status not in SETTLED for each in one.awakeables if not each.resolved
    }
    assert len(expected) > 3
    assert {each.id async for each in client.awakeables()} == expected


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
async def test_old_file_is_looked_at_without_being_served(url: str, then: Then) -> None:
    async with connect(url, read_only=True) as client:
        assert {each.id: each.status async for each in client.list()} == {
            id: told.row["status"] for id, told in then.invocations.items()
        }
        for id, told in then.invocations.items():
            assert (await client.handle(id).describe()).status == told.row["status"]


def test_histories_of_all_kinds_replay_on_the_code_of_today(then: Then) -> None:
    programs.broken.update(scenes.BROKEN_THEN)  # as bodies may ask, too
    for told in then.invocations.values():
        replay(BY_HANDLER[told.row["handler"]], told.history)


# --- going on ---------------------------------------------------------------------------------------------------------
async def play(client: Client, scene: Scene) -> None:
    """Play the rest of a scene, and check its end."""
    handle = client.handle(scene.id, scene.call.workflow)
    try:
        async with asyncio.timeout(scenes.WAIT_SECONDS):
            await scene.go_on(client, handle)
            await scenes.is_now(handle, scene.ends)
    except Exception as error:
        raise AssertionError(f"scene {scene.id!r}: {error!r}: {await handle.describe()}") from error
    if scene.ends == "completed":
        result = await handle.result(timeout=scenes.WAIT_SECONDS)
        assert scene.value is None or result == scene.value, scene.id


@pytest.mark.parametrize("always_replay", [False, True], ids=["cached", "always replayed"])
async def test_all_that_waits_in_an_old_store_goes_on_to_its_right_end(
    client: Client, then: Then, always_replay: bool
) -> None:
    async with worker(client, always_replay=always_replay):
        await asyncio.gather(*(play(client, scene) for scene in ALL.values()))
        await rest_is_right(client, then)
        assert await client.state("account") == {"balance": 100, "labels": ["k1", "k2", "k3", "k4"]}
        assert (await client.state("fragile"))["balance"] == 7
    again = {label for label in programs.ran if programs.ran.count(label) > 1}
    assert again == set(), "a step ran twice"
    assert {*programs.ran} & {*then.ran} == scenes.SUPERSEDED, "a step ran whose result was acknowledged"


async def rest_is_right(client: Client, then: Then) -> None:
    """Check what the old store said against what is there now."""
    for id, told in then.invocations.items():
        history = await client.handle(id).export()
        old = frames(told.history)
        assert frames(history)[: len(old)] == old, f"the journal of {id} was changed"
        settled_then = told.row["status"] in ("completed", "cancelled")
        described = make.builtins(await client.handle(id).describe())
        if settled_then:
            for name in ("status", "result", "error", "journal", "state", "ended_at"):
                assert says_more(described.get(name), told.described.get(name)), (id, name)
        replay(BY_HANDLER[told.row["handler"]], history)
    for id, status in (("s-soon", "completed"), ("s-unserved", "completed"), ("s-far", "scheduled")):
        await scenes.is_now(client.handle(id), status)


async def test_failed_invocations_of_an_old_store_fail_and_are_retried_as_before(client: Client, then: Then) -> None:
    failed = [id for id, told in then.invocations.items() if told.row["status"] == "failed" and id in ALL]
    errors: dict[str, Any] = {id: then.invocations[id].described["error"] for id in failed}
    async with worker(client):
        for id in failed:
            if id in MAIL:
                continue
            handle = client.handle(id, ALL[id].call.workflow)
            with pytest.raises(Exception, match=r"(?s).*") as caught:
                await handle.result(timeout=scenes.WAIT_SECONDS)
            said = str(caught.value)
            assert said in errors[id] or errors[id].endswith(said) or "\n" in errors[id], (id, said, errors[id])
            await handle.retry()
        for id in failed:
            await scenes.is_now(client.handle(id), "failed", "completed", "suspended")
            assert (await client.handle(id).describe()).retries > then.invocations[id].described.get("retries", 0)


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
async def test_old_file_opens_again_after_the_one_that_opened_it_was_killed(url: str) -> None:
    programs.ran.clear()
    killed = connect(url, retention=None)
    serving = worker(killed)
    await serving.__aenter__()
    awakeable = await scenes.open_awakeable(killed.handle("asks"))
    await killed.resolve(awakeable, "given", timeout=scenes.WAIT_SECONDS)
    await serving.crash()
    await killed.aclose()
    async with connect(url, retention=None) as client, worker(client):
        assert await client.handle("asks").result(timeout=scenes.WAIT_SECONDS) == "a1 given a1 told"
