"""How a body begins and ends: its coroutine, and the outcome of its main task."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar, cast

from perdure.core.causes import Causes
from perdure.core.failures import FailureTranslator, failure_of
from perdure.core.journal import Cancelled, CancelRequested, Completed, Failed, Outcome, Start
from perdure.errors import InvocationTimedOut, IoInWorkflow

T = TypeVar("T")


def outcome_of(
    main: asyncio.Task[Any],
    error: BaseException | None,
    request: CancelRequested | None,
    encode_result: Callable[[Any], bytes],
    known: Causes,
    translators: Sequence[FailureTranslator],
    start: Start,
    at: float,
    /,
) -> Outcome:
    """Return the outcome of a body: from `error` if there is one, else from its main task, which has ended.

    `request` is its cancellation, if there was one; `known` are the failures that commands have raised into it.
    """
    if error is None and main.cancelled():
        if request is not None:
            return timed_out(start, at) if request.timed_out else Cancelled(at)
        error = _cancelled_itself(main)
    elif error is None:
        error = main.exception()
    if error is None:
        try:
            return Completed(at, encode_result(main.result()))
        except Exception as refused:  # noqa: BLE001  whatever an encoder raises is the failure of this invocation
            error = refused
    error = _refusal_in(error)
    causes = known.of(error)
    cause = causes[0] if causes else None
    failure = failure_of(error, translators=translators)
    return Failed(at, failure, cause, causes if len(causes) > 1 else [])


def timed_out(start: Start, at: float, /) -> Failed:
    """Return the outcome of an invocation that exceeded its time limit."""
    text = f"invocation {start.id!r} did not end within its timeout of {start.timeout} s"
    late = InvocationTimedOut(text, invocation_id=start.id, timeout=start.timeout or 0.0)
    return Failed(at, failure_of(late))


def coroutine_of(
    context: contextvars.Context, body: Callable[[T], Any], turn: T, handler: str
) -> Coroutine[Any, Any, Any]:
    """Make the coroutine of a body. If the call raises, or returns no coroutine, the coroutine raises that error."""
    try:
        coro = context.run(body, turn)
    except Exception as error:  # noqa: BLE001  raised again, inside
        return _raising(error)
    if asyncio.iscoroutine(coro):
        return coro
    if isinstance(coro, Awaitable):
        return _awaiting(cast("Awaitable[Any]", coro))
    made = type(cast("object", coro)).__name__
    return _raising(TypeError(f"workflow {handler!r} gave a {made} when called, and nothing to await"))


async def _awaiting(made: Awaitable[Any]) -> Any:
    return await made


async def _raising(error: Exception) -> None:
    raise error


def _refusal_in(error: BaseException) -> BaseException:
    """Return the refusal of I/O from a group that holds nothing else: libraries connect in task groups of their own."""
    inner = error
    while isinstance(inner, BaseExceptionGroup):
        members = cast("BaseExceptionGroup[BaseException]", inner).exceptions
        if len(members) > 1:
            return error
        inner = next(iter(members))
    return inner if isinstance(inner, IoInWorkflow) else error


def _cancelled_itself(main: asyncio.Task[Any]) -> BaseException:
    """Return the failure of a body that let a CancelledError of its own escape."""
    error = asyncio.CancelledError("the body raised CancelledError without having been cancelled")
    try:
        main.result()
    except asyncio.CancelledError as raised:
        error.__traceback__ = raised.__traceback__
    return error
