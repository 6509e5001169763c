# pyright: reportUnknownMemberType=false
"""Who is let in: what URL, options and environment say, and that real servers open to it and to nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nats
import nats.errors
import pytest
from nats.aio.client import Client as NATS

from examples.services.nats_server import Options, server
from perdure.connect import without_secrets
from perdure.errors import BadUrl, InvalidOption
from perdure.stores.jetstream.wire.access import Access, endpoint_of
from tests.nats.credentials import certificates, operator_settings, public_key, seed_of

# --- what is said -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "servers"),
    [
        ("nats://n1", ("nats://n1:4222",)),
        ("nats://n1:5000/", ("nats://n1:5000",)),
        ("nats://n1:1,n2:2,n3", ("nats://n1:1", "nats://n2:2", "nats://n3:4222")),
        ("nats://n1,nats://n2", ("nats://n1:4222", "nats://n2:4222")),
        ("nats://n1,n1", ("nats://n1:4222",)),
        ("tls://n1", ("tls://n1:4222",)),
        ("nats://[::1]:5000,127.0.0.1", ("nats://[::1]:5000", "nats://127.0.0.1:4222")),
    ],
)
def test_servers_of_a_url(url: str, servers: tuple[str, ...]) -> None:
    assert endpoint_of(url, Access(), {}).servers == servers


@pytest.mark.parametrize(
    "url",
    [
        "nats:",
        "nats://",
        "nats://,",
        "nats://n1,,n2",
        "nats://n1:port",
        "nats://n1:0",
        "nats://n1:70000",
        "nats://n1/stream",
        "nats://n1?tls=1",
        "nats://n 1",
        "nats://a:b@n1,c:d@n2",
        "ws://n1",
        f"nats://{','.join(f'n{n}' for n in range(65))}",
    ],
)
def test_url_that_names_no_server_is_refused_without_showing_a_secret(url: str) -> None:
    with pytest.raises(BadUrl) as raised:
        endpoint_of(url.replace("://n", "://bob:hunter2@n"), Access(), {})
    assert "hunter2" not in str(raised.value)


ODD = ("/", "@", ":", ",", "%", "?", "#", " ", "/@,:%", "@n2,", ",,", "://", "%zz", "ü", "[", "]")
RAW = [f"h1n{each}t9r" for each in ODD]
"""Passwords as they are, not as they are to be written in a URL."""
FORMS = [
    "nats://me:{}@n1",
    "nats://me:{}@n1,n2:1",
    "nats://n1,me:{}@n2",
    "tls://{}@n1",
    "nats:me:{}@n1",
    "nats://me:{}/",
]


@pytest.mark.parametrize("password", RAW)
@pytest.mark.parametrize("form", FORMS)
def test_password_is_never_shown_whatever_is_in_it(password: str, form: str) -> None:
    """It is taken as it is, or refused with a word on how to write it; it is never taken for something else."""
    if "@" in password and "@" not in form:
        pytest.skip("what follows the @ is a server")
    url = form.format(password)
    said: str
    try:
        endpoint = endpoint_of(url, Access(), {})
        said = repr(endpoint)
        user, secret, lone = endpoint.access.user, endpoint.access.password, endpoint.access.token
        assert password in (secret, lone, f"{user}:{secret}")
    except BadUrl as error:
        said = "".join(traceback.format_exception(error)).rpartition("BadUrl: ")[2]
        said += "" if error.__suppress_context__ or error.__context__ is None else password
    shown = said + (without_secrets(url) if "@" in form else "")
    shown = shown if ":" not in password or form != "tls://{}@n1" else shown.replace("h1n:***", "")  # that is a user
    assert "h1n" not in shown
    assert "t9r" not in shown


@pytest.mark.parametrize("password", RAW)
def test_password_that_is_percent_encoded_is_taken_as_it_is(password: str) -> None:
    endpoint = endpoint_of(f"nats://me:{quote(password, safe='')}@n1,n2", Access(), {})
    assert (endpoint.access.user, endpoint.access.password) == ("me", password)
    assert endpoint.servers == ("nats://n1:4222", "nats://n2:4222")


@pytest.mark.parametrize(
    ("url", "given", "environment", "options"),
    [
        ("nats://n1", Access(), {}, {}),
        ("nats://bob:p%40ss%3A@n1,n2", Access(), {}, {"user": "bob", "password": "p@ss:"}),
        ("nats://bob:s3cret@n1,bob:s3cret@n2", Access(), {}, {"user": "bob", "password": "s3cret"}),
        ("nats://s3cret@n1", Access(), {}, {"token": "s3cret"}),
        ("nats://n1", Access(user="bob", password="s3cret"), {}, {"user": "bob", "password": "s3cret"}),
        ("nats://n1", Access(token="s3cret"), {"NATS_USER": "eve", "NATS_PASSWORD": "xyz"}, {"token": "s3cret"}),
        ("nats://n1", Access(), {"NATS_USER": "eve", "NATS_PASSWORD": "xyz"}, {"user": "eve", "password": "xyz"}),
        ("nats://s3cret@n1", Access(), {"NATS_USER": "eve", "NATS_PASSWORD": "xyz"}, {"token": "s3cret"}),
        ("nats://n1", Access(), {"NATS_TOKEN": "s3cret"}, {"token": "s3cret"}),
        ("nats://n1", Access(nkey="SUABC"), {}, {"nkeys_seed_str": "SUABC"}),
    ],
)
def test_who_connects_is_said_once(
    url: str, given: Access, environment: dict[str, str], options: dict[str, Any]
) -> None:
    endpoint = endpoint_of(url, given, environment)
    assert endpoint.options() == options
    assert not any(each in server for each in options.values() for server in endpoint.servers)
    assert not any(f"'{each}'" in repr(endpoint) for each in options.values())


@pytest.mark.parametrize(
    ("url", "given", "why"),
    [
        ("nats://bob:x@n1", Access(token="t"), "has credentials, and so have the options"),
        ("nats://n1", Access(user="bob", token="t"), "more than one kind of credentials, user and token"),
        ("nats://n1", Access(password="x"), "needs user"),
        ("nats://n1", Access(tls_key="k.pem"), "needs tls_cert"),
        ("nats://n1", Access(tls=ssl.create_default_context(), tls_ca="ca.pem"), "is a complete context"),
        ("nats://n1", Access(credentials="missing.creds"), "there is no file .*missing.creds"),
        ("nats://n1", Access(nkey="missing.nk"), "there is no file .*missing.nk"),
        ("nats://n1", Access(tls_ca="missing.pem"), "there is no file .*missing.pem"),
        ("nats://n1", Access(tls_ca=__file__), "these are not PEM certificates"),
    ],
)
def test_options_that_cannot_work_are_refused(url: str, given: Access, why: str) -> None:
    with pytest.raises(InvalidOption, match=why):
        endpoint_of(url, given, {}).options()


# --- and what real servers make of it ---------------------------------------------------------------------------------
SEED = seed_of()


def with_password(_: Path) -> tuple[Options, Access]:
    return Options(users={"bob": "s3cret"}), Access(user="bob", password="s3cret")


def with_token(_: Path) -> tuple[Options, Access]:
    return Options(token="s3cret"), Access(token="s3cret")


def with_nkey(_: Path) -> tuple[Options, Access]:
    return Options(nkeys=[public_key(SEED)]), Access(nkey=SEED)


def with_nkey_file(folder: Path) -> tuple[Options, Access]:
    (folder / "user.nk").write_text(SEED)
    return Options(nkeys=[public_key(SEED)]), Access(nkey=str(folder / "user.nk"))


def with_credentials(folder: Path) -> tuple[Options, Access]:
    settings = operator_settings(folder / "user.creds")
    return Options(more=settings), Access(credentials=str(folder / "user.creds"))


def with_authority(folder: Path) -> tuple[Options, Access]:
    made = certificates(folder)
    return Options(tls=made.tls(verify=False)), Access(tls_ca=str(made.ca))


def with_certificate(folder: Path) -> tuple[Options, Access]:
    made = certificates(folder)
    access = Access(tls_ca=str(made.ca), tls_cert=str(made.client_cert), tls_key=str(made.client_key))
    return Options(tls=made.tls(verify=True)), access


def with_context(folder: Path) -> tuple[Options, Access]:
    made = certificates(folder)
    return Options(tls=made.tls(verify=False)), Access(tls=ssl.create_default_context(cafile=str(made.ca)))


WAYS = [
    with_password,
    with_token,
    with_nkey,
    with_nkey_file,
    with_credentials,
    with_authority,
    with_certificate,
    with_context,
]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
async def test_server_lets_in_who_shows_what_it_wants_and_nobody_else(
    way: Callable[[Path], tuple[Options, Access]], tmp_path: Path
) -> None:
    options, access = way(tmp_path)
    with server(tmp_path / "server", options=options) as node:
        endpoint = endpoint_of(node.url, access, {})
        async with await nats.connect([*endpoint.servers], **endpoint.options()) as client:
            assert (await client.jetstream(timeout=60).account_info()).streams == 0
        stranger = NATS()
        with pytest.raises((nats.errors.Error, OSError)):
            await stranger.connect(node.url, allow_reconnect=False, connect_timeout=2, error_cb=drop)
        with contextlib.suppress(TimeoutError):  # after a handshake that failed, nats-py waits for ever
            await asyncio.wait_for(stranger.close(), 0.5)


async def drop(_: Exception) -> None:
    """The error is raised as well."""
