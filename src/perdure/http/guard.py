"""Who may reach a server without tokens: programs of this machine, and no web page.

Such a server listens on loopback or a socket file only. A proxy would make everybody a local program, so a request that
came through one is refused. A page in a browser of this machine could send requests too; browsers say where they come
from, and a name that an attacker's DNS points to this machine is not a name of it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from starlette.requests import Request

from perdure.http.problems import Problem

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""What a client of this machine calls it."""
FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")
"""Headers that proxies add."""
READS = ("GET", "HEAD")
PORT_LIMIT = 65_535
"""The greatest port."""


class Guard:
    """Refuses requests of others. `names` are those that the `Host` header may have."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(each.lower() for each in names)

    def check(self, request: Request) -> None:
        """Raise a `Problem` for a request that must not be answered."""
        headers = request.headers
        for name in FORWARDED:
            if name in headers:
                text = f"the request came through a proxy ({name}): this server has no tokens, and serves its machine"
                raise Problem(403, "proxied", text)
        host = headers.get("host", "")
        if len(headers.getlist("host")) != 1:
            raise Problem(400, "bad-host", "a request has one Host header")
        if not self._is_ours(_name(host).lower()):
            known = ", ".join(sorted(self._names))
            raise Problem(421, "wrong-host", f"Host {host[:100]!r} is none of this server's names: {known}")
        site = headers.get("sec-fetch-site")
        if site not in (None, "same-origin", *(["none"] if request.method in READS else [])):
            raise Problem(403, "cross-site", f"a page of another site may not use this server (Sec-Fetch-Site: {site})")
        origin = headers.get("origin")
        if origin is not None and origin.lower() != f"{request.url.scheme}://{host}".lower():
            raise Problem(403, "cross-site", f"a page of {origin[:100]} may not use this server")

    def _is_ours(self, name: str) -> bool:
        """Report whether a host is this one. Nobody's DNS has a say about an address of loopback."""
        return name in self._names or (self._names == LOCAL_NAMES and is_loopback(name))


def is_loopback(host: str) -> bool:
    """Report whether a host is a loopback address."""
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def _name(host: str) -> str:
    """Return the name in a `Host` header, without the port."""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host
