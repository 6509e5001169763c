"""Documents: values under keys, in collections, which belong to no invocation. The second protocol of every store.

A key is a tuple of parts. Its first part, within the collection, is the unit of atomicity: one write changes documents
under one first part, all of them or none. Keys are ordered by their parts, each in the order of its UTF-8 bytes.

The revision of a document grows with every write of it, also over a deletion; 0 stands for "there is none". A `Fence`
refuses the late write of a process that has lost what it writes for, which a revision alone does not: that process may
read again and get the new revision.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from typing import Protocol

import msgspec
from msgspec import Struct

from perdure.errors import Fenced, InvalidOption, LimitExceeded, RevisionConflict

KEY_LIMIT_BYTES = 1_000
"""The longest key, as UTF-8, with one byte between its parts."""
COLLECTION_LIMIT_BYTES = 100
"""The longest name of a collection, as UTF-8."""
OWN_PREFIX = "perdure."
"""Collections that begin with this hold what Perdure keeps for itself; users cannot name them."""
WRITES_LIMIT = 500
"""Documents that are written or checked together at most."""
SCAN_LIMIT = 200
"""Documents that one scan returns at most, unless it says otherwise."""
SCAN_BYTES = 8 * 1024 * 1024
"""About how many bytes of values `range` reads at a time: documents may have 64 MiB each."""
DELETE_BATCH = 200
"""Documents that the deletion of a range removes at a time."""
SEPARATOR = "\0"
"""Stands between the parts of a key where they are one string; less than every character of a part."""

DocumentKey = tuple[str, ...]


class Document(Struct, frozen=True):
    """A value, where it is, and the revision of its last write."""

    key: DocumentKey
    value: bytes
    revision: int


class Put(Struct, frozen=True):
    """Write a value. `if_revision`: only if the document is at that revision; 0: only if there is none."""

    key: DocumentKey
    value: bytes
    if_revision: int | None = None


class Delete(Struct, frozen=True):
    """Remove a document, if there is one. `if_revision` as in `Put`."""

    key: DocumentKey
    if_revision: int | None = None


class Check(Struct, frozen=True):
    """Change nothing, and fail the whole write unless the document is at that revision; 0: unless there is none."""

    key: DocumentKey
    if_revision: int


Write = Put | Delete | Check


class Fence(Struct, frozen=True):
    """For what a write is made: `name`, and a `token` that is greater for each later owner of that name.

    The documents under a first part remember the greatest token of each name that has written there. A write with a
    smaller one is refused.
    """

    name: str
    token: tuple[int, ...]


class Scan(Struct, frozen=True):
    """Which documents of a collection to read: those whose joined key begins with `prefix`, beyond the key `after`.

    In ascending order, or descending if `reverse`. Without `values`, the documents have empty ones. With `bytes`, no
    more are read once their values have so many: there are fewer than `limit` then, at least one, and more may follow.
    """

    prefix: str = ""
    after: DocumentKey | None = None
    reverse: bool = False
    limit: int = SCAN_LIMIT
    values: bool = True
    bytes: int | None = None

    def take(self, documents: Iterable[Document]) -> list[Document]:
        """Return the first of these documents, up to where they are enough."""
        found: list[Document] = []
        size = 0
        for each in itertools.islice(documents, self.limit):
            found.append(each)
            size += len(each.value)
            if self.bytes is not None and size >= self.bytes:
                break
        return found

    def is_full(self, found: Sequence[Document]) -> bool:
        """Report whether more documents may follow these."""
        size = sum(len(each.value) for each in found)
        return len(found) >= self.limit or (self.bytes is not None and size >= self.bytes)

    def has(self, joined_key: str) -> bool:
        """Report whether a joined key is among them, whatever the limit."""
        if not joined_key.startswith(self.prefix):
            return False
        if self.after is None:
            return True
        return joined_key < joined(self.after) if self.reverse else joined_key > joined(self.after)


class DocumentStore(Protocol):
    """The documents of a store."""

    async def write(self, collection: str, writes: Sequence[Write], /, fence: Fence | None = None) -> list[int]:
        """Make these writes durable, all or none; return the new revision for each, 0 if there is no document then.

        For a `Delete`, the revision is that of the document which it removed, 0 if there was none. Raises
        `RevisionConflict` or `Fenced`; then nothing is written. If the caller is cancelled, it may be written. The
        writes are `checked`.
        """
        ...

    async def read(self, collection: str, keys: Sequence[DocumentKey], /) -> list[Document | None]:
        """Read documents, for each its last write that was acknowledged before, or a later one."""
        ...

    async def scan(self, collection: str, which: Scan, /) -> list[Document]:
        """Read documents in the order of their keys. Each is read as by `read`; they are no snapshot together."""
        ...


async def whole(
    scan: Callable[[str, Scan], Awaitable[list[Document]]], collection: str
) -> AsyncGenerator[Document, None]:
    """Read a whole collection by `scan`, piece by piece, in the order of its keys."""
    which = Scan()
    while found := await scan(collection, which):
        for each in found:
            yield each
        if not which.is_full(found):
            return
        which = Scan(after=found[-1].key)


def joined(key: DocumentKey) -> str:
    """Return a key as one string. These are in the same order as the keys."""
    return SEPARATOR.join(key)


def split(joined_key: str) -> DocumentKey:
    """Return the key that was joined."""
    return tuple(joined_key.split(SEPARATOR))


def fences_of(collection: str) -> str:
    """Return the collection that holds the tokens of the fences in a collection. No other name ends with its `=`."""
    return f"{collection}="


def fence_key(part: str, fence: Fence) -> DocumentKey:
    """Return the key of the document that holds the token of a fence."""
    return part, fence.name


def fence_write(part: str, fence: Fence, found: Document | None) -> Write:
    """Return what a fenced write must make of the token that was found: a check if it is its own, else a put.

    Raises `Fenced` if it is a greater one.
    """
    key = fence_key(part, fence)
    if found is None:
        return Put(key, _encode_token(fence.token), if_revision=0)
    token = _decode_token(found.value)
    if token > fence.token:
        raise fenced(part, fence, token)
    if token == fence.token:
        return Check(key, found.revision)
    return Put(key, _encode_token(fence.token), if_revision=found.revision)


_encode_token = msgspec.json.Encoder().encode
_decode_token = msgspec.json.Decoder(tuple[int, ...]).decode


def check_collection(name: str) -> str:
    """Return the name of a collection, or raise `InvalidOption`."""
    if not isinstance(name, str) or not name or not name.isprintable() or "=" in name:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidOption(f"documents({name!r}): name the collection with printable characters, without '='")
    if name.startswith(OWN_PREFIX):
        raise InvalidOption(f"documents({name!r}): collections that begin with {OWN_PREFIX!r} are Perdure's own")
    if (size := len(name.encode())) > COLLECTION_LIMIT_BYTES:
        raise LimitExceeded(
            f"documents({name[:20]!r}…): the name has {size:,} bytes, and the limit is {COLLECTION_LIMIT_BYTES}",
            size=size,
            limit=COLLECTION_LIMIT_BYTES,
        )
    return name


def check_key(key: DocumentKey) -> DocumentKey:
    """Return a key, or raise `InvalidOption` or `LimitExceeded`."""
    for part in key:
        if not isinstance(part, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidOption(f"key {key!r}: its parts must be str, and {part!r} is not")
        if SEPARATOR in part:
            raise InvalidOption(f"key {key!r}: a part must not contain a NUL character")
    if not key or not all(key):
        raise InvalidOption(f"key {key!r}: it must have at least one part, and no part may be empty")
    try:
        size = len(joined(key).encode())
    except UnicodeEncodeError as error:
        raise InvalidOption(f"key {key!r}: it cannot be encoded as UTF-8: {error.reason}") from None
    if size > KEY_LIMIT_BYTES:
        raise LimitExceeded(
            f"key {joined(key)[:40]!r}…: it has {size:,} bytes, and the limit is {KEY_LIMIT_BYTES:,}",
            size=size,
            limit=KEY_LIMIT_BYTES,
        )
    return key


def checked(writes: Sequence[Write]) -> Sequence[Write]:
    """Return writes that may be made together, or raise `InvalidOption` or `LimitExceeded`."""
    if not writes:
        raise InvalidOption("no writes: give at least one")
    if len(writes) > WRITES_LIMIT:
        text = f"{len(writes):,} writes together: the limit is {WRITES_LIMIT:,}"
        raise LimitExceeded(text, size=len(writes), limit=WRITES_LIMIT)
    seen: set[DocumentKey] = set()
    for write in writes:
        check_key(write.key)
        if write.key in seen:
            raise InvalidOption(f"key {write.key!r} is written or checked twice: once is allowed")
        seen.add(write.key)
        revision = write.if_revision
        if revision is not None and (type(revision) is not int or revision < 0):
            raise InvalidOption(
                f"if_revision={revision!r}: give the revision of a document, or 0 if there must be none"
            )
    if len(parts := {write.key[0] for write in writes}) > 1:
        first, second = sorted(parts)[:2]
        raise InvalidOption(
            f"keys under {first!r} and {second!r} cannot be written together: all must have the same first part"
        )
    return writes


Find = Callable[[str, DocumentKey], Document | None]
"""Finds a document of a collection, as it is before a write."""


def check_writes(find: Find, collection: str, writes: Sequence[Write], fence: Fence | None) -> Write | None:
    """Raise `Fenced` or `RevisionConflict` if these may not be made; return what becomes of the token of the fence."""
    token: Write | None = None
    if fence is not None:
        part = writes[0].key[0]
        token = fence_write(part, fence, find(fences_of(collection), fence_key(part, fence)))
    for write in writes:
        if write.if_revision is not None or isinstance(write, Delete):  # what is removed must be readable
            found = find(collection, write.key)
            revision = 0 if found is None else found.revision
            if write.if_revision is not None and write.if_revision != revision:
                raise revision_conflict(write.key, write.if_revision, revision)
    return token


def revision_conflict(key: DocumentKey, expected: int, found: int) -> RevisionConflict:
    """Return the error for a document at another revision than a write expects."""
    wanted = "there must be none" if expected == 0 else f"it must be at revision {expected}"
    has = "there is none" if found == 0 else f"it is at revision {found}"
    return RevisionConflict(
        f"document {'/'.join(key)!r}: {wanted}, and {has}: read it again", key="/".join(key), revision=found
    )


def fenced(part: str, fence: Fence, found: Sequence[int]) -> Fenced:
    """Return the error for a write of a former owner."""
    return Fenced(
        f"documents under {part!r}: this write is made for {fence.name!r} as of {'.'.join(map(str, fence.token))}, and "
        f"its owner as of {'.'.join(map(str, found))} has written since: another process has taken over"
    )
