"""Documents: values by key in a collection, which belong to no invocation. See docs/how-to/documents.md."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from typing import Any, Generic, TypeVar, cast

from msgspec import Struct

from perdure.authoring.step import StepInfo
from perdure.calls import refuse_in_body
from perdure.core.types import decoder, validator
from perdure.core.values import encode
from perdure.errors import InvalidOption, Undecodable, Unencodable
from perdure.operations import documents as kept
from perdure.operations.documents import SCAN_BYTES, SCAN_LIMIT
from perdure.operations.port import Operations

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Key = str | tuple[str, ...]
"""The key of a document: its parts, or a string that has them between slashes."""


class Document(Struct, Generic[T_co], frozen=True):
    """A value, where it is, and its revision, which grows with every write of it.

    `parts` are the parts of the key, and `key` has them between slashes.
    """

    key: str
    value: T_co
    revision: int
    parts: tuple[str, ...] = ()


class Put(Struct, Generic[T_co], frozen=True):
    """One of several writes that are made together. `if_revision` as in `Documents.put`."""

    key: Key
    value: T_co
    if_revision: int | None = None


class Delete(Struct, frozen=True):
    """One of several writes that are made together: remove a document, if there is one."""

    key: Key
    if_revision: int | None = None


class Check(Struct, frozen=True):
    """Among writes that are made together, a document that must be at this revision, and is not changed.

    0: there must be none.
    """

    key: Key
    if_revision: int


class Documents(Generic[T]):
    """One collection of documents of one type. Keys are ordered by their parts, each by its UTF-8 bytes.

    A key is a `str`, whose parts are separated by slashes, or a tuple of parts: at least one part, none of them empty,
    1,000 bytes in all. Documents whose keys have the same first part can be written together.
    """

    def __init__(self, operations: Operations, collection: str, type: Any) -> None:
        self._operations = operations
        self._collection = collection
        self._decode = decoder(type)
        self._validate = validator(type)

    async def get(self, key: Key, /) -> Document[T] | None:
        """Return a document, or None if there is none."""
        (found,) = await self.get_many([key])
        return found

    async def get_many(self, keys: Iterable[Key], /) -> list[Document[T] | None]:
        """Return documents in the order of their keys here, each or None."""
        refuse_in_body("documents.get()")
        wanted = [_parts(key) for key in keys]
        found = await self._operations.read_documents(self._collection, wanted)
        return [None if each is None else self._document(each) for each in found]

    async def put(self, key: Key, value: T, /, *, if_revision: int | None = None) -> int:
        """Write a value and return its revision, once it is durable.

        With `if_revision` only if the document is at that revision, and 0 only if there is none: `RevisionConflict`.
        """
        (revision,) = await self.put_all([Put(key, value, if_revision)])
        return revision

    async def put_all(
        self, writes: Iterable[Put[T] | Delete | Check], /, *, fence: StepInfo | None = None
    ) -> list[int]:
        """Make several writes, all or none, and return the revision of each; at most 500.

        Their keys have the same first part. `RevisionConflict` if a document is not at the revision that a write
        names. The revision of a `Delete` is that of the document which it removed, 0 if there was none.

        `fence=step_info()` in a step makes them in the name of its invocation, or of its key if it has one: `Fenced` if
        a later owner has written there, under the same first part and with a fence of its own. So a worker that stood
        still, and whose invocation went on elsewhere, cannot undo what was written since.
        """
        refuse_in_body("documents.put()")
        encoded = [self._encoded(write) for write in writes]
        claim = None if fence is None else _fence_of(fence)
        return await self._operations.write_documents(self._collection, kept.checked(encoded), claim)

    async def delete(self, key: Key, /, *, if_revision: int | None = None) -> bool:
        """Remove a document; return whether there was one. `if_revision` as in `put`."""
        (revision,) = await self.put_all([Delete(key, if_revision)])
        return revision > 0

    async def delete_range(self, prefix: Key, /) -> int:
        """Remove the documents whose keys begin with `prefix`, piece by piece; return how many there were.

        A document that is written meanwhile may remain.
        """
        refuse_in_body("documents.delete_range()")
        return await self._operations.delete_documents(self._collection, _prefix(prefix))

    async def range(
        self, prefix: Key = "", /, *, after: Key | None = None, limit: int | None = None, reverse: bool = False
    ) -> AsyncGenerator[Document[T], None]:
        """Iterate over the documents whose keys begin with `prefix`, in order, beyond the key `after`.

        `"ada/"` is the prefix of every key under the part `ada`, `"ada"` of `ada`, `ada/1` and `adam`; a tuple is a
        prefix of the keys that have further parts. With `reverse`, the order is descending. They are read in pages:
        a document that is written meanwhile may be among them or not. Go on later with the `parts` of the last one as
        `after`.
        """
        refuse_in_body("documents.range()")
        if limit is not None and (type(limit) is not int or limit < 0):
            raise InvalidOption(f"range(limit={limit!r}): give a number of documents, or None for all")
        beyond = None if after is None else _parts(after)
        while limit is None or limit > 0:
            size = SCAN_LIMIT if limit is None else min(limit, SCAN_LIMIT)
            which = kept.Scan(_prefix(prefix), beyond, bool(reverse), size, bytes=SCAN_BYTES)
            found = await self._operations.scan_documents(self._collection, which)
            for each in found:
                yield self._document(each)
            if not which.is_full(found):
                return
            beyond = found[-1].key
            limit = None if limit is None else limit - len(found)

    def _document(self, found: kept.Document) -> Document[T]:
        return Document("/".join(found.key), self._decode(found.value), found.revision, found.key)

    def _encoded(self, write: Put[T] | Delete | Check) -> kept.Write:
        match write:
            case Put(key, value, if_revision):
                parts = _parts(key)
                what = f"document {'/'.join(parts)!r}"
                data = encode(value, what)
                try:
                    self._validate(data)
                except Undecodable as error:
                    text = f"{what} of collection {self._collection!r} cannot be written: it would not be read as its"
                    raise Unencodable(f"{text} type: {error}") from error
                return kept.Put(parts, data, if_revision)
            case Delete(key, if_revision):
                return kept.Delete(_parts(key), if_revision)
            case Check(key, if_revision):
                return kept.Check(_parts(key), if_revision)
            case _:
                raise InvalidOption(f"put_all([{write!r}]): give Put, Delete and Check")


def _fence_of(info: StepInfo) -> kept.Fence:
    if not isinstance(info, StepInfo):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidOption(f"put_all(fence={info!r}): give step_info()")
    if info.key is None:
        return kept.Fence(f"invocation {info.invocation_id}", (info.epoch,))
    return kept.Fence(f"key {info.key}", (info.grant or 0, info.epoch))


def _parts(key: object) -> tuple[str, ...]:
    """Return the parts of a key, or raise what says why it is none."""
    if isinstance(key, str):
        return kept.check_key(tuple(key.split("/")))
    if isinstance(key, tuple):
        return kept.check_key(cast("tuple[str, ...]", key))
    raise InvalidOption(f"key {key!r}: give a str such as 'ada/1', or a tuple of str")


def _prefix(prefix: object) -> str:
    """Return a prefix of joined keys."""
    if isinstance(prefix, str):
        try:
            prefix.encode()
        except UnicodeEncodeError as error:
            raise InvalidOption(f"prefix {prefix!r}: it cannot be encoded as UTF-8: {error.reason}") from None
        return kept.SEPARATOR.join(prefix.split("/"))
    if isinstance(prefix, tuple):
        return kept.SEPARATOR.join([*_parts(cast("object", prefix)), ""])
    raise InvalidOption(f"prefix {prefix!r}: give a str such as 'ada/', or a tuple of str")
