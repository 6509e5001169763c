"""Pushes outcomes of invocations, answers to messages and changes to the callers in one process that wait for them."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from perdure.core.journal import Answer, Outcome
from perdure.stores.port import Filter, Row, matches

CHANGES_LIMIT = 10_000
"""Changed invocations that are kept for one slow reader. It gets only the latest state of each."""

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


class Feed:
    """The unread changes of one reader: the latest of each invocation."""

    def __init__(self, filter: Filter, notices: Notices, number: int) -> None:
        self.filter = filter
        self.number = number
        self._notices = notices
        self._changed: dict[str, Row] = {}
        self._missed = False
        self._ended: Exception | None = None
        self._waiting: asyncio.Future[None] | None = None

    async def next(self) -> list[Row] | None:
        while not self._changed and not self._missed:
            if self._ended is not None:
                raise self._ended
            self._waiting = asyncio.get_running_loop().create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None
        if self._missed:
            self._missed = False
            return None
        changed, self._changed = self._changed, {}
        return [*changed.values()]

    def close(self) -> None:
        self._notices.forget(self)
        self._changed.clear()

    @property
    def awaited(self) -> bool:
        """Report whether a reader waits for a change now."""
        return self._waiting is not None and not self._waiting.done()

    def push(self, row: Row) -> None:
        if self.filter.gone if row.gone else matches(row, self.filter):
            self._changed.pop(row.id, None)  # so that the latest change comes last
            self._changed[row.id] = row
            if len(self._changed) > CHANGES_LIMIT:
                self.miss()
            else:
                self._wake()

    def miss(self) -> None:
        """Drop the changes: the reader reads the index instead."""
        self._missed = True
        self._changed.clear()
        self._wake()

    def end(self, error: Exception) -> None:
        self._ended = error
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


class Notices:
    """Futures of outcomes and answers, and feeds of changes."""

    def __init__(self) -> None:
        self._outcomes: dict[str, list[_Waiting[Outcome]]] = {}
        self._answers: dict[str, list[_Waiting[Answer]]] = {}
        self._feeds: dict[str | None, list[Feed]] = {}  # by the id that they watch, None for all others
        self.feeds_made = 0
        self.watched = False  # there is a feed

    def watch(self, id: str) -> asyncio.Future[Outcome]:
        """Return a future of the next outcome of an invocation."""
        return _Waiting(self._outcomes, id)

    def is_watched(self, id: str) -> bool:
        """Report whether a caller waits for the outcome of an invocation."""
        return id in self._outcomes

    def is_awaited(self, message_id: str) -> bool:
        """Report whether a caller waits for the answer to a message."""
        return message_id in self._answers

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

    # --- changes ------------------------------------------------------------------------------------------------------
    def events(self, filter: Filter) -> Feed:
        """Return a feed of the changes from now on."""
        self.feeds_made += 1
        feed = Feed(filter, self, self.feeds_made)
        self._feeds.setdefault(filter.id, []).append(feed)
        self.watched = True
        return feed

    def forget(self, feed: Feed) -> None:
        feeds = self._feeds.get(feed.filter.id, [])
        if feed in feeds:
            feeds.remove(feed)
            if not feeds:
                del self._feeds[feed.filter.id]
                self.watched = bool(self._feeds)

    def followed(self) -> list[str]:
        """Return the ids of the invocations that feeds watch one by one."""
        return [id for id in self._feeds if id is not None]

    def wants(self, id: str) -> bool:
        """Report whether any feed may want the changes of an invocation."""
        return None in self._feeds or id in self._feeds

    def changed(self, row: Row, made: int) -> None:
        """Push a row to the first `made` feeds: readers of later feeds have read a newer index."""
        for feeds in (self._feeds.get(row.id, ()), self._feeds.get(None, ())):
            for feed in feeds:
                if feed.number <= made:
                    feed.push(row)

    def missed(self) -> None:
        """Make all readers read the index."""
        for id in self._feeds:
            self.missed_of(id)

    def missed_of(self, id: str | None) -> None:
        """Make those read the index that watch one invocation, or, with None, all others."""
        for feed in self._feeds.get(id, ()):
            feed.miss()

    # --- all of it ----------------------------------------------------------------------------------------------------
    @property
    def awaited(self) -> bool:
        """Report whether a caller waits for one invocation: for its outcome, or its next change."""
        return bool(self._outcomes) or any(
            feed.awaited for id, feeds in self._feeds.items() if id is not None for feed in feeds
        )

    def fail(self, error: Exception) -> None:
        """End every wait with an error: the store is closing."""
        for feeds in self._feeds.values():
            for feed in feeds:
                feed.end(error)
        waiting = [*self._outcomes.values(), *self._answers.values()]
        self._outcomes.clear()
        self._answers.clear()
        for futures in waiting:
            for future in futures:
                if not future.done():
                    future.set_exception(error)
