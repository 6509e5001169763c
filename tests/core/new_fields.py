"""Programs that pass a class to a step, a child, a send and the state, before and after the class got a new field.

`python -m tests.core.new_fields FOLDER` exports the histories of those before: those in `golden_fields` were written
by a release whose digests counted every field.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import ModuleType

from perdure import Workflow
from perdure.testing import Environment

KINDS = {
    "dataclass": ("import dataclasses", "@dataclasses.dataclass", "object"),
    "frozen slots": ("import dataclasses", "@dataclasses.dataclass(frozen=True, slots=True)", "object"),
    "pydantic": ("import pydantic", "", "pydantic.BaseModel"),
    "struct": ("import msgspec", "", "msgspec.Struct"),
    "attrs": ("import attrs", "@attrs.define", "object"),
    "named tuple": ("import typing", "", "typing.NamedTuple"),
}

PROGRAM = """
{imports}
from perdure import Context, step, workflow

{decorator}
class Order({base}):
    id: int
    amount: int = 5
    {added}

@step
async def pay(order: Order, others: list[Order], by_name: dict[str, Order]) -> int:
    return order.amount

@workflow
async def child(order: Order) -> int:
    return order.id

@workflow
async def sent(order: Order) -> None: ...

@workflow
async def program(ctx: Context, id: int) -> int:
    order = Order(id)
    ctx.set("order", order)
    paid = await pay(order, [order, Order(2, amount=7) if {keyword} else Order(2, 7)], dict(a=order))
    ctx.send(sent, order)
    return paid + await child(order)
"""


def program(
    kind: str, added: str = "", argument: str = "order", name: str = "new_fields_program"
) -> Workflow[[int], int]:
    """Make the program for a kind of class, with another field if one is given."""
    imports, decorator, base = KINDS[kind]
    positional = base == "pydantic.BaseModel"
    field = f"note: {added}" if added else ""
    source = PROGRAM.format(imports=imports, decorator=decorator, base=base, added=field, keyword=positional)
    if positional:
        source = source.replace("Order(id)", "Order(id=id)").replace("Order(2, amount", "Order(id=2, amount")
    module = sys.modules[name] = ModuleType(name)
    exec(source, vars(module))
    return module.program


async def export(kind: str, added: str = "") -> bytes:
    """Return the history of a run."""
    called = program(kind, added)
    module = sys.modules["new_fields_program"]
    async with Environment(called, module.child, module.sent) as env:
        handle = await env.client.start(called, 1)
        await handle.result()
        return await handle.export()


async def main(folder: Path) -> None:
    for kind in KINDS:
        (folder / f"{kind}.json").write_bytes(await export(kind))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
