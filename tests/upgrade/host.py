"""A process of the next release: `python -m tests.upgrade.host PLACE FOLDER OPTIONS`, as tests.scenarios.host."""

from __future__ import annotations

import secrets
from typing import Any

from perdure.core import journal
from perdure.core.journal import Message
from perdure.operations.local import store_behind
from tests.scenarios.engine import Engine
from tests.scenarios.host import main


class NextEngine(Engine):
    """An engine with the verb of the next release."""

    async def annotate(self, id: str, text: str, wait: bool = True) -> str | None:
        """Send an annotation, and wait until it is applied; return why it is refused."""
        store = await store_behind(self._client.operations)
        annotate: Any = vars(journal)["Annotate"]
        message = Message(secrets.token_hex(8), id, store.clock.now(), annotate(text))
        await store.post(message)
        return (await store.answer(message.id)).refused if wait else None


if __name__ == "__main__":
    main(NextEngine)
