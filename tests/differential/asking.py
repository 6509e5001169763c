"""Reads one store, and makes its answers comparable."""

from __future__ import annotations

from perdure.stores.awakeables import AwakeableFilter
from perdure.stores.port import Filter
from tests.differential import normal
from tests.differential.operations import Awaiting, Count, ReadKey, ReadWhat, Search, Served
from tests.differential.sides import Side
from tests.differential.state import AGO_SECONDS, State


async def read(side: Side, what: ReadWhat, id: str) -> object:
    """Read one invocation."""
    store = side.store
    match what:
        case "journal":
            journal = await store.journal(id)
            return normal.frames(journal.frames), side.number_of(id, journal.revision)
        case "revision":
            return side.number_of(id, await store.revision(id))
        case "outcome":
            return normal.outcome(await store.outcome(id))
        case "mail":
            return normal.mail(await store.mail(id))
        case "start":
            return await store.start(id)
        case "row":
            return normal.row(await store.row(id))


async def query(state: State, side: Side, operation: ReadKey | Search | Awaiting | Count | Served) -> object:
    """Read keys, lists and counts."""
    match operation:
        case ReadKey(key=key):
            return normal.key(await side.store.key(key))
        case Search():
            return [normal.row(row) for row in await side.store.search(await _filter(state, operation))]
        case Awaiting():
            return await side.store.awakeables(await _awakeable_filter(state, operation))
        case Count():
            return normal.counts(await side.store.counts())
        case Served():
            return sorted(side.store.served()), [side.store.serves(each) for each in ("h", "g", "nobody's")]


async def _filter(state: State, search: Search) -> Filter:
    before = None
    if search.page and (rows := await state.first.store.search(Filter())):
        middle = rows[len(rows) // 2]
        before = (middle.created_at, middle.id)
    return Filter(
        search.status,
        search.handler,
        search.key,
        search.prefix,
        before,
        search.limit,
        search.id,
        None if search.after is None else state.base - AGO_SECONDS + search.after,
        None if search.until is None else state.base - AGO_SECONDS + search.until,
        () if search.tag is None else (("t", search.tag),),
    )


async def _awakeable_filter(state: State, wanted: Awaiting) -> AwakeableFilter:
    after = None
    if wanted.page and (found := await state.first.store.awakeables(AwakeableFilter(state.now(), None))):
        after = found[len(found) // 2].place
    return AwakeableFilter(state.now(), wanted.is_open, wanted.handler, wanted.assignee, after, wanted.limit)
