"""Who waits for what: outcomes of invocations and answers to messages, pushed inside one process."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from perdure.core.journal import Answer, Outcome

T = TypeVar("T")


class _Waiting(asyncio.Future[T]):
    """A future that leaves its table when its waiter gives up."""

    __slots__ = ("_name", "_table")

    def __init__(self, table: dict[str, list[_Waiting[T]]], name: str) -> None:
        super().__init__(loop=asyncio.get_running_loop())
        self._table = table
        self._name = name
        waiting = table.get(name)
        if waiting is None:
            table[name] = [self]
        else:
            waiting.append(self)

    def cancel(self, msg: object = None) -> bool:
        waiting = self._table.get(self._name)
        if waiting is not None and self in waiting:
            waiting.remove(self)
            if not waiting:
                del self._table[self._name]
        return super().cancel(msg)


class Notices:
    """Futures to end when something is known."""

    def __init__(self) -> None:
        self._outcomes: dict[str, list[_Waiting[Outcome]]] = {}
        self._answers: dict[str, list[_Waiting[Answer]]] = {}

    def watch(self, id: str) -> asyncio.Future[Outcome]:
        """Return a future of the next outcome of an invocation."""
        return _Waiting(self._outcomes, id)

    def await_answer(self, message_id: str) -> asyncio.Future[Answer]:
        """Return a future of the answer to a message."""
        return _Waiting(self._answers, message_id)

    def settled(self, id: str, outcome: Outcome) -> None:
        for future in self._outcomes.pop(id, ()):
            if not future.done():
                future.set_result(outcome)

    def answered(self, answer: Answer) -> None:
        for future in self._answers.pop(answer.message, ()):
            if not future.done():
                future.set_result(answer)

    @property
    def awaited(self) -> bool:
        """Tell whether somebody waits for an outcome."""
        return bool(self._outcomes)

    def fail(self, error: Exception) -> None:
        """End every wait with an error: the store is closing."""
        waiting = [*self._outcomes.values(), *self._answers.values()]
        self._outcomes.clear()
        self._answers.clear()
        for futures in waiting:
            for future in futures:
                if not future.done():
                    future.set_exception(error)
