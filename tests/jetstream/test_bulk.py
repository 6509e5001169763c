"""Bulk jobs by processes of their own, which are killed in the middle, on both stores that outlive a process."""

from __future__ import annotations

import asyncio
import logging
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import pytest

from examples.services.nats_server import Server
from perdure import BulkJob, Client, connect
from tests.serves_reports import report

pytestmark = pytest.mark.slow

COUNTS = {"sqlite": 5_000, "nats": 2_000}
AT_ONCE = 500


async def serve(url: str) -> Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "ignore", "-m", "tests.serves_reports", url, stdout=PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"serving\n"
    return process


async def end(process: Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.communicate()


async def reached(job: BulkJob, matched: int) -> int:
    """Wait until a job has counted so many invocations."""
    while (found := await job.progress()).matched < matched:
        await asyncio.sleep(0.01)
    assert found.ended_at is None, "the job was too fast to be killed in the middle"
    return found.matched


async def retries(client: Client, count: int) -> set[int]:
    found: set[int] = set()
    for begin in range(0, count, AT_ONCE):
        each = (client.handle(f"r{n}").describe() for n in range(begin, min(count, begin + AT_ONCE)))
        found |= {one.retries for one in await asyncio.gather(*each)}
    return found


@pytest.mark.parametrize("store", ["sqlite", "nats"])
async def test_job_whose_worker_is_killed_ends_and_retries_each_invocation_once(
    store: str, own_nats: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "perdure.worker")
    url, count = f"sqlite:{tmp_path}/app.db" if store == "sqlite" else own_nats.url, COUNTS[store]
    async with connect(url) as client:
        async with client.worker(report):
            calls = (report.using(id=f"r{n}").bind(str(tmp_path)) for n in range(count))
            assert (await client.run_all(calls, concurrency=AT_ONCE)).failed == count
        (tmp_path / "repaired").touch()
        id = (await client.bulk("retry", status="failed", handler="report")).id
    first = await serve(url)
    second: Process | None = None
    try:
        async with connect(url, read_only=True) as client, asyncio.timeout(300):
            job = await client.bulk_job(id)
            at = await reached(job, 400)
            if store == "nats":  # it runs when the other is killed, and takes over
                second = await serve(url)
            first.kill()
            await first.wait()
            if second is None:
                second = await serve(url)
            assert at < count
            found = await job.result()
            assert (found.state, found.matched, found.refused, found.errors) == ("done", count, 0, 0)
            assert found.applied + found.accepted == count
            while (await client.stats()).by_status != {"completed": count}:
                await asyncio.sleep(0.05)
            assert await retries(client, count) == {1}
    finally:
        await end(first)
        if second is not None:
            await end(second)


async def test_two_workers_on_one_server_do_a_job_once(own_nats: Server, tmp_path: Path) -> None:
    count = 600
    async with (
        connect(own_nats.url) as one,
        connect(own_nats.url) as other,
        one.worker(report),
        other.worker(report),
        asyncio.timeout(300),
    ):
        calls = (report.using(id=f"r{n}").bind(str(tmp_path)) for n in range(count))
        assert (await one.run_all(calls)).failed == count
        preview = await one.bulk_preview("retry", status="failed")
        assert preview.count == count
        first, second = await asyncio.gather(one.bulk(preview), other.bulk(preview))
        assert first.id == second.id
        found = await second.result()
        assert (found.state, found.matched, found.applied, found.refused) == ("done", count, count, 0)
        while (await other.stats()).by_status != {"failed": count}:
            await asyncio.sleep(0.05)
        assert await retries(other, count) == {1}
        stopped = await other.bulk("purge", status="failed")
        assert (await stopped.result()).applied == count
        assert [each.verb async for each in one.bulk_jobs()] == ["purge", "retry"]
