"""A read-only store: it creates, starts and writes nothing, and has no workers."""

from __future__ import annotations

from typing import Never

from perdure.errors import StoreReadOnly
from perdure.stores.jetstream.store import JetStreamStore
from perdure.stores.read_only import OnlyLooking


class JetStreamView(OnlyLooking, JetStreamStore):
    """A read-only store. Its streams must exist. Changes are pushed to it, as to any client."""

    makes_streams = False

    def _check_writable(self) -> None:
        self._refuse_change("nothing can be written")

    def _refuse_change(self, what: str) -> Never:
        self._check()
        raise StoreReadOnly(f"jetstream: the store was opened read-only, so {what}")
