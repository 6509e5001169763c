"""`perdure hook`, `approval-link` and `rotate-link-key`."""

from __future__ import annotations

import asyncio
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from perdure import Client, connect
from perdure.errors import CapabilityRefused
from perdure.operations.capabilities import KEYS
from tests.cli.conftest import Run

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture
def secret(place: Path) -> str:
    (place / "secret").write_text(f"{SECRET}\n")
    return "secret"


@pytest.fixture
def awakeable(place: Path) -> str:
    async def find() -> str:
        async with connect("sqlite:app.db", read_only=True) as client:
            first, *_ = [each.id async for each in client.awakeables()]
            return first

    return asyncio.run(find())


def test_hook_is_added_listed_and_removed_and_no_secret_is_shown(run: Run, secret: str) -> None:
    assert run("hook", "list") == (0, "", "")
    code, out, err = run("hook", "add", "on_payment", "--standard", "--secret-file", secret)
    assert (code, out, err) == (0, "Webhooks start on_payment on sqlite:app.db: POST /api/hooks/on_payment\n", "")
    options = ("--prefix", "sha256=", "--event-id", "/id", "--algorithm", "sha1", "--encoding", "base64")
    assert run("hook", "add", "on_push", "--hmac-header", "X-Sig", "--secret-file", secret, *options)[0] == 0
    _, out, _ = run("hook", "list")
    assert re.search(r"on_payment +StandardWebhooks\(1 secret\)", out)
    assert re.search(r"on_push +Hmac\(1 secret, header='X-Sig', algorithm='sha1'", out)
    _, listed, _ = run("hook", "list", "--json")
    assert [json.loads(line) for line in listed.splitlines()] == [
        {"handler": "on_payment", "type": "standard", "secrets": 1},
        {
            "handler": "on_push",
            "type": "hmac",
            "secrets": 1,
            "header": "X-Sig",
            "algorithm": "sha1",
            "encoding": "base64",
            "prefix": "sha256=",
            "event_id": "/id",
        },
    ]
    assert "MfKQ9" not in out + listed
    assert run("hook", "remove", "on_push") == (0, "Webhooks no longer start on_push.\n", "")
    code, out, err = run("hook", "remove", "on_push")
    assert (code, out) == (1, "")
    assert "'on_push' has no hook" in err


def test_secret_may_come_from_stdin_and_several_are_kept(
    run: Run, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"whsec_b2xkIG9uZSwgb2xkIG9uZQ==")))
    assert run("hook", "add", "a", "--standard", "--secret-file", secret, "--secret-file", "-")[0] == 0
    assert "2 secrets" in run("hook", "list")[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give either --standard or --hmac-header NAME"),
        (["--standard", "--hmac-header", "X-Sig"], "give either --standard or --hmac-header NAME"),
        (["--standard", "--event-id", "/id"], "--standard takes no --event-id"),
        (["--hmac-header", "X Sig"], "the name of a header"),
        (["--hmac-header", "X-Sig", "--timestamped", "--prefix", "a"], "has no prefix"),
    ],
)
def test_wrong_hook_is_refused(run: Run, secret: str, arguments: list[str], said: str) -> None:
    code, out, err = run("hook", "add", "on_payment", "--secret-file", secret, *arguments)
    assert code in (1, 2)
    assert out == ""
    assert said in err
    assert run("hook", "list") == (0, "", "")


def test_empty_secret_is_refused(run: Run, place: Path) -> None:
    (place / "empty").write_text("\n")
    for kind in (["--standard"], ["--hmac-header", "X-Sig"]):
        code, _, err = run("hook", "add", "on_payment", "--secret-file", "empty", *kind)
        assert code in (1, 2)
        assert "secrets of a hook" in err
    (place / "binary").write_bytes(b"\xff\xfe")
    code, _, err = run("hook", "add", "on_payment", "--standard", "--secret-file", "binary")
    assert code == 2
    assert "binary does not hold text" in err


def in_store(of: Any) -> Any:
    async def opened() -> Any:
        async with connect("sqlite:app.db") as client:
            return await of(client)

    return asyncio.run(opened())


def test_link_is_printed_also_while_another_process_serves_the_file(run: Run, awakeable: str) -> None:
    code, out, err = run("approval-link", awakeable, "--public-url", "https://example.com/")
    assert (code, err) == (0, "")
    assert re.fullmatch(r"https://example\.com/approve/[\w-]+\n", out)
    assert re.fullmatch(r"/api/awakeable-hooks/[\w-]+\n", run("approval-link", awakeable, "--callback")[1])

    async def served(client: Client) -> str:
        await client.operations.open()
        command = (sys.executable, "-m", "perdure", "approval-link", awakeable)
        other = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        return (await other.communicate())[0].decode()

    link = in_store(served).strip()

    async def check(client: Client) -> str:
        found = await client.operations.check_capability("approve", link.rpartition("/")[2])
        return found.awakeable_id

    assert in_store(check) == awakeable


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["x"], "handed out no such awakeable"),
        (["x", "--expires", "0"], "--expires"),
        (["x", "--public-url", "example.com"], "https://perdure.example.com"),
    ],
)
def test_wrong_link_is_refused(run: Run, arguments: list[str], said: str) -> None:
    code, out, err = run("approval-link", *arguments)
    assert code in (1, 2)
    assert out == ""
    assert said in err


def test_new_key_signs_and_earlier_links_stay_valid_unless_they_are_revoked(run: Run, awakeable: str) -> None:
    links = [run("approval-link", awakeable)[1].strip()]

    def valid() -> list[bool]:
        async def check(client: Client) -> list[bool]:
            found: list[bool] = []
            for each in links:
                try:
                    await client.operations.check_capability("approve", each.rpartition("/")[2])
                    found.append(True)
                except CapabilityRefused:
                    found.append(False)
            return found

        return in_store(check)

    code, out, _ = run("rotate-link-key")
    assert (code, out) == (0, "sqlite:app.db signs links with a new key. Earlier links stay valid until they expire.\n")
    links.append(run("approval-link", awakeable)[1].strip())
    assert valid() == [True, True]
    assert "worthless" in run("rotate-link-key", "--revoke")[1]
    links.append(run("approval-link", awakeable)[1].strip())
    assert valid() == [False, False, True]
    for _ in range(12):
        assert run("rotate-link-key")[0] == 0

    async def count(client: Client) -> int:
        (document,) = await client.operations.read_documents(KEYS, [("capabilities",)])
        assert document is not None
        return len(json.loads(document.value)["keys"])

    assert in_store(count) == 10
