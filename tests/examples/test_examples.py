"""Each example prints what its text promises, by itself and as a target of the command line."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from examples.services.process import ROOT, service

pytestmark = pytest.mark.slow

WELCOME = "Welcome to Durable Execution on NATS JetStream."
STEPS = re.compile(
    r"^AsyncWorkflow\[(?P<user>user-\d{3})\] completed:\n"
    rf"  Step1: Hello, User:(?P=user)! {WELCOME}\n"
    rf"  Step2: Hello, Async:(?P=user)! {WELCOME}\n"
    rf"  Step3: Hello, Confirm:(?P=user)! {WELCOME}$",
    re.MULTILINE,
)
MULTI_SERVICE = f"""\
Multi-Service Workflow Results:
1️⃣  Hello, Durable Execution (English)! {WELCOME}
2️⃣  Hello, Durable Execution (Spanish)! {WELCOME}
3️⃣  Hello, Durable Execution (French)! {WELCOME}
📊 Hello, Summary! {WELCOME}
Total service calls: 4
"""
NAMES = ("X (English)", "X (Spanish)", "X (French)", "Summary")
OUTPUT = {
    "simple": f"Hello, World! {WELCOME}\n",
    "typed": f"Hello, TypeSafe World! {WELCOME}\n10 words for Guest(name='TypeSafe World', languages=('English',))\n",
    "local": ("✓ Executed locally!\nResult: Hello, Local World! Welcome to durable execution in memory.\n"),
    "multi_service": MULTI_SERVICE,
}


async def output(*command: str, code: int = 0) -> str:
    """The output of `python -m COMMAND`, which must not write to stderr."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", *command, cwd=ROOT, stdout=PIPE, stderr=PIPE)
    out, err = await process.communicate()
    assert (process.returncode, err.decode()) == (code, "")
    return out.decode()


@pytest.mark.parametrize("name", OUTPUT)
async def test_example_prints_its_result(name: str) -> None:
    assert await output(f"examples.{name}") == OUTPUT[name]


async def test_example_uses_a_service_that_runs_already() -> None:
    async with service("examples.services.hello") as address:
        given = ("--service", f"HelloService={address}")
        assert await output("examples.simple", *given) == OUTPUT["simple"]
        assert "✅ Success: 2\n" in await output("examples.concurrent", *given, "--count", "2")


async def test_concurrent_example_prints_banner_results_and_counts() -> None:
    out = await output("examples.concurrent")
    assert out.startswith("=" * 40 + "\nConcurrent Workflow Invocations (N=10)\nTimeout: 5m0s per workflow\n")
    assert "🚀 Submitting 10 workflow invocations...\n" in out
    assert len(STEPS.findall(out)) == 3
    assert "Total Invocations: 10\n✅ Success: 10\n❌ Failed: 0\n" in out


async def test_concurrent_example_takes_a_number_a_limit_and_a_concurrency() -> None:
    out = await output("examples.concurrent", "--count", "200", "--concurrency", "20", "--timeout", "1800")
    assert "Concurrent Workflow Invocations (N=200)\nTimeout: 30m0s per workflow\n" in out
    assert "✅ Success: 200\n" in out


async def test_concurrent_example_that_fails_says_so_in_its_exit_code() -> None:
    out = await output("examples.concurrent", "--count", "2", "--timeout", "0.000001", code=1)
    assert "❌ Failed: 2\n" in out


TYPED = {
    "guest": {"name": "Ada", "languages": ["English"]},
    "message": f"Hello, Ada! {WELCOME}",
    "words": 9,
}
TARGETS = {
    "simple": ("World", OUTPUT["simple"]),
    "typed": ('{"name": "Ada", "languages": ["English"]}', f"{json.dumps(TYPED)}\n"),
    "local": ("Local World", "Hello, Local World! Welcome to durable execution in memory.\n"),
    "multi_service": ("X", json.dumps([f"Hello, {name}! {WELCOME}" for name in NAMES]) + "\n"),
    "concurrent": ("user-{i}", STEPS),
}


@pytest.mark.parametrize("name", TARGETS)
async def test_example_is_a_target_too(name: str, tmp_path: Path) -> None:
    argument, expected = TARGETS[name]
    async with service("examples.services.hello") as address:
        given = ("--service", f"HelloService={address}", "--url", f"sqlite:{tmp_path / 'example.db'}")
        out = await output("perdure", "run", f"examples/{name}.py", argument, *given)
    if isinstance(expected, str):
        assert out == expected
    else:
        assert expected.fullmatch(out.rstrip("\n"))


async def test_command_line_of_the_demo_runs_the_concurrent_example(tmp_path: Path) -> None:
    async with service("examples.services.hello") as address:
        given = ("--service", f"HelloService={address}", "--url", f"sqlite:{tmp_path / 'demo.db'}")
        out = await output(
            "perdure", "run", "examples/concurrent.py:concurrent", "user-{i}", "--count", "100", "--id", "demo", *given
        )
    assert len(STEPS.findall(out)) == 3
    assert "✅ Success: 100\n" in out


async def test_wrong_option_is_explained() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "examples.concurrent", "--service", "x"), cwd=ROOT, stderr=PIPE
    )
    _, err = await process.communicate()
    assert process.returncode == 2
    assert "'x' is not HelloService=HOST:PORT" in err.decode()
