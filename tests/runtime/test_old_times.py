"""Journals hold times that no calendar has: a release before took any number of seconds for a wait."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime
from typing import Any

import pytest

from perdure import Context, Handle, Invocation, step, workflow
from perdure.connect import client_from
from perdure.core.effects import Effects
from perdure.core.ids import awakeable_id
from perdure.core.journal import (
    Accepted,
    Attempted,
    CallStep,
    Claimed,
    Frame,
    OpenAwakeable,
    Released,
    Returned,
    SetTimer,
    Start,
)
from perdure.core.values import encode
from perdure.operations.describe import from_journal
from perdure.stores import memory
from perdure.stores.memory import MemoryStore
from perdure.stores.port import Row, Transition, committed
from perdure.testing.contract.numbers import everywhere, sample

SOON = 30.0
NEVER = (math.inf, 1e300, 1e20, 1e18, 1e15, 2.6e11)
"""Infinity, and seconds that C, Python and the calendar refuse in ways of their own."""


def describe(start: Start, *frames: Frame, due: float = 1.0) -> Invocation:
    row = Row(start.id, start.handler, "suspended", None, 1.0, 1.0, due)
    return from_journal(row, start, frames, (), b"secret", served=True)


@pytest.mark.parametrize("number", [*NEVER, *(-each for each in NEVER), math.nan])
def test_journal_with_any_number_in_any_field_is_described(number: float) -> None:
    start: Start = sample(Start)
    first = Frame("w", 1.0, [Accepted(start), Claimed(1.0, 1, "w", "3.11", "0")], [CallStep(1, "s", b"d")])
    second = Frame("w", 1.0, [Returned(1, 1.0, encode(1))])  # a retry keeps a part of it
    tried = [frame for _, frame in everywhere(Frame, number)]
    assert len(tried) > 30
    for frame in tried:
        assert describe(start, first, second, frame, due=number).id == start.id
    for _, other in everywhere(Start, number):
        assert describe(other, first).id == start.id


@pytest.mark.parametrize("due", NEVER)
def test_time_that_no_calendar_has_is_shown_as_the_last_one_that_it_has(due: float) -> None:
    start: Start = sample(Start)
    last = datetime.max.replace(tzinfo=UTC)
    attempted: Attempted = sample(Attempted, n=1, due=due)
    frames = [
        Frame("w", 1.0, [Accepted(start)], [SetTimer(0, due), CallStep(1, "s", b"d")]),
        Frame("w", 1.0, [attempted, Released(1.0, due)]),
    ]
    info = describe(start, *frames)
    assert [each.due for each in info.journal] == [last, last]
    assert info.waiting_for == "SLEEP until 9999-12-31T23:59:59+00:00, s again at 9999-12-31T23:59:59+00:00"


# --- an invocation that waits until then ------------------------------------------------------------------------------
@step
async def note(text: str) -> str:
    return text


def waits_with(seconds: float) -> Any:
    @workflow(name="waits")
    async def waits(ctx: Context) -> list[str]:
        asyncio.get_running_loop().call_later(seconds, print)
        first = await note(await ctx.awakeable(str))
        return [first, await ctx.awakeable(str)]

    return waits


def _unchecked(*_: object) -> None:
    pass


async def suspended_by_a_release_before(store: MemoryStore, due: float, patch: pytest.MonkeyPatch) -> Start:
    """Write what a release wrote that looked at no number."""
    start = Start("w", "waits", encode({}), 1.0, 1.0, 7, chosen=True)
    entries = [Accepted(start), Claimed(1.0, 1, "w", "3.11", "0"), Released(1.0, due)]
    with patch.context() as unchecked:
        unchecked.setattr(memory, "check_finite", _unchecked)
        unchecked.setattr(memory, "check_effects", _unchecked)
        await store.submit([start])
        frame = Frame("w", 1.0, [*entries], [SetTimer(0, due), OpenAwakeable(1)])
        effects = Effects(wake=due)
        await committed(store, Transition("w", 0, frame, effects, "suspended", released=True))
    return start


async def waiting_for(handle: Handle[Any], n: int) -> None:
    async with asyncio.timeout(SOON):
        while (info := await handle.describe()).status != "suspended" or len(info.awakeables) != n:
            assert info.status != "paused", info.paused_because
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("seconds", NEVER)
async def test_invocation_with_a_timer_that_is_never_due_goes_on(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    async with client_from(lambda: store) as client:
        start = await suspended_by_a_release_before(store, 1.0 + seconds, monkeypatch)
        store.restart()
        async with client.worker(waits_with(seconds)):
            handle = client.handle(start.id)
            await waiting_for(handle, 1)
            await client.resolve(awakeable_id("w", 0, 1, store.secret), "a")
            await waiting_for(handle, 2)
            last = (await store.journal("w")).frames[-1]
            assert [each.wake for each in last.entries if isinstance(each, Released)] == [
                None if math.isinf(seconds) else 1.0 + seconds
            ]
            [_, awakeable] = (await handle.describe()).awakeables
            await client.resolve(awakeable.id, "b")
            assert await asyncio.wait_for(handle.result(), SOON) == ["a", "b"]
