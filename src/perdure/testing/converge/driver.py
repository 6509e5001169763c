"""The client of a run: it starts the programs, answers them, and mends, pauses, cancels, ends and purges some.

Its process may be killed at any moment, and goes on in another: how far it is, is in the folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Coroutine
from typing import Any

from perdure.client import Client
from perdure.core.lifecycle import SETTLED as SETTLED_STATUSES
from perdure.errors import (
    IllegalTransition,
    MessageRefused,
    PerdureError,
    StoreUnavailable,
    UnknownInvocation,
    WaitTimeout,
)
from perdure.testing.converge.folder import (
    ACCEPTED,
    ANSWERED,
    ASKED,
    ASKS,
    CANCELS,
    MENDED,
    OVER,
    PURGED,
    SETTLED,
    STARTED,
    Folder,
    note_purge,
    purges_in,
)
from perdure.testing.converge.plan import Plan
from perdure.testing.programs import (
    Endings,
    Interpreter,
    Model,
    Outcome,
    Program,
    encode,
    outcome_of,
    program_in,
    waits_to_be_mended,
)

GROUP = 5
"""So many programs are started at a time, at most."""
AT_ONCE = 100
"""When so many invocations have not ended, no more programs are started."""
LOOK_SECONDS = 0.2
DISTURB_SECONDS = 0.3
"""How long after its start a program is paused or cancelled, at most."""
ANSWER_SECONDS = 10.0
"""How long there is a wait until an answer is applied; then it is given again."""
RETRY_SECONDS = 2.0
"""How long there is a wait until a retry is applied; one that waits for its key stays."""
PURGE_SECONDS = 60.0
"""How long in the end there is a wait for purges."""

_REFUSED = (MessageRefused, WaitTimeout, UnknownInvocation, StoreUnavailable)


class Driver:
    """Drives a run to its end."""

    def __init__(self, client: Client, interpreter: Interpreter, folder: Folder, plan: Plan) -> None:
        self._client = client
        self._interpreter = interpreter
        self._folder = folder
        self._plan = plan
        self._endings = Endings(client)
        self._left = 0
        self._seen_failed: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._purges: set[asyncio.Task[None]] = set()

    async def drive(self) -> None:
        """Go on from where the folder says, until everything has ended."""
        for each in self._plan.roots[: int(self._folder.last(STARTED) or 0)]:
            self._purge_when_it_ends(each)
        async with asyncio.TaskGroup() as group:
            answering = group.create_task(self._answer())
            starting = group.create_task(self._start())
            while not (await self._is_over() and starting.done()):  # noqa: ASYNC110  a store is looked at
                await asyncio.sleep(LOOK_SECONDS)
            answering.cancel()
        if self._purges:
            await asyncio.wait(self._purges, timeout=PURGE_SECONDS)
        for each in (*self._tasks, *self._purges):
            each.cancel()
        self._folder.append(OVER, "over")

    # --- starting -----------------------------------------------------------------------------------------------------
    async def _start(self) -> None:
        roots, at = self._plan.roots, int(self._folder.last(STARTED) or 0)
        chance = random.Random(at)  # noqa: S311  no secret
        while at < len(roots):
            if self._left >= AT_ONCE:
                await asyncio.sleep(LOOK_SECONDS)
                continue
            group = roots[at : at + chance.randint(1, GROUP)]
            await asyncio.gather(*map(self._start_one, group))
            at += len(group)
            self._left += len(group)
            self._folder.append(STARTED, str(at))
            for each in group:
                self._disturb(each, chance)
                self._purge_when_it_ends(each)

    async def _start_one(self, program: Program) -> None:
        await self._client.start(self._interpreter.started(program), encode(program).decode())

    def _disturb(self, program: Program, chance: random.Random) -> None:
        if program.tag in self._plan.paused:
            self._later(chance.random() * DISTURB_SECONDS, self._pause(program.tag))
        if program.tag in self._plan.cancelled:
            self._later(chance.random() * DISTURB_SECONDS, self._cancel(program.tag))
        if program.tag in self._plan.forced:
            self._later(chance.random() * DISTURB_SECONDS, self._cancel(program.tag, force=True))

    def _later(self, seconds: float, action: Coroutine[Any, Any, None]) -> None:
        async def act() -> None:
            await asyncio.sleep(seconds)
            with contextlib.suppress(*_REFUSED):
                await action

        task = asyncio.ensure_future(act())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pause(self, tag: str) -> None:
        await self._client.handle(tag).pause()

    async def _cancel(self, tag: str, *, force: bool = False) -> None:
        self._folder.append(CANCELS, f"{ASKED} {tag}")
        await self._client.handle(tag).cancel(force=force)
        self._folder.append(CANCELS, f"{ACCEPTED} {tag}")

    # --- purging ------------------------------------------------------------------------------------------------------
    def _purge_when_it_ends(self, program: Program) -> None:
        if program.tag in self._plan.purged and program.tag not in self._folder.lines(PURGED):
            task = asyncio.ensure_future(self._purge(program))
            self._purges.add(task)
            task.add_done_callback(self._purges.discard)

    async def _purge(self, program: Program) -> None:
        """Purge a program when it has ended. How it ended is noted before: then nobody can ask the store for it."""
        tag = program.tag
        handle = self._client.handle(tag)
        while tag not in purges_in(self._folder):
            try:
                outcome: Outcome = await handle.result(timeout=ANSWER_SECONDS)
            except (WaitTimeout, StoreUnavailable):
                continue
            except Exception as error:  # noqa: BLE001  what the program failed with
                outcome = outcome_of(error)
            if not waits_to_be_mended(program, outcome):
                note_purge(self._folder, tag, outcome)
            await asyncio.sleep(LOOK_SECONDS)
        while True:
            try:
                await handle.purge()
            except UnknownInvocation:  # purged, and the process was killed before it was told
                break
            except (IllegalTransition, StoreUnavailable):  # something of it is still being processed
                await asyncio.sleep(LOOK_SECONDS)
            else:
                break
        self._folder.append(PURGED, tag)

    # --- answering ----------------------------------------------------------------------------------------------------
    async def _answer(self) -> None:
        answered = {*self._folder.lines(ANSWERED)}
        while True:
            new = {line.split()[0]: line for line in self._folder.lines(ASKS) if line.split()[0] not in answered}
            results = await asyncio.gather(*(self._answer_one(*line.split()) for line in new.values()))
            answered.update(each for each in results if each is not None)
            await asyncio.sleep(LOOK_SECONDS)

    async def _answer_one(self, awakeable: str, value: str, rejected: str) -> str | None:
        """Answer, and return the awakeable; None if that is to be tried again."""
        try:
            if int(rejected):
                await self._client.reject(awakeable, value, timeout=ANSWER_SECONDS)
            else:
                await self._client.resolve(awakeable, value, timeout=ANSWER_SECONDS)
        except MessageRefused:
            pass  # who asked has given up, or has ended
        except PerdureError:
            return None
        self._folder.append(ANSWERED, awakeable)
        return awakeable

    # --- looking ------------------------------------------------------------------------------------------------------
    async def _is_over(self) -> bool:
        """Look at all that runs, mend what is broken, resume what is paused; tell whether everything has ended."""
        counts = await self._client.stats()
        settled = sum(count for status, count in counts.by_status.items() if status in SETTLED_STATUSES)
        self._left = counts.total - settled
        told = f"{settled} {self._left}"
        if told != self._folder.last(SETTLED):
            self._folder.append(SETTLED, told)
        if counts.by_status.get("paused"):
            paused = [each.id async for each in self._client.list(status="paused")]
            await asyncio.gather(*map(self._resume, paused))
        await self._mend_all()
        if self._left or int(self._folder.last(STARTED) or 0) < len(self._plan.roots):
            return False
        endings = self._endings
        endings.know(purges_in(self._folder))
        await endings.look()
        must_end = Model(self._plan.roots, self._cancels()).must_end()
        return not endings.left and not endings.broken and must_end <= endings.outcomes.keys()

    def _cancels(self) -> dict[str, bool]:
        return {line.split()[1]: False for line in self._folder.lines(CANCELS)}

    async def _resume(self, id: str) -> None:
        with contextlib.suppress(*_REFUSED):
            await self._client.handle(id).resume(timeout=ANSWER_SECONDS)

    async def _mend_all(self) -> None:
        failed = [each.id async for each in self._client.list(status="failed") if each.id not in self._seen_failed]
        await asyncio.gather(*map(self._mend_one, failed))

    async def _mend_one(self, id: str) -> None:
        with contextlib.suppress(*_REFUSED):  # it may have been purged meanwhile
            await self._mend(id)

    async def _mend(self, id: str) -> None:
        handle = self._client.handle(id)
        found = await handle.describe()
        program = program_in(found.input)
        if not program.needs_mending or found.retries:
            if found.status == "failed":
                self._seen_failed.add(id)
            return
        if program.tag not in self._folder.lines(MENDED):
            self._folder.append(MENDED, program.tag)
        await handle.retry(timeout=RETRY_SECONDS)
