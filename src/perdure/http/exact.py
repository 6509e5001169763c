"""The operations as another Perdure client calls them: exact values, in msgpack, one route for each operation.

`POST /api/client/NAME` takes a list of arguments and answers with a result, or with an error that the caller raises
again, with its attributes. The routes beside these are for people and other languages; this is the inner form, for
clients of about the same release.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Literal, get_type_hints

import msgspec
from msgspec import Struct

from perdure import errors
from perdure.authoring.workflow import checked_delay
from perdure.core.busy import check_when_busy
from perdure.core.failures import Failure
from perdure.core.ids import check_name, check_new_id
from perdure.core.retry import seconds
from perdure.core.schedule import Plan
from perdure.core.tags import Tags, check_tags
from perdure.errors import InvalidOption, PerdureError
from perdure.operations.access import Access, Role, Token
from perdure.operations.audit import Link
from perdure.operations.bulk import (
    JOBS_PAGE_LIMIT,
    BulkPage,
    BulkPreview,
    BulkProgress,
    BulkRequest,
    restored,
)
from perdure.operations.capabilities import Capability, Purpose
from perdure.operations.describe import Invocation
from perdure.operations.documents import Check, Delete, Document, DocumentKey, Fence, Put, Scan, Write
from perdure.operations.listing import (
    PAGE_LIMIT,
    QUERY_SECONDS,
    AwakeableFilters,
    AwakeablePage,
    Filters,
    Page,
    check_limit,
)
from perdure.operations.port import Minute, Operations, Outcome, Stats, Submission, Value, WasCancelled
from perdure.operations.rekey import RekeyProgress, SealedPart
from perdure.operations.schedules import Change, ScheduleInfo

MEDIA_TYPE = "application/msgpack"
PREFIX = "/api/client/"
FRAME_HEADER_BYTES = 4
"""The length of a frame of a stream, in front of it, in network order."""


# --- what msgpack has no form for -------------------------------------------------------------------------------------
class SentSubmission(Struct, frozen=True, array_like=True):
    """A submission, with its delay in seconds or as a time."""

    id: str
    handler: str
    input: bytes
    digest: bytes
    is_chosen: bool
    key: str | None
    delay: float | datetime | None
    timeout: float | None
    tags: Tags
    interface: bytes
    flow: bytes = b""
    when_busy: str = "enqueue"

    @classmethod
    def of(cls, asked: Submission) -> SentSubmission:
        delay = seconds("delay", asked.delay) if isinstance(asked.delay, timedelta) else asked.delay
        first = (asked.id, asked.handler, asked.input, asked.digest, asked.is_chosen, asked.key)
        return cls(*first, delay, asked.timeout, asked.tags, asked.interface, asked.flow, asked.when_busy)

    def restored(self) -> Submission:
        """Return the submission, or raise what a client here raises for one that no store can hold."""
        check_new_id(self.id)
        check_name("a workflow's name", self.handler)
        if self.key is not None:
            check_name("a key", self.key)
        if self.timeout is not None:
            seconds("timeout", self.timeout, positive=True)
        if self.delay is not None:
            checked_delay(self.delay)
        if check_tags(dict(self.tags)) != self.tags:
            raise InvalidOption("tags: they are given twice, or not in order")
        check_when_busy(self.when_busy)
        return Submission(*(getattr(self, name) for name in self.__struct_fields__))


class SentOutcome(Struct, frozen=True, array_like=True):
    """How an invocation ended: one of the two, or cancelled."""

    value: bytes | None = None
    failure: Failure | None = None

    @classmethod
    def of(cls, outcome: Outcome) -> SentOutcome:
        if isinstance(outcome, Value):
            return cls(value=outcome.data)
        return cls(failure=outcome) if isinstance(outcome, Failure) else cls()

    def restored(self) -> Outcome:
        if self.value is not None:
            return Value(self.value)
        return WasCancelled() if self.failure is None else self.failure


class SentWrite(Struct, frozen=True, array_like=True):
    """A write of a document."""

    kind: Literal["Put", "Delete", "Check"]
    key: DocumentKey
    value: bytes = b""
    if_revision: int | None = None

    @classmethod
    def of(cls, write: Write) -> SentWrite:
        value = write.value if isinstance(write, Put) else b""
        kind: Any = type(write).__name__
        return cls(kind, write.key, value, write.if_revision)

    def restored(self) -> Write:
        if self.kind == "Put":
            return Put(self.key, self.value, self.if_revision)
        return Delete(self.key, self.if_revision) if self.kind == "Delete" else Check(self.key, self.if_revision or 0)


class SentError(Struct, frozen=True, array_like=True):
    """One of Perdure's exceptions: its class, its text, and its attributes as far as they can be sent."""

    name: str
    text: str
    fields: dict[str, Any]

    @classmethod
    def of(cls, error: PerdureError) -> SentError:
        kind = next(each for each in type(error).__mro__ if getattr(errors, each.__name__, None) is each)
        fields = {name: value for name, value in vars(error).items() if _is_plain(value)}
        return cls(kind.__name__, str(error), fields)

    def restored(self) -> PerdureError:
        kind = getattr(errors, self.name, PerdureError)
        if not (isinstance(kind, type) and issubclass(kind, PerdureError)):
            kind = PerdureError
        error = kind(self.text)
        vars(error).update({name: value for name, value in self.fields.items() if name in vars(error)})
        return error


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


PlainVerb = Literal["pause", "resume", "cancel", "retry", "restart"]
"""A verb of bulk jobs that who operates may use. To purge is another operation, since it takes another role."""


# --- the operations ---------------------------------------------------------------------------------------------------
class Operation(Struct, frozen=True):
    """An operation: who may call it, and how it is carried out. The annotations say what it takes and gives.

    One that `waits` takes as its last argument how long, in seconds. One that `shows_payloads` returns values. One that
    `has_secrets` as arguments shows them to no log. One that needs more than the role *read* and yet changes nothing
    says so.
    """

    role: Role
    call: Callable[..., Awaitable[Any]]
    waits: bool = False
    shows_payloads: bool = False
    has_secrets: bool = False
    changes: bool = True

    @property
    def takes(self) -> Any:
        """The type of its arguments: a tuple."""
        return _types_of(self.call)[0]

    @property
    def gives(self) -> Any:
        """The type of its result."""
        return _types_of(self.call)[1]


@cache  # as many as there are operations
def _types_of(call: Callable[..., Awaitable[Any]]) -> tuple[Any, Any]:
    hints = get_type_hints(call)
    gives = hints.pop("return")
    del hints["operations"]
    return tuple.__class_getitem__(tuple(hints.values())), gives


async def _start(operations: Operations, asked: SentSubmission) -> None:
    await operations.start(asked.restored())


async def _start_all(operations: Operations, asked: list[SentSubmission]) -> None:
    await operations.start_all([each.restored() for each in asked])


async def _restart(
    operations: Operations, id: str, call: SentSubmission | None, new_id: str | None, handlers: list[str]
) -> str:
    restored = None if call is None else call.restored()
    return await operations.restart(id, restored, new_id=new_id, handlers=handlers)


async def _pause(operations: Operations, id: str, timeout: float) -> None:
    await operations.pause(id, timeout=timeout)


async def _resume(operations: Operations, id: str, timeout: float) -> None:
    await operations.resume(id, timeout=timeout)


async def _cancel(operations: Operations, id: str, force: bool, timeout: float) -> None:
    await operations.cancel(id, force=force, timeout=timeout)


async def _retry(operations: Operations, id: str, timeout: float) -> None:
    await operations.retry(id, timeout=timeout)


async def _resolve(operations: Operations, awakeable_id: str, value: bytes, timeout: float) -> None:
    await operations.resolve(awakeable_id, value, timeout=timeout)


async def _reject(operations: Operations, awakeable_id: str, reason: str, timeout: float) -> None:
    await operations.reject(awakeable_id, reason, timeout=timeout)


async def _awakeable(operations: Operations, awakeable_id: str) -> tuple[str, int]:
    return await operations.awakeable(awakeable_id)


async def _make_capability(
    operations: Operations, purpose: Purpose, awakeable_id: str, expires: float | datetime
) -> Capability:
    return await operations.make_capability(purpose, awakeable_id, checked_delay(expires, "expires"))


async def _check_capability(operations: Operations, purpose: Purpose, text: str) -> Capability:
    return await operations.check_capability(purpose, text)


async def _look(operations: Operations, id: str) -> Invocation:
    return await operations.look(id)


async def _describe(operations: Operations, id: str) -> Invocation:
    return await operations.describe(id)


async def _page(operations: Operations, filters: Filters, limit: int, cursor: str | None) -> Page:
    limit = check_limit(limit, PAGE_LIMIT)
    return await operations.page(filters, limit=limit, cursor=cursor, within=QUERY_SECONDS)


async def _awakeables(
    operations: Operations, filters: AwakeableFilters, limit: int, cursor: str | None
) -> AwakeablePage:
    limit = check_limit(limit, PAGE_LIMIT)
    return await operations.awakeables(filters, limit=limit, cursor=cursor, within=QUERY_SECONDS)


async def _stats(operations: Operations) -> Stats:
    return await operations.stats()


async def _minutes(operations: Operations, since: datetime, handler: str | None) -> list[Minute]:
    return await operations.minutes(since=since, handler=handler)


async def _state(operations: Operations, key: str) -> dict[str, bytes]:
    return dict(await operations.state(key))


async def _serves(operations: Operations, handler: str) -> bool | None:
    return await operations.serves(handler)


async def _preview_bulk(operations: Operations, request: BulkRequest) -> BulkPreview:
    return await operations.preview_bulk(restored(request))


async def _begin_bulk(operations: Operations, verb: PlainVerb, token: str) -> BulkProgress:
    return await operations.begin_bulk(verb, token)


async def _begin_bulk_purge(operations: Operations, token: str) -> BulkProgress:
    return await operations.begin_bulk("purge", token)


async def _bulk_job(operations: Operations, id: str) -> BulkProgress:
    return await operations.bulk_job(id)


async def _bulk_jobs(operations: Operations, limit: int, cursor: str | None) -> BulkPage:
    return await operations.bulk_jobs(limit=check_limit(limit, JOBS_PAGE_LIMIT), cursor=cursor)


async def _stop_bulk(operations: Operations, id: str) -> BulkProgress:
    return await operations.stop_bulk(id)


async def _count_sealed(operations: Operations, after: str) -> SealedPart:
    return await operations.count_sealed(after)


async def _begin_rekey(operations: Operations) -> RekeyProgress:
    return await operations.begin_rekey()


async def _rekey(operations: Operations) -> RekeyProgress | None:
    return await operations.rekey()


async def _read_documents(operations: Operations, collection: str, keys: list[DocumentKey]) -> list[Document | None]:
    return await operations.read_documents(collection, keys)


async def _write_documents(
    operations: Operations, collection: str, writes: list[SentWrite], fence: Fence | None
) -> list[int]:
    return await operations.write_documents(collection, [each.restored() for each in writes], fence)


async def _scan_documents(operations: Operations, collection: str, which: Scan) -> list[Document]:
    return await operations.scan_documents(collection, which)


async def _delete_documents(operations: Operations, collection: str, prefix: str) -> int:
    return await operations.delete_documents(collection, prefix)


async def _put_schedule(operations: Operations, name: str, plan: Plan) -> bool:
    return await operations.put_schedule(name, plan)


async def _change_schedule(operations: Operations, name: str, change: Change) -> list[str]:
    return await operations.change_schedule(name, change)


async def _delete_schedule(operations: Operations, name: str) -> bool:
    return await operations.delete_schedule(name)


async def _describe_schedule(operations: Operations, name: str) -> ScheduleInfo:
    return await operations.describe_schedule(name)


async def _schedules(operations: Operations, limit: int, after: str | None) -> list[ScheduleInfo]:
    return await operations.schedules(limit=check_limit(limit, PAGE_LIMIT), after=after)


async def _schedule_times(operations: Operations, name: str, count: int) -> list[float]:
    return await operations.schedule_times(name, count)


async def _export(operations: Operations, id: str, plain: bool) -> bytes:
    return await operations.export(id, plain=plain)


async def _purge(operations: Operations, id: str) -> None:
    await operations.purge(id)


async def _add_token(operations: Operations, access: Access, expires: datetime | None) -> str:
    return await operations.add_token(access, expires=expires)


async def _revoke_token(operations: Operations, id: str) -> None:
    await operations.revoke_token(id)


async def _tokens(operations: Operations) -> list[Token]:
    return await operations.tokens()


async def _audit(operations: Operations, after: int) -> list[Link]:
    return await operations.audit(after)


CALLS: dict[str, Operation] = {
    "start": Operation("operate", _start),
    "start_all": Operation("operate", _start_all),
    "restart": Operation("operate", _restart),
    "pause": Operation("operate", _pause, waits=True),
    "resume": Operation("operate", _resume, waits=True),
    "cancel": Operation("operate", _cancel, waits=True),
    "retry": Operation("operate", _retry, waits=True),
    "resolve": Operation("operate", _resolve, waits=True),
    "reject": Operation("operate", _reject, waits=True),
    "awakeable": Operation("read", _awakeable),
    "make_capability": Operation("operate", _make_capability, shows_payloads=True),
    "check_capability": Operation("operate", _check_capability, has_secrets=True, changes=False),
    "look": Operation("read", _look),
    "describe": Operation("read", _describe),
    "page": Operation("read", _page),
    "awakeables": Operation("read", _awakeables),
    "stats": Operation("read", _stats),
    "state": Operation("read", _state, shows_payloads=True),
    "minutes": Operation("read", _minutes),
    "serves": Operation("read", _serves),
    "preview_bulk": Operation("read", _preview_bulk),
    "begin_bulk": Operation("operate", _begin_bulk, has_secrets=True),
    "begin_bulk_purge": Operation("admin", _begin_bulk_purge, has_secrets=True),
    "bulk_job": Operation("read", _bulk_job),
    "bulk_jobs": Operation("read", _bulk_jobs),
    "stop_bulk": Operation("operate", _stop_bulk),
    "read_documents": Operation("read", _read_documents, shows_payloads=True),
    "write_documents": Operation("operate", _write_documents),
    "scan_documents": Operation("read", _scan_documents, shows_payloads=True),
    "delete_documents": Operation("operate", _delete_documents),
    "put_schedule": Operation("operate", _put_schedule),
    "change_schedule": Operation("operate", _change_schedule),
    "delete_schedule": Operation("operate", _delete_schedule),
    "describe_schedule": Operation("read", _describe_schedule),
    "schedules": Operation("read", _schedules),
    "schedule_times": Operation("read", _schedule_times),
    "count_sealed": Operation("admin", _count_sealed, changes=False),
    "begin_rekey": Operation("admin", _begin_rekey),
    "rekey": Operation("admin", _rekey, changes=False),
    "export": Operation("read", _export, shows_payloads=True),
    "purge": Operation("admin", _purge),
    "add_token": Operation("admin", _add_token),
    "revoke_token": Operation("admin", _revoke_token),
    "tokens": Operation("admin", _tokens, changes=False),
    "audit": Operation("admin", _audit, changes=False),
}
"""All operations that are calls. `result` waits; `watch`, `watch_all` and `stream` are streams: see `clients`."""


def sent_filters(filters: Any) -> dict[str, Any]:
    """Return filters as they are sent."""
    return {name: value for name, value in filters.items() if value is not None or name == "open"}


encode = msgspec.msgpack.encode


def decode(data: bytes, type: Any) -> Any:
    return msgspec.msgpack.decode(data, type=type)
