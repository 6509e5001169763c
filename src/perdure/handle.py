"""A handle: one invocation, from anywhere. It sees the operations and no store."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Generic, TypeVar, overload

from perdure.authoring.workflow import Call, Workflow
from perdure.calls import refuse_in_body, submission_of, value_of
from perdure.core.retry import Duration, seconds
from perdure.operations.describe import Invocation
from perdure.operations.port import ANSWER_WAIT_SECONDS, Operations
from perdure.runtime.worker import Translators

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Handle(Generic[R_co]):
    """One invocation, from anywhere: wait for it, look at it, talk to it."""

    def __init__(
        self,
        operations: Operations,
        id: str,
        workflow: Workflow[..., R_co] | None = None,
        translators: Translators = tuple,
    ) -> None:
        self.id = id
        self._operations = operations
        self._workflow = workflow
        self._translators = translators

    def __repr__(self) -> str:
        return f"Handle({self.id!r})"

    async def result(self, *, timeout: Duration | None = None) -> R_co:
        """Wait for the result, and return it or raise what the body raised.

        `timeout` (seconds or a timedelta) bounds only the waiting: `WaitTimeout`. A cancelled invocation raises
        `InvocationCancelled`, an unknown id `UnknownInvocation`.
        """
        refuse_in_body("handle.result()", "await the workflow itself, as a child")
        limit = None if timeout is None else seconds("timeout", timeout)
        outcome = await self._operations.result(self.id, timeout=limit)
        return value_of(self.id, outcome, self._workflow, self._translators)

    async def describe(self) -> Invocation:
        """Return its status, journal, state, awakeables, times, and what it waits for."""
        refuse_in_body("handle.describe()")
        return await self._operations.describe(self.id)

    async def export(self) -> bytes:
        """Return its history, to be kept in a file and replayed by `perdure.testing.replay` when the code changes.

        JSON text with the input and all that is journaled, whatever its status; the format is versioned. It holds what
        was recorded, and the ids of awakeables: keep it like the data of production that it is.
        """
        refuse_in_body("handle.export()")
        return await self._operations.export(self.id)

    def watch(self) -> AsyncGenerator[Invocation, None]:
        """Iterate over its statuses as they change: the present one first, and the one in which it is settled last.

        Each is what the index knows, as in `client.list`. Pushed, not polled; a slow reader sees only the latest.
        `contextlib.aclosing` ends it at once when the loop is left early.
        """
        refuse_in_body("handle.watch()")
        return self._operations.watch(self.id)

    async def pause(self, *, timeout: Duration = ANSWER_WAIT_SECONDS) -> None:
        """Start and deliver nothing new until `resume`; running steps end and are journaled.

        Here and in the other verbs, the message is durable at once, and `timeout` bounds only the waiting until a
        worker has applied it: `WaitTimeout`. `MessageRefused` says why it was not applied.
        """
        refuse_in_body("handle.pause()")
        await self._operations.pause(self.id, timeout=timeout)

    async def resume(self, *, timeout: Duration = ANSWER_WAIT_SECONDS) -> None:
        """End a pause."""
        refuse_in_body("handle.resume()")
        await self._operations.resume(self.id, timeout=timeout)

    async def cancel(self, *, force: bool = False, timeout: Duration = ANSWER_WAIT_SECONDS) -> None:
        """Cancel, letting cleanup code run; `force` skips cleanup. Returns when the cancellation is recorded.

        As of an asyncio task, CancelledError is raised where the body waits, once: a body that catches it and goes on
        has taken it, and a second plain cancel changes nothing, so that cleanup is not cut short. Force ends it always.
        Children are cancelled likewise; what was sent is not.
        """
        refuse_in_body("handle.cancel()", "cancel the task that awaits the child")
        await self._operations.cancel(self.id, force=force, timeout=timeout)

    async def retry(self, *, timeout: Duration = ANSWER_WAIT_SECONDS) -> None:
        """Run a failed invocation again from the step that made it fail, under the same id.

        Results from before are kept, and what was undone since stays undone. The failed step gets a new idempotency
        key and its attempts begin anew; a failed child is started anew; siblings that the failure cancelled run again.
        A body that raised by itself is run again as a whole over the results it has: retry it once it is repaired.
        An invocation with a key queues for it again: this returns when it has the key, and until then it is still
        failed, and `describe().waiting_for` names the holder. After `timeout` it raises `WaitTimeout`; the retry stays.
        Anything but a failed invocation refuses: `MessageRefused`.
        """
        refuse_in_body("handle.retry()")
        await self._operations.retry(self.id, timeout=timeout)

    async def purge(self) -> None:
        """Remove a settled invocation for ever, without waiting for the end of its retention.

        Its journal and messages go; its id is unknown then, and may be used anew. `IllegalTransition` while it has not
        ended, or while something for it is still in hand: try that again. On JetStream what a workflow sent last stays
        while the workflow waits for no time, or is there after its end.
        """
        refuse_in_body("handle.purge()")
        await self._operations.purge(self.id)

    @overload
    async def restart(self, /, *, id: str | None = None) -> Handle[R_co]: ...
    @overload
    async def restart(self, call: Call[R], /, *, id: str | None = None) -> Handle[R]: ...
    async def restart(self, call: Call[Any] | None = None, /, *, id: str | None = None) -> Handle[Any]:
        """Run it from its beginning as a new invocation, under another id, perhaps with other input; return that.

        For an invocation at rest, however it ended; this one stays as it is, and nothing of its journal is reused.
        `call` gives other arguments or options, as in `await handle.restart(charge.bind(card, 400), id="o-7-again")`;
        without it the input is the same, and so are key and time limit unless the call sets its own. `id` makes it
        idempotent. Raises `IllegalTransition` while the invocation is not at rest, `InvalidOption` for a call of
        another workflow or the same id.
        """
        refuse_in_body("handle.restart()")
        if call is None:
            new = await self._operations.restart(self.id, None, new_id=id)
            return Handle(self._operations, new, self._workflow, self._translators)
        workflow = call.workflow
        asked = submission_of(workflow, call.args, call.kwargs)
        names = (workflow.name, *workflow.aliases)
        new = await self._operations.restart(self.id, asked, new_id=id, handlers=names)
        return Handle(self._operations, new, workflow, self._translators)
