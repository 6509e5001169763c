"""Webhooks: signed requests start a workflow, once for each event; all others change nothing."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from starlette.datastructures import Headers

from perdure import Webhook, connect, http, workflow
from perdure.core.interface import interface_of
from perdure.errors import InvalidOption
from perdure.http import Hmac, StandardWebhooks
from perdure.http.hooks import HOOKS, put_hook, remove_hook
from perdure.http.inbound import takes_webhook
from perdure.http.verifiers import NotVerified
from perdure.operations.documents import Put
from tests.http.conftest import Site, site_on
from tests.http.processes import Process
from tests.http.test_routes import problem

SECRET, OLD_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
BODY = b'{"id": "evt_1", "amount": 12}'


@workflow
async def on_payment(event: Webhook) -> Any:
    return [event.json()["amount"], event.headers.get("x-kind"), len(event.body)]


@workflow
async def on_push(event: Webhook) -> str:
    return event.body.decode()


@workflow
async def keeps(event: Webhook) -> dict[str, str]:
    return event.headers


@workflow
async def takes_text(text: str) -> str:
    return text


WORKFLOWS = (on_payment, on_push, keeps, takes_text)
GITHUB = Hmac("s3cret", header="X-Hub-Signature-256", prefix="sha256=", event_id="X-GitHub-Delivery")
HOOKED: dict[str, Any] = {
    "on_payment": StandardWebhooks([SECRET, OLD_SECRET]),
    "on_push": GITHUB,
    "keeps": StandardWebhooks(SECRET),
    "takes_text": StandardWebhooks(SECRET),
    "nobody": StandardWebhooks(SECRET),
}


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with AsyncExitStack() as parts:
        yield await site_on(parts, "memory:", *WORKFLOWS, hooks=HOOKED)


def standard(body: bytes = BODY, *, id: str = "msg_1", secret: str = SECRET, at: float | None = None) -> dict[str, str]:
    """The headers of a request that is signed by the specification."""
    stamp = str(int(time.time() if at is None else at))
    key = base64.b64decode(secret.removeprefix("whsec_"))
    mac = hmac.digest(key, f"{id}.{stamp}.".encode() + body, "sha256")
    signature = f"v1,{base64.b64encode(mac).decode()}"
    return {"webhook-id": id, "webhook-timestamp": stamp, "webhook-signature": signature}


async def total(site: Site) -> int:
    return (await site.get("/api/workflows/stats")).json()["total"]


async def send(site: Site, handler: str, headers: Any, body: bytes = BODY) -> httpx.Response:
    return await site.http.post(f"/api/hooks/{handler}", content=body, headers=headers)


async def test_signed_request_starts_its_workflow_with_headers_and_body(site: Site) -> None:
    response = await send(site, "on_payment", {**standard(), "X-Kind": "paid"})
    assert response.status_code == 200
    taken = response.json()
    assert taken["repeated"] is False
    ended = (await site.get(f"/api/workflows/{taken['invocation_id']}/result?wait=30")).json()
    assert ended["result"] == [12, "paid", len(BODY)]
    assert response.headers["cache-control"] == "no-store"


async def test_repeated_event_starts_nothing_and_gets_the_same_answer(site: Site) -> None:
    first = (await send(site, "on_payment", standard())).json()
    again = await send(site, "on_payment", {**standard(at=time.time() + 60), "X-Attempt": "2"})
    assert (again.status_code, again.json()) == (200, {**first, "repeated": True})
    other_body = b'{"id": "evt_1", "amount": 13}'
    altered = await send(site, "on_payment", standard(other_body), other_body)
    assert altered.json() == {**first, "repeated": True}
    assert await total(site) == 1
    assert (await send(site, "on_payment", standard(id="msg_2"))).json()["repeated"] is False
    assert (await send(site, "keeps", standard())).json()["repeated"] is False  # the same id, at another handler
    assert await total(site) == 3


async def test_of_equal_requests_at_the_same_time_one_starts(site: Site) -> None:
    headers = standard()
    answers = await asyncio.gather(*(send(site, "on_payment", headers) for _ in range(20)))
    assert {each.status_code for each in answers} == {200}
    assert len({each.json()["invocation_id"] for each in answers}) == 1
    assert await total(site) == 1


@pytest.mark.parametrize("secret", [SECRET, OLD_SECRET])
async def test_secrets_are_valid_beside_each_other_while_one_replaces_the_other(site: Site, secret: str) -> None:
    assert (await send(site, "on_payment", standard(secret=secret))).status_code == 200
    refused = await send(site, "keeps", standard(secret=OLD_SECRET))
    assert problem(refused) == (401, "not-verified")


async def test_one_right_signature_of_several_is_enough(site: Site) -> None:
    headers = standard()
    headers["webhook-signature"] = f"v1a,abc v1,AAAA {headers['webhook-signature']} v2,x"
    assert (await send(site, "on_payment", headers)).status_code == 200


async def test_svix_names_its_headers_otherwise(site: Site) -> None:
    headers = {name.replace("webhook", "svix"): text for name, text in standard().items()}
    assert (await send(site, "on_payment", headers)).status_code == 200


WRONG: dict[str, Callable[[], Any]] = {
    "no signature": dict,
    "another secret": lambda: standard(secret="whsec_c29tZXRoaW5nIGVsc2UsIG5vdCBpdA=="),
    "another body": lambda: standard(b"{}"),
    "another id": lambda: {**standard(), "webhook-id": "msg_2"},
    "an empty id": lambda: {**standard(id=""), "webhook-id": ""},
    "another time": lambda: {**standard(at=time.time() - 5), "webhook-timestamp": str(int(time.time()))},
    "an old one": lambda: standard(at=time.time() - 301),
    "one of the future": lambda: standard(at=time.time() + 302),
    "no time": lambda: {**standard(), "webhook-timestamp": "soon"},
    "a negative time": lambda: {**standard(), "webhook-timestamp": "-1"},
    "a long time": lambda: {**standard(), "webhook-timestamp": "9" * 5_000},
    "another version": lambda: {**standard(), "webhook-signature": standard()["webhook-signature"].replace("v1", "v2")},
    "half of it": lambda: {**standard(), "webhook-signature": standard()["webhook-signature"][:20]},
    "an empty one": lambda: {**standard(), "webhook-signature": ""},
    "an empty MAC": lambda: {**standard(), "webhook-signature": "v1,"},
    "not ASCII": lambda: {**standard(), "webhook-signature": "v1,é".encode("latin-1")},
    "twice": lambda: [*standard().items(), ("webhook-signature", "v1,AAAA")],
    "two ids": lambda: [*standard().items(), ("webhook-id", "msg_2")],
    "two times": lambda: [*standard().items(), ("webhook-timestamp", "1")],
}


@pytest.mark.parametrize("name", WRONG)
async def test_what_is_not_signed_as_it_must_be_changes_nothing(
    site: Site, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    responses = [await send(site, "on_payment", WRONG[name]()) for _ in range(3)]
    for response in responses:
        assert problem(response) == (401, "not-verified")
    assert await total(site) == 0
    logged = [each for each in caplog.records if "was refused" in each.message]
    assert len(logged) == 1  # of many
    assert logged[0].levelno == logging.WARNING
    for text in (responses[0].text, caplog.text):
        assert SECRET not in text
        assert "MfKQ9r8" not in text


async def test_handler_without_a_hook_is_not_served(site: Site) -> None:
    for name in ("unhooked", "on_payment2", "x" * 200, "%E2%82%AC"):
        assert problem(await send(site, name, standard())) == (404, "no-hook")
    assert problem(await site.get("/api/hooks/on_payment")) == (405, "wrong-method")
    assert problem(await send(site, "nobody", standard())) == (404, "unknown-handler")


async def test_workflow_that_takes_something_else_is_not_started(site: Site) -> None:
    response = await send(site, "takes_text", standard())
    assert problem(response) == (409, "takes-no-webhook")
    assert "perdure.Webhook" in response.json()["detail"]
    assert await total(site) == 0


async def test_body_may_be_anything_within_its_bound(site: Site) -> None:
    large = b"x" * (4 * 1024 * 1024)
    for number, (body, kind) in enumerate(
        [(b"", None), (b"\xff\0{", "text/plain"), (b"a=b", "application/x-www-form"), (large, None)]
    ):
        id = f"d-{number}"
        headers = {
            "X-Hub-Signature-256": "sha256=" + hmac.new(b"s3cret", body, "sha256").hexdigest(),
            "X-GitHub-Delivery": id,
        }
        request = site.http.build_request("POST", "/api/hooks/on_push", content=body, headers=headers)
        if kind is not None:
            request.headers["content-type"] = kind
        assert ("content-type" in request.headers) == (kind is not None)
        assert (await site.http.send(request)).status_code == 200
    too_large = b"x" * (5 * 1024 * 1024)
    headers = {"X-Hub-Signature-256": "sha256=" + hmac.new(b"s3cret", too_large, "sha256").hexdigest()}
    assert problem(await send(site, "on_push", headers, too_large)) == (413, "too-large")
    assert problem(await send(site, "on_push", {"content-encoding": "gzip"})) == (415, "encoded-body")
    assert await total(site) == 4


async def test_workflow_gets_no_secrets_of_the_request(site: Site) -> None:
    secret = {
        "Authorization": "Bearer x",
        "Cookie": "a=b",
        "X-Gitlab-Token": "x",
        "X-Hub-Signature": "sha1=x",
        "Svix-Signature": "v1,x",
        "X-Api-Key": "x",
        "Proxy-Authorization": "x",
    }
    headers = [*standard().items(), *secret.items(), ("X-Several", "1"), ("x-several", "2")]
    taken = (await send(site, "keeps", headers)).json()
    ended = (await site.get(f"/api/workflows/{taken['invocation_id']}/result?wait=30")).json()
    found = ended["result"]
    assert found["x-several"] == "1, 2"
    assert found["webhook-id"] == "msg_1"
    assert not {each.lower() for each in secret} & found.keys()
    assert "webhook-signature" not in found
    for path in ("", "/export", "/journal"):
        shown = (await site.get(f"/api/workflows/{taken['invocation_id']}{path}")).content
        assert b"Bearer" not in shown
        assert SECRET.encode() not in shown


async def test_hook_is_served_whoever_sends_the_request(site: Site) -> None:
    """A tunnel or proxy forwards it, under another name: its signature says all that matters."""
    headers = {**standard(), "X-Forwarded-For": "1.2.3.4", "Host": "hooks.example.com", "Sec-Fetch-Site": "cross-site"}
    assert (await send(site, "on_payment", headers)).status_code == 200


# --- other signatures -------------------------------------------------------------------------------------------------
def stripe(body: bytes, at: float, secret: str = "s") -> str:
    return f"t={int(at)},v1={hmac.new(secret.encode(), f'{int(at)}.'.encode() + body, 'sha256').hexdigest()},v0=abc"


def mac(body: bytes, algorithm: str, *, hex: bool = True) -> str:
    made = hmac.digest(b"s", body, algorithm)
    return made.hex() if hex else base64.b64encode(made).decode()


@pytest.mark.parametrize(
    ("verifier", "headers", "event"),
    [
        (Hmac("s", header="X-Sig"), {"x-sig": mac(BODY, "sha256")}, hashlib.sha256(BODY).hexdigest()),
        (Hmac("s", header="X-Sig"), {"x-sig": mac(BODY, "sha256").upper()}, None),
        (Hmac("s", header="X-Sig", algorithm="sha1"), {"x-sig": mac(BODY, "sha1")}, None),
        (Hmac("s", header="X-Sig", algorithm="sha512"), {"x-sig": mac(BODY, "sha512")}, None),
        (Hmac("s", header="X-Sig", encoding="base64"), {"x-sig": mac(BODY, "sha256", hex=False)}, None),
        (Hmac(("t", "s"), header="X-Sig", prefix="sha256="), {"x-sig": "sha256=" + mac(BODY, "sha256")}, None),
        (Hmac("s", header="X-Sig", event_id="X-Id"), {"x-sig": mac(BODY, "sha256"), "x-id": "7"}, "7"),
        (Hmac("s", header="X-Sig", event_id="/id"), {"x-sig": mac(BODY, "sha256")}, "evt_1"),
        (Hmac("s", header="X-Sig", event_id="/amount"), {"x-sig": mac(BODY, "sha256")}, "12"),
        (Hmac("s", header="X-Sig", timestamped=True, event_id="/id"), {"x-sig": stripe(BODY, 1000.0)}, "evt_1"),
    ],
)
def test_signature_as_configured_is_right(verifier: Hmac, headers: dict[str, str], event: str | None) -> None:
    found = verifier.verify(Headers(headers), BODY, 1100.0)
    assert event is None or found == event


@pytest.mark.parametrize(
    ("verifier", "headers"),
    [
        (Hmac("s", header="X-Sig"), {}),
        (Hmac("s", header="X-Sig"), {"x-sig": ""}),
        (Hmac("t", header="X-Sig"), {"x-sig": mac(BODY, "sha256")}),
        (Hmac("s", header="X-Sig"), {"x-sig": "sha256=" + mac(BODY, "sha256")}),
        (Hmac("s", header="X-Sig", prefix="sha256="), {"x-sig": mac(BODY, "sha256")}),
        (Hmac("s", header="X-Sig", algorithm="sha1"), {"x-sig": mac(BODY, "sha256")}),
        (Hmac("s", header="X-Sig", encoding="base64"), {"x-sig": mac(BODY, "sha256")}),
        (Hmac("s", header="X-Sig", encoding="base64"), {"x-sig": mac(BODY, "sha256", hex=False).lower()}),
        (Hmac("s", header="X-Sig", timestamped=True), {"x-sig": mac(BODY, "sha256")}),
        (Hmac("s", header="X-Sig", timestamped=True), {"x-sig": stripe(BODY, 799.0)}),
        (Hmac("s", header="X-Sig", timestamped=True), {"x-sig": "t=1100," + stripe(BODY, 1000.0)}),
        (Hmac("s", header="X-Sig", timestamped=True), {"x-sig": stripe(BODY, 1000.0).replace("v1=", "v2=")}),
        (Hmac("s", header="X-Sig", timestamped=True), {"x-sig": stripe(BODY, 1000.0).replace("t=1000", "t=1001")}),
    ],
)
def test_signature_that_is_not_as_configured_is_refused(verifier: Hmac, headers: dict[str, str]) -> None:
    with pytest.raises(NotVerified):
        verifier.verify(Headers(headers), BODY, 1100.0)


@pytest.mark.parametrize(
    ("event_id", "body"),
    [
        *(
            ("/id", body)
            for body in (b"", b"{}", b"[]", b'{"id": null}', b'{"id": true}', b'{"id": {}}', b'{"id": ""}', b"[" * 9999)
        ),
        *(("/a/0/b", body) for body in (b'{"a": []}', b'{"a": [1]}', b'{"a": "text"}')),
        ("X-Id", b"{}"),
    ],
)
async def test_signed_request_without_its_event_id_is_refused(event_id: str, body: bytes) -> None:
    hooks = {"on_push": Hmac("s", header="X-Sig", event_id=event_id)}
    async with AsyncExitStack() as parts:
        site = await site_on(parts, "memory:", on_push, hooks=hooks)
        response = await send(site, "on_push", {"x-sig": mac(body, "sha256")}, body)
        assert problem(response) == (400, "no-event-id")
        assert await total(site) == 0


def test_pointer_finds_what_is_nested_and_escaped() -> None:
    body = b'{"a/b": [{"~": 5}]}'
    verifier = Hmac("s", header="X-Sig", event_id="/a~1b/0/~0")
    assert verifier.verify(Headers({"x-sig": mac(body, "sha256")}), body, 0.0) == "5"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Hmac("", header="X-Sig"),
        lambda: Hmac([], header="X-Sig"),
        lambda: Hmac(["a", ""], header="X-Sig"),
        lambda: Hmac([str(each) for each in range(11)], header="X-Sig"),
        lambda: Hmac(b"secret", header="X-Sig"),  # type: ignore[arg-type]
        lambda: Hmac("s", header=""),
        lambda: Hmac("s", header="X Sig"),
        lambda: Hmac("s", header="é"),
        lambda: Hmac("s", header="X-Sig", algorithm="md5"),  # type: ignore[arg-type]
        lambda: Hmac("s", header="X-Sig", encoding="base32"),  # type: ignore[arg-type]
        lambda: Hmac("s", header="X-Sig", event_id=""),
        lambda: Hmac("s", header="X-Sig", timestamped=True, prefix="v0="),
        lambda: StandardWebhooks("whsec_"),
        lambda: StandardWebhooks("whsec_!"),
        lambda: StandardWebhooks("not base64, or is it?"),
    ],
)
def test_wrong_configuration_is_refused_early_and_shows_no_secret(make: Callable[[], Any]) -> None:
    with pytest.raises(InvalidOption) as caught:
        make()
    assert "or is it" not in str(caught.value)


def test_application_is_told_when_something_else_is_given_as_a_hook() -> None:
    client = connect("memory:")
    wrong: list[Any] = [{"a": "s3cret"}, {"a": None}, {"": GITHUB}]
    for hooks in wrong:
        with pytest.raises((InvalidOption, ValueError)) as caught:
            http.app(client, hooks=hooks)
        assert "s3cret" not in str(caught.value)


def test_verifier_shows_no_secret() -> None:
    assert (
        repr(GITHUB) == "Hmac(1 secret, header='X-Hub-Signature-256', prefix='sha256=', event_id='X-GitHub-Delivery')"
    )
    assert repr(StandardWebhooks([SECRET, OLD_SECRET])) == "StandardWebhooks(2 secrets)"
    assert "s3cret" not in f"{GITHUB} {GITHUB.described()}"


# --- hooks of the store -----------------------------------------------------------------------------------------------
async def test_hook_of_the_store_is_served_until_it_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.http.hooks.FRESH_SECONDS", 0.0)
    async with AsyncExitStack() as parts:
        site = await site_on(parts, "memory:", *WORKFLOWS)
        assert problem(await send(site, "on_payment", standard())) == (404, "no-hook")
        await put_hook(site.client.operations, "on_payment", StandardWebhooks(SECRET))
        assert (await send(site, "on_payment", standard())).status_code == 200
        await put_hook(site.client.operations, "on_payment", StandardWebhooks(OLD_SECRET))
        assert problem(await send(site, "on_payment", standard())) == (401, "not-verified")
        assert await remove_hook(site.client.operations, "on_payment")
        assert problem(await send(site, "on_payment", standard(secret=OLD_SECRET))) == (404, "no-hook")
        assert not await remove_hook(site.client.operations, "on_payment")


async def test_hook_of_a_newer_release_is_not_served_and_said(caplog: pytest.LogCaptureFixture) -> None:
    async with AsyncExitStack() as parts:
        site = await site_on(parts, "memory:", *WORKFLOWS)
        await site.client.operations.write_documents(HOOKS, [Put(("on_payment",), b'{"type": "quantum"}')])
        assert problem(await send(site, "on_payment", standard())) == (404, "no-hook")
        assert "a newer release wrote it" in caplog.text


async def test_no_client_of_the_server_reads_or_writes_hooks_and_keys(site: Site) -> None:
    async with connect(str(site.server.address)) as remote:
        for collection in (HOOKS, "perdure.keys"):
            with pytest.raises(InvalidOption, match="secrets"):
                await remote.operations.read_documents(collection, [("on_payment",)])
            with pytest.raises(InvalidOption, match="secrets"):
                await remote.operations.write_documents(collection, [Put(("on_payment",), b"{}")])
            with pytest.raises(InvalidOption, match="secrets"):
                await remote.operations.delete_documents(collection, "")


async def test_webhook_is_taken_by_its_type_of_this_release_and_of_the_next() -> None:
    def interface(type: Any) -> Any:
        async def handler(event: Any) -> None: ...

        handler.__annotations__["event"] = type
        return interface_of(workflow(handler).signature(), None)

    class Next(msgspec.Struct):
        headers: dict[str, str]
        body: bytes
        url: str = ""

    Next.__name__ = "Webhook"
    assert takes_webhook(interface(Webhook)) == "event"
    assert takes_webhook(interface(Next)) == "event"
    assert takes_webhook(interface(str)) is None
    assert takes_webhook(interface(Webhook | None)) is None


# --- a process that is killed -----------------------------------------------------------------------------------------
PROGRAM = """
import os
import signal

from perdure import Webhook, workflow
from perdure.http import inbound


def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


if os.path.exists("kill"):
    inbound.json_response = killed  # what makes the answer, once the start is durable


@workflow
async def on_payment(event: Webhook) -> int:
    return event.json()["amount"]
"""


@pytest.mark.slow
@pytest.mark.limit(120)
async def test_event_that_was_accepted_by_a_server_killed_before_its_answer_starts_nothing_twice(
    tmp_path: Path,
) -> None:
    (tmp_path / "app.py").write_text(PROGRAM)
    (tmp_path / "kill").touch()
    async with connect(f"sqlite:{tmp_path / 'store.db'}") as client:
        await put_hook(client.operations, "on_payment", StandardWebhooks(SECRET))
    for _ in range(2):
        server = Process(tmp_path, "worker", "app.py")
        with pytest.raises(httpx.TransportError):
            await post(server.base, "/api/hooks/on_payment", standard())
        server.process.communicate()
        assert server.process.returncode == -signal.SIGKILL
    (tmp_path / "kill").unlink()
    server = Process(tmp_path, "worker", "app.py")
    again = (await post(server.base, "/api/hooks/on_payment", standard())).json()
    assert again["repeated"] is True
    async with httpx.AsyncClient(base_url=server.base, timeout=60) as browser:
        assert (await browser.get("/api/workflows/stats")).json()["total"] == 1
        ended = (await browser.get(f"/api/workflows/{again['invocation_id']}/result?wait=30")).json()
        assert ended["result"] == 12
    server.stop(signal.SIGTERM)


async def post(base: str, path: str, headers: dict[str, str]) -> httpx.Response:
    """Post once the worker has published what it serves."""
    async with httpx.AsyncClient(base_url=base, timeout=60) as browser:
        while not (await browser.get("/api/handlers")).json()["handlers"]:
            await asyncio.sleep(0.01)
        return await browser.post(path, content=BODY, headers=headers)
