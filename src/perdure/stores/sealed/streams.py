"""The streams of a sealed store: each batch is sealed as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from perdure.core.streams import Batch
from perdure.stores.sealed.fields import Fields
from perdure.stores.sealed.walk import batch_with
from perdure.stores.streams import Chunk, Following, StreamStore


class SealedStreams:
    """The streams of `inner`, sealed."""

    def __init__(self, inner: StreamStore, sealing: Fields, opening: Fields) -> None:
        self._inner = inner
        self._sealing = sealing
        self._opening = opening

    async def append(self, id: str, epoch: int, batch: Batch, /) -> None:
        await self._inner.append(id, epoch, batch_with(self._sealing, id, batch))

    async def read(self, id: str, name: str, start: int, /) -> Sequence[Chunk]:
        found = await self._inner.read(id, name, start)
        return [replace(each, batch=batch_with(self._opening, id, each.batch)) for each in found]

    async def counts(self, id: str, /) -> Mapping[str, int]:
        return await self._inner.counts(id)

    def follow(self, id: str, name: str, /) -> Following:
        return self._inner.follow(id, name)
