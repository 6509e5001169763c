"""A program for tests of documents: it transfers between two accounts until it is killed, and prints what was done.

`python -m tests.writes_documents URL NAME`. Every line is the number of a transfer that was acknowledged.
"""

from __future__ import annotations

import asyncio
import sys

from perdure import Put, RevisionConflict, connect


async def main(url: str, name: str) -> None:
    async with connect(url) as client:
        accounts = client.documents("accounts", int)
        done = 0
        while True:
            one, two = await accounts.get_many(["bank/one", "bank/two"])
            assert one is not None
            assert two is not None
            transfer = [
                Put(one.key, one.value - 1, if_revision=one.revision),
                Put(two.key, two.value + 1, if_revision=two.revision),
                Put(f"bank/log/{name}/{done:08}", one.value, if_revision=0),
            ]
            try:
                await accounts.put_all(transfer)
            except RevisionConflict:
                continue
            print(done, flush=True)
            done += 1


asyncio.run(main(*sys.argv[1:]))
