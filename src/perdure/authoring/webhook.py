"""What a hook starts a workflow with: the request of another system, after its signature was verified."""

from __future__ import annotations

import json
from typing import Any

from msgspec import Struct


class Webhook(Struct, frozen=True):
    """A request that another system sent, as the one argument of the workflow that a hook starts.

    `headers` are by lower-cased name, without signatures, credentials and cookies; several of one name are one text,
    with commas between them. `body` has the bytes that were sent.
    """

    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Return what the body holds as JSON; `ValueError` if it is not JSON."""
        return json.loads(self.body)
