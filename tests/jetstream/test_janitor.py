"""What should not happen is broken on purpose, on a real server: it is found, reported, and goes on.

Each test breaks one thing by the server's own means, or by a SIGKILL between two writes, sees that the liveness
checker finds it, and that a round of the janitor repairs it. The janitor that looks is that of a store without workers.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from examples.services.nats_server import Server
from perdure import Client, Context, workflow
from perdure.connect import client_from
from perdure.errors import WaitTimeout
from perdure.stores.jetstream import JetStreamStore
from perdure.stores.jetstream.keys.keys import Record
from perdure.stores.port import Filter
from tests.jetstream.liveness import breaches_of, check_liveness, phantoms_of, store_of
from tests.scenarios import bodies, keyed
from tests.scenarios.conftest import MakeLab
from tests.scenarios.lab import JetStreamLab, Lab, until

pytestmark = pytest.mark.limit(120)

Join = Callable[..., Awaitable[JetStreamLab]]

PATIENCE_SECONDS = 0.3
ROOT = Path(__file__).parents[2]


@workflow
async def child(ctx: Context) -> int:
    return await ctx.awakeable(int)


@workflow
async def parent() -> int:
    return 1 + await child()


@workflow
async def uses(name: str) -> str:
    return name


@pytest.fixture
async def store(nats: Server, namespace: str) -> AsyncIterator[JetStreamStore]:
    async with store_of(f"{nats.url}/{namespace}?replicas=1") as opened:
        yield opened


def client_on(store: JetStreamStore) -> Client:
    def another() -> JetStreamStore:
        return JetStreamStore(store.wire.servers, namespace=store.layout.namespace, shards=2)

    return client_from(another)


async def remove(store: JetStreamStore, *subjects: str) -> None:
    """Delete what is on these subjects of the queue, as an operator may."""
    for subject in subjects:
        assert await store.wire.purge(store.layout.stream_of(subject), subject) > 0, subject


async def look(store: JetStreamStore) -> list[str]:
    """Make a round, of which what is looked for is old enough."""
    await asyncio.sleep(PATIENCE_SECONDS)
    return await store.janitor.round(PATIENCE_SECONDS)


async def is_broken(store: JetStreamStore, why: str) -> None:
    """See that the checker of the liveness invariant finds it."""
    [breach] = await breaches_of(store)
    assert why in breach, breach


def place_of(lab: Lab) -> str:
    assert isinstance(lab, JetStreamLab)
    return lab.place


# --- invocations ------------------------------------------------------------------------------------------------------
async def test_timer_whose_schedule_was_deleted_fires(make_lab: MakeLab) -> None:
    lab = await make_lab()
    id = await lab.start(bodies.sleeps, "a", 1.2)
    await lab.has_status(id, "suspended")
    async with store_of(place_of(lab)) as store:
        await remove(store, store.layout.schedules(id))
        await asyncio.sleep(1.5)
        assert await lab.status(id) == "suspended"
        await is_broken(store, "no wake is set")
        [said] = await look(store)
        assert said.startswith(f"invocation {id} would never continue: something is due at ")
        await lab.result(id)
        await check_liveness(store)


async def test_message_that_its_consumer_passed_over_is_queued_again(store: JetStreamStore) -> None:
    """As releases before 2026-12-01 left it: a purge moves the server's floor past what was delivered before."""
    layout = store.layout
    ids = iter(id for id in map("{:03}".format, range(100)) if layout.partition(id) == 0)
    async with client_on(store) as client:
        async with client.worker(child):
            first, second, third = [await client.start(child.using(id=next(ids), key="k")) for _ in range(3)]
            for each in (second, third):
                with pytest.raises(WaitTimeout):
                    await each.pause(timeout=0.1)  # these wait in the worker for their invocations to begin
            await remove(store, layout.messages(third.id))
            for number in range(3):
                handle = await client.start(child.using(id=next(ids)))
                await until(lambda id=handle.id: store.search(Filter(id=id, status="suspended")))
                [awakeable] = (await handle.describe()).awakeables
                await client.resolve(awakeable.id, number)
                assert await handle.result() == number
        await is_broken(store, "consumer msg passed over")
        [said] = await look(store)
        assert said.startswith("1 messages in ")
        async with client.worker(child):
            [awakeable] = (await first.describe()).awakeables
            await client.resolve(awakeable.id, 1)
            await until(lambda: store.search(Filter(id=second.id, status="paused")))
            await second.resume()
        await check_liveness(store)


async def test_parent_whose_message_of_its_childs_end_was_deleted_is_told_again(store: JetStreamStore) -> None:
    async with client_on(store) as client:
        async with client.worker(parent, child) as both:
            handle = await client.start(parent)
            [row] = await until(lambda: store.search(Filter(handler="child", status="suspended")))
            await both.stop()
        async with client.worker(child):
            [awakeable] = (await client.handle(row.id).describe()).awakeables
            await client.resolve(awakeable.id, 6)
            assert await client.handle(row.id, child).result() == 6
            subject = store.layout.all_passed_on(handle.id)
            await until(lambda: store.wire.last(store.layout.stream_of(subject), subject))
            await asyncio.sleep(0.1)  # it goes as one message to those who serve parents: there are none
            await remove(store, subject)
            await is_broken(store, f"its parent {handle.id} waits for its outcome, and is not told")
            async with client.worker(parent):
                [said] = await look(store)
                assert f"its child {row.id} has ended without reporting its outcome; waking {row.id}" in said
                assert await handle.result() == 7
        await check_liveness(store)


async def test_claim_of_a_dead_process_whose_delivery_was_deleted_is_taken_over(make_lab: MakeLab) -> None:
    lab = await make_lab()
    lab.close_gate("before a-b")
    id = await lab.start(bodies.three, "a")
    await lab.noted("at before a-b")
    async with store_of(place_of(lab)) as store:
        await until(
            lambda: store.wire.last(store.layout.stream_of(store.layout.schedules(id)), store.layout.schedules(id))
        )
        await lab.kill()
        await store.wire.purge(store.layout.stream_of(store.layout.any_start(id)), store.layout.any_start(id))
        await remove(store, store.layout.schedules(id))
        await is_broken(store, "nothing would bring it to another worker")
        await lab.up()
        lab.open_gate("before a-b")
        [said] = await look(store)
        assert "it would not be delivered to another worker if its owner died" in said
        assert await lab.result(id) == ["A-A", "A-B", "A-C"]
        await check_liveness(store)


# --- keys -------------------------------------------------------------------------------------------------------------
async def test_position_in_a_key_queue_that_was_deleted_is_taken_again(make_lab: MakeLab) -> None:
    lab = await make_lab()
    lab.close_gate("before one")
    first = await lab.start(keyed.staged, "one", key="k")
    await lab.noted("at before one")
    second = await lab.start(keyed.staged, "two", key="k")
    async with store_of(place_of(lab)) as store:
        await remove(store, store.layout.key_positions("k", second))
        assert await phantoms_of(store) == [second]
        [said] = await look(store)
        assert said.startswith(f"invocation {second} would never begin: its id is reserved")
        lab.open_gate("before one")
        await lab.results([first, second])
        await check_liveness(store)


async def test_key_whose_note_was_deleted_is_granted(store: JetStreamStore) -> None:
    async with client_on(store) as client:
        handle = await client.start(uses.using(key="k"), "k")
        await remove(store, store.layout.nudge("k", "look"))
        await is_broken(store, "has no holder, and nobody will look at it")
        async with client.worker(uses):
            [said] = await look(store)
            assert "key 'k' would never be granted: it has no holder, but invocations wait for it" in said
            assert await handle.result() == "k"
        await check_liveness(store)


async def hold(store: JetStreamStore, name: str, holder: str) -> None:
    """Write that somebody holds a key, as if it had never been released."""
    await store.wire.store(store.layout.key(name), msgspec.msgpack.encode(Record(name, holder)))


async def test_key_that_was_not_released_by_who_ended_is_released(store: JetStreamStore) -> None:
    async with client_on(store) as client:
        async with client.worker(uses):
            first = await client.start(uses.using(key="k"), "k")
            await first.result()
        await hold(store, "k", first.id)
        second = await client.start(uses.using(key="k"), "k")
        await remove(store, store.layout.nudge("k", "look"))
        await is_broken(store, f"key k is held by {first.id}, which is completed and will not release it")
        async with client.worker(uses):
            [said] = await look(store)
            assert f"{first.id} has ended without releasing it; waking {first.id}" in said
            assert await second.result() == "k"
        await check_liveness(store)


async def test_key_that_is_held_by_nobody_that_exists_is_granted(store: JetStreamStore) -> None:
    async with client_on(store) as client:
        await hold(store, "k", "never")
        handle = await client.start(uses.using(key="k"), "k")
        await remove(store, store.layout.nudge("k", "look"))
        await is_broken(store, "key k is held by never, which does not exist")
        async with client.worker(uses):
            [said] = await look(store)
            assert "its holder never does not exist; granting it to the next" in said
            assert await handle.result() == "k"
        await check_liveness(store)


async def test_key_whose_grant_was_left_in_the_middle_is_handed_over(store: JetStreamStore) -> None:
    async with client_on(store) as client:
        handle = await client.start(uses.using(key="k"), "k")
        await remove(store, store.layout.nudge("k", "look"))
        await hold(store, "k", handle.id)
        await is_broken(store, f"was granted to {handle.id}, whom nobody will tell")
        async with client.worker(uses):
            [said] = await look(store)
            assert f"it was granted to {handle.id}, which was not woken" in said
            assert await handle.result() == "k"
        await check_liveness(store)


# --- ids that are taken by starts that are queued nowhere -------------------------------------------------------------
DIES = """
import asyncio, os, signal, sys
from perdure import Client
from perdure.connect import client_from
from perdure.errors import WaitTimeout
from perdure.stores.jetstream import JetStreamStore
from perdure.stores.jetstream.accepting import Accepting
from tests.jetstream.test_janitor import submitted

async def dies(*_):
    os.kill(os.getpid(), signal.SIGKILL)

Accepting.queue = Accepting._take_positions = dies

async def main():
    url, namespace, how = sys.argv[1:]
    client = client_from(lambda: JetStreamStore([url], namespace=namespace, shards=2))
    await client.start(submitted[how], "k")

asyncio.run(main())
"""


@workflow
async def says(name: str) -> str:
    return name


submitted: dict[str, Any] = {
    "chosen": says.using(id="mine"),
    "keyed": uses.using(key="k", id="mine"),
    "delayed": says.using(id="mine", delay=1.0),
    "delayed and keyed": uses.using(key="k", id="mine", delay=1.0),
}
"""What a client submits when it is killed between the two writes."""


@pytest.mark.parametrize("how", [*submitted])
async def test_start_whose_client_died_before_it_was_queued_begins(
    store: JetStreamStore, nats: Server, how: str
) -> None:
    command = [sys.executable, "-c", DIES, nats.url, store.layout.namespace, how]
    died = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, check=False)
    assert died.returncode == -9, died.stderr.decode()
    async with client_on(store) as client, client.worker(says, uses):
        handle: Any = client.handle("mine", says)
        await asyncio.sleep(0.3)
        assert (await handle.describe()).status in ("pending", "scheduled")
        assert await phantoms_of(store) == ["mine"]
        [said] = await until(lambda: look(store))  # one that falls due just now has changed just now
        assert "invocation mine would never begin: its id is reserved, but its start is queued nowhere" in said
        assert await handle.result(timeout=10) == "k"
        assert await phantoms_of(store) == []
        again = await client.start(submitted[how], "k")
        assert await again.result() == "k", "who asks again gets the same"
    await check_liveness(store)


# --- rounds -----------------------------------------------------------------------------------------------------------
async def test_healthy_work_is_left_alone(make_lab: MakeLab) -> None:
    lab = await make_lab()
    lab.close_gate("before holding")
    lab.close_gate("before parent-child-b")
    ids = await lab.start_many(bodies.sleeps, [[f"s{n}", 60.0] for n in range(20)])
    ids += await lab.start_many(bodies.asks, [[f"a{n}"] for n in range(20)])
    for id in ids:
        await lab.has_status(id, "suspended")
    await lab.ask("pause", id=ids[0])
    await lab.start(keyed.staged, "holding", key="k")
    await lab.noted("at before holding")
    for n in range(5):
        await lab.start(keyed.staged, f"in line {n}", key="k")
    await lab.start(bodies.three.using(id="later"), "later", delay=60.0)
    await lab.start(keyed.staged, "late", key="k", delay=60.0)
    await lab.start(bodies.parent, "parent")
    await lab.noted("at before parent-child-b")
    async with store_of(place_of(lab)) as store:
        await asyncio.sleep(1.5)  # older than a lease
        before = await journals_end(store)
        assert await look(store) == []
        assert await journals_end(store) == before
        await check_liveness(store)


async def journals_end(store: JetStreamStore) -> list[int]:
    names = [store.layout.stream(kind, shard) for kind in "JK" for shard in range(store.layout.partitions)]
    return [(await store.wire.api(f"STREAM.INFO.{name}"))["state"]["last_seq"] for name in names]


async def test_one_process_at_a_time_makes_rounds_and_says_what_it_did(make_lab: MakeLab, join: Join) -> None:
    lab = await make_lab(lease=0.5, janitor=1.0)
    other = await join(lab, lease=0.5, janitor=1.0)
    id = await lab.start(bodies.sleeps, "a", 1.2)
    await lab.has_status(id, "suspended")
    async with store_of(place_of(lab)) as store:
        await remove(store, store.layout.schedules(id))
    await lab.result(id)
    assert lab.report().count(f"invocation {id} would never continue") == 1
    assert other.folder == lab.folder, "they write into one report"
