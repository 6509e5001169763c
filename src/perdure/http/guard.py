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
    """Refuses requests of others. `names` are those that the `Host` header may have; `origin` is that of its pages.

    `bound`: the address at which a request arrived is a name too.
    """

    def __init__(self, names: Collection[str], *, origin: str | None = None, bound: bool = False) -> None:
        self._names = frozenset(each.lower() for each in names)
        self._origin = origin
        self._bound = bound

    def check(self, request: Request) -> None:
        """Raise a `Problem` for a request that a server without tokens must not answer."""
        for name in FORWARDED:
            if name in request.headers:
                text = f"the request came through a proxy ({name}): this server has no tokens, and serves its machine"
                raise Problem(403, "proxied", text)
        self.check_host(request)
        self.check_site(request)

    def check_host(self, request: Request) -> None:
        """Raise a `Problem` unless the request names this server."""
        hosts = request.headers.getlist("host")
        if len(hosts) != 1:
            raise Problem(400, "bad-host", "a request has one Host header")
        name = _name(hosts[0]).lower()
        if not (self._is_ours(name) or (self._bound and _is_bound(name, request))):
            known = ", ".join(sorted(self._names))
            more = "; others are named by --public-url or allowed_hosts" if self._bound else ""
            text = f"Host {hosts[0][:100]!r} is none of this server's names: {known}{more}"
            raise Problem(421, "wrong-host", text)

    def check_site(self, request: Request) -> None:
        """Raise a `Problem` for what a page of another site sends."""
        headers = request.headers
        site = headers.get("sec-fetch-site")
        if site not in (None, "same-origin", *(["none"] if request.method in READS else [])):
            raise Problem(403, "cross-site", f"a page of another site may not use this server (Sec-Fetch-Site: {site})")
        origin = headers.get("origin")
        ours = self._origin or f"{request.url.scheme}://{headers.get('host', '')}"
        if origin is not None and origin.lower() != ours.lower():
            raise Problem(403, "cross-site", f"a page of {origin[:100]} may not use this server")

    def _is_ours(self, name: str) -> bool:
        """Report whether a host is this one. Nobody's DNS has a say about an address of loopback."""
        return name in self._names or (self._names >= LOCAL_NAMES and is_loopback(name))


def _is_bound(name: str, request: Request) -> bool:
    """Report whether a host is the address at which a request arrived."""
    server = request.scope.get("server")
    return bool(server) and name.removeprefix("[").removesuffix("]") == str(server[0]).lower()


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
