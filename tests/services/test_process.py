"""The helper that runs a service for as long as it is needed: it starts it, says when it cannot, leaves none behind."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process

import pytest

from examples.services.process import ROOT, service
from tests.services.test_services import HELLO, listens

pytestmark = pytest.mark.slow

SHOW = ("-c", "import sys; print(sys.argv[1], flush=True); sys.exit(7)", "at {address}")
SHOW_AND_WAIT = ("-c", "import sys; print(sys.argv[1], flush=True); sys.stdin.read()", "{address}")


async def around(*command: str) -> Process:
    line = (sys.executable, "-m", "examples.services.process", HELLO, "--", sys.executable, *command)
    return await asyncio.create_subprocess_exec(*line, cwd=ROOT, stdin=PIPE, stdout=PIPE)


async def gone(address: str) -> bool:
    """Whether nobody listens there, now or within twenty seconds."""
    for _ in range(400):
        if not listens(address):
            return True
        await asyncio.sleep(0.05)
    return False


async def test_service_that_cannot_start_is_an_error_naming_it_and_its_exit_code() -> None:
    with pytest.raises(RuntimeError, match=r"examples\.services\.hello ended with exit code 2 before it listened"):
        async with service(HELLO, "--delay", "-1"):
            pytest.fail("it started")


async def test_service_is_stopped_when_the_block_fails() -> None:
    addresses: list[str] = []

    async def failing() -> None:
        async with service(HELLO) as address:
            addresses.append(address)
            raise LookupError

    with pytest.raises(LookupError):
        await failing()
    assert not listens(addresses[0])


async def test_command_gets_the_address_and_its_exit_code_is_handed_on() -> None:
    process = await around(*SHOW)
    out, _ = await process.communicate(b"")
    assert process.returncode == 7
    shown = out.decode().strip()
    assert shown.startswith("at 127.0.0.1:")
    assert not listens(shown.removeprefix("at "))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_service_ends_with_whoever_started_it(number: signal.Signals) -> None:
    process = await around(*SHOW_AND_WAIT)
    assert process.stdin is not None
    assert process.stdout is not None
    address = (await process.stdout.readline()).decode().strip()
    assert listens(address)
    process.send_signal(number)
    assert await gone(address)
    process.stdin.close()  # the command's too: after SIGKILL nobody else ends it
    await process.stdin.wait_closed()
    await process.communicate()
    assert process.returncode == (143 if number is signal.SIGTERM else -number)


async def test_wrong_use_is_explained() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "examples.services.process", HELLO, cwd=ROOT, stderr=PIPE
    )
    _, err = await process.communicate()
    assert process.returncode == 2
    assert err.decode().startswith("usage: python -m examples.services.process MODULE -- COMMAND")
