"""The documents of a sealed store."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from perdure.stores.documents import Document, DocumentKey, DocumentStore, Fence, Put, Scan, Write, joined
from perdure.stores.sealed.fields import Fields

PLAIN = {
    *("perdure.handlers", "perdure.interfaces"),
    *("perdure.tokens", "perdure.sessions", "perdure.audit"),
    *("perdure.sealed", "perdure.rekey"),
}
"""Collections that are not sealed. They hold no values of users: types of the code; hashes of random secrets, names and
what was done; names of keys. A server without keys needs them to tell who may do what."""


class SealedDocuments:
    """The documents of `inner`, sealed."""

    def __init__(self, inner: DocumentStore, sealing: Fields, opening: Fields) -> None:
        self._inner = inner
        self._sealing = sealing
        self._opening = opening

    async def write(self, collection: str, writes: Sequence[Write], /, fence: Fence | None = None) -> list[int]:
        if collection not in PLAIN:
            writes = [self._sealed(collection, each) if isinstance(each, Put) else each for each in writes]
        return await self._inner.write(collection, writes, fence)

    async def read(self, collection: str, keys: Sequence[DocumentKey], /) -> list[Document | None]:
        found = await self._inner.read(collection, keys)
        return [None if each is None else document_with(self._opening, collection, each) for each in found]

    async def scan(self, collection: str, which: Scan, /) -> list[Document]:
        found = await self._inner.scan(collection, which)
        return [document_with(self._opening, collection, each) for each in found] if which.values else found

    def _sealed(self, collection: str, put: Put) -> Put:
        return replace(put, value=self._sealing.value(put.value, *_where(collection, put.key)))


def document_with(fields: Fields, collection: str, document: Document) -> Document:
    """Walk a document. The tokens of fences hold no values."""
    if collection in PLAIN or collection.endswith("="):
        return document
    return replace(document, value=fields.value(document.value, *_where(collection, document.key)))


def _where(collection: str, key: DocumentKey) -> tuple[bytes, bytes]:
    """Return the scope, which is the first part of the key within its collection, and the place."""
    return b"d/" + joined((collection, key[0])).encode(), b"document " + joined(key).encode()
