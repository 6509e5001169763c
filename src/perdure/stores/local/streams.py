"""The streams of the memory store."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence

from msgspec.structs import replace

from perdure.core.streams import Batch
from perdure.stores.rewriting import Rewriting
from perdure.stores.streams import READ_BYTES, Chunk, Follower, Followers, lost, next_of_body, next_of_step


class MemoryStreams:
    """Holds chunks in lists. `check` raises if the store is closed; `note` is called before each write.

    `may_write` reports whether a step of an invocation may write.
    """

    def __init__(
        self, check: Callable[[], None], note: Callable[[str, str], None], may_write: Callable[[str], bool]
    ) -> None:
        self._check = check
        self._note = note
        self._may_write = may_write
        self.chunks: dict[str, dict[str, list[Chunk]]] = {}  # by invocation and name
        self.followers = Followers()

    async def append(self, id: str, epoch: int, batch: Batch, /) -> None:
        self._check()
        if not self._may_write(id):
            raise lost(id, batch.name, epoch)
        self._add(id, next_of_step(self._last(id, batch.name), id, epoch, batch))

    def append_of_body(self, id: str, batch: Batch) -> None:
        if (chunk := next_of_body(self._last(id, batch.name), batch)) is not None:
            self._add(id, chunk)

    def _last(self, id: str, name: str) -> Chunk | None:
        chunks = self._of(id).get(name)
        return chunks[-1] if chunks else None

    def _add(self, id: str, chunk: Chunk) -> None:
        self._note("stream", id)
        self.chunks.setdefault(id, {}).setdefault(chunk.batch.name, []).append(chunk)
        self.followers.tell(id, chunk.batch.name)

    async def read(self, id: str, name: str, start: int, /) -> Sequence[Chunk]:
        self._check()
        found: list[Chunk] = []
        chunks, size = self._of(id).get(name, []), 0
        at = max(0, bisect_right(chunks, start, key=lambda each: each.offset) - 1)
        for chunk in chunks[at:]:
            if chunk.end > start:
                found.append(chunk)
                size += len(chunk.batch.data)
                if size >= READ_BYTES:
                    break
        return found

    async def counts(self, id: str, /) -> Mapping[str, int]:
        self._check()
        return {name: chunks[-1].end for name, chunks in sorted(self._of(id).items())}

    def follow(self, id: str, name: str, /) -> Follower:
        self._check()
        return self.followers.follow(id, name)

    def rewritten(self, id: str, streams: dict[str, list[Chunk]], rewriting: Rewriting) -> dict[str, list[Chunk]]:
        """Return the chunks of an invocation with what becomes of their items."""
        return {
            name: [replace(each, batch=rewriting.batch(id, each.batch)) for each in chunks]
            for name, chunks in streams.items()
        }

    def remove(self, id: str) -> None:
        self.chunks.pop(id, None)

    def _of(self, id: str) -> dict[str, list[Chunk]]:
        return self.chunks.get(id, {})
