"""What invocations wait for, on JetStream: the headers of frames tell it, and other processes list it."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import DEVNULL

import pytest

from examples.services.nats_server import Server
from perdure import Client
from perdure.connect import client_from
from perdure.stores.jetstream import JetStreamStore
from tests import test_waits as everywhere
from tests.http.processes import ENVIRONMENT
from tests.test_waits import ALL, close, started, two, until

pytestmark = pytest.mark.limit(120)


@pytest.mark.parametrize(
    "name",
    [
        "each_kind_of_wait_is_listed_as_described",
        "step_that_is_tried_again_is_listed_with_its_attempt_and_when_it_is_due",
        "back_off_is_listed_while_another_step_runs",
        "wait_follows_answers_pauses_and_the_end_and_keeps_its_beginning",
        "another_worker_tells_the_same",
        "worker_that_stops_leaves_what_ran_for_another_one",
    ],
)
async def test_as_on_every_store(client: Client, name: str) -> None:
    await getattr(everywhere, f"test_{name}")(client)


@pytest.mark.slow
async def test_waits_are_listed_after_kill_9_and_told_by_the_next_worker(own_nats: Server) -> None:
    async with client_from(lambda: JetStreamStore([own_nats.url])) as client:
        await started(client, two)
        await started(client, everywhere.retries)
        command = (sys.executable, "-m", "perdure", "worker", everywhere.__file__, "--url", own_nats.url)
        process = await asyncio.create_subprocess_exec(*command, env=ENVIRONMENT, stdout=DEVNULL, stderr=DEVNULL)
        try:
            before = [await until(client, "two"), await until(client, "retries", attempt=3)]
        finally:
            process.kill()
            await process.wait()
        async with client_from(lambda: JetStreamStore([own_nats.url])) as other:
            assert [await everywhere.row_of(other, each.id) for each in before] == before
        async with client.worker(*ALL):
            await client.handle("two").pause()
            await client.handle("two").resume()
            row = await until(client, "two")
            assert row.waiting_for == before[0].waiting_for
            assert close(row.waiting_since, before[0].waiting_since)
