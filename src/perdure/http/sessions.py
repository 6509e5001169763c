"""Sessions of the page: a cookie and a second secret stand for a token, which the browser does not keep.

The cookie is a random id, of which the store keeps the hash. Cookies ignore ports, so a page at another port of this
machine would be sent with it; the second secret, which only the page's own script has, goes with every request.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from datetime import UTC, datetime, timedelta
from hmac import compare_digest

import msgspec
from msgspec import Struct

from perdure.operations.access import SECRET_BYTES, Token, hash_of
from perdure.operations.documents import Delete, Put, Scan
from perdure.operations.port import Operations

SESSIONS = "perdure.sessions"
"""The collection of `Session` by the hash of its id, as JSON."""
SESSION_HOURS = 12.0
"""How long a session lasts."""
COOKIES = ("__Host-perdure", "perdure")
"""The name of the cookie, under https and under http."""
SECRET_HEADER = "perdure-session"
FRESH_SECONDS = 2.0
"""How long a session that was read is remembered."""
REMEMBERED = 1_000
"""Sessions that are remembered."""

_encode = msgspec.json.encode


class Session(Struct, frozen=True):
    """A session: the token it stands for, the hash of its second secret, and its end."""

    token: str
    hash: str
    expires: datetime

    def is_proved_by(self, secret: str) -> bool:
        return compare_digest(self.hash, hash_of(secret))


_decode = msgspec.json.Decoder(Session).decode


class Sessions:
    """The sessions of a store."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._known: OrderedDict[str, tuple[float, Session | None]] = OrderedDict()

    async def begin(self, token: Token) -> tuple[str, str, datetime]:
        """Make a session durable; return its id, its second secret and its end."""
        id, secret = secrets.token_urlsafe(SECRET_BYTES), secrets.token_urlsafe(SECRET_BYTES)
        ends = datetime.now(UTC) + timedelta(hours=SESSION_HOURS)
        expires = ends if token.expires is None else min(ends, token.expires)
        session = Session(token.id, hash_of(secret), expires)
        await self._remove_old()
        await self._operations.write_documents(SESSIONS, [Put((hash_of(id),), _encode(session))])
        return id, secret, expires

    async def find(self, id: str) -> Session | None:
        """Return the session of an id; None if there is none, or its time is over."""
        key = hash_of(id)
        at, session = self._known.get(key, (0.0, None))
        if at < time.monotonic():
            (found,) = await self._operations.read_documents(SESSIONS, [(key,)])
            session = None if found is None else _decode(found.value)
            self._known[key] = time.monotonic() + FRESH_SECONDS, session
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return session if session is not None and datetime.now(UTC) < session.expires else None

    async def end(self, id: str) -> None:
        """End a session, if there is one."""
        key = hash_of(id)
        self._known.pop(key, None)
        await self._operations.write_documents(SESSIONS, [Delete((key,))])

    async def _remove_old(self) -> None:
        now = datetime.now(UTC)
        for each in await self._operations.scan_documents(SESSIONS, Scan()):
            if _decode(each.value).expires < now:
                await self._operations.write_documents(SESSIONS, [Delete(each.key)])
