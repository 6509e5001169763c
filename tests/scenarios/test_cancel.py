"""Cancel: cleanup runs once, whatever dies meanwhile; what was cancelled stops; nothing leaks."""

from __future__ import annotations

import asyncio

import pytest

from tests.scenarios import bodies
from tests.scenarios.conftest import MakeLab
from tests.scenarios.lab import Lab, Refusal, until


async def cancelled(lab: Lab, id: str) -> None:
    with pytest.raises(Refusal) as caught:
        await lab.result(id)
    assert caught.value.type == "InvocationCancelled"
    assert await lab.status(id) == "cancelled"


# --- cleanup ----------------------------------------------------------------------------------------------------------
async def test_cleanup_finishes_once_when_its_worker_is_killed_at_each_boundary_of_it(lab: Lab) -> None:
    for at, boundary in enumerate(f"{where} undo-{n}" for n in (1, 2) for where in ("before", "after")):
        tag = f"k{at}"
        where, step = boundary.split()
        point = f"{where} {tag}-{step}"
        lab.close_gate(point)
        id = await lab.start(bodies.waits_on, tag, "sleep", id=tag)
        await lab.noted(f"at {tag}-sleep")
        await lab.ask("cancel", id=id)
        await lab.noted(f"at {point}")
        await lab.kill()
        lab.open_gate(point)
        await lab.up()
        await cancelled(lab, id)
        runs = {n: lab.count(f"ran {tag}-undo-{n}") for n in (1, 2)}
        assert runs == {n: 2 if boundary == f"after undo-{n}" else 1 for n in (1, 2)}, boundary


async def test_cancel_with_force_during_cleanup_ends_it_there(lab: Lab) -> None:
    lab.close_gate("before c-undo-1")
    id = await lab.start(bodies.waits_on, "c", "sleep")
    await lab.noted("at c-sleep")
    await lab.ask("cancel", id=id)
    await lab.noted("at before c-undo-1")
    await lab.ask("cancel", id=id, force=True)
    await cancelled(lab, id)
    lab.open_gate("before c-undo-1")
    await lab.restart()
    assert await lab.status(id) == "cancelled"
    assert (lab.count("ran c-undo-1"), lab.count("at before c-undo-2")) == (0, 0)


async def test_second_plain_cancel_changes_nothing_and_cleanup_goes_on(lab: Lab) -> None:
    lab.close_gate("before c-undo-1")
    id = await lab.start(bodies.waits_on, "c", "sleep")
    await lab.noted("at c-sleep")
    await lab.ask("cancel", id=id)
    await lab.noted("at before c-undo-1")
    await lab.ask("cancel", id=id)
    await asyncio.sleep(0.05)
    assert await lab.status(id) == "running"
    lab.open_gate("before c-undo-1")
    await cancelled(lab, id)
    assert (lab.count("ran c-undo-1"), lab.count("ran c-undo-2")) == (1, 1)


@pytest.mark.parametrize("ending", ["nothing", "kill"])
async def test_cleanup_runs_when_the_cancel_comes_while_the_first_step_runs_and_no_frame_exists(
    lab: Lab, ending: str
) -> None:
    lab.close_gate("before f-first")
    lab.close_gate("before f-undo")
    id = await lab.start(bodies.first_step_then_cleanup, "f")
    await lab.noted("at before f-first")
    assert await lab.ask("frames", id=id) == 0, "the step outran the cancellation: this proves nothing"
    await lab.ask("cancel", id=id)
    await lab.noted("at before f-undo")
    if ending == "kill":
        await lab.kill()
        lab.open_gate("before f-undo")
        await lab.up()
    else:
        lab.open_gate("before f-undo")
    await cancelled(lab, id)
    assert (lab.count("ran f-first"), lab.count("ran f-undo")) == (0, 1)


# --- descendants ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("force", [False, True])
async def test_cancel_reaches_every_descendant_through_a_kill(lab: Lab, force: bool) -> None:
    lab.close_gate("before g-leaf")
    lab.close_gate("before g-sent-b")
    id = await lab.start(bodies.grandparent, "g")
    await lab.noted("at before g-leaf")
    await lab.noted("at before g-sent-b")
    await lab.ask("cancel", id=id, force=force)
    await lab.restart()

    async def ended() -> bool:
        return (await lab.ask("stats"))["by_status"].get("cancelled") == 3

    await until(ended)
    lab.open_gate("before g-sent-b")
    (sent,) = await lab.ask("list", handler="three")
    assert await lab.result(sent) == ["G-SENT-A", "G-SENT-B", "G-SENT-C"]
    assert (await lab.ask("stats"))["by_status"] == {"cancelled": 3, "completed": 1}
    cleanups = [line for line in lab.notes() if line.startswith("cleanup")]
    assert len(cleanups) == (0 if force else 3)


# --- what was cancelled stops -----------------------------------------------------------------------------------------
async def test_side_effects_of_a_cancelled_step_stop(lab: Lab) -> None:
    id = await lab.start(bodies.stops_step, "s", False)
    assert await lab.result(id) == "S-AFTER"
    ticks = lab.count("tick s")
    assert ticks > 1
    await asyncio.sleep(0.1)
    assert lab.count("tick s") == ticks
    assert lab.notes().index("ran s-after") > max(at for at, line in enumerate(lab.notes()) if line == "tick s")


async def test_slot_of_a_cancelled_thread_step_stays_held_until_the_thread_ends(make_lab: MakeLab) -> None:
    lab = await make_lab(max_concurrent=1)
    lab.close_gate("thread t")
    id = await lab.start(bodies.stops_step, "t", True)
    assert await lab.result(id) == "T-AFTER"
    assert await lab.ask("slots") == [1], "its invocation has ended, and its thread has not"
    other = await lab.start(bodies.three, "other")
    await asyncio.sleep(0.1)
    assert lab.count("at before other-a") == 0
    lab.open_gate("thread t")
    assert await lab.result(other) == ["OTHER-A", "OTHER-B", "OTHER-C"]
    assert lab.count("ran t-thread") == 1

    async def free() -> bool:
        return await lab.ask("slots") == [0]

    await until(free)


# --- a failure meets a cancellation -----------------------------------------------------------------------------------
async def test_step_that_fails_while_it_is_asked_to_end_raises_its_own_failure_once_and_force_still_ends_it(
    lab: Lab,
) -> None:
    lab.close_gate("after j-next")
    id = await lab.start(bodies.shrugs_off, "j")
    await lab.noted("at j-stubborn")
    await lab.ask("cancel", id=id)
    await lab.noted("saw jammed: j")
    await lab.noted("at after j-next")
    await lab.restart()
    lab.open_gate("after j-next")
    await lab.noted("tick j")
    assert lab.count("at j-stubborn") == 1, "what was to end is not tried again"
    await lab.ask("cancel", id=id)  # no second CancelledError: cleanup must not be cut short
    await asyncio.sleep(0.05)
    assert await lab.status(id) == "running"
    await lab.ask("cancel", id=id, force=True)
    await cancelled(lab, id)
    assert lab.count("cleanup j") == 0
