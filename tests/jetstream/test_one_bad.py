"""One bad thing never stops good ones: messages that nobody can read lie in every place of a store, and work goes on.

What a newer release wrote is requeued until a worker of that release takes it; what is damaged is named in the log.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from msgspec.structs import replace

from examples.services.nats_server import Server
from perdure import Client, Context, step, workflow
from perdure.connect import client_from
from perdure.errors import NewerJournal, StoreDamaged, StoreError
from perdure.stores import custody
from perdure.stores.jetstream import JetStreamStore
from perdure.stores.jetstream.journal.journals import Journals
from perdure.stores.jetstream.layout.facts import UNREADABLE, Facts, facts_of, lines_of, problem_of
from perdure.stores.port import Transition
from tests.jetstream.liveness import check_liveness
from tests.runtime.test_newer_journals import OldRelease as OldStore
from tests.runtime.test_newer_journals import worker_on

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.limit(120)


@workflow
async def asks(ctx: Context) -> int:
    return await ctx.awakeable(int)


@step
async def double(number: int) -> int:
    return 2 * number


@workflow
async def doubles(number: int) -> int:
    return await double(number)


@workflow
async def counts(ctx: Context) -> int:
    count = ctx.get("count", int, default=0) + 1
    ctx.set("count", count)
    return count


class Site:
    """A store, a client on it, and the streams below."""

    def __init__(self, nats: Server, namespace: str) -> None:
        self.nats = nats
        self.namespace = namespace
        self.stores: list[JetStreamStore] = []
        self.client = self.another()

    def another(self) -> Client:
        """Return a client with a store of its own, as another process has."""

        def store() -> JetStreamStore:
            made = JetStreamStore([self.nats.url], namespace=self.namespace, shards=2)
            self.stores.append(made)
            return made

        return client_from(store)

    @property
    def store(self) -> JetStreamStore:
        return self.stores[0]

    async def suspended(self, count: int) -> list[Any]:
        """Start invocations that wait for an awakeable each."""
        handles = [await self.client.start(asks) for _ in range(count)]
        for handle in handles:
            while (await handle.describe()).status != "suspended":
                await asyncio.sleep(0.01)
        return handles

    async def set_status(self, id: str, status: str) -> None:
        """Write the last frame of a journal again, with another status."""
        wire, layout = self.store.wire, self.store.layout
        subject = layout.journal(id)
        stream = layout.stream_of(subject)
        last = await wire.last(stream, subject)
        assert last is not None
        facts: Any = replace(facts_of(last.headers), status=status)
        await wire.delete(stream, last.sequence)
        await wire.store(subject, last.data, headers=lines_of(facts))

    async def resolve(self, handle: Any, value: int) -> None:
        [opened] = (await handle.describe()).awakeables
        await self.client.resolve(opened.id, value)


@pytest.fixture
async def site(nats: Server, namespace: str) -> AsyncIterator[Site]:
    made = Site(nats, namespace)
    async with made.client:
        await made.client.stats()
        yield made


async def logged(caplog: pytest.LogCaptureFixture, text: str) -> None:
    while text not in caplog.text:
        await asyncio.sleep(0.01)


# --- statuses ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("line", "kind", "status"),
    [
        (b'{"id":"a","status":"hibernating","kind":"frame","number":3}', "frame", "hibernating"),
        (b'{"id":"a","status":"running","kind":"frame","later":[1]}', "frame", "running"),
        (b'{"id":"a","status":7}', "unreadable", "pending"),
        (b'{"id":5,"status":"hibernating"}', "unreadable", "pending"),
        (b'{"id":"a","status":""}', "unreadable", "pending"),
        (b"[]", "unreadable", "pending"),
        (b"", "unreadable", "pending"),
        (b"\xff\xfe{", "unreadable", "pending"),
    ],
)
def test_header_of_any_content_is_read_without_an_error(line: bytes, kind: str, status: str) -> None:
    facts = facts_of(b"NATS/1.0\r\nPerdure: " + line + b"\r\n\r\n")
    assert (facts.kind, facts.status) == (kind, status)
    assert bool(problem_of(facts)) == ((kind, status) != ("frame", "running"))


def test_message_without_a_header_of_perdure_is_unreadable() -> None:
    assert facts_of(b"NATS/1.0\r\n\r\n") == facts_of(b"") == UNREADABLE


NEWER = """
import asyncio, sys
from perdure.connect import client_from
from perdure.stores.jetstream import JetStreamStore
from perdure.stores.jetstream.layout import facts
from tests.jetstream.test_one_bad import asks

facts.STATUSES = facts.STATUSES | {"hibernating"}

async def main():
    store = JetStreamStore([sys.argv[1]], namespace=sys.argv[2], shards=2)
    async with client_from(lambda: store) as client, client.worker(asks):
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_status_of_a_newer_release_is_requeued_and_goes_on_with_a_worker_of_that_release(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    client = site.client
    async with client.worker(asks):
        first, *others = await site.suspended(4)
        [opened] = (await first.describe()).awakeables
    await site.set_status(first.id, "hibernating")
    newer = None
    try:
        async with client.worker(asks, doubles):
            resolving = asyncio.ensure_future(client.resolve(opened.id, 1))
            await logged(caplog, "its status is 'hibernating': a newer release wrote this")
            await asyncio.gather(*(site.resolve(each, 2) for each in others))
            assert [await each.result() for each in others] == [2, 2, 2]
            assert await client.run(doubles, 2) == 4
            stats = await client.stats()
            assert (stats.by_status, stats.is_current) == ({"hibernating": 1, "completed": 4}, True)
            assert first.id in [each.id async for each in client.list(handler="asks")]
            assert not resolving.done()
            command = [sys.executable, "-c", NEWER, site.nats.url, site.namespace]
            newer = await asyncio.create_subprocess_exec(*command, cwd=ROOT)
            await resolving
            assert await first.result() == 1
    finally:
        if newer is not None:
            newer.kill()
            await newer.wait()
    await check_liveness(site.store)


# --- entries and requests ---------------------------------------------------------------------------------------------
class OldRelease(Journals):
    """Reads journals as a release does that does not know what some have."""

    unreadable: set[str]
    refused: list[str]

    async def read(self, id: str) -> Any:
        if id in self.unreadable:
            self.refused.append(id)
            raise NewerJournal.of("entry", "signed", id)
        return await super().read(id)


def make_old(store: JetStreamStore, *ids: str) -> OldRelease:
    journals: Any = vars(store)["_journals"]
    journals.__class__ = OldRelease
    journals.unreadable, journals.refused = {*ids}, []
    return journals


@pytest.mark.parametrize("newer_comes_first", [False, True])
async def test_journal_with_an_entry_of_a_newer_release_goes_on_with_a_worker_of_that_release(
    site: Site, newer_comes_first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with site.client.worker(asks):
        handles = await site.suspended(3)
        opened = [(await each.describe()).awakeables[0].id for each in handles]
    async with site.another() as older:
        await older.stats()
        old = make_old(site.stores[1], handles[0].id)
        async with older.worker(asks):
            resolving = [asyncio.ensure_future(site.client.resolve(id, n)) for n, id in enumerate(opened[1:], 1)]
            if not newer_comes_first:
                resolving.append(asyncio.ensure_future(site.client.resolve(opened[0], 0)))
                await logged(caplog, "handed back, for a worker that can run it")
                await asyncio.sleep(1)
                assert len(old.refused) < 5, "it spins"
                assert not resolving[-1].done()
            async with site.another() as newer, newer.worker(asks):
                if newer_comes_first:
                    await newer.resolve(opened[0], 0)
                await asyncio.gather(*resolving)
                assert [await each.result() for each in handles] == [0, 1, 2]


async def test_message_with_a_request_of_a_newer_release_waits_and_stops_no_other(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    store = site.store
    async with site.client.worker(asks, doubles):
        [handle] = await site.suspended(1)
        data = msgspec.msgpack.encode(["m1", handle.id, 0.0, ["teleport", "Mars"]])
        await store.wire.store(
            store.layout.message(handle.id, "m1"), data, headers=lines_of(Facts(handle.id, kind="message"))
        )
        await logged(caplog, "this release does not know the request 'teleport'")
        await site.resolve(handle, 3)
        assert await handle.result() == 3
        assert await store.mail(handle.id) == []
        assert await site.client.run(doubles, 1) == 2


# --- messages by hand -------------------------------------------------------------------------------------------------
JUNK = (b"", b"\xff\x00 no message at all", b"\x93\xa1a\xa1b\xa1c", msgspec.msgpack.encode({"a": 1}))
HEADERS = (b"", b"Perdure: {]\r\n", lines_of(Facts("nobody", "doubles")), lines_of(Facts("nobody", kind="teleported")))


async def test_messages_with_junk_in_every_place_stop_nothing(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    client, store = site.client, site.store
    wire, layout = store.wire, store.layout
    async with client.worker(asks, doubles, counts):
        handles = await site.suspended(2)
        number = 0
        for data in JUNK:
            for headers in HEADERS:
                number += 1
                subjects = [
                    layout.journal(f"junk{number}"),
                    layout.start("doubles", f"junk{number}"),
                    layout.message(handles[0].id, f"junk{number}"),
                    layout.message(f"junk{number}", "message"),
                    layout.wake(f"junk{number}", "=due"),
                    layout.passed_on("doubles", f"junk{number}", "message"),
                    layout.nudge(f"junk{number}", "look"),
                    layout.nudge("k", f"junk{number}"),
                    layout.schedule(handles[1].id, f"junk{number}"),
                    layout.key(f"junk{number}"),
                    layout.answer(f"junk{number}"),
                    layout.blob(f"junk{number}", "blob", 0),
                ]
                for subject in subjects:
                    await wire.store(subject, data, headers=headers)
        assert await asyncio.gather(*(client.run(doubles, n) for n in range(20))) == [2 * n for n in range(20)]
        assert [await client.run(counts.using(key="k")) for _ in range(3)] == [1, 2, 3]
        await asyncio.gather(*(site.resolve(each, 5) for each in handles))
        assert [await each.result() for each in handles] == [5, 5]
        assert (await client.stats()).is_current
        await store.purge(store.clock.now(), limit=100)
    assert "is requeued for a worker that can act on it" in caplog.text


async def test_journal_that_ends_with_junk_is_that_invocations_problem_alone(site: Site) -> None:
    wire, layout = site.store.wire, site.store.layout
    async with site.client.worker(asks):
        bad, good = await site.suspended(2)
        opened = [(await each.describe()).awakeables[0].id for each in (bad, good)]
        junk = await wire.store(layout.journal(bad.id), b"junk")
        resolving = asyncio.ensure_future(site.client.resolve(opened[0], 1))
        await site.client.resolve(opened[1], 2)
        assert await good.result() == 2
        await wire.delete(layout.stream_of(layout.journal(bad.id)), junk)
        await resolving
        assert await bad.result() == 1


@pytest.mark.parametrize("error", [NewerJournal, StoreDamaged])
async def test_invocation_whose_journal_was_repaired_goes_on_with_the_worker_that_declined_it(
    site: Site, error: type[StoreError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(custody, "DECLINED_SECONDS", 0.1)
    async with site.client.worker(asks):
        [handle] = await site.suspended(1)
    old = OldStore(cast("Any", site.store), error)
    old.unreadable = {handle.id}
    async with worker_on(old, asks):
        resolving = asyncio.ensure_future(site.resolve(handle, 1))
        while not old.refused:
            await asyncio.sleep(0.01)
        old.unreadable = set()  # repaired
        assert await handle.result() == 1
        await resolving


# --- effects ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("error", [ZeroDivisionError("by zero"), KeyError("x"), RecursionError(), MemoryError()])
async def test_unexpected_error_while_effects_are_written_is_logged_and_they_are_tried_again(
    site: Site, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    commits = site.store.commits
    try_effects = commits.try_effects
    failed: list[str] = []

    async def fails_twice(transition: Transition) -> None:
        if len(failed) < 2:
            failed.append(transition.id)
            raise error
        await try_effects(transition)

    async with site.client.worker(asks, doubles):
        [handle] = await site.suspended(1)
        commits.try_effects = fails_twice
        await site.resolve(handle, 4)
        assert await handle.result() == 4
        assert await site.client.run(doubles, 1) == 2
    assert set(failed) == {handle.id}
    assert type(error).__name__ in caplog.text
    assert "Traceback" in caplog.text


async def test_unexpected_error_while_the_end_of_a_journal_is_read_is_told_to_the_worker(site: Site) -> None:
    inside = vars(site.store.commits)
    journals: Journals = inside["_journals"]
    failed: list[str] = []

    class FailsOnce:
        def __getattr__(self, name: str) -> Any:
            return getattr(journals, name)

        async def tail(self, id: str) -> Any:
            if id not in failed:
                failed.append(id)
                raise ZeroDivisionError
            return await journals.tail(id)

    async with site.client.worker(asks):
        [handle] = await site.suspended(1)
        [opened] = (await handle.describe()).awakeables
        journals.forget(handle.id)
        inside["_journals"] = FailsOnce()
        resolving = asyncio.ensure_future(site.client.resolve(opened.id, 4))
        assert await handle.result() == 4
        await resolving
    assert failed
