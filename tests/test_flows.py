"""Flows: graphs of steps, workflows and flows; maps, choices, rules; as data; through edits and crashes."""

from __future__ import annotations

import asyncio
import functools
import json
import random
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, TypedDict

import pytest

from perdure import (
    Client,
    Context,
    Continue,
    Each,
    Flow,
    Graph,
    Retry,
    Skip,
    Stop,
    connect,
    flow,
    step,
    step_info,
    workflow,
)
from perdure.errors import InputRefused, InvalidOption, MessageRefused, NameTaken, NodeHasNoValue, NodeSkipped
from perdure.testing import Environment, crash_everywhere

ONCE = Retry(max_attempts=1)

ran: list[str] = []
failing: set[str] = set()


@pytest.fixture(autouse=True)
def fresh() -> None:
    ran.clear()
    failing.clear()


@dataclass
class User:
    name: str
    age: int


class Split(TypedDict):
    old: list[User]
    young: list[User]


def note(what: str) -> None:
    ran.append(what)
    if what in failing:
        raise ConnectionError(what)


@step(retry=ONCE)
async def fetch(day: date) -> list[User]:
    note("fetch")
    return [User("ada", day.day), User("bob", 40), User("cyd", 12)]


@step
def split(users: list[User], limit: int = 18) -> Split:
    return {"old": [each for each in users if each.age >= limit], "young": [each for each in users if each.age < limit]}


@step(retry=ONCE)
async def greet(user: User, hello: str = "hello") -> str:
    note(f"greet {user.name}")
    return f"{hello} {user.name}"


@step
async def join(parts: list[str], extra: dict[str, str] | None = None) -> str:
    return ", ".join(parts) + "".join(f"; {key}: {value}" for key, value in (extra or {}).items())


@step
async def many(users: list[User]) -> bool:
    return len(users) > 1


@workflow
async def archive(ctx: Context, names: list[str]) -> int:
    return len(names)


@step
async def keep(names: list[str]) -> str:
    return "kept"


@step
async def summary(old: str, young: list[str], done: str, where: int | str) -> str:
    return f"{old} | {young} | {done} | {where}"


@flow
def greetings(graph: Graph, users: list[User], hello: str) -> list[str]:
    return graph.map(greet.bind(Each(users), hello))


@flow(name="daily-report", max_workers=5)
def report(graph: Graph, day: date, hello: str = "hi", *, limit: int = 18) -> str:
    users = graph.add(fetch.bind(day), on_error=Continue(default=[]))
    parts = graph.add(split.bind(users, limit))
    old = graph.add(greetings.bind(parts["old"], hello))
    young = graph.map(greet.bind(Each(parts["young"]), hello="hey"), name="young", concurrency=1)
    first = graph.add(greet.bind(users[0]), name="first")
    where = graph.when(many.bind(users), then=archive.bind(old), otherwise=keep.bind(old))
    done = graph.add(join.bind([first, users[1].name], {"young": first}), name="done")
    final = graph.add(join.bind(old), name="old")
    return graph.add(summary.bind(final, young, done, where))


DAY = date(2026, 11, 20)
REPORT = "hi ada, hi bob | ['hey cyd'] | hello ada, bob; young: hello ada | 2"
CALLED = [fetch, split, greet, join, many, archive, keep, greetings, summary]


async def run(of: Flow[..., Any], *args: Any, **kwargs: Any) -> Any:
    async with Environment(of, archive) as env:
        return await env.client.run(of, *args, **kwargs)


async def test_graph_of_steps_children_flows_maps_and_choices() -> None:
    async with Environment(report, archive) as env:
        handle = await env.client.start(report, DAY)
        assert await handle.result() == REPORT
        names = [each.step_type for each in (await handle.describe()).journal]
    assert {"fetch", "greetings.greet[0]", "greetings.greet[1]", "young[0]", "when.many", "CHILD:archive"} <= {*names}
    assert await run(report, day=DAY, hello="yo", limit=50) == (
        " | ['hey ada', 'hey bob', 'hey cyd'] | hello ada, bob; young: hello ada | 0"
    )


async def test_flow_survives_a_crash_at_any_moment() -> None:
    for env in crash_everywhere(report, archive):
        async with env:
            assert await env.client.run(report, DAY) == REPORT


async def test_sequential_run_is_that_of_one_start() -> None:
    async with Environment(report, archive) as env:
        await env.client.run(report.using(strategy="sequential"), DAY)
        assert ran == ["fetch", "greet ada", "greet bob", "greet cyd", "greet ada"]
        handle = await env.client.start(report.using(max_workers=1, strategy="concurrent"), DAY)
        assert await handle.result() == REPORT


# --- rules ------------------------------------------------------------------------------------------------------------
async def test_failed_node_of_a_flow_is_named_and_retried_alone() -> None:
    failing.add("greet bob")
    async with Environment(report, archive) as env:
        handle = await env.client.start(report, DAY)
        with pytest.raises(ConnectionError) as caught:
            await handle.result()
        notes = " ".join(caught.value.__notes__)
        assert "in element 1 of node 'greetings.greet'" in notes
        assert "in node 'greetings' of flow 'daily-report'" in notes
        failing.clear()
        ran.clear()
        await handle.retry()
        assert await handle.result() == REPORT
    assert ran.count("greet bob") == 1
    assert "fetch" not in ran


@pytest.mark.parametrize(
    ("options", "bad", "result"),
    [
        ({}, set[str](), "hello ada, hello bob, hello cyd"),
        ({"on_error": Skip()}, {"ada", "cyd"}, "hello bob"),
        ({"on_error": Continue(default="-")}, {"bob"}, "hello ada, -, hello cyd"),
        ({"tolerate": 1}, {"ada"}, "hello bob, hello cyd"),
        ({"tolerate": 0.67, "on_error": Continue(default="-")}, {"ada", "bob"}, "-, -, hello cyd"),
        ({"tolerate": 1}, {"ada", "bob"}, ConnectionError),
        ({"tolerate": 0.3}, {"ada"}, ConnectionError),
        ({}, {"cyd"}, ConnectionError),
        ({"on_error": Stop()}, {"cyd"}, ConnectionError),
    ],
)
async def test_rules_for_the_elements_of_a_map(options: dict[str, Any], bad: set[str], result: Any) -> None:
    @flow
    def all_greeted(graph: Graph, day: date) -> str:
        return graph.add(join.bind(graph.map(greet.bind(Each(graph.add(fetch.bind(day)))), **options)))

    failing.update(f"greet {each}" for each in bad)
    if result is ConnectionError:
        with pytest.raises(ConnectionError):
            await run(all_greeted, DAY)
    else:
        assert await run(all_greeted, DAY) == result


async def test_skipped_result_is_none_where_its_type_allows_it_and_names_its_node_where_not() -> None:
    @flow(on_error=Skip())
    def loose(graph: Graph, day: date) -> list[User] | None:
        return graph.add(fetch.bind(day))

    @flow(on_error=Skip())
    def strict(graph: Graph, day: date) -> Split:
        return graph.add(split.bind(graph.add(fetch.bind(day))))

    failing.add("fetch")
    assert await run(loose, DAY) is None
    with pytest.raises(NodeSkipped, match="node 'split' was skipped") as caught:
        await run(strict, DAY)
    assert caught.value.node == "split"


async def test_choice_runs_only_what_is_chosen() -> None:
    @flow
    def choosing(graph: Graph, users: list[User], wanted: bool) -> list[Any]:
        one = graph.when(wanted, then=greet.bind(users[0]), name="one")
        two = graph.when(many.bind(users), then=greet.bind(users[1]), otherwise=greet.bind(users[0]), name="two")
        return [one, two]

    ada, bob = User("ada", 1), User("bob", 2)
    assert await run(choosing, [ada, bob], wanted=False) == [None, "hello bob"]
    assert await run(choosing, [ada], wanted=True) == ["hello ada", "hello ada"]
    assert ran == ["greet bob", "greet ada", "greet ada"]


async def test_missing_part_of_a_value_names_the_node() -> None:
    @flow
    def wrong(graph: Graph, users: list[User]) -> str:
        return graph.add(greet.bind(users[7]))

    with pytest.raises(ValueError, match=r"node users\[7\] has no value: IndexError"):
        await run(wrong, [User("ada", 1)])


async def test_map_over_lists_of_different_lengths_fails() -> None:
    @flow
    def uneven(graph: Graph, users: list[User]) -> list[str]:
        return graph.map(greet.bind(Each(users), Each(["a", "b"])))

    assert await run(uneven, [User("x", 1), User("y", 2)]) == ["a x", "b y"]
    with pytest.raises(ValueError, match=r"have \[1, 2\] elements"):
        await run(uneven, [User("x", 1)])


async def test_bounds_hold_over_maps_and_flows_together() -> None:
    async with Environment(bounded) as env:
        peak.clear()
        running.clear()
        assert await env.client.run(bounded, list(range(6))) == [[0, 1, 2, 3, 4, 5]] * 2
        assert max(peak) == 3
        peak.clear()
        await env.client.run(bounded.using(max_workers=2), list(range(6)))
        assert max(peak) == 2
        peak.clear()
        await env.client.run(bounded.using(strategy="sequential"), list(range(6)))
        assert max(peak) == 1


running: set[int] = set()
peak: list[int] = []


@step
async def counted(n: int) -> int:
    me = len(peak)
    running.add(me)
    peak.append(len(running))
    await asyncio.sleep(0)
    await asyncio.sleep(0.002)
    running.discard(me)
    return n


@flow
def inner(graph: Graph, numbers: list[int]) -> list[int]:
    return graph.map(counted.bind(Each(numbers)))


@flow(max_workers=3)
def bounded(graph: Graph, numbers: list[int]) -> list[list[int]]:
    return [graph.add(inner.bind(numbers)), graph.map(counted.bind(Each(numbers)))]


# --- as data ----------------------------------------------------------------------------------------------------------
async def test_graph_goes_through_json_and_back() -> None:
    same = Flow.loads(report.dumps(), steps=CALLED)
    assert json.loads(same.dumps())["nodes"] == json.loads(report.dumps())["nodes"]
    assert await run(same, {"day": DAY}) == REPORT
    assert await run(same, {"day": DAY, "hello": "yo", "limit": 18}) == REPORT.replace("hi ", "yo ")


async def test_graph_of_an_earlier_release_is_read_with_a_warning() -> None:
    first: list[Any] = [
        [1, "old", "sequential", None, "join"],
        [["day", "date"]],
        [
            ["users", "fetch", [{"node": "day"}], {}, {"continue": []}],
            ["join", "join", [{"value": ["x"]}], {}, {"retry": [2, 0.1, 1.0, 2.0, 0.0]}],
        ],
    ]
    with pytest.warns(DeprecationWarning, match="serialize it again"):
        old = Flow.deserialize(first, steps=[fetch, join])
    assert await run(old, {"day": DAY}) == "x"
    assert old.strategy == "sequential"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Flow.deserialize(old.serialize(), steps=[fetch, join]).dumps() == old.dumps()


def file(**changes: Any) -> str:
    made = json.loads(Flow("f").dumps())
    return json.dumps({**made, **changes})


NODE: dict[str, Any] = {"name": "a", "call": {"name": "keep", "args": [{"value": []}]}}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no flow"),
        ("{}", "no flow"),
        ("[1, 2]", "no flow"),
        ("[" * 100_000, "no flow"),
        (file(nodes=[{**NODE, "is_map": True}]), "one argument of a map must be Each"),
        (file(nodes=[{**NODE, "condition": {"value": 0}}]), "a condition is a node, a bool"),
        (file(nodes=[{**NODE, "is_map": True, "concurrency": -1}]), "concurrency=-1: give at least 1"),
        (file(nodes=[{**NODE, "call": {"name": "keep", "args": [{"map": [[{"list": []}, {"value": 1}]]}]}}]), "a key"),
        (file(perdure_flow=3), "version 3 is not known here, which reads 2: upgrade"),
        (file(strategy="eager"), "Invalid enum value 'eager'"),
        (file(more=1), "unknown field `more`"),
        (file(nodes=[{"name": "a", "call": {"name": "os.system"}}]), "calls 'os.system', which is not there"),
        (file(nodes=[NODE, NODE]), "two nodes are called 'a'"),
        (file(nodes=[{**NODE, "call": {"name": "keep", "args": [{"node": "b"}]}}]), "needs 'b', which is not there"),
        (
            file(
                nodes=[
                    {"name": "a", "call": {"name": "keep", "args": [{"node": "b"}]}},
                    {"name": "b", "call": {"name": "keep", "args": [{"node": "a"}]}},
                ]
            ),
            "these nodes need each other, in a circle: a, b",
        ),
        (file(nodes=[{"name": "a", "call": {"name": "keep"}}]), "missing a required argument: 'names'"),
        (file(nodes=[{**NODE, "call": {"name": "keep", "args": [{}]}}]), "an argument that says nothing"),
        (file(result={"node": "z"}), "the result needs 'z'"),
        (file(nodes=[{**NODE, "name": str(n)} for n in range(10_001)]), "10,000 nodes, and that is the limit"),
        (file(name="x" * 300), "where the limit is 200"),
        ("x" * 16_777_217, "the limit is 16,777,216"),
    ],
)
def test_hostile_files_are_refused(text: str, says: str) -> None:
    with pytest.raises((InvalidOption, ValueError), match=says):
        Flow.loads(text, steps=[keep])


def test_nodes_of_a_file_may_be_in_any_order() -> None:
    made = json.loads(report.dumps())
    made["nodes"].reverse()
    assert Flow.loads(json.dumps(made), steps=CALLED).plan.pieces.keys() == report.plan.pieces.keys()


def test_diagram_has_all_nodes_and_edges() -> None:
    drawn = report.diagram()
    assert drawn.startswith("flowchart TD\n")
    assert drawn.count("-->") == 17
    assert '{"when: archive or keep"}' in drawn
    odd = Flow("odd")
    odd.add(keep.bind([]), name='a "b" <c>')
    assert '"a &quot;b&quot; &lt;c&gt;: keep"' in odd.diagram()


# --- what is edited in flight -----------------------------------------------------------------------------------------
@step
async def wait_here(day: date) -> list[str]:
    return []


def before(graph: Graph, day: date) -> str:
    first = graph.add(slow.bind(day))
    return graph.add(join.bind([first]))


def reordered(graph: Graph, day: date) -> str:
    graph.add(keep.bind([]))
    first = graph.add(slow.bind(day), name="other-name")
    return graph.add(join.bind([first, first]))


def without(graph: Graph, day: date) -> str:
    return graph.add(join.bind([graph.add(greet.bind(User("x", 1)))]))


@workflow
async def slow(day: date) -> str:
    await asyncio.sleep(3600)
    return str(day)


async def test_flow_that_is_edited_in_flight_goes_on_as_it_began(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path / 'flow.db'}"
    first, second, third = (flow(name="edited")(each) for each in (before, reordered, without))
    async with connect(url) as client, client.worker(first, short):
        handle = await client.start(first, DAY)
        while not (await handle.describe()).journal[2:]:
            await asyncio.sleep(0.01)
    async with connect(url) as client, client.worker(third, short):
        handle = client.handle(handle.id)
        while (await handle.describe()).status != "paused":
            await asyncio.sleep(0.01)
        because = (await handle.describe()).paused_because or ""
        assert "calls 'slow', which is not there" in because
    async with connect(url) as client, client.worker(second, short):
        handle = client.handle(handle.id, second)
        await handle.resume()
        assert await handle.result() == "2026-11-20"
        assert await client.run(second, DAY) == "2026-11-20, 2026-11-20"


@workflow(name="slow")
async def short(day: date) -> str:
    await asyncio.sleep(0.3)
    return str(day)


# --- odd programs -----------------------------------------------------------------------------------------------------
@step(name="greet")
async def other_greet(user: User, hello: str = "hello") -> str:
    return hello


class Shop:
    @step
    async def sell(self, what: str) -> str:
        return what


@step(retry=ONCE)
async def grown(items: list[str], user: User) -> str:
    items.append("!")
    user.name += "!"
    return user.name + "".join(items)


@step(retry=ONCE)
async def nobody() -> User:
    raise ConnectionError("nobody")


@step
async def same(value: Any) -> Any:
    return value


@step
async def letters() -> set[str]:
    return set("abcdefgh")


def test_names_that_two_callees_have_are_refused() -> None:
    @flow(name="greetings")
    def other(graph: Graph, users: list[User]) -> list[str]:
        return graph.map(greet.bind(Each(users)))

    user, one, two = User("a", 1), Shop(), Shop()
    for first, second in (
        (greet.bind(user), other_greet.bind(user)),
        (one.sell.bind("x"), two.sell.bind("x")),
        (greetings.bind([], ""), other.bind([])),
        (greetings.bind([], ""), workflow.ref("greetings").bind([], "")),
    ):
        graph = Flow("both")
        graph.add(first)
        with pytest.raises(InvalidOption, match="give one of them another name"):
            graph.add(second)
    graph = Flow("one")
    for call in (one.sell.bind("x"), one.sell.using(timeout=5).bind("y"), greet.bind(user), greet.bind(user)):
        graph.add(call)


def test_flow_that_would_contain_itself_is_refused() -> None:
    outer, inner = Flow("outer"), Flow("inner")
    outer.add(inner.bind({}))
    for flow_, node in ((inner, outer), (inner, inner), (inner, outer.using(key="k"))):
        with pytest.raises(InvalidOption, match="cannot contain itself"):
            flow_.add(node.bind({}))


def test_what_cannot_be_recorded_or_be_a_graph_is_refused_when_it_is_built() -> None:
    odd: Any = object()

    def takes_odd(graph: Graph, given: Any = odd) -> Any:
        return graph.add(same.bind(given))

    builds: list[Callable[[Any], Any]] = [
        takes_odd,
        lambda graph: graph.add(same.bind(1), on_error=Continue(default=odd)),
        lambda graph: graph.map(same.bind([Each([1])])),
        lambda graph: graph.when(True, then=same.bind(Each([1]))),
    ]
    for build in builds:
        with pytest.raises(InvalidOption):
            flow(name="odd")(build)
    nothing: Any = lambda: None  # noqa: E731
    with pytest.raises(InvalidOption, match="its first parameter is the Graph"):
        flow(nothing)
    with pytest.raises(InvalidOption, match="cannot be recorded"):
        Flow("odd", on_error=Continue(default=odd))


async def test_keys_and_partials_may_be_nodes_and_builders() -> None:
    def build(graph: Graph, key: str, extra: int) -> Any:
        return graph.add(same.bind({key: [extra, key]}))

    made: Flow[..., Any] = flow(functools.partial(build, extra=3))
    assert await run(made, "k") == {"k": [3, "k"]}
    assert await run(Flow.loads(made.dumps(), steps=[same]), {"key": "k"}) == {"k": [3, "k"]}


async def test_names_of_nested_nodes_may_be_too_long_for_a_step() -> None:
    long = "n" * 200
    made = Flow("first")
    made.returns(made.add(same.bind(1), name=long))
    for depth in range(3):
        inner, made = made, Flow(f"at-{depth}")
        made.returns(made.add(inner.bind({}), name=long))
    async with Environment(made) as env:
        handle = await env.client.start(made, {})
        assert await handle.result() == 1
        assert [each.step_type for each in (await handle.describe()).journal if "n" * 9 in each.step_type] == [
            "…" + long[1:]
        ]


async def test_what_a_step_does_to_its_arguments_does_not_change_the_graph() -> None:
    @flow
    def growing(graph: Graph, items: list[str] = []) -> list[str]:  # noqa: B006
        one = graph.add(grown.bind(items, User("a", 1)))
        user = graph.add(nobody.bind(), on_error=Continue(default=User("b", 2)))
        return [one, graph.add(grown.bind([one], user))]

    async with Environment(growing) as env:
        for _ in range(2):
            assert await env.client.run(growing) == ["a!!", "b!a!!!"]


async def test_map_over_a_set_is_in_an_order_that_all_processes_have() -> None:
    @flow
    def sorted_letters(graph: Graph) -> list[Any]:
        return graph.map(same.bind(Each(graph.add(letters.bind()))))

    assert await run(sorted_letters) == [*"abcdefgh"]


async def test_share_that_may_fail_is_exact_and_the_retries_of_a_flow_are_those_of_its_maps() -> None:
    tries: list[int] = []

    @step(retry=ONCE)
    async def fails_below_29(number: int) -> int:
        tries.append(number)
        if number < 29:
            raise ValueError(number)
        return number

    @flow(on_error=Retry(max_attempts=2, initial=0.01))
    def tolerant(graph: Graph, numbers: list[int]) -> list[int]:
        return graph.map(fails_below_29.bind(Each(numbers)), tolerate=0.29)

    assert len(await run(tolerant, [*range(100)])) == 71
    assert len(tries) == 129


async def test_values_of_a_graph_have_their_types_when_it_was_read() -> None:
    @flow
    def typed(graph: Graph, users: list[User], last: User = User("zed", 9)) -> list[Any]:  # noqa: B008
        found = graph.add(nobody.bind(), on_error=Continue(default=User("con", 1)))
        many = graph.add(split.bind([found, User("kim", 99)]))
        return [graph.map(greet.bind(Each(users))), graph.add(greet.bind(last)), graph.add(greet.bind(found)), many]

    read = Flow.loads(typed.dumps(), steps=[greet, nobody, split])
    result = await run(typed, [User("ada", 1)])
    assert result[:3] == [["hello ada"], "hello zed", "hello con"]
    assert await run(read, {"users": [User("ada", 1)]}) == result


def test_options_of_a_start_go_through_json_and_are_not_those_of_another_node() -> None:
    later = datetime(2030, 1, 1, tzinfo=UTC)
    inner = greetings.using(strategy="sequential", max_workers=2, tags={"a": "b"}, delay=timedelta(minutes=1))
    made = Flow("optioned")
    made.add(greetings.bind([], ""))
    made.add(inner.bind([], ""))
    made.add(archive.using(id="x", key="k", timeout=9, delay=later).bind([]))
    read: Any = Flow.loads(made.dumps(), steps=[inner, archive])
    plain, optioned, child = (each.bound.callee for each in read.plan.pieces.values())
    assert not plain.is_optioned
    assert (optioned.execution, optioned.options) == (inner.execution, inner.using(delay=60).options)
    assert child.options == archive.using(id="x", key="k", timeout=9, delay=later).options


async def test_graph_with_options_and_constants_goes_on_after_an_edit(tmp_path: Path) -> None:
    def then(graph: Graph, user: User = User("d", 1)) -> Any:  # noqa: B008
        waited = graph.add(short.bind(DAY))
        many = [user, User("k", 1)]
        inner = graph.add(greetings.bind(many, waited))
        child = graph.add(greetings.using(strategy="sequential", tags={"a": "b"}).bind(many, waited))
        return [inner, child, user.name]

    def now(graph: Graph, user: User = User("e", 2)) -> Any:  # noqa: B008
        waited = graph.add(short.bind(DAY))
        return graph.add(greetings.using(key="k").bind([user], waited))

    url = f"sqlite:{tmp_path / 'flow.db'}"
    first, second = (flow(name="edited")(each) for each in (then, now))
    async with connect(url) as client, client.worker(first, short, greetings):
        handle = await client.start(first)
        while not (await handle.describe()).journal[2:]:
            await asyncio.sleep(0.01)
    async with connect(url) as client, client.worker(second, short, greetings):
        said = [f"{DAY} d", f"{DAY} k"]
        async with asyncio.timeout(20):
            assert await client.handle(handle.id).result() == [said, said, "d"]


async def test_flow_of_the_same_name_with_another_graph_is_not_run_in_its_place(tmp_path: Path) -> None:
    first, second = (flow(name="edited")(each) for each in (before, without))
    async with connect(f"sqlite:{tmp_path / 'flow.db'}") as client, client.worker(first, short):
        with pytest.raises(NameTaken, match=r"with another graph than .*test_flows\.py"):
            await client.run(second, DAY)


async def test_flow_that_grew_after_it_became_a_node_is_recorded_as_it_is() -> None:
    inner, outer = Flow("inner"), Flow("outer")
    inner.returns(inner.add(same.bind(1)))
    outer.returns(outer.add(inner.using().bind({})))
    async with Environment(outer) as env:
        assert await env.client.run(outer, {}) == 1
        inner.returns(inner.add(same.bind(2)))
        assert await env.client.run(outer, {}) == 2
        assert b"same-2" in outer.whole()


# --- what is wrong with a graph ---------------------------------------------------------------------------------------
def test_all_that_is_wrong_is_in_one_error() -> None:
    wrong: Any = None
    with pytest.raises(InvalidOption) as caught:

        @flow
        def bad(graph: Graph, day: date) -> int:
            users = graph.add(fetch.bind(day))
            graph.add(fetch.bind("2026"))  # type: ignore[arg-type]
            graph.add(split.bind())  # type: ignore[call-arg]
            graph.add(keep.bind(wrong), name="fetch")
            graph.add(fetch)  # type: ignore[arg-type]
            graph.add(fetch.bind(day), on_error="skip")  # type: ignore[arg-type]
            graph.add(archive.bind([]), on_error=Retry())
            graph.map(greet.bind(users[0]))
            graph.map(greet.bind(Each(users)), concurrency=0, tolerate=1.0)
            graph.add(greet.bind(Each(users)))
            graph.when(users, then=keep.bind([]))  # type: ignore[call-overload]
            graph.add(keep.bind([object()]))  # type: ignore[list-item]
            return graph.add(keep.bind([]))  # type: ignore[return-value]

    lines = str(caught.value).splitlines()
    assert lines[0] == "flow 'bad' cannot be built:"
    for says in (
        "node 'fetch-2': 'day' takes datetime.date, and gets str",
        "node 'split': 'split': split(): missing a required argument: 'users'",
        "has a node called 'fetch': give this one another name=",
        "is no bound call: give step.bind(...)",
        "on_error='skip': give Stop(), Skip(), Continue(default=...) or a Retry",
        "on_error=Retry(...) is the policy of a step",
        "one argument of a map must be Each(...)",
        "concurrency=0: give at least 1",
        "tolerate=1.0: give a number of elements, or a share below 1",
        "Each(...) is for graph.map(...)",
        "the condition, takes bool, and gets list[",
        "a value that cannot be recorded",
        "it returns int, and node",
    ):
        assert any(says in line for line in lines), (says, lines)


NODE_USES: list[Callable[[Any], Any]] = [
    bool,
    list,
    len,
    lambda node: node + 1,
    lambda node: 1 + node,
    lambda node: node == 3,
    lambda node: node != 3,
    lambda node: node < 3,
    lambda node: f"{node}",
    str,
    lambda node: node.upper(),
    int,
    lambda node: "x" in node,
    range,
    lambda node: node[1:2],
]


@pytest.mark.parametrize("use", NODE_USES)
def test_node_has_no_value_while_the_graph_is_built(use: Callable[[Any], Any]) -> None:
    node: Any = Flow("one").input("day", str)
    with pytest.raises(NodeHasNoValue, match="node"):
        use(node)
    assert {node: 1}[node] == 1
    assert repr(node.first.second["x"]) == "<node 'day'['first']['second']['x']>"
    assert not hasattr(node, "_private")


async def test_wrong_inputs_and_options_are_refused() -> None:
    with pytest.raises(InvalidOption, match="write `def`"):

        @flow
        async def later(graph: Graph) -> int:
            return 1

    with pytest.raises(InvalidOption, match="strategy"):
        report.using(strategy="eager")  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match="max_workers"):
        report.using(max_workers=0)
    with pytest.raises(InputRefused, match="day"):
        await run(report, "2026")
    built = Flow("built")
    day = built.input("day", date)
    size = built.input("size", int, default=18)
    built.returns(built.add(split.bind(built.add(fetch.bind(day)), size)))
    assert len((await run(built, {"day": DAY}))["old"]) == 2
    with pytest.raises(InputRefused, match=r"takes the inputs \['day', 'size'\], not \['size'\]"):
        await run(built, {"size": 3})


# --- what runs took ---------------------------------------------------------------------------------------------------
async def test_profile_tells_what_the_nodes_took() -> None:
    @step(retry=Retry(max_attempts=3, initial=1, jitter=0))
    async def shaky(n: int) -> int:
        if step_info().attempt == 1:
            raise ConnectionError("once")
        return n

    @workflow
    async def pause(seconds: float) -> None:
        await asyncio.sleep(seconds)

    @flow
    def measured(graph: Graph, n: int) -> list[Any]:
        first = graph.add(shaky.bind(n))
        waits = graph.map(pause.bind(Each([4.0, 2.0])), name="waits")
        return [graph.add(shaky.bind(first), name="again"), waits]

    async with Environment(measured, pause) as env:
        for n in range(3):
            await env.client.run(measured, n)
        profile = await env.client.profile(measured, last=2)
        assert profile == await env.client.profile("measured", last=2)
    assert (profile.runs, profile.success_rate) == (2, 1.0)
    assert profile.seconds.min == profile.seconds.max == pytest.approx(4, abs=0.1)
    assert profile.speedup == pytest.approx((1 + 1 + 4 + 2) / 4, abs=0.1)
    assert {name: (each.runs, each.attempts, each.success_rate) for name, each in profile.nodes.items()} == {
        "shaky": (2, 4, 1.0),
        "again": (2, 4, 1.0),
        "pause": (4, 4, 1.0),
    }
    pauses = profile.nodes["pause"]
    assert (pauses.seconds.min, pauses.seconds.max) == (pytest.approx(2, abs=0.1), pytest.approx(4, abs=0.1))
    assert pauses.critical_share == pytest.approx(1.0, abs=0.1)


# --- random graphs ----------------------------------------------------------------------------------------------------
@step(retry=ONCE)
async def add(name: str, numbers: list[int], fails: bool) -> int:
    if fails:
        raise ConnectionError(name)
    return sum(numbers) + 1


def made_up(chance: random.Random) -> tuple[Flow, Callable[[], Any]]:
    """Return a flow, and what a plain evaluation of the same graph gives."""
    made = Flow("made-up", max_workers=chance.choice([None, 1, 2, 5]))
    nodes: list[Any] = [made.input("n", int)]
    model: list[Callable[[dict[int, Any]], Any]] = []
    for number in range(chance.randrange(1, 12)):
        kind = chance.choice(["add", "add", "map", "when", "skip", "continue"])
        picked = [chance.randrange(len(nodes)) for _ in range(chance.randrange(3))]
        needs = [nodes[each] for each in picked]
        name = f"{kind}-{number}"
        if kind == "map":
            node = made.add(
                total.bind(made.map(add.bind("x", Each([needs, needs]), False), name=f"{name}-m")), name=name
            )
            model.append(lambda values, picked=picked: _map_of(values, picked))
        elif kind == "when":
            flag = chance.random() < 0.5
            node = made.when(
                flag, then=add.bind("t", needs, False), otherwise=add.bind("o", [*needs, 5], False), name=name
            )
            model.append(lambda values, picked=picked, flag=flag: _sum_of(values, picked, 0 if flag else 5))
        else:
            rules: dict[str, Any] = {"skip": Skip(), "continue": Continue(default=100), "add": None}
            fails = kind != "add" and chance.random() < 0.5
            node = made.add(add.bind(name, needs, fails), name=name, on_error=rules[kind])
            model.append(lambda values, picked=picked, kind=kind, fails=fails: _rule_of(values, picked, kind, fails))
        nodes.append(node)

    def expected() -> Any:
        values: dict[int, Any] = {0: 3}
        for n, each in enumerate(model):
            values[n + 1] = each(values)
        return values

    return made, expected


SKIPPED = "skipped"


def _sum_of(values: Mapping[int, Any], picked: list[int], more: int = 0) -> Any:
    found = [values[each] for each in picked]
    return SKIPPED if SKIPPED in found else sum(found) + more + 1


def _map_of(values: Mapping[int, Any], picked: list[int]) -> Any:
    one = _sum_of(values, picked)
    return one if one == SKIPPED else 2 * one


def _rule_of(values: Mapping[int, Any], picked: list[int], kind: str, fails: bool) -> Any:
    one = _sum_of(values, picked)
    if one == SKIPPED or not fails:
        return one
    return SKIPPED if kind == "skip" else 100


@step
async def total(numbers: list[int]) -> int:
    return sum(numbers)


@pytest.mark.parametrize("seed", range(30))
async def test_random_graphs_come_to_what_a_model_says(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(10):
        made, expected = made_up(chance)
        steps = [add, total]
        flows = [made, Flow.loads(made.dumps(), steps=steps)]
        wanted = [*expected().values()][1:]
        for each in flows:
            async with Environment(each) as env:
                if chance.random() < 0.5:
                    env.crash_before_commit(chance.randrange(1, 6))
                how = each.using(strategy=chance.choice(["sequential", "concurrent", None]))
                found = await env.client.run(how, {"n": 3})
            results = [found.get(name, SKIPPED) for name in each.plan.pieces if not name.endswith("-m")]
            assert results == wanted, made.dumps()


async def typed(client: Client) -> None:
    """For the checkers alone."""
    text: str = await client.run(report, DAY)
    other: str = await client.run(report.using(strategy="sequential"), day=DAY, limit=3)
    assert text == other
    assert MessageRefused
