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
from perdure import connect

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
RETRY = """\
📤 PHASE 1: Submitting workflows...
  prepare(task-success-1)
  prepare(task-flaky-1)
  prepare(task-success-2)
  prepare(task-flaky-2)
📊 PHASE 2: Checking workflow status...
  task-success-1: completed ✅
  task-flaky-1: failed ❌ ConnectionError: task-flaky-1: service unavailable
  task-success-2: completed ✅
  task-flaky-2: failed ❌ ConnectionError: task-flaky-2: service unavailable
🔄 PHASE 3: Retrying failed workflows...
  task-flaky-1: same id, from the failed step; nothing is prepared again
  task-flaky-2: other input, new id
  prepare(task-flaky-2-retry)
✅ PHASE 4: Verifying retry results...
  task-success-1: completed ✅
  task-flaky-1: completed ✅
  task-success-2: completed ✅
  task-flaky-2-retry: completed ✅
Overall Success Rate: 4/4
"""
DELAYED = f"""\
⏰ Scheduled greeting for future execution
Status: scheduled
The worker has stopped; another one starts.
After 1 s: Hello, Delayed World! {WELCOME}
"""
ASKED = (
    r"✉️  To the manager: \$120\.00 for Ada\?\n"
    r"⏳ Waiting\. The worker has stopped; another one starts\.\n"
    r"🔗 http://localhost:\d+/approve/[\w-]+\n"
    r"\$ curl -X POST http://localhost:\d+/api/awakeables/[\w~]+/resolve \\\n"
    r"  -H 'Content-Type: application/json' \\\n"
    r"  -d '{\"result\": \"{.*}\"}'\n"
    r"\{\n[^{}]*\n\} \n\n"
)
WEBHOOK = """\
📨 evt-1: 12.00 EUR of Ada booked
🔁 evt-1 again: the same invocation
🚫 evt-2, forged: 401 this is no webhook for 'on_payment': the signature is wrong: another secret, or another body, \
was signed
Invocations: 1
"""
RESTATE = f"""\
1. Local mode:     Hello, Local! {WELCOME}
2. Type-safe call: Hello, Restate-Style! {WELCOME}
3. By reference:   Hello, Remote! {WELCOME}
4. Composition:
                   Hello, Alice! {WELCOME}
                   Hello, Bob! {WELCOME}
                   Hello, Charlie! {WELCOME}
5. Delayed send:   Hello, Later! {WELCOME}
6. Outside answer: Hello, Awakeable! {WELCOME}
7. State of a key: visit 1 of Alice, visit 2 of Alice, visit 3 of Alice
"""
TICKET_CART = """\
🎫 user-1 adds T-1: reserved
🎫 user-1 adds T-2: reserved
🎫 user-2 adds T-1: taken
🛒 user-1: ['T-1', 'T-2']
⌛ Expired
🛒 user-1: []
🎫 user-2 adds T-1: reserved
"""
RESERVE, RELEASE = "     TicketService.Reserve\n", "     TicketService.Release\n"
SAGA = (
    f"✅ booked flight, hotel\n{RESERVE * 2}❌ hotel is taken\n{RESERVE * 3}{RELEASE * 2}"
    f"✅ booked theatre, museum\n{RESERVE * 2}"
)
SCHEDULE = """\
📅 nightly: put
📅 nightly: unchanged
⏩ now: 5 letters
⏰ second 1: 5 letters
⏰ second 2: 5 letters
⏸️  that is enough
"""
TOOK = r"  ⏱️  \d+\.\d\d s \(the fetchers alone take 0\.\d5 s\)\n"
REPORT = "Report: users Ada, Bob; orders 4; weather"
FLOW_DEMO = (
    rf"📋 TEST 1: Concurrent execution\n  concurrent: {REPORT} sunny\n{TOOK}"
    rf"📋 TEST 2: Sequential, by an option of the start\n  sequential: {REPORT} sunny\n{TOOK}"
    r"  🚀 \d\.\d times as fast\n"
    rf"📋 TEST 3: A fetcher fails\n  with a default: {REPORT} unknown\n{TOOK}"
    r"📋 TEST 4: As data, and back\n  \d+ lines of JSON, 7 nodes\n"
    r"📊 Of 3 runs, fetch_weather is most of the critical path\n"
    rf"  {REPORT} sunny\nflowchart TD\n[^📋]*    n8 --> result\n"
)
NAMES = ("X (English)", "X (Spanish)", "X (French)", "Summary")
OUTPUT = {
    "simple": f"Hello, World! {WELCOME}\n",
    "typed": f"Hello, TypeSafe World! {WELCOME}\n10 words for Guest(name='TypeSafe World', languages=('English',))\n",
    "local": ("✓ Executed locally!\nResult: Hello, Local World! Welcome to durable execution in memory.\n"),
    "multi_service": MULTI_SERVICE,
    "retry": RETRY,
    "delayed": DELAYED,
    "restate": RESTATE,
    "saga": SAGA,
    "schedule": SCHEDULE,
    "ticket_cart": TICKET_CART,
    "webhook": WEBHOOK,
}
ID = "[0-9a-f]{32}"
PATTERNS = {
    "approval": ASKED + r"✅ Approved: \$120\.00 for Ada\n",
    "flow_demo": FLOW_DEMO,
    "async": rf"Submitted: {ID}\nDoing other work\.\.\.\nResult: Hello, World! {WELCOME}\nStatus: completed\n",
    "streaming": (
        r"🗣️  attempt 1: Because I could not stop\n"
        r"💥 kill -9 \d+; another worker, and another reader from item 5 on\n"
        r"(🗣️  attempt 1:( \S+)+\n)?"  # what it had stored, and nobody had read
        r"🗣️  attempt 2: Because I could not stop for Death, He kindly stopped for me\.\n"
        r"✅ 12 tokens\n📈 thinking, done\n"
    ),
    "pause": (
        r"📋 DEMO 1: Pause & Resume\n⏸️  paused, [1-5] of 6 steps done\n▶️  resumed: 6 of 6 steps done\n"
        r"✅ Final Status: completed\n"
        r"📋 DEMO 2: Cancel\n🛑 cancelling\n  cleaning up after other-task\n  InvocationCancelled\n"
        r"✅ Final Status: cancelled\n"
    ),
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


@pytest.mark.parametrize("name", PATTERNS)
async def test_example_prints_what_happens(name: str) -> None:
    out = await output(f"examples.{name}")
    assert re.fullmatch(PATTERNS[name], out, re.DOTALL), out


async def test_query_example_sends_the_requests_that_it_shows() -> None:
    check_query(await output("examples.query", "--port", "0"))


def check_query(out: str) -> None:
    commands = re.findall(r"^\$ (.*)$", out, re.MULTILINE)
    assert len(commands) == 10
    assert re.fullmatch(r'curl "http://localhost:\d+/api/workflows"', commands[0])
    answers = [json.loads(each) for each in re.findall(r"^\{$.*?^\}", out, re.MULTILINE | re.DOTALL)]
    listed, shown, stats, completed, failed, approvals, one, awakeables, _, result = answers
    assert sorted(each["status"] for each in listed["workflows"]) == ["completed", "failed", "suspended"]
    assert (shown["handler"], shown["current_step_type"][:10]) == ("expense_approval", "AWAKEABLE:")
    assert stats["by_status"] == {"completed": 1, "failed": 1, "suspended": 1}
    assert [len(each["workflows"]) for each in (completed, failed, approvals, one)] == [1, 1, 1, 1]
    assert len(awakeables["awakeables"]) == 1
    assert result["result"] == "✅ Approved: $120.00 for Ada"


async def test_fastapi_example_answers_all_and_keeps_sessions_apart() -> None:
    found = json.loads(await output("examples.fastapi", "--users", "3", "--at-once", "4", "--delay", "0.1"))
    assert found["seed"].keys() == found["perdure"].keys() - {"killed_with_sigkill"}
    measured = found["perdure"]
    assert measured["different_queries"]["succeeded"] == 3
    assert measured["equal_queries"]["succeeded"] == 4
    assert measured["sessions"] == {"keep_their_memory": True, "are_apart": True}
    assert measured["killed_with_sigkill"] == {"queries": 3, "answered": 3}


async def test_approval_example_takes_a_no_for_an_answer() -> None:
    out = await output("examples.approval", "--reject")
    assert re.fullmatch(ASKED + r"❌ Rejected: \$120\.00 \(too much\)\n", out, re.DOTALL), out


async def test_example_uses_the_store_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:{tmp_path / 'example.db'}"
    monkeypatch.setenv("PERDURE_URL", url)
    assert await output("examples.retry") == RETRY
    async with connect(url) as client:
        assert (await client.stats()).by_status == {"completed": 4, "failed": 1}


def test_every_example_is_tested_and_has_a_target_of_make() -> None:
    found = {path.stem for path in (ROOT / "examples").glob("*.py")} - {"__init__", "stage", "curl"}
    assert found == {*OUTPUT, *PATTERNS, "concurrent", "killed", "query", "fastapi"}
    listed = re.search(r"^EXAMPLES := ((?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert listed is not None
    assert {name.replace("-", "_") for name in listed[1].replace("\\\n", " ").split()} == found


async def test_killed_batch_is_finished_and_only_steps_without_a_result_ran_twice() -> None:
    out = await output("examples.killed", "--count", "300")
    died = re.search(r"^\$ kill -9 \d+   # ([\d,]+) steps have run, ([\d,]+) results are recorded$", out, re.MULTILINE)
    assert died is not None, out
    ran, recorded = (int(each.replace(",", "")) for each in died.groups())
    assert 0 < recorded <= ran < 900
    assert "✅ Success: 300\n❌ Failed: 0\n" in out
    assert out.endswith(
        f"900 steps, each recorded once. {ran - recorded} ran twice: they had no result when the process died.\n"
    )


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
