"""The names of streams and subjects.

    PERDURE_J_<s>  limits      perdure.j.<s>.<id>                    journals: frames, perhaps after a reservation
                               perdure.j.<s>.=key.<key>, .=secret    copies of records in PERDURE_K, see `keys`
    PERDURE_Q_<s>  work queue  perdure.q.<s>.start.<handler>.<id>    starts; one consumer per handler
                               perdure.q.<s>.msg.<id>.<message>      messages and wakes; one consumer for all workers
                               perdure.q.<s>.to.<handler>.<id>.<message>   passed on to workers that serve the handler
                               perdure.q.<s>.key.<key>.<n>           "look at this key" and delayed starts with a key
                               perdure.t.<s>.<id>.<...>              schedules; no consumer covers them
                               perdure.l.<s>.<key>.<id>.<n>          the queues of keys; no consumer covers them
                               perdure.l.<s>.=first                  a message that stays before them
    PERDURE_K_<s>  limits      perdure.k.<s>.key.<key>, .answer.<message>, .secret, .janitor   one per subject
                               perdure.k.<s>.doc.<collection>.<part>.<part>...   documents, one per subject
                               perdure.k.<s>.=guard.<n>              carries a guard of other subjects, and nothing else
    PERDURE_B_<s>  limits      perdure.b.<s>.<id>.<blob>.<n>         payloads too large for a message, in pieces
                               perdure.b.<s>.=doc.<blob>.<n>         ... and those of documents
                               perdure.b.<s>.<id>.=.<stream>         what invocations write to streams, in chunks

`<s>` is the partition: that of the id; of the key for a key's subjects; of the message id for an answer; of collection
and first part for a document.
`perdure` is the default namespace.
"""

from __future__ import annotations

import functools
import hashlib
import re
import urllib.parse
import zlib
from collections.abc import Sequence

SHARDS = 4
TOKEN_LIMIT_BYTES = 300
"""A longer escaped name is replaced by a hash: the server limits the length of the whole subject."""
TOKENS_LIMIT = 20_000
"""Escaped names kept in the cache."""
EVENTS = "ev"

_SAFE = re.compile(r"[A-Za-z0-9_-]+")


@functools.lru_cache(maxsize=TOKENS_LIMIT)
def token(name: str) -> str:
    """Escape a name as one token of a subject. It is never decoded: payloads hold the names."""
    if _SAFE.fullmatch(name):
        escaped = name
    else:
        escaped = "".join(c if _SAFE.fullmatch(c) else "".join(f"%{b:02X}" for b in c.encode()) for c in name)
    if len(escaped) <= TOKEN_LIMIT_BYTES:
        return escaped
    return "~" + hashlib.blake2b(name.encode(), digest_size=20).hexdigest()


def part_token(part: str) -> str:
    """Escape a part of a document's key as one token, which `part_of` decodes."""
    if _SAFE.fullmatch(part):
        return part
    return "".join(c if _SAFE.fullmatch(c) else "".join(f"%{b:02X}" for b in c.encode()) for c in part)


def part_of(token: str) -> str:
    return urllib.parse.unquote(token, errors="strict")


class Layout:
    """The names of one store on a server."""

    def __init__(self, namespace: str = "perdure", partitions: int = SHARDS) -> None:
        self.namespace = namespace
        self.partitions = partitions
        self._kinds = {"j": "J", "q": "Q", "t": "Q", "l": "Q", "k": "K", "b": "B"}

    def partition(self, name: str) -> int:
        return zlib.crc32(name.encode()) % self.partitions

    def stream(self, kind: str, partition: int) -> str:
        """Return a stream's name; `kind` is J, Q, K or B."""
        return f"{self.namespace.upper()}_{kind}_{partition}"

    def stream_of(self, subject: str) -> str:
        """Return the stream of a subject."""
        _, kind, partition, _ = subject.split(".", 3)
        return f"{self.namespace.upper()}_{self._kinds[kind]}_{partition}"

    def journal(self, id: str) -> str:
        return f"{self.namespace}.j.{self.partition(id)}.{token(id)}"

    def start(self, handler: str, id: str) -> str:
        return f"{self.namespace}.q.{self.partition(id)}.start.{token(handler)}.{token(id)}"

    def any_start(self, id: str) -> str:
        """Match the queued start of an id, whatever its handler."""
        return f"{self.namespace}.q.{self.partition(id)}.start.*.{token(id)}"

    def message(self, id: str, message: str) -> str:
        return f"{self.namespace}.q.{self.partition(id)}.msg.{token(id)}.{token(message)}"

    def wake(self, id: str, name: str) -> str:
        """Name a wake among the messages; `name` has a character that no escaped id has."""
        return f"{self.namespace}.q.{self.partition(id)}.msg.{token(id)}.{name}"

    def messages(self, id: str) -> str:
        return f"{self.namespace}.q.{self.partition(id)}.msg.{token(id)}.*"

    def all_messages(self, partition: int) -> tuple[str, str]:
        """Match all messages and wakes, passed-on ones included."""
        return f"{self.namespace}.q.{partition}.msg.>", f"{self.namespace}.q.{partition}.to.>"

    def passed_on(self, handler: str, id: str, last: str) -> str:
        """Name a passed-on message; `last` is the last token of its original subject."""
        return f"{self.namespace}.q.{self.partition(id)}.to.{token(handler)}.{token(id)}.{last}"

    def passed_on_to_any(self, id: str, last: str) -> str:
        """Match a passed-on message, for any handler."""
        return f"{self.namespace}.q.{self.partition(id)}.to.*.{token(id)}.{last}"

    def all_passed_on(self, id: str) -> str:
        return f"{self.namespace}.q.{self.partition(id)}.to.*.{token(id)}.*"

    def schedule(self, id: str, what: str) -> str:
        return f"{self.namespace}.t.{self.partition(id)}.{token(id)}.{what}"

    def delayed(self, id: str, key: str | None) -> str:
        """Name the schedule of a start, in the partition of its target: with a key, in the key's partition."""
        return f"{self.namespace}.t.{self.partition(id if key is None else key)}.{token(id)}.start"

    def schedules(self, id: str) -> str:
        return f"{self.namespace}.t.{self.partition(id)}.{token(id)}.>"

    def leases(self, id: str) -> str:
        """Match the schedules of wakes at the end of leases."""
        return f"{self.namespace}.t.{self.partition(id)}.{token(id)}.lease.*"

    def all_schedules(self, partition: int) -> str:
        return f"{self.namespace}.t.{partition}.>"

    def key_position(self, key: str, id: str, generation: int) -> str:
        return f"{self.namespace}.l.{self.partition(key)}.{token(key)}.{token(id)}.{generation}"

    def key_positions(self, key: str, id: str) -> str:
        """Match the positions of an id in the queue of a key, in any generation."""
        return f"{self.namespace}.l.{self.partition(key)}.{token(key)}.{token(id)}.*"

    def key_queue(self, key: str) -> str:
        return f"{self.namespace}.l.{self.partition(key)}.{token(key)}.>"

    def before_key_queues(self, key: str) -> str:
        """Name the message that stays before all key queues of a stream. No escaped key has its `=`."""
        return f"{self.namespace}.l.{self.partition(key)}.=first"

    def nudge(self, key: str, name: str) -> str:
        return f"{self.namespace}.q.{self.partition(key)}.key.{token(key)}.{name}"

    def key(self, key: str) -> str:
        return f"{self.namespace}.k.{self.partition(key)}.key.{token(key)}"

    def key_copy(self, key: str) -> str:
        """Name the copy of a key's record in the stream of journals. No escaped id has its `=`."""
        return f"{self.namespace}.j.{self.partition(key)}.=key.{token(key)}"

    def secret_copy(self) -> str:
        return f"{self.namespace}.j.0.=secret"

    def answer(self, message: str) -> str:
        return f"{self.namespace}.k.{self.partition(message)}.answer.{token(message)}"

    def secret(self) -> str:
        return f"{self.namespace}.k.0.secret"

    def janitor(self) -> str:
        """Name the record that exists while a janitor's period lasts."""
        return f"{self.namespace}.k.0.janitor"

    def blob(self, id: str, blob: str, piece: int | str) -> str:
        return f"{self.namespace}.b.{self.partition(id)}.{token(id)}.{blob}.{piece}"

    def blobs(self, id: str) -> str:
        return f"{self.namespace}.b.{self.partition(id)}.{token(id)}.>"

    def items(self, id: str, stream: str | None) -> str:
        """Name the chunks of a stream of an invocation; with None, match those of all. No blob has the name `=`."""
        return f"{self.namespace}.b.{self.partition(id)}.{token(id)}.=.{'*' if stream is None else token(stream)}"

    def document(self, collection: str, key: Sequence[str]) -> str:
        tokens = ".".join(map(part_token, (collection, *key)))
        return f"{self.namespace}.k.{self.partition_of_part(collection, key[0])}.doc.{tokens}"

    def partition_of_part(self, collection: str, part: str) -> int:
        """Return the partition of the documents under a first part, and of the tokens of their fences."""
        return self.partition(f"{collection.removesuffix('=')}/{part}")

    def documents(self, partition: int, collection: str, within: Sequence[str]) -> str:
        """Match the documents of a collection in a partition whose keys begin with these parts and have more."""
        return f"{self.namespace}.k.{partition}.doc.{'.'.join(map(part_token, (collection, *within)))}.>"

    def document_key(self, subject: str) -> tuple[str, ...]:
        """Return the key of a document from its subject."""
        return self.document_of(subject)[1]

    def document_of(self, subject: str) -> tuple[str, tuple[str, ...]]:
        """Return the collection and the key of a document from its subject."""
        collection, *key = map(part_of, subject.removeprefix(f"{self.namespace}.k.").split(".")[2:])
        return collection, tuple(key)

    def guard(self, partition: int, number: int) -> str:
        return f"{self.namespace}.k.{partition}.=guard.{number}"

    def document_blob(self, partition: int, blob: str, piece: int | str) -> str:
        return f"{self.namespace}.b.{partition}.=doc.{blob}.{piece}"

    def settled(self, id: str) -> str:
        """Name the subject on which the outcome of an invocation is published."""
        return f"{self.namespace}.{EVENTS}.settled.{token(id)}"

    def written(self, id: str, stream: str) -> str:
        """Name the subject on which it is published that a stream has more."""
        return f"{self.namespace}.{EVENTS}.stream.{token(id)}.{token(stream)}"

    def told(self, subject: str) -> str:
        """Return the subject on which the server republishes what it stores on `subject`."""
        return f"{self.namespace}.{EVENTS}.{subject.partition('.')[2]}"

    def offers(self, store: str) -> str:
        return f"{self.namespace}.offer.{store}"

    def offers_of(self, python: str, handler: str) -> str:
        """Name the subject of offers to any process that serves a handler on this minor version of Python."""
        return f"{self.namespace}.minor.{token(python)}.{token(handler)}"

    def offers_to_holder(self, handler: str) -> str:
        """Name the subject of offers to whichever process that serves a handler holds the invocation."""
        return f"{self.namespace}.holder.{token(handler)}"
