"""Verifies that a webhook comes from the sender that it names: by a signature made with a secret that both sides know.

A verifier also tells which event a request is about, so that a repeated one starts nothing. It does no I/O.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

import msgspec
from msgspec import Struct
from msgspec.structs import force_setattr
from starlette.datastructures import Headers

from perdure.errors import InvalidOption

TOLERANCE_SECONDS = 300.0
"""How far the time of a signed request may be from now. An older one may have been recorded and sent again."""
SECRETS_LIMIT = 10
"""Secrets of one hook: the present one, and those that it replaces."""
STANDARD_PREFIX = "whsec_"
"""What a secret of Standard Webhooks begins with; base64 follows."""
_TIME_DIGITS = 12

Algorithm = Literal["sha256", "sha1", "sha512"]
Encoding = Literal["hex", "base64"]


class NotVerified(Exception):
    """A request is not signed as it must be. The text says why, and holds nothing secret."""


class NoEventId(Exception):
    """A request is signed, but it has no event id where there should be one."""


class _Signed(Struct, frozen=True):
    """What verifiers share: secrets, which are never shown."""

    secrets: str | Sequence[str]

    def __post_init__(self) -> None:
        given = (self.secrets,) if isinstance(self.secrets, str) else tuple(self.secrets)
        are_texts = all(isinstance(each, str) and each for each in given)  # pyright: ignore[reportUnnecessaryIsInstance]
        if not given or len(given) > SECRETS_LIMIT or not are_texts:
            raise InvalidOption(f"the secrets of a hook: give 1 to {SECRETS_LIMIT}, each a str that is not empty")
        force_setattr(self, "secrets", given)

    def __repr__(self) -> str:
        shown = [f"{name}={value!r}" for name, value in self.described().items() if name not in ("type", "secrets")]
        secrets = f"{len(self.secrets)} secrets" if len(self.secrets) > 1 else "1 secret"
        return f"{type(self).__name__}({', '.join([secrets, *shown])})"

    def described(self) -> dict[str, Any]:
        """Return what it is, with the number of its secrets, and what is set in it."""
        fields = [each for each in msgspec.structs.fields(self) if each.name != "secrets"]
        given = {each.name: value for each in fields if (value := getattr(self, each.name)) != each.default}
        return {"type": type(self).__struct_config__.tag, "secrets": len(self.secrets), **given}


class StandardWebhooks(_Signed, frozen=True, tag="standard"):
    """Verifies requests that are signed by the Standard Webhooks specification, the symmetric `v1`.

    `secrets`: `whsec_…`; several while one replaces another. A request has the headers `webhook-id`,
    `webhook-timestamp` and `webhook-signature`, or the same with `svix-`. The event is named by its id.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._keys()

    def _keys(self) -> list[bytes]:
        keys: list[bytes] = []
        for number, each in enumerate(self.secrets, 1):
            try:
                key = base64.b64decode(each.removeprefix(STANDARD_PREFIX), validate=True)
            except (binascii.Error, ValueError):
                key = b""
            if not key:
                text = f"secret {number} of a hook is not one of Standard Webhooks: {STANDARD_PREFIX} and base64"
                raise InvalidOption(text)
            keys.append(key)
        return keys

    def verify(self, headers: Headers, body: bytes, now: float) -> str:
        """Return the id of the event; `NotVerified` if the signature is missing, wrong or old."""
        start = "svix" if "webhook-signature" not in headers and "svix-signature" in headers else "webhook"
        id, at = _only(headers, f"{start}-id"), _only(headers, f"{start}-timestamp")
        if not id:
            raise NotVerified(f"the header {start}-id is empty")
        _check_time(at, now)
        signed = f"{id}.{at}.".encode("latin-1") + body  # as headers were sent
        given = _only(headers, f"{start}-signature").split()
        _check([hmac.digest(key, signed, "sha256") for key in self._keys()], _named("v1", ",", given), "base64")
        return id

    @property
    def headers(self) -> tuple[str, ...]:
        """The headers that hold signatures."""
        return ("webhook-signature", "svix-signature")


class Hmac(_Signed, frozen=True, kw_only=True, tag="hmac"):
    """Verifies requests whose `header` holds an HMAC of the body, in hexadecimal or base64, perhaps after a `prefix`.

    `timestamped` is Stripe's form, `t=TIME,v1=HMAC`: the HMAC is of the time, a dot and the body.

    `event_id` says where a request names its event: a header (GitHub: `X-GitHub-Delivery`), or a JSON pointer into the
    body (Stripe: `/id`). None: events are told apart by their bodies.
    """

    header: str
    algorithm: Algorithm = "sha256"
    encoding: Encoding = "hex"
    prefix: str = ""
    timestamped: bool = False
    event_id: str | None = None

    _choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "algorithm": ("sha256", "sha1", "sha512"),
        "encoding": ("hex", "base64"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in self._choices.items():
            if getattr(self, name) not in choices:
                raise InvalidOption(f"Hmac({name}={getattr(self, name)!r}): give {' or '.join(choices)}")
        _check_header("header", self.header)
        if self.timestamped and self.prefix:
            raise InvalidOption("Hmac(timestamped=True, prefix=…): what is timestamped has no prefix")
        if self.event_id is not None and not self.event_id.startswith("/"):
            _check_header("event_id", self.event_id)

    def verify(self, headers: Headers, body: bytes, now: float) -> str:
        """Return the id of the event; `NotVerified` if the signature is missing, wrong or old; `NoEventId`."""
        text = _only(headers, self.header)
        if self.timestamped:
            parts = [each.strip() for each in text.split(",")]
            times, given = _named("t", "=", parts), _named("v1", "=", parts)
            if len(times) != 1:
                raise NotVerified(f"the header {self.header} has not one time, as in t=1767225600,v1=…")
            _check_time(times[0], now)
            body_signed = f"{times[0]}.".encode() + body
        else:
            if not text.startswith(self.prefix):
                raise NotVerified(f"the header {self.header} does not begin with {self.prefix!r}")
            given, body_signed = [text.removeprefix(self.prefix)], body
        _check([hmac.digest(each.encode(), body_signed, self.algorithm) for each in self.secrets], given, self.encoding)
        return self._event_id(headers, body)

    def _event_id(self, headers: Headers, body: bytes) -> str:
        if self.event_id is None:
            return hashlib.sha256(body).hexdigest()
        if self.event_id.startswith("/"):
            return _at_pointer(body, self.event_id)
        found = headers.getlist(self.event_id)
        if len(found) != 1 or not found[0]:
            raise NoEventId(f"the header {self.event_id}, which names the event, is {_missing(found)}")
        return found[0]

    @property
    def headers(self) -> tuple[str, ...]:
        """The headers that hold signatures."""
        return (self.header.lower(),)


Verifier = StandardWebhooks | Hmac


def check_verifier(handler: str, verifier: object) -> Verifier:
    """Return the verifier of a handler, or raise `InvalidOption` if it is none."""
    if isinstance(verifier, StandardWebhooks | Hmac):
        return verifier
    given = type(verifier).__name__  # it may be the secret itself
    raise InvalidOption(f"hooks={{{handler!r}: …}}: give StandardWebhooks(…) or Hmac(…), not {given}")


# --- what verifiers share ---------------------------------------------------------------------------------------------
def _check_header(name: str, text: object) -> None:
    if not isinstance(text, str) or not text or not all(each.isalnum() or each in "-_" for each in text):
        raise InvalidOption(f"Hmac({name}={text!r}): give the name of a header, as in X-Signature")
    if not text.isascii():
        raise InvalidOption(f"Hmac({name}={text!r}): the name of a header is ASCII")


def _only(headers: Headers, name: str) -> str:
    found = headers.getlist(name)
    if len(found) != 1:
        raise NotVerified(f"the header {name} is {_missing(found)}")
    return found[0]


def _missing(found: Sequence[str]) -> str:
    return "given more than once" if len(found) > 1 else "empty" if found else "missing"


def _named(name: str, separator: str, parts: Sequence[str]) -> list[str]:
    """Return the values of the parts that have a name."""
    return [each.partition(separator)[2] for each in parts if each.startswith(name + separator)]


def _check_time(text: str, now: float) -> None:
    if not (text.isascii() and text.isdecimal() and len(text) <= _TIME_DIGITS):
        raise NotVerified("its time is not in seconds since the Unix epoch")
    if abs(now - int(text)) > TOLERANCE_SECONDS:
        raise NotVerified(
            f"its time is more than {TOLERANCE_SECONDS:g} s from now: it was sent again, or a clock is wrong"
        )


def _check(expected: Sequence[bytes], given: Sequence[str], encoding: Encoding) -> None:
    """Raise `NotVerified` unless one of the given signatures is an expected one. It always takes the same time."""
    is_right = False
    for each in expected:
        text = each.hex() if encoding == "hex" else base64.b64encode(each).decode()
        for other in given:
            found = other.strip()
            found = found.lower() if encoding == "hex" else found
            is_right |= hmac.compare_digest(text.encode(), found.encode())
    if not is_right:
        raise NotVerified("the signature is wrong: another secret, or another body, was signed")


def _at_pointer(body: bytes, pointer: str) -> str:
    """Return the text or number at a JSON pointer (RFC 6901); `NoEventId` if there is none."""
    missing = NoEventId(f"the body has no text or integer at {pointer}, which names the event")
    try:
        found: Any = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        raise missing from None
    for part in pointer.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isascii() and name.isdecimal():
            items = cast("list[Any]", found)
            found = items[int(name)] if int(name) < len(items) else None
        else:
            found = cast("dict[str, Any]", found).get(name) if isinstance(found, dict) else None
    if isinstance(found, bool) or not isinstance(found, str | int) or found == "":
        raise missing
    return str(found)
