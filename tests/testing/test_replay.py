"""Exported histories are replayed, here and in fresh processes, and code that no longer fits them says so."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from perdure import Context, Workflow, connect, workflow
from perdure.core.exported import VERSION
from perdure.errors import Diverged, InvalidOption, Undecodable, UnknownInvocation
from perdure.operations.local import store_behind
from perdure.testing import Environment, replay
from tests.testing import histories
from tests.testing.histories import HISTORIES, act, export

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"


def process(folder: Path, *arguments: str, hash_seed: int) -> None:
    subprocess.run(
        [sys.executable, "-m", "tests.testing.histories", str(folder), *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
        check=True,
        timeout=60,
    )


def test_histories_of_other_processes_replay_in_this_one_and_in_others_under_any_hash_seed(tmp_path: Path) -> None:
    process(tmp_path, hash_seed=1)
    for name, (called, _, _) in HISTORIES.items():
        replay(called, (tmp_path / f"{name}.json").read_bytes())
    for hash_seed in (2, 3):
        process(tmp_path, "replay", hash_seed=hash_seed)


@pytest.mark.parametrize("name", HISTORIES)
async def test_history_replays_from_an_async_test_as_bytes_and_as_text(name: str) -> None:
    history = await export(name)
    replay(HISTORIES[name][0], history)
    replay(HISTORIES[name][0], history.decode())


@pytest.mark.parametrize("name", HISTORIES)
def test_history_exported_by_an_earlier_release_replays(name: str) -> None:
    """They are for ever: more may be added, none is exported again."""
    replay(HISTORIES[name][0], (GOLDEN / f"{name}.json").read_bytes())


async def test_beginning_of_a_history_is_one_too() -> None:
    async with Environment(histories.everything) as env:
        handle = await env.client.start(histories.everything.using(delay=60), ["a"])
        replay(histories.everything, await handle.export())  # scheduled: nothing is journaled yet
        await env.advance(61)
        replay(histories.everything, await handle.export())


async def test_awakeable_ids_replay_though_the_secret_of_their_store_stays_there(tmp_path: Path) -> None:
    async with connect(f"sqlite:{tmp_path / 'store.db'}") as client, client.worker(histories.cleans_up, hands_out):
        handle = await client.start(hands_out)
        while not (opened := (await handle.describe()).awakeables):
            await asyncio.sleep(0.01)
        history = await handle.export()
        store = await store_behind(client.operations)
        assert opened[0].id.encode() in history
        assert store.secret not in history
        assert store.secret.hex().encode() not in history
    replay(hands_out, history)


@workflow
async def hands_out(ctx: Context) -> str:
    first = ctx.awakeable(str)
    await act(first.id)
    return await first


# --- code that changed ------------------------------------------------------------------------------------------------
def changed(body: Any) -> Workflow[..., Any]:
    return workflow(name="retried")(body)


async def renamed_step() -> Any:
    return [await act.using(name="perform")("before")]


async def other_argument() -> Any:
    return [await act("at first")]


async def fewer_steps() -> Any:
    return [await act("before")]


async def takes_more(user: str) -> Any:
    return [user, await act("before")]


async def another_type() -> Any:
    return [await number("before")]


@histories.step(name="act")
async def number(name: str, tags: frozenset[str] = frozenset()) -> int:
    return len(name)


CHANGES: list[tuple[Any, str, str]] = [
    (renamed_step, "#0 step 'act' (arguments ", "#0 step 'perform' (arguments "),
    (other_argument, "#0 step 'act' (arguments ", "#0 step 'act' (arguments "),
    (fewer_steps, "#1 step 'act' (arguments ", "nothing there"),
    (takes_more, "its input", "another: the recorded arguments of takes_more() do not fit it"),
    (another_type, "a value for #0 step 'act'", "another type: "),
]


@pytest.mark.parametrize(("body", "journal", "code"), CHANGES, ids=[body.__name__ for body, _, _ in CHANGES])
async def test_code_that_no_longer_fits_diverges_with_both_sides(body: Any, journal: str, code: str) -> None:
    history = await export("retried")
    with pytest.raises(Diverged) as caught:
        replay(changed(body), history)
    error = caught.value
    assert error.journal.startswith(journal)
    assert error.code.startswith(code)
    assert error.invocation_id in str(error)
    assert error.journal in str(error)
    assert error.code in str(error)


async def test_history_of_another_workflow_is_refused_unless_it_is_an_alias() -> None:
    history = await export("retried")
    with pytest.raises(InvalidOption, match="one of workflow 'retried', not of 'cleans_up'"):
        replay(histories.cleans_up, history)
    replay(workflow(name="anew", aliases=["retried"])(histories.retried.fn), history)


# --- what is no history -----------------------------------------------------------------------------------------------
BROKEN = {
    "nothing": b"",
    "no JSON": b"{",
    "no text": b"\xff\xfe{}",
    "something else": b"{}",
    "another format": b'{"format": "other", "version": 1}',
    "no start": json.dumps({"format": "perdure history", "version": VERSION}).encode(),
    "no frames": json.dumps({"format": "perdure history", "version": VERSION, "start": "AA==", "frames": 7}).encode(),
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_text_that_is_no_exported_history_is_refused(text: bytes) -> None:
    with pytest.raises(Undecodable, match="this exported history cannot be read"):
        replay(histories.retried, text)


async def test_history_of_a_later_release_is_refused_and_its_new_fields_alone_are_not() -> None:
    history = json.loads(await export("retried"))
    replay(histories.retried, json.dumps(history | {"new": 1}))
    with pytest.raises(Undecodable, match="upgrade"):
        replay(histories.retried, json.dumps(history | {"version": VERSION + 1}))
    with pytest.raises(Undecodable, match="damaged"):
        replay(histories.retried, json.dumps(history | {"frames": [history["frames"][0][:-8]]}))


async def test_only_what_exists_is_exported() -> None:
    async with Environment(histories.retried) as env:
        with pytest.raises(UnknownInvocation):
            await env.client.handle("nobody").export()


# --- what never ran ---------------------------------------------------------------------------------------------------
@workflow
async def holds(ctx: Context) -> str:
    return await ctx.awakeable(str)


async def test_history_of_an_invocation_that_was_cancelled_before_its_time_replays() -> None:
    async with Environment(histories.count) as env:
        handle = await env.client.start(histories.count.using(delay=3_600), {"a"})
        await handle.cancel()
        replay(histories.count, await handle.export())


async def test_histories_of_invocations_that_ended_while_they_waited_for_their_key_replay() -> None:
    async with Environment(holds) as env:
        holder = await env.client.start(holds.using(key="k"))
        cancelled = await env.client.start(holds.using(key="k"))
        late = await env.client.start(holds.using(key="k", timeout=60))
        forced = await env.client.start(holds.using(key="k"))
        await env.awakeable(holder)
        await cancelled.cancel()
        await forced.cancel(force=True)
        await env.advance(61)
        statuses = [(await each.describe()).status for each in (cancelled, late, forced)]
        assert statuses == ["cancelled", "failed", "cancelled"]
        for each in (holder, cancelled, late, forced):
            replay(holds, await each.export())
        await env.client.resolve(await env.awakeable(holder), "done")
        await late.retry()
        await env.client.resolve(await env.awakeable(late), "done")
        assert await late.result() == "done"
        replay(holds, await late.export())
