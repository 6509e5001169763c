"""Scenarios on a cluster of three, every stream with three replicas: a choice of what the one node is asked.

Each says which workflows it needs, since each of them costs consumers that are replicated as well.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from examples.services.nats_server import Cluster
from perdure import Workflow
from tests.jetstream import test_processes
from tests.scenarios import bodies, keyed, test_handover, test_keys, test_messages, test_retention, test_timers
from tests.scenarios.conftest import MakeLab
from tests.scenarios.engine import Options
from tests.scenarios.lab import JetStreamLab, Lab

Scenario = Callable[..., Awaitable[None]]


def on(scenario: Scenario, *serves: Workflow[..., Any], **arguments: Any) -> Any:
    """Choose a scenario, with the workflows that it needs."""
    name = "-".join([scenario.__name__.removeprefix("test_"), *map(str, arguments.values())])
    return pytest.param(partial(scenario, **arguments), tuple(each.name for each in serves), id=name)


CHOSEN = [
    # one of several worker processes dies, or is taken for dead
    on(test_processes.test_zombie_that_wakes_after_its_lease_writes_nothing, bodies.three),
    on(
        test_processes.test_zombie_stopped_between_its_step_and_its_append_loses_its_key_and_what_it_would_write,
        *(keyed.counts_in_frost, keyed.bump),
        early=True,
    ),
    on(test_processes.test_zombie_that_holds_a_key_past_its_lease_gives_it_to_nobody, keyed.staged),
    on(
        test_processes.test_what_a_killed_process_held_is_taken_over_within_its_lease,
        *(bodies.asks, bodies.sleeps, bodies.three),
    ),
    on(
        test_processes.test_workers_killed_under_load_leave_all_to_the_last,
        *(bodies.busy, bodies.parent, bodies.three),
        victims=2,
    ),
    on(
        test_processes.test_increments_of_one_key_over_three_processes_of_which_two_die_are_exactly_as_many,
        keyed.bump,
    ),
    on(test_processes.test_message_goes_to_the_process_that_owns_the_invocation, bodies.asks_often),
    # keys
    on(test_keys.test_sends_to_one_key_are_processed_in_the_order_sent, keyed.sends_in_order, keyed.staged),
    on(test_keys.test_suspended_holder_keeps_its_key_through_a_kill, keyed.holds, keyed.staged),
    on(
        test_keys.test_retried_invocation_queues_for_its_key_again_and_sees_what_others_did,
        *(keyed.fails_until_open, keyed.holds, keyed.bump),
        killed=True,
    ),
    # messages, cancel and children
    on(
        test_messages.test_awakeable_resolved_after_its_worker_died_resumes_once_and_a_second_answer_changes_nothing,
        bodies.asks,
    ),
    on(
        test_messages.test_pause_in_the_middle_of_a_step_keeps_its_result_and_starts_nothing_new,
        bodies.three,
        ending="kill",
    ),
    on(
        test_messages.test_cancel_is_raised_where_the_body_waits_and_its_cleanup_is_durable,
        *(bodies.waits_on, bodies.leaf),
        what="child",
    ),
    on(test_messages.test_parent_gets_the_result_of_a_child_whose_worker_died, bodies.parent, bodies.three),
    # time
    on(test_timers.test_sleep_ends_when_it_was_due_though_the_worker_was_killed_in_between, bodies.sleeps),
    on(
        test_timers.test_delayed_start_comes_once_though_everything_was_killed_meanwhile,
        *(bodies.sender, bodies.three),
    ),
    # a worker leaves, and what settled goes
    on(test_handover.test_last_worker_that_stops_leaves_all_to_the_next_one, bodies.three),
    on(
        test_processes.test_worker_that_joins_gets_work_and_one_that_stops_hands_over_at_once,
        bodies.three,
    ),
    on(test_retention.test_loop_of_send_and_sleep_does_not_repeat_old_sends, bodies.ticks, bodies.noting, cache=0),
]


@pytest.fixture
async def make_lab(nodes: Cluster, namespace: str, serves: tuple[str, ...], tmp_path: Path) -> AsyncIterator[MakeLab]:
    labs: list[Lab] = []

    async def make(**options: Any) -> Lab:
        chosen = msgspec.convert({"lease": 1.0, "serves": serves, **options}, Options)
        lab = JetStreamLab(
            tmp_path / f"lab{len(labs)}", chosen, nodes.url, f"{namespace}x{len(labs)}", replicas=len(nodes.nodes)
        )
        labs.append(lab)
        await lab.up()
        return lab

    yield make
    for lab in labs:
        await lab.close()


@pytest.mark.parametrize(("scenario", "serves"), CHOSEN)
async def test_scenario_holds_on_three_nodes(
    scenario: Scenario, make_lab: MakeLab, join: Callable[..., Awaitable[JetStreamLab]]
) -> None:
    wanted = inspect.signature(scenario).parameters
    given: dict[str, Any] = {"make_lab": make_lab, "join": join}
    if "lab" in wanted:
        given["lab"] = await make_lab()
    await scenario(**{name: value for name, value in given.items() if name in wanted})
