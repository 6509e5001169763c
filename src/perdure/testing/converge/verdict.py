"""Compares what a store has in the end with the model, and every journal with itself."""

from __future__ import annotations

from collections import Counter

from msgspec import Struct

from perdure.client import Client
from perdure.errors import PerdureError
from perdure.operations.local import store_behind
from perdure.testing.converge.folder import PURGED, RUNS, Folder, cancels_in, purges_in
from perdure.testing.converge.plan import Plan
from perdure.testing.programs import Endings, Interpreter, Model, all_of, encode
from perdure.testing.programs.journals import flaws
from perdure.testing.replay import replay


class Difference(Struct, frozen=True):
    """Something that is not as it must be, and the invocation, if it is one's."""

    text: str
    id: str | None = None


async def differences(
    client: Client, interpreter: Interpreter, folder: Folder, plan: Plan, kills: int
) -> list[Difference]:
    """Return what differs from the model, is wrong in a journal, or does not replay."""
    endings = Endings(client)
    endings.know(purges_in(folder))
    await endings.look()
    found = [Difference(each) for each in endings.flaws]
    back = {*folder.lines(PURGED)} & (endings.ids.keys() | endings.left.keys() | endings.broken.keys())
    found += (Difference("it was purged, and is there", id) for id in sorted(back))
    found += (Difference(f"it has not ended: {status}", id) for id, status in endings.left.items())
    states = {key: await client.state(key) for key in plan.keys}
    ids = {tag: id for id, tag in endings.ids.items()}
    for text in Model(plan.roots, cancels_in(folder)).differences(states, endings.outcomes):
        found.append(Difference(text, ids.get(text.split()[0])))
    store = await store_behind(client.operations)
    for id in endings.ids:
        found += (Difference(each, id) for each in flaws((await store.journal(id)).frames))
        try:
            replay(interpreter.workflow, await client.handle(id).export())
        except PerdureError as error:
            found.append(Difference(f"its journal does not replay: {error}", id))
    for line, times in Counter(folder.lines(RUNS)).items():
        if times > kills + 1:
            found.append(Difference(f"step and attempt {line} ran {times} times, with {kills} kills"))
    return found


async def shown(difference: Difference, client: Client, plan: Plan, seed: int) -> str:
    """Return a difference as text, with the program and the journal."""
    lines = [f"seed {seed}: {difference.text}"]
    tags = {each.tag: root for root in plan.roots for each in all_of(root)}
    words = [each.strip(":,") for each in difference.text.split()]
    roots = {root.tag: root for word in words if (root := tags.get(word)) is not None}
    lines += (f"program: {encode(root).decode()}" for root in roots.values())
    if difference.id is not None:
        lines += await journal_of(client, difference.id)
    return "\n".join(lines)


async def journal_of(client: Client, id: str) -> list[str]:
    """Return the journal of an invocation, a line for each frame."""
    store = await store_behind(client.operations)
    frames = (await store.journal(id)).frames
    return [f"journal of {id}, {len(frames)} frames:", *(f"  {n} {frame}" for n, frame in enumerate(frames))]
