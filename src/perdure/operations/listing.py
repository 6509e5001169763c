"""Checks the filters and cursors of `list`, `page` and `watch`, and converts them for the index."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import AsyncGenerator, Mapping
from datetime import datetime
from typing import Any, TypedDict, TypeVar, get_args

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from perdure.core.ids import check_name
from perdure.core.journal import Status
from perdure.core.tags import check_tags
from perdure.errors import InvalidOption
from perdure.operations.describe import AwakeableInfo, Invocation
from perdure.stores.awakeables import Awakeable, AwakeableFilter, Place
from perdure.stores.port import Filter, Row, Store

T = TypeVar("T")

PAGE_LIMIT = 1_000
"""The most invocations on one page."""
DIGEST_BYTES = 8
"""The digest of a filter in a cursor: it tells a mistake, and guards nothing."""

QUERY_SECONDS = 0.25
"""How long a query of the index may take that came over HTTP. It stops then, with `QueryTooSlow`."""

MINUTES_KEPT_SECONDS = 86_400
"""How far back what ended is counted by minutes."""

STATUSES: tuple[Status, ...] = get_args(Status)


class Filters(TypedDict, total=False):
    """Filters of invocations: all given ones must match. `created_after` is inclusive, `created_before` exclusive."""

    status: Status | None
    handler: str | None
    key: str | None
    id_prefix: str | None
    created_after: datetime | None
    created_before: datetime | None
    tags: Mapping[str, str] | None


class AwakeableFilters(TypedDict, total=False):
    """Filters of awakeables: all given ones must match. `open` is true for those that take an answer; None: all."""

    open: bool | None
    handler: str | None
    assignee: str | None


class AwakeablePage(Struct, frozen=True):
    """Some awakeables, oldest first, and the cursor of the page after them: None on the last one."""

    awakeables: tuple[AwakeableInfo, ...]
    next: str | None = None


class Page(Struct, frozen=True):
    """Some invocations, newest first, and the cursor of the page after them: None on the last one."""

    invocations: tuple[Invocation, ...]
    next: str | None = None


def filter_of(
    *,
    status: Status | None = None,
    handler: str | None = None,
    key: str | None = None,
    id_prefix: str | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
    tags: Mapping[str, str] | None = None,
) -> Filter:
    """Return the filter for the index, or raise `InvalidOption` or `BadId` naming the wrong one."""
    if status is not None and status not in STATUSES:
        raise InvalidOption(f"status={status!r}: there is none of this name; it is one of {', '.join(STATUSES)}")
    _check_names(handler=handler, key=key, id_prefix=id_prefix)
    after, before = _time("created_after", created_after), _time("created_before", created_before)
    having = () if tags is None else check_tags(tags)
    return Filter(status, handler, key, id_prefix, created_after=after, created_before=before, tags=having)


def awakeable_filter_of(
    now: float, *, open: bool | None = True, handler: str | None = None, assignee: str | None = None
) -> AwakeableFilter:
    """Return the filter of awakeables for the index, or raise `InvalidOption` or `BadId` naming the wrong one."""
    if open is not None and not isinstance(open, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidOption(f"open={open!r}: give True, False, or None for all")
    _check_names(handler=handler, assignee=assignee)
    return AwakeableFilter(now, open, handler, assignee)


def _check_names(**names: str | None) -> None:
    for name, text in names.items():
        if text is not None:
            check_name(f"{name} to look for", text)


def check_filters(filters: Filters) -> None:
    """Raise `InvalidOption` or `BadId`, naming the filter that is wrong."""
    filter_of(**filters)


def check_awakeable_filters(filters: AwakeableFilters) -> None:
    """Raise `InvalidOption` or `BadId`, naming the filter that is wrong."""
    awakeable_filter_of(0.0, **filters)


def check_cursor(cursor: str | None, filters: Filters) -> None:
    """Raise `InvalidOption` for what is not the `next` of a page with these filters."""
    if cursor is not None:
        position_of(cursor, filter_of(**filters))


def check_limit(limit: int, most: int | None = None) -> int:
    """Return a number of invocations, or raise `InvalidOption`."""
    if isinstance(limit, bool) or not isinstance(limit, int):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidOption(f"limit={limit!r}: give a whole number")
    if limit < 1 or (most is not None and limit > most):
        raise InvalidOption(f"limit={limit}: give at least 1" + (f" and at most {most:,}" if most is not None else ""))
    return limit


def cursor_of(row: Row, filter: Filter) -> str:
    """Return the cursor of the page after a row. It names a position in the order of creation, and the filter."""
    return _encoded((row.created_at, row.id), filter)


def position_of(cursor: str, filter: Filter) -> tuple[float, str]:
    """Return the position that a cursor names, or raise `InvalidOption`, also if it is of another filter."""
    return _decoded(cursor, tuple[float, str], filter)


def cursor_of_awakeable(awakeable: Awakeable, filter: AwakeableFilter) -> str:
    """Return the cursor of the page after an awakeable."""
    return _encoded(awakeable.place, filter)


def place_of(cursor: str, filter: AwakeableFilter) -> Place:
    """Return the place that a cursor of awakeables names, or raise `InvalidOption`, also if it is of another filter."""
    return _decoded(cursor, Place, filter)


def _encoded(position: tuple[object, ...], filter: Filter | AwakeableFilter) -> str:
    return base64.urlsafe_b64encode(msgspec.msgpack.encode((position, _digest(filter)))).rstrip(b"=").decode()


def _decoded(cursor: str, type: type[T], filter: Filter | AwakeableFilter) -> T:
    try:
        data = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        position, of = msgspec.msgpack.decode(data, type=tuple[msgspec.Raw, bytes])
        found = msgspec.msgpack.decode(position, type=type)
    except (TypeError, ValueError, binascii.Error, msgspec.DecodeError) as error:
        shown: Any = cursor[:40] if isinstance(cursor, str) else cursor  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidOption(f"cursor={shown!r}: pass the `next` of a page, unchanged") from error
    if of != _digest(filter):
        text = "it is of a page with other filters: pass the `next` of a page with the same ones"
        raise InvalidOption(f"cursor={cursor[:40]!r}: {text}")
    return found


def _digest(filter: Filter | AwakeableFilter) -> bytes:
    """Return a digest of what a filter selects, whatever the page and the time."""
    if isinstance(filter, Filter):
        whole = replace(filter, before=None, limit=0, within=None)
    else:
        whole = replace(filter, after=None, limit=0, now=0.0, within=None)
    return hashlib.blake2b(msgspec.msgpack.encode(whole), digest_size=DIGEST_BYTES).digest()


async def pages_of(store: Store, filter: Filter) -> AsyncGenerator[list[Row], None]:
    """Read all rows of the index that pass a filter, page by page; no page is empty."""
    filter = replace(filter, limit=PAGE_LIMIT)
    while rows := await store.search(filter):
        yield rows
        filter = replace(filter, before=(rows[-1].created_at, rows[-1].id))


def _time(name: str, at: datetime | None) -> float | None:
    if at is None:
        return None
    if not isinstance(at, datetime) or at.tzinfo is None:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidOption(f"{name}={at!r}: give a datetime with a time zone, as in datetime.now(UTC)")
    return at.timestamp()
