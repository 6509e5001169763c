"""A handle: one invocation, from any process. It uses the operations and knows no store."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from perdure.authoring.streams import StreamItem
from perdure.authoring.workflow import Call, Workflow
from perdure.calls import refuse_in_body, submission_of, value_of
from perdure.core.retry import Duration, seconds
from perdure.core.streams import check_stream
from perdure.core.types import decoder
from perdure.operations.describe import Invocation
from perdure.operations.following import StreamPart, check_start
from perdure.operations.port import ANSWER_WAIT_SECONDS, Operations
from perdure.runtime.worker import Translators

if TYPE_CHECKING:
    from typing_extensions import TypeForm

R = TypeVar("R")
T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)


class Handle(Generic[R_co]):
    """One invocation: await, inspect and control it, from any process."""

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
        """Wait for the result, and return it or raise the body's exception.

        `timeout` (seconds or a timedelta) bounds only the waiting: `WaitTimeout`. A cancelled invocation raises
        `InvocationCancelled`, an unknown id `UnknownInvocation`.
        """
        refuse_in_body("handle.result()", "await the workflow itself, as a child")
        limit = None if timeout is None else seconds("timeout", timeout)
        outcome = await self._operations.result(self.id, timeout=limit)
        return value_of(self.id, outcome, self._workflow, self._translators)

    async def describe(self) -> Invocation:
        """Return its status, journal, state, awakeables and times, and what it waits for."""
        refuse_in_body("handle.describe()")
        return await self._operations.describe(self.id)

    async def export(self, *, plain: bool = False) -> bytes:
        """Return its history, to be saved to a file and replayed by `perdure.testing.replay` when the code changes.

        JSON text with the input and the whole journal, in any status; the format is versioned. It contains recorded
        values and the ids of awakeables: treat it as production data. If the store seals values, so are those in the
        history, and `replay` needs the codec; `plain` opens them.
        """
        refuse_in_body("handle.export()")
        return await self._operations.export(self.id, plain=plain)

    def watch(self) -> AsyncGenerator[Invocation, None]:
        """Iterate over its statuses as they change, from the present one to the one in which it settles.

        Each has the fields of the index, as in `client.list`. Pushed, not polled; a slow reader gets only the latest.
        Use `contextlib.aclosing` if you leave the loop early.
        """
        refuse_in_body("handle.watch()")
        return self._operations.watch(self.id)

    @overload
    def stream(
        self, name: str, type: TypeForm[T], /, *, start: int = 0, follow: bool = True
    ) -> AsyncGenerator[StreamItem[T], None]: ...
    @overload
    def stream(self, name: str, /, *, start: int = 0, follow: bool = True) -> AsyncGenerator[StreamItem[Any], None]: ...
    def stream(
        self, name: str, type: Any = Any, /, *, start: int = 0, follow: bool = True
    ) -> AsyncGenerator[StreamItem[Any], None]:
        """Iterate over the items of one of its streams as they come, until it has settled.

        Items are numbered from 0, and `start` is the first one wanted: to go on later, or elsewhere, read from the last
        `offset + 1`. There is no gap and no repetition, whatever dies meanwhile. Without `follow`, it ends with the
        last item that there is now. `Undecodable` for an item that is not of the type; `UnknownInvocation`. Use
        `contextlib.aclosing` if you leave the loop early.
        """
        refuse_in_body("handle.stream()")
        parts = self._operations.stream(self.id, check_stream(name), check_start(start), follow=follow)
        return _items(parts, decoder(type))

    async def pause(self, *, timeout: Duration = ANSWER_WAIT_SECONDS) -> None:
        """Start and deliver nothing new until `resume`; running steps end and are journaled.

        This holds for all verbs: the message is durable at once, and `timeout` bounds only how long to wait until a
        worker has applied it (`WaitTimeout`). `MessageRefused` if it was not applied.
        """
        refuse_in_body("handle.pause()")
        await self._operations.pause(self.id, timeout=timeout)

    async def resume(self, *, timeout: Duration = ANSWER_WAIT_SECONDS) -> None:
        """End a pause."""
        refuse_in_body("handle.resume()")
        await self._operations.resume(self.id, timeout=timeout)

    async def cancel(self, *, force: bool = False, timeout: Duration = ANSWER_WAIT_SECONDS) -> None:
        """Cancel, letting cleanup code run; `force` skips cleanup. Returns when the cancellation is recorded.

        As with an asyncio task, CancelledError is raised where the body waits, but only once: a second plain cancel
        changes nothing, so that cleanup is not interrupted, and a body may catch it and continue. `force` always ends
        it. Children are cancelled in the same way; invocations started by `ctx.send` are not.
        """
        refuse_in_body("handle.cancel()", "cancel the task that awaits the child")
        await self._operations.cancel(self.id, force=force, timeout=timeout)

    async def retry(self, *, timeout: Duration = ANSWER_WAIT_SECONDS) -> None:
        """Run a failed invocation again from the step that failed, under the same id.

        Earlier results are kept; compensation that ran is not reverted. The failed step gets a new idempotency key and
        all its attempts; a failed child is started again; siblings that the failure cancelled run again. A body that
        raised by itself runs again as a whole with the results it has: deploy a repaired one before the retry.

        An invocation with a key queues for it again. This returns when it has the key; until then it is still failed,
        and `describe().waiting_for` names the holder. After `timeout` it raises `WaitTimeout`, and the retry stays.
        `MessageRefused` if the invocation has not failed.
        """
        refuse_in_body("handle.retry()")
        await self._operations.retry(self.id, timeout=timeout)

    async def purge(self) -> None:
        """Remove a settled invocation, with its journal and messages, before its retention ends.

        Its id is then unknown, and may be used again. `IllegalTransition` if it has not ended, or while a message for
        it is still being processed: then try again. On JetStream, an invocation started by the last frame of a workflow
        stays until that frame's effects are known to be done, or the workflow is purged.
        """
        refuse_in_body("handle.purge()")
        await self._operations.purge(self.id)

    @overload
    async def restart(self, /, *, id: str | None = None) -> Handle[R_co]: ...
    @overload
    async def restart(self, call: Call[R], /, *, id: str | None = None) -> Handle[R]: ...
    async def restart(self, call: Call[Any] | None = None, /, *, id: str | None = None) -> Handle[Any]:
        """Run it from the beginning as a new invocation with another id, perhaps with other input; return its handle.

        The invocation must be at rest, with any outcome. It stays as it is, and nothing of its journal is reused.
        `call` gives other arguments or options, as in `await handle.restart(charge.bind(card, 400), id="o-7-again")`;
        without it the input is the same. Key and timeout are the same unless the call sets its own. `id` makes the
        restart idempotent. `IllegalTransition` if the invocation is not at rest, `InvalidOption` for a call of another
        workflow or the same id.
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


async def _items(
    parts: AsyncGenerator[StreamPart, None], decode: Callable[[bytes], Any]
) -> AsyncGenerator[StreamItem[Any], None]:
    async with aclosing(parts):
        async for part in parts:
            for offset, item in enumerate(part.items, part.offset):
                yield StreamItem(offset, decode(item), part.step, part.attempt)
