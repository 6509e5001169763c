"""The HTML of the pages on which people answer an awakeable. It does no I/O.

A page loads nothing. Its style is part of it, and allowed by its digest, so that its link is in no further request.
"""

from __future__ import annotations

import base64
import hashlib
import html
from datetime import UTC, datetime
from typing import LiteralString

from msgspec import Struct
from starlette.responses import Response

from perdure.http.forms import Control, Form
from perdure.http.routes import HTML
from perdure.operations.describe import AwakeableInfo

REJECT, APPROVE, DECLINE, ANSWER = "reject", "approve", "decline", "answer"
"""What the buttons say, as the field `verb` of the form."""


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


def page(status: int, title: str, content: Markup) -> Response:
    """Return a page."""
    text = markup(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="robots" content="noindex, nofollow">\n<title>{title}</title>\n<style>{style}</style>\n</head>\n'
        "<body>\n<main>\n{content}</main>\n</body>\n</html>\n",
        title=title,
        style=Markup(STYLE),
        content=content,
    )
    return Response(text.encode(errors="replace"), status, HEADERS, HTML)


def title_of(asked: AwakeableInfo) -> str:
    """Return what is asked, in short."""
    return asked.title or "Your answer is needed"


def closed_page(closed: Closed) -> Markup:
    """Return the content of a page that decides nothing."""
    facts = [(label, markup("{text}", text=text)) for label, text in closed.decided]
    if closed.at is not None:
        facts.append(("When", _time(closed.at)))
    title = markup('<p class="who" dir="auto">{title}</p>\n', title=closed.title) if closed.title else Markup()
    text = markup("<p>{text}</p>\n", text=closed.text) if closed.text else Markup()
    return _joined([title, markup("<h1>{heading}</h1>\n", heading=closed.heading), text, _facts(facts)])


def question_page(question: Question, form: Form, given: dict[str, str], wrong: dict[str, str]) -> Markup:
    """Return the content of a page with a form. `given` was filled in before, `wrong` says what is wrong."""
    asked = question.asked
    facts = [("Asked by", markup("{handler}, {id}", handler=asked.handler, id=asked.invocation_id))]
    if asked.assignees:
        facts.append(("For", markup("{names}", names=", ".join(asked.assignees))))
    facts += [("Since", _time(asked.created_at)), ("Until", _time(question.until))]
    about = (
        markup('<p class="about" dir="auto">{text}</p>\n', text=asked.description) if asked.description else Markup()
    )
    return markup(
        '<h1 dir="auto">{title}</h1>\n{about}{facts}<form method="post">\n{wrong}'
        # The first button is what Enter would press. This one cannot be, so nothing is decided by a slip of a finger.
        '<button type="submit" disabled hidden></button>\n{controls}{buttons}</form>\n',
        title=title_of(asked),
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
        wrong=Markup(' aria-invalid="true" autofocus' if wrong is not None else ""),
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
