"""One run of a plan: makes the processes, lets the world go on until everything has ended, and checks what is left."""

from __future__ import annotations

import gc
import logging
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import msgspec
from msgspec import Struct

from perdure.authoring.context import Context
from perdure.core.journal import CallStep, Returned, decode_frame
from perdure.core.turn import Turn
from perdure.errors import StoreError
from perdure.testing.programs import KEYS, Interpreter, all_of
from perdure.testing.programs.interpreter import CANCELLED_TWICE, CLEANUP
from perdure.testing.replay import ended_without_its_body
from perdure.testing.simulation.expected import differences, program_of, told_of
from perdure.testing.simulation.loop import World
from perdure.testing.simulation.machines import ClientMachine, Machine, WorkerMachine
from perdure.testing.simulation.observer import Life, Observer
from perdure.testing.simulation.older import as_older
from perdure.testing.simulation.plan import Plan
from perdure.testing.simulation.server import Server
from perdure.testing.simulation.silent import strays
from perdure.testing.simulation.story import FORGOTTEN, Story
from perdure.testing.simulation.trace import Trace
from perdure.testing.simulation.unreadable import not_waiting_for
from perdure.testing.simulation.violation import Violation

EVERY_LOGGER = "perdure"
"""The parent of all loggers of the engine."""

OUTAGE_SECONDS = 5.0
"""After an outage processes begin again within so many seconds."""

MOST_DIFFERENCES = 5
"""Differences from the model that are told."""


class Result(Struct):
    """What came of a run."""

    plan: Plan
    digest: str
    rare: Counter[str]
    seconds: float
    """Virtual ones."""
    events: int
    violation: Violation | None = None
    trace: list[str] = []
    """The last events of a run that found something."""


class Run:
    """The scene of one run."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.chance = Random(f"run {plan.seed}")  # noqa: S311  repeatable on purpose
        self.world = World(Random(f"order {plan.seed}"), hurry=plan.noise.hurry)  # noqa: S311
        self.trace = Trace(self.world)
        self.observer = Observer(self.world.report, self.trace)
        self.server = Server(self.world, self.observer, plan.noise, self.chance, self.trace)
        self.server.store.is_older = plan.older
        self.server.at_last_readable = self._check_others
        self.story = Story(self)
        self.interpreter = Interpreter(self.story, strays=self._strays if plan.noise.strays else None)
        ahead = [*plan.ahead, *[0.0] * (plan.workers + plan.clients)]
        self.workers = [WorkerMachine(self, f"worker{n}", ahead[n]) for n in range(plan.workers)]
        clients = [
            ClientMachine(self, f"client{n}", ahead[plan.workers + n], self.story.script) for n in range(plan.clients)
        ]
        self.machines: list[Machine] = [*self.workers, *clients]

    def fault_outage(self) -> None:
        """End the store and all processes, and begin again with what was written."""
        for machine in self.machines:
            machine.go_down()
        self.server.store.restart()
        for machine in self.machines:
            self.world.hand.call_later(self.chance.random() * OUTAGE_SECONDS, machine.start)

    def go(self) -> None:
        """Run to the end, or to a violation, which is raised."""
        try:
            for machine in self.machines:
                machine.start()
            self.world.run()
            self._check()
        finally:
            self.world.close()

    def _strays(self) -> bool:
        return not self.world.is_over and strays(self.chance, self.plan.noise.strays)

    def _check_others(self, id: str) -> None:
        """Check that what need not wait for an invocation whose journal could not be read has ended."""
        lives, unreadable = self.observer.lives, self.server.unreadable
        programs = [program_of(lives[each]) for each in unreadable if each in lives]
        free = {tag for root in self.plan.programs for tag in (each.tag for each in all_of(root))}
        for program in programs:
            free &= set[str]() if program is None else not_waiting_for(program.tag, self.plan.programs)
        for life in lives.values():
            program = program_of(life)
            if program is not None and program.tag in free and life.outcome is None:
                self.observer.breach(19, f"{life.id} was not served while {id} could not be read")

    # --- in the end ---------------------------------------------------------------------------------------------------
    def _check(self) -> None:
        store = self.server.store
        for violation in self.observer.end(store.frames_of, store.was_told):
            raise violation
        try:
            store.check_liveness(self.observer.purged)
        except AssertionError as error:
            raise Violation(13, str(error)) from error
        if left := store.undelivered():
            raise Violation(13, f"these were never acknowledged: {left}")
        if unanswered := store.unanswered():
            raise Violation(7, f"these were processed, and their senders have no answer: {unanswered}")
        for machine in self.workers:
            self._check_slots(machine)
        for life in (*self.observer.lives.values(), *self.observer.gone.values()):
            self._check_told(life)
            self._check_cleanup(life)
            self._replay(life, 10, life.frames)
            if self.plan.older:
                self._replay(life, 14, [*map(as_older, life.frames)])
        for text in self.story.unseen():
            raise Violation(20, text)
        for machine in self.machines:
            if machine.face is not None and (left := [each.filter.id for each in machine.face.feeds if each.filter.id]):
                raise Violation(20, f"{machine.name} has left the feeds of {left} open")
        if found := [*self._differences()]:
            raise Violation(17, "; ".join(found[:MOST_DIFFERENCES]))

    def _check_slots(self, machine: WorkerMachine) -> None:
        worker, face = machine.worker, machine.face
        if worker is None or face is None or face.member is None:
            return
        for leak in worker.leaks():
            raise Violation(12, f"{face.name}: {leak}")
        if face.member.credit != self.plan.max_concurrent:
            raise Violation(12, f"{face.name} has room for {face.member.credit} starts of {self.plan.max_concurrent}")
        if face.member.held:
            raise Violation(12, f"{face.name} still holds {[*face.member.held]}")

    def _check_told(self, life: Life) -> None:
        ended = [told_of(outcome) for outcome in life.outcomes]
        told = self.story.told.get(life.id, FORGOTTEN)
        if told not in (FORGOTTEN, *ended):
            raise Violation(1, f"{life.id}: a client was told {told!r}, and it ended with {ended}")

    def _check_cleanup(self, life: Life) -> None:
        """Check that the body has run all of its cleanup, and that only one cancellation came to it meanwhile."""
        program = program_of(life)
        if program is None or not program.cleanup or life.outcome is None:
            return
        if ended_without_its_body([decode_frame(data, life.id) for data in life.frames]):
            return
        steps = [each for each in life.commands.values() if isinstance(each, CallStep) and each.name == CLEANUP]
        ends = [type(life.answers.get(each.n)) for each in steps]
        if life.cancelled_at:
            self.trace.count("cleanup after a cancellation")
        told = f"{life.id} ended as {told_of(life.outcome)}"
        if CANCELLED_TWICE in told:
            raise Violation(9, told)
        if ends.count(Returned) < program.cleanup:
            raise Violation(9, f"{told}, and {ends.count(Returned)} of {program.cleanup} steps of its cleanup have run")

    def _replay(self, life: Life, number: int, encoded: list[bytes]) -> None:
        """Replay a journal: it must be a fixed point."""
        start = life.start
        if start is None:
            return
        try:
            frames = [decode_frame(data, life.id) for data in encoded]
        except StoreError as error:
            raise Violation(number, f"{life.id}: its journal, as an older release wrote it: {error}") from error
        if life.outcome is not None and ended_without_its_body(frames):
            frames = frames[:-1]
        workflow = self.interpreter.workflow
        secret = self.server.store.secret
        turn = Turn(start, workflow.body(start), workflow.encode_result, secret=secret, context=Context)
        try:
            turn.replay(frames)
            if turn.divergence is not None:
                raise Violation(number, f"{life.id}: {turn.divergence}")
            ready = turn.ready()
            if ready.commands or ready.state or ready.cancels or ready.outcome is not None:
                raise Violation(number, f"{life.id}: its replay asks for more than the journal holds: {ready}")
        finally:
            turn.close()

    def _differences(self) -> Iterator[str]:
        lives = [*self.observer.lives.values(), *self.observer.gone.values()]
        programs, started = self.plan.programs, {act.tag for act in self.plan.acts if act.verb == "start"}
        states = {key: state for key in KEYS if (state := self._state(key))}
        # One that was paused may end by what came before the cancellation, and was held back until the pause was over.
        paused = {life.id for life in lives if life.was_paused}
        cancels = {tag: accepted and tag not in paused for tag, accepted in self.story.cancels.items()}
        yield from differences([each for each in programs if each.tag in started], lives, states, cancels)

    def _state(self, key: str) -> dict[str, Any]:
        question = self.server.store.key(key)
        try:
            question.send(None)
        except StopIteration as found:
            return {name: msgspec.msgpack.decode(value) for name, value in found.value.state.items()}
        raise AssertionError("the memory store waits")


def run(plan: Plan, *, last: int = 60) -> Result:
    """Run a plan; `last` events are kept of a run that finds something."""
    made = Run(plan)
    violation: Violation | None = None
    with _quiet():
        try:
            made.go()
        except Violation as found:
            violation = found
    trace = made.trace
    return Result(
        plan,
        trace.digest(),
        trace.rare,
        made.world.now,
        len(trace.events),
        violation,
        [] if violation is None else trace.last(last),
    )


@contextmanager
def _quiet() -> Generator[None]:
    """Let the engine log nothing, since faults are what is asked for; and let the collector rest, which is no part."""
    log, collects = logging.getLogger(EVERY_LOGGER), gc.isenabled()
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    gc.disable()
    try:
        yield
    finally:
        log.setLevel(level)
        if collects:
            gc.enable()
