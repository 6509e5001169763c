"""`perdure rekey`: everything is sealed under the new key, and the old one can be dropped."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import signal
import sqlite3
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from examples.services.nats_server import Server, server
from perdure import connect
from perdure.cli import commands
from perdure.client import Client
from perdure.core.journal import Answer
from perdure.encryption import Encrypted
from perdure.errors import IdConflict, InvalidOption, KeyMissing, StoreDamaged, StoreError
from perdure.http.remote import Remote
from perdure.operations.local import store_behind
from perdure.operations.rekey import RekeyProgress
from perdure.stores.jetstream import JetStreamStore
from perdure.stores.rewriting import rewritten
from perdure.stores.sealed import Sealed
from perdure.stores.sealed.fields import MAGIC
from tests.http.conftest import site_on
from tests.rekeys import NEW, NEW_NAME, OLD, OLD_NAME
from tests.sealed_programs import LONG, SHORT, WORKFLOWS, Declined, Order, counts, everything, failing, holds, sent

WAIT_SECONDS = 120.0
HEADER = MAGIC + bytes([len(OLD_NAME)]) + OLD_NAME.encode()
OLD_FORMS = (HEADER, base64.b64encode(HEADER[: len(HEADER) // 3 * 3]))
"""What stands before a value that is sealed under the old key, and before a text."""


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("rekey-nats")) as node:
        yield node


@pytest.fixture(params=["sqlite", "jetstream"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:{tmp_path}/store.db" if request.param == "sqlite" else request.getfixturevalue("nats").url


def codec(*names: str) -> Encrypted:
    keys = {OLD_NAME: OLD, NEW_NAME: NEW, "third": b"t" * 32}
    return Encrypted({name: keys[name] for name in names})


@contextlib.asynccontextmanager
async def working(url: str, *names: str) -> AsyncGenerator[Client]:
    async with connect(url, codec=codec(*names)) as client, client.worker(*WORKFLOWS):
        yield client


async def asked_by(client: Client, id: str) -> Any:
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            async for each in client.awakeables():
                if each.invocation_id == id:
                    return each
            await asyncio.sleep(0.05)


async def until_status(client: Client, id: str, status: str) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while (await client.handle(id).describe()).status != status:
            await asyncio.sleep(0.05)


async def rekeyed(client: Client, *states: str) -> RekeyProgress:
    """Wait until the job is in one of these states."""
    async with asyncio.timeout(WAIT_SECONDS):
        while (found := await client.operations.rekey()) is None or found.state not in states:
            await asyncio.sleep(0.05)
    return found


# --- a store that goes on ---------------------------------------------------------------------------------------------
async def fill(client: Client) -> None:
    """Leave something of every kind in a store: ended, failed, suspended, delayed, waiting for a key, documents."""
    order = Order(LONG, SHORT)
    await asyncio.gather(*(client.run(sent.using(id=f"done-{n}"), f"{LONG} {n}") for n in range(40)))
    for n in range(3):
        await client.start(everything.using(id=f"asks-{n}"), order, f"asks-{n}")
    for n in range(3):
        await client.start(holds.using(id=f"holds-{n}", key="held"), f"{LONG} {n}")
    with pytest.raises(Declined):
        await client.run(failing.using(id="failed"), LONG, SHORT)
    assert [await client.run(counts.using(key="counted"), LONG) for _ in range(2)] == [1, 2]
    await client.start(sent.using(id="later", delay=3600), LONG)
    await client.start(sent.using(id="later-keyed", key="later", delay=3600), LONG)
    await client.documents("notes", Order).put(("a", "b"), order)
    await client.documents("notes", bytes).put(("large",), LONG.encode() * 40_000)
    await client.handle("done-39").purge()
    for n in range(3):
        await asked_by(client, f"asks-{n}")
    await asked_by(client, "holds-0")


async def ends(client: Client) -> None:
    """Let all of it end, and compare the results with what they would have been."""
    order = Order(LONG, SHORT)
    for n in range(39):
        assert await client.run(sent.using(id=f"done-{n}"), f"{LONG} {n}") == f"{LONG} {n}"
    with pytest.raises(IdConflict):
        await client.start(sent.using(id="done-0"), "something else")
    with pytest.raises(IdConflict):
        await client.start(sent.using(id="later", delay=3600), "something else")
    await client.start(sent.using(id="later", delay=3600), LONG)
    expected: set[str] = set()
    for n in range(3):
        asked = await asked_by(client, f"asks-{n}")
        assert (asked.title, asked.description) == (f"May {LONG}?", f"{SHORT} it is")
        await client.resolve(asked.id, order)
        result = await client.handle(f"asks-{n}").result(timeout=WAIT_SECONDS)
        expected.add(json.dumps(result))
        assert await client.handle(f"asks-{n}-sent").result(timeout=WAIT_SECONDS) == LONG
    assert len(expected) == 1
    assert await client.state("counted") == {f"count of {LONG}": 2, "note": LONG}
    assert await client.run(counts.using(key="counted"), LONG) == 3
    await client.handle("failed").retry()
    await until_status(client, "failed", "failed")
    assert LONG in ((await client.handle("failed").describe()).error or "")
    documents = client.documents("notes", Order)
    assert (found := await documents.get(("a", "b"))) is not None
    assert found.value == order
    assert await documents.put(("a", "b"), order, if_revision=found.revision)
    assert (large := await client.documents("notes", bytes).get(("large",))) is not None
    assert large.value == LONG.encode() * 40_000
    for id in ("later", "later-keyed"):
        assert (await client.handle(id).describe()).input == {"note": LONG}


async def let_go(client: Client) -> None:
    """Answer those that hold a key, one after the other."""
    for n in range(3):
        asked = await asked_by(client, f"holds-{n}")
        assert asked.title == f"{LONG} {n}"
        await client.resolve(asked.id, "go on")
        assert await client.handle(f"holds-{n}").result(timeout=WAIT_SECONDS) == [f"{LONG} {n}", "go on"]


@contextlib.asynccontextmanager
async def serving(url: str, *arguments: str) -> AsyncGenerator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.rekeys", url, *arguments), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(WAIT_SECONDS):
            assert await process.stdout.readline() == b"serves\n"
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()


async def test_a_store_is_rekeyed_under_load_and_through_a_kill_and_goes_on_without_the_old_key(
    url: str, tmp_path: Path
) -> None:
    async with working(url, OLD_NAME) as client:
        await fill(client)
    both = codec(NEW_NAME, OLD_NAME)
    async with serving(url, "begin") as process, connect(url, codec=both, read_only=True) as client:
        async with asyncio.timeout(WAIT_SECONDS):
            while (found := await client.operations.rekey()) is None or found.changed < 10:
                await asyncio.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        found = await client.operations.rekey()
        assert found is not None
        assert found.ended_at is None
        assert await old_ones(url, client), "it was to be killed in the middle"
    async with serving(url), connect(url, codec=both, read_only=True) as client:
        found = await rekeyed(client, "done", "incomplete", "waiting")
        if found.state == "waiting":  # NATS: two wait for a key
            assert {each.what for each in found.left} >= {"invocation 'holds-1'", "invocation 'holds-2'"}
            assert found.waiting >= 2
            async with connect(url, codec=both) as other:
                await let_go(other)
            found = await rekeyed(client, "done", "incomplete")
        assert found.left == ()
        assert found.state == "done"
        assert {*found.under} == {NEW_NAME}
    async with connect(url, codec=codec(NEW_NAME), read_only=True) as client:
        assert await old_ones(url, client) == []
    async with working(url, NEW_NAME) as client:
        await ends(client)
        if url.startswith("sqlite:"):
            await let_go(client)
    for names in ((OLD_NAME, "third"), (OLD_NAME,)):
        with pytest.raises(KeyMissing, match=NEW_NAME):
            await connect(url, codec=codec(*names)).operations.open()
    if url.startswith("sqlite:"):
        with closing(sqlite3.connect(f"{tmp_path}/store.db")) as db:
            db.execute("VACUUM")  # what was freed before stays in free pages
        content = (tmp_path / "store.db").read_bytes()
        assert HEADER.replace(OLD_NAME.encode(), NEW_NAME.encode()) in content
        assert not any(each in content for each in OLD_FORMS)


async def old_ones(url: str, client: Client) -> list[str]:
    """Return where something is sealed under the old key: rows of tables, or subjects of messages."""
    store = await store_behind(client.operations)
    assert isinstance(store, Sealed)
    found: list[str] = []
    if isinstance(store.inner, JetStreamStore):
        layout, wire = store.inner.layout, store.inner.wire
        for stream in (layout.stream(kind, n) for kind in "JQKB" for n in range(layout.partitions)):
            found += [
                each.subject for each in await wire.all(stream, ">") if any(form in each.data for form in OLD_FORMS)
            ]
        return found
    with closing(sqlite3.connect(f"file:{url.removeprefix('sqlite:')}?mode=ro", uri=True)) as db:
        for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for row in db.execute(f"SELECT * FROM {table}"):
                if any(
                    form in (each.encode() if isinstance(each, str) else each)
                    for form in OLD_FORMS
                    for each in row
                    if isinstance(each, (str, bytes))
                ):
                    found.append(f"{table} {row[0]}")
    return found


# --- a lost key -------------------------------------------------------------------------------------------------------
async def test_what_a_lost_key_has_sealed_is_named_and_all_else_is_sealed_anew(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path}/store.db"
    async with working(url, OLD_NAME, NEW_NAME) as client:
        await client.run(sent.using(id="lost"), LONG)
        await client.documents("notes", str).put(("lost",), LONG)
    async with working(url, NEW_NAME) as client:
        await client.run(sent.using(id="kept"), LONG)
    async with working(url, "third", NEW_NAME) as client:
        await client.operations.begin_rekey()
        found = await rekeyed(client, "done", "incomplete")
        assert found.state == "incomplete"
        assert {each.what for each in found.left} == {"invocation 'lost'", "document 'notes/lost'"}
        assert all(OLD_NAME in each.why for each in found.left)
        assert {*found.under} == {"third", OLD_NAME}
        assert await client.handle("kept").result() == LONG
    async with working(url, "third") as client:
        assert await client.handle("kept").result() == LONG
        with pytest.raises(KeyMissing):
            await client.handle("lost").result()
    async with working(url, "third", OLD_NAME) as client:  # it is found again
        await client.operations.begin_rekey()
        assert (await rekeyed(client, "done", "incomplete")).state == "done"
        assert await client.handle("lost").result() == LONG


async def test_a_job_waits_for_a_process_in_which_its_key_is_the_first(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path}/store.db"
    async with working(url, OLD_NAME) as client:
        await client.run(sent.using(id="x"), LONG)
    async with working(url, NEW_NAME, OLD_NAME) as client:
        await client.operations.begin_rekey()
        await rekeyed(client, "done")
    async with working(url, OLD_NAME, NEW_NAME) as client:  # back to the old one
        assert (await client.operations.begin_rekey()).key == OLD_NAME
        found = await rekeyed(client, "done")
        assert {*found.under} == {OLD_NAME}
        assert await client.handle("x").result() == LONG
    with pytest.raises(KeyMissing, match=OLD_NAME):
        await connect(url, codec=codec(NEW_NAME)).operations.open()


async def test_a_retired_key_is_not_added_again_by_those_that_still_have_it(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path}/store.db"
    async with working(url, OLD_NAME) as client:
        await client.run(sent.using(id="x"), LONG)
    async with working(url, NEW_NAME, OLD_NAME) as client:
        await client.operations.begin_rekey()
        await rekeyed(client, "done")
    async with working(url, NEW_NAME, OLD_NAME) as client:
        assert await client.handle("x").result() == LONG
    with pytest.raises(KeyMissing, match=NEW_NAME):
        await connect(url, codec=codec(OLD_NAME)).operations.open()


# --- the command, and a server ----------------------------------------------------------------------------------------
def test_the_command_counts_and_seals_and_says_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:{tmp_path}/store.db"

    async def begin(*names: str) -> None:
        async with working(url, *names) as client:
            await client.run(sent.using(id=names[0]), LONG)

    def called(*arguments: str) -> tuple[int, str]:
        code = commands.main(["rekey", *arguments, "--url", url], standalone_mode=False)
        output = capsys.readouterr()
        return code, output.out + output.err

    asyncio.run(begin(OLD_NAME, NEW_NAME))
    code, output = called("--dry-run", "--json")  # without keys
    assert code == 0
    (count,) = json.loads(output).items()
    assert count[0] == OLD_NAME
    keys = tmp_path / "keys"
    monkeypatch.setenv("PERDURE_KEYS_FILE", str(keys))
    keys.write_text(f"{NEW_NAME} {base64.b64encode(NEW).decode()}\n")
    code, output = called()
    assert code == 1
    assert f"Keep '{OLD_NAME}'" in output
    assert f"invocation '{OLD_NAME}'" in output
    with open(keys, "a") as file:
        file.write(f"{OLD_NAME} {base64.b64encode(OLD).decode()}\n")
    code, output = called()
    assert code == 0
    assert "the others can be dropped" in output
    assert called("--dry-run")[1] == f"{count[1]} values under '{NEW_NAME}'\n"
    asyncio.run(begin(NEW_NAME))


async def test_a_server_carries_it_out_for_an_admin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:{tmp_path}/store.db"
    async with working(url, OLD_NAME) as client:
        await client.run(sent.using(id="x"), LONG)
    keys = tmp_path / "keys"
    keys.write_text("".join(f"{n} {base64.b64encode(k).decode()}\n" for n, k in ((NEW_NAME, NEW), (OLD_NAME, OLD))))
    monkeypatch.setenv("PERDURE_KEYS_FILE", str(keys))
    async with contextlib.AsyncExitStack() as parts:
        site = await site_on(parts, url)
        remote = await parts.enter_async_context(connect(str(site.server.address)))
        assert isinstance(remote.operations, Remote)
        assert {*(await remote.operations.count_sealed()).under} == {OLD_NAME}
        assert await remote.operations.rekey() is None
        await remote.operations.begin_rekey()
        assert (await rekeyed(remote, "done")).state == "done"


async def test_a_plain_store_has_no_keys_and_a_store_without_keys_is_not_rekeyed(tmp_path: Path) -> None:
    async with connect(f"sqlite:{tmp_path}/plain.db") as client:
        for asked in (client.operations.count_sealed(), client.operations.begin_rekey(), client.operations.rekey()):
            with pytest.raises(InvalidOption, match="not sealed"):
                await asked
    url = f"sqlite:{tmp_path}/store.db"
    async with working(url, OLD_NAME) as client:
        await client.run(sent.using(id="x"), LONG)
    async with connect(url) as client:
        with pytest.raises(KeyMissing):
            await client.operations.begin_rekey()


# --- what must not be written again ----------------------------------------------------------------------------------
async def test_a_damaged_row_is_named_and_stays_damaged(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path}/store.db"
    async with working(url, OLD_NAME) as client:
        for id in ("good", "bad"):
            await client.run(sent.using(id=id), LONG)
    with closing(sqlite3.connect(f"{tmp_path}/store.db")) as db:
        db.execute("UPDATE frame SET data = substr(data, 1, length(data) - 1) || x'00' WHERE id = 'bad'")
        db.commit()
    async with working(url, NEW_NAME, OLD_NAME) as client:
        await client.operations.begin_rekey()
        found = await rekeyed(client, "done", "incomplete")
        assert [each.what for each in found.left] == ["invocation 'bad'"]
        assert "restore it from a backup" in found.left[0].why
        assert await client.handle("good").result() == LONG
        with pytest.raises(StoreDamaged):
            await client.handle("bad").result()


def test_what_a_newer_release_has_added_is_not_lost() -> None:
    def change(answer: Answer) -> Answer:
        return Answer(answer.message, "new")

    def again(data: bytes) -> bytes:
        return rewritten(data, msgspec.msgpack.Decoder(Answer).decode, msgspec.msgpack.encode, change)

    assert again(msgspec.msgpack.encode(["m", "old"])) == msgspec.msgpack.encode(["m", "new"])
    with pytest.raises(StoreError, match="newer release"):
        again(msgspec.msgpack.encode(["m", "old", "added by a newer release"]))
