"""Who makes a request: by a token, by a session of the page, by a site's own login, or as a program of this machine.

Whether a token is needed follows from the configuration and from the store, never from where a request comes from: a
store that has ever had a token serves nobody without one, until its servers are started anew on a store without any.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, MutableMapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

from msgspec import Struct
from starlette.requests import Request

from perdure.background import RateLimitedLog, Tasks
from perdure.errors import PerdureError, StoreError
from perdure.http.guard import Guard
from perdure.http.problems import Problem
from perdure.http.sessions import COOKIES, SECRET_HEADER, Session, Sessions
from perdure.operations.access import Access, Token, note_use, parts_of
from perdure.operations.port import Operations

FRESH_SECONDS = 2.0
"""How long tokens that were read are taken for the present ones; then they are read again beside the next request."""
STALE_SECONDS = 4.0
"""... and how long before a request waits until they are."""
READ_SECONDS = 5.0
"""... and how long it waits at most."""
GRACE_SECONDS = 60.0
"""How long tokens that were read hold while the store cannot be reached."""
USE_SECONDS = 60.0
"""How often it is recorded that a token is used."""
FAILURES_LIMIT = 10
"""Failed logins of one source within `FAILURES_SECONDS`; then it has to wait."""
FAILURES_SECONDS = 60.0
SOURCES_LIMIT = 10_000
"""Sources whose failed logins are counted; the one that failed longest ago is forgotten first."""
IPV6_SITE = 64
"""Bits of an IPv6 address that name a site: whoever has one address of it has all."""
SOCKET = "unix"
"""The source of a request over a socket file."""

Login = Callable[[MutableMapping[str, Any]], Awaitable[Access | None]]
"""A site's own login: tells from an ASGI scope who makes a request; None for nobody."""
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

log = logging.getLogger("perdure.http")

LOCAL = Access("local", "admin", payloads=True)
"""A program of this machine, where no token is needed."""
NOBODY = Access("nobody")
"""Who uses a route that anybody may use. What it shows or changes is guarded by the route."""


class Admitted(Struct, frozen=True):
    """Who makes a request, from where, and how to learn later whether that still holds."""

    access: Access
    source: str
    still: Callable[[], Awaitable[bool]]
    means: Literal["local", "token", "session", "login"] = "local"
    token: Token | None = None


class Gate(Protocol):
    """Admits requests."""

    @property
    def is_named(self) -> bool:
        """Whether callers have names of their own, so that their requests are audited and counted apart."""
        ...

    async def admit(self, request: Request) -> Admitted:
        """Return who makes a request, or raise a `Problem`."""
        ...

    async def check(self, request: Request) -> str:
        """Raise a `Problem` for a request that nobody may make; return its source. For routes that anybody may use."""
        ...

    def source_of(self, request: Request) -> str:
        """Return where a request comes from."""
        ...

    async def needs_name(self) -> bool:
        """Report whether nobody is served without a name."""
        ...

    async def aclose(self) -> None: ...


async def _always() -> bool:
    return True


class Open:
    """Admits whatever comes: what it is mounted in has checked it."""

    is_named = False

    async def admit(self, request: Request) -> Admitted:
        return Admitted(LOCAL, _peer(request), _always)

    async def check(self, request: Request) -> str:
        return _peer(request)

    def source_of(self, request: Request) -> str:
        return _peer(request)

    async def needs_name(self) -> bool:
        return False

    async def aclose(self) -> None:
        pass


class Sources:
    """Tells where requests come from. Only proxies that are trusted are believed."""

    def __init__(self, trusted: Collection[str] = ()) -> None:
        self._networks: list[Network] = [ipaddress.ip_network(each) for each in trusted if each != SOCKET]
        self._trusts_socket = SOCKET in trusted

    def source_of(self, request: Request) -> str:
        """Return the address of the client, or of the last proxy that is not trusted."""
        source = _peer(request)
        hops = ",".join(request.headers.getlist("x-forwarded-for")).split(",")
        while self._trusts(source) and hops:
            source = _plain(hops.pop().strip()) or source
        return source

    def _trusts(self, source: str) -> bool:
        if source == SOCKET:
            return self._trusts_socket
        try:
            address = ipaddress.ip_address(source)
        except ValueError:
            return False
        return any(address in each for each in self._networks)


def _peer(request: Request) -> str:
    client = request.scope.get("client")
    return SOCKET if not client or not client[0] else _plain(str(client[0]))


def _plain(source: str) -> str:
    """Return an address as others write it: an IPv4 one not as an IPv6 one, and without a port."""
    text = source.rpartition(":")[0] if source.count(":") == 1 or source.startswith("[") else source
    try:
        address = ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return source
    return str(address if address.version == 4 else address.ipv4_mapped or address)


class Failures:
    """Counts failed logins by source, never by token: nobody can lock another one out."""

    def __init__(self) -> None:
        self._failed: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def check(self, source: str) -> None:
        """Raise a `Problem` for a source that has failed too often."""
        count, since = self._failed.get(_site(source), (0, 0.0))
        left = since + FAILURES_SECONDS - time.monotonic()
        if count >= FAILURES_LIMIT and left > 0:
            again = {"Retry-After": str(int(left) + 1)}
            raise Problem(429, "too-many-failures", "too many failed logins from here: wait a while", headers=again)

    def count(self, source: str) -> None:
        """Count one that failed now."""
        now, site = time.monotonic(), _site(source)
        count, since = self._failed.get(site, (0, now))
        self._failed[site] = (count + 1, since) if since + FAILURES_SECONDS > now else (1, now)
        self._failed.move_to_end(site)
        if len(self._failed) > SOURCES_LIMIT:
            self._failed.popitem(last=False)


def _site(source: str) -> str:
    try:
        address = ipaddress.ip_address(source)
    except ValueError:
        return source
    return source if address.version == 4 else str(ipaddress.ip_network((address, IPV6_SITE), strict=False))


class Tokens:
    """The tokens that are accepted: those that are given, or else those of the store, read again and again."""

    def __init__(self, operations: Operations, given: Sequence[Token] | None, more: Sequence[Token] = ()) -> None:
        self._operations = operations
        self._is_given = given is not None
        self._more = tuple(more)
        self._known: dict[str, Token] = {each.id: each for each in (*(given or ()), *more)}
        self._read_at: float | None = None
        self._began_at = -GRACE_SECONDS  # when the last reading began, which may not have ended
        self._reading: asyncio.Task[None] | None = None
        self._tasks = Tasks(log)
        self._noted: dict[str, float] = {}

    async def known(self) -> dict[str, Token]:
        """Return the tokens by id; a `Problem` if the store has been away for too long."""
        if self._is_given:
            return self._known
        age = None if self._read_at is None else time.monotonic() - self._read_at
        if age is None or age > STALE_SECONDS:
            await self._read_after(time.monotonic())
        elif age > FRESH_SECONDS and (self._reading is None or self._reading.done()):
            self._reading = self._tasks.spawn(self._read(), name="reading tokens")
        if self._read_at is None or time.monotonic() - self._read_at > GRACE_SECONDS:
            raise Problem(503, "store-unavailable", "the tokens cannot be read", headers={"Retry-After": "1"})
        return self._known

    async def _read_after(self, asked: float) -> None:
        """Wait for a reading that begins after a time, successful or not."""
        deadline = asked + READ_SECONDS
        while self._began_at < asked and (left := deadline - time.monotonic()) > 0:
            if self._reading is None or self._reading.done():
                self._reading = self._tasks.spawn(self._read(), name="reading tokens")
            await asyncio.wait([self._reading], timeout=left)

    async def _read(self) -> None:
        self._began_at = began = time.monotonic()
        try:
            found = await self._operations.tokens()
        except PerdureError as error:
            log.warning("the tokens cannot be read: %s", error)
            return
        self._known = {each.id: each for each in (*found, *self._more)}
        self._read_at = began

    async def token(self, text: str, *, only_known: bool = False) -> Token | None:
        """Return the valid token that a text is; None if it is none.

        Unless `only_known`, one that was just made is read from the store.
        """
        parts = parts_of(text)
        if parts is None:
            return None
        found = (await self.known()).get(parts[0])
        if found is None and not self._is_given and not only_known:
            await self._read_after(time.monotonic())
            found = self._known.get(parts[0])
        if found is None or not found.is_proved_by(parts[1]) or not found.is_valid(datetime.now(UTC)):
            return None
        self._note(found)
        return found

    async def is_valid(self, id: str) -> bool:
        """Report whether a token of this id is valid now."""
        found = (await self.known()).get(id)
        return found is not None and found.is_valid(datetime.now(UTC))

    def _note(self, token: Token) -> None:
        now = time.monotonic()
        if self._is_given or token in self._more or self._noted.get(token.id, -USE_SECONDS) > now - USE_SECONDS:
            return
        self._noted[token.id] = now
        self._tasks.spawn(self._note_use(token.id), name="noting the use of a token")

    async def _note_use(self, id: str) -> None:
        try:
            await note_use(self._operations, id, datetime.now(UTC))
        except StoreError as error:
            log.info("the use of token %s is not recorded: %s", id, error)

    async def aclose(self) -> None:
        await self._tasks.cancel()


class ByToken:
    """Admits who shows a token or has a session; where there has never been a token, programs of this machine.

    `hosts` names what callers may call this server, which is checked unless it is None. `is_strict`: a token is needed,
    whether there is one or not.
    """

    def __init__(
        self,
        tokens: Tokens,
        sessions: Sessions,
        local: Guard,
        *,
        hosts: Guard | None,
        sources: Sources,
        is_strict: bool,
    ) -> None:
        self.tokens = tokens
        self.sessions = sessions
        self._local = local
        self._hosts = hosts
        self._sources = sources
        self._needs_token = is_strict
        self._failures = Failures()
        self._log = RateLimitedLog(log)

    @property
    def is_named(self) -> bool:
        return self._needs_token

    async def needs_name(self) -> bool:
        if not self._needs_token and await self.tokens.known():
            self._needs_token = True
        return self._needs_token

    async def check(self, request: Request) -> str:
        try:
            await self.needs_name()
        except Problem:  # the store is away, and it is not known whether it has tokens
            return self._checked(request, is_local=False)
        return self._checked(request, is_local=not self._needs_token)

    def source_of(self, request: Request) -> str:
        return self._sources.source_of(request)

    def _checked(self, request: Request, *, is_local: bool) -> str:
        if is_local:
            self._local.check(request)
        elif self._hosts is not None:
            self._hosts.check_host(request)
        return self._sources.source_of(request)

    async def admit(self, request: Request) -> Admitted:
        scheme, _, text = request.headers.get("authorization", "").partition(" ")
        has_token = scheme.lower() == "bearer"
        if not await self.needs_name() and has_token:
            await self.tokens.token(text)  # the first token may just have been made
        is_local = not await self.needs_name()
        source = self._checked(request, is_local=is_local)
        if is_local:
            return Admitted(LOCAL, source, self._is_still_local)
        if has_token:
            return await self._by_token(text, source)
        if (session := await self._session_of(request, source)) is not None:
            return session
        raise self._refused(source, "a token is needed here: send it as `Authorization: Bearer TOKEN`", failed=False)

    async def _is_still_local(self) -> bool:
        return not await self.needs_name()

    async def _by_token(self, text: str, source: str) -> Admitted:
        token = await self._proved(text, source)

        async def still() -> bool:
            return await self.tokens.is_valid(token.id)

        return Admitted(token.access, source, still, "token", token)

    async def _proved(self, text: str, source: str) -> Token:
        """Return the token that a text is. Whoever has a known one is not held up by the failures of others."""
        token = await self.tokens.token(text, only_known=True)
        if token is None:
            self._failures.check(source)
            token = await self.tokens.token(text)
        if token is None:
            raise self._refused(source, "this token is unknown, expired or revoked", failed=True)
        return token

    async def _session_of(self, request: Request, source: str) -> Admitted | None:
        cookie = next((request.cookies[name] for name in COOKIES if name in request.cookies), None)
        if cookie is None:
            return None
        session = await self.sessions.find(cookie)
        if session is None or not await self._is_live(session):
            raise self._refused(source, "the session is over: log in again", failed=False)
        self._local.check_site(request)
        if not session.is_proved_by(request.headers.get(SECRET_HEADER, "")):
            self._failures.check(source)
            raise self._refused(source, f"a request of a session has its secret in {SECRET_HEADER}", failed=True)
        token = (await self.tokens.known())[session.token]

        async def still() -> bool:
            return await self.sessions.find(cookie) is not None and await self._is_live(session)

        return Admitted(token.access, source, still, "session", token)

    async def _is_live(self, session: Session) -> bool:
        return await self.tokens.is_valid(session.token)

    async def log_in(self, request: Request, text: str) -> Token:
        """Return the token for which a session is asked, or raise a `Problem`."""
        return await self._proved(text, await self.check(request))

    def _refused(self, source: str, why: str, *, failed: bool) -> Problem:
        if failed:
            self._failures.count(source)
            self._log(("failed login", source), "a login from %s failed: %s", source, why, level=logging.WARNING)
        return Problem(401, "unauthorized", why, headers={"WWW-Authenticate": 'Bearer realm="perdure"'})

    async def aclose(self) -> None:
        await self.tokens.aclose()


class ByLogin:
    """Admits whom a site's own login knows. What it raises is an error of the site: the request fails, closed."""

    is_named = True

    def __init__(self, login: Login, hosts: Guard | None, sources: Sources) -> None:
        self._login = login
        self._hosts = hosts
        self._sources = sources

    async def check(self, request: Request) -> str:
        if self._hosts is not None:
            self._hosts.check_host(request)
        return self._sources.source_of(request)

    def source_of(self, request: Request) -> str:
        return self._sources.source_of(request)

    async def needs_name(self) -> bool:
        return True

    async def admit(self, request: Request) -> Admitted:
        source = await self.check(request)
        access = await self._login(request.scope)
        if access is None:
            raise Problem(401, "unauthorized", "this site does not know you: log in there")

        async def still() -> bool:
            return await self._login(request.scope) == access

        return Admitted(access, source, still, "login")

    async def aclose(self) -> None:
        pass
