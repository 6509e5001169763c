"""The test environment: its fakes, and the faults that it brings about on demand."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, cast

import grpc
import grpc.aio
import pydantic
import pytest

from examples.services.ticket_pb2 import ReserveRequest, ReserveResponse
from examples.services.ticket_pb2_grpc import TicketServiceStub
from perdure import Context, InvocationCancelled, Retry, step, workflow
from perdure.errors import InvalidOption, ServiceUnknown, Unencodable
from perdure.testing import Environment, crash_everywhere

ran: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    ran.clear()
    yield
    ran.clear()


@step(retry=Retry(max_attempts=2, initial=60, jitter=0))
async def act(name: str) -> str:
    ran[name] += 1
    return name


@step
def sync_act(name: str) -> str:
    ran[name] += 1
    return name


@workflow
async def three() -> list[str]:
    return [await act("one"), await sync_act("two"), await act("three")]


@workflow
async def parent(ctx: Context) -> list[str]:
    ctx.send(three.using(delay=3600))
    await asyncio.sleep(86_400)
    try:
        return ["parent", *await three()]
    finally:
        await act("cleanup")


@workflow
async def asks(ctx: Context) -> str:
    answer = ctx.awakeable(str)
    await act("asked")
    return await answer


# --- crashes ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("replay", [True, False])
async def test_crash_lets_another_worker_take_over_what_is_under_way(replay: bool) -> None:
    async with Environment(asks, replay=replay) as env:
        handle = await env.client.start(asks)
        waiting = asyncio.create_task(handle.result())
        awakeable = await env.awakeable(handle)
        for crashes in range(1, 4):
            await env.crash()
            assert env.crashes == crashes
        assert await env.awakeable(handle) == awakeable
        await env.client.resolve(awakeable, "yes")
        assert await waiting == "yes"
        assert (await handle.describe()).epoch > 1
    assert ran == {"asked": 1}


async def test_crash_in_the_middle_of_a_step_runs_it_again() -> None:
    begun: asyncio.Queue[str] = asyncio.Queue()

    async def slow(name: str) -> str:
        ran[name] += 1
        begun.put_nowait(name)
        await asyncio.sleep(0 if ran[name] > 1 else 3600)
        return name

    async with Environment(three) as env:
        env.fake(act, slow)
        handle = await env.client.start(three)
        for name in ("one", "three"):
            assert await asyncio.wait_for(begun.get(), 5) == name
            await env.crash()
            assert await asyncio.wait_for(begun.get(), 5) == name
        assert await handle.result() == ["one", "two", "three"]
    assert ran == {"one": 2, "two": 1, "three": 2}


async def test_commit_before_which_the_worker_dies_is_lost_and_one_after_which_it_dies_is_not() -> None:
    for written in (False, True):
        ran.clear()
        async with Environment(three) as env:
            if written:
                env.crash_after_commit(2)
            else:
                env.crash_before_commit(2)
            assert await env.client.run(three) == ["one", "two", "three"]
            assert env.crashes == 1
        assert sum(ran.values()) == (3 if written else 4)


@pytest.mark.parametrize("replay", [True, False])
async def test_workflow_can_be_shown_to_survive_a_crash_at_any_commit(replay: bool) -> None:
    crashes: list[int] = []
    for env in crash_everywhere(parent, three, replay=replay):
        ran.clear()
        async with env:
            handle = await env.client.start(parent)
            assert await handle.result() == ["parent", "one", "two", "three"]
            await env.advance(timedelta(hours=2))
            assert (await env.client.stats()).by_status == {"completed": 3}
            crashes.append(env.crashes)
            assert sum(ran.values()) in (7, 8)
    assert crashes == [*[1] * (len(crashes) - 1), 0]
    assert len(crashes) > 15


async def test_crash_points_of_a_cancelled_workflow_leave_it_cancelled_and_cleaned_up() -> None:
    for env in crash_everywhere(parent, three):
        ran.clear()
        async with env:
            handle = await env.client.start(parent)
            await env.advance(86_400 * 2)
            if (await handle.describe()).status == "completed":
                continue
            await handle.cancel()
            with pytest.raises(InvocationCancelled):
                await handle.result()
            assert ran["cleanup"] in (1, 2)


# --- the store --------------------------------------------------------------------------------------------------------
async def test_failed_commits_are_tried_again_as_time_passes_and_nothing_runs_twice() -> None:
    async with Environment(three) as env:
        env.fail_commits(3)
        began = env.clock.now()
        assert await env.client.run(three) == ["one", "two", "three"]
        assert env.clock.now() - began == pytest.approx(3)
    assert ran == {"one": 1, "two": 1, "three": 1}


async def test_deliveries_that_come_twice_change_nothing() -> None:
    async with Environment(parent, three) as env:
        handle = await env.client.start(parent)
        for _ in range(5):
            env.redeliver()
            await asyncio.sleep(0)
        assert await handle.result() == ["parent", "one", "two", "three"]
        env.redeliver()
        await env.advance(1)
        assert (await env.client.stats()).by_status == {"completed": 3}
    assert sum(ran.values()) == 7


async def test_bulk_jobs_are_carried_out_also_over_a_crash() -> None:
    @workflow
    async def fails(number: int) -> None:
        raise ValueError(f"no luck with {number}")

    async with Environment(fails) as env:
        await env.client.run_all([fails.bind(n) for n in range(5)])
        job = await env.client.bulk("retry", status="failed")
        await env.crash()
        assert (await job.result(timeout=60)).applied == 5
        await env.settle()
        described = [await env.client.handle(each.id).describe() async for each in env.client.list()]
        assert {each.retries for each in described} == {1}


async def test_faults_that_can_never_come_are_refused() -> None:
    async with Environment(three) as env:
        for fault in (env.crash_before_commit, env.crash_after_commit):
            with pytest.raises(InvalidOption, match="at least 1"):
                fault(0)


# --- fakes ------------------------------------------------------------------------------------------------------------
@workflow
async def reserves(ctx: Context, id: str) -> str:
    tickets = ctx.stub(TicketServiceStub, retry=Retry(max_attempts=3, initial=30, factor=1, jitter=0))
    try:
        reply = await tickets.Reserve(ReserveRequest(ticket_id=id))
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name}: {error.details()}"
    return f"{reply.success}"


def status(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details)


async def test_fake_of_a_grpc_method_gets_the_request_and_gives_the_reply() -> None:
    async with Environment(reserves) as env:
        env.fake("TicketService.Reserve", lambda request: ReserveResponse(success=request.ticket_id == "T-1"))
        assert await env.client.run(reserves, "T-1") == "True"
        assert await env.client.run(reserves, "T-2") == "False"

        async def reserve(request: ReserveRequest) -> bytes:
            return ReserveResponse(success=True).SerializeToString()

        env.fake("TicketService.Reserve", reserve)
        assert await env.client.run(reserves, "T-2") == "True"


async def test_status_that_a_fake_raises_is_tried_again_as_the_policy_says() -> None:
    async with Environment(reserves) as env:

        def unavailable(request: ReserveRequest) -> ReserveResponse:
            ran[request.ticket_id] += 1
            if ran[request.ticket_id] < 3:
                raise status(grpc.StatusCode.UNAVAILABLE, "come back later")
            raise status(grpc.StatusCode.NOT_FOUND, "no such ticket")

        env.fake("TicketService.Reserve", unavailable)
        began = env.clock.now()
        assert await env.client.run(reserves, "T-1") == "NOT_FOUND: no such ticket"
        assert env.clock.now() - began == pytest.approx(60)
    assert ran == {"T-1": 3}


@pytest.mark.parametrize("reply", [ReserveRequest(ticket_id="T-1"), {"success": True}, None])
async def test_fake_that_gives_something_else_than_the_reply_fails_at_once(reply: object) -> None:
    async with Environment(reserves) as env:
        env.fake("TicketService.Reserve", lambda _: reply)
        with pytest.raises(Unencodable, match=r"the fake of TicketService\.Reserve returned a"):
            await env.client.run(reserves, "T-1")


async def test_method_without_a_fake_is_called_for_real_and_needs_an_address() -> None:
    async with Environment(reserves) as env:
        env.fake("TicketService.Release", lambda _: None)
        with pytest.raises(ServiceUnknown):
            await env.client.run(reserves, "T-1")


async def test_fake_is_of_a_step_or_names_a_method() -> None:
    async with Environment(three) as env:
        for wrong in ("act", "a.b.c", "Ticket.", "", three, 7):
            with pytest.raises(InvalidOption, match="fake"):
                env.fake(cast("Any", wrong), lambda: None)


async def test_result_of_a_fake_must_fit_the_step() -> None:
    async with Environment(three) as env:
        env.fake(act, cast("Any", lambda name: 7))  # pyright: ignore[reportUnknownLambdaType]
        with pytest.raises(Unencodable, match="step 'act'"):
            await env.client.run(three)


# --- a fake that does not end -----------------------------------------------------------------------------------------
@step(retry=Retry(max_attempts=2, initial=5, jitter=0), timeout=20)
async def slow(name: str) -> str:
    return name


@workflow
async def gives_up(seconds: float) -> str:
    try:
        async with asyncio.timeout(seconds):
            return await slow("never")
    except TimeoutError:
        return "too slow"


async def never(name: str) -> str:
    assert name
    return await asyncio.get_running_loop().create_future()


async def test_time_moves_while_a_fake_does_not_end_so_that_a_timeout_around_it_can_be_tested() -> None:
    async with Environment(gives_up) as env:
        env.fake(slow, never)
        handle = await env.client.start(gives_up, 10)
        await env.advance(9)
        assert (await handle.describe()).status == "running"
        await env.advance(1)
        assert await handle.result() == "too slow"


async def test_time_limit_of_an_attempt_passes_while_a_fake_does_not_end() -> None:
    calls = 0

    async def slow_once(name: str) -> str:
        nonlocal calls
        calls += 1
        return name if calls > 1 else await never(name)

    async with Environment(gives_up) as env:
        env.fake(slow, slow_once)
        handle = await env.client.start(gives_up, 100)
        await env.advance(30)
        assert (await handle.result(), calls) == ("never", 2)


async def test_fake_that_takes_real_time_ends_before_time_moves() -> None:
    async def counts(name: str) -> str:
        for _ in range(200):
            await asyncio.sleep(0.001)
        return name

    async with Environment(gives_up) as env:
        env.fake(slow, counts)
        handle = await env.client.start(gives_up, 5)
        await env.advance(10)
        assert await handle.result() == "never"


async def test_many_fakes_that_do_not_end_and_one_that_does_beside_them() -> None:
    @workflow
    async def many() -> list[str]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(gives_up_on(n)) for n in range(5)]
        return [task.result() for task in tasks]

    async def gives_up_on(n: int) -> str:
        try:
            return await asyncio.wait_for(slow(str(n)), 2 + n)
        except TimeoutError:
            return "too slow"

    async with Environment(many) as env:
        env.fake(slow, lambda name: name if name == "3" else never(name))
        handle = await env.client.start(many)
        await env.advance(7)
        assert await handle.result() == ["too slow", "too slow", "too slow", "3", "too slow"]


# --- what does not come back ------------------------------------------------------------------------------------------
class Lossy(pydantic.BaseModel):
    n: int

    @pydantic.field_serializer("n")
    def _forget(self, _: int) -> int:
        return 0


@step
async def lossy() -> Lossy:
    return Lossy(n=3)


@workflow
async def asks_for_lossy() -> int:
    return (await lossy()).n


@pytest.mark.parametrize("is_faked", [False, True])
async def test_result_that_does_not_come_back_equal_fails_the_step_in_the_test_environment(is_faked: bool) -> None:
    async with Environment(asks_for_lossy) as env:
        if is_faked:
            env.fake(lossy, lambda: Lossy(n=4))
        with pytest.raises(Unencodable, match=r"the result of step 'lossy' would not come back .* Lossy\(n=0\)"):
            await env.client.run(asks_for_lossy)


@step
async def loosely_typed(kind: str) -> Any:
    return {"set": {3, 1}, "model": Model(n=1), "nan": float("nan"), "tuple": (1, (2,)), "private": Private(n=1)}[kind]


class Model(pydantic.BaseModel):
    n: int


class Private(pydantic.BaseModel):
    n: int
    _at: object = pydantic.PrivateAttr(default_factory=object)


@step
async def typed() -> Private:
    return Private(n=1)


@workflow
async def asks_loosely() -> int:
    for kind in ("set", "model", "nan", "tuple", "private"):
        await loosely_typed(kind)
    return (await typed()).n


async def test_what_comes_back_as_documented_is_no_difference() -> None:
    async with Environment(asks_loosely) as env:
        assert await env.client.run(asks_loosely) == 1


class Sold:
    out = True


@step(retry=Retry(max_attempts=1))
async def sell() -> str:
    if Sold.out:
        raise RuntimeError("sold out")
    return "sold"


@workflow
async def sale() -> str:
    return await sell()


@workflow
async def stocktaking() -> str:
    await asyncio.sleep(60)
    return "counted"


async def test_time_passes_while_a_retry_waits_for_its_key() -> None:
    Sold.out = True
    async with Environment(sale, stocktaking) as env:
        failed = await env.client.start(sale.using(key="shop"))
        with pytest.raises(RuntimeError, match="sold out"):
            await failed.result()
        counting = await env.client.start(stocktaking.using(key="shop"))
        await env.settle()
        Sold.out = False
        retrying = asyncio.create_task(failed.retry())
        async with asyncio.timeout(30):
            await env.advance(60)
            await retrying
        assert await counting.result() == "counted"
        assert await failed.result() == "sold"
