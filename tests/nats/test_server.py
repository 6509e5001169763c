# pyright: reportUnknownMemberType=false
"""The helper that runs a real nats-server: it starts one, says why it cannot, keeps data and port, leaves none."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client as NATS
from nats.js.errors import NoStreamResponseError

from examples.services.nats_server import Options, Server, cluster, detached, down, free_ports, server
from tests.cli.command import hear_interrupts

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def runs(pid: int) -> bool:
    asked = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return bool(asked.stdout.strip()) and not asked.stdout.startswith("Z")


def gone(pid: int) -> bool:
    """Whether it has ended, now or within ten seconds."""
    for _ in range(200):
        if not runs(pid):
            return True
        time.sleep(0.05)
    return False


async def test_acknowledged_message_survives_a_kill_of_the_server(tmp_path: Path) -> None:
    with server(tmp_path, options=Options(sync_interval="always")) as node:
        async with await nats.connect(node.url) as client:
            jetstream = client.jetstream(timeout=60)
            await jetstream.add_stream(name="S", subjects=["s.>"])
            await jetstream.publish("s.1", b"kept")
        pid, url = node.pid, node.url
        node.kill()
        assert not runs(pid)
        node.start()
        assert node.url == url
        async with await nats.connect(node.url) as client:
            assert (await client.jetstream(timeout=60).get_msg("S", 1)).data == b"kept"
        assert '"sync_interval": "always"' in (tmp_path / "server.conf").read_text()


async def test_cluster_goes_on_without_one_of_its_nodes() -> None:
    with cluster() as nodes:
        urls = nodes.url.removeprefix("nats://").split(",")
        async with await nats.connect(urls) as client:
            await client.jetstream(timeout=60).add_stream(name="S", subjects=["s.>"], num_replicas=3)
        nodes.nodes[0].kill()
        async with await nats.connect(urls[1:]) as client:
            await publish(client, "s.1")
            nodes.start()
            info = await client.jetstream(timeout=60).stream_info("S")
        assert info.state.messages == 1
        assert info.cluster is not None
        assert len(info.cluster.replicas or ()) == 2


async def publish(client: NATS, subject: str) -> None:
    """Publish as soon as there is a leader: the one that was killed may have been it."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(NoStreamResponseError):
                await client.jetstream(timeout=60).publish(subject)
                return
            await asyncio.sleep(0.1)


def test_server_that_cannot_start_is_an_error_with_its_log(tmp_path: Path) -> None:
    port, http_port = free_ports(2)
    node = Server(tmp_path, port, http_port, Options(more={"no_such_setting": 1}))
    with pytest.raises(RuntimeError, match=rf"(?s)nats-server on port {port} ended.*no_such_setting"):
        node.start()
    assert not node.running


def test_server_ends_with_whoever_started_it() -> None:
    program = (
        "import time; from examples.services.nats_server import server\n"
        "with server() as node: print(node.pid, node.folder, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline().split()[0])
    assert runs(pid)
    process.kill()
    process.communicate()
    assert gone(pid)


def tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = (sys.executable, "-m", "examples.services.nats_server", *arguments)
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def test_server_left_running_is_found_and_ended(tmp_path: Path) -> None:
    folder = ("--folder", str(tmp_path))
    port = str(free_ports(1)[0])
    try:
        first = tool("up", *folder, "--port", port, "--sync", "always")
        assert f"NATS runs on nats://127.0.0.1:{port}," in first.stdout, first.stderr
        (pid,) = detached(tmp_path)
        second = tool("up", *folder, "--port", port)
        assert second.returncode == 1
        assert "run already: `make nats-down` ends them" in second.stderr
        assert runs(pid)
    finally:
        ended = tool("down", *folder)
    assert ended.stdout.startswith("1 nats-server of")
    assert not runs(pid)
    assert tool("down", *folder).stdout.startswith("0 nats-server of")


def test_pid_of_another_program_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "1-nodes" / "n1"
    folder.mkdir(parents=True)
    (folder / "server.pid").write_text(str(os.getpid()))
    assert down(tmp_path) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_command_gets_the_url_and_the_server_ends_with_it(number: signal.Signals) -> None:
    show = "import sys, time; print(sys.argv[1], flush=True); time.sleep(60)"
    line = (sys.executable, "-m", "examples.services.nats_server", "run", "--", sys.executable, "-c", show, "at {url}")
    process = subprocess.Popen(
        line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, preexec_fn=hear_interrupts
    )
    assert process.stdout is not None
    shown = process.stdout.readline().strip()
    assert shown.startswith("at nats://127.0.0.1:")
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)
    process.communicate()
    assert process.returncode == 128 + number


def test_exit_code_of_the_command_is_handed_on() -> None:
    line = (sys.executable, "-m", "examples.services.nats_server", "run", "--", sys.executable, "-c", "exit(7)")
    assert subprocess.run(line, cwd=ROOT, check=False).returncode == 7
