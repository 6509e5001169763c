"""The SQLite store: one file, no server, every acknowledged write synced to disk.

One writer thread commits everything that waits in one transaction (WAL, `synchronous=FULL`), so that many invocations
share one fsync. A second thread reads through its own connection. Deliveries are dispatched in memory
(`local.dispatch`); the file holds what must outlive the process:

    invocation   one row each: its start, status, position in the queue, next wake; changes only with the status
    frame        the journals: (id, revision) -> bytes, each with a checksum
    message      what was posted, and its answer
    document     values that belong to no invocation: (collection, key) -> bytes, each with a checksum
    stream       chunks of streams: (invocation, name, position) -> bytes, each with a checksum
    meta         schema version, secret, number of the last commit, last revision of a document

Four files lie beside the database: SQLite's own `-wal` and `-shm`; `-lock`, which keeps out earlier releases, since
they know no other lock; and `-commit`, which holds the number of the last commit. `-commit` is written after each
commit and not synced. SQLite silently drops what follows a damaged page of the WAL: a database whose commit number is
lower than the one in `-commit` has lost acknowledged writes, and is refused. A log that an earlier process left is
written into the database before anything is added: what was read from it may never have been synced.

* `store` implements the Store protocol on the loop, and `reader` the half of it that only reads, which is also the
  store of a `read_only` client. `deliveries` delivers from the file. `writer` commits `unit`s in its thread; `keys`,
  `documents` and `streams` are its parts for these. `backup` copies the file while it is served.
* `file` opens and checks; `look` opens to read only; `lock` excludes other processes; `moved` detects that the file was
  moved, removed or replaced.
* `schema` defines the tables and checksums, `checked` verifies rows against their checksums, `aside` holds the
  invocations that failed this, `faults` explains errors.
"""

from perdure.stores.sqlite.reader import SqliteView
from perdure.stores.sqlite.store import SqliteStore

__all__ = ["SqliteStore", "SqliteView"]
