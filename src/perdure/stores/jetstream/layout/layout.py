"""Where things are: streams and their settings, subjects, and what every message says of its invocation.

    PERDURE_J_<s>  limits      perdure.j.<s>.<id>                    journals: frames; before them perhaps a reservation
    PERDURE_Q_<s>  work queue  perdure.q.<s>.start.<handler>.<id>    starts; one consumer for each handler
                               perdure.q.<s>.msg.<id>.<message>      messages and wakes; one consumer, any worker
                               perdure.q.<s>.to.<handler>.<id>.<message>   passed on to those who serve the handler
                               perdure.q.<s>.key.<key>.<n>           "look at this key" and delayed starts with a key
                               perdure.t.<s>.<id>.<...>              schedules; no consumer covers them
                               perdure.l.<s>.<key>.<id>.<n>          the lines of keys; no consumer covers them
                               perdure.l.<s>.=first                  lies before them, and stays
    PERDURE_K_<s>  limits      perdure.k.<s>.key.<key>, .answer.<message>, .secret, .janitor   one for each subject
    PERDURE_B_<s>  limits      perdure.b.<s>.<id>.<blob>.<n>         payloads too large for a message, in pieces

A shard is that of the id, of the key for what is about a key, of the message for its answer. `perdure` is the
namespace.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from typing import Any

import msgspec
from msgspec import Struct

from perdure.core.journal import Start, Status
from perdure.errors import StoreUnfit

VERSION = 1
"""Of this layout; kept in the metadata of every stream."""
SERVER_AT_LEAST = (2, 15, 1)
"""Older servers ignore what they do not know, and answer success."""
SHARDS = 4
TOKEN_LIMIT_BYTES = 300
"""An escaped name longer than this is replaced by a hash: the server's limit is on the whole subject."""
ANSWER_KEPT_SECONDS = 7 * 86_400
"""How long the answer to a client's message can be read."""
EVENTS = "ev"

_SAFE = re.compile(r"[A-Za-z0-9_-]+")


def token(name: str) -> str:
    """Return a name as one token of a subject. It need not be read back: payloads hold the names."""
    if _SAFE.fullmatch(name):
        escaped = name
    else:
        escaped = "".join(c if _SAFE.fullmatch(c) else "".join(f"%{b:02X}" for b in c.encode()) for c in name)
    if len(escaped) <= TOKEN_LIMIT_BYTES:
        return escaped
    return "~" + hashlib.blake2b(name.encode(), digest_size=20).hexdigest()


# --- what a message says ----------------------------------------------------------------------------------------------
class Facts(Struct, frozen=True, omit_defaults=True):
    """What the header of a frame, reservation or queued start says, so that nobody needs to read its payload.

    Times are seconds since the epoch. `kind` is "frame", "reserved" (an id taken, a start to come), "closing" or
    "gone" (purged).
    `parent` is who started it, and may wait for it or not. `number` counts frames from 1 (in a wake, it is that of the
    frame that asked for it), `sum` is the running checksum of the journal, `owner` the store whose worker holds
    the claim, `epoch` that of the claim. `blob` names pieces that hold the payload, as `<blob>:<count>`, and
    `has_blobs` says that some payload of the invocation is in pieces. `identity` tells starts of one id apart. `quiet`
    says that nothing changed that an index shows. `wake` is the last time at which it asked to be woken. `packed`
    counts the frames that are in segments (`packs`), `python` is the minor version of the last claim.
    """

    id: str = ""
    handler: str = ""
    status: Status = "pending"
    key: str | None = None
    parent: str | None = None
    created_at: float = 0.0
    due: float = 0.0
    at: float = 0.0
    kind: str = "frame"
    number: int = 0
    sum: int = 0
    epoch: int = 0
    owner: str = ""
    blob: str = ""
    identity: str = ""
    quiet: bool = False
    wake: float = 0.0
    has_blobs: bool = False
    packed: int = 0
    python: str = ""

    @property
    def is_pack(self) -> bool:
        """Tell whether this frame took all before it along."""
        return self.packed > 0 and self.number == self.packed + 1


FACTS = b"Perdure: "
ROLLUP = b"Nats-Rollup: sub\r\n"
"""A message with it replaces all before it on its subject."""
_encode_facts = msgspec.json.Encoder().encode
_decode_facts = msgspec.json.Decoder(Facts).decode


def lines_of(facts: Facts) -> bytes:
    """Return the header line of facts."""
    return b"%s%s\r\n" % (FACTS, _encode_facts(facts))


def facts_of(headers: bytes) -> Facts:
    """Read the facts in a raw block of headers."""
    at = headers.find(b"\r\n" + FACTS)
    if at < 0:
        return Facts()
    at += 2 + len(FACTS)
    return _decode_facts(headers[at : headers.find(b"\r\n", at)])


def facts_of_start(start: Start, status: Status, at: float, *, kind: str = "reserved", identity: str = "") -> Facts:
    """Return what is to be said of a start."""
    parent = start.sender if start.parent is None else start.parent.id
    return Facts(start.id, start.handler, status, start.key, parent, start.at, start.due, at, kind, identity=identity)


# --- subjects ---------------------------------------------------------------------------------------------------------
class Layout:
    """The names of one store on a server."""

    def __init__(self, namespace: str = "perdure", shards: int = SHARDS) -> None:
        self.namespace = namespace
        self.shards = shards
        self._kinds = {"j": "J", "q": "Q", "t": "Q", "l": "Q", "k": "K", "b": "B"}

    def shard(self, name: str) -> int:
        return zlib.crc32(name.encode()) % self.shards

    def stream(self, kind: str, shard: int) -> str:
        """Return a stream's name; `kind` is J, Q, K or B."""
        return f"{self.namespace.upper()}_{kind}_{shard}"

    def stream_of(self, subject: str) -> str:
        """Return the stream that takes a subject."""
        _, kind, shard, _ = subject.split(".", 3)
        return f"{self.namespace.upper()}_{self._kinds[kind]}_{shard}"

    def journal(self, id: str) -> str:
        return f"{self.namespace}.j.{self.shard(id)}.{token(id)}"

    def start(self, handler: str, id: str) -> str:
        return f"{self.namespace}.q.{self.shard(id)}.start.{token(handler)}.{token(id)}"

    def any_start(self, id: str) -> str:
        """Match the queued start of an id, whatever its handler."""
        return f"{self.namespace}.q.{self.shard(id)}.start.*.{token(id)}"

    def message(self, id: str, message: str) -> str:
        return f"{self.namespace}.q.{self.shard(id)}.msg.{token(id)}.{token(message)}"

    def wake(self, id: str, name: str) -> str:
        """Name a wake among the messages; `name` has a character that no escaped id has."""
        return f"{self.namespace}.q.{self.shard(id)}.msg.{token(id)}.{name}"

    def messages(self, id: str) -> str:
        return f"{self.namespace}.q.{self.shard(id)}.msg.{token(id)}.*"

    def all_messages(self, shard: int) -> tuple[str, str]:
        """Match the messages and wakes for anybody, and what is passed on."""
        return f"{self.namespace}.q.{shard}.msg.>", f"{self.namespace}.q.{shard}.to.>"

    def passed_on(self, handler: str, id: str, last: str) -> str:
        """Name what is passed on; `last` is the last token of the subject under which it came."""
        return f"{self.namespace}.q.{self.shard(id)}.to.{token(handler)}.{token(id)}.{last}"

    def passed_on_to_any(self, id: str, last: str) -> str:
        """Match what is passed on under a name, whoever serves it."""
        return f"{self.namespace}.q.{self.shard(id)}.to.*.{token(id)}.{last}"

    def all_passed_on(self, id: str) -> str:
        return f"{self.namespace}.q.{self.shard(id)}.to.*.{token(id)}.*"

    def schedule(self, id: str, what: str) -> str:
        return f"{self.namespace}.t.{self.shard(id)}.{token(id)}.{what}"

    def delayed(self, id: str, key: str | None) -> str:
        """Name the schedule of a start: a schedule and its target are in one stream, so it is the key's shard."""
        return f"{self.namespace}.t.{self.shard(id if key is None else key)}.{token(id)}.start"

    def schedules(self, id: str) -> str:
        return f"{self.namespace}.t.{self.shard(id)}.{token(id)}.>"

    def leases(self, id: str) -> str:
        """Match the wakes at the ends of leases."""
        return f"{self.namespace}.t.{self.shard(id)}.{token(id)}.lease.*"

    def all_schedules(self, shard: int) -> str:
        return f"{self.namespace}.t.{shard}.>"

    def line(self, key: str, id: str, generation: int) -> str:
        return f"{self.namespace}.l.{self.shard(key)}.{token(key)}.{token(id)}.{generation}"

    def places(self, key: str, id: str) -> str:
        """Match the places of an id in the line of a key, whatever its generation."""
        return f"{self.namespace}.l.{self.shard(key)}.{token(key)}.{token(id)}.*"

    def whole_line(self, key: str) -> str:
        return f"{self.namespace}.l.{self.shard(key)}.{token(key)}.>"

    def before_lines(self, key: str) -> str:
        """Name what lies before all lines of a stream; it has a character that no escaped key has."""
        return f"{self.namespace}.l.{self.shard(key)}.=first"

    def nudge(self, key: str, name: str) -> str:
        return f"{self.namespace}.q.{self.shard(key)}.key.{token(key)}.{name}"

    def key(self, key: str) -> str:
        return f"{self.namespace}.k.{self.shard(key)}.key.{token(key)}"

    def answer(self, message: str) -> str:
        return f"{self.namespace}.k.{self.shard(message)}.answer.{token(message)}"

    def secret(self) -> str:
        return f"{self.namespace}.k.0.secret"

    def janitor(self) -> str:
        """Name the record of whose turn it is to look for what should not happen."""
        return f"{self.namespace}.k.0.janitor"

    def blob(self, id: str, blob: str, piece: int | str) -> str:
        return f"{self.namespace}.b.{self.shard(id)}.{token(id)}.{blob}.{piece}"

    def blobs(self, id: str) -> str:
        return f"{self.namespace}.b.{self.shard(id)}.{token(id)}.>"

    def settled(self, id: str) -> str:
        """Say that an invocation has settled, to who listens."""
        return f"{self.namespace}.{EVENTS}.settled.{token(id)}"

    def told(self, subject: str) -> str:
        """Return where the server tells of what it stores on a subject."""
        return f"{self.namespace}.{EVENTS}.{subject.partition('.')[2]}"

    def offers(self, store: str) -> str:
        return f"{self.namespace}.offer.{store}"

    def offers_of(self, python: str, handler: str) -> str:
        """Name where offers go for whoever serves a handler with this minor version of Python."""
        return f"{self.namespace}.minor.{token(python)}.{token(handler)}"

    # --- settings -----------------------------------------------------------------------------------------------------
    def streams(self, replicas: int) -> list[dict[str, Any]]:
        """Return the configuration of every stream."""
        found: list[dict[str, Any]] = []
        for shard in range(self.shards):
            found += (
                self._settings("J", shard, replicas, ["j"], republish="j.{}.>"),
                self._settings("Q", shard, replicas, ["q", "t", "l"], republish="q.{}.start.>"),
                self._settings("K", shard, replicas, ["k"], republish="k.{}.answer.>"),
                self._settings("B", shard, replicas, ["b"]),
            )
        return found

    def _settings(
        self, kind: str, shard: int, replicas: int, subjects: list[str], republish: str | None = None
    ) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "name": self.stream(kind, shard),
            "subjects": [f"{self.namespace}.{each}.{shard}.>" for each in subjects],
            "retention": "workqueue" if kind == "Q" else "limits",
            "storage": "file",
            "discard": "new" if kind in "JB" else "old",  # with schedules, the server takes no "new"; there is no limit
            "num_replicas": replicas,
            "max_msgs_per_subject": 1 if kind == "K" else -1,
            "discard_new_per_subject": False,
            "allow_direct": True,
            "allow_rollup_hdrs": kind in "JQ",  # schedules turn it on
            "allow_msg_ttl": kind in "JK",
            "allow_msg_schedules": kind == "Q",
            "metadata": {"perdure-layout": str(VERSION), "perdure-shards": str(self.shards)},
        }
        if republish is not None:
            source = f"{self.namespace}.{republish.format(shard)}"
            settings["republish"] = {
                "src": source,
                "dest": f"{self.namespace}.{EVENTS}.{republish.format(shard)}",
                "headers_only": kind != "K",
            }
        return settings

    def consumer_of_starts(self, handler: str, ack_wait: float) -> tuple[str, dict[str, Any]]:
        return self._consumer("start", "start." + token(handler) + ".>", handler, ack_wait)

    def consumer_of_passed_on(self, handler: str, ack_wait: float) -> tuple[str, dict[str, Any]]:
        return self._consumer("to", "to." + token(handler) + ".>", handler, ack_wait)

    def consumer_of_messages(self, ack_wait: float) -> tuple[str, dict[str, Any]]:
        return self._consumer("msg", "msg.>", "", ack_wait)

    def consumer_of_keys(self, ack_wait: float) -> tuple[str, dict[str, Any]]:
        return self._consumer("key", "key.>", "", ack_wait)

    def _consumer(self, kind: str, filter: str, handler: str, ack_wait: float) -> tuple[str, dict[str, Any]]:
        name = f"{kind}-{hashlib.blake2b(handler.encode(), digest_size=8).hexdigest()}" if handler else kind
        settings: dict[str, Any] = {
            "durable_name": name,
            "description": f"{kind} {handler}".strip(),
            "filter_subject": self.namespace + ".q.{}." + filter,
            "ack_policy": "explicit",
            "ack_wait": int(ack_wait * 1e9),
            "max_ack_pending": -1,
            "max_waiting": 10_000,
            "max_deliver": -1,
            "deliver_policy": "all",
            "replay_policy": "instant",
        }
        return name, settings


def check_version(version: str, where: str) -> None:
    """Refuse a server that is too old to keep what it promises."""
    numbers = tuple(int(each) for each in re.findall(r"\d+", version)[:3])
    if numbers < SERVER_AT_LEAST:
        wanted = ".".join(map(str, SERVER_AT_LEAST))
        raise StoreUnfit(
            f"{where}: nats-server {version or '(unknown version)'} is too old, and would silently ignore what it does "
            f"not know: upgrade it to {wanted} or later"
        )


def check_settings(found: dict[str, Any], wanted: dict[str, Any], where: str) -> None:
    """Refuse a stream whose settings, as the server tells them, are not those that it must have."""
    name = wanted["name"]
    metadata: dict[str, str] = found.get("metadata") or {}
    layout, shards = metadata.get("perdure-layout"), metadata.get("perdure-shards")
    if layout is not None and layout != str(VERSION):
        raise StoreUnfit(f"{where}: stream {name} has layout {layout}, this release knows {VERSION}: use that release")
    if shards is not None and shards != wanted["metadata"]["perdure-shards"]:
        mine = wanted["metadata"]["perdure-shards"]
        raise StoreUnfit(f"{where}: stream {name} is one of {shards} shards, not {mine}: the number cannot be changed")
    for field, value in wanted.items():
        if field in ("num_replicas", "metadata", "name"):
            continue
        has = found.get(field)
        if field == "republish" and has is not None:
            has = {each: has.get(each, False) for each in value}
        if has != value and not (not has and not value):
            raise StoreUnfit(
                f"{where}: stream {name} has {field} = {has!r} where {value!r} is needed: put it right with "
                "`nats stream edit`, or let Perdure make streams of another namespace"
            )
