"""Server addresses and credentials, from the URL, the options of `connect` and the environment. Opens no connection.

Credentials are given by the options or by the URL, else by the environment variables that the `nats` tool uses too. A
secret never becomes part of a server's address, so no error and no log line can show it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import ssl
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict, replace
from yarl import URL

from perdure.errors import BadUrl, InvalidOption

DEFAULT_PORT = 4222
SERVERS_LIMIT = 64
ENVIRONMENT = {
    "user": "NATS_USER",
    "password": "NATS_PASSWORD",
    "token": "NATS_TOKEN",
    "nkey": "NATS_NKEY",
    "credentials": "NATS_CREDS",
    "tls_ca": "NATS_CA",
    "tls_cert": "NATS_CERT",
    "tls_key": "NATS_KEY",
}
"""The environment variable of each option, used if neither `connect` nor the URL gives it."""

_ESCAPES = "/ as %2F, @ as %40, : as %3A, a comma as %2C, ? as %3F, # as %23 and % as %25"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(//)?")
_ADDRESS = re.compile(r"(\[[^\]]*\]|[^:]*)(:[0-9]*)?")
_WAYS = ("user", "token", "nkey", "credentials")
_SEED = "SU"


class Access(Struct, frozen=True, kw_only=True):
    """Credentials and TLS options. Files are paths; `nkey` is the seed of a user's key, or the file that holds it."""

    user: str | None = None
    password: str | None = None
    token: str | None = None
    nkey: str | None = None
    credentials: str | None = None
    tls: ssl.SSLContext | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None

    def __repr__(self) -> str:
        given = [name for name, value in asdict(self).items() if value is not None]
        return f"Access({', '.join(given)})"  # without the secrets

    def options(self, *, secure: bool) -> dict[str, Any]:
        """Return the options for nats-py. `InvalidOption` if a file is missing or unusable."""
        found: dict[str, Any] = {}
        if self.user is not None:
            found |= {"user": self.user, "password": self.password or ""}
        if self.token is not None:
            found["token"] = self.token
        if self.credentials is not None:
            _needs_nkeys("credentials")
            found["user_credentials"] = _file("credentials", self.credentials)
        if self.nkey is not None:
            _needs_nkeys("nkey")
            if self.nkey.startswith(_SEED):
                found["nkeys_seed_str"] = self.nkey
            else:
                found["nkeys_seed"] = _file("nkey", self.nkey)
        context = self._context(secure=secure)
        if context is not None:
            found["tls"] = context
        return found

    def _context(self, *, secure: bool) -> ssl.SSLContext | None:
        if self.tls is not None:
            return self.tls
        if not secure and self.tls_ca is None and self.tls_cert is None:
            return None
        ca = None if self.tls_ca is None else _file("tls_ca", self.tls_ca)
        cert = None if self.tls_cert is None else _file("tls_cert", self.tls_cert)
        key = None if self.tls_key is None else _file("tls_key", self.tls_key)
        try:
            context = ssl.create_default_context(cafile=ca)
            if cert is not None:
                context.load_cert_chain(cert, key)
        except (ssl.SSLError, OSError) as error:
            text = "connect(tls_ca=…, tls_cert=…, tls_key=…): these are not PEM certificates with a matching key"
            raise InvalidOption(f"{text}: {error}") from error
        return context


def access_of(given: Mapping[str, Any]) -> Access:
    """Return the access options of `connect`. `InvalidOption` if one has the wrong type."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        is_file = name in ("credentials", "tls_ca", "tls_cert", "tls_key", "nkey")
        expected, what = (ssl.SSLContext, "an ssl.SSLContext") if name == "tls" else (str, "a str")
        found[name] = str(value) if is_file and isinstance(value, PurePath) else value
        if not isinstance(found[name], expected):
            kind = type(value).__name__
            raise InvalidOption(f"connect({name}=…): {kind} given where {what} is expected")
    return Access(**found)


class Endpoint(Struct, frozen=True):
    """The servers of a URL, in the form of nats-py, and the credentials."""

    servers: tuple[str, ...]
    access: Access
    secure: bool = False

    def options(self) -> dict[str, Any]:
        """Return the options for nats-py's `connect`, without the servers."""
        return self.access.options(secure=self.secure)


def endpoint_of(url: str, given: Access, environment: Mapping[str, str]) -> Endpoint:
    """Return the endpoint of `nats://[USER[:PASSWORD]@]HOST[:PORT][,HOST[:PORT]…]`, with options and environment.

    A lone USER is a token, as for the `nats` tool. `tls://` requires TLS. Raises `BadUrl` or `InvalidOption`.
    """
    scheme, _, rest = url.partition("://")
    if not rest or scheme not in ("nats", "tls"):
        raise BadUrl(
            f"{shown(url)!r} names no server: write nats://HOST:PORT, or several as nats://HOST:PORT,HOST:PORT"
        )
    written, at, after = rest.rpartition("@")[0], "@" in rest, rest
    if at:
        written, _, after = rest.partition("@")
    if any(each in written for each in "/?#") or ("@" in after and "://" not in after and "," not in after):
        raise BadUrl(f"{shown(url)!r}: in a user, password or token, write {_ESCAPES}")
    hosts: list[str] = []
    for part in after.removesuffix("/").split(","):
        before, _, host = part.removeprefix(f"{scheme}://").rpartition("@")
        if "@" in part and before != (written or before or None):
            text = "the servers of a cluster share user and password: write them once, before the first server"
            raise BadUrl(f"{shown(url)!r}: {text}, with {_ESCAPES}")
        written = before or written
        hosts.append(_host(host.strip(), url))
    if len(hosts) > SERVERS_LIMIT:
        raise BadUrl(f"{shown(url)!r} names {len(hosts)} servers: {SERVERS_LIMIT} are enough to find the others")
    access = _merged(_written(written, url), given, environment, url)
    return Endpoint(tuple(f"{scheme}://{host}" for host in dict.fromkeys(hosts)), access, scheme == "tls")


def _host(text: str, url: str) -> str:
    """Return the address of a server in the form of nats-py."""
    try:
        parts = URL(f"nats://{text}")
        host, port = parts.raw_host, parts.explicit_port
    except ValueError:  # its text may contain a secret
        host, port, parts = None, None, URL()
    has_more = parts.raw_path not in ("", "/") or parts.raw_query_string or parts.raw_fragment
    if not host or port == 0 or has_more or any(each.isspace() for each in text):
        where = shown(f"nats://{text}").removeprefix("nats://")
        raise BadUrl(f"{shown(url)!r}: {where!r} is not HOST:PORT, as in nats://127.0.0.1:{DEFAULT_PORT}") from None
    return f"[{host}]:{port or DEFAULT_PORT}" if ":" in host else f"{host}:{port or DEFAULT_PORT}"


def _written(text: str, url: str) -> Access:
    """Return the credentials before the @ of a URL: a user and a password, or a token."""
    if not text:
        return Access()
    try:
        parts = URL(f"nats://{text}@host")
    except ValueError:  # its text may contain a secret
        raise BadUrl(f"{shown(url)!r}: in a user, password or token, write {_ESCAPES}") from None
    if parts.password is None:
        return Access(token=parts.user)
    return Access(user=parts.user or "", password=parts.password)


def _merged(written: Access, given: Access, environment: Mapping[str, str], url: str) -> Access:
    if asdict(written) != asdict(Access()) and _ways(given):
        raise InvalidOption(
            f"{shown(url)!r} has credentials, and so have the options of connect: give only one of them"
        )
    found = replace(given, **{name: value for name, value in asdict(written).items() if value is not None})
    named = {name: value for name, variable in ENVIRONMENT.items() if (value := environment.get(variable))}
    if _ways(found):
        named = {name: value for name, value in named.items() if name.startswith("tls_")}
    if found.tls is not None or found.tls_ca is not None or found.tls_cert is not None:
        named = {name: value for name, value in named.items() if not name.startswith("tls_")}
    found = replace(found, **named)
    _check(found)
    return found


def _ways(access: Access) -> list[str]:
    return [name for name in _WAYS if getattr(access, name) is not None]


def _check(access: Access) -> None:
    ways = _ways(access)
    if len(ways) > 1:
        raise InvalidOption(f"there is more than one kind of credentials, {' and '.join(ways)}: give connect one")
    if access.password is not None and access.user is None:
        raise InvalidOption("connect(password=…) needs user=…")
    if access.tls_key is not None and access.tls_cert is None:
        raise InvalidOption("connect(tls_key=…) needs tls_cert=…")
    if access.tls is not None and (access.tls_ca is not None or access.tls_cert is not None):
        raise InvalidOption(
            "connect(tls=…) is a complete context: load certificates into it, and omit tls_ca and tls_cert"
        )


def _file(option: str, path: str) -> str:
    found = os.path.abspath(os.path.expanduser(path))
    if not os.path.isfile(found):
        raise InvalidOption(f"connect({option}=…) or the environment's {ENVIRONMENT[option]}: there is no file {found}")
    return found


def _needs_nkeys(option: str) -> None:
    if importlib.util.find_spec("nkeys") is None:
        raise InvalidOption(f"connect({option}=…) needs the package nkeys: pip install 'perdure[nats]'")


def shown(url: str) -> str:
    """Return a server URL without secrets, for errors and logs, even if the URL is malformed.

    Hidden are everything before the last @ except the user's name, and whatever follows a colon and is not a port: it
    may be the password of a URL that lacks its server.
    """
    found = _SCHEME.match(url)
    scheme = found[0] if found else ""
    before, at, after = url[len(scheme) :].rpartition("@")
    user, colon, _ = before.partition(":")
    is_name = colon and all(each.isalnum() or each in "._-" for each in user)
    hidden = f"{user}:***@" if is_name else "***@" if at else ""
    servers: list[str] = []
    for part in after.split(","):
        server = re.split(r"[/?#]", part.removeprefix("nats://").removeprefix("tls://"), maxsplit=1)[0]
        address = _ADDRESS.fullmatch(server)
        if address is None:
            servers.append(server.partition(":")[0] + ":***")
            break
        servers.append(server)
    return scheme + hidden + ",".join(servers)
