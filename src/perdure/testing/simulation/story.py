"""What clients do in a run: they start programs, ask for this and that, answer what is asked, and wait for results.

A story outlives the processes that tell it: a client that begins anew does what the one before was not told of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Any

from perdure.client import Client
from perdure.core.journal import Failed
from perdure.errors import (
    IllegalTransition,
    MessageRefused,
    NewerJournal,
    StoreDamaged,
    StoreError,
    UnknownInvocation,
    WaitTimeout,
)
from perdure.stores.port import Filter
from perdure.testing.programs import Outcome, Program, encode, outcome_of
from perdure.testing.programs.program import waits_to_be_mended
from perdure.testing.simulation.expected import program_of, told_of
from perdure.testing.simulation.face import UNFORESEEN
from perdure.testing.simulation.loop import Process
from perdure.testing.simulation.machines import ClientMachine, Scene, WorkerMachine
from perdure.testing.simulation.observer import DIVERGES
from perdure.testing.simulation.plan import WATCHES, Act
from perdure.testing.simulation.watching import Seen, is_end, note, unseen, watching

AGAIN_SECONDS = 0.5
"""How long after a failure a client asks again."""

UNREADABLE_SECONDS = 30.0
"""How long it waits more if the journal cannot be read."""

DEPLOY_SECONDS = 1.0
"""How long a worker may take to stop when another takes its place."""

LOOK_SECONDS = 0.5
LOOK_SECONDS_LONGEST = 60.0
"""How often the operator looks for what is paused or left; each time later."""

END_SECONDS = 100_000.0
"""What has not ended by then never will."""

CALM_SECONDS = 200.0
"""How long everything must have been settled before the run is over."""

FORGOTTEN = "forgotten"
"""What a client is told of an invocation that was purged."""


class Story:
    """The acts of all clients, and what became of them."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._programs = {program.tag: program for program in scene.plan.programs}
        self._done: set[int] = set()
        self._started: list[str] = []
        self.told: dict[str, Outcome] = {}
        """What clients were told of the programs that they started, by id."""
        self._asks: dict[str, tuple[str, bool]] = {}
        self._answered: set[str] = set()
        self.cancels: dict[str, bool] = {}
        """What clients asked to cancel, by tag: True if that was accepted."""
        self._mended: set[str] = set()
        self._retrying: set[tuple[str, int]] = set()  # retries that wait for a key, by id and generation
        self.seen: dict[int, Seen] = {}  # by watchers: the numbers of their acts
        self._answering: tuple[Client, Process] | None = None

    # --- what programs touch ------------------------------------------------------------------------------------------
    def ran(self, key: str, attempt: int, /) -> None:
        """Do nothing: the observer sees every step."""

    def mended(self, tag: str, /) -> bool:
        """Report whether the operator has seen a program fail, and retries it."""
        return tag in self._mended

    def asked(self, awakeable: str, value: str, rejected: bool, /) -> None:
        """Have the first client answer, as soon as it runs."""
        if awakeable in self._asks:
            return
        self._asks[awakeable] = value, rejected
        if self._answering is not None:
            client, process = self._answering
            process.receive(lambda: process.create_task(self._answer(client, awakeable)))

    # --- the script of one client -------------------------------------------------------------------------------------
    async def script(self, client: Client, machine: ClientMachine) -> None:
        number = int(machine.name.removeprefix("client"))
        process = machine.process
        assert process is not None
        acts = [(n, act) for n, act in enumerate(self._scene.plan.acts) if act.client == number]
        process.create_task(self._start_all(client, [(n, act) for n, act in acts if act.verb == "start"]))
        for n, act in acts:
            if act.verb in WATCHES:
                process.create_task(self._watch(client, n, act))
            elif act.verb != "start":
                process.create_task(self._once(client, n, act))
        if number == 0:
            self._answering = client, process
            for awakeable in self._asks:
                process.create_task(self._answer(client, awakeable))
            process.create_task(self._operate(client))

    async def _start_all(self, client: Client, acts: list[tuple[int, Act]]) -> None:
        waits: list[asyncio.Task[None]] = []
        for n, act in acts:
            program = self._programs.get(act.tag)
            if n not in self._done and program is not None:
                await self._until(act.at)
                workflow = self._scene.interpreter.started(program)
                await self._insist(lambda workflow=workflow, program=program: client.start(workflow, _text(program)))
                self._started.append(act.tag)
            self._done.add(n)
            if program is not None and act.tag not in self.told:
                waits.append(asyncio.create_task(self._result(client, act.tag)))
        if waits:
            await asyncio.wait(waits)

    async def _until(self, at: float) -> None:
        left = at - self._scene.world.now
        if left > 0:
            await asyncio.sleep(left)

    async def _insist(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        """Ask until there is an answer."""
        while True:
            try:
                return await ask()
            except (NewerJournal, StoreDamaged):
                await asyncio.sleep(UNREADABLE_SECONDS)
            except StoreError:
                pass
            except RuntimeError as error:
                if UNFORESEEN not in str(error):
                    raise
            await asyncio.sleep(AGAIN_SECONDS)

    async def _once(self, client: Client, n: int, act: Act) -> None:
        if n in self._done:
            return
        await self._until(act.at)
        try:
            await self._insist(lambda: self._request(client, act))
            self._scene.trace.count(f"{act.verb} accepted")
            if act.verb in ("cancel", "force", "force parent"):
                self.cancels[act.tag] = True
        except (IllegalTransition, MessageRefused, UnknownInvocation, WaitTimeout):
            self._scene.trace.count(f"{act.verb} refused")
        self._done.add(n)

    async def _request(self, client: Client, act: Act) -> None:
        handle = client.handle(act.tag)
        match act.verb:
            case "cancel" | "force":
                self.cancels.setdefault(act.tag, False)
                await handle.cancel(force=act.verb == "force")
            case "force parent":
                await self._until_it_has_a_child(act.tag)
                self.cancels.setdefault(act.tag, False)
                await handle.cancel(force=True)
            case "purge children":
                await self._purge_children(client)
            case "pause":
                await handle.pause()
            case "resume":
                await handle.resume()
            case "retry":  # one that has its key anew would change the state once more, which no model foresees
                if self._programs[act.tag].key is None:
                    await handle.retry()
            case "purge":
                if act.tag in self._started and not self._programs[act.tag].needs_mending:
                    await handle.purge()  # a start that is repeated would run it again
            case "describe":
                await handle.describe()
            case "start" | "watch" | "watch all":
                raise AssertionError(act)

    async def _until_it_has_a_child(self, tag: str) -> None:
        """Wait until a child of a program runs, or it has ended."""
        observer, wait = self._scene.observer, LOOK_SECONDS / 20
        while tag not in observer.purged:
            life = observer.lives.get(tag)
            if life is not None and (life.outcome is not None or observer.running_children(life)):
                return
            await asyncio.sleep(wait)
            wait = min(wait * 1.2, LOOK_SECONDS_LONGEST)

    async def _purge_children(self, client: Client) -> None:
        """Purge what has ended and has an id that nobody can use again."""
        for life in [*self._scene.observer.lives.values()]:
            start = life.start
            if start is None or start.chosen or life.outcome is None or isinstance(life.outcome, Failed):
                continue
            try:
                await client.handle(life.id).purge()
                self._scene.trace.count("purge of a child")
            except (IllegalTransition, UnknownInvocation):
                self._scene.trace.count("purge of a child refused")

    async def _answer(self, client: Client, awakeable: str) -> None:
        if awakeable in self._answered:
            return
        value, rejected = self._asks[awakeable]
        while awakeable not in self._answered:
            try:
                if rejected:
                    await self._insist(lambda: client.reject(awakeable, value))
                else:
                    await self._insist(lambda: client.resolve(awakeable, value))
            except (MessageRefused, UnknownInvocation):
                self._scene.trace.count("answer refused")
                if self._waits(awakeable):  # it was set aside after an unforeseen exception
                    await asyncio.sleep(AGAIN_SECONDS)
                    continue
            except WaitTimeout:
                if await self._is_to_be_answered_again(client, awakeable):
                    continue
            self._answered.add(awakeable)

    async def _is_to_be_answered_again(self, client: Client, awakeable: str) -> bool:
        """Wait until an answer that was accepted is applied or refused; report whether it was refused."""
        id, _, n, _ = awakeable.rsplit("~", 3)
        answer = f"{'reject' if self._asks[awakeable][1] else 'resolve'} #{n}"
        while True:
            try:
                described = await self._insist(client.handle(id).describe)
            except UnknownInvocation:
                return False
            if answer not in described.mail:
                return self._waits(awakeable)
            await asyncio.sleep(UNREADABLE_SECONDS)

    def _waits(self, awakeable: str) -> bool:
        """Report whether an awakeable has no answer in the journal yet, and may get one."""
        id, generation, n, _ = awakeable.rsplit("~", 3)
        life = self._scene.observer.lives.get(id)
        if life is None or life.outcome is not None or life.generation != int(generation):
            return False
        return int(n) in life.commands and int(n) not in life.answers

    # --- watchers -----------------------------------------------------------------------------------------------------
    async def _watch(self, client: Client, n: int, act: Act) -> None:
        """Watch one program to its end, or all for ever; begin anew after every exception."""
        if act.verb == "watch" and (n in self._done or act.tag not in self._programs):
            self._done.add(n)
            return
        await self._until(act.at)
        while True:
            filter = Filter(id=act.tag) if act.verb == "watch" else Filter(status=_status(act))
            seen = self.seen[n] = Seen(f"{act.verb} {act.tag} of client{act.client}", filter)
            watching.set(seen)
            try:
                if await self._has_seen_all(client, act, seen):
                    break
            except UnknownInvocation:
                if act.tag in self._scene.observer.purged:
                    break
            except StoreError:
                self._scene.trace.count("watcher begins anew")
            except RuntimeError as error:
                if UNFORESEEN not in str(error):
                    raise
                self._scene.trace.count("watcher raises")
            await asyncio.sleep(AGAIN_SECONDS)
        self._done.add(n)

    async def _has_seen_all(self, client: Client, act: Act, seen: Seen) -> bool:
        scene, told = self._scene, None
        changes, breach = scene.server.store.changes, scene.observer.breach
        raises, is_one = scene.plan.noise.callbacks, act.verb == "watch"
        watched = client.handle(act.tag).watch() if is_one else client.watch(status=_status(act))
        async with aclosing(watched):
            async for told in watched:
                scene.trace.note("sees", told.id, told.status)
                note(seen, told, changes, breach, anew=not is_one)
                if raises and scene.chance.random() < raises:
                    raise RuntimeError(UNFORESEEN)
        if not is_end(told):
            breach(20, f"{seen.name} ends, and it has seen {told}")
        scene.trace.count("watched to its end")
        return True

    def unseen(self) -> Iterator[str]:
        """Name what those that watch all have not seen in the end."""
        store, purged = self._scene.server.store, self._scene.observer.purged
        for n, seen in self.seen.items():
            if self._scene.plan.acts[n].verb == "watch all":
                yield from unseen(seen, store.changes, lambda id: id in purged)

    # --- results ------------------------------------------------------------------------------------------------------
    async def _result(self, client: Client, id: str) -> None:
        handle = client.handle(id, self._scene.interpreter.workflow)
        told: Outcome
        try:
            told = await self._insist(handle.result)
        except UnknownInvocation:
            told = FORGOTTEN
            if id not in self._scene.observer.purged:
                self._scene.observer.breach(7, f"{id} was accepted, and the store does not know it")
        except Exception as error:  # noqa: BLE001  what the program failed with
            told = outcome_of(error)
        self._note_told(id, told)

    def _note_told(self, id: str, told: Outcome) -> None:
        observer = self._scene.observer
        life = observer.lives.get(id) or observer.gone.get(id)
        self._scene.trace.note("told", id, told)
        if told != FORGOTTEN and (life is None or not life.outcomes):
            observer.breach(18, f"a client is told of the end of {id}, which is not durable")
        self.told[id] = told

    # --- the operator -------------------------------------------------------------------------------------------------
    async def _operate(self, client: Client) -> None:
        """Resume what is paused, and end the run when nothing is left to do."""
        wait = LOOK_SECONDS
        while True:
            await asyncio.sleep(wait)
            wait = min(wait * 1.5, LOOK_SECONDS_LONGEST)
            broken = await self._mend(client)
            left = await self._insist(lambda: self._left(client))
            if left or broken:
                for id, status in left:
                    if status == "paused":
                        await self._resume(client, id)
                if self._scene.world.now > END_SECONDS:
                    self._scene.observer.breach(13, f"these have not ended: {left}, {broken}")
            elif self._is_told():
                await asyncio.sleep(CALM_SECONDS)
                if not (await self._mend(client) or await self._insist(lambda: self._left(client))):
                    self._scene.world.is_over = True
            elif self._scene.world.now > END_SECONDS:
                self._scene.observer.breach(13, "all have ended, and not all clients are told")

    async def _mend(self, client: Client) -> list[str]:
        """Mend what waits for it, and retry it; return what there was."""
        broken: list[str] = []
        for life in [*self._scene.observer.lives.values()]:
            program = program_of(life) if isinstance(life.outcome, Failed) else None
            if program is None or not waits_to_be_mended(program, told_of(life.outcome)):
                continue
            self._mended.add(program.tag)
            broken.append(life.id)
            handle, generation = client.handle(life.id), (life.id, life.generation)
            try:
                if generation in self._retrying and "retry" in (await self._insist(handle.describe)).mail:
                    continue
                await self._insist(handle.retry)
            except WaitTimeout:  # it was accepted, and is applied or refused when it has its key
                self._retrying.add(generation)
            except (MessageRefused, UnknownInvocation):
                self._scene.trace.count("retry of the operator refused")
        return broken

    def _is_told(self) -> bool:
        acts = self._scene.plan.acts
        left = len(acts) - len(self._done) - [act.verb for act in acts].count("watch all")
        return not left and all(
            act.tag in self.told for act in acts if act.verb == "start" and act.tag in self._programs
        )

    async def _left(self, client: Client) -> list[tuple[str, str]]:
        page = await client.page(limit=1_000)
        settled = ("completed", "failed", "cancelled")
        return [(each.id, each.status) for each in page.invocations if each.status not in settled]

    def _deploy(self) -> None:
        """Begin all workers anew, with code that fits."""
        self._scene.trace.count("deployed after a divergence")
        for machine in self._scene.machines:
            if isinstance(machine, WorkerMachine):
                machine.stop(DEPLOY_SECONDS)

    async def _resume(self, client: Client, id: str) -> None:
        try:
            await self._insist(client.handle(id).resume)
            self._scene.trace.count("resumed by the operator")
        except MessageRefused as error:
            if DIVERGES in str(error):
                self._deploy()
        except (UnknownInvocation, WaitTimeout):
            pass


def _status(act: Act) -> Any:
    return act.tag or None


def _text(program: Program) -> str:
    return encode(program).decode()
