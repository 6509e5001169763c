"""Outside messages, ids, children, pause and cancel."""

from __future__ import annotations

import asyncio
import time

import pytest

from perdure.stores.clock import VirtualClock
from tests.scenarios import bodies
from tests.scenarios.conftest import MakeLab, kept_turns_only
from tests.scenarios.engine import Options
from tests.scenarios.lab import WAIT_SECONDS, Lab, MemoryLab, Refusal, until


# --- awakeables -------------------------------------------------------------------------------------------------------
async def test_awakeable_resolved_after_its_worker_died_resumes_once_and_a_second_answer_changes_nothing(
    lab: Lab,
) -> None:
    id = await lab.start(bodies.asks, "a")
    await lab.noted("ran a-asked")
    awakeable = await lab.awakeable(id)
    await lab.restart()
    await lab.ask("resolve", awakeable=awakeable, value="yes")
    for operation, arguments in (("resolve", {"value": "no"}), ("reject", {"reason": "no"})):
        with pytest.raises(Refusal) as caught:
            await lab.ask(operation, awakeable=awakeable, **arguments)
        assert caught.value.type == "MessageRefused"
    assert await lab.result(id) == "yes"
    assert (lab.count("ran a-asked"), lab.count("ran a-answered")) == (1, 1)


@pytest.mark.parametrize(
    ("answer", "same", "others"),
    [
        ("resolve", {"value": "yes"}, [{"value": "no"}, {"value": ""}]),
        ("resolve", {"value": "x" * 100_000}, [{"value": "x" * 99_999}]),
        ("reject", {"reason": "too dear"}, [{"reason": "too late"}]),
    ],
)
async def test_awakeable_may_be_given_the_very_answer_that_it_has_and_no_other(
    lab: Lab, answer: str, same: dict[str, str], others: list[dict[str, str]]
) -> None:
    """A step that answers one may run again: before the waiter has ended, afterwards, and after a restart."""
    lab.close_gate("after a-answered")
    id = await lab.start(bodies.asks_and_goes_on, "a")
    awakeable = await lab.awakeable(id)

    async def answer_again() -> None:
        await lab.ask(answer, awakeable=awakeable, **same)
        await lab.ask(answer, awakeable=awakeable, **same)
        other_verb: tuple[str, dict[str, str]] = ("reject", {"reason": "yes"})
        if answer == "reject":
            other_verb = ("resolve", {"value": same["reason"]})
        for verb, arguments in [other_verb, *((answer, each) for each in others)]:
            with pytest.raises(Refusal) as caught:
                await lab.ask(verb, awakeable=awakeable, **arguments)
            assert caught.value.type == "MessageRefused"

    await answer_again()
    await lab.noted("at after a-answered")
    await lab.restart()
    await answer_again()
    lab.open_gate("after a-answered")
    assert await lab.result(id) == (same["value"] if answer == "resolve" else "rejected")
    await answer_again()
    await lab.restart()
    await answer_again()


async def test_rejected_awakeable_gives_the_waiter_its_reason(lab: Lab) -> None:
    id = await lab.start(bodies.asks, "a")
    awakeable = await lab.awakeable(id)
    await lab.ask("reject", awakeable=awakeable, reason="too dear")
    with pytest.raises(Refusal, match="too dear") as caught:
        await lab.result(id)
    assert caught.value.type == "AwakeableRejected"
    assert caught.value.fields["reason"] == "too dear"


@pytest.mark.parametrize("killed", [False, True])
async def test_answer_that_comes_before_the_workflow_waits_is_not_lost(lab: Lab, killed: bool) -> None:
    lab.close_gate("after a-asked")
    id = await lab.start(bodies.asks, "a")
    await lab.noted("at after a-asked")
    await lab.ask("resolve", awakeable=await lab.awakeable(id), value="early")
    if killed:
        await lab.restart()
    lab.open_gate("after a-asked")
    assert await lab.result(id) == "early"


async def test_value_of_the_wrong_shape_is_refused_and_the_promise_stays_open(lab: Lab) -> None:
    id = await lab.start(bodies.asks_only)
    awakeable = await lab.awakeable(id)
    with pytest.raises(Refusal, match="wrong shape"):
        await lab.ask("resolve", awakeable=awakeable, value="text")
    await lab.ask("resolve", awakeable=awakeable, value=7)
    assert await lab.result(id) == 7


async def test_approval_after_days_with_restarts_in_between_completes(tmp_path_factory: pytest.TempPathFactory) -> None:
    clock = VirtualClock()
    lab = MemoryLab(tmp_path_factory.mktemp("days"), Options(), clock)
    await lab.up()
    id = await lab.start(bodies.asks, "a")
    awakeable = await lab.awakeable(id)
    await lab.has_status(id, "suspended")
    for _ in range(4):
        clock.move_to(clock.now() + 86_400)
        await lab.restart()
    await lab.ask("resolve", awakeable=awakeable, value="at last")
    assert await lab.result(id) == "at last"
    assert lab.count("ran a-asked") == 1
    await lab.close()


# --- ids --------------------------------------------------------------------------------------------------------------
async def test_two_starts_of_one_id_are_one_run_and_other_input_is_an_error(lab: Lab) -> None:
    both = await asyncio.gather(*(lab.run(bodies.three, "once", id="job-7") for _ in range(2)))
    assert both == [["ONCE-A", "ONCE-B", "ONCE-C"]] * 2
    for _ in range(2):
        for workflow, args in ((bodies.three, ["other"]), (bodies.parent, ["once"])):
            with pytest.raises(Refusal) as caught:
                await lab.start(workflow, *args, id="job-7")
            assert caught.value.type == "IdConflict"
        assert await lab.run(bodies.three, "once", id="job-7") == both[0]
        assert lab.count("ran once-a") == 1
        await lab.restart()


# --- children ---------------------------------------------------------------------------------------------------------
async def test_parent_gets_the_result_of_a_child_whose_worker_died(lab: Lab) -> None:
    lab.close_gate("before p-child-b")
    id = await lab.start(bodies.parent, "p")
    await lab.noted("at before p-child-b")
    await lab.kill()
    lab.open_gate("before p-child-b")
    await lab.up()
    assert await lab.result(id) == ["parent", "P-CHILD-A", "P-CHILD-B", "P-CHILD-C"]
    assert lab.count("ran p-child-a") == 1


async def test_cancel_of_a_parent_reaches_the_leaves_first_and_leaves_its_sends_alone(lab: Lab) -> None:
    lab.close_gate("before g-leaf")
    lab.close_gate("before g-sent-b")
    id = await lab.start(bodies.grandparent, "g")
    await lab.noted("at before g-leaf")
    await lab.noted("at before g-sent-b")
    await lab.ask("cancel", id=id)
    with pytest.raises(Refusal) as caught:
        await lab.result(id)
    assert caught.value.type == "InvocationCancelled"
    cleanups = [line for line in lab.notes() if line.startswith("cleanup")]
    assert cleanups == [f"cleanup g-{each}" for each in ("leaf", "parent", "grandparent")]
    lab.open_gate("before g-sent-b")
    (sent,) = await lab.ask("list", handler="three")
    assert await lab.result(sent) == ["G-SENT-A", "G-SENT-B", "G-SENT-C"]
    by_status = (await lab.ask("stats"))["by_status"]
    assert by_status == {"cancelled": 3, "completed": 1}


# --- cancel -----------------------------------------------------------------------------------------------------------
WAITS = {"step": "at before c-step", "sleep": "at c-sleep", "awakeable": "at c-awakeable", "child": "at before c-leaf"}


@pytest.mark.parametrize("what", WAITS)
async def test_cancel_is_raised_where_the_body_waits_and_its_cleanup_is_durable(lab: Lab, what: str) -> None:
    for point in ("before c-step", "before c-leaf", "before c-undo-2"):
        lab.close_gate(point)
    id = await lab.start(bodies.waits_on, "c", what)
    await lab.noted(WAITS[what])
    if what == "awakeable":
        await lab.awakeable(id)
    await lab.ask("cancel", id=id)
    await lab.noted("at before c-undo-2")
    found = await lab.describe(id)
    assert found["status"] == "running"
    assert found["cancel_requested_at"] is not None
    await lab.kill()
    lab.open_gate("before c-undo-2")
    await lab.up()
    with pytest.raises(Refusal) as caught:
        await lab.result(id)
    assert caught.value.type == "InvocationCancelled"
    assert (lab.count("ran c-undo-1"), lab.count("ran c-undo-2")) == (1, 1)
    assert await lab.status(id) == "cancelled"


async def test_cancel_with_force_runs_no_cleanup(lab: Lab) -> None:
    lab.close_gate("before c-step")
    id = await lab.start(bodies.waits_on, "c", "step")
    await lab.noted("at before c-step")
    await lab.ask("cancel", id=id, force=True)
    with pytest.raises(Refusal, match="was cancelled"):
        await lab.result(id)
    assert lab.count("ran c-undo-1") == 0


async def test_cancel_of_a_scheduled_invocation_settles_it_without_running_it(lab: Lab) -> None:
    id = await lab.start(bodies.three, "later", delay=3600)
    await asyncio.wait_for(lab.ask("cancel", id=id), WAIT_SECONDS)  # and not when it is due
    assert await lab.status(id) == "cancelled"
    assert lab.notes() == []


async def test_messages_that_come_while_an_invocation_settles_are_answered(lab: Lab) -> None:
    """A message between the final frame and its acknowledgement must be refused, not forgotten."""
    ids = [await lab.start(bodies.busy, f"b{at}", [0.01 + at / 2000]) for at in range(40)]

    async def cancel(at: int) -> str:
        await asyncio.sleep(at / 1500)
        try:
            await lab.ask("cancel", id=ids[at])
        except Refusal as refused:
            return refused.type
        return "cancelled"

    answers = await asyncio.gather(*(cancel(at) for at in range(40)))
    assert set(answers) <= {"cancelled", "IllegalTransition"}
    async with asyncio.timeout(
        WAIT_SECONDS
    ):  # a cancellation is answered when it is recorded; the step ends a moment later
        while not set((await lab.ask("stats"))["by_status"]) <= {"cancelled", "completed"}:
            await asyncio.sleep(0.01)


# --- pause ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ending", ["nothing", "stop", "kill", "stop while the step runs"])
async def test_pause_in_the_middle_of_a_step_keeps_its_result_and_starts_nothing_new(lab: Lab, ending: str) -> None:
    lab.close_gate("after x-a")
    id = await lab.start(bodies.three, "x")
    await lab.noted("at after x-a")
    await lab.ask("pause", id=id)
    if ending == "stop while the step runs":
        await lab.stop(grace=0.05)
        lab.open_gate("after x-a")
        await lab.up()
    else:
        lab.open_gate("after x-a")

        async def kept() -> bool:
            return (await lab.describe(id))["journal"][0]["status"] == "completed"

        await until(kept)
    if ending == "stop":
        await lab.stop()
        await lab.up()
    elif ending == "kill":
        await lab.restart()
    await asyncio.sleep(0.05)
    assert await lab.status(id) == "paused"
    assert await lab.ask("list", status="paused") == [id]
    assert lab.count("at before x-b") == 0
    with pytest.raises(Refusal, match="it is paused, and only"):
        await lab.ask("pause", id=id)
    await lab.ask("resume", id=id)
    assert await lab.result(id) == ["X-A", "X-B", "X-C"]
    again = ending == "stop while the step runs"
    assert lab.count("ran x-a") == (2 if again else 1)


async def test_messages_that_come_while_paused_wait_for_resume(lab: Lab) -> None:
    id = await lab.start(bodies.asks, "a")
    await lab.noted("ran a-asked")
    awakeable = await lab.awakeable(id)
    await lab.has_status(id, "suspended")
    await lab.ask("pause", id=id)
    await lab.ask("resolve", awakeable=awakeable, value="kept")
    await lab.restart()
    await asyncio.sleep(0.05)
    assert lab.count("at before a-answered") == 0
    await lab.ask("resume", id=id)
    assert await lab.result(id) == "kept"


async def test_sleep_that_falls_due_while_paused_ends_at_resume(lab: Lab) -> None:
    seconds = 2
    id = await lab.start(bodies.sleeps, "s", seconds)
    await lab.noted("began s")
    began = time.monotonic()
    await lab.has_status(id, "suspended")
    await lab.ask("pause", id=id)
    await asyncio.sleep(began + seconds + 0.1 - time.monotonic())
    assert lab.count("ended s") == 0
    await lab.ask("resume", id=id)
    await lab.result(id)


# --- no deadlock, no waste --------------------------------------------------------------------------------------------
async def test_messages_get_through_when_all_slots_were_taken_by_those_who_wait_for_them(make_lab: MakeLab) -> None:
    lab = await make_lab(max_concurrent=2, cache=0)
    ids = await lab.start_many(bodies.asks, [[f"w{at}"] for at in range(8)])
    awakeables = [await lab.awakeable(id) for id in ids]
    lab.close_gate("before b0-a")
    lab.close_gate("before b1-a")
    blockers = [await lab.start(bodies.three, f"b{at}") for at in range(2)]
    await lab.noted("at before b0-a")
    await lab.noted("at before b1-a")
    for awakeable in awakeables:
        await lab.ask("resolve", awakeable=awakeable, value="go")
    assert lab.count("at before w0-answered") == 0, "its step needs a slot, and both are taken"
    lab.open_gate("before b0-a")
    lab.open_gate("before b1-a")
    assert await lab.results([*ids, *blockers]) == [
        *["go"] * 8,
        *([f"B{at}-{each}" for each in "ABC"] for at in (0, 1)),
    ]
    assert await lab.ask("slots") == [0]


async def test_message_for_a_start_that_waits_for_a_slot_does_not_run_it_twice(make_lab: MakeLab) -> None:
    lab = await make_lab(max_concurrent=1)
    first = await lab.start(bodies.asks, "first")
    awakeable = await lab.awakeable(first)
    await lab.noted("ran first-asked")
    await lab.has_status(first, "suspended")
    lab.close_gate("before first-answered")
    await lab.ask("resolve", awakeable=awakeable, value="go")
    await lab.noted("at before first-answered")  # it has the slot that was promised to a new start
    second = await lab.start(bodies.three, "second")
    pausing = asyncio.create_task(lab.ask("pause", id=second))
    await asyncio.sleep(0.1)
    lab.open_gate("before first-answered")
    assert await lab.result(first) == "go"
    await pausing
    await lab.ask("resume", id=second)
    assert await lab.result(second) == ["SECOND-A", "SECOND-B", "SECOND-C"]
    assert [lab.count(f"ran second-{name}") for name in "abc"] == [1, 1, 1]
    assert await lab.ask("slots") == [0]


@kept_turns_only
async def test_thousand_messages_against_ten_running_steps_run_each_once_and_replay_nothing(lab: Lab) -> None:
    for at in range(10):
        lab.close_gate(f"before m-{at}")
    id = await lab.start(bodies.asks_often, "m", 500, 10)
    await lab.noted("at before m-9")
    awakeables = await lab.awakeables(id)
    for at, awakeable in enumerate(awakeables):
        await lab.ask("resolve", awakeable=awakeable, value=at)
        if at % 2 == 0:
            await lab.ask("pause" if at % 4 == 0 else "resume", id=id)
    for at in range(10):
        lab.open_gate(f"before m-{at}")
    if await lab.status(id) == "paused":
        await lab.ask("resume", id=id)
    assert await lab.result(id) == [*range(500)]
    assert [lab.count(f"ran m-{at}") for at in range(10)] == [1] * 10
    work = await lab.work()
    assert work.turns == 1
    assert work.entries < 2_000
