"""Who waits for what: outcomes of invocations and answers to messages, pushed inside one process."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from perdure.core.journal import Answer, Outcome

T = TypeVar("T")


class Notices:
    """Futures to end when something is known. A future that nobody waits on any more is dropped by its `cancel`."""

    def __init__(self) -> None:
        self._outcomes: dict[str, list[asyncio.Future[Outcome]]] = {}
        self._answers: dict[str, list[asyncio.Future[Answer]]] = {}

    def watch(self, id: str) -> asyncio.Future[Outcome]:
        """Return a future of the next outcome of an invocation."""
        return _enlist(self._outcomes, id)

    def await_answer(self, message_id: str) -> asyncio.Future[Answer]:
        """Return a future of the answer to a message."""
        return _enlist(self._answers, message_id)

    def settled(self, id: str, outcome: Outcome) -> None:
        for future in self._outcomes.pop(id, ()):
            if not future.done():
                future.set_result(outcome)

    def answered(self, answer: Answer) -> None:
        for future in self._answers.pop(answer.message, ()):
            if not future.done():
                future.set_result(answer)

    def fail(self, error: Exception) -> None:
        """End every wait with an error: the store is closing."""
        waiting = [*self._outcomes.values(), *self._answers.values()]
        self._outcomes.clear()
        self._answers.clear()
        for futures in waiting:
            for future in futures:
                if not future.done():
                    future.set_exception(error)


def _enlist(table: dict[str, list[asyncio.Future[T]]], name: str) -> asyncio.Future[T]:
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    table.setdefault(name, []).append(future)

    def given_up(ended: asyncio.Future[T]) -> None:
        if ended.cancelled() and (waiting := table.get(name)) is not None:
            waiting.remove(ended)
            if not waiting:
                del table[name]

    future.add_done_callback(given_up)
    return future
