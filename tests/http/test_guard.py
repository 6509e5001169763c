"""A server without tokens answers programs of its machine, and nobody else: attacks, each a test."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from perdure import connect, http
from perdure.errors import InvalidOption
from perdure.http.bodies import BODY_LIMIT_BYTES
from perdure.http.exact import PREFIX
from perdure.http.server import Server, address_of
from tests.http.conftest import Site, site_on
from tests.http.programs import WORKFLOWS
from tests.http.test_routes import problem

PATHS = ("/health/live", "/api/workflows", "/api/workflows/add/invoke", "/nothing")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("headers", "status", "kind"),
    [
        ({"X-Forwarded-For": "127.0.0.1"}, 403, "proxied"),
        ({"Forwarded": "for=127.0.0.1"}, 403, "proxied"),
        ({"Via": "1.1 proxy"}, 403, "proxied"),
        ({"Host": "evil.example"}, 421, "wrong-host"),
        ({"Host": "localhost.evil.example"}, 421, "wrong-host"),
        ({"Host": "[::1].evil.example"}, 421, "wrong-host"),
        ({"Host": "127.0.0.1.evil.example:80"}, 421, "wrong-host"),
        ({"Host": ""}, 421, "wrong-host"),
        ({"Origin": "null"}, 403, "cross-site"),
        ({"Origin": "https://evil.example"}, 403, "cross-site"),
        ({"Origin": "http://localhost:3000"}, 403, "cross-site"),
        ({"Sec-Fetch-Site": "cross-site"}, 403, "cross-site"),
        ({"Sec-Fetch-Site": "same-site"}, 403, "cross-site"),
    ],
)
async def test_request_of_others_is_refused(
    memory_site: Site, path: str, headers: dict[str, str], status: int, kind: str
) -> None:
    for response in (
        await memory_site.http.get(path, headers=headers),
        await memory_site.http.post(path, json=3, headers=headers),
    ):
        assert problem(response) == (status, kind)
        assert not [name for name in response.headers if name.startswith("access-control")]
    assert (await memory_site.get("/api/workflows/stats")).json()["total"] == 0


async def test_page_of_the_server_itself_may_use_it(memory_site: Site) -> None:
    base = str(memory_site.server.address)
    headers = {"Origin": base, "Sec-Fetch-Site": "same-origin"}
    assert (await memory_site.post("/api/workflows/add/invoke", 3, headers=headers)).status_code == 202
    assert (await memory_site.get("/api/workflows", headers={"Sec-Fetch-Site": "none"})).status_code == 200
    refused = await memory_site.post("/api/workflows/add/invoke", 3, headers={"Sec-Fetch-Site": "none"})
    assert problem(refused) == (403, "cross-site")
    port = memory_site.server.address.port
    for name in ("localhost", "LOCALHOST", f"127.0.0.1:{port}", f"[::1]:{port}"):
        assert (await memory_site.get("/api/workflows", headers={"Host": name})).status_code == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "json"]
)
async def test_write_needs_json_which_a_form_of_another_page_cannot_send(memory_site: Site, kind: str) -> None:
    response = await memory_site.send("/api/workflows/add/invoke", "3", content_type=kind)
    assert problem(response) == (415, "wrong-content-type")
    response = await memory_site.http.post("/api/workflows/x/pause")
    assert problem(response) == (415, "wrong-content-type")
    assert "application/json" in response.json()["detail"]


async def test_preflight_of_another_page_gets_nothing(memory_site: Site) -> None:
    headers = {"Access-Control-Request-Method": "POST"}
    response = await memory_site.http.options("/api/workflows/add/invoke", headers=headers)
    assert problem(response) == (405, "wrong-method")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("text", ["0.0.0.0:0", "192.168.1.1:0", "example.com:0", "[::]:0"])
async def test_server_without_tokens_listens_on_this_machine_only(text: str) -> None:
    async with connect("memory:") as client:
        with pytest.raises(InvalidOption, match="no tokens: make one with `perdure token add`"):
            await Server(http.app(client), address_of(text)).__aenter__()


@pytest.mark.parametrize("text", ["", "x", "1:2:3", "localhost", "65536", "-1", "unix:", "::1:80", "host:port"])
def test_wrong_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidOption, match="is no address"):
        address_of(text)


async def test_socket_file_is_for_its_owner_and_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "perdure.sock"
    async with AsyncExitStack() as parts:
        site = await site_on(parts, "memory:", *WORKFLOWS, address=f"unix:{path}")
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert (await site.post("/api/workflows/add/invoke?wait=30", 3)).json()["result"] == 4
        with pytest.raises(InvalidOption, match="another program listens there"):
            await site_on(parts, "memory:", address=f"unix:{path}")
        assert (await site.get("/health")).status_code == 200
    assert not path.exists()


async def test_socket_file_that_a_dead_server_left_is_replaced_and_other_files_are_not(tmp_path: Path) -> None:
    path = tmp_path / "perdure.sock"
    async with AsyncExitStack() as parts:
        await site_on(parts, "memory:", address=f"unix:{path}")
        os.link(path, tmp_path / "kept")
    os.rename(tmp_path / "kept", path)
    async with AsyncExitStack() as parts:
        site = await site_on(parts, "memory:", address=f"unix:{path}")
        assert (await site.get("/health")).status_code == 200
    path.write_text("mine")
    async with AsyncExitStack() as parts:
        with pytest.raises(InvalidOption, match="cannot listen"):
            await site_on(parts, "memory:", address=f"unix:{path}")
    assert path.read_text() == "mine"


async def test_port_in_use_is_a_clear_error(memory_site: Site) -> None:
    async with AsyncExitStack() as parts:
        with pytest.raises(InvalidOption, match="another program listens there: choose another port"):
            await site_on(parts, "memory:", address=str(memory_site.server.address.port))


# --- bodies -----------------------------------------------------------------------------------------------------------
async def test_hostile_bodies_are_refused_and_change_nothing(memory_site: Site) -> None:
    path = "/api/workflows/echo/invoke"
    deep, wide = "[" * 100_000 + "]" * 100_000, "[" + "[]," * 100_000 + "[]]"
    assert problem(await memory_site.send(path, deep)) == (400, "bad-json")
    assert problem(await memory_site.send(path, "[" * 66 + "]" * 66)) == (400, "bad-json")
    assert problem(await memory_site.send(path, '{"a":' * 66 + "1" + "}" * 66)) == (400, "bad-json")
    assert problem(await memory_site.send(path, "{")) == (400, "bad-json")
    assert problem(await memory_site.send(path, b"\xff")) == (400, "bad-json")
    assert problem(await memory_site.send(path, '"\\ud800"')) == (400, "bad-json")
    assert problem(await memory_site.send(path, "1" * 100)) in ((400, "bad-json"), (422, "value-refused"))
    assert problem(await memory_site.send(path, "1", content_encoding="gzip")) == (415, "encoded-body")
    assert problem(await memory_site.send(path, "1" * (4 * 1024 * 1024 + 1))) == (413, "too-large")
    assert problem(await memory_site.send("/api/workflows/x/restart", deep)) == (400, "bad-json")
    assert (await memory_site.get("/api/workflows/stats")).json()["total"] == 0
    assert (await memory_site.send(path, wide)).status_code == 202
    brackets = '"' + "[" * 1_000 + '\\"]"'
    assert (await memory_site.send(path, brackets)).status_code == 202


async def test_body_that_was_written_to_take_long_does_not(memory_site: Site) -> None:
    """A pattern that looked for the ends of strings took a time quadratic in the length: hours for this one."""
    attack = "[" * 66 + '"' + '\\"' * 1_000_000
    assert problem(await memory_site.send("/api/workflows/echo/invoke", attack)) == (400, "bad-json")


async def test_client_that_goes_away_while_it_sends_is_no_error(
    memory_site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    address = memory_site.server.address
    _, writer = await asyncio.open_connection(address.host, address.port)
    head = b"POST /api/workflows/echo/invoke HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(head + b"Content-Length: 10\r\n\r\n12")
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.close()
    await writer.wait_closed()
    await asyncio.sleep(0.05)
    assert (await memory_site.get("/health")).status_code == 200
    assert not [each for each in caplog.records if each.levelname == "ERROR"]


async def test_server_that_stops_while_a_body_arrives_says_so(
    memory_site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    address = memory_site.server.address
    reader, writer = await asyncio.open_connection(address.host, address.port)
    head = b"POST /api/workflows/echo/invoke HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(head + b"Content-Length: 10\r\n\r\n12")
    await asyncio.sleep(0.05)
    await memory_site.server.stop()
    assert b" 503 " in await reader.readline()
    writer.close()
    assert not [each for each in caplog.records if each.levelname == "ERROR"]


@pytest.mark.parametrize("query", ["id=%FF", "key=%FE", "tag=%FF:a", "%FF=1", "&".join(["tag=a:b"] * 101)])
async def test_query_that_is_not_utf8_or_too_long_is_refused(memory_site: Site, query: str) -> None:
    assert problem(await memory_site.post(f"/api/workflows/add/invoke?{query}", 1)) == (400, "bad-query")


async def test_every_address_of_loopback_is_served(memory_site: Site) -> None:
    for name in ("127.0.0.2", "127.1.2.3:8080", "[::1]:1"):
        assert (await memory_site.get("/health", headers={"Host": name})).status_code == 200
    assert problem(await memory_site.get("/health", headers={"Host": "10.0.0.1"})) == (421, "wrong-host")


async def test_socket_file_of_a_successor_stays(tmp_path: Path) -> None:
    path = f"{tmp_path}/perdure.sock"
    async with AsyncExitStack() as parts:
        first = await site_on(parts, "memory:", address=f"unix:{path}")
        os.unlink(path)
        second = await site_on(parts, "memory:", address=f"unix:{path}")
        await first.server.stop()
        assert (await second.get("/health")).status_code == 200


async def test_body_without_a_length_is_bounded_too(memory_site: Site) -> None:
    async def pieces():
        for _ in range(5):
            yield b"1" * 1024 * 1024

    response = await memory_site.http.post(
        "/api/workflows/echo/invoke", content=pieces(), headers={"content-type": "application/json"}
    )
    assert problem(response) == (413, "too-large")


async def test_only_what_brings_values_may_be_larger(memory_site: Site) -> None:
    content, headers = b"\0" * (BODY_LIMIT_BYTES + 1), {"content-type": "application/msgpack"}
    assert problem(await memory_site.http.post(f"{PREFIX}look", content=content, headers=headers)) == (413, "too-large")
    found = await memory_site.http.post(f"{PREFIX}start", content=content, headers=headers)
    assert problem(found) == (422, "value-refused")  # it was read


async def test_bodies_that_anybody_may_send_are_bounded_together(
    memory_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.http.bodies.UNKNOWN_LIMIT_BYTES", 100)
    arrived, rest = asyncio.Event(), asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"1" * 60
        arrived.set()
        await rest.wait()
        yield b"1"

    async def post(content: Any) -> int:
        return (await memory_site.http.post("/api/hooks/echo", content=content)).status_code

    refused = 404  # there is no such hook, which is looked at once the body is there
    first = asyncio.create_task(post(pieces()))
    await arrived.wait()
    while await post(b"1" * 41) != 429:  # until the first piece of the other has arrived
        await asyncio.sleep(0.01)
    assert await post(b"1" * 40) == refused
    assert (await memory_site.post("/api/workflows/echo/invoke", "1" * 100)).status_code == 202  # of a caller
    rest.set()
    assert await first == refused
    assert await post(b"1" * 100) == refused
    assert await post(b"1" * 101) == 429


async def test_body_that_does_not_arrive_is_given_up(memory_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.http.bodies.BODY_SECONDS", 0.2)
    address = memory_site.server.address
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(
        b"POST /api/workflows/echo/invoke HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 10\r\n\r\n1"
    )
    assert b" 408 " in await reader.readline()
    await reader.read()  # the connection is closed
    writer.close()


async def raw(site: Site, *pieces: bytes) -> bytes:
    """Send bytes as they are, and return what comes until the server closes the connection."""
    address = site.server.address
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.01)
        return await reader.read()
    finally:
        writer.close()


async def test_head_that_is_too_large_is_refused(memory_site: Site) -> None:
    begin = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: "
    assert (await raw(memory_site, begin, *[b"a" * 20_000] * 3)).startswith(b"HTTP/1.1 431 ")
    names = b"".join(b"X-%d: a\r\n" % n for n in range(5_000))
    assert (await raw(memory_site, b"GET /health HTTP/1.1\r\n", names)).startswith(b"HTTP/1.1 431 ")
    assert (await memory_site.get("/health", headers={"X-Long": "a" * 20_000})).status_code == 200


async def test_head_that_does_not_arrive_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.http.server.HEAD_SECONDS", 0.1)
    async with AsyncExitStack() as parts:
        site = await site_on(parts, "memory:")
        for pieces in ((), (b"GET /hea",), (b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /he",)):
            assert b"HTTP/1.1 408 " in await raw(site, *pieces)
        assert (await site.get("/health")).status_code == 200
        await asyncio.sleep(0.2)
        assert (await site.get("/health")).status_code == 200  # the connection was idle, which is no head that is late


# --- mounted ----------------------------------------------------------------------------------------------------------
async def test_mounted_application_works_below_its_path() -> None:
    async with AsyncExitStack() as parts:
        site = await site_on(parts, "memory:", *WORKFLOWS)
        mounted = http.app(site.client, open=True)
        outer = Starlette(routes=[Mount("/per dure", app=mounted)])
        server = await parts.enter_async_context(Server(mounted, address_of("0")))
        vars(server)["_server"].config.loaded_app = outer
        base = f"{server.address}/per%20dure"
        found = (await site.http.post(f"{base}/api/workflows/add/invoke", json=3)).json()
        assert found["status_url"].startswith("/per%20dure/api/workflows/")
        ended = await site.http.get(f"{server.address}{found['result_url']}?wait=30")
        assert ended.json()["result"] == 4
        assert (await site.http.get(base + "/health", headers={"Host": "elsewhere"})).status_code == 200


def test_options_of_the_application_are_checked() -> None:
    client = connect("memory:")
    wrong: list[dict[str, Any]] = [{"max_waiting": 0}, {"max_body": 0}]
    for options in wrong:
        with pytest.raises(InvalidOption, match="give at least 1"):
            http.app(client, **options)
