"""The SQLite store: one file, no server, every acknowledged write synced to disk.

One writer thread commits everything that waits in one transaction (WAL, `synchronous=FULL`), so that many invocations
share one fsync. Reads go through a connection of their own in another thread. Deliveries are dispatched in memory
(`local.dispatch`); the file holds what must outlive the process:

    invocation   one row each: its start, status, position in the queue, next wake; changes only with the status
    frame        the journals: (id, revision) -> bytes, each with a checksum
    message      what was posted, and its answer
    meta         schema version, secret, number of the last commit

Three files stand beside the database: SQLite's own `-wal` and `-shm`, and `-commit`, which keeps the number of the
last commit. It is written after each commit and not synced. SQLite silently drops what follows a damaged page of the
WAL; a database whose commit number is behind that file has lost something that was acknowledged, and is refused.
`-lock` keeps out earlier releases, which know no other lock.

* `store` is the Store protocol, on the loop; `reader` its half that only reads, and the store of a `read_only` client;
  `deliveries` hands out what the file holds; `writer` commits, in its thread, what `unit` describes; `keys` is its part
  for keys; `backup` copies the file meanwhile.
* `file` opens and checks; `look` opens only to read; `lock` keeps others out; `place` notices that the file is gone.
* `schema` is the layout and its checksums, `checked` compares what was read with them, `aside` names the invocations
  that do not fit, `faults` explains errors.
"""

from perdure.stores.sqlite.reader import SqliteView
from perdure.stores.sqlite.store import SqliteStore

__all__ = ["SqliteStore", "SqliteView"]
