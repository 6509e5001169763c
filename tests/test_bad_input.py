"""What is wrong is said at once, by its own error, and leaves nothing behind: on both embedded stores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from perdure import Client, Context, Retry, Workflow, connect, step, step_info, workflow
from perdure.core.ids import ID_LENGTH_LIMIT
from perdure.core.types import decoder
from perdure.core.values import encode
from perdure.errors import (
    BadId,
    BadUrl,
    CalledOutsideWorkflow,
    IdConflict,
    InputRefused,
    InvalidOption,
    IoInWorkflow,
    NameTaken,
    NotAsync,
    NotAWorkflow,
    PayloadTooLarge,
    PerdureError,
    Unencodable,
    UnknownInvocation,
)

LIMIT = 10_000
BIG = "x" * LIMIT


@step(retry=Retry(max_attempts=1))
async def make(size: int) -> str:
    return "x" * size


@workflow
async def hello(name: str, times: int = 1) -> str:
    return f"Hello {name}" * times


@workflow
async def anything(value: Any) -> str:
    return type(value).__name__


@dataclass
class Tagged:
    tags: set[str]
    weight: int = 1


@workflow
async def count_tags(tagged: Tagged, more: dict[str, int]) -> int:
    return len(tagged.tags) * tagged.weight + sum(more.values())


@workflow
async def big_step(size: int) -> int:
    return len(await make(size))


@workflow
async def big_result(size: int) -> str:
    return "x" * size


@workflow
async def big_state(ctx: Context, size: int) -> str:
    ctx.set("s", "x" * size)
    return await make(1)


@workflow
async def big_child(size: int) -> str:
    return await anything("x" * size)


@workflow
async def big_send(ctx: Context, size: int) -> str:
    return ctx.send(anything, "x" * size)


@workflow
async def reads_a_socket() -> str:
    await asyncio.open_connection("localhost", 1)
    return "connected"


@workflow
async def runs_a_thread() -> str:
    return await asyncio.to_thread(str, 1)


@workflow
async def waits_for_approval(ctx: Context) -> str:
    return await ctx.awakeable(str)


SERVED = (
    *(hello, anything, count_tags, big_step, big_result, big_state, big_child, big_send, reads_a_socket, runs_a_thread),
    waits_for_approval,
)


@pytest.fixture(params=["memory", "sqlite"])
async def client(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Client]:
    url = "memory:" if request.param == "memory" else f"sqlite:{tmp_path / 'store.db'}"
    async with connect(url, payload_limit=LIMIT) as client, client.worker(*SERVED):
        yield client


async def nothing_was_recorded(client: Client) -> None:
    assert (await client.stats()).total == 0


# --- workflows --------------------------------------------------------------------------------------------------------
async def test_unknown_workflow_waits_and_says_for_what(client: Client) -> None:
    handle = await client.start(workflow.ref("nobody_serves_this"), 1)
    described = await handle.describe()
    assert described.status == "pending"
    assert described.waiting_for == "a worker that serves workflow 'nobody_serves_this'"


def test_two_workflows_of_one_name_in_a_worker_are_refused() -> None:
    @workflow(name="hello")
    async def other() -> None: ...

    @workflow(aliases=["hello"])
    async def another() -> None: ...

    for double in (other, another):
        with pytest.raises(NameTaken, match="hello") as raised:
            connect("memory:").worker(hello, double)
        assert raised.value.name == "hello"


def test_workflow_that_is_not_async_is_refused() -> None:
    with pytest.raises(NotAsync, match="async def"):
        workflow(cast("Any", lambda: 1))
    with pytest.raises(NotAWorkflow):
        workflow(cast("Any", "text"))


async def test_something_else_than_a_workflow_is_refused(client: Client) -> None:
    for other in (hello.fn, make, "hello", None):
        with pytest.raises(NotAWorkflow):
            await client.start(cast("Any", other), "x")
    for other in (hello.fn, make, "hello", None):
        with pytest.raises(NotAWorkflow):
            client.worker(cast("Any", other))
    await nothing_was_recorded(client)


@pytest.mark.parametrize("body", [reads_a_socket, runs_a_thread], ids=lambda body: body.name)
async def test_io_in_a_body_fails_the_invocation_and_says_so(client: Client, body: Workflow[[], str]) -> None:
    with pytest.raises(IoInWorkflow, match="step"):
        await asyncio.wait_for(client.run(body), 60)


async def test_workflow_called_outside_says_how_to_run_it() -> None:
    with pytest.raises(CalledOutsideWorkflow, match=r"client\.run\(hello"):
        await hello("x")


def test_step_info_outside_of_a_step_is_an_error() -> None:
    with pytest.raises(CalledOutsideWorkflow):
        step_info()


async def test_step_called_outside_is_the_plain_function() -> None:
    assert await make(3) == "xxx"


# --- arguments --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        ((1,), {}),
        ((None,), {}),
        (("x", "3"), {}),
        (("x", 1, 2), {}),
        (("x",), {"unknown": 1}),
        (("x",), {"name": "y"}),
        ((b"x",), {}),
    ],
)
async def test_wrong_arguments_are_refused_at_submit(
    client: Client, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    for submit in (client.run, client.start):
        with pytest.raises(InputRefused, match="hello"):
            await submit(cast("Any", hello), *args, **kwargs)
    await nothing_was_recorded(client)


async def test_input_that_cannot_be_encoded_is_refused_and_says_where_it_is(client: Client) -> None:
    loop: list[Any] = []
    loop.append(loop)
    for value in (object(), {"deep": [1, object()]}, asyncio.Lock(), loop, lambda: 1):
        with pytest.raises((Unencodable, InputRefused), match="anything"):
            await client.start(anything, value)
    await nothing_was_recorded(client)


async def test_same_id_with_another_input_or_workflow_is_a_conflict_and_the_first_goes_on(client: Client) -> None:
    first = await client.start(hello.using(id="one"), "a")
    for other, argument in ((hello, "b"), (anything, "a")):
        with pytest.raises(IdConflict, match="one"):
            await client.start(cast("Any", other).using(id="one"), argument)
    assert await first.result() == "Hello a"
    assert await client.run(hello.using(id="one"), "a") == "Hello a"
    assert (await client.stats()).total == 1


async def test_same_id_with_an_equal_input_is_the_same_start_however_the_caller_came_by_it(client: Client) -> None:
    by_name = workflow.ref("count_tags")
    decoded = decoder(Tagged)(encode({"tags": ["b", "a"]}))
    assert vars(decoded) == {"tags": {"a", "b"}}  # msgspec leaves the default where it is
    more: dict[str, int] = {"y": 2, "x": 1}
    first = await client.start(count_tags.using(id="one"), Tagged({"a", "b"}), more)
    for again in (
        client.start(count_tags.using(id="one"), decoded, {"x": 1, "y": 2}),
        client.start(count_tags.using(id="one"), more=more, tagged=decoded),
        client.start(by_name.using(id="one"), {"weight": 1, "tags": ["a", "b"]}, more),
    ):
        assert (await again).id == first.id
    assert await first.result() == 5
    for other in (Tagged({"a", "b"}, 2), Tagged({"a"})):
        with pytest.raises(IdConflict, match="one"):
            await client.start(count_tags.using(id="one"), other, more)
    assert (await client.stats()).total == 1


# --- sizes ------------------------------------------------------------------------------------------------------------
async def test_input_above_the_limit_is_refused_with_both_numbers(client: Client) -> None:
    with pytest.raises(PayloadTooLarge, match="the input of workflow 'anything'") as raised:
        await client.start(anything, BIG)
    assert raised.value.limit == LIMIT
    assert raised.value.size > LIMIT
    await nothing_was_recorded(client)


async def test_result_of_a_step_above_the_limit_fails_the_step(client: Client) -> None:
    with pytest.raises(PayloadTooLarge, match="'make'"):
        await asyncio.wait_for(client.run(big_step, LIMIT), 60)
    assert await client.run(big_step, 100) == 100


async def test_result_above_the_limit_fails_the_invocation(client: Client) -> None:
    with pytest.raises(PayloadTooLarge, match="'big_result'"):
        await asyncio.wait_for(client.run(big_result, LIMIT), 60)


@pytest.mark.parametrize("body", [big_state, big_child, big_send], ids=lambda body: body.name)
async def test_state_child_or_send_above_the_limit_fails_the_invocation(
    client: Client, body: Workflow[[int], str]
) -> None:
    with pytest.raises(PayloadTooLarge):
        await asyncio.wait_for(client.run(body, LIMIT), 60)


async def test_value_of_an_awakeable_above_the_limit_is_refused(client: Client) -> None:
    handle = await client.start(waits_for_approval)
    async with asyncio.timeout(60):
        while not (opened := (await handle.describe()).awakeables):
            await asyncio.sleep(0.01)
    with pytest.raises(PayloadTooLarge):
        await client.resolve(opened[0].id, BIG)
    await client.resolve(opened[0].id, "yes")
    assert await handle.result() == "yes"


# --- names, ids and addresses -----------------------------------------------------------------------------------------
BAD_NAMES = ("", "x" * (ID_LENGTH_LIMIT + 1), "a\nb", "a\0b", "\ud800", cast("str", 7), cast("str", b"x"))


@pytest.mark.parametrize("bad", BAD_NAMES, ids=repr)
async def test_bad_ids_keys_and_names_are_refused(client: Client, bad: str) -> None:
    with pytest.raises(BadId):
        hello.using(id=bad)
    with pytest.raises(BadId):
        hello.using(key=bad)
    with pytest.raises(BadId):
        client.handle(bad)
    if bad:
        with pytest.raises(BadId):
            workflow(name=bad)(hello.fn)


@pytest.mark.parametrize("good", ["x" * ID_LENGTH_LIMIT, "käse/*.> 1", "'; DROP TABLE frame; --", "~", "%_"])
async def test_unusual_ids_and_keys_work(client: Client, good: str) -> None:
    handle = await client.start(hello.using(id=good), "x")
    assert await handle.result() == "Hello x"
    assert (await client.handle(good, hello).describe()).id == good
    assert await client.run(hello.using(key=good), "y") == "Hello y"
    assert await client.state(good) == {}


async def test_bad_awakeable_ids_are_refused(client: Client) -> None:
    for bad in ("", "x", "a~0~0~deadbeefdeadbeef", "a~0~0~\u00e9", "~~~", "a~0~99999999999999999999~00"):
        with pytest.raises(BadId):
            await client.resolve(bad, 1)
        with pytest.raises(BadId):
            await client.reject(bad, "no")


@pytest.mark.parametrize(
    "url",
    ["x", "sqlite", "sqlite:", "sqlite::memory:", "memory:x", "postgres://h/db", "file.db", "://", "http:"],
)
def test_bad_urls_are_refused_and_say_what_is_expected(url: str) -> None:
    with pytest.raises(BadUrl, match="memory:"):
        connect(url)


def test_password_in_a_bad_url_is_not_shown() -> None:
    with pytest.raises(BadUrl) as raised:
        connect("redis://user:hunter2@host/0")
    assert "hunter2" not in str(raised.value)


async def test_unknown_invocation_is_an_error_at_once(client: Client) -> None:
    handle = client.handle("nobody")
    for use in (handle.result, handle.describe, handle.cancel, handle.pause, handle.resume):
        with pytest.raises(UnknownInvocation, match="nobody"):
            await asyncio.wait_for(use(), 2)


# --- options ----------------------------------------------------------------------------------------------------------
NAIVE = datetime(2030, 1, 1)  # noqa: DTZ001  that is the point


@pytest.mark.parametrize(
    "delay", [-1, -0.001, timedelta(seconds=-1), float("nan"), float("inf"), 1e300, True, "3", NAIVE]
)
def test_bad_delays_are_refused(delay: Any) -> None:
    with pytest.raises(InvalidOption, match="delay"):
        hello.using(delay=delay)


async def test_delay_too_far_in_the_future_is_refused(client: Client) -> None:
    with pytest.raises(InvalidOption, match="delay"):
        await client.start(hello.using(delay=datetime(9999, 1, 1, tzinfo=UTC)), "x")
    await nothing_was_recorded(client)


async def test_delay_until_a_time_that_has_passed_is_none(client: Client) -> None:
    assert await client.run(hello.using(delay=datetime(2000, 1, 1, tzinfo=UTC)), "x") == "Hello x"


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "3", True])
async def test_bad_timeouts_are_refused(client: Client, timeout: Any) -> None:
    with pytest.raises(InvalidOption, match="timeout"):
        hello.using(timeout=timeout)
    with pytest.raises(InvalidOption, match="timeout"):
        make.using(timeout=timeout)
    if timeout != 0:
        with pytest.raises(InvalidOption, match="timeout"):
            await client.handle("x").result(timeout=timeout)


@pytest.mark.parametrize(
    "options",
    [
        {"max_concurrent": 0},
        {"max_concurrent": -1},
        {"max_concurrent": 1.5},
        {"max_concurrent": float("inf")},
        {"max_concurrent": "3"},
        {"max_concurrent": True},
        {"cache": -1},
        {"cache": 1.5},
        {"cache": None},
        {"lease": 0},
        {"lease": -5},
        {"lease": float("nan")},
        {"partitions": [1]},
        {"partitions": []},
    ],
    ids=str,
)
def test_worker_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match=next(iter(options))):
        connect("memory:").worker(hello, **options)


def test_worker_without_workflows_is_refused() -> None:
    with pytest.raises(InvalidOption):
        connect("memory:").worker()
    with pytest.raises(InvalidOption):
        connect("memory:").worker(asyncio)


@pytest.mark.parametrize(
    "options",
    [{"max_attempts": 0}, {"factor": 0.5}, {"jitter": 2}, {"initial": -1}, {"maximum": float("inf")}],
    ids=str,
)
def test_retries_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match="Retry"):
        Retry(**options)


@pytest.mark.parametrize("limit", [0, -1, 1.5, "3", True])
def test_payload_limit_out_of_range_is_refused(limit: Any) -> None:
    with pytest.raises(InvalidOption, match="payload_limit"):
        connect("memory:", payload_limit=limit)


@pytest.mark.parametrize("id", [5, None, b"x~0~0~0"])
async def test_id_of_an_awakeable_that_is_no_text_is_refused(client: Client, id: Any) -> None:
    with pytest.raises(BadId, match="awakeable's id must be a str"):
        await client.resolve(id, 1)
    with pytest.raises(BadId, match="awakeable's id must be a str"):
        await client.reject(id, "no")


async def test_worker_entered_twice_is_refused(client: Client) -> None:
    worker = client.worker(hello)
    async with worker:
        with pytest.raises(InvalidOption, match="running already"):
            await worker.__aenter__()


async def test_every_refusal_is_one_of_perdures_errors(client: Client) -> None:
    with suppress(PerdureError):
        await client.start(cast("Any", hello), object())
    await nothing_was_recorded(client)
