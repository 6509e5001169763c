"""The documents of the memory store."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from perdure.stores.documents import (
    Check,
    Delete,
    Document,
    DocumentKey,
    Fence,
    Put,
    Scan,
    Write,
    check_writes,
    fences_of,
    joined,
)


class MemoryDocuments:
    """Holds documents in dictionaries. `check` raises if the store is closed; `note` is called before each write."""

    def __init__(self, check: Callable[[], None], note: Callable[[str, str], None]) -> None:
        self._check = check
        self._note = note
        self.collections: dict[str, dict[DocumentKey, Document]] = {}
        self._revision = 0

    async def write(self, collection: str, writes: Sequence[Write], /, fence: Fence | None = None) -> list[int]:
        self._check()
        token = check_writes(lambda where, key: self._of(where).get(key), collection, writes, fence)
        self._note("documents", collection)
        if isinstance(token, Put):
            self._apply(fences_of(collection), token)
        return [self._apply(collection, write) for write in writes]

    def _apply(self, collection: str, write: Write) -> int:
        held = self.collections.setdefault(collection, {})
        match write:
            case Put(key, value):
                self._revision += 1
                held[key] = Document(key, value, self._revision)
                return self._revision
            case Delete(key):
                found = held.pop(key, None)
                return 0 if found is None else found.revision
            case Check(_, revision):
                return revision

    async def read(self, collection: str, keys: Sequence[DocumentKey], /) -> list[Document | None]:
        self._check()
        return [self._of(collection).get(key) for key in keys]

    async def scan(self, collection: str, which: Scan, /) -> list[Document]:
        self._check()
        found = [each for each in self._of(collection).values() if which.has(joined(each.key))]
        found.sort(key=lambda each: each.key, reverse=which.reverse)
        return which.take(each if which.values else Document(each.key, b"", each.revision) for each in found)

    def _of(self, collection: str) -> dict[DocumentKey, Document]:
        return self.collections.get(collection, {})
