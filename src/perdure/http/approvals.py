"""Pages on which people answer one awakeable, by a link that was made for it: plain HTML, without script.

`GET` and `HEAD` change nothing, since mail scanners fetch every link: they show what is asked. The form on the page
decides, by `POST`, and once. Anyone who has the link may decide, so nothing else is asked of them; but a page of
another site must not make a browser decide that knows the link.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from msgspec import Struct
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response

from perdure.authoring.workflow import Delay, checked_delay
from perdure.core.json_values import from_json
from perdure.core.lifecycle import MISFIT, SETTLED
from perdure.errors import CapabilityRefused, MessageRefused, UnknownInvocation, ValueRefused
from perdure.http.api import APPLY_SECONDS, is_applied
from perdure.http.exchange import Exchange, json_response
from perdure.http.forms import DECISION, Form, answer_of, form_of, label_of, shown, wrong_controls
from perdure.http.pages import (
    ANSWER,
    APPROVE,
    DECLINE,
    HEADERS,
    REJECT,
    Closed,
    Question,
    closed_page,
    page,
    question_page,
    title_of,
)
from perdure.http.problems import Problem
from perdure.http.routes import HTML, AnyQuery, Body, NoQuery, Route
from perdure.http.views import plain
from perdure.operations.capabilities import LINK_SECONDS, Purpose
from perdure.operations.describe import AwakeableInfo, Invocation, JournalStep
from perdure.operations.port import Operations

FIELDS_LIMIT = 1_000
"""Fields of a form that are read."""
SHOWN_LIMIT = 2_000
"""Characters of an answer, or of a reason, that are shown."""


# --- making links -----------------------------------------------------------------------------------------------------
class LinkBody(Struct, forbid_unknown_fields=True):
    """What the link is for: the page for people, or the callback of another system; and when it expires.

    `expires` is in how many seconds, or a time.
    """

    purpose: Purpose = "approve"
    expires: float | datetime = LINK_SECONDS


class Link(Struct, frozen=True):
    """A link, by which anyone who has it can answer the awakeable. It is absolute if the public URL is known."""

    url: str
    expires_at: datetime


async def make_link(exchange: Exchange, _: NoQuery) -> Response:
    body = exchange.struct(LinkBody)
    expires: Delay = checked_delay(body.expires, "expires")
    made = await exchange.operations.make_capability(body.purpose, exchange.parameters["id"], expires)
    return json_response(Link(exchange.public_root + made.path, datetime.fromtimestamp(made.expires_at, UTC)))


# --- what a link leads to ---------------------------------------------------------------------------------------------
async def _found(operations: Operations, text: str) -> Question | Closed:
    """Return what a link leads to."""
    try:
        capability = await operations.check_capability("approve", text)
    except CapabilityRefused as error:
        if error.expired:
            return Closed(410, "This link has expired", "Ask for a new one.")
        return Closed(404, "This link is not valid", "It was changed or cut short. Copy the whole link, or ask for it.")
    id, number = await operations.awakeable(capability.awakeable_id)
    try:
        described = await operations.describe(id)
    except UnknownInvocation:
        return Closed(410, "This is over", "The workflow that asked has ended, and was removed.")
    asked = next((each for each in described.awakeables if each.id == capability.awakeable_id), None)
    step = next((each for each in described.journal if each.number == number), None)
    if asked is None or step is None:
        return Closed(410, "This is not asked any more", "The workflow that asked was run again, and may ask anew.")
    if (closed := _closed(described, asked, step)) is not None:
        return closed
    link_until = datetime.fromtimestamp(capability.expires_at, UTC)
    return Question(asked, link_until if asked.expires_at is None else min(link_until, asked.expires_at))


def _closed(described: Invocation, asked: AwakeableInfo, step: JournalStep) -> Closed | None:
    """Return why an awakeable takes no answer, and what it was answered with; None if it takes one."""
    number, title = step.number, asked.title
    if step.status == "completed":
        heading, decided = _decided(plain(step.result))
        return Closed(200, heading, title=title, decided=decided, at=step.ended_at)
    if step.status == "failed":
        reason = (step.error or "").partition(": rejected: ")[2]
        return Closed(200, "Rejected", title=title, decided=(("Reason", _cut(reason)),), at=step.ended_at)
    if {f"resolve #{number}", f"reject #{number}"}.intersection(described.mail):
        return Closed(200, "Answered", "The workflow gets the answer as soon as a worker is there.", title)
    if step.status == "cancelled" or described.status in SETTLED:
        return Closed(410, "This is not asked any more", "The workflow that asked goes on without an answer.", title)
    if asked.expires_at is not None and asked.expires_at <= datetime.now(UTC):
        return Closed(410, "It is too late", "Nobody answered in time.", title, at=asked.expires_at)
    return None


def _decided(answer: Any) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Return in one word what was decided, and what else was said."""
    if isinstance(answer, bool):
        return _verdict(answer), ()
    if not isinstance(answer, dict):
        return "Answered", () if answer is None else (("Answer", _cut(shown(answer))),)
    fields: dict[str, Any] = {**answer}
    approved = fields.pop(DECISION, None)
    said = [(label_of(name), _cut(shown(value))) for name, value in fields.items() if value not in ("", None)]
    return _verdict(approved) if isinstance(approved, bool) else "Answered", tuple(said)


def _verdict(approved: bool) -> str:
    return "Approved" if approved else "Declined"


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_LIMIT else f"{text[:SHOWN_LIMIT]}…"


# --- the routes -------------------------------------------------------------------------------------------------------
async def show(exchange: Exchange, _: AnyQuery) -> Response:
    found = await _found(exchange.service.operations, exchange.parameters["capability"])
    if isinstance(found, Closed):
        return page(found.status, found.heading, closed_page(found))
    return page(200, title_of(found.asked), question_page(found, form_of(found.asked.schema), {}, {}))


async def decide(exchange: Exchange, _: AnyQuery) -> Response:
    _check_origin(exchange.request, exchange.service.public_url)
    operations, text = exchange.service.operations, exchange.parameters["capability"]
    found = await _found(operations, text)
    if isinstance(found, Closed):
        return _too_late(found)
    exchange.target = found.asked.id
    given, form = _fields(exchange.body), form_of(found.asked.schema)
    try:
        wrong = await _answer(operations, found.asked.id, form, given)
    except MessageRefused:
        return _too_late(await _found(operations, text))
    if wrong:
        return page(422, title_of(found.asked), question_page(found, form, given, wrong))
    # The page of what was decided. It is relative, since a proxy may have changed the path.
    return Response(b"", 303, {**HEADERS, "Location": text})


async def _answer(operations: Operations, id: str, form: Form, given: dict[str, str]) -> dict[str, str]:
    """Answer an awakeable as a form says. Return what is wrong, by the names of controls; `MessageRefused`."""
    verb = given.get("verb")
    if verb == REJECT:
        if not (reason := given.get("reason", "").strip()):
            return {"reason": "say why"}
        await is_applied(operations.reject(id, reason, timeout=APPLY_SECONDS))
        return {}
    if verb not in ((APPROVE, DECLINE) if form.is_decision else (ANSWER,)):
        return {"": "use one of the buttons"}
    answer, wrong = answer_of(form, given, verb == APPROVE if form.is_decision else None)
    if wrong:
        return wrong
    try:
        value = from_json(form.schema, answer, what="the answer")
        await is_applied(operations.resolve(id, value, timeout=APPLY_SECONDS))
    except ValueRefused as error:
        return wrong_controls(form, error.errors)
    except MessageRefused as error:
        if not error.reason.startswith(MISFIT):
            raise
        return {"": error.reason}
    return {}


def _fields(body: bytes) -> dict[str, str]:
    try:
        return dict(
            parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=FIELDS_LIMIT)
        )
    except ValueError:
        text = f"the body is not a form in UTF-8, percent-encoded, with at most {FIELDS_LIMIT:,} fields"
        raise Problem(400, "bad-body", text) from None


def _check_origin(request: Request, public_url: str) -> None:
    """Raise a `Problem` for a form that a page of another site sends, as far as the browser tells."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        is_ours = site in ("same-origin", "none")
    else:
        # By host alone: a proxy in front of this server may have ended TLS.
        hosts = {request.headers.get("host", "").lower(), urlsplit(public_url).netloc.lower()} - {""}
        is_ours = origin is None or urlsplit(origin.lower()).netloc in hosts
    if not is_ours:
        raise Problem(403, "cross-site", "a page of another site may not decide this: open the link, and decide there")


def _too_late(found: Question | Closed) -> Response:
    """Return the page for an answer that changes nothing."""
    if isinstance(found, Question):  # its code diverges from its journal
        found = Closed(
            409, "Not accepted", "The workflow cannot take an answer now. Try again later.", found.asked.title
        )
    told = replace(found, text=found.text or "It was decided before. Your answer changes nothing.")
    return page(409 if found.status == 200 else found.status, found.heading, closed_page(told))


# --- the table --------------------------------------------------------------------------------------------------------
PAGE = "/approve/{capability}"

ROUTES = (
    Route(
        *("POST", "/api/awakeables/{id}/link", "operate", make_link),
        "Make a link, by which anyone who has it can answer an awakeable.",
        body=LinkBody,
        gives=Link,
        also=(422,),
        shows_payloads=True,
    ),
    Route(
        *("GET", PAGE, "anybody", show),
        "Show what is asked, or what was decided, to a person with a link. Changes nothing.",
        query=AnyQuery,
        media=HTML,
        also=(404, 410),
        is_signed=True,
    ),
    Route(
        *("POST", PAGE, "anybody", decide),
        "Decide, by the form of that page. 303: it is decided.",
        query=AnyQuery,
        body=Body.FORM,
        media=HTML,
        status=303,
        also=(404, 409, 410, 422),
        is_signed=True,
        audited=True,
    ),
)
