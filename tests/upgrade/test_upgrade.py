"""A release that adds an entry, a command, a verb and a status is rolled out one worker at a time, forward and back.

Workers of this release stand beside those of the next one (see next_release.py), or one is replaced by the other.
Nothing stops and nothing is lost: what this release cannot read waits for a worker of the next one, all else goes on,
and both list and count all of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from examples.services.nats_server import Server, server
from tests.scenarios import bodies
from tests.scenarios.engine import Options
from tests.scenarios.lab import JetStreamLab, ProcessLab, Refusal, SqliteLab, until
from tests.upgrade.next_release import build

pytestmark = pytest.mark.slow

SERVES = ("asks", "asks_often", "three", "sleeps", "remarks")
QUIET_SECONDS = 1.0
"""How long nothing may happen to what an old worker cannot read: long enough to see it fail or be lost."""
AGAIN_SECONDS = 60.0
"""How long it may take until what no worker could read is offered again, on a slow machine."""

Up = Callable[..., Awaitable[ProcessLab]]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with server(tmp_path_factory.mktemp("nats")) as node:
        yield node


class _Releases:
    """Starts processes of either release on one store, which share their notes."""

    def __init__(self, make: Callable[[], ProcessLab], sources: Path) -> None:
        self._make = make
        self._sources = sources
        self._up: list[ProcessLab] = []

    async def this(self, **options: Any) -> ProcessLab:
        return await self._start(self._make(), options)

    async def next(self, **options: Any) -> ProcessLab:
        lab = self._make()
        lab.module, lab.sources = "tests.upgrade.host", self._sources
        return await self._start(lab, options)

    async def _start(self, lab: ProcessLab, options: dict[str, Any]) -> ProcessLab:
        self._up.append(lab)
        await lab.up(**options)
        return lab

    async def close(self) -> None:
        for each in self._up:
            if each.runs:
                await each.close()


@pytest.fixture
async def on_sqlite(tmp_path: Path, sources: Path) -> AsyncIterator[_Releases]:
    releases = _Releases(lambda: SqliteLab(tmp_path / "lab", Options(serves=SERVES)), sources)
    yield releases
    await releases.close()


@pytest.fixture
async def on_jetstream(
    tmp_path: Path, nats: Server, sources: Path, request: pytest.FixtureRequest
) -> AsyncIterator[_Releases]:
    options = Options(serves=SERVES, lease=1.0)
    namespace = request.node.name.removeprefix("test_").replace("[", "-").rstrip("]")
    releases = _Releases(lambda: JetStreamLab(tmp_path / "lab", options, nats.url, namespace), sources)
    yield releases
    await releases.close()


# --- what both look at ------------------------------------------------------------------------------------------------
async def asking(lab: ProcessLab, prefix: str, count: int) -> list[str]:
    """Start some that wait for an answer, and wait until they do."""
    ids = [f"{prefix}{n}" for n in range(count)]
    for id in ids:
        await lab.ask("start", handler="asks", args=[id], options={"id": id})
    for id in ids:
        await lab.awakeable(id)
        await lab.has_status(id, "suspended")
    return ids


async def answer(lab: ProcessLab, ids: list[str]) -> None:
    """Resolve what some ask for, and wait for their results."""
    for id in ids:
        await lab.ask("resolve", awakeable=await lab.awakeable(id), value=f"for {id}")
    assert await lab.results(ids) == [f"for {id}" for id in ids]


async def sees_all(lab: ProcessLab, ids: list[str], known: dict[str, int]) -> None:
    """Check that a process lists all, and counts them; `known` are those whose status it may tell."""
    assert {*ids} <= {*await lab.ask("list")}
    stats = await lab.ask("stats")
    assert stats["total"] == len(ids)
    for status, count in known.items():
        assert stats["by_status"].get(status, 0) == count, stats


# --- one process after the other --------------------------------------------------------------------------------------
async def test_file_is_served_by_this_release_and_the_next_and_this_and_the_next(on_sqlite: _Releases) -> None:
    old = await on_sqlite.this()
    ids = await asking(old, "a", 4)
    await old.kill()
    new = await on_sqlite.next()
    await answer(new, ids[:1])
    assert await new.ask("annotate", id="a1", text="noted") is None
    await new.has_status("a1", "annotated")
    remarks = await new.start(bodies.remarks, "r", id="r")
    awakeable = await new.awakeable(remarks)
    await new.has_status(remarks, "suspended")
    await new.kill()
    old = await on_sqlite.this()
    ids += ["r"]
    await answer(old, ids[2:3])
    await sees_all(old, ids, {"completed": 2, "suspended": 2})
    ids += await asking(old, "b", 2)
    await answer(old, ["b0"])
    await asyncio.sleep(QUIET_SECONDS)
    assert await old.status("b1") == "suspended"
    await old.kill()
    new = await on_sqlite.next()
    await sees_all(new, ids, {"annotated": 1})
    await new.ask("resolve", awakeable=awakeable, value="at last")
    assert await new.result(remarks) == "at last"
    await answer(new, ["a1", "a3", "b1"])
    await sees_all(new, ids, {"completed": len(ids)})
    assert await new.ask("flaws", ids=ids) == []


async def test_file_with_a_verb_of_the_next_release_in_its_mail_is_served_by_this_one(on_sqlite: _Releases) -> None:
    new = await on_sqlite.next()
    ids = await asking(new, "a", 3)
    await new.kill()
    alone = await on_sqlite.next(workers=0)
    await alone.ask("annotate", id="a1", text="noted", wait=False)
    await alone.kill()
    old = await on_sqlite.this()
    await answer(old, ["a0"])
    await sees_all(old, ids, {"completed": 1})
    await asyncio.sleep(QUIET_SECONDS)
    await answer(old, ["a2"])
    await old.kill()
    new = await on_sqlite.next()
    await new.has_status("a1", "annotated")
    await answer(new, ["a1"])


async def test_answer_for_what_this_release_cannot_read_is_refused_by_name_and_taken_by_the_next(
    on_sqlite: _Releases,
) -> None:
    new = await on_sqlite.next()
    await asking(new, "a", 2)
    assert await new.ask("annotate", id="a0", text="noted") is None
    awakeable = await new.awakeable("a0")
    await new.kill()
    old = await on_sqlite.this()
    with pytest.raises(Refusal, match="a newer release wrote this: upgrade this worker"):
        await old.ask("resolve", awakeable=awakeable, value="too early")
    await answer(old, ["a1"])
    await old.kill()
    new = await on_sqlite.next()
    await new.ask("resolve", awakeable=awakeable, value="in time")
    assert await new.result("a0") == "in time"


# --- beside each other ------------------------------------------------------------------------------------------------
async def test_workers_of_both_releases_share_the_work_while_one_after_the_other_is_replaced(
    on_jetstream: _Releases,
) -> None:
    first, second = await on_jetstream.this(), await on_jetstream.this()
    ids = await asking(first, "a", 12)
    await first.stop()
    new = await on_jetstream.next()
    for id in ids[:6]:
        assert await new.ask("annotate", id=id, text="noted") is None
        await new.has_status(id, "annotated")
    await answer(second, ids[6:8])
    for id in ids[:2]:  # asked of the old one, and applied by the new
        await second.ask("resolve", awakeable=await new.awakeable(id), value="by the new")
    assert await second.results(ids[:2]) == ["by the new"] * 2
    await sees_all(second, ids, {"completed": 4, "suspended": 4})
    await sees_all(new, ids, {"completed": 4, "suspended": 4, "annotated": 4})
    ids += await asking(second, "b", 4)
    await answer(new, ["b0", "b1"])
    await second.stop()
    newer = await on_jetstream.next()
    await answer(newer, [*ids[2:6], *ids[8:12], "b2", "b3"])
    await sees_all(newer, ids, {"completed": len(ids)})
    assert await newer.ask("flaws", ids=ids) == []
    assert new.report().count("Traceback") == 0


async def test_roll_back_on_jetstream_leaves_what_only_the_next_release_reads_and_serves_the_rest(
    on_jetstream: _Releases,
) -> None:
    new = await on_jetstream.next()
    ids = await asking(new, "a", 4)
    assert await new.ask("annotate", id="a0", text="noted") is None
    remarks = await new.start(bodies.remarks, "r", id="r")
    remarked = await new.awakeable(remarks)
    await new.has_status(remarks, "suspended")
    annotated = await new.awakeable("a0")
    old = await on_jetstream.this()
    await new.kill()
    await answer(old, ["a1"])
    waiting = [
        asyncio.ensure_future(old.ask("resolve", awakeable=annotated, value="kept")),
        asyncio.ensure_future(old.ask("resolve", awakeable=remarked, value="kept too")),
    ]
    await answer(old, ["a2"])
    ids += await asking(old, "b", 3)
    await answer(old, ["b0", "b1"])
    await sees_all(old, [*ids, "r"], {"completed": 4})
    await asyncio.sleep(QUIET_SECONDS)
    assert [each for each in waiting if each.done() and await each] == []
    await answer(old, ["a3"])
    new = await on_jetstream.next()
    assert await new.results(["a0", "r"], timeout=AGAIN_SECONDS) == ["kept", "kept too"]
    await asyncio.gather(*waiting)
    await answer(new, ["b2"])
    await sees_all(old, [*ids, "r"], {"completed": 8})
    await sees_all(new, [*ids, "r"], {"completed": 8})


async def test_verb_of_the_next_release_waits_for_a_worker_of_it(on_jetstream: _Releases) -> None:
    old = await on_jetstream.this()
    ids = await asking(old, "a", 3)
    client = await on_jetstream.next(workers=0)
    await client.ask("annotate", id="a0", text="noted", wait=False)
    await client.ask("annotate", id="a1", text="noted", wait=False)
    await answer(old, ["a2"])
    await asyncio.sleep(QUIET_SECONDS)
    ids += await asking(old, "b", 2)
    await answer(old, ["b0", "b1"])
    new = await on_jetstream.next()

    async def both_are_annotated() -> bool:
        return [await new.status(id) for id in ("a0", "a1")] == ["annotated"] * 2

    await until(both_are_annotated, AGAIN_SECONDS)
    await answer(new, ["a0", "a1"])
    assert await new.ask("flaws", ids=ids) == []
