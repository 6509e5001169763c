"""A store that is only looked at: nothing is made, started, sent or written, and no worker serves it from here."""

from __future__ import annotations

from typing import Never

from perdure.errors import StoreReadOnly
from perdure.stores.jetstream.store import JetStreamStore
from perdure.stores.read_only import OnlyLooking


class JetStreamView(OnlyLooking, JetStreamStore):
    """A store whose streams must exist. Changes are pushed, as to any other client."""

    makes_streams = False

    def _refuse_change(self, what: str) -> Never:
        self._check()
        raise StoreReadOnly(f"jetstream: the store was opened to be read only, so {what}")
