"""Each invariant of ARCHITECTURE.md by its number and words, with a breach that the observer of the simulation finds.

1-16 are those of ARCHITECTURE.md. That bad frames are found is shown here on frames made for it; that bad *code* is
found is shown by tests/simulation/test_planted_bugs.py on the engine itself. 14, journals of every release, is tested
with real ones, too: tests/core/test_journal.py, tests/testing/golden, tests/old and tests/upgrade.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Sequence
from math import inf
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest
from msgspec.structs import replace

from perdure.core.failures import failure_of
from perdure.core.ids import idempotency_key
from perdure.core.journal import (
    Accepted,
    CallChild,
    CallStep,
    Cancelled,
    CancelRequested,
    Claimed,
    Command,
    Completed,
    Entry,
    Failed,
    Fired,
    Frame,
    Granted,
    Paused,
    Released,
    Resumed,
    Returned,
    SendStart,
    SetTimer,
    Start,
    decode_frame,
    encode_frame,
)
from perdure.operations.describe import from_row
from perdure.runtime.exchange import Exchange
from perdure.runtime.slots import Slots
from perdure.stores.local.dispatch import Member
from perdure.stores.port import Filter, Row, Transition
from perdure.testing.programs import Program, interpreter
from perdure.testing.programs.program import Nap
from perdure.testing.simulation import INVARIANTS, Plan, run
from perdure.testing.simulation.clock import ProcessClock
from perdure.testing.simulation.face import Face, Home
from perdure.testing.simulation.faults import Faults
from perdure.testing.simulation.loop import Process, World
from perdure.testing.simulation.observer import Observer
from perdure.testing.simulation.older import as_older
from perdure.testing.simulation.plan import Act, Fault, Noise
from perdure.testing.simulation.server import Server
from perdure.testing.simulation.trace import Trace
from perdure.testing.simulation.violation import Violation
from perdure.testing.simulation.watching import Seen, note, unseen

ROOT = Path(__file__).resolve().parents[2]
FAILURE = failure_of(ValueError("no"))


def test_invariants_are_those_of_the_architecture() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text().partition("## Invariants")[2].partition("\n## ")[0]
    listed = {int(number): words for number, words in re.findall(r"^(\d+)\. (.+)\.$", text, re.MULTILINE)}
    assert listed
    for number, words in listed.items():
        assert words.lower().startswith(INVARIANTS[number].lower()), number


# --- frames that must be found ----------------------------------------------------------------------------------------
class Author:
    """A process that writes."""

    member: Member | None = None

    def __init__(self, name: str, at: float = 100.0) -> None:
        self.name = name
        self._at = at

    def now(self) -> float:
        return self._at


A, B = Author("a"), Author("b")


class Journals:
    """Writes frames that an observer sees."""

    def __init__(self) -> None:
        self.found: list[Violation] = []
        self.observer = Observer(self.found.append, Trace(World(Random(1))))
        self.frames: dict[str, list[bytes]] = {}

    def write(
        self,
        author: Author,
        id: str,
        *entries: Entry,
        commands: Sequence[Command] = (),
        cancels: Sequence[int] = (),
        expected: int | None = None,
        at: float = 100.0,
    ) -> None:
        frames = self.frames.setdefault(id, [])
        frame = Frame(author.name, at, [*entries], [*commands], {}, [*cancels])
        frames.append(encode_frame(frame))
        before = len(frames) - 1 if expected is None else expected
        self.observer.wrote(author, Transition(id, before, frame), frame, len(frames))

    def begin(self, author: Author, id: str, *commands: Command, key: str | None = None) -> None:
        entries: list[Entry] = [Accepted(started(id, key)), Claimed(1.0, 1, author.name, "3.11", "0")]
        if key is not None:
            entries.append(Granted(1.0, 0))
        self.write(author, id, *entries, commands=commands)

    def ends(self) -> list[Violation]:
        return [*self.observer.end(lambda id: self.frames[id], lambda _: False)]

    @property
    def numbers(self) -> list[int]:
        return [each.number for each in self.found]


def started(id: str, key: str | None = None) -> Start:
    return Start(id, "handler", b"\x80", 1.0, 1.0, 7, key)


STEP = CallStep(0, "step", b"d")


@pytest.fixture
def journals() -> Journals:
    return Journals()


def test_1_an_acknowledged_result_is_never_lost_or_changed(journals: Journals) -> None:
    journals.begin(A, "x", STEP)
    journals.write(A, "x", Returned(0, 2.0, b"\x01"))
    assert journals.numbers == []
    journals.write(A, "x", Returned(0, 2.0, b"\x02"))
    assert journals.numbers == [1]
    journals.frames["x"].pop()
    assert 1 in [each.number for each in journals.ends()]


def test_2_a_step_whose_result_was_acknowledged_never_runs_again(journals: Journals) -> None:
    journals.begin(A, "x", STEP)
    key = idempotency_key("x", 0, 0, "step")
    journals.observer.step_begins("a", "x", key, "step", 1, is_owner=True)
    journals.write(A, "x", Returned(0, 2.0, b"\x01"))
    assert journals.numbers == []
    journals.observer.step_begins("a", "x", key, "step", 2, is_owner=True)
    assert journals.numbers == [2]


def test_2_a_former_owner_may_begin_a_step_before_it_knows(journals: Journals) -> None:
    journals.begin(A, "x", STEP)
    key = idempotency_key("x", 0, 0, "step")
    journals.write(B, "x", Claimed(2.0, 2, "b", "3.11", "0"), Returned(0, 2.0, b"\x01"), Released(2.0))
    journals.observer.step_begins("a", "x", key, "step", 1, is_owner=True)  # a delivery came, and it has not claimed
    assert journals.numbers == []
    journals.write(A, "x", Claimed(3.0, 3, "a", "3.11", "0"))
    journals.observer.step_begins("a", "x", key, "step", 1, is_owner=True)
    assert journals.numbers == [2]


def test_3_a_commit_names_the_revision_that_it_extends(journals: Journals) -> None:
    journals.begin(A, "x", STEP)
    journals.write(A, "x", Returned(0, 2.0, b"\x01"), expected=0)
    assert journals.numbers == [3]


def test_4_at_most_one_owner_makes_progress(journals: Journals) -> None:
    journals.begin(A, "x", STEP)
    journals.write(B, "x", Returned(0, 2.0, b"\x01"))
    assert journals.numbers == [4]
    journals.write(B, "x", Claimed(2.0, 3, "b", "3.11", "0"))
    assert journals.numbers == [4, 4]  # epoch 2 is left out


def test_5_invocations_of_a_key_never_overlap_and_start_in_the_order_of_acceptance(journals: Journals) -> None:
    for id in ("x", "y", "z"):
        journals.observer.queued(id, 0, "k")
    journals.begin(A, "x", key="k")
    assert journals.numbers == []
    journals.begin(B, "z", key="k")
    assert journals.numbers == [5, 5]  # x has the key, and y was accepted before


def test_6_a_timer_never_fires_early_and_fires_once(journals: Journals) -> None:
    journals.begin(A, "x", SetTimer(0, 50.0), SetTimer(1, 200.0))
    journals.write(A, "x", Fired(0, 100.0))
    assert journals.numbers == []
    journals.write(A, "x", Fired(1, 100.0))
    journals.write(A, "x", Fired(0, 100.0))
    assert journals.numbers == [6, 6]
    journals.write(A, "x", Fired(7, 100.0))
    assert journals.numbers == [6, 6, 6]


def test_7_an_accepted_start_or_message_is_processed_once_per_id(journals: Journals) -> None:
    journals.begin(A, "x")
    journals.write(A, "x", Paused(2.0, "why", "m"))
    assert journals.numbers == []
    journals.write(A, "x", CancelRequested(2.0, message="m"))
    journals.write(A, "x", Accepted(started("x")))
    assert journals.numbers == [7, 7]


def test_8_a_settled_invocation_changes_only_by_a_retry(journals: Journals) -> None:
    journals.begin(A, "x")
    journals.write(A, "x", Completed(2.0, b"\x01"))
    assert journals.numbers == []
    journals.write(A, "x", Claimed(3.0, 2, "a", "3.11", "0"))
    assert journals.numbers == [8]


def test_9_a_cancellation_reaches_every_descendant(journals: Journals) -> None:
    journals.begin(A, "x", CallChild(0, started("child")))
    journals.write(A, "x", CancelRequested(2.0), cancels=[0])
    journals.begin(A, "child")
    journals.write(A, "child", Completed(3.0, b"\x01"))
    assert journals.numbers == []
    assert 9 in [each.number for each in journals.ends()]  # it was never told
    journals.begin(A, "y", CallChild(0, started("other")))
    journals.write(A, "y", Failed(2.0, FAILURE))
    assert journals.numbers == [9]  # its child is left behind


def test_13_when_faults_stop_every_invocation_ends(journals: Journals) -> None:
    journals.begin(A, "x", STEP)
    journals.write(A, "x", Released(2.0))
    assert [each.number for each in journals.ends()] == [13]


def test_15_no_derived_id_names_two_commands(journals: Journals) -> None:
    journals.begin(A, "x", SendStart(0, started("same")))
    assert journals.numbers == []
    journals.begin(A, "y", SendStart(0, started("same")))
    journals.write(A, "x", commands=[SendStart(0, started("other"))])
    assert journals.numbers == [15, 15]


def test_16_retention_never_makes_anything_run_again(journals: Journals) -> None:
    journals.begin(A, "x")
    journals.write(A, "x", Completed(2.0, b"\x01"))
    journals.observer.removed(["x"], inf)
    assert journals.numbers == []
    journals.observer.step_begins("a", "x", "key", "step", 1, is_owner=True)
    assert journals.numbers == [16]
    journals.begin(A, "y")
    journals.observer.removed(["y"], inf)
    assert journals.numbers == [16, 16]  # it had not settled


def test_18_durable_first_visible_second(journals: Journals) -> None:
    journals.begin(A, "x")
    journals.observer.step_begins("a", "x", idempotency_key("x", 0, 0, "step"), "step", 1, is_owner=True)
    assert journals.numbers == [18]


def test_9_what_is_ended_by_force_ends_its_children_by_force(journals: Journals) -> None:
    journals.begin(A, "x", CallChild(0, started("child")))
    journals.write(A, "x", Cancelled(2.0, forced=True), cancels=[0])
    journals.begin(A, "child")
    journals.write(A, "child", CancelRequested(3.0), Cancelled(3.0))
    assert journals.numbers == []
    assert [each.number for each in journals.ends()] == [9]


def test_11_after_a_divergence_nothing_comes_of_the_body(journals: Journals) -> None:
    journals.begin(A, "x", STEP)
    journals.write(A, "x", Paused(2.0, "the code diverges from the journal: it does"))
    assert journals.numbers == []
    journals.write(A, "x", commands=[CallStep(1, "step", b"d")])
    assert journals.numbers == [11]
    journals.observer.step_begins("a", "x", idempotency_key("x", 0, 0, "step"), "step", 1, is_owner=True)
    assert journals.numbers == [11, 11]
    journals.write(A, "x", Resumed(3.0), commands=[CallStep(2, "step", b"d")])
    assert journals.numbers == [11, 11]


def test_20_a_watcher_sees_changes_in_their_order_and_every_end() -> None:
    rows = [Row("x", "handler", status, None, 1.0, at, 1.0) for at, status in enumerate(("pending", "running"), 1)]
    found: list[int] = []
    seen = Seen("a watcher", Filter(), began=0)

    def see(row: Row) -> None:
        note(seen, from_row(row), rows, lambda number, _: found.append(number))

    see(rows[1])
    assert found == []
    assert [*unseen(seen, rows, lambda _: False)] == []
    see(rows[0])
    assert found == [20]  # an earlier state after a later one
    rows.append(Row("x", "handler", "completed", None, 1.0, 3.0, 1.0))
    assert len([*unseen(seen, rows, lambda _: False)]) == 1


# --- runs that must be found ------------------------------------------------------------------------------------------
def plan(*programs: Program, **options: Any) -> Plan:
    acts = [Act(0.1 * n, 0, "start", program.tag) for n, program in enumerate(programs)]
    return Plan(1, [*programs], acts, [], **options)


def test_0_an_exception_that_reaches_a_loop_is_found() -> None:
    world = World(Random(1))
    process = Process(world, "some")

    def raises() -> None:
        raise RuntimeError("nobody foresaw this")

    process.call_soon(raises)
    with pytest.raises(Violation, match="an exception reached the loop: RuntimeError: nobody foresaw this"):
        world.run()


def test_10_replay_is_a_fixed_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that is not deterministic diverges when its journal is replayed at the end."""
    drawn = itertools.count(1)

    async def longer_each_time(seconds: float) -> str:
        await asyncio.sleep(next(drawn) * seconds)
        return "slept"

    monkeypatch.setattr(interpreter, "_nap", longer_each_time)
    found = run(plan(Program("p1", [Nap(1.0)], chosen=True)))
    assert found.violation is not None
    assert found.violation.number == 10


def test_11_after_a_divergence_or_close_nothing_leaves_the_turn() -> None:
    """A worker that writes what it was told that it lost is found: it should have closed the turn."""
    world = World(Random(1))
    trace = Trace(world)
    server = Server(world, Observer(world.report, trace), Noise(), Random(1), trace)
    process = Process(world, "worker")
    face = Face(server, process, ProcessClock(process), Faults("worker", []), cast("Home", None))
    face.subscribe(["handler"], lambda _: None, lost=lambda _: None)
    face.tell_lost("x")
    process.call_soon(face.commit, Transition("x", 0, None), print)
    with pytest.raises(Violation, match=r"invariant 11 .*worker writes what it was told that it lost"):
        world.run()


def test_14_journals_of_every_release_replay_on_the_current_code() -> None:
    """What older releases did not write can be left out of every frame, and nothing else."""
    entries: list[Entry] = [
        Returned(0, 2.0, b"\x01", "m", 0.5),
        Returned(1, 2.0, b"\x01", None, 0.5),
        Released(2.0, 9.0),
    ]
    frame = Frame("a", 2.0, [*entries, Failed(2.0, FAILURE, 1, [1])], [SetTimer(2, 9.0)])
    older = as_older(encode_frame(frame))
    assert len(older) < len(encode_frame(frame))
    read = decode_frame(older)
    assert read.entries[0] == Returned(0, 2.0, b"\x01", "m")
    assert read.entries[1:3] == [Returned(1, 2.0, b"\x01"), entries[2]]
    assert read.entries[3] == Failed(2.0, FAILURE, 1)
    assert read.commands == frame.commands
    assert as_older(encode_frame(read)) == older


def test_19_what_a_release_cannot_read_it_leaves_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that keeps what it cannot read is found, and without that bug the run is clean."""
    found = plan(Program("p1", [Nap(1.0), Nap(1.0)], chosen=True), workers=1)
    found = replace(found, faults=[Fault("worker0", 1, "later release", 3_000.0)])
    result = run(found)
    assert result.violation is None
    assert result.rare["journal that a worker cannot read"]

    def keeps(self: Any, _: str) -> None:
        self._leave()

    monkeypatch.setattr(Exchange, "_decline", keeps)
    result = run(found)
    assert result.violation is not None
    assert result.violation.number == 19


def test_12_limits_are_never_exceeded_and_slots_never_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    def leaks(self: Slots[Any], holder: Any) -> None:
        """Give nothing back."""

    monkeypatch.setattr(Slots, "release", leaks)
    found = run(plan(Program("p1", [], chosen=True)))
    assert found.violation is not None
    assert found.violation.number == 12


def test_17_what_the_engine_came_to_is_what_the_model_says(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(_: float) -> str:
        return "never slept"

    monkeypatch.setattr(interpreter, "_nap", never)
    found = run(plan(Program("p1", [Nap(1.0)], chosen=True)))
    assert found.violation is not None
    assert found.violation.number == 17
