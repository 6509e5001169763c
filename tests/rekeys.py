"""A process that serves a sealed store while its keys are changed, slowly, so that it can be killed in the middle.

Its arguments are the URL of the store and, if it is to begin, `begin`. It serves the programs of `sealed_programs`, and
keeps running some of them.
"""

from __future__ import annotations

import asyncio
import sys

from perdure import connect
from perdure.encryption import Encrypted
from perdure.operations import rekeying
from perdure.stores.jetstream import rewriting as of_jetstream
from perdure.stores.sqlite import rewriting as of_sqlite
from tests.sealed_programs import LONG, WORKFLOWS, child, counts, sent
from tests.sealed_programs import Order as TheOrder

OLD_NAME, NEW_NAME = "the-old-key-of-2026-05", "the-new-key-of-2026-11"
OLD, NEW = b"o" * 32, b"n" * 32


async def main(url: str, *, begins: bool) -> None:
    rekeying.SAVE_SECONDS, rekeying.HELD_SECONDS, rekeying.SHARE = 0.0, 2.0, 0.5
    of_sqlite.PART_LIMIT = of_jetstream.PART_LIMIT = 10
    codec = Encrypted({NEW_NAME: NEW, OLD_NAME: OLD})
    async with connect(url, codec=codec) as client, client.worker(*WORKFLOWS):
        if begins:
            await client.operations.begin_rekey()
        print("serves", flush=True)
        n = 0
        while True:
            n += 1
            await client.run(sent, f"{LONG} {n}")
            await client.run(child, TheOrder(LONG, n))
            await client.run(counts.using(key="load"), LONG)
            await asyncio.sleep(0.1)  # a part has ten rows only, and is to get on


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], begins="begin" in sys.argv[2:]))
