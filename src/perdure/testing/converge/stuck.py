"""Shows what has not ended: who owns it, what it waits for, what is delivered to it and not taken, and its journal."""

from __future__ import annotations

from perdure.client import Client
from perdure.core.lifecycle import SETTLED
from perdure.operations.local import store_behind
from perdure.testing.converge.verdict import journal_of

SHOWN = 10
"""So many invocations are shown in full; the others are counted."""


async def what_is_left(client: Client) -> str:
    """Return what is known of all that has not ended."""
    left = [each async for each in client.list() if each.status not in SETTLED]
    store = await store_behind(client.operations)
    lines = [f"{len(left)} invocations have not ended"]
    for each in left[:SHOWN]:
        found = await client.handle(each.id).describe()
        lines.append(
            f"{found.id}: {found.status}, waits for {found.waiting_for or 'nothing that is known'}, due {found.due}"
        )
        lines.append(f"  claim: epoch {found.epoch}, worker {found.worker or 'none'}")
        lines.append(f"  deliveries: {', '.join(found.mail) or 'no message'}")
        if found.paused_because is not None:
            lines.append(f"  paused: {found.paused_because}")
        if found.key is not None:
            key = await store.key(found.key)
            lines.append(f"  key {found.key}: held by {key.holder}, generation {key.generation}")
        lines.append(f"  input: {dict(found.input)}")
        lines += (f"  {line}" for line in await journal_of(client, each.id))
    return "\n".join(lines)
