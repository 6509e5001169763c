"""Workers of two minor versions of Python: who has begun with one goes on with it, while there are workers of it."""

from __future__ import annotations

import asyncio

from perdure.core.journal import Claimed
from tests.jetstream.test_processes import Join, check_histories
from tests.scenarios import bodies
from tests.scenarios.conftest import MakeLab
from tests.scenarios.host import jetstream_at
from tests.scenarios.lab import JetStreamLab, Lab

COUNT = 20


async def pythons(lab: Lab, ids: list[str]) -> list[list[str]]:
    """Return which versions have claimed each invocation."""
    assert isinstance(lab, JetStreamLab)
    store = jetstream_at(lab.place)
    await store.open()
    try:
        journals = [(await store.journal(id)).frames for id in ids]
    finally:
        await store.aclose()
    return [
        [entry.python for frame in journal for entry in frame.entries if isinstance(entry, Claimed)]
        for journal in journals
    ]


async def resolve(lab: Lab, ids: list[str], number: int) -> None:
    async def one(id: str) -> None:
        await lab.ask("resolve", awakeable=await lab.awakeable(id, number), value=number)

    await asyncio.gather(*map(one, ids))


async def test_invocations_stay_with_their_python_and_go_on_with_another_when_it_is_gone(
    make_lab: MakeLab, join: Join
) -> None:
    old = await make_lab(python="3.98", cache=0)
    ids = await old.start_many(bodies.asks_often, [[f"a{at}", 3, 1] for at in range(COUNT)])
    for id in ids:
        await old.has_status(id, "suspended")
    new = await join(old, python="3.99")
    await resolve(new, ids, 0)
    await resolve(new, ids, 1)
    claims = await pythons(new, ids)
    assert {each for journal in claims for each in journal} == {"3.98"}
    assert all(len(journal) > 1 for journal in claims), "each was claimed again for what came"
    assert "of which no worker takes it" not in new.report()
    await old.kill()
    await resolve(new, ids, 2)
    assert await new.results(ids) == [[0, 1, 2]] * COUNT
    claims = await pythons(new, ids)
    assert {journal[-1] for journal in claims} == {"3.99"}
    assert "ran on Python 3.98, and no worker of that version takes it: continuing on 3.99" in new.report()
    await check_histories(new, ids)
