"""One bad row never stops the others: what is damaged, or of a newer release, is set aside, and its file is served."""

from __future__ import annotations

import asyncio
import logging
import math
import sqlite3
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from perdure.core.effects import Effects, Release
from perdure.core.journal import (
    Accepted,
    Asked,
    Cancel,
    Claimed,
    Completed,
    Entry,
    Frame,
    Granted,
    Message,
    OpenAwakeable,
    Released,
    Start,
)
from perdure.core.values import encode
from perdure.errors import NewerJournal, StoreDamaged, StoreError
from perdure.stores.awakeables import Awakeable, AwakeableFilter
from perdure.stores.local import dispatch
from perdure.stores.port import Delivery, Filter, Store, Transition, committed
from perdure.stores.sqlite import SqliteStore, deliveries
from perdure.stores.sqlite.schema import state_checksum
from tests.stores.test_sqlite_file import opened, refusal_of

NEVER = 8e9


def start(id: str, *, due: float = 1e9, key: str | None = None) -> Start:
    return Start(id, "work", encode({"x": id}), 1e9, due, 3, key=key)


async def some_of_each(path: Path) -> None:
    """Write invocations in several states, each named after its own: `mailed` has an open message, `waking` a wake."""
    store = await opened(path)
    names = ["pending", "running", "mailed", "waking", "good", "settled"]
    await store.submit([start(name) for name in names])
    await store.submit([start("scheduled", due=NEVER)])
    await store.submit([start("holds", key="k"), start("waits", key="k"), start("waits too", key="k")])
    for name in ("running", "mailed", "waking", "settled"):
        claimed = Frame("w", 1.0, [Accepted(start(name)), Claimed(1.0, 1, "w", "3.11", "0")])
        await committed(store, Transition(name, 0, claimed, status="running"))
    for name in ("mailed", "waking", "settled"):
        frame = Frame("w", 2.0, [Released(2.0, 3.0)])
        await committed(store, Transition(name, 1, frame, Effects(wake=3.0), "suspended", True))
    await store.post(Message("m", "mailed", 1.0, Cancel()))
    await store.aclose()


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for each in statements:
            db.execute(each)
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


async def delivered(store: Store, *, until: int) -> set[str]:
    """Return the ids of what is delivered to a worker with room for all, once there are `until` of them."""
    found: set[str] = set()
    enough = asyncio.Event()

    def deliver(delivery: Delivery) -> None:
        found.add(delivery.id)
        if len(found) >= until:
            enough.set()

    worker = store.subscribe(["work"], deliver)
    worker.request(100)
    await asyncio.wait_for(enough.wait(), 30)
    worker.close()
    return found


ALL = {"pending", "running", "mailed", "waking", "good", "settled", "holds"}
"""What a worker gets of `some_of_each`."""


async def test_all_of_an_intact_file_is_delivered(tmp_path: Path) -> None:
    await some_of_each(tmp_path / "s.db")
    store = await opened(tmp_path / "s.db")
    assert await delivered(store, until=len(ALL)) == ALL
    await store.aclose()


@pytest.mark.parametrize(
    ("bad", "statement"),
    [
        ("pending", "UPDATE invocation SET start = x'00' WHERE id = 'pending'"),
        ("pending", "UPDATE invocation SET start = 'text' WHERE id = 'pending'"),
        ("pending", "UPDATE invocation SET start = CAST(x'ff00' AS TEXT) WHERE id = 'pending'"),
        ("pending", "UPDATE invocation SET sequence = sequence + 0.5 WHERE id = 'pending'"),
        ("pending", "UPDATE invocation SET identity = x'' WHERE id = 'pending'"),
        ("pending", "UPDATE invocation SET handler = CAST(x'ff' AS TEXT) WHERE id = 'pending'"),
        ("running", "UPDATE invocation SET updated_at = 'noon' WHERE id = 'running'"),
        ("running", "UPDATE invocation SET revision = 7 WHERE id = 'running'"),
        ("running", "DELETE FROM frame WHERE id = 'running'"),
        ("running", "UPDATE frame SET data = 5 WHERE id = 'running'"),
        ("running", "UPDATE frame SET checksum = NULL || 'x' WHERE id = 'running' AND 0"),
        ("waking", "UPDATE invocation SET wake = NULL WHERE id = 'waking'"),
        ("waking", "UPDATE invocation SET status = 'completed' WHERE id = 'waking'"),
        ("waking", """UPDATE invocation SET wait = '{"what": "x", "since": 1.0}' WHERE id = 'waking'"""),
        ("waking", "UPDATE invocation SET wait = x'ff' WHERE id = 'waking'"),
        ("mailed", "UPDATE message SET data = x'00' WHERE invocation = 'mailed'"),
        ("mailed", "UPDATE message SET answer_checksum = 5 WHERE invocation = 'mailed'"),
        ("settled", "UPDATE frame SET revision = 9 WHERE id = 'settled' AND revision = 2"),
        ("settled", "DELETE FROM invocation WHERE id = 'settled'"),
        ("scheduled", "UPDATE invocation SET due = 4.0 WHERE id = 'scheduled'"),
    ],
)
async def test_a_changed_row_sets_one_invocation_aside_and_no_other(
    bad: str, statement: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "s.db"
    await some_of_each(path)
    change(path, statement)
    harmless = statement.endswith("AND 0")
    store = await opened(path)
    assert store.set_aside == ([] if harmless else [bad])
    if not harmless:
        assert [each.levelno for each in caplog.records if f"invocation {bad} is set aside" in each.message] == [
            logging.ERROR
        ]
        for read in (store.journal(bad), store.row(bad), store.outcome(bad)):
            with pytest.raises(StoreDamaged, match=bad):
                await read
        with pytest.raises(StoreDamaged):
            await store.post(Message("more", bad, 1.0, Cancel()))
        assert await delivered(store, until=len(ALL - {bad})) == ALL - {bad}
    listed = {row.id for row in await store.search(Filter())}
    assert listed >= (ALL | {"scheduled", "waits", "waits too"}) - {bad}
    assert await store.submit([start("new")]) == [True]
    await store.aclose()


async def indexed(path: Path) -> None:
    """Write two invocations with tags and an open awakeable each, `bad` and `good`."""
    store = await opened(path)
    for id in ("bad", "good"):
        tagged = Start(id, "work", encode({}), 1e9, 1e9, 3, tags=(("tenant", id),))
        await store.submit([tagged])
        asked = Asked("Title", assignees=("ada",), expires_at=NEVER)
        entries: list[Entry] = [Accepted(tagged), Claimed(1.0, 1, "w", "3.11", "0"), Released(1.0)]
        frame = Frame("w", 1.0, entries, [OpenAwakeable(0, asked)])
        awakeables = [Awakeable(id, "work", 0, 0, 1.0, asked)]
        await committed(store, Transition(id, 0, frame, status="suspended", released=True, awakeables=awakeables))
    await store.aclose()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE invocation SET tags = '{' WHERE id = 'bad'",
        "UPDATE invocation SET tags = NULL WHERE id = 'bad'",
        "UPDATE invocation SET tags = x'ff' WHERE id = 'bad'",
        "UPDATE tag SET value = 'good' WHERE invocation = 'bad'",
        "DELETE FROM tag WHERE invocation = 'bad'",
        "UPDATE awakeable SET data = x'00' WHERE invocation = 'bad'",
        "UPDATE awakeable SET data = 'text' WHERE invocation = 'bad'",
        "UPDATE awakeable SET is_open = 0 WHERE invocation = 'bad'",
        "UPDATE awakeable SET is_open = 7 WHERE invocation = 'bad'",
        "UPDATE awakeable SET checksum = 'x' WHERE invocation = 'bad'",
        "UPDATE awakeable SET at = 2.0 WHERE invocation = 'bad'",
        "UPDATE awakeable SET handler = 'other' WHERE invocation = 'bad'",
        "UPDATE awakeable SET expires_at = NULL WHERE invocation = 'bad'",
        "UPDATE assignee SET name = 'bo' WHERE invocation = 'bad'",
        "DELETE FROM assignee WHERE invocation = 'bad'",
    ],
)
async def test_a_changed_row_of_the_index_sets_its_invocation_aside(statement: str, tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    await indexed(path)
    change(path, statement)
    store = await opened(path)
    assert store.set_aside == ["bad"]
    assert "good" in {row.id for row in await store.search(Filter())}
    assert [row.id for row in await store.search(Filter(tags=(("tenant", "good"),)))][:1] == ["good"]
    assert "good" in {each.invocation for each in await store.awakeables(AwakeableFilter(0.0, assignee="ada"))}
    with pytest.raises(StoreDamaged, match="bad"):
        await store.row("bad")
    await store.aclose()


async def test_a_row_that_is_changed_while_the_file_is_served_stops_no_other(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    await some_of_each(path)
    store = await opened(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE invocation SET start = x'00' WHERE id = 'pending'")
        db.execute("UPDATE message SET data = 'text' WHERE invocation = 'mailed'")
        db.execute("UPDATE invocation SET due = 4.0, start = 7 WHERE id = 'scheduled'")
    events = store.events(Filter())
    bad = {"pending", "mailed"}
    found = await delivered(store, until=len(ALL - bad))
    assert found - {"mailed"} == ALL - bad
    await store.submit([start("new")])
    assert [row.id for row in await asyncio.wait_for(events.next(), 30) or []] == ["new"]
    assert bad <= {*store.set_aside}
    await store.aclose()


async def test_a_changed_position_in_the_queue_of_a_key_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    await some_of_each(path)
    change(path, "UPDATE line SET generation = 5 WHERE id = 'waits'")
    store = await opened(path)
    assert store.set_aside == ["waits"]
    assert (await store.key("k")).holder == "holds"
    await end(store, "holds")
    assert (await store.key("k")).holder == "waits too"
    await store.aclose()


async def end(store: SqliteStore, id: str) -> None:
    entries: list[Any] = [Accepted(start(id, key="k")), Claimed(1.0, 1, "w", "3.11", "0"), Granted(1.0, 0)]
    frame = Frame("w", 2.0, [*entries, Completed(2.0, encode(None))])
    await committed(store, Transition(id, 0, frame, Effects(release=Release("k", 0)), "completed", True))


async def test_a_changed_key_stops_only_what_needs_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "s.db"
    await some_of_each(path)
    change(path, "UPDATE key SET state = x'00' WHERE name = 'k'")
    store = await opened(path)
    assert any("key 'k'" in each.message for each in caplog.records)
    with pytest.raises(StoreDamaged, match="key 'k'"):
        await store.key("k")
    with pytest.raises(StoreDamaged, match="key 'k'"):
        await store.submit([start("more", key="k")])
    assert await store.submit([start("other", key="j"), start("plain")]) == [True, True]
    await store.aclose()


async def test_damage_to_pages_refuses_the_file(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    await some_of_each(path)
    data = bytearray(path.read_bytes())
    with closing(sqlite3.connect(path)) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'frame'").fetchone()
    data[(page - 1) * 4_096 : (page - 1) * 4_096 + 8] = b"\xff" * 8
    path.write_bytes(data)
    assert isinstance(await refusal_of(path), StoreDamaged)


# --- what is tried again ----------------------------------------------------------------------------------------------
class Once:
    """Fails the first `times` calls."""

    def __init__(self, work: Callable[..., Any], error: Exception, times: int) -> None:
        self.work, self.error, self.left = work, error, times

    async def __call__(self, *arguments: Any) -> Any:
        if self.left > 0:
            self.left -= 1
            raise self.error
        return await self.work(*arguments)


@pytest.mark.parametrize("error", [StoreError("the disk failed"), RuntimeError("nobody expected it"), MemoryError()])
@pytest.mark.parametrize("times", [1, 2, 3, 4, 5])
async def test_a_failed_read_while_work_is_recovered_is_tried_again(
    error: Exception, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(deliveries, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(dispatch, "REFILL_RETRY_SECONDS", 0.01)
    await some_of_each(tmp_path / "s.db")
    store = await opened(tmp_path / "s.db")
    parts: Any = store
    parts._deliveries._read = Once(parts._deliveries._read, error, times)  # noqa: SLF001
    assert await delivered(store, until=len(ALL)) == ALL
    assert any(each.exc_info is not None for each in caplog.records), "without its traceback"
    await store.aclose()


async def test_a_granted_start_survives_a_failed_refill(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was passed over when it waited for its key, and is in nothing that is read again."""
    monkeypatch.setattr(dispatch, "REFILL_RETRY_SECONDS", 0)
    reading = asyncio.Event()
    fails = [True]

    async def fetch(_handler: str, after: int, _limit: int) -> dispatch.Page:
        reading.set()
        await asyncio.sleep(0)
        if fails.pop() if fails else False:
            raise StoreError("the disk failed")
        return dispatch.Page([], after, whole=True)

    got: list[str] = []
    dispatcher = dispatch.Dispatcher(fetch, lambda _: None)
    parts: Any = dispatcher
    parts._lines["work"] = dispatch.Line(last=10)  # noqa: SLF001
    member = dispatcher.join(["work"], lambda delivery: got.append(delivery.id))
    member.request(5)
    await reading.wait()
    dispatcher.queue_granted(Delivery("granted", "work", start("granted"), fresh=True, token=4))
    async with asyncio.timeout(30):
        while got != ["granted"]:
            await asyncio.sleep(0)
    dispatcher.close()


async def test_one_unit_that_cannot_be_handed_out_does_not_stop_its_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await opened(tmp_path / "s.db")
    parts: Any = store
    written = parts._deliveries.written  # noqa: SLF001

    def fail_for_bad(unit: Any) -> None:
        if any(accept.start.id == "bad" for accept in unit.accepts):
            raise RuntimeError("nobody expected it")
        written(unit)

    monkeypatch.setattr(parts._deliveries, "written", fail_for_bad)  # noqa: SLF001
    found = await asyncio.gather(*(store.submit([start(id)]) for id in ("a", "bad", "b")))
    assert found == [[True], [True], [True]], "they are durable"
    assert {"a", "b"} <= await delivered(store, until=2)
    await store.aclose()


# --- numbers that are none --------------------------------------------------------------------------------------------
async def test_a_file_that_an_earlier_release_wrote_with_a_wake_at_nan_is_served(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    await some_of_each(path)
    checksum = state_checksum("waking", "suspended", None, 5.0, math.nan, 2)
    change(
        path, f"UPDATE invocation SET wake = NULL, updated_at = 5.0, state_checksum = {checksum} WHERE id = 'waking'"
    )
    store = await opened(path)
    assert store.set_aside == ["waking"]
    assert await delivered(store, until=len(ALL) - 1) == ALL - {"waking"}
    await store.aclose()


# --- what a newer release wrote ---------------------------------------------------------------------------------------
def newer_status(path: Path, id: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        sequence, at, wake, revision = db.execute(
            "SELECT sequence, updated_at, wake, revision FROM invocation WHERE id = ?", (id,)
        ).fetchone()
        checksum = state_checksum(id, "archived", sequence, at, wake, revision)
        db.execute("UPDATE invocation SET status = 'archived', state_checksum = ? WHERE id = ?", (checksum, id))
        db.commit()


async def test_a_status_of_a_newer_release_is_listed_counted_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    await some_of_each(path)
    newer_status(path, "waking")
    store = await opened(path)
    assert store.set_aside == []
    rows = {row.id: row.status for row in await store.search(Filter())}
    assert rows["waking"] == "archived"
    assert [row.id for row in await store.search(Filter(status="archived"))] == ["waking"]  # type: ignore[arg-type]
    counts = await store.counts()
    assert counts.by_status.get("archived") == 1  # type: ignore[call-overload]
    assert "completed" not in counts.by_status
    with pytest.raises(NewerJournal, match="archived"):
        await store.journal("waking")
    assert await store.purge(9e9, limit=100) == 0
    assert await delivered(store, until=len(ALL) - 1) >= ALL - {"waking"}
    await store.aclose()


async def test_a_message_of_a_newer_release_sets_its_invocation_aside_until_that_release_serves_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "s.db"
    await some_of_each(path)
    data = msgspec.msgpack.encode(["m", "mailed", 1.0, ["snooze", 5]])
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE message SET data = ?, checksum = ? WHERE id = 'm'", (data, zlib.crc32(data)))
        db.commit()
    store = await opened(path)
    assert await delivered(store, until=len(ALL) - 1) == ALL - {"mailed"}
    assert store.set_aside == ["mailed"]
    said = [each for each in caplog.records if "mailed is set aside" in each.message]
    assert [each.levelno for each in said] == [logging.WARNING]
    assert "snooze" in said[0].message
    assert {row.id for row in await store.search(Filter())} >= ALL
    await store.aclose()
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT data FROM message WHERE answered = 0").fetchall() == [(data,)], "it is kept"


async def test_a_worker_that_declines_is_not_given_the_invocation_again_and_another_is(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    await some_of_each(path)
    store = await opened(path)
    old: list[str] = []
    new: list[str] = []

    def decline(delivery: Delivery) -> None:
        old.append(delivery.id)
        if delivery.id == "running":
            worker.decline(delivery, "its journal is of a newer release")

    worker = store.subscribe(["work"], decline)
    worker.request(100)
    async with asyncio.timeout(30):
        while {*old} != ALL:
            await asyncio.sleep(0.001)
    assert old.count("running") == 1
    other = store.subscribe(["work"], lambda delivery: new.append(delivery.id))
    async with asyncio.timeout(30):
        while "running" not in new:
            await asyncio.sleep(0.001)
    await store.aclose()
    other.close()
