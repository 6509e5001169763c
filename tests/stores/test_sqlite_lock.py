"""One process serves a file, whatever name it is opened by, and at whatever instant."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import StoreDamaged, StoreError, StoreLocked
from perdure.stores.sqlite import SqliteStore, SqliteView
from perdure.stores.sqlite import lock as locks
from tests.stores.test_sqlite_file import OPEN, ROOT, in_child, opened, python, start

SUFFIXES = ("", "-wal", "-shm", "-lock", "-commit")
ROUNDS = 20


def modes(path: Path) -> dict[str, int]:
    return {
        suffix: stat.S_IMODE(os.stat(f"{path}{suffix}").st_mode)
        for suffix in SUFFIXES
        if os.path.exists(f"{path}{suffix}")
    }


def other_name(kind: str, path: Path, folder: Path) -> Path:
    name = folder / "elsewhere" / "other.db"
    name.parent.mkdir()
    match kind:
        case "symlink":
            name.symlink_to(path)
        case "symlink to a symlink":
            (folder / "between.db").symlink_to(path)
            name.symlink_to(folder / "between.db")
        case "hard link":
            os.link(path, name)
        case "hard link beside it":
            name = folder / "beside.db"
            os.link(path, name)
        case "folder that is a symlink":
            (folder / "elsewhere" / "folder").symlink_to(path.parent)
            name = folder / "elsewhere" / "folder" / path.name
        case _:
            raise AssertionError(kind)
    return name


KINDS = ["symlink", "symlink to a symlink", "hard link", "hard link beside it", "folder that is a symlink"]


@pytest.mark.parametrize("kind", KINDS)
async def test_other_name_of_a_served_file_is_refused_in_another_process_and_in_this_one(
    kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "s.db"
    store = await opened(path)
    await store.submit([start("a")])
    name = other_name(kind, path, tmp_path)
    said = (await asyncio.to_thread(python, OPEN, str(name))).stdout
    assert said.startswith(f"StoreLocked {os.getpid()} "), said
    with pytest.raises(StoreLocked) as raised:
        await opened(name)
    assert raised.value.pid == os.getpid()
    assert await store.submit([start("b")]) == [True], "the refusals took nothing from the one that serves"
    await store.aclose()
    again = await opened(name)
    assert await again.start("b") == start("b")
    await again.aclose()


async def test_a_link_to_nothing_makes_the_file_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "real.db")
    store = await opened(tmp_path / "link.db")
    await store.submit([start("a")])
    await store.aclose()
    store = await opened(tmp_path / "real.db")
    assert await store.start("a") == start("a")
    await store.aclose()


async def test_another_name_of_a_file_whose_log_was_not_merged_is_refused(tmp_path: Path) -> None:
    """SQLite keeps the log beside the name that was used: by another one, what is in it would be lost unseen."""
    path, link = tmp_path / "s.db", tmp_path / "link.db"
    done = python(KILLED, str(path))
    assert done.returncode == -signal.SIGKILL
    os.link(path, link)
    with pytest.raises(StoreDamaged, match=f"{path}-wal is not merged"):
        await opened(link)
    for name in (path, link, path):
        store = await opened(name)
        assert await store.start("a") == start("a")
        await store.aclose()


KILLED = """
import asyncio, os, signal, sys
from tests.stores.test_sqlite_file import opened, start
async def main():
    store = await opened(sys.argv[1])
    await store.submit([start("a")])
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


def process(program: str, path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def together(path: Path, count: int) -> list[str]:
    """Let `count` processes open a file at one instant and hold it until all have tried; return what each says."""
    program = (
        "import asyncio, sys\n"
        "from perdure.errors import StoreError\n"
        "from perdure.stores.sqlite import SqliteStore\n"
        "async def main():\n"
        "    store = SqliteStore(sys.argv[1])\n"
        "    print('ready', flush=True); sys.stdin.readline()\n"
        "    try:\n"
        "        await store.open()\n"
        "        print('opened', flush=True)\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__, getattr(error, 'pid', None), error, flush=True)\n"
        "    sys.stdin.readline()\n"
        "    await store.aclose()\n"
        "asyncio.run(main())\n"
    )
    processes = [process(program, path) for _ in range(count)]
    said: list[str] = []
    try:
        for each in processes:
            assert each.stdout is not None
            assert each.stdout.readline() == "ready\n"
        for each in processes:
            assert each.stdin is not None
            each.stdin.write("go\n")
            each.stdin.flush()
        for each in processes:
            assert each.stdout is not None
            said.append(f"{each.pid} {each.stdout.readline()}")
    finally:
        for each in processes:
            each.communicate("end\n")
    return said


@pytest.mark.parametrize("exists", [False, True])
def test_of_processes_that_open_a_file_at_one_instant_one_serves_and_the_others_are_told_its_pid(
    tmp_path: Path, exists: bool
) -> None:
    for round in range(ROUNDS // 4):
        path = tmp_path / f"{round}.db"
        if exists:
            python(OPEN, str(path))
        said = together(path, 3)
        owners = [each.split()[0] for each in said if each.endswith("opened\n")]
        assert len(owners) == 1, said
        refused = [each for each in said if not each.endswith("opened\n")]
        assert all(each.split()[1:3] == ["StoreLocked", owners[0]] for each in refused), said


async def test_of_two_openings_at_one_instant_in_one_process_one_serves(tmp_path: Path) -> None:
    for round in range(ROUNDS):
        stores = [SqliteStore(str(tmp_path / f"{round}.db")) for _ in range(3)]
        found = await asyncio.gather(*(store.open() for store in stores), return_exceptions=True)
        assert [type(each) for each in found if each is not None] == [StoreLocked, StoreLocked]
        for store, error in zip(stores, found, strict=True):
            if error is None:
                assert await store.submit([start("a")]) == [True]
            await store.aclose()


async def test_a_stopped_owner_keeps_its_file_and_a_killed_one_does_not(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    program = (
        "import asyncio, sys\n"
        "from perdure.stores.sqlite import SqliteStore\n"
        "async def main():\n"
        "    await SqliteStore(sys.argv[1]).open()\n"
        "    print('opened', flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    owner = process(program, path)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "opened\n"
    os.kill(owner.pid, signal.SIGSTOP)
    with pytest.raises(StoreLocked) as raised:
        await opened(path)
    assert raised.value.pid == owner.pid
    owner.kill()
    owner.communicate()
    await (await opened(path)).aclose()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_a_forked_child_that_outlives_its_parent_does_not_keep_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    program = (
        "import asyncio, os, sys\n"
        "from perdure.stores.sqlite import SqliteStore\n"
        "async def main():\n"
        "    await SqliteStore(sys.argv[1]).open()\n"
        "    if (pid := os.fork()) == 0:\n"
        "        sys.stdin.read()\n"
        "        os._exit(0)\n"
        "    print(pid, flush=True)\n"
        "    os._exit(0)\n"
        "asyncio.run(main())\n"
    )
    parent = process(program, path)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.wait()
    os.kill(child, 0)  # it lives
    store = await opened(path)
    assert await store.submit([start("a")]) == [True]
    await store.aclose()
    parent.communicate("")


async def test_a_lock_that_an_earlier_release_holds_is_respected(tmp_path: Path) -> None:
    """An earlier release knows only the lock beside the file."""
    path = tmp_path / "s.db"
    await (await opened(path)).aclose()
    program = (
        "import os, sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1] + '-lock', isolation_level=None, timeout=0)\n"
        "db.execute('DELETE FROM owner'); db.execute('INSERT INTO owner VALUES (?)', (os.getpid(),))\n"
        "db.execute('BEGIN IMMEDIATE')\n"
        "print('locked', flush=True); sys.stdin.readline()\n"
    )
    earlier = process(program, path)
    assert earlier.stdout is not None
    assert earlier.stdout.readline() == "locked\n"
    with pytest.raises(StoreLocked) as raised:
        await opened(path)
    assert raised.value.pid == earlier.pid
    earlier.communicate("end\n")
    await (await opened(path)).aclose()


OPEN_AND_CLOSE = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
print(db.execute("SELECT id FROM invocation").fetchall())
db.close()
"""


async def test_views_and_refused_openings_of_the_serving_process_take_no_lock_away(tmp_path: Path) -> None:
    """Closing any descriptor of a file ends all locks that a process has on it."""
    path = tmp_path / "s.db"
    store = await opened(path)
    await store.submit([start("a")])
    for _ in range(3):
        view = SqliteView(str(path))
        await view.open()
        assert await view.start("a") == start("a")
        await view.aclose()
        with pytest.raises(StoreLocked):
            await opened(path)
    # Another process that opens the file and closes it again must not believe that it was the last.
    assert "a" in (await asyncio.to_thread(python, OPEN_AND_CLOSE, str(path))).stdout
    assert os.path.exists(f"{path}-wal")
    await store.submit([start("b")])
    await store.aclose()
    store = await opened(path)
    assert await store.start("b") == start("b")
    await store.aclose()
    parts: Any = locks
    assert not parts._used  # noqa: SLF001  nothing is kept of files that are closed


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777])
async def test_a_new_file_and_all_beside_it_are_its_owners_alone_whatever_the_umask(mask: int, tmp_path: Path) -> None:
    os.umask(mask)
    store = await opened(tmp_path / "s.db")
    await store.submit([start("a")])
    assert modes(tmp_path / "s.db") == dict.fromkeys(SUFFIXES, 0o600)
    await store.backup(str(tmp_path / "copy.db"))
    assert modes(tmp_path / "copy.db") == {"": 0o600}
    await store.aclose()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o660, 0o644])
async def test_a_file_that_exists_keeps_its_mode_and_gives_it_to_those_beside_it(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    await (await opened(path)).aclose()
    for each in tmp_path.iterdir():
        if each != path:
            each.unlink()
    path.chmod(mode)
    store = await opened(path)
    await store.submit([start("a")])
    assert modes(path) == dict.fromkeys(SUFFIXES, mode)
    await store.aclose()


@pytest.mark.skipif(os.getuid() != 0, reason="takes root, to give files away")
async def test_root_leaves_no_file_that_the_owner_of_the_store_cannot_write(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    await (await opened(path)).aclose()
    for each in tmp_path.iterdir():
        if each != path:
            each.unlink()
    os.chown(path, 65_534, 65_534)
    store = await opened(path)
    await store.submit([start("a")])
    owners = {suffix: os.stat(f"{path}{suffix}").st_uid for suffix in SUFFIXES}
    await store.aclose()
    assert owners == dict.fromkeys(SUFFIXES, 65_534)


@pytest.mark.parametrize("name", ["100%.db", "what?.db", "a#b.db", "with space.db", b"\xff\xfe.db", "ü" * 60 + ".db"])
async def test_any_name_that_the_system_takes_can_be_served_looked_at_and_backed_up(
    name: str | bytes, tmp_path: Path
) -> None:
    path = os.path.join(str(tmp_path), os.fsdecode(name))
    store = await opened(path)
    await store.submit([start("a")])
    await store.backup(path + ".copy")
    with pytest.raises(StoreLocked) as raised:
        await opened(path)
    str(raised.value).encode()  # it can be printed
    view = SqliteView(path)
    await view.open()
    assert await view.start("a") == start("a")
    await view.aclose()
    await store.aclose()
    for each in (path, path + ".copy"):
        view = SqliteView(each)
        await view.open()
        assert await view.start("a") == start("a")
        await view.aclose()


async def test_an_opening_that_is_cancelled_at_any_moment_leaves_nothing_locked(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    for rounds in range(8):
        store = SqliteStore(str(path))
        opening = asyncio.create_task(store.open())
        for _ in range(rounds):
            await asyncio.sleep(0)
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        async with asyncio.timeout(10):
            while True:
                try:
                    again = await opened(path)
                except StoreLocked:
                    await asyncio.sleep(0.01)  # the thread that opens it is not done yet
                else:
                    break
        await again.aclose()


def test_a_store_can_be_opened_in_a_child_after_its_parent_has_closed_it(tmp_path: Path) -> None:
    path = tmp_path / "s.db"

    async def use() -> str:
        try:
            store = await opened(path)
        except StoreError as error:
            return str(error)
        await store.aclose()
        return "opened"

    assert asyncio.run(use()) == "opened"
    assert in_child(lambda: asyncio.run(use())) == "opened"


CLOSED_STREAMS = """
import asyncio, os, sys
from tests.stores.test_sqlite_file import opened, start
async def main():
    for stream in map(int, sys.argv[2]):
        os.close(stream)  # not before the loop has the descriptors that it needs
    store = await opened(sys.argv[1])
    await store.submit([start("a")])
    taken = [os.path.realpath(f"/proc/self/fd/{n}") for n in range(3) if os.path.exists(f"/proc/self/fd/{n}")]
    backup = asyncio.create_task(store.backup(sys.argv[1] + ".copy"))
    await backup
    await store.aclose()
    return taken
taken = asyncio.run(main())
os._exit(any(sys.argv[1] in each for each in taken))
"""


@pytest.mark.parametrize("streams", ["0", "1", "2", "01", "12", "012"])
def test_no_file_of_a_store_takes_the_place_of_a_closed_standard_stream(streams: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CLOSED_STREAMS, str(tmp_path / "s.db"), streams],
        cwd=ROOT,
        check=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert done.returncode == 0
    assert (tmp_path / "s.db.copy").exists()
