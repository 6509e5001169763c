from __future__ import annotations

from pathlib import Path

import pytest

from perdure.cli import main
from perdure.cli.options import shown_url


@pytest.mark.parametrize("arguments", [[], ["--help"], ["run", "--help"], ["worker", "-h"]])
def test_help_is_shown(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("Usage: perdure")


def test_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("perdure ")


def test_unknown_verb_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rnu"]) == 2
    assert capsys.readouterr().err.startswith("error: No such command 'rnu'")


def test_run_in_process(inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert main(["run", "app.py:hello", "World", "--url", "memory:"]) == 0
    assert capsys.readouterr().out == "Hello, World!\n"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:a.db", "sqlite:a.db"),
        ("nats://user:secret@host:4222", "nats://user:***@host:4222"),
        ("nats://me:pa/ss@host", "nats://me:***@host"),
        ("nats://me:p,w@host", "nats://me:***@host"),
        ("nats://me:p@:ss%@host,other", "nats://me:***@host,other"),
        ("nats://to/k,e:n@host", "nats://***@host"),
        ("nats:me:pass@host", "nats:me:***@host"),
        ("sqlite:a@b:c@d.db", "sqlite:a@b:c@d.db"),
        ("nats://host:4222,other:4222", "nats://host:4222,other:4222"),
        (None, "sqlite:perdure.db"),
    ],
)
def test_url_is_shown_without_its_password(url: str | None, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERDURE_URL", raising=False)
    assert shown_url(url) == shown
