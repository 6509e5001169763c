"""The client itself: what it refuses in a body, after its end, and when its store is away; what it says of a start that
no worker serves; and that it keeps no process alive."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from perdure import Client, Context, connect, step, workflow
from perdure.connect import client_from
from perdure.core.journal import Message, Start
from perdure.errors import IoInWorkflow, StoreClosed, StoreError, StoreUnavailable
from perdure.runtime import unserved
from perdure.stores.memory import MemoryStore

PATIENCE = 30.0


@step
async def double(number: int) -> int:
    return 2 * number


@workflow
async def doubles(number: int) -> int:
    return await double(number)


@workflow
async def asks(ctx: Context) -> str:
    return await ctx.awakeable(str)


def program(tmp_path: Path, source: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, to its end."""
    file = tmp_path / "program.py"
    file.write_text(f"from perdure import connect, step, workflow\nimport asyncio, os, sys\n{source}")
    return subprocess.run(
        [sys.executable, *options, str(file)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


WORKFLOW = """
@step
def add(n: int) -> int:
    return n + 1

@workflow
async def adds(n: int) -> int:
    return await add(n)
"""


# --- never closed -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("holder", ["local", "global"])
def test_client_that_is_never_closed_lets_the_process_end_and_is_warned_of(tmp_path: Path, holder: str) -> None:
    done = program(
        tmp_path,
        WORKFLOW
        + f"""
async def main():
    {"global client" if holder == "global" else "pass"}
    client = connect("sqlite:never.db")
    worker = client.worker(adds)
    async with worker:
        print(await client.run(adds, 1), flush=True)

asyncio.run(main())
""",
        "-Wdefault::ResourceWarning",
    )
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr
    assert "ResourceWarning: unclosed client of sqlite:never.db" in done.stderr


def test_client_that_is_closed_is_not_warned_of(tmp_path: Path) -> None:
    done = program(
        tmp_path,
        WORKFLOW
        + """
async def main():
    async with connect("sqlite:closed.db") as client, client.worker(adds):
        print(await client.run(adds, 1))

asyncio.run(main())
""",
        "-Werror::ResourceWarning",
        "-Xdev",
    )
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr
    assert "unclosed client" not in done.stderr


@pytest.mark.parametrize("url", ["memory:", "sqlite:store.db"])
async def test_call_after_the_end_of_the_client_is_refused_and_opens_nothing(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with connect(url) as client:
        handle = await client.start(doubles, 1)
    for call in (client.run(doubles, 1), client.start(doubles, 1), client.stats(), handle.describe(), handle.cancel()):
        with pytest.raises(StoreClosed, match="connect again"):
            await call
    with pytest.raises(StoreClosed, match="connect again"):
        await client.__aenter__()
    if url != "memory:":
        async with connect(url) as another:  # its lock is free
            assert (await another.stats()).total == 1


async def test_client_can_be_closed_twice_and_before_it_was_opened() -> None:
    client = connect("memory:")
    await client.aclose()
    await client.aclose()
    with pytest.raises(StoreClosed):
        await client.stats()


async def test_client_that_is_closed_while_it_opens_leaves_nothing_open() -> None:
    may_open = asyncio.Event()

    class Slow(MemoryStore):
        closed = False

        async def open(self) -> None:
            await may_open.wait()

        async def aclose(self) -> None:
            Slow.closed = True

    client = client_from(Slow)
    waiting = asyncio.create_task(client.stats())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await client.aclose()
    with pytest.raises(StoreClosed):
        await waiting


# --- in a body --------------------------------------------------------------------------------------------------------
async def test_every_call_of_the_client_in_a_body_is_refused_and_names_what_to_do() -> None:
    refused: dict[str, str] = {}
    client = connect("memory:")

    @workflow
    async def meddles() -> None:
        handle = client.handle("x")
        calls: dict[str, Any] = {
            "run": lambda: client.run(doubles, 1),
            "start": lambda: client.start(doubles, 1),
            "run_all": lambda: client.run_all([doubles.bind(1)]),
            "page": client.page,
            "stats": client.stats,
            "state": lambda: client.state("k"),
            "resolve": lambda: client.resolve("x"),
            "reject": lambda: client.reject("x", "no"),
            "backup": lambda: client.backup("x"),
            "result": handle.result,
            "describe": handle.describe,
            "export": handle.export,
            "pause": handle.pause,
            "resume": handle.resume,
            "cancel": handle.cancel,
            "retry": handle.retry,
            "purge": handle.purge,
            "restart": handle.restart,
            "enter": client.__aenter__,
        }
        for name, call in calls.items():
            try:
                await call()
            except IoInWorkflow as error:
                refused[name] = str(error)
        for name, plain in {"list": client.list, "watch": client.watch, "watch one": handle.watch}.items():
            try:
                plain()
            except IoInWorkflow as error:
                refused[name] = str(error)
        try:
            client.worker(doubles)
        except IoInWorkflow as error:
            refused["worker"] = str(error)
        assert len(refused) == len(calls) + 4, refused

    async with client, client.worker(meddles, doubles), asyncio.timeout(PATIENCE):
        await client.run(meddles)
        assert "`await doubles(...)`" in refused["run"]
        assert "ctx.send(doubles, ...)" in refused["start"]
        assert "ctx.run_all(...)" in refused["run_all"]
        assert all("workflow 'meddles'" in text for text in refused.values())
        assert (await client.stats()).total == 1


async def test_client_may_be_called_in_a_step() -> None:
    client = connect("memory:")

    @step
    async def asks_the_client() -> int:
        return await client.run(doubles, 4)

    @workflow
    async def delegates() -> int:
        return await asks_the_client()

    async with client, client.worker(delegates, doubles), asyncio.timeout(PATIENCE):
        assert await client.run(delegates) == 8


# --- a store that is away ---------------------------------------------------------------------------------------------
class Away(MemoryStore):
    """A store that never answers."""

    def submit(self, starts: Sequence[Start], /) -> asyncio.Future[list[bool]]:
        return asyncio.get_running_loop().create_future()

    def post(self, message: Message, /) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()


class NeverOpens(MemoryStore):
    async def open(self) -> None:
        await asyncio.Event().wait()


async def test_start_and_message_wait_for_a_store_that_is_away_no_longer_than_the_timeout() -> None:
    async with client_from(Away, timeout=0.05) as client, asyncio.timeout(PATIENCE):
        for call in (client.run(doubles.using(id="d"), 1), client.start(doubles.using(id="d"), 1)):
            with pytest.raises(StoreUnavailable, match=r"start of invocation 'd' within 0\.05 s.*using\(id='d'\)"):
                await call
        with pytest.raises(StoreUnavailable, match="message for invocation 'd'"):
            await client.handle("d").cancel()
        group = await client.run_all([doubles.bind(1)])
        assert [each.status for each in group.results] == ["failed"]


async def test_store_that_does_not_open_is_waited_for_no_longer_than_the_timeout() -> None:
    client = client_from(NeverOpens, timeout=0.05)
    with pytest.raises(StoreUnavailable, match="could not be opened within"):
        await client.start(doubles, 1)
    with pytest.raises(StoreUnavailable, match="could not be opened within"):
        await client.run(doubles, 1)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "1"])
def test_timeout_that_is_no_time_is_refused(timeout: Any) -> None:
    with pytest.raises(ValueError, match="timeout"):
        connect("memory:", timeout=timeout)


# --- a start that no worker serves ------------------------------------------------------------------------------------
async def warned(caplog: pytest.LogCaptureFixture, text: str) -> str:
    async with asyncio.timeout(PATIENCE):
        while True:
            found = [each.getMessage() for each in caplog.records if text in each.getMessage()]
            if found:
                return found[0]
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("served", [True, False])
async def test_start_that_no_worker_serves_is_warned_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, served: bool
) -> None:
    monkeypatch.setattr(unserved, "UNSERVED_SECONDS", 0.05)
    async with connect("memory:") as client:
        worker = client.worker(asks)
        if served:
            await worker.__aenter__()
        await client.start(doubles.using(id="lonely"), 1)
        text = await warned(caplog, "none here serves workflow 'doubles'")
        assert "invocation lonely waits for a worker" in text
        assert ("served here: asks" if served else "served here: nothing") in text
        await worker.stop()
    assert caplog.records[-1].levelno == logging.WARNING


@workflow
async def starts_doubles(ctx: Context, how: str) -> None:
    asked = doubles.using(id="lonely", key="k" if "key" in how else None)
    if "send" in how:
        ctx.send(asked, 1)
        await double(1)
    elif "gather" in how:
        await asyncio.gather(double(1), asked(1))
    else:
        await asked(1)


@pytest.mark.parametrize("how", ["child", "send", "child with a key", "send with a key", "gather"])
@pytest.mark.parametrize("store", ["memory:", "sqlite"])
async def test_child_or_send_that_no_worker_serves_is_warned_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str, store: str
) -> None:
    monkeypatch.setattr(unserved, "UNSERVED_SECONDS", 0.05)
    async with connect(store if store == "memory:" else f"sqlite:{tmp_path}/wf.db") as client:
        async with client.worker(starts_doubles):
            await client.start(starts_doubles, how)
            text = await warned(caplog, "none here serves workflow 'doubles'")
            assert "invocation lonely waits for a worker" in text
            assert "served here: starts_doubles" in text
        assert len([each for each in caplog.records if "none here serves" in each.getMessage()]) == 1


async def test_child_that_is_served_is_not_warned_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unserved, "UNSERVED_SECONDS", 0.02)
    async with connect("memory:") as client, client.worker(starts_doubles), client.worker(doubles):
        for how in ("child", "send"):
            await client.run(starts_doubles, how)
        await asyncio.sleep(0.05)
    assert "none here serves" not in caplog.text


async def test_start_that_is_served_in_time_is_not_warned_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unserved, "UNSERVED_SECONDS", 0.02)
    async with connect("memory:") as client:
        handle = await client.start(doubles, 1)
        async with client.worker(doubles):
            assert await handle.result() == 2
            await asyncio.sleep(0.05)
    assert "none here serves" not in caplog.text


# --- backup -----------------------------------------------------------------------------------------------------------
async def test_backup_is_a_store_like_any_other(tmp_path: Path) -> None:
    async with connect(f"sqlite:{tmp_path / 'store.db'}") as client, client.worker(doubles):
        await client.run(doubles.using(id="a"), 1)
        await client.backup(tmp_path / "copy.db")
        await client.run(doubles.using(id="b"), 2)
        with pytest.raises(StoreError):
            await client.backup(tmp_path / "copy.db")
    async with connect(f"sqlite:{tmp_path / 'copy.db'}") as copy:
        assert [each.id async for each in copy.list()] == ["a"]
        assert await copy.handle("a", doubles).result() == 2


async def test_store_that_makes_no_backup_says_what_to_use(tmp_path: Path) -> None:
    async with connect("memory:") as client:
        with pytest.raises(StoreError, match="sqlite:PATH"):
            await client.backup(tmp_path / "copy.db")
    assert isinstance(client, Client)
