"""Streams as users see them: typed items, room, limits, what fails, who reads."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from perdure import Client, Context, Handle, Retry, StreamItem, connect, step, step_info, stream, workflow
from perdure.core.exported import load
from perdure.core.streams import BATCH_BYTES, ITEM_LIMIT_BYTES, Batch, items_of
from perdure.errors import (
    BadId,
    CalledOutsideWorkflow,
    InvalidOption,
    IoInWorkflow,
    LimitExceeded,
    StoreDamaged,
    StoreUnavailable,
    Undecodable,
    Unencodable,
    UnknownInvocation,
)
from perdure.operations.local import store_behind
from perdure.runtime import streams
from perdure.stores import streams as stored
from perdure.testing import Environment, replay

ONCE = Retry(max_attempts=1)


@dataclass
class Token:
    text: str


@pytest.fixture(params=["memory", "sqlite"])
async def client(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Client]:
    async with connect("memory:" if request.param == "memory" else f"sqlite:{tmp_path}/app.db") as made:
        yield made


async def values(handle: Handle[Any], name: str, type: Any = Any, **options: Any) -> list[Any]:
    return [item.value async for item in handle.stream(name, type, **options)]


# --- writing ----------------------------------------------------------------------------------------------------------
@step
async def answer(prompt: str) -> str:
    tokens = stream("tokens", Token)
    for word in prompt.split():
        tokens.write(Token(word))
        await tokens.drain()
    return prompt.upper()


@step
def answer_in_a_thread(prompt: str) -> int:
    tokens = stream("tokens", Token | None)
    for word in prompt.split():
        tokens.write(Token(word))
    tokens.write(None)
    return step_info().number


@workflow
async def chat(ctx: Context, prompt: str) -> str:
    ctx.stream("status", str).write("thinking")
    answered = await answer(prompt)
    await answer_in_a_thread(prompt)
    return answered


async def test_items_are_typed_and_tell_who_wrote_them(client: Client) -> None:
    async with client.worker(chat):
        handle = await client.start(chat, "a b")
        items = [item async for item in handle.stream("tokens", Token | None)]
        assert items == [
            StreamItem(0, Token("a"), 0, 1),
            StreamItem(1, Token("b"), 0, 1),
            StreamItem(2, Token("a"), 1, 1),
            StreamItem(3, Token("b"), 1, 1),
            StreamItem(4, None, 1, 1),
        ]
        assert [item async for item in handle.stream("status")] == [StreamItem(0, "thinking", None, 1)]
        described = await handle.describe()
        assert described.streams == {"status": 1, "tokens": 5}
        assert [each.number for each in described.journal] == [0, 1]


async def test_reading_begins_anywhere_and_a_stream_that_nobody_wrote_is_empty(client: Client) -> None:
    async with client.worker(chat):
        handle = await client.start(chat, "a b c")
        await handle.result()
        tokens = ["a", "b", "c", "a", "b", "c", None]
        for start in range(9):
            found = await values(handle, "tokens", Token | None, start=start)
            assert [each and each.text for each in found] == tokens[start:]
        assert await values(handle, "nothing") == []


async def test_step_is_a_plain_function_outside_of_a_workflow() -> None:
    assert await answer("a b") == "A B"
    tokens = stream("tokens", int)
    tokens.write(1)
    tokens.write_nowait(2)
    await tokens.drain()
    assert tokens.dropped == 0
    with pytest.raises(Unencodable, match="an item of stream 'tokens' is a str"):
        tokens.write("x")  # type: ignore[arg-type]
    with pytest.raises(BadId, match="the name of a stream must have"):
        stream("", int)


@workflow
async def confused(ctx: Context, how: str) -> str:
    try:
        if how == "stream":
            stream("tokens", str)
        else:
            ctx.stream("tokens", int).write("x")  # type: ignore[arg-type]
    except (CalledOutsideWorkflow, Unencodable) as error:
        return str(error)
    return "nothing"


async def test_mistakes_in_a_body_are_told_there(client: Client) -> None:
    async with client.worker(confused):
        told = await client.run(confused, "stream")
        assert told == "stream('tokens', …) is for steps: in the body of workflow 'confused', call ctx.stream"
        assert "an item of stream 'tokens' is a str" in await client.run(confused, "type")


async def test_reading_wants_what_there_is(client: Client) -> None:
    async with client.worker(chat):
        handle = await client.start(chat, "a")
        await handle.result()
        for start in (-1, True, "0"):
            with pytest.raises(InvalidOption, match="give the number of an item, from 0"):
                handle.stream("tokens", start=start)  # type: ignore[arg-type]
        with pytest.raises(Undecodable):
            await values(handle, "tokens", int)
        with pytest.raises(UnknownInvocation):
            await values(client.handle("nobody"), "tokens")
        with pytest.raises(BadId):
            handle.stream("\n")


@workflow
async def reads(ctx: Context) -> None:
    client_of_body[0].handle("x").stream("tokens")


client_of_body: list[Client] = []


async def test_streams_are_not_read_in_a_body(client: Client) -> None:
    client_of_body[:] = [client]
    async with client.worker(reads):
        with pytest.raises(IoInWorkflow, match=r"handle.stream\(\) was called in the body"):
            await client.run(reads)


# --- room -------------------------------------------------------------------------------------------------------------
class Appends:
    """What a store has appended; it can be stopped, or made to fail."""

    def __init__(self, client: Client) -> None:
        self.batches: list[Batch] = []
        self.go = asyncio.Event()
        self.go.set()
        self.faults: list[Exception] = []
        self._client = client

    async def __aenter__(self) -> Appends:
        self._streams: Any = (await store_behind(self._client.operations)).streams
        self._append = self._streams.append
        self._streams.append = self.append
        return self

    async def __aexit__(self, *_: object) -> None:
        self._streams.append = self._append
        self.go.set()

    async def append(self, id: str, epoch: int, batch: Batch, /) -> None:
        await self.go.wait()
        if self.faults:
            raise self.faults.pop(0)
        self.batches.append(batch)
        await self._append(id, epoch, batch)


LARGE = "x" * 100_000
progress: list[Any] = []
gates: list[threading.Event] = []


@step
async def writes_much(count: int) -> int:
    tokens = stream("tokens", str)
    for n in range(count):
        tokens.write(LARGE)
        await tokens.drain()
        progress.append(n)
    return count


@step
def writes_much_in_a_thread(count: int) -> int:
    tokens = stream("tokens", str)
    for n in range(count):
        tokens.write(LARGE)
        progress.append(n)
    return count


@step
async def never_waits(count: int) -> int:
    tokens = stream("tokens", str)
    for _ in range(count):
        tokens.write_nowait(LARGE)
    await asyncio.sleep(0)
    return tokens.dropped


@workflow
async def much(how: str, count: int) -> int:
    return await {"task": writes_much, "thread": writes_much_in_a_thread, "never": never_waits}[how](count)


@pytest.mark.parametrize("how", ["task", "thread"])
async def test_step_that_writes_faster_than_the_store_takes_it_waits_for_room(client: Client, how: str) -> None:
    progress.clear()
    async with client.worker(much), Appends(client) as appends:
        appends.go.clear()
        handle = await client.start(much, how, 40)
        room = streams.ROOM_BYTES // len(LARGE)
        while len(progress) < room:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        assert len(progress) <= room + 1
        appends.go.set()
        assert await handle.result() == 40
        assert await values(handle, "tokens", str) == [LARGE] * 40


async def test_item_that_finds_no_room_is_dropped_and_counted_where_nothing_waits(client: Client) -> None:
    async with client.worker(much), Appends(client) as appends:
        appends.go.clear()
        handle = await client.start(much, "never", 40)
        await asyncio.sleep(0.05)
        appends.go.set()
        dropped = await handle.result()
        assert 25 < dropped < 40
        assert len(await values(handle, "tokens", str)) == 40 - dropped


async def test_items_are_stored_in_batches(client: Client) -> None:
    async with client.worker(chat), Appends(client) as appends:
        await client.run(chat, " ".join(["word"] * 2_000))
    assert len(appends.batches) < 40
    assert max(len(each.data) for each in appends.batches) <= BATCH_BYTES + 100
    of_first = [each for each in appends.batches if each.step == 0]
    assert [each.first for each in of_first] == [sum(b.count for b in of_first[:n]) for n in range(len(of_first))]
    assert sum(len(items_of(each)) for each in of_first) == 2_000


async def test_slow_reader_holds_nobody_up(client: Client) -> None:
    async with client.worker(much):
        handle = await client.start(much, "task", 60)
        async with aclosing(handle.stream("tokens", str)) as slow:
            assert (await anext(slow)).offset == 0
            assert await handle.result() == 60  # though it reads no further
            assert len(await values(handle, "tokens")) == 60
            assert [item.offset async for item in slow] == [*range(1, 60)]


# --- limits -----------------------------------------------------------------------------------------------------------
@step(retry=ONCE)
async def writes(sizes: Sequence[int]) -> int:
    tokens = stream("tokens", bytes)
    for size in sizes:
        tokens.write(bytes(size))
        await tokens.drain()
    return len(sizes)


@workflow
async def limited(ctx: Context, where: str, sizes: Sequence[int]) -> int:
    if where == "step":
        return await writes(sizes)
    for size in sizes:
        ctx.stream("tokens", bytes).write(bytes(size))
    return len(sizes)


@pytest.mark.parametrize("where", ["step", "body"])
async def test_item_that_is_too_large_fails_its_writer(client: Client, where: str) -> None:
    async with client.worker(limited):
        assert await client.run(limited, where, [ITEM_LIMIT_BYTES - 10]) == 1
        with pytest.raises(LimitExceeded, match="an item of stream 'tokens' takes 1,000,005 bytes, and the limit is"):
            await client.run(limited, where, [ITEM_LIMIT_BYTES])


@pytest.mark.parametrize("where", ["step", "body"])
async def test_full_stream_fails_its_writer(client: Client, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("perdure.stores.streams", "perdure.core.issuer"):
        monkeypatch.setattr(f"{module}.STREAM_LIMIT_BYTES", 250_000)
    async with client.worker(limited):
        assert await client.run(limited, where, [100_000] * 2) == 2
        handle = await client.start(limited, where, [100_000] * 3)
        with pytest.raises(LimitExceeded, match=r"stream 'tokens' has 300,\d+ bytes with what is written now"):
            await handle.result()
        assert len(await values(handle, "tokens")) == 2


# --- what fails -------------------------------------------------------------------------------------------------------
async def test_items_outlast_a_store_that_fails_for_a_while(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(streams, "RETRY_SECONDS", 0.01)
    async with client.worker(chat), Appends(client) as appends:
        appends.faults = [StoreUnavailable("away"), StoreUnavailable("away"), KeyError("odd")]
        handle = await client.start(chat, "a b c")
        await handle.result()
        assert [each.text for each in await values(handle, "tokens", Token | None) if each] == [*"abc"] * 2
    told = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert told == [
        f"stream tokens of invocation {handle.id} cannot be written, and is tried again until it can: away",
        f"stream tokens of invocation {handle.id} cannot be written, trying again",
    ]


async def test_step_fails_if_its_items_cannot_be_stored_for_a_reason_that_nobody_foresaw(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "RETRY_SECONDS", 0.001)
    async with client.worker(limited, chat), Appends(client) as appends:
        appends.faults = [KeyError("odd")] * 50
        with pytest.raises(KeyError, match="odd"):
            await client.run(limited, "step", [10, 20])
        appends.faults.clear()
        assert await client.run(chat, "a") == "A"  # others go on


@step(retry=ONCE, timeout=0.05)
def hangs_in_a_thread() -> None:
    tokens = stream("tokens", str)
    tokens.write("in time")
    gates[0].wait(30)
    tokens.write("late")
    tokens.write_nowait("late")
    progress.append(tokens.dropped)


@workflow
async def hanging() -> str:
    try:
        await hangs_in_a_thread()
    except TimeoutError:
        await answer("after that")
    return "over"


async def test_thread_that_outlives_its_step_writes_nothing_more(client: Client) -> None:
    gates[:] = [threading.Event()]
    progress.clear()
    async with client.worker(hanging):
        handle = await client.start(hanging)
        reader = asyncio.create_task(values(handle, "tokens", Token | str))
        assert await handle.result() == "over"
        gates[0].set()
        while not progress:
            await asyncio.sleep(0.005)
        assert progress == [1]
        assert await reader == await values(handle, "tokens", Token | str)
        assert await reader == ["in time", Token("after"), Token("that")]


@step
async def goes_on(ready: str) -> None:
    tokens = stream("tokens", int)
    for n in range(1_000_000):
        tokens.write(n)
        await asyncio.sleep(0.001)


@workflow
async def endless() -> None:
    await goes_on("x")


@pytest.mark.parametrize("force", [False, True])
async def test_reader_has_everything_when_the_invocation_is_cancelled(client: Client, force: bool) -> None:
    async with client.worker(endless):
        handle = await client.start(endless)
        reader = asyncio.create_task(values(handle, "tokens", int))
        async with aclosing(handle.stream("tokens")) as items:
            await anext(items)
        await handle.cancel(force=force)
        read = await reader
        assert read == [*range(len(read))]
        assert await values(handle, "tokens", int) == read


async def test_streams_are_gone_after_a_purge(client: Client) -> None:
    async with client.worker(chat):
        handle = await client.start(chat, "a")
        await handle.result()
        await handle.purge()
        with pytest.raises(UnknownInvocation):
            await values(handle, "tokens")


# --- beside other things ----------------------------------------------------------------------------------------------
async def test_restart_writes_streams_of_its_own(client: Client) -> None:
    async with client.worker(chat):
        first = await client.start(chat, "a b")
        await first.result()
        again = await first.restart(chat.bind("c"))
        await again.result()
        assert await values(again, "tokens", Token | None) == [Token("c"), Token("c"), None]
        assert len(await values(first, "tokens")) == 5


async def test_history_holds_what_the_body_wrote_and_not_what_steps_wrote(client: Client) -> None:
    async with client.worker(chat):
        handle = await client.start(chat, "a b")
        await handle.result()
        history = await handle.export()
    replay(chat, history)
    written = [(each.name, items_of(each)) for frame in load(history).frames for each in frame.written]
    assert written == [("status", [b"\xa8thinking"])]


@workflow
async def waits_long(ctx: Context) -> str:
    status = ctx.stream("status", str)
    status.write("begun")
    await asyncio.sleep(86_400)
    status.write("a day later")
    await status.drain()
    return "done"


async def test_environment_crashes_and_replays_and_each_item_is_written_once() -> None:
    async with Environment(waits_long) as env:
        handle = await env.client.start(waits_long)
        async with aclosing(handle.stream("status", str)) as items:
            assert (await anext(items)).value == "begun"
            await env.crash()
            await env.advance(86_400)
            assert await handle.result() == "done"
            assert [item.value async for item in items] == ["a day later"]


async def test_changed_code_may_write_other_items_on_replay_and_the_recorded_ones_stand(tmp_path: Path) -> None:
    def of(*texts: str) -> Any:
        @workflow(name="edited")
        async def edited(ctx: Context) -> str:
            for text in texts:
                ctx.stream("status", str).write(text)
            await asyncio.sleep(0.2)
            ctx.stream("status", str).write("end")
            return "done"

        return edited

    url = f"sqlite:{tmp_path}/app.db"
    async with connect(url) as client, client.worker(of("one")):
        handle = await client.start(of("one"))
        async with aclosing(handle.stream("status")) as items:
            await anext(items)
    async with connect(url) as client, client.worker(of("two", "three")):
        handle = client.handle(handle.id)
        assert await handle.result() == "done"
        assert await values(handle, "status", str) == ["one", "end"]


def test_streams_through_the_blocking_client(tmp_path: Path) -> None:
    client = connect(f"sqlite:{tmp_path}/app.db")
    with client.blocking(client.worker(chat)) as run:
        handle = run(client.start(chat, "a b"))
        assert [item.offset for item in run.each(handle.stream("tokens"))] == [0, 1, 2, 3, 4]


async def test_read_only_client_follows_a_file_that_another_serves(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path}/app.db"
    async with connect(url) as client, client.worker(much):
        handle = await client.start(much, "task", 3)
        async with connect(url, read_only=True) as looker:
            assert await values(looker.handle(handle.id), "tokens") == [LARGE] * 3


async def test_changed_row_is_damage_to_one_stream(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path}/app.db"
    async with connect(url) as client, client.worker(chat):
        handle = await client.start(chat, "a b")
        await handle.result()
    with sqlite3.connect(tmp_path / "app.db") as db:
        db.execute("UPDATE stream SET data = x'a178' WHERE name = 'tokens' AND position = 2")
    db.close()
    async with connect(url) as client:
        handle = client.handle(handle.id)
        assert await values(handle, "status") == ["thinking"]
        with pytest.raises(StoreDamaged, match=f"item 2 of stream 'tokens' of invocation '{handle.id}' was changed"):
            await values(handle, "tokens")


async def test_file_of_an_earlier_release_has_no_streams_until_it_is_served(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path}/app.db"
    async with connect(url) as client, client.worker(chat):
        handle = await client.start(chat, "a")
        await handle.result()
    with sqlite3.connect(tmp_path / "app.db") as db:
        db.execute("DROP TABLE stream")
    db.close()
    async with connect(url, read_only=True) as looker:
        assert await values(looker.handle(handle.id), "tokens") == []
    async with connect(url) as client, client.worker(chat):
        assert await values(await client.start(chat, "b"), "status") == ["thinking"]


def test_stored_chunk_that_does_not_decode_is_damage() -> None:
    with pytest.raises(StoreDamaged, match="a chunk of a stream of invocation 'i' does not decode"):
        stored.decode_chunk(b"\x01", "i")
