"""The pieces of documents that are too large for a message."""

from __future__ import annotations

from perdure.stores.jetstream.journal.blobs import Blobs
from perdure.stores.jetstream.layout.subjects import Layout
from perdure.stores.jetstream.wire.wire import Wire


class DocumentBlobs(Blobs):
    """Stores large documents of one partition. Their names are unique in it, whatever the `id` of the document."""

    _what = "document"

    def __init__(self, wire: Wire, layout: Layout, partition: int) -> None:
        super().__init__(wire, layout)
        self._partition = partition

    def _subject(self, id: str, blob: str, piece: int | str) -> str:
        return self._layout.document_blob(self._partition, blob, piece)
