"""What the system does to a SQLite file: each refusal says what happened, to which file, and what to do."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import shutil
import socket
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from perdure.core.journal import Accepted, Frame
from perdure.errors import StoreDamaged, StoreError, StoreFull, StoreReadOnly
from perdure.stores.port import Filter, Transition, committed
from perdure.stores.sqlite import SqliteStore, SqliteView, faults
from perdure.stores.sqlite.faults import EXTENDED_CODES, SQLITE_CODES, explain
from tests.stores.test_sqlite_file import fill, in_child, looked_at, opened, python, refusal_of, start

OWNER, GUEST, GROUP = 60_001, 60_002, 60_000
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="takes root, to become somebody else")
forks = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


# --- every code -------------------------------------------------------------------------------------------------------
RESULTS = (
    *("ABORT", "AUTH", "BUSY", "CANTOPEN", "CONSTRAINT", "CORRUPT", "EMPTY", "ERROR", "FORMAT", "FULL", "INTERNAL"),
    *("INTERRUPT", "IOERR", "LOCKED", "MISMATCH", "MISUSE", "NOLFS", "NOMEM", "NOTADB", "NOTFOUND", "NOTICE", "PERM"),
    *("PROTOCOL", "RANGE", "READONLY", "SCHEMA", "TOOBIG", "WARNING"),
)
CODES = {
    name: value for name, value in vars(sqlite3).items() if name.startswith("SQLITE_") and name.split("_")[1] in RESULTS
}


def test_every_result_code_of_sqlite_is_explained() -> None:
    assert len(CODES) > 70
    for name, code in CODES.items():
        assert code & 0xFF in SQLITE_CODES, name
        error = sqlite3.OperationalError("SQLite's own words")
        error.sqlite_errorcode, error.sqlite_errorname = code, name
        said = explain("/data/store.db", error)
        assert isinstance(said, StoreError)
        text = str(said)
        assert text.startswith("store /data/store.db: "), text
        assert "SQLite's own words" in text, text
        assert name in text, text
        assert len(text.rpartition("): ")[2]) > 10, f"{text}: it does not say what to do"
    assert set(EXTENDED_CODES) <= set(CODES.values())


def test_every_error_of_the_system_is_explained() -> None:
    for code in errno.errorcode:
        text = str(explain("/data/store.db", OSError(code, os.strerror(code))))
        assert text.startswith("store /data/store.db: "), text
        assert os.strerror(code) in text, text
    for code, kind in (
        (errno.ENOSPC, StoreFull),
        (errno.EDQUOT, StoreFull),
        (errno.EACCES, StoreReadOnly),
        (errno.EROFS, StoreReadOnly),
    ):
        assert isinstance(explain("/s", OSError(code, "words")), kind)
    assert "ulimit -n" in str(explain("/s", OSError(errno.EMFILE, "words")))
    assert str(explain("/s", sqlite3.ProgrammingError("Cannot operate on a closed database."))).startswith("store /s:")


def test_what_is_already_explained_stays() -> None:
    error = StoreFull("it says so already")
    assert faults.explain("/s", error) is error


# --- what cannot be a store -------------------------------------------------------------------------------------------
async def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "file").write_text("x" * 200)
    for path, words in (
        (tmp_path / "pipe", "device, pipe or socket"),
        (tmp_path / "socket", "device, pipe or socket"),
        (Path("/dev/null"), "device, pipe or socket"),
        (tmp_path, "folder"),
        (tmp_path / "file" / "below", "folder"),
        (tmp_path / "none" / "s.db", "create it"),
        (tmp_path / ("n" * 300), "name is too long"),
    ):
        async with asyncio.timeout(10):
            error = await refusal_of(path)
        assert words in str(error), error
    assert isinstance(await refusal_of(tmp_path / "file"), StoreDamaged)


async def test_a_lock_file_that_is_damaged_is_named(tmp_path: Path) -> None:
    await (await opened(tmp_path / "s.db")).aclose()
    (tmp_path / "s.db-lock").write_bytes(b"garbage " * 1_000)
    error = await refusal_of(tmp_path / "s.db")
    assert "s.db-lock" in str(error)
    assert "remove it" in str(error)
    (tmp_path / "s.db-lock").unlink()
    await (await opened(tmp_path / "s.db")).aclose()


async def test_a_creation_that_was_cut_short_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
    assert path.stat().st_size > 0
    store = await opened(path)
    assert await store.submit([start("a")]) == [True]
    await store.aclose()
    (tmp_path / "empty.db").touch()
    store = await opened(tmp_path / "empty.db")
    assert await store.submit([start("a")]) == [True]
    await store.aclose()


# --- old copies -------------------------------------------------------------------------------------------------------
@pytest.fixture
async def left(tmp_path: Path) -> Path:
    """A folder with `s.db` as a killed process left it, `old.db`, a copy from before, and `older.db`."""
    folder = tmp_path / "live"
    folder.mkdir()
    path = folder / "s.db"
    store = await opened(path)
    await fill(store)
    await store.backup(str(tmp_path / "older.db"))
    await store.submit([start("x")])
    await store.aclose()
    shutil.copy(path, tmp_path / "old.db")
    store = await opened(path)
    for n in range(30):
        await store.submit([start(f"b{n}")])
    for name in ("s.db", "s.db-wal", "s.db-commit"):
        shutil.copy(folder / name, tmp_path / name)
    await store.aclose()
    return tmp_path


async def test_an_older_copy_under_a_newer_log_is_refused_and_left_as_it_is(left: Path) -> None:
    shutil.copy(left / "older.db", left / "s.db")
    before = [(left / name).read_bytes() for name in ("s.db", "s.db-wal")]
    error = await refusal_of(left / "s.db")
    assert isinstance(error, StoreDamaged)
    assert "older copy" in str(error)
    assert "s.db-wal" in str(error)
    assert [(left / name).read_bytes() for name in ("s.db", "s.db-wal")] == before, "the log was merged into it"
    for name in ("s.db-wal", "s.db-shm", "s.db-commit"):
        (left / name).unlink(missing_ok=True)
    store = await opened(left / "s.db")  # as the text says
    assert await store.start("i0") == start("i0")
    await store.aclose()


async def test_the_copy_that_a_log_continues_is_fine(left: Path) -> None:
    shutil.copy(left / "old.db", left / "s.db")
    store = await opened(left / "s.db")
    assert await store.start("b29") == start("b29")
    await store.aclose()


async def test_a_checkpoint_that_was_cut_short_where_the_commit_number_is_stored_is_repaired_by_the_log(
    left: Path,
) -> None:
    shutil.copy(left / "old.db", left / "s.db")
    with closing(sqlite3.connect(left / "old.db")) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'meta'").fetchone()
    with (left / "s.db").open("r+b") as file:
        file.seek((page - 1) * 4_096 + 3)
        file.write(b"\0\0")  # the page holds no rows
    with closing(sqlite3.connect(f"file:{left}/s.db?immutable=1", uri=True)) as db:
        assert db.execute("SELECT count(*) FROM meta").fetchone() == (0,)
    store = await opened(left / "s.db")
    assert await store.start("b29") == start("b29")
    await store.aclose()


async def test_a_log_without_its_shared_memory_is_recovered(left: Path) -> None:
    assert not (left / "s.db-shm").exists()
    view = await looked_at(left / "s.db")
    assert await view.start("b29") == start("b29")
    await view.aclose()
    assert not (left / "s.db-shm").exists(), "looking left something behind"
    store = await opened(left / "s.db")
    assert await store.start("b29") == start("b29")
    await store.aclose()


async def test_a_log_without_its_database_is_not_dropped(left: Path) -> None:
    (left / "s.db").unlink()
    (left / "s.db-commit").unlink()
    error = await refusal_of(left / "s.db")
    assert isinstance(error, StoreDamaged)
    assert "s.db-wal" in str(error)
    assert not (left / "s.db").exists()
    assert (left / "s.db-wal").stat().st_size > 0


# --- other users ------------------------------------------------------------------------------------------------------
@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder of a group: its members may write in it."""
    with tempfile.TemporaryDirectory() as name:
        os.chown(name, OWNER, GROUP)
        Path(name).chmod(0o2770)
        yield Path(name)


def as_user(uid: int, work: Callable[[], Any]) -> Any:
    """Run a coroutine function in a child process of another user, who is in the group."""

    def child() -> Any:
        os.setgroups([GROUP])
        os.setgid(GROUP)
        os.setuid(uid)
        asyncio.events._set_running_loop(None)  # noqa: SLF001
        return asyncio.run(work())

    return in_child(child)


async def said_by(path: Path) -> str:
    try:
        store = await opened(path)
        await store.submit([start("more")])
    except StoreError as error:
        return f"{type(error).__name__}: {error}"
    await store.aclose()
    return "written"


def made(path: Path, mode: int) -> None:
    async def work() -> None:
        store = await opened(path)
        await fill(store)
        await store.aclose()

    as_user(OWNER, work)
    path.chmod(mode)
    for each in path.parent.glob(f"{path.name}-*"):
        each.chmod(mode)


@needs_root
@forks
@pytest.mark.parametrize("mode", [0o640, 0o660])
def test_a_member_of_the_group_who_looks_at_a_stopped_file_leaves_nothing_behind(mode: int, shared: Path) -> None:
    path = shared / "s.db"
    made(path, mode)
    before = sorted(shared.iterdir())

    async def look() -> list[str]:
        view = SqliteView(str(path))
        await view.open()
        found = [row.id for row in await view.search(Filter(limit=100))]
        assert sorted(shared.iterdir()) == before, "while it is looked at"
        await view.aclose()
        return found

    assert "i0" in as_user(GUEST, look)
    assert sorted(shared.iterdir()) == before
    assert as_user(OWNER, lambda: said_by(path)) == "written"


@needs_root
@forks
@pytest.mark.parametrize("mode", [0o640, 0o660])
def test_a_member_of_the_group_who_looks_after_a_crash_leaves_nothing_behind(mode: int, shared: Path) -> None:
    path = shared / "s.db"

    async def crash() -> None:
        store = await opened(path)
        await fill(store)
        for name in ("s.db", "s.db-wal", "s.db-commit"):
            shutil.copy(shared / name, shared / f"kept-{name}")

    as_user(OWNER, crash)
    for each in shared.iterdir():
        if not each.name.startswith("kept-"):
            each.unlink()
    for each in shared.iterdir():
        each.rename(shared / each.name.removeprefix("kept-"))
    for each in shared.iterdir():
        each.chmod(mode)
    before = sorted(shared.iterdir())

    async def look() -> list[str]:
        view = await looked_at(path)
        found = [row.id for row in await view.search(Filter(limit=100))]
        await view.aclose()
        return found

    assert "i0" in as_user(GUEST, look)
    assert sorted(shared.iterdir()) == before
    assert as_user(OWNER, lambda: said_by(path)) == "written"


@needs_root
@forks
@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-lock", "-commit"])
def test_a_worker_that_cannot_write_a_file_beside_it_says_which_and_whose_it_is(suffix: str, shared: Path) -> None:
    path = shared / "s.db"
    made(path, 0o660)
    beside = shared / f"s.db{suffix}"
    beside.touch()
    os.chown(beside, GUEST, GUEST)
    beside.chmod(0o600)
    said = as_user(OWNER, lambda: said_by(path))
    assert said.startswith("StoreReadOnly"), said
    assert str(beside) in said, said
    assert f"user {GUEST}" in said, said
    beside.unlink()
    if suffix != "-commit":
        assert as_user(OWNER, lambda: said_by(path)) == "written"


async def test_a_view_sees_a_service_that_begins_ends_and_begins_again(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    store = await opened(path)
    await store.submit([start("a")])
    await store.aclose()
    view = await looked_at(path)
    assert await view.start("a") == start("a")
    for n in range(3):
        store = await opened(path)
        await store.submit([start(f"n{n}")])
        assert await view.start(f"n{n}") == start(f"n{n}")
        await store.aclose()
        assert await view.start(f"n{n}") == start(f"n{n}")
    (tmp_path / "copy").write_bytes(path.read_bytes())
    other = await opened(tmp_path / "other.db")
    await other.submit([start("other")])
    await other.aclose()
    os.replace(tmp_path / "other.db", path)
    for suffix in ("-wal", "-shm", "-commit"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    assert await view.start("other") == start("other"), "it still reads the file that was replaced"
    await view.aclose()


# --- the served file goes away ----------------------------------------------------------------------------------------
Gone = Callable[[Path], None]


def remove(path: Path) -> None:
    path.unlink()


def move(path: Path) -> None:
    path.rename(path.with_name("moved.db"))


def replace(path: Path) -> None:
    shutil.copy(path, path.with_name("copy.db"))
    os.replace(path.with_name("copy.db"), path)


def move_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("moved"))


def remove_all(path: Path) -> None:
    for each in path.parent.glob("s.db*"):
        each.unlink()


def remove_log(path: Path) -> None:
    Path(f"{path}-wal").unlink()


def copy_over(path: Path) -> None:
    """Do what `cp backup.db s.db` does: the file stays the same, and what is in it does not."""
    path.write_bytes((path.parent.parent / "before.db").read_bytes())


def copy_another_over(path: Path) -> None:
    path.write_bytes((path.parent.parent / "another.db").read_bytes())


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(0)


GONE = [remove, move, replace, move_folder, remove_all, remove_log, copy_over, copy_another_over, cut]


@pytest.mark.parametrize("gone", GONE)
async def test_nothing_is_acknowledged_once_the_served_file_is_gone(gone: Gone, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    store = await opened(folder / "s.db")
    await store.submit([start("a")])
    await store.backup(str(tmp_path / "before.db"))
    await store.submit([start("after")])
    await store.aclose()
    await (await opened(tmp_path / "another.db")).aclose()
    store = await opened(folder / "s.db")
    await store.submit([start("in the log")])
    waiting = store.watch("a")
    gone(folder / "s.db")
    with pytest.raises(StoreDamaged, match=r"(moved|removed|replaced|copied over it).*start it again"):
        await store.submit([start("b")])
    transition = Transition("a", 0, Frame("w", 1.0, [Accepted(start("a"))]), status="running")
    with pytest.raises(StoreDamaged):
        await committed(store, transition)
    with pytest.raises(StoreDamaged):
        await waiting
    with pytest.raises(StoreDamaged):
        await store.row("a")
    lies_there = (folder / "s.db").read_bytes() if (folder / "s.db").exists() else b""
    await store.aclose()
    if lies_there:
        assert (folder / "s.db").read_bytes() == lies_there, "the log was merged into what was put there"


async def test_a_file_that_only_seems_to_change_is_served_on(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    store = await opened(path)
    await store.submit([start("a")])
    os.utime(path)
    assert await store.submit([start("b")]) == [True]
    path.chmod(0o640)
    assert await store.submit([start("c")]) == [True]
    with closing(sqlite3.connect(path)) as db:  # as another program may
        assert db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[0] == 0
    assert await store.submit([start("d")]) == [True]
    for n in range(20):  # enough for checkpoints of our own
        await store.submit([start(f"i{n}-{k}", size=20_000) for k in range(20)])
    assert path.stat().st_size > 4_000_000
    assert await store.submit([start("e")]) == [True]
    await store.aclose()


async def test_a_store_without_work_notices_within_seconds_that_its_file_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.stores.sqlite.writer.LOOK_SECONDS", 0.01)
    store = await opened(tmp_path / "s.db")
    await store.submit([start("a")])
    waiting = store.watch("a")
    remove(tmp_path / "s.db")
    with pytest.raises(StoreDamaged, match="removed"):
        await asyncio.wait_for(waiting, 30)
    await store.aclose()


# --- limits -----------------------------------------------------------------------------------------------------------
FILE_LIMIT = """
import asyncio, resource, sys
from perdure.errors import StoreError
from tests.stores.test_sqlite_file import opened, start
async def main():
    store = await opened(sys.argv[1])
    await store.submit([start("before")])
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    for n in range(100):
        try:
            await store.submit([start(f"i{n}", size=8_000)])
        except StoreError as error:
            print(error)
            break
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert await store.submit([start("after")]) == [True]
    assert await store.start("before") is not None
    await store.aclose()
asyncio.run(main())
"""


def test_a_limit_on_the_size_of_files_is_told_and_passes(tmp_path: Path) -> None:
    done = python(FILE_LIMIT, str(tmp_path / "s.db"))
    assert done.returncode == 0, done.stderr
    assert "ulimit -f" in done.stdout, done.stdout
    assert str(tmp_path) in done.stdout


DESCRIPTORS = """
import asyncio, os, resource, sys
from perdure.errors import StoreError
from tests.stores.test_sqlite_file import opened, start
async def main():
    asyncio.get_running_loop()
    taken = []
    await (await opened(sys.argv[1])).aclose()  # everything is imported
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    try:
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    refused = 0
    while taken:
        try:
            store = await opened(sys.argv[1])
        except StoreError as error:
            refused += 1
            print(error)
            os.close(taken.pop())
        else:
            break
    print("refused", refused)
    assert refused > 3
    for each in taken:
        os.close(each)
    assert await store.submit([start("a")]) == [True]
    await store.aclose()
asyncio.run(main())
"""


def test_running_out_of_descriptors_is_told_at_every_point_of_an_opening_and_leaves_nothing_locked(
    tmp_path: Path,
) -> None:
    done = python(DESCRIPTORS, str(tmp_path / "s.db"))
    assert done.returncode == 0, done.stdout + done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith("store ")]
    assert all("ulimit -n" in line for line in told), done.stdout
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 64


@needs_root
async def test_a_file_on_a_read_only_mount_is_named_and_can_be_looked_at(tmp_path: Path) -> None:
    folder = tmp_path / "mounted"
    folder.mkdir()
    await (await opened(folder / "s.db")).aclose()
    mount = await asyncio.create_subprocess_exec("mount", "--bind", folder, folder, stderr=asyncio.subprocess.DEVNULL)
    if await mount.wait():
        pytest.skip("mounting is not permitted here")
    remount = await asyncio.create_subprocess_exec("mount", "-o", "remount,ro,bind", folder)
    try:
        assert await remount.wait() == 0
        error = await refusal_of(folder / "s.db")
        assert isinstance(error, StoreReadOnly)
        assert "read-only" in str(error)
        view = await looked_at(folder / "s.db")
        assert await view.search(Filter()) == []
        await view.aclose()
    finally:
        await (await asyncio.create_subprocess_exec("umount", "-l", folder)).wait()


async def test_a_relative_path_means_the_folder_of_the_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = SqliteStore("s.db")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    await store.open()
    await store.aclose()
    assert (tmp_path / "s.db").exists()
    assert not (tmp_path / "other" / "s.db").exists()
