"""Bulk jobs: a verb for all invocations that pass filters. What is asked, what is shown of it, and the token between.

A preview counts what matches and gives a token, which says what was previewed and is signed with the store's secret.
Only a token begins a job. So what begins is what somebody has seen, and nothing is kept of previews that lead nowhere.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from datetime import datetime
from typing import Any, Literal, get_args

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from perdure.errors import InvalidOption, PerdureError
from perdure.operations.access import Access, Role
from perdure.operations.listing import Filters, check_filters

BulkVerb = Literal["pause", "resume", "cancel", "retry", "restart", "purge"]
BULK_VERBS: tuple[BulkVerb, ...] = get_args(BulkVerb)

BulkState = Literal["running", "stopping", "stopped", "done"]
"""A job that is `stopping` begins nothing new. One that is `stopped` has left some out, one that is `done` none."""

JOBS_PAGE_LIMIT = 100
"""The most jobs on one page."""
TOKEN_LIMIT = 131_072
"""Characters of a token."""
_MAC_BYTES = 16
_PURPOSE = b"perdure: previews of bulk jobs"
"""Makes the key of tokens from the store's secret, so that no other signature of the store is one of a token."""


class BulkRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A verb for all invocations that pass the filters; `force` is that of a cancellation.

    `filters` are `Filters`. Where a request was read, it is to be `restored`: to leave out a filter that a newer
    release knows would be to ask for more.
    """

    verb: BulkVerb
    filters: dict[str, Any]
    force: bool = False


def role_for(verb: BulkVerb) -> Role:
    """Return the role that a verb needs."""
    return "admin" if verb == "purge" else "operate"


class BulkPreview(Struct, frozen=True):
    """What a bulk job would do: the verb, the filters, and how many invocations match.

    Unless `is_exact`, there may be more than `count`. `token` begins the job until `expires_at`. A preview that has
    begun one has neither.
    """

    verb: BulkVerb
    filters: Filters
    force: bool
    count: int
    is_exact: bool
    expires_at: datetime | None = None
    token: str | None = None


class BulkRefusal(Struct, frozen=True):
    """An invocation to which the verb of a job was not applied, and why."""

    invocation_id: str
    reason: str


class BulkProgress(Struct, frozen=True):
    """A bulk job: what it does, by whom, and how far it is. `expected` is the count of its preview.

    Of the invocations that `matched` so far, the verb was `applied` to some. For others it is `accepted`: durable, and
    applied when a worker gets to it. Others `refused` it, and for some there were `errors`, which the worker's log has.
    `refusals` are the first of these two kinds.
    """

    id: str
    verb: BulkVerb
    filters: Filters
    force: bool
    by: str
    state: BulkState
    expected: int
    is_exact: bool
    created_at: datetime
    ended_at: datetime | None = None
    matched: int = 0
    applied: int = 0
    accepted: int = 0
    refused: int = 0
    errors: int = 0
    refusals: tuple[BulkRefusal, ...] = ()


class BulkPage(Struct, frozen=True):
    """Some bulk jobs, newest first, and the cursor of the page after them: None on the last one."""

    jobs: tuple[BulkProgress, ...]
    next: str | None = None


def bulk_request(verb: BulkVerb, filters: Filters, *, force: bool = False) -> BulkRequest:
    """Return what is asked, or raise `InvalidOption` or `BadId` that says what is wrong with it."""
    if verb not in BULK_VERBS:
        raise InvalidOption(f"bulk({verb!r}): there is no such verb; it is one of {', '.join(BULK_VERBS)}")
    if force and verb != "cancel":
        raise InvalidOption(f"bulk({verb!r}, force=True): only a cancellation can be forced")
    check_filters(filters)
    given = {name: value for name, value in filters.items() if value is not None and value != {}}
    if not given:
        every = "created_before=datetime.now(UTC) is for all"
        raise InvalidOption(f"bulk({verb!r}): give a filter, such as status or handler; {every}")
    return BulkRequest(verb, given, bool(force))


def restored(request: BulkRequest) -> BulkRequest:
    """Return a request that was read, or raise `InvalidOption` or `BadId` that says what is wrong with it."""
    for name in request.filters:
        if name not in Filters.__annotations__:
            raise InvalidOption(f"bulk({request.verb!r}): this release knows no filter {name!r}")
    try:
        filters = msgspec.convert(request.filters, Filters)
    except msgspec.ValidationError as error:
        raise InvalidOption(f"bulk({request.verb!r}): a filter has a wrong value: {error}") from error
    return bulk_request(request.verb, filters, force=request.force)


# --- tokens -----------------------------------------------------------------------------------------------------------
class Ticket(Struct, frozen=True, forbid_unknown_fields=True):
    """What a token says: the job that it begins, for whom, and what its preview counted, at a time.

    `by` is None for whoever has the store. `watermark` is a time. What was created later does not belong to the job,
    whenever that begins.
    """

    id: str
    request: BulkRequest
    by: Access | None
    at: float
    watermark: float
    count: int
    is_exact: bool

    def reaches(self, handler: str, key: str | None) -> bool:
        """Report whether it is for somebody who may see invocations of this workflow and key."""
        return self.by is None or self.by.reaches(handler, key)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Ticket).decode


def token_of(ticket: Ticket, secret: bytes) -> str:
    """Return the token of a ticket. Nobody without the store's secret can make one."""
    data = _encode(ticket)
    return base64.urlsafe_b64encode(_mac(data, secret) + data).rstrip(b"=").decode()


def ticket_of(token: str, secret: bytes) -> Ticket:
    """Return what a token says, or raise `InvalidOption` if this store has not made it."""
    if isinstance(token, str) and len(token) <= TOKEN_LIMIT and token.isascii():  # pyright: ignore[reportUnnecessaryIsInstance]
        try:
            signed = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        except (ValueError, binascii.Error):
            signed = b""
        mac, data = signed[:_MAC_BYTES], signed[_MAC_BYTES:]
        if hmac.compare_digest(mac, _mac(data, secret)):
            try:
                ticket = _decode(data)
                return replace(ticket, request=restored(ticket.request))
            except (msgspec.MsgspecError, PerdureError):  # of another release
                pass
    raise InvalidOption("token: this store has given no such preview: pass the `token` of one, unchanged")


def _mac(data: bytes, secret: bytes) -> bytes:
    return hmac.digest(hmac.digest(secret, _PURPOSE, "sha256"), data, "sha256")[:_MAC_BYTES]
