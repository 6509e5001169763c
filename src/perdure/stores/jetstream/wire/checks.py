"""Checks of a server, and errors that say how to correct what is wrong. Pure: nothing here connects to a server."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from datetime import datetime

from perdure.errors import StoreFull, StoreUnavailable, StoreUnfit

CLOCK_LIMIT_SECONDS = 30.0
"""How far the clock of a worker may differ from the server's: delays and timeouts use the one or the other."""
CLOCK_WARNING_SECONDS = 2.0
PAYLOAD_LEAST_BYTES = 64 * 1024
"""The least `max_payload` of a server: headers need some of it, and large values are cut into pieces of the rest."""
SYNCED = "perdure-synced"
"""In the metadata of a stream: the operator declared that the server syncs every write to disk."""

_DENIED = re.compile(r"permissions violation for (publish|subscription) to \"?([^\s\"]+)", re.IGNORECASE)

log = logging.getLogger("perdure.jetstream")


def not_connected(where: str, problems: Iterable[str]) -> StoreUnavailable:
    """Return the error for a failed connection, from the problems that the client reported."""
    why = "; ".join(dict.fromkeys(problems)) or "no answer"
    lower = why.lower()
    if "authorization" in lower or "authentication" in lower or "permissions" in lower:
        text = f"the NATS server at {where} refuses these credentials: {why}; see the options of connect"
    elif "certificate" in lower or "ssl" in lower or "tls" in lower:
        text = f"no TLS connection to the NATS server at {where}: {why}; {_tls_hint(lower)}"
    else:
        text = f"no NATS server at {where}: {why}; start one there, or name another address"
    return StoreUnavailable(text)


def _tls_hint(why: str) -> str:
    if "mismatch" in why or "not valid for" in why:
        return "connect with a name that is in its certificate"
    if "offers no tls" in why:
        return "configure it with a certificate, or connect with nats:// and without TLS options"
    return "connect(tls_ca=…) names the authority that signed its certificate"


def no_room(subject: str, why: str) -> StoreFull:
    """Return the error for a server, or a stream, that is full."""
    return StoreFull(
        f"the NATS server has no room left for {subject} ({why}): make room on its disk, or raise max_file_store. "
        "Acknowledged writes are kept, and work continues when there is room"
    )


def stream_gone(stream: str) -> StoreUnfit:
    """Return the error for a stream that no longer exists."""
    text = (
        f"jetstream: stream {stream} no longer exists: stop the workers and restore a backup; it is not created again"
    )
    return StoreUnfit(text)


def denied_of(text: str) -> tuple[str, str] | None:
    """Parse a permissions violation: return "publish" or "subscription", and the subject. None for other errors.

    Both in lower case, since nats-py converts errors.
    """
    found = _DENIED.search(text)
    return None if found is None else (found[1].lower(), found[2].lower())


def not_allowed(verb: str, subject: str, where: str) -> StoreUnfit:
    """Return the error for a subject that this client may not use."""
    kind = "publish" if verb == "publish" else "subscribe"
    text = f"the NATS server at {where} does not permit this client to {kind} to {subject}"
    needed = "perdure.>, $JS.API.>, $JS.ACK.> and _INBOX.>"
    return StoreUnfit(f"{text}: permit its user to publish and subscribe to {needed}")


def check_payload(max_payload: int, where: str) -> None:
    """Refuse a server whose `max_payload` is too small."""
    if max_payload < PAYLOAD_LEAST_BYTES:
        raise StoreUnfit(
            f"{where}: the server's max_payload is {max_payload:,} bytes, and must be at least {PAYLOAD_LEAST_BYTES:,}"
        )


def check_clock(server_says: str, before: float, after: float, where: str) -> None:
    """Compare this machine's clock with the time in an answer that was requested between `before` and `after`."""
    try:
        there = datetime.fromisoformat(server_says).timestamp()
    except ValueError:
        return  # the answer has no time
    ahead = max(before - there, 0.0) - max(there - after, 0.0)
    if abs(ahead) <= CLOCK_WARNING_SECONDS:
        return
    direction = "ahead of" if ahead > 0 else "behind"
    text = f"the clock of this machine is {abs(ahead):.0f} s {direction} that of the NATS server at {where}"
    if abs(ahead) > CLOCK_LIMIT_SECONDS:
        raise StoreUnfit(f"{text}, and may differ by {CLOCK_LIMIT_SECONDS:.0f} s: synchronize both with NTP")
    log.warning("%s: delays and timeouts are off by as much", text)


def warn_of_lost_writes(replicas: int, metadata: dict[str, str], where: str) -> None:
    """Warn if a power failure may lose acknowledged writes. The server does not report its `sync_interval`."""
    if replicas == 1 and metadata.get(SYNCED) != "always":
        log.warning(
            "%s keeps one copy of everything. Unless it runs with `sync_interval: always`, a power failure can lose up "
            "to two minutes of acknowledged writes. If it does, `perdure nats init --synced` records it and ends this "
            "warning",
            where,
        )
