"""Errors as problem documents (RFC 9457): what happened, to what, and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus

import msgspec
from msgspec import Struct
from starlette.responses import Response

from perdure import errors

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:perdure:problem:"
"""Problem types are names, and stay the same; there is nothing to fetch under them."""


class Wrong(Struct, frozen=True):
    """One thing that is wrong with an input, and where: a JSON pointer (RFC 6901), or the name of a parameter."""

    pointer: str
    detail: str


class ProblemDocument(Struct, frozen=True, omit_defaults=True):
    """A problem. Programs may rely on `type` and `status`; `detail` is for people."""

    type: str
    title: str
    status: int
    detail: str
    errors: tuple[Wrong, ...] = ()


class Problem(Exception):
    """An error with its HTTP status, raised to answer a request with it."""

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        wrong: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.wrong = tuple(Wrong(*each) for each in wrong)
        self.headers = dict(headers or {})

    @property
    def document(self) -> ProblemDocument:
        return ProblemDocument(
            f"{TYPE_PREFIX}{self.kind}", HTTPStatus(self.status).phrase, self.status, self.detail, self.wrong
        )


BY_ERROR: tuple[tuple[type[errors.PerdureError], int, str], ...] = (
    (errors.UnknownInvocation, 404, "unknown-invocation"),
    (errors.UnknownSchedule, 404, "unknown-schedule"),
    (errors.ScheduleBusy, 409, "schedule-busy"),
    (errors.UnknownJob, 404, "unknown-job"),
    (errors.IdConflict, 409, "id-conflict"),
    (errors.IllegalTransition, 409, "wrong-status"),
    (errors.MessageRefused, 409, "refused"),
    (errors.CapabilityRefused, 404, "bad-link"),
    (errors.RevisionConflict, 409, "revision-conflict"),
    (errors.Fenced, 409, "fenced"),
    (errors.KeyDeadlock, 409, "key-deadlock"),
    (errors.KeyBusy, 409, "key-busy"),
    (errors.AccessDenied, 403, "not-permitted"),
    (errors.ValueRefused, 422, "value-refused"),
    (errors.PayloadTooLarge, 413, "too-large"),
    (errors.LimitExceeded, 429, "limit-exceeded"),
    (errors.BadId, 400, "bad-id"),
    (errors.InvalidOption, 400, "bad-option"),
    (errors.InputRefused, 422, "value-refused"),
    (errors.StoreReadOnly, 403, "read-only"),
    (errors.Unopened, 503, "sealed"),
    (errors.NewerJournal, 503, "newer-release"),
    (errors.QueryTooSlow, 503, "query-too-slow"),
    (errors.StoreError, 503, "store-unavailable"),
)
"""The statuses and types of Perdure's errors, the first that fits."""

RETRY_SECONDS = 1
"""What `Retry-After` says where nothing better is known."""


def problem_of(error: Exception) -> Problem | None:
    """Return the problem of an error that a request may meet; None for one that nobody foresaw."""
    if isinstance(error, Problem):
        return error
    for kind, status, name in BY_ERROR:
        if isinstance(error, kind):
            wrong = error.errors if isinstance(error, errors.ValueRefused) else ()
            retry = {"Retry-After": str(RETRY_SECONDS)} if status in (429, 503) else None
            return Problem(status, name, str(error), wrong=wrong, headers=retry)
    return None


def unexpected() -> Problem:
    """Return the problem of an error that nobody foresaw. What it was is in the log only."""
    return Problem(500, "unexpected", "an unexpected error: it is in the server's log, with its traceback")


def answer(problem: Problem) -> Response:
    """Return the response that tells a problem."""
    content = msgspec.json.encode(problem.document)
    return Response(content, problem.status, {"Cache-Control": "no-store", **problem.headers}, MEDIA_TYPE)
