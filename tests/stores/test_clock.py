"""The system's clock: timers take as long as they were asked to, whatever becomes of the machine's clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perdure import connect, workflow
from perdure.operations.local import store_behind
from perdure.stores.clock import ADOPT_SECONDS, SystemClock
from perdure.stores.port import Filter

HOUR = 3600.0


class Machine:
    """A machine whose clocks are set by hand."""

    def __init__(self) -> None:
        self.wall = 1_700_000_000.0
        self.counted = 50.0

    def passes(self, seconds: float) -> None:
        self.wall += seconds
        self.counted += seconds

    def clock(self) -> SystemClock:
        return SystemClock(lambda: self.wall, lambda: self.counted)


def look(clock: SystemClock) -> None:
    inside: Any = clock
    inside._look()  # noqa: SLF001


async def test_time_passes_evenly_whatever_the_wall_clock_is_set_to() -> None:
    machine = Machine()
    clock = machine.clock()
    began = clock.now()
    for jump in (HOUR, -HOUR, 30.0, -30.0, 86_400.0 * 365, -86_400.0 * 365):
        machine.wall += jump
        machine.passes(1.0)
        assert clock.now() - began == pytest.approx(1.0)
        began = clock.now()


@pytest.mark.parametrize(("jump", "way"), [(HOUR, "ahead"), (-HOUR, "back"), (2.0, "ahead"), (-2.0, "back")])
async def test_jump_is_logged_once(jump: float, way: str, caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine()
    clock = machine.clock()
    timer = clock.call_at(clock.now() + 10 * HOUR, int)
    machine.wall += jump
    for _ in range(30):
        machine.passes(1.0)
        look(clock)
    said = [each.getMessage() for each in caplog.records]
    assert len(said) == 1
    assert f"set {way} by {abs(jump):.1f} s" in said[0]
    timer.cancel()


async def test_clock_that_stays_ahead_is_adopted_after_a_minute_and_not_before() -> None:
    machine = Machine()
    clock = machine.clock()
    timer = clock.call_at(clock.now() + 10 * HOUR, int)
    machine.wall += HOUR
    while machine.counted < 50 + ADOPT_SECONDS:
        machine.passes(1.0)
        look(clock)
        assert machine.wall - clock.now() == pytest.approx(HOUR)
    for _ in range(3):
        machine.passes(1.0)
        look(clock)
    assert clock.now() == pytest.approx(machine.wall)
    timer.cancel()


async def test_time_never_goes_back_and_meets_a_clock_that_was_set_back() -> None:
    machine = Machine()
    clock = machine.clock()
    timer = clock.call_at(clock.now() + 10 * HOUR, int)
    machine.wall -= 30.0
    last, slowest = clock.now(), 1.0
    for _ in range(3_100):
        machine.passes(1.0)
        look(clock)
        now = clock.now()
        slowest = min(slowest, now - last)
        last = now
    assert slowest >= 0.98
    assert clock.now() == pytest.approx(machine.wall, abs=0.01)
    timer.cancel()


async def test_timer_whose_time_passed_while_the_machine_slept_rings_at_the_next_look() -> None:
    machine = Machine()
    clock = machine.clock()
    rung: list[float] = []
    clock.call_at(clock.now() + HOUR, lambda: rung.append(clock.now()))
    later = clock.call_at(clock.now() + 3 * HOUR, lambda: rung.append(clock.now()))
    machine.passes(2 * HOUR)  # the loop's clock stood still meanwhile
    look(clock)
    await asyncio.sleep(0.01)
    assert len(rung) == 1
    later.cancel()


async def test_clock_without_timers_does_not_look() -> None:
    machine = Machine()
    clock = machine.clock()
    inside: Any = clock
    timers = [clock.call_at(clock.now() + HOUR, int) for _ in range(3)]
    assert inside._looking is not None  # noqa: SLF001
    for timer in timers:
        timer.cancel()
    assert inside._looking is None  # noqa: SLF001
    clock.call_at(clock.now() + HOUR, int).cancel()
    assert inside._looking is None  # noqa: SLF001


# --- the whole engine -------------------------------------------------------------------------------------------------
@workflow
async def sleeps(seconds: float) -> None:
    await asyncio.sleep(seconds)


@pytest.fixture
def offset(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the machine's clock, as far as Python code can see."""
    real, by = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + by[0])

    def set_to(seconds: float) -> None:
        by[0] = seconds

    return set_to


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("jumps", [(30.0, 0.0), (HOUR, 0.0), (-HOUR,), (HOUR,), (-HOUR, 0.0), (0.0, 1e8, -1e8)])
async def test_sleep_takes_its_time_while_the_clock_jumps(
    kind: str,
    jumps: tuple[float, ...],
    offset: Callable[[float], None],
    tmp_path: Path,
) -> None:
    url = "memory:" if kind == "memory" else f"sqlite:{tmp_path / 'db'}"
    async with connect(url) as client, client.worker(sleeps):
        began = time.monotonic()
        before = await client.start(sleeps, 0.5)
        for jump in jumps:
            await client.run(sleeps, 0)
            offset(jump)
            await client.run(sleeps, 0)
        after = await client.start(sleeps, 0.1)
        await asyncio.wait_for(asyncio.gather(before.result(), after.result()), 30)
        assert time.monotonic() - began >= 0.5, "none is early"


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("jump", [-1e8, 1e8])
async def test_retention_goes_by_the_clock_of_the_store(
    kind: str, jump: float, offset: Callable[[float], None], tmp_path: Path
) -> None:
    url = "memory:" if kind == "memory" else f"sqlite:{tmp_path / 'db'}"
    async with connect(url, retention=None) as client, client.worker(sleeps):
        store = await store_behind(client.operations)
        offset(jump)
        began = store.clock.now()
        await client.run(sleeps, 0)
        assert await store.purge(began - HOUR, limit=10) == 0, "it ended just now"
        (row,) = await store.search(Filter())
        assert began <= row.updated_at <= store.clock.now()
        assert await store.purge(store.clock.now(), limit=10) == 1
