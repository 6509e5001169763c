"""Three nodes, three replicas: nodes are killed under load, the leaders of streams among them, and all at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from examples.services.nats_server import Cluster, Server
from tests.jetstream.test_processes import Join, check_histories
from tests.scenarios import bodies, keyed
from tests.scenarios.engine import Options
from tests.scenarios.host import jetstream_at
from tests.scenarios.lab import JetStreamLab

OPTIONS = Options(max_concurrent=50, serves=("three", "parent", "increment", "sleeps"))


async def leader_of(lab: JetStreamLab, nodes: Cluster, kind: str) -> Server:
    """Return the node that leads the first stream of a kind."""
    store = jetstream_at(lab.place)
    await store.open()
    try:
        told = await store.wire.api(f"STREAM.INFO.{store.layout.stream(kind, 0)}")
    finally:
        await store.aclose()
    return next(each for each in nodes.nodes if each.name == told["cluster"]["leader"])


class Load:
    """Work of several kinds, some of it in progress whatever happens."""

    def __init__(self, lab: JetStreamLab, tag: str) -> None:
        self.lab = lab
        self.tag = tag
        self.counted: list[str] = []
        self.others: list[str] = []

    async def begin(self) -> None:
        lab, tag = self.lab, self.tag
        counting = lab.start_many(keyed.increment, [[f"{tag}n{at}"] for at in range(50)], key=tag)
        threes = lab.start_many(bodies.three, [[f"{tag}k{at}"] for at in range(150)])
        parents = lab.start_many(bodies.parent, [[f"{tag}p{at}"] for at in range(10)])
        sleeping = lab.start_many(bodies.sleeps, [[f"{tag}s{at}", 1.5] for at in range(10)])
        self.counted, *others = await asyncio.gather(counting, threes, parents, sleeping)
        self.others = [id for each in others for id in each]

    async def end(self, lab: JetStreamLab) -> None:
        """See to the end of all of it, as another process sees it."""
        # Each once. They were started at once: those that an election leaves unacknowledged may change places.
        assert sorted(await lab.results(self.counted, timeout=60)) == [*range(1, 51)]
        await lab.results(self.others, timeout=60)
        assert [lab.count(f"ended {self.tag}s{at}") for at in range(10)] == [1] * 10
        await check_histories(lab, [*self.counted, *self.others])

    def repeated(self) -> list[str]:
        """Return the steps that ran more than once."""
        ran = Counter(note for note in self.lab.notes() if note.startswith(f"ran {self.tag}"))
        return [note for note, times in ran.items() if times > 1]


@pytest.mark.slow
async def test_leaders_of_streams_killed_under_load_over_three_processes_lose_and_repeat_nothing(
    nodes: Cluster, namespace: str, join: Join, tmp_path: Path
) -> None:
    lab = JetStreamLab(tmp_path / "lab", OPTIONS, nodes.url, namespace, replicas=3)
    await lab.up()
    try:
        others = [await join(lab) for _ in range(2)]
        loads: list[Load] = []
        for kind in "JQ":
            victim = await leader_of(lab, nodes, kind)
            loads.append(Load(lab, kind))
            beginning = asyncio.ensure_future(loads[-1].begin())
            await asyncio.sleep(0.15)
            await asyncio.to_thread(victim.kill)
            await beginning
            loads.append(Load(others[0], f"{kind}after"))  # while two are left
            await loads[-1].begin()
            await asyncio.to_thread(victim.start)
        for load in loads:
            await load.end(others[1])
            assert load.repeated() == [], "no election takes a lease, and nobody has died"
    finally:
        await lab.close()


@pytest.mark.slow
async def test_whole_cluster_killed_at_once_goes_on_with_everything(
    nodes: Cluster, namespace: str, join: Join, tmp_path: Path
) -> None:
    lab = JetStreamLab(tmp_path / "lab", OPTIONS, nodes.url, namespace, replicas=3)
    await lab.up(lease=3.0)
    try:
        other = await join(lab, lease=3.0)
        load = Load(lab, "all")
        beginning = asyncio.ensure_future(load.begin())
        await asyncio.sleep(0.15)
        await asyncio.to_thread(nodes.kill)
        await other.kill()
        await asyncio.sleep(1.0)
        await asyncio.to_thread(nodes.start)
        await beginning
        await other.up()
        await load.end(other)
        assert "reconnecting, without limit" in lab.report()
    finally:
        await lab.close()
