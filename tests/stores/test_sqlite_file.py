"""The SQLite file when things go wrong: served twice, full, read-only, cut short, flipped, lost, of another kind.

Whatever happens to its bytes, a store either says clearly that something is wrong or has all that it acknowledged.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from perdure.core.effects import Effects, Release
from perdure.core.journal import (
    Accepted,
    Answer,
    Cancel,
    Claimed,
    Completed,
    Entry,
    Frame,
    Message,
    OpenAwakeable,
    Released,
    Returned,
    Start,
)
from perdure.core.values import encode
from perdure.errors import (
    StoreClosed,
    StoreDamaged,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreReadOnly,
)
from perdure.stores.port import Filter, Transition, committed
from perdure.stores.sql.index import LIVELY, SETTLED
from perdure.stores.sqlite import SqliteStore, SqliteView
from perdure.stores.sqlite.deliveries import DUE_STARTS

ROOT = Path(__file__).resolve().parents[2]
FLIPS = 200
LOOK_FLIPS = 60
SEED = 20_240_607
NOBODY = 65_534

Facts = dict[str, Any]


def start(id: str, *, at: float = 1e9, due: float = 1e9, size: int = 30) -> Start:
    return Start(id, "work", encode({"x": "x" * size}), at, due, 3, key="k" if id.endswith(("0", "1")) else None)


async def opened(path: str | Path) -> SqliteStore:
    store = SqliteStore(str(path))
    await store.open()
    return store


async def looked_at(path: str | Path) -> SqliteView:
    view = SqliteView(str(path))
    await view.open()
    return view


async def fill(store: SqliteStore, count: int = 12) -> None:
    """Write some of everything: invocations of every kind, messages with answers and without."""
    await store.submit([start(f"i{n}") for n in range(count)])
    await store.submit([start("scheduled", due=9e9)])
    for n in range(count - 3):
        id = f"i{n}"
        entries: list[Entry] = [Accepted(start(id)), Claimed(1.0, 1, "w", "3.11", "0")]
        await committed(store, Transition(id, 0, Frame("w", 1.0, entries, [OpenAwakeable(0)]), status="running"))
        await store.post(Message(f"m{n}", id, 1.0, Cancel()))
        value = Returned(0, 1.0, encode("v" * (n * 300)), f"m{n}")
        if n % 3 == 0:
            frame = Frame("w", 2.0, [value, Completed(2.0, encode(n))])
            release = Release("k", 0, {"state": encode(n)}) if n == 0 else None
            effects = Effects((), (), (Answer(f"m{n}"),), None, release)
            await committed(store, Transition(id, 1, frame, effects, "completed", True))
        elif n % 3 == 1:
            frame = Frame("w", 2.0, [value, Released(2.0, 8e9)])
            effects = Effects((), (), (Answer(f"m{n}", "no"),), 8e9)
            await committed(store, Transition(id, 1, frame, effects, "suspended", True))


async def facts(path: str | Path, *, look: bool = False) -> Facts:
    """Open a store, perhaps only to look at it, and read all it has to say."""
    store = await looked_at(path) if look else await opened(path)
    try:
        rows = await store.search(Filter(limit=1_000))
        said: Facts = {"secret": store.secret, "rows": rows, "counts": await store.counts()}
        for row in rows:
            if row.id not in store.set_aside:
                read = (await store.start(row.id), await store.journal(row.id), await store.outcome(row.id))
                said[row.id] = (await store.row(row.id), *read)
        said["set aside"] = store.set_aside
        with sqlite3.connect(path) as db:
            for table in ("message", "key", "line"):
                said[table] = db.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
        db.close()
        return said
    finally:
        await store.aclose()


@dataclass(frozen=True)
class Copy:
    """The files of a store, to be written elsewhere again and again."""

    files: dict[str, bytes]
    facts: Facts

    def write(self, folder: Path, changes: dict[str, bytes] | None = None) -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, data in {**self.files, **(changes or {})}.items():
            (folder / name).write_bytes(data)
        return folder / "store.db"


def copy_of(folder: Path) -> Copy:
    files = {each.name: each.read_bytes() for each in folder.iterdir() if not each.name.endswith(("-lock", "-shm"))}
    copy = Copy(files, {})
    with tempfile.TemporaryDirectory() as other:
        found = asyncio.run(facts(copy.write(Path(other) / "copy")))
    return Copy(files, found)


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """A store that was closed in order: all is in the database."""
    folder = tmp_path_factory.mktemp("closed")

    async def main() -> None:
        store = await opened(folder / "store.db")
        await fill(store)
        await store.aclose()

    asyncio.run(main())
    return copy_of(folder)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """A store whose process was killed: what it acknowledged is in the write-ahead log."""
    folder = tmp_path_factory.mktemp("killed")
    program = (
        "import asyncio, os, signal\n"
        "from tests.stores.test_sqlite_file import fill, opened\n"
        "async def main():\n"
        f"    store = await opened({str(folder / 'store.db')!r})\n"
        "    await fill(store)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    assert python(program).returncode == -signal.SIGKILL
    copy = copy_of(folder)
    assert len(copy.files["store.db-wal"]) > 20_000
    return copy


def python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def in_child(work: Callable[[], Any]) -> Any:
    """Run `work` in a forked child and return what it returns, which must be JSON."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            said = json.dumps(work())
        except BaseException as error:  # noqa: BLE001  the child must not go on as a second test run
            said = json.dumps(f"failed: {error!r}")
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(said)


async def refusal_of(path: str | Path) -> StoreError:
    """Return the error with which a store refuses to open."""
    with pytest.raises(StoreError) as raised:
        await opened(path)
    assert str(path) in str(raised.value)
    return raised.value


# --- one process ------------------------------------------------------------------------------------------------------
async def test_second_store_of_a_process_is_refused_and_names_the_process(tmp_path: Path) -> None:
    store = await opened(tmp_path / "s.db")
    error = await refusal_of(tmp_path / "s.db")
    assert isinstance(error, StoreLocked)
    assert error.pid == os.getpid()
    assert str(os.getpid()) in str(error)
    assert await store.submit([start("a")]) == [True]
    await store.aclose()
    await (await opened(tmp_path / "s.db")).aclose()


OPEN = """
import asyncio, os, sys
from perdure.errors import StoreError
from perdure.stores.sqlite import SqliteStore, SqliteView
async def main():
    store = SqliteStore(sys.argv[1])
    try:
        await store.open()
    except StoreError as error:
        print(type(error).__name__, getattr(error, "pid", None), error)
    else:
        print("opened")
        await store.aclose()
asyncio.run(main())
"""


async def test_other_process_is_refused_and_told_who_serves_the_file(tmp_path: Path) -> None:
    store = await opened(tmp_path / "s.db")
    said = (await asyncio.to_thread(python, OPEN, str(tmp_path / "s.db"))).stdout
    assert said.startswith(f"StoreLocked {os.getpid()} ")
    await store.aclose()
    assert (await asyncio.to_thread(python, OPEN, str(tmp_path / "s.db"))).stdout == "opened\n"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_forked_child_is_refused_the_file_and_the_store_of_its_parent(tmp_path: Path) -> None:
    path = str(tmp_path / "s.db")
    store = await opened(path)
    await store.submit([start("a")])

    def child() -> list[str]:
        asyncio.events._set_running_loop(None)  # noqa: SLF001  the loop runs in the parent
        said: list[str] = []

        async def use() -> None:
            uses: list[Callable[[], Any]] = [
                lambda: store.submit([start("b")]),
                lambda: store.journal("a"),
                lambda: store.watch("a"),
                lambda: store.post(Message("m", "a", 1.0, Cancel())),
                lambda: SqliteStore(path).open(),
            ]
            for each in uses:
                try:
                    await each()
                except StoreError as error:
                    said.append(f"{type(error).__name__}: {error}")
            await store.aclose()

        asyncio.run(use())
        return said

    said = await asyncio.to_thread(in_child, child)
    assert len(said) == 5, said
    assert all(f"opened by process {os.getpid()}" in each for each in said[:4]), said
    assert said[4].startswith("StoreLocked"), said
    assert str(os.getpid()) in said[4]
    assert await store.submit([start("c")]) == [True]
    assert isinstance(await refusal_of(path), StoreLocked), "the child's end released the parent's lock"
    await store.aclose()


async def test_file_of_a_killed_process_opens_at_once_with_all_it_acknowledged(killed: Copy, tmp_path: Path) -> None:
    assert len(killed.facts["rows"]) == 13
    assert await facts(killed.write(tmp_path / "c")) == killed.facts


# --- what cannot be written -------------------------------------------------------------------------------------------
@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user may reach."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


def refusal_as_nobody(path: Path) -> str:
    def child() -> str:
        os.setuid(NOBODY)
        asyncio.events._set_running_loop(None)  # noqa: SLF001

        async def use() -> str:
            try:
                await opened(path)
            except StoreError as error:
                return f"{type(error).__name__}: {error}"
            return "opened"

        return asyncio.run(use())

    return in_child(child)


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="takes root, to become somebody else")


@needs_root
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_read_only_file_is_refused(public: Path, closed: Copy) -> None:
    path = closed.write(public / "c")
    path.parent.chmod(0o777)
    path.chmod(0o444)
    said = refusal_as_nobody(path)
    assert said.startswith("StoreReadOnly"), said
    assert str(path) in said


@needs_root
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("existing", [True, False])
def test_read_only_folder_is_refused(public: Path, closed: Copy, existing: bool) -> None:
    path = closed.write(public / "c") if existing else public / "c" / "store.db"
    path.parent.mkdir(exist_ok=True)
    for each in path.parent.iterdir():
        each.chmod(0o666)
    path.parent.chmod(0o555)
    said = refusal_as_nobody(path)
    assert said.startswith("StoreReadOnly"), said
    assert str(path) in said


@needs_root
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_file_that_may_not_be_read_is_refused(public: Path, closed: Copy) -> None:
    path = closed.write(public / "c")
    path.parent.chmod(0o777)
    path.chmod(0o000)
    said = refusal_as_nobody(path)
    assert said.startswith(("StoreReadOnly", "StoreError")), said


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


async def test_full_disk_is_told_to_the_submitter_and_loses_nothing(small_disk: Path) -> None:
    store = await opened(small_disk / "s.db")
    accepted: list[str] = []
    refused: list[str] = []
    for n in range(300):
        try:
            await store.submit([start(f"i{n}", size=8_000)])
            accepted.append(f"i{n}")
        except StoreFull as error:
            assert str(small_disk) in str(error)  # noqa: PT017  some succeed
            refused.append(f"i{n}")
            if len(refused) > 3:
                break
    assert accepted
    assert refused
    first = accepted[0]
    frame = Frame("w", 1.0, [Accepted(start(first)), Returned(0, 1.0, b"x" * 900_000)])
    with pytest.raises(StoreFull):
        await committed(store, Transition(first, 0, frame, status="running"))
    assert (await store.journal(first)).frames == ()
    for id in accepted:
        assert await store.start(id) == start(id, size=8_000)
    await asyncio.to_thread(subprocess.run, ["mount", "-o", "remount,size=8m", small_disk], check=True)
    assert await store.submit([start(refused[0], size=8_000)]) == [True]
    assert await committed(store, Transition(first, 0, frame, status="running")) == 1
    await store.aclose()
    said = await facts(small_disk / "s.db")
    assert {row.id for row in said["rows"]} == {*accepted, refused[0]}


async def test_full_disk_at_opening_is_told(small_disk: Path, closed: Copy) -> None:
    (small_disk / "ballast").write_bytes(b"x" * 1_040_000)
    error = await refusal_of(small_disk / "s.db")
    assert isinstance(error, StoreFull)


# --- damage -----------------------------------------------------------------------------------------------------------
async def intact_or_refused(path: Path, expected: Facts, what: str, *, look: bool = False) -> str:
    """Read all a damaged store has to say: all that it said before, or a clear error."""
    try:
        said = await asyncio.wait_for(facts(path, look=look), 20)
    except StoreError as error:
        assert str(path) in str(error), what  # noqa: PT017  it may be intact
        return type(error).__name__
    aside = set(said.pop("set aside"))
    served = {id for id in expected if id not in {"set aside", "secret", "rows", "counts", "message", "key", "line"}}
    for name in served - aside:
        assert said.get(name) == expected[name], f"{what}: {name!r} was changed, and served"
    if aside:
        assert [row for row in said["rows"] if row.id not in aside] == [
            row for row in expected["rows"] if row.id not in aside
        ], what
        return "set aside"
    assert said == {name: fact for name, fact in expected.items() if name != "set aside"}, what
    return "intact"


@pytest.fixture
def quick() -> Iterator[Path]:
    """A folder in memory if there is one: nothing here is about syncing."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        yield Path(name)


def flips(data: bytes, count: int, rng: random.Random) -> Iterator[tuple[int, bytes]]:
    """Give copies with one bit flipped: at the very beginning, and anywhere."""
    for n in range(count):
        bits = len(data) * 8
        bit = rng.randrange(min(bits, 800) if n < count // 5 else bits)
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bit, bytes(flipped)


@pytest.mark.parametrize("name", ["store.db", "store.db-wal", "store.db-commit"])
async def test_one_flipped_bit_is_found_or_harms_nothing(name: str, closed: Copy, killed: Copy, quick: Path) -> None:
    copy = closed if name == "store.db" else killed
    print(f"seed {SEED}")
    count = 40 if name == "store.db-commit" else FLIPS
    found: set[str] = set()
    for bit, data in flips(copy.files[name], count, random.Random(SEED)):
        path = copy.write(quick / "c", {name: data})
        found.add(await intact_or_refused(path, copy.facts, f"bit {bit} of {name} flipped"))
    assert "StoreDamaged" in found
    assert name == "store.db-wal" or "intact" in found, "unused bytes harm nothing"


@pytest.mark.parametrize("name", ["store.db", "store.db-wal"])
async def test_file_cut_short_is_refused(name: str, closed: Copy, killed: Copy, tmp_path: Path) -> None:
    copy = closed if name == "store.db" else killed
    whole = copy.files[name]
    lengths = {0, 1, 50, 99, 100, 511, 4_095, 4_096, 4_097, len(whole) // 2, len(whole) - 4_096, len(whole) - 1}
    for length in sorted(lengths):
        path = copy.write(tmp_path / "c", {name: whole[:length]})
        said = await intact_or_refused(path, copy.facts, f"{name} cut to {length} of {len(whole)} bytes")
        assert said == "StoreDamaged", length


async def test_lost_write_ahead_log_is_refused(killed: Copy, tmp_path: Path) -> None:
    path = killed.write(tmp_path / "c")
    path.with_name("store.db-wal").unlink()
    error = await refusal_of(path)
    assert isinstance(error, StoreDamaged)


async def test_write_ahead_log_of_an_earlier_time_is_refused(killed: Copy, tmp_path: Path) -> None:
    """A shorter log that is whole in itself, as an old backup of it would be."""
    wal = killed.files["store.db-wal"]
    frame = 24 + 4_096
    for frames in (1, 5, (len(wal) - 32) // frame - 2):
        path = killed.write(tmp_path / "c", {"store.db-wal": wal[: 32 + frames * frame]})
        assert isinstance(await refusal_of(path), StoreDamaged)


async def test_lost_database_is_refused(closed: Copy, killed: Copy, tmp_path: Path) -> None:
    for copy in (closed, killed):
        path = copy.write(tmp_path / "c")
        path.unlink()
        error = await refusal_of(path)
        assert isinstance(error, StoreDamaged)
        assert not path.exists(), "the log would be dropped by the next who opens it"


async def test_number_of_the_last_commit_that_is_missing_or_behind_is_fine(killed: Copy, tmp_path: Path) -> None:
    side = "store.db-commit"
    for data in (None, b"", b"00000000000000000001\n", b"garbage", b"\xff\x00" * 9):
        path = killed.write(tmp_path / "c", {side: data or b""})
        if data is None:
            path.with_name(side).unlink()
        assert await facts(path) == killed.facts
        assert int(path.with_name(side).read_bytes() or b"0") >= 0, "it is written anew"


async def test_number_of_the_last_commit_that_is_ahead_is_refused(closed: Copy, tmp_path: Path) -> None:
    number = int(closed.files["store.db-commit"])
    path = closed.write(tmp_path / "c", {"store.db-commit": b"%020d\n" % (number + 1)})
    error = await refusal_of(path)
    assert isinstance(error, StoreDamaged)
    assert "store.db-commit" in str(error), "it says how to go on without what is lost"
    path.with_name("store.db-commit").unlink()
    assert await facts(path) == closed.facts


async def test_garbage_for_the_last_commit_is_replaced_by_the_next_one(closed: Copy, tmp_path: Path) -> None:
    path = closed.write(tmp_path / "c", {"store.db-commit": b"garbage" * 100})
    store = await opened(path)
    await store.submit([start("new")])
    await store.aclose()
    newer = path.with_name("store.db-commit").read_bytes()
    assert int(newer[:20]) == int(closed.files["store.db-commit"]) + 1
    assert len((await facts(path))["rows"]) == len(closed.facts["rows"]) + 1
    shutil.copy(path.with_name("store.db-commit"), tmp_path / "side")
    path.write_bytes(closed.files["store.db"])
    assert isinstance(await refusal_of(path), StoreDamaged)


async def test_damage_that_comes_while_the_file_is_open_is_refused_at_the_next_read(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    store = await opened(path)
    await fill(store)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE frame SET data = zeroblob(20) WHERE id = 'i0' AND revision = 1")
        db.execute("DELETE FROM frame WHERE id = 'i1' AND revision = 2")
        db.execute("UPDATE frame SET data = data || x'00' WHERE id = 'i3' AND revision = 2")
        db.execute("UPDATE invocation SET start = x'00' WHERE id = 'i4'")
    db.close()
    reads: list[Callable[[], Any]] = [lambda id=id: store.journal(id) for id in ("i0", "i1", "i3")]
    reads += [lambda: store.outcome("i3"), lambda: store.start("i4")]
    for read in reads:
        with pytest.raises(StoreDamaged):
            await read()
    assert len((await store.journal("i6")).frames) == 2
    await store.aclose()
    again = await opened(path)
    assert {"i0", "i1", "i3", "i4"} <= {*again.set_aside}
    assert len((await again.journal("i6")).frames) == 2
    await again.aclose()


# --- files of another kind --------------------------------------------------------------------------------------------
async def test_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    for text in (b"dear diary, " * 1_000, b"x", b"SQLite format 3\0" + b"\0" * 84, b"\0" * 4_096):
        path.write_bytes(text)
        await refusal_of(path)
        assert path.read_bytes() == text
        assert [*tmp_path.iterdir()] == [path], "something was left beside it"


async def test_database_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE frame (x)")
        db.execute("INSERT INTO frame VALUES (1)")
    db.close()
    before = path.read_bytes()
    error = await refusal_of(path)
    assert "another program" in str(error)
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path], "something was left beside it"


async def test_missing_folder_is_refused(tmp_path: Path) -> None:
    error = await refusal_of(tmp_path / "nowhere" / "s.db")
    assert "create it" in str(error)
    assert not (tmp_path / "nowhere").exists()


async def test_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    error = await refusal_of(tmp_path)
    assert "folder" in str(error)


# --- backups ----------------------------------------------------------------------------------------------------------
async def test_backup_taken_while_it_is_written_can_be_restored(tmp_path: Path) -> None:
    path, target = tmp_path / "s.db", tmp_path / "backup.db"
    store = await opened(path)
    await fill(store)
    writing = True
    written = 0

    async def write() -> None:
        nonlocal written
        while writing:
            await store.submit([start(f"w{written:05d}", size=500)])
            written += 1

    writer = asyncio.create_task(write())
    while written < 5:
        await asyncio.sleep(0)
    before = written
    await store.backup(str(target))
    writing = False
    await writer
    with pytest.raises(StoreError, match="overwrites nothing"):
        await store.backup(str(target))
    await store.aclose()
    restored = await facts(target)
    assert restored["secret"] == store.secret
    kept = sum(row.id.startswith("w") for row in restored["rows"])
    assert before <= kept <= written
    live = await facts(path)
    assert all(live[row.id] == restored[row.id] for row in restored["rows"])


async def test_backup_restored_over_a_newer_file_says_what_to_do(tmp_path: Path) -> None:
    path, target = tmp_path / "s.db", tmp_path / "backup.db"
    store = await opened(path)
    await fill(store)
    await store.backup(str(target))
    await store.submit([start("later")])
    await store.aclose()
    shutil.copy(target, path)
    error = await refusal_of(path)
    assert isinstance(error, StoreDamaged)
    (tmp_path / "s.db-commit").unlink()
    assert "later" not in await facts(path)


async def test_closed_store_refuses_and_can_be_closed_twice(tmp_path: Path) -> None:
    store = await opened(tmp_path / "s.db")
    await store.aclose()
    await store.aclose()
    with pytest.raises(StoreClosed):
        await store.submit([start("a")])


# --- only looked at ---------------------------------------------------------------------------------------------------
async def test_look_at_a_served_file_sees_every_commit_and_disturbs_nothing(tmp_path: Path) -> None:
    store = await opened(tmp_path / "s.db")
    await fill(store)
    view = await looked_at(tmp_path / "s.db")
    assert view.secret == store.secret
    assert await view.search(Filter()) == await store.search(Filter())
    assert await view.counts() == await store.counts()
    assert await view.mail("i2") == await store.mail("i2") != []
    assert await view.journal("i0") == await store.journal("i0")
    await store.submit([start("new", at=2e9)])
    assert (await view.search(Filter(limit=1)))[0].id == "new"
    assert view.serves("work") is None
    await store.aclose()
    assert (await view.search(Filter(limit=1)))[0].id == "new"
    await view.aclose()
    again = await opened(tmp_path / "s.db")
    assert await again.submit([start("newer")]) == [True]
    await again.aclose()


async def test_look_refuses_whatever_writes_or_waits(closed: Copy, tmp_path: Path) -> None:
    path = closed.write(tmp_path / "c")
    view = await looked_at(path)
    uses: list[Callable[[], Any]] = [
        lambda: view.submit([start("b")]),
        lambda: view.post(Message("m", "i0", 1.0, Cancel())),
        lambda: committed(view, Transition("i0", 0, None)),
        lambda: view.subscribe(["work"], print),
        lambda: view.purge(9e9, limit=10),
        lambda: view.watch("i0"),
        lambda: view.events(Filter()),
    ]
    for use in uses:
        with pytest.raises(StoreReadOnly, match="opened read-only"):
            await use()
    await view.aclose()
    await view.aclose()
    for use in uses:
        with pytest.raises(StoreClosed):
            await use()
    assert path.read_bytes() == closed.files["store.db"]


async def test_look_makes_no_file_and_says_what_is_wrong_with_another(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text" * 1_000)
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    with sqlite3.connect(tmp_path / "other") as db:
        db.execute("CREATE TABLE t (x)")
    db.close()
    before = sorted(tmp_path.iterdir())
    for name, kind, text in (
        ("missing", StoreError, "no such file"),
        ("no/folder", StoreError, "no such file"),
        ("text", StoreDamaged, "not a database"),
        ("empty", StoreDamaged, "not a database"),
        ("folder", StoreError, "it is a folder"),
        ("other", StoreError, "another program"),
    ):
        with pytest.raises(kind, match=text) as raised:
            await looked_at(tmp_path / name)
        assert name in str(raised.value)
    assert sorted(tmp_path.iterdir()) == before


async def test_look_reads_what_a_killed_process_left_in_its_log(killed: Copy, tmp_path: Path) -> None:
    path = killed.write(tmp_path / "c")
    assert await facts(path, look=True) == killed.facts
    assert await facts(path) == killed.facts, "the log is still there for who serves it next"


async def test_look_refuses_a_file_that_lost_its_log(killed: Copy, tmp_path: Path) -> None:
    path = killed.write(tmp_path / "c")
    path.with_name("store.db-wal").unlink()
    with pytest.raises(StoreDamaged, match="acknowledged"):
        await looked_at(path)


@pytest.mark.parametrize("name", ["store.db", "store.db-wal"])
async def test_look_finds_a_flipped_bit_or_it_harms_nothing(name: str, closed: Copy, killed: Copy, quick: Path) -> None:
    copy = closed if name == "store.db" else killed
    print(f"seed {SEED}")
    found: set[str] = set()
    for bit, data in flips(copy.files[name], LOOK_FLIPS, random.Random(SEED)):
        path = copy.write(quick / "c", {name: data})
        found.add(await intact_or_refused(path, copy.facts, f"bit {bit} of {name} flipped", look=True))
    assert "StoreDamaged" in found


async def test_damage_to_a_large_file_is_found_when_a_look_reads_it(
    closed: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.stores.sqlite.file.LOOK_LIMIT_BYTES", 0)
    path = closed.write(tmp_path / "c")
    with sqlite3.connect(path) as db:
        db.execute("UPDATE frame SET data = zeroblob(20) WHERE id = 'i0' AND revision = 1")
        db.execute("UPDATE invocation SET status = 'completed' WHERE id = 'i4'")
        db.execute("UPDATE message SET data = x'00' WHERE invocation = 'i5'")
    db.close()
    view = await looked_at(path)
    for read in (view.journal("i0"), view.row("i4"), view.mail("i5")):
        with pytest.raises(StoreDamaged):
            await read
    assert {row.id for row in closed.facts["rows"]} - {row.id for row in await view.search(Filter())} == {"i4"}
    assert "i4" in view.set_aside
    assert len((await view.journal("i6")).frames) == 2
    await view.aclose()


@needs_root
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_look_at_a_file_in_a_folder_where_nothing_can_be_written(public: Path, closed: Copy) -> None:
    path = closed.write(public / "c")
    path.chmod(0o444)
    path.parent.chmod(0o555)

    def child() -> list[str]:
        os.setuid(NOBODY)
        asyncio.events._set_running_loop(None)  # noqa: SLF001

        async def use() -> list[str]:
            view = await looked_at(path)
            return [row.id for row in await view.search(Filter(limit=2))]

        return asyncio.run(use())

    assert in_child(child) == [row.id for row in closed.facts["rows"][:2]]


async def test_the_index_is_read_through_indexes(tmp_path: Path):
    path = tmp_path / "s.db"
    store = await opened(path)
    await fill(store)
    await store.aclose()
    listed = f"SELECT id FROM invocation WHERE status = 'running' AND {LIVELY} AND handler IN ('a', 'b')"
    with closing(sqlite3.connect(path)) as db:
        for (query, values), index in (
            ((listed, []), "by_status"),
            (("SELECT handler, count(*) FROM invocation GROUP BY handler", []), "COVERING INDEX invocation_by_handler"),
            ((f"SELECT status, count(*) FROM invocation WHERE {LIVELY} GROUP BY status", []), "by_status"),
            ((DUE_STARTS, [1.0, 10]), "invocation_due"),
            ((f"SELECT id FROM invocation WHERE {SETTLED} AND updated_at <= 5 ORDER BY updated_at", []), "settled"),
        ):
            plan = " ".join(row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {query}", values))
            assert index in plan, query
            assert "ORDER BY" not in plan, query


async def test_a_status_that_does_not_exist_finds_nothing(tmp_path: Path):
    store = await opened(tmp_path / "s.db")
    await fill(store)
    assert await store.search(Filter(status="x' OR '1' = '1")) == []  # type: ignore[arg-type]
    await store.aclose()


async def test_log_that_another_program_reads_stays_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "store.db"
    store = SqliteStore(str(path))
    await store.open()
    await store.submit([start("one")])
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM meta").fetchall()
        await store.aclose()
        assert path.with_name("store.db-wal").stat().st_size > 0
        store = SqliteStore(str(path))
        await store.open()
        assert "another program reads it, so its log goes on as an earlier process left it" in caplog.text
        assert await store.start("one") is not None
        await store.aclose()
