"""Pages on which people answer one awakeable, by a link that was made for it: plain HTML, without script.

`GET` and `HEAD` change nothing, since mail scanners fetch every link: they show what is asked. The form on the page
decides, by `POST`, and once. Who has the link may decide, so nothing else is asked of them; but a page of another site
must not make a browser decide that knows the link.

The page loads nothing. Its style is part of it, and allowed by its digest, so that the link is in no further request.
"""

from __future__ import annotations

import base64
import hashlib
import html
from datetime import UTC, datetime
from typing import Any, LiteralString
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
from perdure.http.forms import DECISION, Control, Form, answer_of, form_of, label_of, shown, wrong_controls
from perdure.http.problems import Problem
from perdure.http.routes import AnyQuery, Body, NoQuery, Route
from perdure.http.views import plain
from perdure.operations.capabilities import LINK_SECONDS, Purpose
from perdure.operations.describe import AwakeableInfo, Invocation, JournalStep
from perdure.operations.port import Operations

FIELDS_LIMIT = 1_000
"""Fields of a form that are read."""
SHOWN_LIMIT = 2_000
"""Characters of an answer, or of a reason, that are shown."""

REJECT, APPROVE, DECLINE, ANSWER = "reject", "approve", "decline", "answer"
"""What the buttons of a page say."""

MEDIA_TYPE = "text/html"


# --- making links -----------------------------------------------------------------------------------------------------
class LinkBody(Struct, forbid_unknown_fields=True):
    """What the link is for: the page for people, or the callback of another system; and when it expires.

    `expires` is in how many seconds, or a time.
    """

    purpose: Purpose = "approve"
    expires: float | datetime = LINK_SECONDS


class Link(Struct, frozen=True):
    """A link, by which whoever has it can answer the awakeable. It is absolute if the public URL is known."""

    url: str
    expires_at: datetime


async def make_link(exchange: Exchange, _: NoQuery) -> Response:
    body = exchange.struct(LinkBody)
    expires: Delay = checked_delay(body.expires, "expires")
    made = await exchange.service.operations.make_capability(body.purpose, exchange.parameters["id"], expires)
    return json_response(Link(exchange.public_root + made.path, datetime.fromtimestamp(made.expires_at, UTC)))


# --- what a link leads to ---------------------------------------------------------------------------------------------
class Question(Struct, frozen=True):
    """An awakeable that takes an answer, and until when this link is good for it."""

    asked: AwakeableInfo
    until: datetime


class Closed(Struct, frozen=True):
    """A link that decides nothing any more: the page's status and heading, a sentence, and what was decided."""

    status: int
    heading: str
    text: str = ""
    title: str | None = None
    decided: tuple[tuple[str, str], ...] = ()
    at: datetime | None = None


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
    expires_at = _expires_at(described, asked, step)
    return Question(asked, link_until if expires_at is None else min(link_until, expires_at))


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
    expires_at = _expires_at(described, asked, step)
    if expires_at is not None and expires_at <= datetime.now(UTC):
        return Closed(410, "It is too late", "Nobody answered in time.", title, at=expires_at)
    return None


def _expires_at(described: Invocation, asked: AwakeableInfo, step: JournalStep) -> datetime | None:
    """Return when an awakeable expires: as its timer says, which follows it, and which a retry sets anew."""
    if asked.expires_at is None:
        return None
    timer = next((each for each in described.journal if each.number == step.number + 1), None)
    return asked.expires_at if timer is None or timer.due is None else timer.due


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
        return _page(found.status, found.heading, _closed_page(found))
    return _page(200, _title_of(found.asked), _question_page(found, form_of(found.asked.schema), {}, {}))


async def decide(exchange: Exchange, _: AnyQuery) -> Response:
    _check_origin(exchange.request, exchange.service.public_url)
    operations, text = exchange.service.operations, exchange.parameters["capability"]
    found = await _found(operations, text)
    if isinstance(found, Closed):
        return _too_late(found)
    given, form = _fields(exchange.body), form_of(found.asked.schema)
    try:
        wrong = await _answer(operations, found.asked.id, form, given)
    except MessageRefused:
        return _too_late(await _found(operations, text))
    if wrong:
        return _page(422, _title_of(found.asked), _question_page(found, form, given, wrong))
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
    if isinstance(found, Question):
        return _page(409, "Not accepted", markup("<h1>Not accepted</h1><p>Open the link again.</p>"))
    page = replace(found, text=found.text or "It was decided before. Your answer changes nothing.")
    return _page(409 if found.status == 200 else found.status, found.heading, _closed_page(page))


# --- HTML -------------------------------------------------------------------------------------------------------------
class Markup(str):
    """Text that is HTML already."""


def markup(template: LiteralString, **values: object) -> Markup:
    """Fill in a template. Each value is escaped, unless it is HTML already."""
    return Markup(template.format_map({name: _escaped(value) for name, value in values.items()}))


def _escaped(value: object) -> str:
    return value if isinstance(value, Markup) else html.escape(str(value))


def _joined(parts: list[Markup]) -> Markup:
    return Markup("".join(parts))


STYLE = """
:root { color-scheme: light dark; --ground: #f5f6f6; --surface: #fff; --line: #cfd5d7; --edge: #7d878d; --text: #14191c;
  --text-2: #475157; --bad: #b01f2a; }
@media (prefers-color-scheme: dark) { :root { --ground: #0c0f11; --surface: #12161a; --line: #313a41; --edge: #6c7880;
  --text: #e6eaec; --text-2: #adb7bd; --bad: #ff9c9a; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 6vh 16px 48px; background: var(--ground); color: var(--text); overflow-wrap: anywhere;
  font: 400 1rem/1.5 ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 34rem; margin: 0 auto; padding: 28px; background: var(--surface); border: 1px solid var(--line);
  border-radius: 10px; }
h1 { margin: 0 0 12px; font-size: 1.5rem; line-height: 1.25; font-weight: 600; letter-spacing: -.014em; }
p { margin: 0 0 12px; }
.who, dl, .hint, summary, footer { color: var(--text-2); font-size: .875rem; }
.who { margin: 0 0 4px; }
.about { white-space: pre-line; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 16px; margin: 20px 0 0; }
dt, dd { margin: 0; }
dd { color: var(--text); white-space: pre-line; }
form { margin: 24px 0 0; padding: 24px 0 0; border-top: 1px solid var(--line); }
label { display: block; margin: 0 0 4px; font-weight: 600; }
.part { margin: 0 0 18px; }
.hint, .wrong { margin: 4px 0 0; }
.wrong { color: var(--bad); font-weight: 600; }
.wrong[role] { margin: 0 0 18px; }
input, select, textarea { width: 100%; min-height: 44px; padding: 8px 12px; font: inherit; color: inherit;
  background: var(--surface); border: 1px solid var(--edge); border-radius: 6px; }
[aria-invalid] { border-color: var(--bad); border-width: 2px; }
textarea { min-height: 88px; resize: vertical; }
.code { font-family: ui-monospace, "SF Mono", "Cascadia Mono", "DejaVu Sans Mono", monospace; }
.buttons { display: flex; flex-wrap: wrap; gap: 12px; }
button { flex: 1 1 9rem; min-height: 48px; padding: 8px 20px; font: inherit; font-weight: 600; color: var(--text);
  background: var(--surface); border: 1px solid var(--edge); border-radius: 6px; cursor: pointer; }
button.main { color: var(--surface); background: var(--text); border-color: var(--text); }
button:hover { box-shadow: inset 0 0 0 2px var(--edge); }
:focus-visible { outline: 2px solid var(--text); outline-offset: 2px; }
[hidden] { display: none; }
details { margin: 20px 0 0; }
summary { padding: 8px 0; cursor: pointer; }
details button { width: 100%; }
"""
POLICY = (
    f"default-src 'none'; style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    # Not `no-referrer`, with which browsers send `Origin: null` along with the form. Other sites get neither.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex, nofollow, noarchive",
}
"""The headers of every page."""


def _page(status: int, title: str, content: Markup) -> Response:
    page = markup(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="robots" content="noindex, nofollow">\n<title>{title}</title>\n<style>{style}</style>\n</head>\n'
        "<body>\n<main>\n{content}</main>\n</body>\n</html>\n",
        title=title,
        style=Markup(STYLE),
        content=content,
    )
    return Response(page.encode(errors="replace"), status, HEADERS, MEDIA_TYPE)


def _title_of(asked: AwakeableInfo) -> str:
    return asked.title or "Your answer is needed"


def _closed_page(closed: Closed) -> Markup:
    facts = [(label, Markup(html.escape(text))) for label, text in closed.decided]
    if closed.at is not None:
        facts.append(("When", _time(closed.at)))
    title = markup('<p class="who" dir="auto">{title}</p>\n', title=closed.title) if closed.title else Markup()
    text = markup("<p>{text}</p>\n", text=closed.text) if closed.text else Markup()
    return _joined([title, markup("<h1>{heading}</h1>\n", heading=closed.heading), text, _facts(facts)])


def _question_page(question: Question, form: Form, given: dict[str, str], wrong: dict[str, str]) -> Markup:
    asked = question.asked
    facts = [("Asked by", markup("{handler}, {id}", handler=asked.handler, id=asked.invocation_id))]
    if asked.assignees:
        facts.append(("For", Markup(html.escape(", ".join(asked.assignees)))))
    facts += [("Since", _time(asked.created_at)), ("Until", _time(question.until))]
    about = (
        markup('<p class="about" dir="auto">{text}</p>\n', text=asked.description) if asked.description else Markup()
    )
    return markup(
        '<h1 dir="auto">{title}</h1>\n{about}{facts}<form method="post">\n{wrong}'
        # The first button is what Enter would press. This one cannot be, so nothing is decided by a slip of a finger.
        '<button type="submit" disabled hidden></button>\n{controls}{buttons}</form>\n',
        title=_title_of(asked),
        about=about,
        facts=_facts(facts),
        wrong=_wrong_at_all(wrong),
        controls=_joined([_control(each, given.get(each.name, ""), wrong.get(each.name)) for each in form.controls]),
        buttons=_buttons(form, given, wrong),
    )


def _facts(facts: list[tuple[str, Markup]]) -> Markup:
    rows = [markup("<dt>{label}</dt><dd>{text}</dd>\n", label=label, text=text) for label, text in facts if text]
    return markup("<dl>\n{rows}</dl>\n", rows=_joined(rows)) if rows else Markup()


def _time(at: datetime) -> Markup:
    at = at.astimezone(UTC)
    shown_at = f"{at.day} {at:%B %Y, %H:%M} UTC"
    return markup('<time datetime="{at}">{shown}</time>', at=at.isoformat(timespec="seconds"), shown=shown_at)


def _wrong_at_all(wrong: dict[str, str]) -> Markup:
    if not wrong:
        return Markup()
    text = f"Nothing was sent: {wrong['']}" if "" in wrong else "Nothing was sent. See what is wrong below."
    return markup('<p class="wrong" role="alert">{text}</p>\n', text=text)


def _control(control: Control, text: str, wrong: str | None, *, marks_optional: bool = True) -> Markup:
    """Return the label of a control, what takes its value, and what people are told of it."""
    notes: list[Markup] = []
    if control.hint:
        notes.append(markup('<p class="hint" id="{name}-hint">{text}</p>', name=control.name, text=control.hint))
    if wrong is not None:
        notes.append(markup('<p class="wrong" id="{name}-wrong">{text}</p>', name=control.name, text=wrong))
    told = [f"{control.name}-hint"] * bool(control.hint) + [f"{control.name}-wrong"] * (wrong is not None)
    must_be_given = control.required and not control.is_nullable
    attributes = markup(
        'id="{name}" name="{name}" autocomplete="off"{required}{told}{wrong}',
        name=control.name,
        required=Markup(" required" if must_be_given else ""),
        told=markup(' aria-describedby="{told}"', told=" ".join(told)) if told else Markup(),
        wrong=Markup(' aria-invalid="true"' if wrong is not None else ""),
    )
    optional = Markup(' <span class="hint">(optional)</span>' if marks_optional and not must_be_given else "")
    return markup(
        '<div class="part">\n<label for="{name}">{label}{optional}</label>\n{input}\n{notes}</div>\n',
        name=control.name,
        label=control.label,
        optional=optional,
        input=_input(control, attributes, text),
        notes=_joined(notes),
    )


def _input(control: Control, attributes: Markup, text: str) -> Markup:
    match control.kind:
        case "choice":
            options = [markup('<option value="">…</option>')]
            for number, each in enumerate(control.choices):
                selected = Markup(" selected" if text == str(number) else "")
                options.append(
                    markup(
                        '<option value="{number}"{selected}>{text}</option>',
                        number=number,
                        selected=selected,
                        text=each,
                    )
                )
            return markup("<select {attributes}>{options}</select>", attributes=attributes, options=_joined(options))
        case "lines":
            return markup('<textarea dir="auto" {attributes}>\n{text}</textarea>', attributes=attributes, text=text)
        case "json":
            template = '<textarea class="code" spellcheck="false" {attributes}>\n{text}</textarea>'
            return markup(template, attributes=attributes, text=text)
        case "number":
            return markup('<input inputmode="decimal" {attributes} value="{text}">', attributes=attributes, text=text)
        case "date":
            return markup('<input type="date" {attributes} value="{text}">', attributes=attributes, text=text)
        case "line":
            return markup('<input dir="auto" {attributes} value="{text}">', attributes=attributes, text=text)


def _buttons(form: Form, given: dict[str, str], wrong: dict[str, str]) -> Markup:
    if form.is_decision:
        return markup(
            '<div class="buttons">\n<button class="main" name="verb" value="{approve}">Approve</button>\n'
            '<button name="verb" value="{decline}">Decline</button>\n</div>\n',
            approve=APPROVE,
            decline=DECLINE,
        )
    reason = Control("reason", "reason", "lines", "str", required=False, is_nullable=False)
    return markup(
        '<div class="buttons">\n<button class="main" name="verb" value="{answer}">{send}</button>\n</div>\n'
        "<details{open}>\n<summary>Reject instead</summary>\n{reason}"
        '<button name="verb" value="{reject}" formnovalidate>Reject</button>\n</details>\n',
        answer=ANSWER,
        send="Send" if form.controls else "Confirm",
        open=Markup(" open" if given.get("verb") == REJECT else ""),
        reason=_control(reason, given.get("reason", ""), wrong.get("reason"), marks_optional=False),
        reject=REJECT,
    )


# --- the table --------------------------------------------------------------------------------------------------------
PAGE = "/approve/{capability}"

ROUTES = (
    Route(
        *("POST", "/api/awakeables/{id}/link", "operate", make_link),
        "Make a link, by which whoever has it can answer an awakeable.",
        body=LinkBody,
        gives=Link,
        also=(422,),
    ),
    Route(
        *("GET", PAGE, "anybody", show),
        "Show what is asked, or what was decided, to a person with a link. Changes nothing.",
        query=AnyQuery,
        media=MEDIA_TYPE,
        also=(404, 410),
        is_signed=True,
    ),
    Route(
        *("POST", PAGE, "anybody", decide),
        "Decide, by the form of that page. 303: it is decided.",
        query=AnyQuery,
        body=Body.FORM,
        media=MEDIA_TYPE,
        status=303,
        also=(404, 409, 410, 422),
        is_signed=True,
    ),
)
