"""What can be wrong with a server, said so that it can be put right. Pure: nothing here asks a server."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from datetime import datetime

from perdure.errors import StoreFull, StoreUnavailable, StoreUnfit

CLOCK_LIMIT_SECONDS = 30.0
"""How far the clock of a worker may be from the server's: delays and time limits go by the one or the other."""
CLOCK_WARNING_SECONDS = 2.0
PAYLOAD_LEAST_BYTES = 64 * 1024
"""The least `max_payload` of a server: headers take some of it, and large values go in pieces of what is left."""
SYNCED = "perdure-synced"
"""In the metadata of a stream: its maker said that the server forces every write to the disk."""

_DENIED = re.compile(r"permissions violation for (publish|subscription) to \"?([^\s\"]+)", re.IGNORECASE)

log = logging.getLogger("perdure.jetstream")


def not_connected(where: str, problems: Iterable[str]) -> StoreUnavailable:
    """Return the error for servers that cannot be connected to, from what the client met on its way."""
    why = "; ".join(dict.fromkeys(problems)) or "no answer"
    lower = why.lower()
    if "authorization" in lower or "authentication" in lower or "permissions" in lower:
        text = f"the NATS server at {where} does not let this client in: {why}; see the options of connect"
    elif "certificate" in lower or "ssl" in lower or "tls" in lower:
        text = f"no TLS connection to the NATS server at {where}: {why}; {_tls_hint(lower)}"
    else:
        text = f"no NATS server at {where}: {why}; start one there, or name another address"
    return StoreUnavailable(text)


def _tls_hint(why: str) -> str:
    if "mismatch" in why or "not valid for" in why:
        return "connect by a name that is in its certificate"
    if "offers no tls" in why:
        return "configure it with a certificate, or connect by nats:// and without tls options"
    return "connect(tls_ca=…) names the authority that signed its certificate"


def no_room(subject: str, why: str) -> StoreFull:
    """Return the error for a server, or a stream, that is full."""
    return StoreFull(
        f"the NATS server has no room left for {subject} ({why}): make room on its disk, or raise max_file_store; what "
        "was acknowledged stays, and goes on then"
    )


def stream_gone(stream: str) -> StoreUnfit:
    """Return the error for a stream that was there, and is not."""
    text = (
        f"jetstream: stream {stream} is not there any more: stop the workers and restore a backup, it is not made anew"
    )
    return StoreUnfit(text)


def denied_of(text: str) -> tuple[str, str] | None:
    """Read a server's refusal of one subject: "publish" or "subscription", and the subject. None if it is no such.

    In lower case, as nats-py reads errors.
    """
    found = _DENIED.search(text)
    return None if found is None else (found[1].lower(), found[2].lower())


def not_allowed(verb: str, subject: str, where: str) -> StoreUnfit:
    """Return the error for a subject that this client may not use."""
    kind = "publish" if verb == "publish" else "subscribe"
    text = f"the NATS server at {where} does not let this client {kind} to {subject}"
    needed = "perdure.>, $JS.API.>, $JS.ACK.> and _INBOX.>"
    return StoreUnfit(f"{text}: the permissions of its user must let it publish and subscribe on {needed}")


def check_payload(max_payload: int, where: str) -> None:
    """Refuse a server whose messages are too small to work with."""
    if max_payload < PAYLOAD_LEAST_BYTES:
        raise StoreUnfit(
            f"{where}: the server's max_payload is {max_payload:,} bytes, and must be {PAYLOAD_LEAST_BYTES:,} at least"
        )


def check_clock(server_says: str, before: float, after: float, where: str) -> None:
    """Compare this machine's clock with the time that an answer tells, asked for between `before` and `after`."""
    try:
        there = datetime.fromisoformat(server_says).timestamp()
    except ValueError:
        return  # it tells none
    ahead = max(before - there, 0.0) - max(there - after, 0.0)
    if abs(ahead) <= CLOCK_WARNING_SECONDS:
        return
    direction = "ahead of" if ahead > 0 else "behind"
    text = f"the clock of this machine is {abs(ahead):.0f} s {direction} that of the NATS server at {where}"
    if abs(ahead) > CLOCK_LIMIT_SECONDS:
        raise StoreUnfit(f"{text}, where the limit is {CLOCK_LIMIT_SECONDS:.0f} s: let NTP set both")
    log.warning("%s: delays and time limits are off by as much", text)


def warn_of_lost_writes(replicas: int, metadata: dict[str, str], where: str) -> None:
    """Warn when a power failure could lose acknowledged writes. The server does not tell how it writes."""
    if replicas == 1 and metadata.get(SYNCED) != "always":
        log.warning(
            "%s keeps one copy of everything. Unless it runs with `sync_interval: always`, a power failure can lose up "
            "to two minutes of acknowledged writes. If it does, `perdure nats init --synced` notes that and ends this "
            "warning",
            where,
        )
