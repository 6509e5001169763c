"""Random programs: the same seed gives the same ones, the engine does what the model says, and the model is strict."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast, get_args

import pytest
from msgspec import Struct

from perdure.client import Client
from perdure.errors import MessageRefused, WaitTimeout
from perdure.testing import Environment, crash_everywhere
from perdure.testing.programs import (
    KEYS,
    LOG,
    Author,
    Endings,
    Interpreter,
    Model,
    Outcome,
    Program,
    all_of,
    decode,
    encode,
    smaller,
    smaller_lists,
)
from perdure.testing.programs.program import (
    ALL_OPERATIONS,
    Again,
    AnyOperation,
    Ask,
    Break,
    Call,
    Draw,
    Drop,
    Generate,
    Get,
    GiveUp,
    Group,
    Guard,
    Limit,
    Mend,
    Nap,
    Pass,
    Put,
    Race,
    Send,
    Shield,
    Together,
    Undo,
    WaysTogether,
    WaysToGiveUp,
    WaysToGuard,
    Work,
    walk,
)

STEP_SECONDS = 0.05
"""By how much time moves at a time, while programs are disturbed."""
MOVES = 2_000


class Answers:
    """An outside that answers what it is asked, and mends what has failed."""

    def __init__(self) -> None:
        self.questions: list[tuple[str, str, bool]] = []
        self.repaired: set[str] = set()
        self.runs: list[tuple[str, int]] = []

    def ran(self, key: str, attempt: int, /) -> None:
        self.runs.append((key, attempt))

    def asked(self, awakeable: str, value: str, rejected: bool, /) -> None:
        self.questions.append((awakeable, value, rejected))

    def mended(self, tag: str, /) -> bool:
        return tag in self.repaired

    async def answer(self, client: Client) -> None:
        questions, self.questions = self.questions, []
        for awakeable, value, rejected in questions:
            with contextlib.suppress(MessageRefused):  # who lost a race has been cancelled
                if rejected:
                    await client.reject(awakeable, value)
                else:
                    await client.resolve(awakeable, value)


class Run:
    """Runs programs in an environment to their end, with crashes and cancellations if there is a chance for them."""

    def __init__(self, env: Environment, interpreter: Interpreter, answers: Answers, roots: Sequence[Program]) -> None:
        self._env = env
        self._interpreter = interpreter
        self._answers = answers
        self._roots = roots
        self.cancels: dict[str, bool] = {}

    async def to_end(self, chance: random.Random | None = None) -> list[str]:
        """Return the differences from the model."""
        client = self._env.client
        for root in self._roots:
            await client.start(self._interpreter.started(root), encode(root).decode())
        endings = Endings(client)
        for _ in range(MOVES):
            if chance is not None:
                await self._disturb(chance)
            await self._env.advance(STEP_SECONDS)
            await self._answers.answer(client)
            await endings.look()
            for id, program in endings.broken.items():
                self._answers.repaired.add(program.tag)
                with contextlib.suppress(WaitTimeout):  # it waits for its key, and stays
                    await client.handle(id).retry(timeout=0.01)
            if endings.left or endings.broken:
                continue
            model = Model(self._roots, self.cancels)
            if model.must_end() <= endings.outcomes.keys():
                states = {key: await client.state(key) for key in KEYS}
                return [*endings.flaws, *model.differences(states, endings.outcomes)]
        raise AssertionError([each async for each in client.list(status="suspended")])

    async def _disturb(self, chance: random.Random) -> None:
        if chance.random() < 0.3:
            await self._env.crash()
        if chance.random() < 0.3:
            tag = chance.choice(self._roots).tag
            with contextlib.suppress(MessageRefused, WaitTimeout):
                await self._env.client.handle(tag).cancel(timeout=1)
                self.cancels[tag] = True


async def run(roots: Sequence[Program], chance: random.Random | None = None, *, replay: bool = False) -> list[str]:
    """Run programs in an environment, and return the differences from the model."""
    answers = Answers()
    interpreter = Interpreter(answers)
    async with Environment(interpreter.workflow, replay=replay) as env:
        return await Run(env, interpreter, answers, roots).to_end(chance)


def written(seed: int, count: int = 10) -> list[Program]:
    return Author(random.Random(seed), large=False).programs(count)


# --- the author -------------------------------------------------------------------------------------------------------
DIGEST = """
import hashlib, random
from perdure.testing.programs import Author, encode
print(hashlib.sha256(b"".join(map(encode, Author(random.Random(7)).programs(50)))).hexdigest())
"""


def test_same_seed_gives_the_same_programs_in_every_process() -> None:
    found = {
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in (0, 1, 4242)
    }
    assert len(found) == 1
    assert written(1) != written(2)


def test_author_writes_every_operation_in_every_way() -> None:
    every = [
        operation
        for root in Author(random.Random(0)).programs(1_000)
        for program in all_of(root)
        for operation in walk(program.operations)
    ]
    assert {type(each) for each in every} == {*ALL_OPERATIONS}
    ways = {(type(each), way) for each in every if (way := getattr(each, "way", None)) is not None}
    kinds = ((GiveUp, WaysToGiveUp), (Together, WaysTogether), (Guard, WaysToGuard))
    assert ways >= {(kind, way) for kind, all_ways in kinds for way in get_args(all_ways)}


def test_programs_are_read_back_as_they_were_written() -> None:
    for each in written(3, 50):
        assert decode(encode(each)) == each


def test_tags_are_unique_and_keys_are_asked_for_in_order() -> None:
    tags = [each.tag for root in written(4, 200) for each in all_of(root)]
    assert len(tags) == len({*tags})


# --- the engine does what the model says ------------------------------------------------------------------------------
@pytest.mark.parametrize("replay", [False, True])
async def test_programs_come_to_what_the_model_says(replay: bool) -> None:
    for seed in range(15):
        assert await run(written(seed), replay=replay) == [], seed


async def test_programs_come_to_what_the_model_says_while_they_crash_and_are_cancelled() -> None:
    for seed in range(15):
        assert await run(written(seed), random.Random(seed)) == [], seed


CHILD = Program("c", [Work("v1"), Put("a", "v2")], "k3")
FAILING = Program("f", [Break(caught=False)])
BRANCHES: list[list[AnyOperation]] = [[Work("v1"), Nap(0.01)], [Ask("v2", rejected=False)], [Nap(0.02)]]
BREAKING: list[list[AnyOperation]] = [*BRANCHES, [Nap(0.01), Break(caught=False)]]
VALUES = ["v1", "v2", "v3"]

EXAMPLES: list[AnyOperation] = [
    Work("v1", failures=2),
    Work("v1", failures=2, attempts=2),
    Work("v1", slow=True),
    Work("v1", failures=1, threaded=True),
    Break(caught=True),
    Break(caught=False),
    Mend(),
    Mend(undone=2),
    Undo(3),
    Draw(),
    Nap(0.01),
    Ask("v1", rejected=True),
    Ask("v1", rejected=False, impatient=True),
    Generate(VALUES, 2),
    Put("a", "v1"),
    Drop("a"),
    Get("a"),
    Call(CHILD),
    Call(FAILING),
    Call(Program("m", [Mend()])),
    Call(Program("r", [], "k0")),
    Again(Program("g", [Work("v1")], chosen=True)),
    Again(Program("h", [Break(caught=False)], chosen=True)),
    Again(Program("i", [Mend()], chosen=True)),
    Send(CHILD),
    Group([CHILD, FAILING, Program("d", [Nap(0.01)])], concurrency=2),
    Group([CHILD, Program("d", [Nap(0.01)])], concurrency=2, quota=1),
    *(GiveUp(0.01, None, way) for way in get_args(WaysToGiveUp) if way != "limit"),
    *(GiveUp(0.01, Program("e", [], "k3", chosen=True, endless=True), way) for way in get_args(WaysToGiveUp)),
    *(Together(branches, way) for way in get_args(WaysTogether) for branches in (BRANCHES, BREAKING)),
    Race(BRANCHES),
    Race([[Call(CHILD)], [Nap(0.01)]]),
    Limit(0.01, [Nap(0.02)]),
    Limit(0.02, [Nap(0.01)], "wait_for"),
    Shield(0.01, [Nap(0.02), Work("v1")]),
    Pass(VALUES, 2, 1),
    *(Guard(VALUES, way) for way in get_args(WaysToGuard)),
]


def test_there_is_an_example_of_every_operation() -> None:
    assert {type(each) for each in EXAMPLES} == {*ALL_OPERATIONS}


@pytest.mark.parametrize("operation", EXAMPLES, ids=str)
async def test_operation_gives_what_the_model_says_wherever_the_worker_dies(operation: AnyOperation) -> None:
    root = Program("p", [Put("a", "v0"), operation], "k0", chosen=True)
    answers = Answers()
    interpreter = Interpreter(answers)
    for env in crash_everywhere(interpreter.workflow, replay=False):
        answers.repaired.clear()
        async with env:
            assert await Run(env, interpreter, answers, [root]).to_end() == []


# --- the model is strict ----------------------------------------------------------------------------------------------
ONE = Program("p1", [Put("a", "v1"), Get("a")], "k0", chosen=True)
TWO = Program("p2", [Drop("a"), Get("a")], "k0", chosen=True)
LOGGED = ["p1", "p1/0", "p1/1", "p2", "p2/0", "p2/1"]
GOOD: dict[str, Outcome] = {"p1": ["p1", "", "v1"], "p2": ["p2", "", "nothing"]}


def wrong(
    outcomes: Mapping[str, Outcome] = GOOD,
    log: Sequence[str] = LOGGED,
    cancels: Mapping[str, bool] | None = None,
    **state: Any,
) -> list[str]:
    return Model([ONE, TWO], cancels).differences({"k0": {LOG: [*log], **state}}, outcomes)


def test_what_is_right_has_no_differences() -> None:
    assert wrong() == []


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        ("p2 never ran", wrong({"p1": GOOD["p1"]}, ["p1", "p1/0", "p1/1"], a="v1")),
        ("p3 ran, and nobody knows of it", wrong({**GOOD, "p3": ["p3"]})),
        ("p1 came to", wrong({**GOOD, "p1": ["p1", "", "v2"]})),
        ("p1 came to None", wrong({**GOOD, "p1": None})),
        ("p1 came to p1 fails", wrong({**GOOD, "p1": "p1 fails"})),
        ("key k0: the state is", wrong(a="v1")),
        ("p2 overtook p1", wrong(log=["p2", "p2/0", "p2/1", "p1", "p1/0", "p1/1"], a="v1")),
        ("p1 began 2 times", wrong(log=["p1", *LOGGED])),
        ("p1 ended without it", wrong(log=["p2", "p2/0", "p2/1"])),
        ("others had it while p1 did", wrong(log=["p1", "p1/0", "p2", "p1/1", "p2/0", "p2/1"])),
        ("p1 used its state 2 times", wrong(log=["p1", "p1/0", *LOGGED[3:]])),
        ("p1 used its state 2 times", wrong(log=["p1", "p1/0", "p1/0", "p1/1", *LOGGED[3:]])),
        ("p9 has nothing to do with it", wrong(log=["p9", *LOGGED])),
        ("p1 came to", wrong(cancels={"p1": True})),
    ],
)
def test_model_finds_what_is_wrong(expected: str, found: list[str]) -> None:
    assert any(expected in each for each in found), found


def test_what_a_client_cancelled_may_end_either_way_and_what_it_did_is_a_prefix() -> None:
    cancelled = {**GOOD, "p1": None}
    assert wrong(cancelled, ["p1", "p1/0", *LOGGED[3:]], {"p1": True}) == []
    assert wrong(cancelled, LOGGED[3:], {"p1": True}) == []
    assert wrong(cancelled, ["p1", "p1/1", *LOGGED[3:]], {"p1": True}) != []
    assert wrong(cancelled, LOGGED, {"p2": False}) != []
    assert wrong(GOOD, LOGGED, {"p1": False}) == []


def test_race_may_be_won_by_any_branch_and_not_by_none() -> None:
    root = Program("p", [Race([[Nap(0)], [Call(Program("c", []))]])], chosen=True)
    child = ["child", ["c"]]

    def found(*branches: Any, child: Outcome = None) -> list[str]:
        return Model([root]).differences({}, {"p": ["p", [*branches]], "c": child})

    assert found(["slept"], "lost") == []
    assert found("lost", [child], child=["c"]) == []
    assert found(["slept"], [child], child=["c"]) == []
    assert found("lost", "lost") != []
    assert found(["overslept"], "lost") != []
    assert found("lost", [child]) != []
    assert Model([root]).differences({}, {"p": ["p", [["slept"], "lost"]]}) == [], "it may not have been started"


def test_group_whose_quota_was_not_reached_is_found() -> None:
    root = Program("p", [Group([Program("c", []), Program("d", [])], 2, quota=1)], chosen=True)
    none = ["p", ["child cancelled", "child cancelled"]]
    assert "its quota is 1" in Model([root]).differences({}, {"p": none, "c": None, "d": None})[0]
    one = ["p", [["child", ["c"]], "child cancelled"]]
    assert Model([root]).differences({}, {"p": one, "c": ["c"], "d": None}) == []
    assert Model([root]).differences({}, {"p": one, "c": None, "d": None}) != []


# --- smaller ones -----------------------------------------------------------------------------------------------------
def size(item: Any) -> int:
    """Count what there is in programs: structs, items, and whatever is not nothing."""
    match item:
        case Struct():
            return 2 + sum(size(getattr(item, field)) for field in item.__struct_fields__)
        case list():
            return sum(map(size, cast("list[Any]", item)))
        case _:
            return bool(item)


def test_smaller_programs_are_smaller_and_keep_their_tags_unique() -> None:
    for root in written(5, 40):
        for each in smaller(root):
            assert size(each) < size(root)
            assert each.tag == root.tag
            assert {one.tag for one in all_of(each)} <= {one.tag for one in all_of(root)}


async def test_smaller_programs_come_to_what_the_model_says() -> None:
    chance = random.Random(6)
    for seed in range(20):
        simpler = [*smaller_lists(written(seed, 4))]
        assert await run(chance.choice(simpler)) == [], seed


def shrunk(programs: list[Program], fails: Any) -> list[Program]:
    def step() -> Iterator[list[Program]]:
        return (each for each in smaller_lists(programs) if fails(each))

    while (found := next(step(), None)) is not None:
        programs = found
    return programs


@pytest.mark.parametrize("kind", ALL_OPERATIONS, ids=lambda kind: kind.__name__)
def test_any_operation_is_shrunk_to_little_more_than_itself(kind: type) -> None:
    def has_it(programs: list[Program]) -> bool:
        every = itertools.chain.from_iterable(map(all_of, programs))
        return any(isinstance(each, kind) for program in every for each in walk(program.operations))

    chance = random.Random(8)
    programs = next(each for each in iter(lambda: Author(chance).programs(5), None) if has_it(each))
    left = shrunk(programs, has_it)
    (root,) = left
    assert size(left) < 20
    assert len([*walk(root.operations)]) <= 3
