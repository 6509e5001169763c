"""`connect(url)`: the only module that composes a client with a store."""

from __future__ import annotations

import base64
import binascii
import functools
import os
import sys
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from perdure.client import Client
from perdure.core.retry import Duration, seconds, whole_number
from perdure.counters import Counters
from perdure.errors import BadUrl, InvalidOption
from perdure.operations.carrying import Carrier
from perdure.operations.local import Local
from perdure.runtime.publishing import publish
from perdure.runtime.retention import RETENTION_SECONDS
from perdure.runtime.worker import Worker
from perdure.stores.port import PAYLOAD_LIMIT_BYTES, no_partitions
from perdure.tracing import Tracer

if TYPE_CHECKING:
    from os import PathLike
    from ssl import SSLContext

    from perdure.authoring.workflow import Workflow
    from perdure.core.exported import Loaded
    from perdure.core.failures import FailureTranslator
    from perdure.core.turn import Turn
    from perdure.encryption import Codec
    from perdure.runtime.worker import Channels
    from perdure.stores.jetstream.wire.access import Endpoint
    from perdure.stores.port import Store

DEFAULT_URL = "sqlite:perdure.db"
TOKEN_VARIABLE = "PERDURE_TOKEN"
"""The environment variable with the token for a server, where none is given."""
KEYS_FILE_VARIABLE = "PERDURE_KEYS_FILE"
"""The environment variable with the file of the keys for sealed stores, where no codec is given."""
PLAIN_UNTIL = "allow_plain_until"
"""A line of that file which begins so has a time instead of a key."""
REPLICAS = (1, 3, 5)
SHARDS_LIMIT = 64
_NO_BACKUP = "a store in memory ends with its process; use sqlite:PATH to keep data"
_BACKUP_OF_STREAMS = "back up its streams with the `nats` tool, see docs/how-to/run-on-jetstream.md"
_EXPECTED = "use memory:, sqlite:PATH, nats://HOST:PORT or http://HOST:PORT"


def connect(
    url: str | None = None,
    /,
    *,
    retention: Duration | None = RETENTION_SECONDS,
    payload_limit: int | None = None,
    read_only: bool = False,
    user: str | None = None,
    password: str | None = None,
    token: str | None = None,
    nkey: str | None = None,
    credentials: str | PathLike[str] | None = None,
    tls: SSLContext | None = None,
    tls_ca: str | PathLike[str] | None = None,
    tls_cert: str | PathLike[str] | None = None,
    tls_key: str | PathLike[str] | None = None,
    replicas: int | None = None,
    shards: int | None = None,
    index: str | PathLike[str] | None = None,
    timeout: Duration | None = None,
    codec: Codec | None = None,
) -> Client:
    """Return a client of the store that `url` names; it opens on first use, or on `async with`.

    URLs: `memory:`, `sqlite:PATH`, `nats://HOST:PORT[,HOST:PORT...]`, or the HTTP API of a server, `http://HOST:PORT`,
    `https://…` or `http+unix:PATH`. Default: the environment variable
    `PERDURE_URL`, else `sqlite:perdure.db`. `payload_limit` is the largest encoded value, in bytes. `read_only`
    opens an existing store without changing it, even a file that another process serves.

    `timeout` (seconds or a timedelta) bounds how long opening the store, a start or a message waits for a store that is
    unavailable: `StoreUnavailable`. None: no bound, they wait until a server that was reached before is back.

    `retention` (seconds or a timedelta; default 7 days; None: for ever) is how long the workers of this client keep
    completed, cancelled and failed invocations, counted from their last change. Then they are purged: failed ones can
    no longer be retried, and their ids are unknown, so that submitting such an id starts a new invocation.

    `codec` seals what the store keeps: `perdure.encryption.Encrypted({name: key})`, with all keys that are in use.
    Default: the keys in the file that the environment variable `PERDURE_KEYS_FILE` names, if it is set. A store that
    was sealed once needs it from then on; without it, values are shown as `sealed`, and nothing can be started.

    For a server, `token` is what `perdure token add` prints; default: the environment variable `PERDURE_TOKEN`.

    The other options are for `nats://` and `tls://`. Credentials are a `user` with a `password`, a `token`, an `nkey`
    (the seed of a user's key, or the file that holds it) or `credentials` (a file). Defaults come from the environment
    variables of the `nats` tool: NATS_USER, NATS_PASSWORD, NATS_TOKEN, NATS_NKEY, NATS_CREDS, NATS_CA, NATS_CERT,
    NATS_KEY. For TLS, `tls_ca` is the authority that signed the server's certificate, `tls_cert` and `tls_key` are the
    client's certificate and key; or `tls` is a complete context.

    `replicas` (1, 3 or 5) and `shards` (the number of partitions, default 4) are for the streams of a new store. An
    existing store keeps its own numbers; `shards`, if given, must be equal. `index` is the file for this machine's copy
    of the index (default: a temporary file).
    """
    used = url_in_use(url)
    access = {"user": user, "password": password, "token": token, "nkey": nkey, "credentials": credentials, "tls": tls}
    access |= {"tls_ca": tls_ca, "tls_cert": tls_cert, "tls_key": tls_key}
    shared = {"replicas": replicas, "shards": shards, "index": index}
    if used.startswith(("http:", "https:", "http+unix:")):
        if codec is not None:
            raise InvalidOption(f"connect(codec=…) is for a store: give it to the server {without_secrets(used)!r}")
        return _client_of_server(used, _given(access), _given(shared | {"payload_limit": payload_limit}), timeout)
    make_store = _store_of(used, payload_limit, read_only, _given(access), _given(shared))
    kept = None if retention is None else seconds("connect(retention=…)", retention, positive=True)
    limit = None if timeout is None else seconds("connect(timeout=…)", timeout, positive=True)
    is_shared = used.startswith(("nats:", "tls:"))
    return client_from(
        make_store,
        name=without_secrets(used),
        timeout=limit,
        instead_of_backup=_BACKUP_OF_STREAMS if is_shared else _NO_BACKUP,
        holds_resources=not used.startswith("memory:"),
        retention=kept,
        shards=shards if is_shared else 1,
        seal=functools.partial(_sealed, codec=_codec_in_use(codec)),
    )


async def _sealed(store: Store, codec: Codec | None) -> Store:
    from perdure.stores.sealed import sealed  # noqa: PLC0415  not every program opens a store

    return await sealed(store, codec)


def _codec_in_use(codec: Codec | None) -> Codec | None:
    """Return the codec given, or one with the keys of the file that the environment names, if it names one."""
    path = os.environ.get(KEYS_FILE_VARIABLE)
    if codec is not None or not path:
        if codec is not None and (isinstance(codec, type) or not callable(getattr(codec, "takes_plain", None))):
            raise InvalidOption(
                f"connect(codec={type(codec).__name__}): give perdure.encryption.Encrypted({{name: key}})"
            )
        return codec
    try:
        from perdure.encryption import Encrypted  # noqa: PLC0415  cryptography is an extra
    except ImportError as error:
        raise InvalidOption(f"{KEYS_FILE_VARIABLE} is set: {error}") from error
    keys, plain_until = _keys_in(path)
    return Encrypted(keys, allow_plain_until=plain_until)


def _keys_in(path: str) -> tuple[dict[str, bytes], datetime | None]:
    """Read keys from lines `NAME BASE64`, of which the first encrypts, and perhaps a line `allow_plain_until TIME`.

    Empty lines and those that begin with # are skipped.
    """
    where, keys = f"{KEYS_FILE_VARIABLE}={path}", dict[str, bytes]()
    plain_until: datetime | None = None
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidOption(f"{where}: it cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or words[0] in keys:  # the texts do not show the line: it has a key
            why = "its name is there before" if words[0] in keys else "it is not a name and a key in base64"
            raise InvalidOption(f"{where}: line {number}: {why}")
        try:
            if words[0] == PLAIN_UNTIL:
                plain_until = datetime.fromisoformat(words[1])
            else:
                keys[words[0]] = base64.b64decode(words[1], validate=True)
        except binascii.Error:
            raise InvalidOption(f"{where}: line {number}: the key {words[0]!r} is not base64") from None
        except ValueError:
            raise InvalidOption(
                f"{where}: line {number}: {words[1]!r} is no time, as 2026-12-08T00:00:00Z is"
            ) from None
    if not keys:
        raise InvalidOption(f"{where}: there is no key in it: write lines NAME BASE64")
    return keys, plain_until


def opened_history(loaded: Loaded, codec: Codec | None) -> Loaded:
    """Return an exported history with its values open; `InvalidOption` if they are sealed and there is no codec."""
    if not loaded.sealed_in:
        return loaded
    codec = _codec_in_use(codec)
    if codec is None:
        raise InvalidOption("this history is sealed: replay(…, codec=Encrypted(keys)), or export it with plain=True")
    from perdure.stores.sealed import opened  # noqa: PLC0415  only for a sealed history

    return opened(loaded, codec)


def _client_of_server(url: str, access: dict[str, Any], shared: dict[str, Any], timeout: Duration | None) -> Client:
    """Return a client of a server that speaks HTTP."""
    from perdure.http.remote import Remote, check_url  # noqa: PLC0415  only who speaks HTTP imports it

    token, tls = access.pop("token", None) or os.environ.get(TOKEN_VARIABLE), access.pop("tls", None)
    if access or shared:
        first = next(iter(access | shared))
        raise InvalidOption(f"connect({first}=…) is for a store, not for the server {without_secrets(url)!r}")
    limit = None if timeout is None else seconds("connect(timeout=…)", timeout, positive=True)
    scheme, _, rest = url.partition(":")
    name, socket = without_secrets(url), None
    if scheme == "http+unix":
        socket, url = os.path.abspath(rest.removeprefix("//")), "http://localhost"
    else:
        check_url(url, name)
    remote = Remote(url, name=name, token=token, timeout=limit, tls=tls, socket=socket, tracer=tracer_in_use)
    return Client(remote, _no_worker, translators_in_use)


def _no_worker(*_: object, **__: object) -> Worker:
    raise InvalidOption("a client of a server has no worker: connect to the store itself, where the worker is to run")


def client_from(
    make_store: Callable[[], Store], *, retention: float | None = None, shards: int | None = 1, **options: Any
) -> Client:
    """Return a client of the store that `make_store` returns; `options` are those of `Local`."""
    counters = Counters()
    operations = Local(make_store, counters=counters, tracer=tracer_in_use, **options)
    make_worker = partial(
        *(worker_of, operations.opened),
        retention=retention,
        shards=shards,
        publish=publish,
        counters=counters,
        tracer=tracer_in_use,
        duties=(operations.scheduling.on_duty, Carrier(operations).run, operations.rekeying.run),
    )
    return Client(operations, make_worker, translators_in_use, counters)


def worker_of(
    open_store: Callable[[], Awaitable[Store]],
    workflows: Sequence[Workflow[..., Any]],
    /,
    *,
    services: Mapping[str, str] | None = None,
    partitions: Collection[int] | None = None,
    shards: int | None = 1,
    **options: Any,
) -> Worker:
    """Return a worker on a store of `shards` partitions (None: not known yet)."""
    if partitions is not None and (not partitions or (shards is not None and not {*partitions} <= {*range(shards)})):
        raise no_partitions(partitions, shards)
    return Worker(
        open_store,
        workflows,
        channels=channels_for(services) if services else None,
        translators=translators_in_use,
        stubs=make_stub,
        partitions=partitions,
        **options,
    )


async def make_streams(
    url: str | None = None, /, *, replicas: int = 1, shards: int | None = None, synced: bool = False
) -> tuple[int, bool]:
    """Create the streams of a `nats://` store; return the number of partitions, and whether they are new.

    Existing streams stay; `StoreUnfit` if they have other numbers. `synced` records for the workers that the server
    runs with `sync_interval: always`.
    """
    used = url_in_use(url)
    if not used.startswith(("nats:", "tls:")):
        raise BadUrl(f"{without_secrets(used)!r}: only a nats:// store has streams")
    endpoint = _endpoint_of(used, {})
    _check_numbers({"replicas": replicas} | ({} if shards is None else {"shards": shards}))
    from perdure.stores.jetstream.layout.streams import make  # noqa: PLC0415  nats-py is an extra

    return await make(endpoint.servers, endpoint.options(), replicas=replicas, shards=shards, synced=synced)


def url_in_use(url: str | None) -> str:
    """Return the URL that `connect(url)` uses."""
    return url or os.environ.get("PERDURE_URL") or DEFAULT_URL


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _checked(payload_limit: int | None) -> int:
    return PAYLOAD_LIMIT_BYTES if payload_limit is None else whole_number("connect(payload_limit=…)", payload_limit)


def _store_of(
    url: str, payload_limit: int | None, read_only: bool, access: dict[str, Any], shared: dict[str, Any]
) -> Callable[[], Store]:
    limit = _checked(payload_limit)
    scheme, colon, rest = url.partition(":")
    if not colon:
        raise BadUrl(f"{url!r} is not the URL of a store: {_EXPECTED}")
    if scheme not in ("nats", "tls") and (access or shared):
        raise InvalidOption(
            f"connect({next(iter(access | shared))}=…) is for a nats:// URL, not for {without_secrets(url)!r}"
        )
    match scheme:
        case "memory":
            if rest:
                raise BadUrl(f"{url!r}: write only `memory:`, which has no name or path")
            if read_only:
                raise InvalidOption("connect('memory:', read_only=True): a new store in memory is empty; name a file")
            from perdure.stores.memory import MemoryStore  # noqa: PLC0415  only the store in use is imported

            return lambda: MemoryStore(payload_limit=limit)
        case "sqlite":
            path = rest.removeprefix("//")
            if not path or path == ":memory:":
                raise BadUrl(f"{url!r}: name a file, as in sqlite:perdure.db; for a store in memory, use memory:")
            try:  # absolute: the store opens later, perhaps in another folder
                path = os.path.abspath(os.path.expanduser(path))
            except FileNotFoundError as error:
                raise BadUrl(f"{url!r}: the current folder was removed: name an absolute path") from error
            from perdure.stores.sqlite import SqliteStore, SqliteView  # noqa: PLC0415  only the store in use is imported

            if read_only:
                return lambda: SqliteView(path, payload_limit=limit)
            return lambda: SqliteStore(path, payload_limit=limit)
        case "nats" | "tls":
            return _jetstream_of(url, limit, read_only, access, shared)
        case _:
            raise BadUrl(f"{without_secrets(url)!r} is not the URL of a store: {_EXPECTED}")


def _jetstream_of(
    url: str, limit: int, read_only: bool, access: dict[str, Any], shared: dict[str, Any]
) -> Callable[[], Store]:
    endpoint = _endpoint_of(url, access)
    options = endpoint.options()
    _check_numbers(shared)
    from perdure.stores.jetstream import JetStreamStore, JetStreamView  # noqa: PLC0415  nats-py is an extra

    make = JetStreamView if read_only else JetStreamStore
    return lambda: make(endpoint.servers, options=options, payload_limit=limit, **shared)


def _endpoint_of(url: str, access: dict[str, Any]) -> Endpoint:
    try:
        from perdure.stores.jetstream.wire.access import access_of, endpoint_of  # noqa: PLC0415  nats-py is an extra
    except ImportError as error:
        raise InvalidOption(f"nats:// URLs need nats-py: pip install 'perdure[nats]' ({error})") from error
    return endpoint_of(url, access_of(access), os.environ)


def _check_numbers(shared: dict[str, Any]) -> None:
    for name, allowed, what in (
        ("replicas", REPLICAS, " or ".join(map(str, REPLICAS))),
        ("shards", range(1, SHARDS_LIMIT + 1), f"1 to {SHARDS_LIMIT}"),
    ):
        if name in shared and shared[name] not in allowed:
            raise InvalidOption(f"{name}={shared[name]!r}: give {what}")


def without_secrets(url: str) -> str:
    """Return a URL without secrets, for errors and logs: of everything before the last @, only the user's name."""
    scheme, separator, rest = url.partition(":")
    slashes = "//" if rest.startswith("//") else ""
    before, at, after = rest.removeprefix("//").rpartition("@")
    if scheme in ("memory", "sqlite") or not at:
        return url
    user, colon, _ = before.partition(":")
    is_name = colon and all(each.isalnum() or each in "._-" for each in user)
    return f"{scheme}{separator}{slashes}{user + ':' if is_name else ''}***@{after}"


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
    """Return the translators for exceptions of libraries that are loaded."""
    return _grpc_translators() if "grpc" in sys.modules else ()


@functools.cache
def _find_tracer() -> Callable[[], Tracer | None]:
    from perdure.integrations.telemetry import find_tracer  # noqa: PLC0415  telemetry is an extra

    return find_tracer


def tracer_in_use() -> Tracer | None:
    """Return what emits spans, if the program has set a tracer provider, for which it has loaded the SDK."""
    return _find_tracer()() if "opentelemetry.sdk.trace" in sys.modules else None
