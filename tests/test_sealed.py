"""A sealed store, through the client: what is kept, what is refused, and what is shown without the keys."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import sqlite3
import zlib
from collections.abc import AsyncGenerator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from examples.services.nats_server import Server, server
from perdure import connect
from perdure.cli import commands
from perdure.client import Client
from perdure.core.journal import decode_frame, decode_message, encode_frame, encode_message
from perdure.core.values import digest, encode
from perdure.encryption import Encrypted
from perdure.errors import (
    IdConflict,
    InvalidOption,
    KeyMissing,
    StoreError,
    Tampered,
    UnknownInvocation,
    Unsealed,
    WaitTimeout,
)
from perdure.operations.describe import AwakeableInfo
from perdure.operations.local import store_behind
from perdure.stores.sealed import Sealed
from perdure.stores.sqlite.schema import frame_checksum
from perdure.testing import replay
from tests import sealed_programs as programs
from tests.http.conftest import site_on
from tests.sealed_programs import LONG, SHORT, WORKFLOWS, Order, child, counts, everything, failing, sent

NEW, OLD = b"n" * 32, b"o" * 32
WAIT_SECONDS = 60.0


def codec(**options: Any) -> Encrypted:
    return Encrypted({"new": NEW, "old": OLD}, **options)


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    folder = tmp_path_factory.mktemp("sealed-nats")
    with server(folder) as node:
        yield node, folder


@pytest.fixture(params=["memory", "sqlite", "jetstream"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "memory":
        return "memory:"
    if request.param == "sqlite":
        return f"sqlite:{tmp_path}/store.db"
    return request.getfixturevalue("nats")[0].url


@contextlib.asynccontextmanager
async def working(url: str, used: Encrypted | None = None, **options: Any) -> AsyncGenerator[Client]:
    async with connect(url, codec=used or codec(), **options) as client, client.worker(*WORKFLOWS):
        yield client


async def until(client: Client, id: str, status: str) -> Any:
    async with asyncio.timeout(WAIT_SECONDS):
        while (found := await client.handle(id).describe()).status != status:
            await asyncio.sleep(0.02)
    return found


async def asked_by(client: Client, id: str) -> AwakeableInfo:
    """Wait until an invocation has an awakeable in the index, and return it."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            async for each in client.awakeables():
                if each.invocation_id == id:
                    return each
            await asyncio.sleep(0.02)


async def answered(client: Client, id: str, order: Order) -> None:
    """Answer the awakeable of an invocation, once it is there."""
    asked = await asked_by(client, id)
    assert (asked.title, asked.description) == (f"May {LONG}?", f"{SHORT} it is")
    await client.resolve(asked.id, order)


async def whole_program(client: Client, id: str) -> list[str]:
    """Run every kind of step, a pause, a cancellation, a retry, state, documents and an export."""
    order = Order(LONG, SHORT)
    handle = await client.start(everything.using(id=id), order, id)
    await answered(client, id, order)
    result = await handle.result(timeout=WAIT_SECONDS)
    assert await client.handle(f"{id}-sent").result(timeout=WAIT_SECONDS) == LONG
    assert [await client.run(counts.using(key=f"{id}-key"), LONG) for _ in range(2)] == [1, 2]
    assert await client.state(f"{id}-key") == {f"count of {LONG}": 2, "note": LONG}
    with pytest.raises(programs.Declined, match=LONG):
        await client.run(failing.using(id=f"{id}-failing"), LONG, SHORT)
    await client.handle(f"{id}-failing").retry()
    assert LONG in (await until(client, f"{id}-failing", "failed")).error
    waiting = await client.start(everything.using(id=f"{id}-waits"), order, f"{id}-waits")
    asked = await asked_by(client, waiting.id)
    await waiting.pause()
    await waiting.resume()
    await client.reject(asked.id, f"because of {LONG}")
    await until(client, waiting.id, "failed")
    documents = client.documents(f"{id}-notes", Order)
    await documents.put(("a", "b"), order)
    assert (found := await documents.get(("a", "b"))) is not None
    assert found.value == order
    return result


async def test_a_whole_program_comes_to_the_same_sealed_as_plain(url: str) -> None:
    async with working(url) as client:
        found = await whole_program(client, "one")
        described = await client.handle("one").describe()
    async with connect("memory:") as plain, plain.worker(*WORKFLOWS):
        assert await whole_program(plain, "one") == found
        expected = await plain.handle("one").describe()
    assert [
        (each.step_type, each.result, each.error) for each in described.journal if not each.step_type.startswith("AW")
    ] == [(each.step_type, each.result, each.error) for each in expected.journal if not each.step_type.startswith("AW")]
    assert described.input == expected.input


# --- nothing is found ---------------------------------------------------------------------------------------------
def forms() -> dict[str, bytes]:
    """Return the forms in which a planted value or its digest may show."""
    found: dict[str, bytes] = {}
    for name, value in (("long", LONG), ("short", str(SHORT)), ("upper", LONG.upper())):
        found |= {name: value.encode(), f"{name}, utf-16": value.encode("utf-16-le")}
        for shift in range(3):  # base64 depends on where it begins
            encoded = base64.b64encode(b"x" * shift + value.encode())
            found[f"{name}, base64 {shift}"] = encoded[4 if shift else 0 : len(encoded) - 4]
    found["short, msgpack"] = encode(SHORT)
    order = Order(LONG, SHORT)
    known = [programs.charge_digest(), programs.write_digest()]
    known += [sent.encode_arguments((LONG,), {})[1], child.encode_arguments((order,), {})[1]]
    known += [digest(encode(SHORT)), digest(LONG.encode())]
    for number, each in enumerate(known):
        found |= {f"digest {number}": each, f"digest {number}, hex": each.hex().encode()}
    return found


def planted_in(files: dict[str, bytes]) -> list[str]:
    return [f"{form} in {name}" for form, data in forms().items() for name, content in files.items() if data in content]


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def test_planted_values_are_nowhere_in_a_file_its_logs_or_exports(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with working(f"sqlite:{tmp_path}/store.db") as client:
        await whole_program(client, "one")
        files = files_in(tmp_path)
        assert {"store.db", "store.db-wal", "store.db-shm"} <= files.keys()
        files |= {"export": await client.handle("one").export(), "log": caplog.text.encode()}
        await client.backup(str(tmp_path / "backup.db"))
    assert planted_in(files | files_in(tmp_path)) == []
    frames = msgspec.json.decode(files["export"])["frames"]
    assert planted_in({str(n): base64.b64decode(each) for n, each in enumerate(frames)}) == []


async def test_planted_values_are_found_in_a_plain_file(tmp_path: Path) -> None:
    """The search itself finds what is there."""
    async with connect(f"sqlite:{tmp_path}/store.db") as client, client.worker(*WORKFLOWS):
        await whole_program(client, "one")
    found = planted_in(files_in(tmp_path))
    for form in ("long", "upper", "short, msgpack", "digest 0", "digest 1", "digest 2", "digest 3"):
        assert any(each.startswith(f"{form} in") for each in found), form


async def test_planted_values_are_found_on_a_plain_server(tmp_path: Path) -> None:
    with server(tmp_path) as node:
        async with connect(node.url) as client, client.worker(*WORKFLOWS):
            await whole_program(client, "plain")
            found = planted_in(files_in(tmp_path))
    for form in ("long", "upper", "short, msgpack", "digest 0", "digest 1", "digest 2", "digest 3"):
        assert any(each.startswith(f"{form} in") for each in found), form


async def test_planted_values_are_nowhere_on_a_server(
    nats: tuple[Server, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    node, folder = nats
    async with working(node.url, index=tmp_path / "index") as client:
        await whole_program(client, "planted")
        assert len([each async for each in client.awakeables(open=False)]) >= 2
        files = {**files_in(folder), **files_in(tmp_path)}
    assert any("msgs" in name or name.endswith(".blk") for name in files), [*files]
    assert any("index" in name for name in files)
    assert planted_in(files | {"log": caplog.text.encode()}) == []


# --- keys -----------------------------------------------------------------------------------------------------------
async def test_what_an_old_key_sealed_opens_beside_a_new_one_and_the_new_one_seals(url: str, tmp_path: Path) -> None:
    if url == "memory:":
        url = f"sqlite:{tmp_path}/store.db"
    async with working(url, Encrypted({"old": OLD})) as client:
        handle = await client.start(everything.using(id="rotated"), Order(LONG, SHORT), "rotated")
        await asked_by(client, handle.id)
    async with working(url) as client:
        await answered(client, "rotated", Order(LONG, SHORT))
        result = await client.handle("rotated").result(timeout=WAIT_SECONDS)
        assert await client.run(everything.using(id="rotated"), Order(LONG, SHORT), "rotated") == result
        assert await client.run(sent.using(id="under-new"), LONG) == LONG
    async with connect(url, codec=Encrypted({"new": NEW}), read_only=True) as client:
        assert (await client.handle("under-new").describe()).result == LONG
        assert (await client.handle("rotated").describe()).input == {"sealed": "sealed"}
        with pytest.raises(KeyMissing, match="'old'"):
            await client.handle("rotated").export(plain=True)


async def test_a_lost_key_sets_aside_what_it_sealed_and_nothing_else(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if url == "memory:":
        url = f"sqlite:{tmp_path}/store.db"
    async with connect(url, codec=codec()) as client:  # so that the new one opens the store, too
        await client.documents("lost", str).put(("new",), LONG)
    async with working(url, Encrypted({"old": OLD, "new": NEW})) as client:
        await client.start(everything.using(id="lost"), Order(LONG, SHORT), "lost")
        await asked_by(client, "lost")
        await client.documents("lost", str).put(("old",), LONG)
    async with connect(url, codec=Encrypted({"old": OLD, "new": NEW})) as client:
        await client.start(sent.using(id="lost-queued"), LONG)
    async with working(url, Encrypted({"new": NEW})) as client:
        assert await client.run(sent, "a good one") == "a good one"
        assert (found := await client.documents("lost", str).get(("new",))) is not None
        assert found.value == LONG
        with pytest.raises(KeyMissing, match="'old'"):
            await client.documents("lost", str).get(("old",))
        async with asyncio.timeout(WAIT_SECONDS):
            while "lost-queued" not in caplog.text:
                await asyncio.sleep(0.02)
        assert "is sealed under key 'old'" in caplog.text
        assert (await client.handle("lost-queued").describe()).status == "pending"
        assert await client.run(sent, "another") == "another"
    async with working(url) as client:
        assert await client.handle("lost-queued").result(timeout=WAIT_SECONDS) == LONG
        await answered(client, "lost", Order(LONG, SHORT))
        await client.handle("lost").result(timeout=WAIT_SECONDS)


async def test_a_codec_with_none_of_the_keys_of_a_store_does_not_open_it(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path}/store.db"
    async with connect(url, codec=Encrypted({"old": OLD})) as client:
        await client.operations.open()
    for keys, error in (({"new": NEW}, KeyMissing), ({"old": NEW}, Tampered)):
        with pytest.raises(error, match="'old'"):
            await connect(url, codec=Encrypted(keys)).operations.open()
    async with connect(url, codec=codec()) as client:  # nothing stayed open
        await client.operations.open()


# --- without keys ---------------------------------------------------------------------------------------------------
async def test_without_keys_values_are_shown_as_sealed_and_nothing_can_be_started_or_answered(
    url: str, tmp_path: Path
) -> None:
    if url == "memory:":
        url = f"sqlite:{tmp_path}/store.db"
    async with working(url) as client:
        await client.start(everything.using(id="shown"), Order(LONG, SHORT), "shown")
        asked = await asked_by(client, "shown")
        await client.run(counts.using(key="shown-key"), LONG)
        with pytest.raises(programs.Declined):
            await client.run(failing.using(id="shown-failing"), LONG, SHORT)
    async with connect(url) as client:
        found = await client.handle("shown").describe()
        assert found.input == {"sealed": "sealed"}
        assert found.journal[0].step_type == "charge"
        assert found.journal[0].result == "sealed"
        assert found.awakeables[0].title == "sealed"
        assert found.awakeables[0].assignees == ("ann",)
        assert (await client.handle("shown-failing").describe()).error == "tests.sealed_programs.Declined: sealed"
        assert await client.state("shown-key") == {"sealed": "sealed"}
        assert "sealed" in [each.title async for each in client.awakeables()]
        for refused in (
            client.resolve(asked.id, Order(LONG, SHORT)),
            client.reject(asked.id, "no"),
            client.run(sent, LONG),
            client.handle("shown").export(),
            client.handle("shown-failing").result(),
            client.documents("notes", str).put(("a",), LONG),
        ):
            with pytest.raises(KeyMissing, match="PERDURE_KEYS_FILE"):
                await refused
    async with connect(url) as client, client.worker(*WORKFLOWS):
        await client.handle("shown").describe()
    async with working(url) as client:
        await client.resolve(asked.id, Order(LONG, SHORT))
        await client.handle("shown").result(timeout=WAIT_SECONDS)


async def test_the_command_line_and_programs_take_their_keys_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:{tmp_path}/store.db"
    monkeypatch.setenv("PERDURE_KEYS_FILE", str(keys_file(tmp_path)))
    async with connect(url) as client, client.worker(sent):
        assert await client.run(sent.using(id="x"), LONG) == LONG
        assert isinstance(await store_behind(client.operations), Sealed)
    monkeypatch.delenv("PERDURE_KEYS_FILE")
    async with connect(url, codec=codec(), read_only=True) as client:
        assert (await client.handle("x").describe()).result == LONG


def test_perdure_show_takes_the_keys_from_the_file_and_shows_sealed_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:{tmp_path}/store.db"

    async def fill() -> None:
        async with working(url) as client:
            await client.run(sent.using(id="x"), LONG)

    asyncio.run(fill())
    assert commands.main(["show", "x", "--url", url], standalone_mode=False) == 0  # `main` may end this process
    shown = capsys.readouterr().out
    assert "sealed" in shown
    assert LONG not in shown
    monkeypatch.setenv("PERDURE_KEYS_FILE", str(keys_file(tmp_path)))
    assert commands.main(["show", "x", "--url", url], standalone_mode=False) == 0  # `main` may end this process
    assert LONG in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no key in it"),
        ("new", "line 1: it is not a name and a key"),
        ("new !!!!", "line 1: the key 'new' is not base64"),
        ("new aaaa\nnew aaaa", "line 2: its name is there before"),
        ("new aaaa", "has 3 bytes, not 32"),
        ("allow_plain_until tomorrow", "line 1: 'tomorrow' is no time"),
        ("allow_plain_until 2026-12-08T00:00:00Z", "no key in it"),
        (f"new {'a' * 43}=\nallow_plain_until 2026-12-08T00:00:00", "time zone"),
        (None, "cannot be read"),
    ],
)
def test_a_file_of_keys_that_is_none_is_refused(
    text: str | None, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (tmp_path / "keys").write_text(text)
    monkeypatch.setenv("PERDURE_KEYS_FILE", str(tmp_path / "keys"))
    with pytest.raises(InvalidOption, match=why):
        connect("memory:")


def test_what_is_no_codec_is_refused() -> None:
    for bad in (Encrypted, b"k" * 32, "key"):
        with pytest.raises(InvalidOption, match="codec"):
            connect("memory:", codec=bad)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidOption, match="server"):
        connect("http://localhost:1", codec=codec())


async def test_a_server_without_keys_shows_sealed_and_does_not_answer(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path}/store.db"
    async with working(url) as client:
        await client.start(everything.using(id="over-http"), Order(LONG, SHORT), "over-http")
        asked = await asked_by(client, "over-http")
        await client.run(child.using(id="done"), Order(LONG, SHORT))
    async with contextlib.AsyncExitStack() as parts:
        site = await site_on(parts, url)
        found = (await site.get("/api/workflows/over-http")).json()
        assert found["input"] == {"sealed": "sealed"}
        assert found["journal"][0]["result"] == "sealed"
        assert next(iter(found["awakeables"].values()))["title"] == "sealed"
        assert (await site.get("/api/workflows/done")).json()["result"] == "sealed"
        for refused in (
            await site.get("/api/workflows/done/result"),
            await site.get("/api/workflows/done/export"),
            await site.post(f"/api/awakeables/{asked.id}/resolve", {"value": {"note": "x", "amount": 1}}),
            await site.post("/api/workflows/sent/invoke", "x"),
        ):
            assert (refused.status_code, refused.json()["type"]) == (503, "urn:perdure:problem:sealed")
    async with contextlib.AsyncExitStack() as parts:
        parts.enter_context(pytest.MonkeyPatch.context()).setenv("PERDURE_KEYS_FILE", str(keys_file(tmp_path)))
        site = await site_on(parts, url)
        assert (await site.get("/api/workflows/done")).json()["result"] == {"note": LONG.upper(), "amount": SHORT + 1}
        for query, expected in (("", False), ("?plain=true", True)):
            export = (await site.get(f"/api/workflows/done/export{query}")).content
            assert (b'sealed_in": ""' in export) is expected


def keys_file(folder: Path) -> Path:
    path = folder / "keys"
    path.write_text(f"# ours\nnew {base64.b64encode(NEW).decode()}\n\nold {base64.b64encode(OLD).decode()}\n")
    return path


# --- a store that was in use -----------------------------------------------------------------------------------------
async def test_a_store_that_was_in_use_goes_on_while_plain_values_are_allowed(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path}/store.db"
    async with connect(url) as client, client.worker(*WORKFLOWS):
        await client.start(everything.using(id="before"), Order(LONG, SHORT), "before")
        asked = await asked_by(client, "before")
    with pytest.raises(Unsealed, match="allow_plain_until"):
        await connect(url, codec=codec()).operations.open()
    lenient = codec(allow_plain_until=datetime.now(UTC) + timedelta(hours=1))
    async with working(url, lenient) as client:
        assert (await client.start(everything.using(id="before"), Order(LONG, SHORT), "before")).id == "before"
        with pytest.raises(IdConflict):
            await client.start(everything.using(id="before"), Order(LONG, 1), "before")
        await client.resolve(asked.id, Order(LONG, SHORT))  # an id that was given out before
        await client.handle("before").result(timeout=WAIT_SECONDS)
    async with working(url) as client:
        with pytest.raises(Unsealed):
            await client.handle("before").export(plain=True)
        assert (await client.handle("before").describe()).input == {"unsealed": "unsealed"}
        assert await client.run(sent, LONG) == LONG


# --- an attacker -----------------------------------------------------------------------------------------------------
async def test_the_file_of_keys_may_allow_plain_values_for_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, path = f"sqlite:{tmp_path}/store.db", keys_file(tmp_path)
    async with connect(url) as client, client.worker(sent):
        await client.run(sent.using(id="before"), LONG)
    path.write_text(f"{path.read_text()}allow_plain_until {datetime.now(UTC) + timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}")
    monkeypatch.setenv("PERDURE_KEYS_FILE", str(path))
    async with connect(url) as client:
        assert await client.handle("before").result() == LONG


async def test_a_value_that_was_put_into_the_row_of_another_is_refused_and_the_others_go_on(tmp_path: Path) -> None:
    url, path = f"sqlite:{tmp_path}/store.db", tmp_path / "store.db"
    async with working(url) as client:
        for id in ("mine", "theirs"):
            await client.run(sent.using(id=id), f"of {id}")
    with contextlib.closing(sqlite3.connect(path)) as db:
        (revision, data) = db.execute(
            "SELECT revision, data FROM frame WHERE id = 'theirs' ORDER BY revision DESC LIMIT 1"
        ).fetchone()
        (mine,) = db.execute("SELECT data FROM frame WHERE id = 'mine' AND revision = ?", (revision,)).fetchone()
        frame, other = decode_frame(mine), decode_frame(data)
        mixed = encode_frame(msgspec.structs.replace(frame, entries=[*frame.entries[:-1], other.entries[-1]]))
        change = "UPDATE frame SET data = ?, checksum = ? WHERE id = 'mine' AND revision = ?"
        db.execute(change, (mixed, frame_checksum("mine", revision, mixed), revision))
        db.commit()
    async with working(url) as client:
        with pytest.raises(Tampered, match="'mine'"):
            await client.handle("mine").result()
        assert (await client.handle("mine").describe()).result == "tampered"
        assert await client.handle("theirs").result() == "of theirs"
        assert await client.run(sent, "good") == "good"


async def test_a_message_that_was_changed_sets_its_invocation_aside_and_the_others_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"sqlite:{tmp_path}/store.db"
    async with working(url) as client:
        for id in ("one", "two"):
            await client.start(everything.using(id=id), Order(LONG, SHORT), id)
        asked = [await asked_by(client, id) for id in ("one", "two")]
    async with connect(url, codec=codec()) as client:
        for each in asked:
            with pytest.raises(WaitTimeout):
                await client.resolve(each.id, Order(each.invocation_id, SHORT), timeout=0.01)
    with contextlib.closing(sqlite3.connect(tmp_path / "store.db")) as db:
        found = dict(db.execute("SELECT invocation, data FROM message WHERE answered = 0").fetchall())
        one, two = decode_message(found["one"]), decode_message(found["two"])
        mixed = encode_message(msgspec.structs.replace(one, request=two.request))
        change = "UPDATE message SET data = ?, checksum = ? WHERE id = ?"
        db.execute(change, (mixed, zlib.crc32(mixed), one.id))
        db.commit()
    async with working(url) as client:
        assert (await client.handle("two").result(timeout=WAIT_SECONDS))[-2] == "two"
        async with asyncio.timeout(WAIT_SECONDS):
            while "invocation one is set aside" not in caplog.text:
                await asyncio.sleep(0.02)
        assert await client.run(sent, "good") == "good"
        assert (await client.handle("one").describe()).status == "suspended"


# --- identity, exports, purge -----------------------------------------------------------------------------------------
async def test_an_id_is_compared_by_its_keyed_digest_also_across_clients_and_restarts(url: str) -> None:
    async with working(url) as client:
        await client.run(sent.using(id="same"), LONG)
        assert await client.run(sent.using(id="same"), LONG) == LONG
        with pytest.raises(IdConflict):
            await client.run(sent.using(id="same"), "another")
        again = await client.handle("same").restart(id="again")
        assert await again.result(timeout=WAIT_SECONDS) == LONG
        assert await client.run(sent.using(id="again"), LONG) == LONG  # restarted with the same digest, keyed once
        await client.handle("same").purge()
        with pytest.raises(UnknownInvocation):
            await client.handle("same").describe()
        assert await client.run(sent.using(id="same"), "another") == "another"


async def test_an_export_replays_with_the_codec_or_as_plain_text(url: str) -> None:
    async with working(url) as client:
        await client.run(child.using(id="exported"), Order(LONG, SHORT))
        sealed, plain = await client.handle("exported").export(), await client.handle("exported").export(plain=True)
    with pytest.raises(InvalidOption, match="sealed"):
        replay(child, sealed)
    with pytest.raises(KeyMissing):
        replay(child, sealed, codec=Encrypted({"other": OLD}))
    replay(child, sealed, codec=codec())
    replay(child, plain)


async def test_a_start_without_a_digest_is_refused(tmp_path: Path) -> None:
    async with connect("memory:", codec=codec()) as client:
        store = await store_behind(client.operations)
        client_start = await client.start(sent.using(id="x"), LONG)
        found = await store.start(client_start.id)
        assert found is not None
        with pytest.raises(InvalidOption, match="digest"):
            await store.submit([msgspec.structs.replace(found, id="y", digest=b"")])


async def test_two_processes_with_the_same_keys_share_a_server(nats: tuple[Server, Path]) -> None:
    url = nats[0].url
    async with connect(url, codec=codec()) as first, working(url) as second:
        handle = await first.start(everything.using(id="shared"), Order(LONG, SHORT), "shared")
        await answered(first, "shared", Order(LONG, SHORT))
        result = await handle.result(timeout=WAIT_SECONDS)
        assert await second.handle("shared").result() == result
        assert (await store_behind(first.operations)).secret == (await store_behind(second.operations)).secret


async def test_the_secret_of_a_sealed_store_is_not_the_one_that_it_shows(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path}/store.db"
    async with connect(url, codec=codec()) as client:
        store = await store_behind(client.operations)
        assert isinstance(store, Sealed)
        assert store.secret != store.inner.secret
        assert store.secret not in (tmp_path / "store.db").read_bytes() + (tmp_path / "store.db-wal").read_bytes()
    with pytest.raises(StoreError):
        await client.operations.open()
