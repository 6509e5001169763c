"""Links by which people and systems answer one awakeable: what they may do, once, and what attackers may not."""

from __future__ import annotations

import asyncio
import base64
import enum
import hashlib
import importlib
import importlib.util
import json
import re
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pydantic
import pytest

from perdure import Context, Retry, Webhook, connect, http, step, workflow
from perdure.errors import BadId, CapabilityRefused, InvalidOption, IoInWorkflow, MessageRefused
from perdure.operations.capabilities import KEYS, Capabilities, Purpose
from tests.http.conftest import Site, site_on
from tests.http.pages import Page
from tests.http.test_routes import problem

INJECTED = """<script>alert(1)</script>"'><img src=x onerror=alert(1)>{title}&lt;b&gt;"""


@dataclass
class Approval:
    approved: bool
    comments: str = ""


class Size(enum.Enum):
    SMALL = "s"
    LARGE = "l"


@dataclass
class Order:
    name: str
    count: int
    size: Size
    at: datetime
    on: date
    price: Decimal = Decimal("1.50")
    gift: bool = False
    comment: str | None = None
    lines: list[str] = field(default_factory=list[str])


class Even(pydantic.BaseModel):
    number: int

    @pydantic.field_validator("number")
    @classmethod
    def check(cls, number: int) -> int:
        if number % 2:
            raise ValueError("odd numbers are not taken")
        return number


@workflow
async def expense(ctx: Context, title: str = "120 EUR for Ada?") -> Any:
    return await ctx.awakeable(Approval, title=title, description=f"About\n{title}", assignees=["finance", title])


@workflow
async def yes_or_no(ctx: Context) -> bool:
    return await ctx.awakeable(bool)


@workflow
async def order(ctx: Context) -> Any:
    return await ctx.awakeable(Order, title="What shall we order?")


@workflow
async def anything(ctx: Context) -> Any:
    return await ctx.awakeable(Any)


@workflow
async def number(ctx: Context) -> int:
    return await ctx.awakeable(int)


@workflow
async def even(ctx: Context) -> int:
    return (await ctx.awakeable(Even)).number


@workflow
async def nothing(ctx: Context) -> None:
    await ctx.awakeable(None)


@workflow
async def note(ctx: Context) -> str:
    return await ctx.awakeable(str)


@workflow
async def maybe(ctx: Context) -> int | None:
    return await ctx.awakeable(int | None)


@workflow
async def perhaps(ctx: Context) -> Any:
    return await ctx.awakeable(Approval | None)


@workflow
async def short(ctx: Context) -> bool:
    return await ctx.awakeable(bool, expires=0.05)


@workflow
async def impatient(ctx: Context) -> str:
    asked = ctx.awakeable(bool)
    try:
        async with asyncio.timeout(0.01):
            await asked
    except TimeoutError:
        return "went on"
    return "answered"


fails: list[bool] = []


@step(retry=Retry(max_attempts=1))
async def fail_perhaps() -> None:
    if fails:
        raise ValueError("no luck")


@workflow
async def asks_and_fails(ctx: Context) -> bool:
    asked = ctx.awakeable(bool)
    await fail_perhaps()
    return await asked


WORKFLOWS = (
    note,
    maybe,
    perhaps,
    asks_and_fails,
    expense,
    yes_or_no,
    order,
    anything,
    number,
    even,
    nothing,
    short,
    impatient,
)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with AsyncExitStack() as parts:
        yield await site_on(parts, "memory:", *WORKFLOWS)


async def asked(site: Site, handler: str, input: Any = None) -> tuple[str, str]:
    """Start a workflow that waits, and return the ids of the invocation and of its awakeable."""
    path = f"/api/workflows/{handler}/invoke"
    response = await site.send(path, "" if input is None else json.dumps(input))
    id = response.json()["invocation_id"]
    await site.until(id, "suspended")
    (awakeable,) = (await site.get(f"/api/workflows/{id}")).json()["awakeables"]
    return id, awakeable


async def link(site: Site, awakeable: str, **body: Any) -> str:
    response = await site.post(f"/api/awakeables/{awakeable}/link", body)
    assert response.status_code == 200, response.text
    return response.json()["url"]


async def page_of(site: Site, url: str, status: int = 200) -> Page:
    return checked(await site.get(url), status)


def checked(response: httpx.Response, status: int = 200) -> Page:
    """Return a page, after checks that hold for each of them."""
    assert response.status_code == status, response.text
    headers, page = response.headers, Page(response.text)
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["x-content-type-options"] == "nosniff"
    assert "noindex" in headers["x-robots-tag"]
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert headers["content-security-policy"] == (
        f"default-src 'none'; style-src 'sha256-{digest}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    assert not {"script", "img", "link", "iframe", "a"} & {*page.tags}
    assert "style=" not in page.source
    assert page.heading
    assert page.source.startswith('<!doctype html>\n<html lang="en">')
    assert all(each["label"] for each in page.fields.values())
    return page


async def decide(site: Site, url: str, verb: str, **fields: str) -> httpx.Response:
    return await site.http.post(url, data={"verb": verb, **fields})


async def result(site: Site, id: str) -> Any:
    return (await site.get(f"/api/workflows/{id}/result?wait=30")).json()["result"]


# --- deciding ---------------------------------------------------------------------------------------------------------
async def test_page_shows_what_is_asked_and_the_form_decides_once(site: Site) -> None:
    id, awakeable = await asked(site, "expense")
    url = await link(site, awakeable)
    page = await page_of(site, url)
    assert page.title == page.heading == "120 EUR for Ada?"
    assert page.buttons == {"Approve": "approve", "Decline": "decline"}
    assert [each["label"] for each in page.fields.values()] == ["Comments"]
    for text in (f"expense, {id}", "finance, 120 EUR for Ada?", "About\n120 EUR for Ada?"):
        assert text in page.text
    assert len(re.findall(r"\d{4}, \d\d:\d\d UTC", page.text)) == 2  # since when, and until when
    taken = await decide(site, url, "approve", f0="Fine!\r\nReally.")
    assert (taken.status_code, taken.headers["location"]) == (303, url.rpartition("/")[2])
    assert await result(site, id) == {"approved": True, "comments": "Fine!\nReally."}
    for response in (await site.get(url), await site.get(url)):
        later = checked(response)
        assert later.heading == "Approved"
        assert "Fine!\nReally." in later.text
        assert re.search(r"\d{4}, \d\d:\d\d UTC", later.text)
        assert not later.buttons
    late = await decide(site, url, "decline")
    assert checked(late, 409).heading == "Approved"
    assert "Your answer changes nothing" in late.text


@pytest.mark.parametrize(("verb", "value", "heading"), [("approve", True, "Approved"), ("decline", False, "Declined")])
async def test_yes_or_no(site: Site, verb: str, value: bool, heading: str) -> None:
    id, awakeable = await asked(site, "yes_or_no")
    url = await link(site, awakeable)
    page = await page_of(site, url)
    assert (page.buttons, page.fields) == ({"Approve": "approve", "Decline": "decline"}, {})
    assert (await decide(site, url, verb)).status_code == 303
    assert await result(site, id) is value
    assert (await page_of(site, url)).heading == heading


async def test_declined_is_told_from_rejected(site: Site) -> None:
    _, awakeable = await asked(site, "expense")
    url = await link(site, awakeable)
    await decide(site, url, "decline")
    assert (await page_of(site, url)).heading == "Declined"
    _, other = await asked(site, "number")
    url = await link(site, other)
    assert (await decide(site, url, "reject", reason="too <much>")).status_code == 303
    page = await page_of(site, url)
    assert page.heading == "Rejected"
    assert "too <much>" in page.text


async def test_two_links_to_one_awakeable_decide_once(site: Site) -> None:
    id, awakeable = await asked(site, "expense")
    first, second = await link(site, awakeable), await link(site, awakeable, expires=3_600)
    assert first != second
    await decide(site, first, "approve", f0="ada")
    assert checked(await decide(site, second, "decline", f0="bo"), 409).heading == "Approved"
    assert (await result(site, id))["comments"] == "ada"


async def test_of_decisions_at_the_same_time_one_counts(site: Site) -> None:
    id, awakeable = await asked(site, "expense")
    url = await link(site, awakeable)
    sent = [decide(site, url, "approve" if n % 2 else "decline", f0=str(n)) for n in range(20)]
    statuses = [each.status_code for each in await asyncio.gather(*sent)]
    assert sorted(statuses) == [303] + [409] * 19
    assert (await result(site, id))["comments"] == str(statuses.index(303))


async def test_answer_waits_for_a_worker_and_is_the_only_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.http.approvals.APPLY_SECONDS", 0.05)
    async with AsyncExitStack() as parts:
        site = await site_on(parts, f"sqlite:{tmp_path / 'store.db'}")
        async with site.client.worker(*WORKFLOWS):
            await asyncio.gather(*(site.client.start(each.using(id=each.name)) for each in (expense,)))
            while not (found := [each async for each in site.client.awakeables()]):
                await asyncio.sleep(0.01)
        url = await link(site, found[0].id)
        assert (await decide(site, url, "approve")).status_code == 303
        page = await page_of(site, url)
        assert page.heading == "Answered"
        assert "as soon as a worker is there" in page.text
        assert checked(await decide(site, url, "decline"), 409).heading == "Answered"
        async with site.client.worker(*WORKFLOWS):
            assert (await site.client.handle("expense", expense).result())["approved"] is True
        assert (await page_of(site, url)).heading == "Approved"


# --- reading changes nothing ------------------------------------------------------------------------------------------
SCANNERS: list[dict[str, str]] = [
    {},
    {"Purpose": "prefetch", "Sec-Purpose": "prefetch;prerender", "X-Moz": "prefetch"},
    {"User-Agent": "Mail scanner", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
    {"Referer": "https://mail.example.com/", "Origin": "https://mail.example.com"},
    {"X-Forwarded-For": "1.2.3.4", "Via": "1.1 scanner", "Host": "perdure.example.com"},
]


async def test_mail_scanner_changes_nothing_however_often_it_comes(site: Site) -> None:
    id, awakeable = await asked(site, "expense")
    url = await link(site, awakeable)
    before = (await site.get(f"/api/workflows/{id}")).json()
    for headers in SCANNERS:
        for end in ("", "?utm_source=mail&verb=approve&f0=x", "?%FF", "?verb=approve"):
            for _ in range(3):
                assert checked(await site.get(url + end, headers=headers)).buttons
                head = await site.http.head(url + end, headers=headers)
                assert (head.status_code, head.content) == (200, b"")
                assert head.headers["referrer-policy"] == "same-origin"
    for method in ("PUT", "PATCH", "DELETE", "OPTIONS"):
        assert problem(await site.http.request(method, url)) == (405, "wrong-method")
    assert (await site.get(f"/api/workflows/{id}")).json() == before
    assert (await decide(site, url, "approve")).status_code == 303


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 303),
        ({"Sec-Fetch-Site": "same-origin"}, 303),
        ({"Sec-Fetch-Site": "none"}, 303),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "null"}, 303),
        ({"Origin": "{base}"}, 303),
        ({"Origin": "https://perdure.example.com"}, 303),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "{base}"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "https://perdure.example.com.evil.example"}, 403),
        ({"Origin": "https://perdure.example.com@evil.example"}, 403),
        ({"Origin": "file://"}, 403),
    ],
)
async def test_page_of_another_site_decides_nothing(headers: dict[str, str], status: int) -> None:
    async with AsyncExitStack() as parts:
        site = await site_on(parts, "memory:", *WORKFLOWS, public_url="https://perdure.example.com/")
        _, awakeable = await asked(site, "expense")
        url = await link(site, awakeable)
        path = url.removeprefix("https://perdure.example.com")
        found = {name: text.format(base=site.server.address) for name, text in headers.items()}
        response = await site.http.post(path, data={"verb": "approve"}, headers=found)
        assert response.status_code == status
        is_open = (await site.get("/api/awakeables?open=true")).json()["awakeables"] != []
        assert is_open is (status == 403)


# --- links that are not, or no longer, valid --------------------------------------------------------------------------
async def test_link_that_was_changed_anywhere_is_not_valid(site: Site) -> None:
    _, awakeable = await asked(site, "expense")
    url = await link(site, awakeable)
    path, _, text = url.rpartition("/")
    for at in range(len(text)):
        other = text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]
        assert checked(await site.get(f"{path}/{other}"), 404).heading == "This link is not valid", at
    wrong = [
        text[:-1],
        text[1:],
        text + "A",
        text + "=",
        "x",
        "A" * 60,
        "é",
        "A" * 3_000,
        f"{text}%0A",
        f"%00{text}",
        awakeable,
    ]
    for each in wrong:
        assert checked(await site.get(f"{path}/{each}"), 404), each
        assert checked(await decide(site, f"{path}/{each}", "approve"), 404), each
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    valid = [each for each in last if (await site.get(f"{path}/{text[:-1]}{each}")).status_code == 200]
    assert valid == [text[-1]]  # also of the bits that base64 leaves out


async def test_link_is_for_one_purpose_one_awakeable_and_one_store(site: Site, tmp_path: Path) -> None:
    _, awakeable = await asked(site, "yes_or_no")
    page, callback = await link(site, awakeable), await link(site, awakeable, purpose="hook")
    assert callback.startswith("/api/awakeable-hooks/")
    text, other = page.rpartition("/")[2], callback.rpartition("/")[2]
    assert problem(await site.post(f"/api/awakeable-hooks/{text}", True)) == (404, "bad-link")
    assert checked(await decide(site, f"/approve/{other}", "approve"), 404)
    async with AsyncExitStack() as parts:
        elsewhere = await site_on(parts, f"sqlite:{tmp_path / 'other.db'}", *WORKFLOWS)
        assert checked(await elsewhere.get(page), 404)
        _, theirs = await asked(elsewhere, "yes_or_no")
        assert checked(await decide(site, await link(elsewhere, theirs), "approve"), 404)
        refused = await site.post(f"/api/awakeables/{theirs}/link")
        assert problem(refused) == (400, "bad-id")
    assert (await page_of(site, page)).buttons


async def made(site: Site, purpose: Purpose, awakeable: str, expires_at: float) -> str:
    return (await Capabilities().make(site.client.operations, purpose, awakeable, expires_at)).path


async def test_link_that_has_expired_decides_nothing(site: Site) -> None:
    _, awakeable = await asked(site, "yes_or_no")
    url = await made(site, "approve", awakeable, time.time() - 1)
    assert checked(await site.get(url), 410).heading == "This link has expired"
    assert checked(await decide(site, url, "approve"), 410)
    callback = await made(site, "hook", awakeable, time.time() - 1)
    assert problem(await site.post(callback, True)) == (410, "bad-link")
    assert (await page_of(site, await link(site, awakeable))).buttons


async def test_what_is_not_asked_any_more_cannot_be_decided(site: Site) -> None:
    id, awakeable = await asked(site, "yes_or_no")
    url = await link(site, awakeable)
    await site.post(f"/api/workflows/{id}/cancel")
    await site.until(id, "cancelled")
    assert checked(await site.get(url), 410).heading == "This is not asked any more"
    assert checked(await decide(site, url, "approve"), 410)
    assert (await site.post(f"/api/workflows/{id}/purge")).status_code == 200
    assert checked(await site.get(url), 410).heading == "This is over"
    assert checked(await decide(site, url, "approve"), 410)


async def test_awakeable_that_expires_or_that_the_workflow_gave_up_is_closed(site: Site) -> None:
    for handler, status, heading in (("short", "failed", None), ("impatient", "completed", None)):
        id = (await site.post(f"/api/workflows/{handler}/invoke")).json()["invocation_id"]
        found = await site.until(id, status)
        url = await link(site, *found["awakeables"])
        page = checked(await site.get(url), 410)
        assert heading is None or page.heading == heading
        assert checked(await decide(site, url, "approve"), 410)


async def test_answer_to_an_awakeable_that_has_expired_is_refused_before_its_timer_fires(tmp_path: Path) -> None:
    async with AsyncExitStack() as parts:
        site = await site_on(parts, f"sqlite:{tmp_path / 'store.db'}")
        async with site.client.worker(*WORKFLOWS):
            handle = await site.client.start(short)
            while not (awakeables := (await handle.describe()).awakeables):
                await asyncio.sleep(0.001)
        url = await link(site, awakeables[0].id)
        while datetime.now(UTC) < (awakeables[0].expires_at or datetime.now(UTC)):
            await asyncio.sleep(0.01)
        assert checked(await site.get(url), 410)
        assert checked(await decide(site, url, "approve"), 410)


async def test_link_works_again_once_a_retry_asks_again(site: Site) -> None:
    fails.append(True)
    id = (await site.send("/api/workflows/asks_and_fails/invoke", "")).json()["invocation_id"]
    found = await site.until(id, "failed")
    url = await link(site, *found["awakeables"])
    assert checked(await site.get(url), 410).heading == "This is not asked any more"
    fails.clear()
    await site.post(f"/api/workflows/{id}/retry")
    await site.until(id, "suspended")
    assert (await page_of(site, url)).buttons
    assert (await decide(site, url, "approve")).status_code == 303
    assert await result(site, id) is True


async def test_workflow_that_cannot_take_an_answer_now_says_so(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    _, awakeable = await asked(site, "yes_or_no")
    url = await link(site, awakeable)

    async def refused(*_: Any, **__: Any) -> None:
        raise MessageRefused("no", reason="its code diverges from its journal: resume it first")

    monkeypatch.setattr(site.client.operations, "resolve", refused)
    page = checked(await decide(site, url, "approve"), 409)
    assert page.heading == "Not accepted"
    assert "Try again later" in page.text


# --- what is shown is escaped -----------------------------------------------------------------------------------------
async def test_markup_in_texts_is_shown_as_text(site: Site) -> None:
    id, awakeable = await asked(site, "expense", INJECTED)
    url = await link(site, awakeable)
    page = await page_of(site, url)
    assert page.title == page.heading == INJECTED
    assert f"About\n{INJECTED}" in page.text
    again = checked(await decide(site, url, "nothing", f0=f"</textarea>{INJECTED}"), 422)
    assert f"</textarea>{INJECTED}" in again.text
    await decide(site, url, "approve", f0=INJECTED)
    later = await page_of(site, url)
    assert later.heading == "Approved"
    assert INJECTED in later.text
    assert (await result(site, id))["comments"] == INJECTED


async def test_lone_surrogates_and_directions_do_not_break_the_page(site: Site) -> None:
    _, awakeable = await asked(site, "expense", "\u202egnihtyna\u2066 \u0000 ok")
    page = await page_of(site, await link(site, awakeable))
    assert '<h1 dir="auto">' in page.source


# --- forms ------------------------------------------------------------------------------------------------------------
async def test_form_of_a_type_gives_an_answer_of_it(site: Site) -> None:
    id, awakeable = await asked(site, "order")
    url = await link(site, awakeable)
    page = await page_of(site, url)
    assert page.buttons == {"Send": "answer", "Reject": "reject"}
    assert [each["tag"] for each in page.fields.values()] == [
        *("input", "input", "select", "input", "input", "input", "select", "textarea", "textarea", "textarea")
    ]
    name = page.name_of
    assert page.options[name("Size")] == ["…", "s", "l"]
    given = {
        name("Name"): "Pens",
        name("Count"): "3",
        name("Size"): "1",
        name("At"): " 2026-11-30T12:00:00Z ",
        name("On"): "2026-12-24",
        name("Price"): "0.10",
        name("Gift"): "0",
        name("Lines"): '["a", "b"]',
    }
    empty = checked(await decide(site, url, "answer"), 422)
    assert empty.text.count("it is missing") == 5
    wrong = {**given, name("Count"): "three", name("At"): "soon", name("Lines"): "[1", name("Size"): "7"}
    again = checked(await decide(site, url, "answer", **wrong), 422)
    for text in ("write a number", "choose one of these", "this is not JSON"):
        assert text in again.text
    assert again.fields[name("Count")]["value"] == "three"
    assert again.fields[name("Count")]["aria-invalid"] == "true"
    assert f'id="{again.fields[name("Count")]["aria-describedby"]}"' in again.source
    late = checked(await decide(site, url, "answer", **{**given, name("At"): "soon", name("Count"): "1.5"}), 422)
    assert "expected a time" in late.text
    assert "expected an integer" in late.text
    assert (await decide(site, url, "answer", **given)).status_code == 303
    assert await result(site, id) == {
        "name": "Pens",
        "count": 3,
        "size": "l",
        "at": {"$perdure": {"datetime": "2026-11-30T12:00:00Z"}},
        "on": "2026-12-24",
        "price": "0.10",
        "gift": True,
        "comment": None,
        "lines": ["a", "b"],
    }
    assert (await page_of(site, url)).heading == "Answered"


@pytest.mark.parametrize(
    ("handler", "text", "value"),
    [
        ("note", "two\nlines", "two\nlines"),
        ("maybe", "", None),
        ("maybe", "3", 3),
        ("number", "12", 12),
        ("anything", '{"a": [1, null]}', {"a": [1, None]}),
        ("anything", '"x"', "x"),
        ("even", "4", 4),
    ],
)
async def test_one_value_is_asked_for_in_one_field(site: Site, handler: str, text: str, value: Any) -> None:
    id, awakeable = await asked(site, handler)
    url = await link(site, awakeable)
    (name,) = (await page_of(site, url)).fields.keys() - {"reason"}
    assert (await decide(site, url, "answer", **{name: text})).status_code == 303
    assert await result(site, id) == value


async def test_decision_that_may_be_none_is_a_decision(site: Site) -> None:
    id, awakeable = await asked(site, "perhaps")
    url = await link(site, awakeable)
    assert (await page_of(site, url)).buttons == {"Approve": "approve", "Decline": "decline"}
    await decide(site, url, "approve", f0="yes")
    assert await result(site, id) == {"approved": True, "comments": "yes"}


async def test_what_the_type_or_its_author_refuses_is_said_at_the_field(site: Site) -> None:
    for handler, text, why in (("number", "1.5", "expected an integer"), ("even", "3", "odd numbers are not taken")):
        _, awakeable = await asked(site, handler)
        url = await link(site, awakeable)
        page = checked(await decide(site, url, "answer", f0=text), 422)
        assert why in page.text
        assert page.fields["f0"]["value"] == text
    for text in ("[" * 9_999, "{", "1" * 5_000, "\ud83d".encode("utf-16", "surrogatepass").decode("utf-16", "replace")):
        _, awakeable = await asked(site, "anything")
        assert checked(await decide(site, await link(site, awakeable), "answer", f0=text), 422)


async def test_awakeable_of_nothing_is_confirmed(site: Site) -> None:
    id, awakeable = await asked(site, "nothing")
    url = await link(site, awakeable)
    assert (await page_of(site, url)).buttons == {"Confirm": "answer", "Reject": "reject"}
    assert (await decide(site, url, "answer")).status_code == 303
    assert await result(site, id) is None


async def test_rejection_has_a_reason(site: Site) -> None:
    id, awakeable = await asked(site, "order")
    url = await link(site, awakeable)
    page = checked(await decide(site, url, "reject", reason=" "), 422)
    assert "say why" in page.text
    assert "<details open>" in page.source
    assert (await decide(site, url, "reject", reason="no budget")).status_code == 303
    assert "no budget" in (await site.get(f"/api/workflows/{id}/result?wait=30")).text


@pytest.mark.parametrize("verb", ["", "answer", "approve ", "reject\0", "APPROVE"])
async def test_form_without_one_of_its_buttons_decides_nothing(site: Site, verb: str) -> None:
    _, awakeable = await asked(site, "yes_or_no")
    url = await link(site, awakeable)
    assert "use one of the buttons" in checked(await decide(site, url, verb), 422).text
    assert (await page_of(site, url)).buttons


async def test_what_is_no_form_is_refused(site: Site) -> None:
    _, awakeable = await asked(site, "yes_or_no")
    url = await link(site, awakeable)
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert problem(await site.post(url, {"verb": "approve"})) == (415, "wrong-content-type")
    assert problem(await site.http.post(url, files={"verb": b"approve"})) == (415, "wrong-content-type")
    assert problem(await site.http.post(url, content=b"verb=%FF", headers=form)) == (400, "bad-body")
    assert problem(await site.http.post(url, content=b"verb=\xff", headers=form)) == (400, "bad-body")
    assert problem(await site.http.post(url, content=b"a=1&" * 1_001, headers=form)) == (400, "bad-body")
    assert (await page_of(site, url)).buttons


# --- callbacks of systems ---------------------------------------------------------------------------------------------
async def test_system_resolves_with_its_body_once(site: Site) -> None:
    id, awakeable = await asked(site, "order")
    url = await link(site, awakeable, purpose="hook")
    refused = await site.http.post(url, json={"name": "Pens", "count": "three"})
    assert problem(refused) == (422, "value-refused")
    assert "/count" in [each["pointer"] for each in refused.json()["errors"]]
    body = {"name": "Pens", "count": 3, "size": "l", "at": "2026-11-30T12:00:00Z", "on": "2026-12-24"}
    for _ in range(2):  # the second is a repetition of the first
        response = await site.http.post(url, json=body, headers={"X-Forwarded-For": "1.2.3.4", "Host": "x.example"})
        assert (response.status_code, response.json()) == (200, {"applied": True})
    assert problem(await site.http.post(url, json={**body, "count": 4})) == (409, "refused")
    assert (await result(site, id))["count"] == 3


@pytest.mark.parametrize("kind", ["text/plain", "application/cloudevents+json", None])
async def test_callback_may_have_any_content_type(site: Site, kind: str | None) -> None:
    id, awakeable = await asked(site, "yes_or_no")
    url = await link(site, awakeable, purpose="hook")
    assert problem(await site.http.post(url, content=b"{")) == (400, "bad-json")
    headers = {} if kind is None else {"content-type": kind}
    assert (await site.http.post(url, content=b"true", headers=headers)).status_code == 200
    assert await result(site, id) is True


async def test_callback_without_a_body_gives_nothing(site: Site) -> None:
    id, awakeable = await asked(site, "nothing")
    assert (await site.http.post(await link(site, awakeable, purpose="hook"))).status_code == 200
    assert await result(site, id) is None


# --- making links -----------------------------------------------------------------------------------------------------
async def test_link_is_a_path_or_begins_with_the_public_url(site: Site) -> None:
    _, awakeable = await asked(site, "yes_or_no")
    made = (await site.post(f"/api/awakeables/{awakeable}/link", {"expires": 60})).json()
    assert re.fullmatch(r"/approve/[A-Za-z0-9_-]{60,140}", made["url"])
    until = datetime.fromisoformat(made["expires_at"]) - datetime.now(UTC)
    assert timedelta(seconds=50) < until <= timedelta(seconds=60)
    assert (await site.client.approval_link(awakeable)).startswith("/approve/")
    absolute = await site.client.callback_link(awakeable, public_url="https://example.com/perdure/")
    assert absolute.startswith("https://example.com/perdure/api/awakeable-hooks/")
    async with connect(str(site.server.address)) as remote:
        url = await remote.approval_link(awakeable, expires=timedelta(hours=1))
        assert (await page_of(site, url)).buttons
        checked = await remote.operations.check_capability("approve", url.rpartition("/")[2])
        assert checked.awakeable_id == awakeable
        with pytest.raises(CapabilityRefused):
            await remote.operations.check_capability("approve", "x")
        with pytest.raises(BadId):
            await remote.approval_link("x")
    async with AsyncExitStack() as parts:
        public = await site_on(parts, "memory:", *WORKFLOWS, public_url="https://example.com/perdure/")
        _, theirs = await asked(public, "yes_or_no")
        assert (await link(public, theirs)).startswith("https://example.com/perdure/approve/")


async def test_wrong_link_is_refused_early(site: Site) -> None:
    _, awakeable = await asked(site, "yes_or_no")
    path = f"/api/awakeables/{awakeable}/link"
    assert problem(await site.post(path, {"purpose": "read"})) == (422, "value-refused")
    for expires in (-1, 0, 1e300, "2020-01-01T00:00:00Z", "2026-12-01T00:00:00"):
        assert problem(await site.post(path, {"expires": expires})) in ((400, "bad-option"), (422, "value-refused"))
    assert problem(await site.post("/api/awakeables/x/link")) == (400, "bad-id")
    for url in (
        "",
        "example.com",
        "ftp://example.com",
        "https://",
        "https://a b",
        "https://a:99999",
        "https://a?b",
        "https://a#b",
    ):
        with pytest.raises(InvalidOption, match="public_url"):
            http.app(site.client, public_url=url)
        with pytest.raises(InvalidOption, match="public_url"):
            await site.client.approval_link(awakeable, public_url=url)


async def test_link_is_made_in_a_step_and_not_in_a_body() -> None:
    sent: list[str] = []

    @step
    async def mail(id: str) -> None:
        sent.append(await client.approval_link(id))

    @workflow
    async def right(ctx: Context) -> bool:
        asked = ctx.awakeable(bool)
        await mail(asked.id)
        return await asked

    @workflow
    async def wrong(ctx: Context) -> str:
        return await client.approval_link(ctx.awakeable(bool).id)

    async with AsyncExitStack() as parts:
        site = await site_on(parts, "memory:", right, wrong)
        client = site.client
        handle = await client.start(right)
        while not sent:
            await asyncio.sleep(0.01)
        assert (await decide(site, sent[0], "approve")).status_code == 303
        assert await handle.result() is True
        with pytest.raises(IoInWorkflow, match="make it in the step that sends it"):
            await client.run(wrong)


async def test_nothing_that_is_read_gives_away_a_link_or_a_key(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    id, awakeable = await asked(site, "yes_or_no")
    url = await link(site, awakeable)
    text = url.rpartition("/")[2]
    await site.get(url)
    await decide(site, url, "approve")
    (document,) = await site.client.operations.read_documents(KEYS, [("capabilities",)])
    assert document is not None
    secret = re.findall(rb'"secret":"([^"]+)"', document.value)[0].decode()
    paths = [f"/api/workflows/{id}{end}" for end in ("", "/journal", "/export", "/events", "/result")]
    for path in (*paths, "/api/workflows", "/api/awakeables", "/api/handlers", "/openapi.json"):
        shown = (await site.get(path)).text
        assert text not in shown
        assert secret not in shown
    assert text not in caplog.text
    assert secret not in caplog.text


async def test_unexpected_error_is_logged_without_the_link(
    site: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, awakeable = await asked(site, "yes_or_no")
    url = await link(site, awakeable)

    async def broken(*_: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(site.client.operations, "describe", broken)
    assert problem(await site.get(url)) == (500, "unexpected")
    assert "GET /approve/{capability}: unexpected exception" in caplog.text
    assert url.rpartition("/")[2] not in caplog.text


async def test_key_is_made_once_by_all_who_need_it_first(site: Site) -> None:
    _, awakeable = await asked(site, "yes_or_no")
    several = [Capabilities() for _ in range(10)]
    at = time.time() + 60
    operations = site.client.operations
    made = await asyncio.gather(*(each.make(operations, "approve", awakeable, at) for each in several))
    assert len({each.text for each in made}) == 1  # the same key signs the same
    assert (await Capabilities().check(operations, "approve", made[0].text, at - 1)).awakeable_id == awakeable


def test_webhook_reads_json() -> None:
    assert Webhook({}, b'{"a": 1}').json() == {"a": 1}
    with pytest.raises(ValueError, match="Expecting value"):
        Webhook({}, b"").json()


# --- in a browser -----------------------------------------------------------------------------------------------------
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.slow
@pytest.mark.skipif(
    BROWSER is None or importlib.util.find_spec("playwright") is None, reason="needs Chromium and playwright"
)
async def test_person_decides_in_a_browser(site: Site) -> None:
    playwright: Any = importlib.import_module("playwright.async_api")  # it may not be there
    id, awakeable = await asked(site, "expense", INJECTED)
    other, second = await asked(site, "order")
    base = str(site.server.address)

    def note(event: Any) -> None:
        said.append(str(event))

    said: list[str] = []
    async with playwright.async_playwright() as play:
        browser: Any = await play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page: Any = await browser.new_page(viewport={"width": 320, "height": 640}, java_script_enabled=False)
        page.on("console", note)
        page.on("dialog", note)
        await page.goto(base + await link(site, awakeable))
        assert await page.inner_text("h1") == INJECTED
        await page.get_by_label("Comments").fill("Fine!")
        await page.get_by_role("button", name="Approve").click()
        assert await page.inner_text("h1") == "Approved"
        assert await result(site, id) == {"approved": True, "comments": "Fine!"}
        await page.reload()
        await page.go_back()
        assert not said

        await page.goto(base + await link(site, second))
        await page.get_by_label("Name").fill("Pens")
        await page.get_by_label("Name").press("Enter")  # decides nothing
        await page.get_by_label("Count").fill("3")
        await page.get_by_label("Size").select_option(label="l")
        await page.get_by_label("At").fill("2026-11-30T12:00:00Z")
        await page.get_by_label("On", exact=True).fill("2026-12-24")
        await page.get_by_role("button", name="Send").click()
        assert await page.inner_text("h1") == "Answered"
        assert (await result(site, other))["name"] == "Pens"
        await browser.close()
