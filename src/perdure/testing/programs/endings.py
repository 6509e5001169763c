"""How the invocations of programs have ended, as a client sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from perdure.client import Client
from perdure.core.lifecycle import SETTLED
from perdure.errors import UnknownInvocation, WaitTimeout
from perdure.testing.programs.interpreter import outcome_of
from perdure.testing.programs.program import Outcome, Program, program_in, waits_to_be_mended

RESULT_SECONDS = 1.0
"""How long there is a wait for the outcome of what is said to have ended."""

BATCH = 50
"""So many are looked at together."""


class Endings:
    """Collects how invocations have ended; one that has is looked at once."""

    def __init__(self, client: Client, handler: str = "interpret") -> None:
        self._client = client
        self._ids: dict[str, str] = {}  # by tag
        self._handler = handler
        self.ids: dict[str, str] = {}
        """The tags of what has ended, by id."""
        self.outcomes: dict[str, Outcome] = {}
        """What has ended, by tag."""
        self.flaws: list[str] = []
        """What no model needs to be asked about: a program that ran as two invocations."""
        self.broken: dict[str, Program] = {}
        """What failed and waits to be mended and retried, by id."""
        self.left: dict[str, str] = {}
        """The statuses of those that have not ended, by id, those that are broken left out."""

    def know(self, outcomes: Mapping[str, Outcome]) -> None:
        """Take in how some had ended, by tag: they may be purged by now. One that is there must have ended so."""
        for tag, outcome in outcomes.items():
            self._compare(tag, outcome)

    async def look(self) -> None:
        """Look at all invocations."""
        self.broken, self.left = {}, {}
        ended: list[str] = []
        async for each in self._client.list(handler=self._handler):
            if each.id in self.ids:
                continue
            if each.status in SETTLED:
                ended.append(each.id)
            else:
                self.left[each.id] = each.status
        for at in range(0, len(ended), BATCH):
            await asyncio.gather(*map(self._note, ended[at : at + BATCH]))

    async def _note(self, id: str) -> None:
        handle = self._client.handle(id)
        try:
            found = await handle.describe()
        except UnknownInvocation:  # it was purged since it was listed
            return
        program = program_in(found.input)
        outcome: Outcome
        try:
            outcome = await handle.result(timeout=RESULT_SECONDS)
        except UnknownInvocation:
            return
        except WaitTimeout:  # what the list says of it is old: it is being retried
            self.left[id] = found.status
            return
        except Exception as error:  # noqa: BLE001  what the program failed with
            outcome = outcome_of(error)
        if waits_to_be_mended(program, outcome):
            self.broken[id] = program
            return
        self._compare(program.tag, outcome)
        if (other := self._ids.setdefault(program.tag, id)) != id:
            self.flaws.append(f"{program.tag} ran as two invocations, {id} and {other}")
        self.ids[id] = program.tag

    def _compare(self, tag: str, outcome: Outcome) -> None:
        known = self.outcomes.setdefault(tag, outcome)
        if known != outcome:
            self.flaws.append(f"{tag} had come to {known}, and now to {outcome}")
