# pyright: reportUnknownMemberType=false
"""`connect("nats://…")`: what is refused before a server is asked, and what is said when there is none to be had."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
from pathlib import Path
from typing import Any

import nats
import pytest
import trustme

from examples.services.nats_server import Options, Tls, free_ports, server
from perdure import Client, connect, workflow
from perdure.errors import (
    BadUrl,
    InvalidOption,
    PayloadTooLarge,
    PerdureError,
    StoreFull,
    StoreReadOnly,
    StoreUnavailable,
    StoreUnfit,
)
from perdure.stores.clock import SystemClock
from perdure.stores.jetstream import store as store_module
from tests.nats.credentials import certificates

HERE = "nats://127.0.0.1:1"


@workflow
async def hello(name: str) -> str:
    return f"Hello, {name}!"


# --- before a server is asked -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["nats:", "nats://", "nats:n1", "tls:", "nats://n1:port", "nats://bob:s3cret@n1/x"])
def test_url_without_a_server_is_refused(url: str) -> None:
    with pytest.raises(BadUrl) as raised:
        connect(url)
    assert "nats://" in str(raised.value)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "options", "why"),
    [
        (HERE, {"replicas": 2}, "replicas=2: give 1 or 3 or 5"),
        (HERE, {"shards": 0}, "shards=0: give 1 to 64"),
        (HERE, {"shards": 65}, "shards=65: give 1 to 64"),
        (HERE, {"user": 5}, "int given where a str is expected"),
        (HERE, {"tls": "ca.pem"}, "str given where an ssl.SSLContext is expected"),
        (HERE, {"credentials": Path("missing.creds")}, "there is no file .*missing.creds"),
        ("nats://bob:s3cret@n1", {"token": "t"}, "has credentials, and so have the options"),
        ("memory:", {"token": "t"}, r"connect\(token=…\) is for a nats:// URL, not for 'memory:'"),
        ("sqlite:x.db", {"shards": 2}, r"connect\(shards=…\) is for a nats:// URL, not for 'sqlite:x.db'"),
    ],
)
def test_wrong_option_is_refused(url: str, options: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidOption, match=why) as raised:
        connect(url, **options)
    assert "s3cret" not in str(raised.value)


def test_partitions_are_checked_as_early_as_their_number_is_known() -> None:
    with pytest.raises(InvalidOption, match="has the partitions 0 to 2"):
        connect(HERE, shards=3).worker(hello, partitions=[3])
    with pytest.raises(InvalidOption, match="name at least one"):
        connect(HERE).worker(hello, partitions=[])


# --- servers that cannot be used --------------------------------------------------------------------------------------


async def error_of(url: str, **options: Any) -> PerdureError:
    client = connect(url, **options)
    with pytest.raises(PerdureError) as raised:
        async with asyncio.timeout(20):
            await client.operations.open()
    await client.aclose()
    return raised.value


async def test_host_that_does_not_exist_is_said() -> None:
    error = await error_of("nats://n1.invalid")
    assert isinstance(error, StoreUnavailable)
    assert "no NATS server at nats://n1.invalid:4222: " in str(error)
    assert "name another address" in str(error)


async def test_no_server_is_said_with_its_address() -> None:
    (port,) = free_ports(1)
    error = await error_of(f"nats://127.0.0.1:{port}")
    assert isinstance(error, StoreUnavailable)
    assert f"no NATS server at nats://127.0.0.1:{port}: " in str(error)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "given"),
    [
        (Options(users={"bob": "s3cret"}), {"user": "bob", "password": "wr0ng"}),
        (Options(users={"bob": "s3cret"}), {}),
        (Options(token="s3cret"), {"token": "wr0ng"}),
    ],
)
async def test_wrong_credentials_are_said_and_not_shown(options: Options, given: dict[str, str]) -> None:
    with server(options=options) as node:
        error = await error_of(node.url, **given)
    assert isinstance(error, StoreUnavailable)
    assert "refuses these credentials" in str(error)
    assert "Authorization Violation" in str(error)
    assert "wr0ng" not in str(error)


@pytest.mark.slow
async def test_certificate_that_nobody_vouches_for_is_said(tmp_path: Path) -> None:
    with server(options=Options(tls=certificates(tmp_path).tls(verify=False))) as node:
        error = await error_of(node.url)
    assert isinstance(error, StoreUnavailable)
    assert "certificate verify failed" in str(error)


@pytest.mark.slow
async def test_server_by_another_name_than_its_certificate_is_said(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("n1.example")
    cert, key, ca = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "ca.pem"
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(ca)
    with server(options=Options(tls=Tls(cert, key))) as node:
        error = await error_of(node.url, tls_ca=ca)
    assert isinstance(error, StoreUnavailable)
    assert "not valid for '127.0.0.1'" in str(error)
    assert "connect with a name that is in its certificate" in str(error)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["tls", "nats"])
async def test_nothing_secret_is_sent_to_a_server_without_tls_if_it_was_asked_for(scheme: str, tmp_path: Path) -> None:
    heard = bytearray()

    class Plain(OldServer):
        def data_received(self, data: bytes) -> None:
            heard.extend(data)
            super().data_received(data)

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        plain = await asyncio.get_running_loop().create_server(Plain, sock=listening)
        url = f"{scheme}://127.0.0.1:{listening.getsockname()[1]}"
        error = await error_of(url, user="bob", password="s3cret", tls_ca=certificates(tmp_path).ca)
        plain.close()
    assert isinstance(error, StoreUnavailable)
    assert "the server offers no TLS" in str(error)
    assert heard == b""


@pytest.mark.slow
async def test_server_that_leaves_tls_to_its_clients_is_talked_to_in_secret(tmp_path: Path) -> None:
    made = certificates(tmp_path)
    found = made.tls(verify=False)
    with server(options=Options(tls=found, more={"allow_non_tls": True})) as node:
        async with connect(node.url, tls_ca=made.ca) as client:
            assert (await client.stats()).total == 0
            asked = http.client.HTTPConnection("127.0.0.1", node.http_port)
            asked.request("GET", "/connz")
            (connection,) = json.loads(asked.getresponse().read())["connections"]
            asked.close()
    assert connection["tls_version"] == "1.3"


@pytest.mark.slow
async def test_server_without_jetstream_is_said() -> None:
    with server(options=Options(jetstream=False)) as node:
        error = await error_of(node.url)
    assert isinstance(error, StoreUnavailable)
    assert f"{node.url}: JetStream does not answer" in str(error)
    assert "enable it in the server's configuration" in str(error)


class OldServer(asyncio.Protocol):
    """Greets as a server of long ago does, and takes whoever comes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        greeting = {"server_id": "old", "version": "2.9.10", "headers": True, "max_payload": 1 << 20, "jetstream": True}
        transport.write(b"INFO " + json.dumps(greeting).encode() + b"\r\n")

    def data_received(self, data: bytes) -> None:
        if b"PING\r\n" in data:
            self.transport.write(b"PONG\r\n")


async def test_server_that_is_too_old_is_refused() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        old = await asyncio.get_running_loop().create_server(OldServer, sock=listening)
        error = await error_of(f"nats://127.0.0.1:{listening.getsockname()[1]}")
        old.close()
    assert isinstance(error, StoreUnfit)
    assert "nats-server 2.9.10 is too old" in str(error)
    assert "upgrade it to 2.15.1 or later" in str(error)


# --- streams that are not as they must be -----------------------------------------------------------------------------


@pytest.mark.slow
async def test_number_of_shards_is_that_of_the_store_or_refused() -> None:
    with server() as node:
        async with connect(node.url, shards=2) as client, client.worker(hello, partitions=[0, 1]):
            assert await client.run(hello, "A") == "Hello, A!"
        async with connect(node.url) as client:
            with pytest.raises(InvalidOption, match="has the partitions 0 to 1"):
                async with client.worker(hello, partitions=[2]):
                    pytest.fail("it serves")
            async with client.worker(hello):
                assert await client.run(hello, "B") == "Hello, B!"
            assert (await client.stats()).by_status == {"completed": 2}
        error = await error_of(node.url, shards=4)
        assert isinstance(error, StoreUnfit)
        assert "is one of 2 partitions, not 4: the number cannot be changed" in str(error)


@pytest.mark.slow
async def test_store_opened_to_be_read_only_shows_all_and_changes_nothing() -> None:
    with server() as node:
        assert "there is no store yet" in str(await error_of(node.url, read_only=True))
        async with connect(node.url) as client, client.worker(hello):
            assert await client.run(hello.using(id="one"), "A") == "Hello, A!"
        async with connect(node.url, read_only=True) as client:
            assert await client.handle("one").result() == "Hello, A!"
            assert (await client.stats()).by_handler == {"hello": 1}
            for change in (client.run(hello, "B"), client.handle("one").cancel(), client.handle("one").purge()):
                with pytest.raises(StoreReadOnly, match="opened read-only"):
                    await change
            with pytest.raises(StoreReadOnly):
                async with client.worker(hello):
                    pytest.fail("it serves")


@pytest.mark.slow
@pytest.mark.parametrize(("minutes", "ahead"), [(3, "behind"), (-3, "ahead of")])
async def test_clock_that_is_minutes_off_is_refused(minutes: int, ahead: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = SystemClock.machine_now
    with server() as node:
        async with connect(node.url) as client:
            await client.stats()
        monkeypatch.setattr(SystemClock, "machine_now", lambda self: now(self) - 60 * minutes)  # type: ignore[no-any-return]
        error = await error_of(node.url)
    assert isinstance(error, StoreUnfit)
    assert re.search(rf"the clock of this machine is 1(79|80) s {ahead} that of the NATS server", str(error))


@pytest.mark.slow
async def test_clock_that_is_set_while_a_worker_runs_is_said_and_work_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store_module, "CLOCK_SECONDS", 0.2)
    now = SystemClock.machine_now
    with server() as node:
        async with connect(node.url) as client, client.worker(hello):
            assert await client.run(hello, "A") == "Hello, A!"
            monkeypatch.setattr(SystemClock, "machine_now", lambda self: now(self) + 180)  # type: ignore[no-any-return]
            async with asyncio.timeout(10):
                while "the clock of this machine is 180 s ahead of that of the NATS server" not in caplog.text:
                    await asyncio.sleep(0.05)
            assert await client.run(hello, "B") == "Hello, B!"


@pytest.mark.slow
async def test_missing_stream_is_refused_and_not_made_anew() -> None:
    with server() as node:
        async with connect(node.url) as client, client.worker(hello):
            assert await client.run(hello, "A") == "Hello, A!"
        async with await nats.connect(node.url) as raw:
            await raw.jetstream(timeout=60).delete_stream("PERDURE_K_1")
        error = await error_of(node.url)
        assert isinstance(error, StoreUnfit)
        assert "streams are missing: PERDURE_K_1: restore them from a backup; they are not created again" in str(error)


@pytest.mark.slow
async def test_stream_with_other_settings_is_refused() -> None:
    with server() as node:
        async with connect(node.url) as client:
            await client.stats()
        async with await nats.connect(node.url) as raw:
            config = (await raw.jetstream(timeout=60).stream_info("PERDURE_J_0")).config
            config.allow_direct = False
            await raw.jetstream(timeout=60).update_stream(config)
        error = await error_of(node.url)
    assert isinstance(error, StoreUnfit)
    assert "stream PERDURE_J_0 has allow_direct = False, and must have True" in str(error)


@pytest.mark.slow
async def test_full_stream_is_an_error_and_what_was_acknowledged_stays() -> None:
    with server(options=Options(storage_limit=4 << 20)) as node:
        async with connect(node.url, shards=1) as client:
            started: list[str] = []

            async def fill() -> None:
                for n in range(500):
                    handle = await client.start(hello.using(id=f"big-{n}"), "x" * 100_000)
                    started.append(handle.id)

            with pytest.raises(StoreFull, match="make room on its disk"):
                await asyncio.wait_for(fill(), 30)
            assert started
        async with connect(node.url) as client:
            found = {each.id async for each in client.list()}
            assert set(started) <= found


@pytest.mark.slow
async def test_value_above_the_payload_limit_is_refused_before_anything_is_recorded() -> None:
    with server() as node:
        async with connect(node.url, payload_limit=10_000) as client, client.worker(hello):
            with pytest.raises(PayloadTooLarge, match="where the limit is 10,000"):
                await client.run(hello, "x" * 20_000)
            assert (await client.stats()).total == 0


@pytest.mark.slow
async def test_store_behind_a_password_and_tls_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = certificates(tmp_path)
    options = Options(users={"bob": "s3cret"}, tls=made.tls(verify=False))
    with server(options=options) as node:
        url = node.url.replace("nats://", "nats://bob:s3cret@")
        async with connect(url, tls_ca=made.ca) as client, client.worker(hello):
            assert await client.run(hello, "A") == "Hello, A!"
        for name, value in {"USER": "bob", "PASSWORD": "s3cret", "CA": str(made.ca)}.items():
            monkeypatch.setenv(f"NATS_{name}", value)
        async with connect(node.url, index=tmp_path / "index.db") as client:
            assert (await client.stats()).total == 1
    assert (tmp_path / "index.db").exists()


# --- Ctrl-C while a store opens ---------------------------------------------------------------------------------------
async def interrupted(client: Client, rounds: int) -> list[str]:
    """Do what `asyncio.run` does when it is interrupted, so many rounds of the loop after a store began to open.

    Return what it would print: what tasks raise that were cancelled.
    """
    using = asyncio.create_task(client.operations.open())
    for _ in range(rounds):
        await asyncio.sleep(0)
    tasks = [each for each in asyncio.all_tasks() if each is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert using.done()
    return [repr(error) for task in tasks if not task.cancelled() and (error := task.exception()) is not None]


@pytest.mark.parametrize("kind", ["refuses", "is silent"])
async def test_nothing_is_said_when_a_store_that_opens_is_interrupted_at_any_moment(kind: str) -> None:
    said: dict[int, list[str]] = {}
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if kind == "is silent":
            listening.listen(100)
        port = listening.getsockname()[1]
        for rounds in range(25):
            if found := await interrupted(connect(f"nats://127.0.0.1:{port}"), rounds):
                said[rounds] = found
    assert said == {}
