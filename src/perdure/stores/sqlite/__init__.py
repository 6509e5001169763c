"""The SQLite store: one file, no server, every acknowledged write synced to disk.

One writer thread commits everything that waits in one transaction (WAL, `synchronous=FULL`), so that many invocations
share one fsync. Reads go through a connection of their own in another thread. Who gets which delivery is decided in
memory (`dispatch`); the file holds what must outlive the process:

    invocation   one row each: its start, status, place in the queue, next wake; changes only with the status
    frame        the journals: (id, revision) -> bytes, each with a checksum
    message      what was posted, and its answer
    meta         schema version, secret, number of the last commit

Three files stand beside the database: SQLite's own `-wal` and `-shm`, and `-commit`, which keeps the number of the
last commit. It is written after each commit and not synced. SQLite silently drops what follows a damaged page of the
WAL; a database whose commit number is behind that file has lost something that was acknowledged, and is refused.
`-lock` is a database of its own: whoever holds its write lock serves the file. A forked child inherits no such lock.

* `store` is what the Store protocol asks for, on the loop; `writer` the thread that commits.
* `view` is the same for who only looks, at a file that another process may serve.
* `schema` is the layout and its checksums; `file` opens and checks; `lock` keeps others out; `faults` explains errors.
"""

from perdure.stores.sqlite.reader import SqliteView
from perdure.stores.sqlite.store import SqliteStore

__all__ = ["SqliteStore", "SqliteView"]
