"""`connect(url)`: the one place that composes a client with a store."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from perdure.client import Client
from perdure.core.retry import Duration, seconds
from perdure.errors import BadUrl, InvalidOption
from perdure.runtime.retention import RETENTION_SECONDS
from perdure.stores.store import PAYLOAD_LIMIT_BYTES

if TYPE_CHECKING:
    from perdure.core.codec import FailureTranslator
    from perdure.core.turn import Turn
    from perdure.runtime.worker import Channels
    from perdure.stores.store import Store

DEFAULT_URL = "sqlite:perdure.db"
JETSTREAM_SHARDS = 4
_EXPECTED = "use memory:, sqlite:PATH, nats://HOST:PORT or http(s)://HOST:PORT"


def connect(
    url: str | None = None,
    /,
    *,
    retention: Duration | None = RETENTION_SECONDS,
    payload_limit: int | None = None,
    read_only: bool = False,
) -> Client:
    """Return a client of the store that `url` names; it opens on first use, or on `async with`.

    `memory:`, `sqlite:PATH`, `nats://HOST:PORT[,HOST:PORT...]` or `http(s)://HOST:PORT`. Without a url, the
    environment's `PERDURE_URL`, else `sqlite:perdure.db`. `payload_limit` is the most bytes of one encoded value.
    `read_only` opens a file that exists, also while another process serves it, to look and to change nothing.

    `retention` (seconds or a timedelta; 7 days; None: for ever) is how long the workers of this client keep completed,
    cancelled and failed invocations, counted from their last change. Then their journals go, failed ones can be retried
    no more, and their ids are unknown: who submits such an id again starts it anew.
    """
    make_store = _store_of(url_in_use(url), payload_limit, read_only)
    kept = None if retention is None else seconds("connect(retention=…)", retention, positive=True)
    shards = JETSTREAM_SHARDS if url_in_use(url).startswith(("nats:", "tls:")) else 1
    return Client(make_store, channels_for, translators_in_use, make_stub, kept, shards)


def url_in_use(url: str | None) -> str:
    """Return the URL that `connect(url)` uses."""
    return url or os.environ.get("PERDURE_URL") or DEFAULT_URL


def _store_of(url: str, payload_limit: int | None, read_only: bool) -> Callable[[], Store]:
    limit = PAYLOAD_LIMIT_BYTES if payload_limit is None else payload_limit
    if limit < 1:
        raise InvalidOption(f"connect(payload_limit={limit}): give at least 1 byte")
    scheme, colon, rest = url.partition(":")
    if not colon:
        raise BadUrl(f"{url!r} is no URL of a store: {_EXPECTED}")
    match scheme:
        case "memory":
            if rest:
                raise BadUrl(f"{url!r}: write `memory:` alone, nothing of it is kept")
            if read_only:
                raise InvalidOption("connect('memory:', read_only=True): nothing is in it yet; name a file")
            from perdure.stores.memory import MemoryStore  # noqa: PLC0415  only the store in use is imported

            return lambda: MemoryStore(payload_limit=limit)
        case "sqlite":
            path = rest.removeprefix("//")
            if not path or path == ":memory:":
                raise BadUrl(f"{url!r}: name a file, as in sqlite:perdure.db; for a store in memory, use memory:")
            from perdure.stores.sqlite import SqliteStore, SqliteView  # noqa: PLC0415  only the store in use is imported

            if read_only:
                return lambda: SqliteView(path, payload_limit=limit)
            return lambda: SqliteStore(path, payload_limit=limit)
        case "nats" | "tls":
            return _jetstream_of(url, limit, read_only)
        case "http" | "https":
            raise BadUrl(
                f"{_without_credentials(url)!r}: this release has no {scheme} store; use memory: or sqlite:PATH"
            )
        case _:
            raise BadUrl(f"{_without_credentials(url)!r} is no URL of a store: {_EXPECTED}")


def _jetstream_of(url: str, limit: int, read_only: bool) -> Callable[[], Store]:
    scheme, _, rest = url.partition("://")
    if not rest:
        raise BadUrl(f"{url!r} is no URL of a store: {_EXPECTED}")
    if read_only:
        raise InvalidOption("connect('nats://...', read_only=True): only files can be opened so")
    try:
        from perdure.stores.jetstream import JetStreamStore  # noqa: PLC0415  nats-py is an extra
    except ImportError as error:
        raise InvalidOption(f"{scheme}: URLs need nats-py: pip install 'perdure[nats]' ({error})") from error
    servers = [each if "://" in each else f"{scheme}://{each}" for each in url.split(",")]
    return lambda: JetStreamStore(servers, payload_limit=limit)


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return url if parts.password is None else url.replace(f":{parts.password}@", ":***@")


def channels_for(services: Mapping[str, str]) -> Channels:
    """Return connections to gRPC services."""
    try:
        from perdure.integrations.grpc import Channels  # noqa: PLC0415  grpc is an extra
    except ImportError as error:
        raise InvalidOption(f"worker(services=...) needs grpcio: pip install 'perdure[grpc]' ({error})") from error
    return Channels(services)


def make_stub(stub: Any, turn: Turn, retry: Any, timeout: Any) -> Any:
    """Return a gRPC stub whose calls are steps of a turn."""
    from perdure.integrations.grpc import journaled  # noqa: PLC0415  grpc is an extra

    return journaled(stub, turn, retry=retry, timeout=timeout)


@functools.cache
def _grpc_translators() -> Sequence[FailureTranslator]:
    from perdure.integrations.grpc import TRANSLATORS  # noqa: PLC0415  grpc is an extra

    return TRANSLATORS


def translators_in_use() -> Sequence[FailureTranslator]:
    """Return what knows how to journal the exceptions of libraries that are loaded."""
    return _grpc_translators() if "grpc" in sys.modules else ()
