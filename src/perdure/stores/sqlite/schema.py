"""The tables of the file, and the checksums that cover every row. A change needs a new version and a migration."""

from __future__ import annotations

import struct
import zlib

from perdure.stores.sql import awakeables
from perdure.stores.sql.index import INDEXES, TAGS

SCHEMA_VERSION = 4
"""The version that this release writes. It rises when earlier releases can no longer serve the file: with a table,
column or index that they do not maintain. It does not rise for a new entry, command, request or status: an earlier
release sets aside the invocations that have one, and serves the others."""
READABLE_VERSION = 2
"""The first version that can be read without a migration."""
ADDITIONS = """
DROP INDEX IF EXISTS invocation_scheduled;
CREATE INDEX IF NOT EXISTS invocation_due ON invocation (due, sequence) WHERE status = 'scheduled';
CREATE TABLE IF NOT EXISTS document (
    collection TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, revision INTEGER NOT NULL,
    checksum INTEGER NOT NULL, UNIQUE (collection, key)
);
CREATE TABLE IF NOT EXISTS stream (
    invocation TEXT NOT NULL, name TEXT NOT NULL, position INTEGER NOT NULL, data BLOB NOT NULL,
    checksum INTEGER NOT NULL, UNIQUE (invocation, name, position)
);
"""
"""What came without a new version, since a file that has it can be served by any release: an index, which SQLite
maintains, in place of one that did not tell the order of what is due together; and tables that earlier releases leave
alone. Made whenever a file that lacks it is opened to be served."""
NO_TIME = -1.0
"""The wake of an invocation that has none, where None cannot be used."""
_KEYS = """
CREATE TABLE key (
    name TEXT PRIMARY KEY, holder TEXT, generation INTEGER NOT NULL, state BLOB NOT NULL, checksum INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE line (
    key TEXT NOT NULL, sequence INTEGER NOT NULL, id TEXT NOT NULL, generation INTEGER NOT NULL,
    checksum INTEGER NOT NULL, PRIMARY KEY (key, sequence)
) WITHOUT ROWID;
CREATE INDEX line_by_id ON line (id);
"""
_MESSAGE_OF = "CREATE INDEX message_of ON message (invocation);"
_VERSION_4 = f"""
ALTER TABLE invocation ADD COLUMN tags TEXT;
ALTER TABLE invocation ADD COLUMN wait TEXT;
ALTER TABLE key ADD COLUMN number INTEGER NOT NULL DEFAULT 0;
{awakeables.TABLES}
{TAGS}
{INDEXES}
CREATE INDEX invocation_queued ON invocation (handler, sequence, status) WHERE status = 'pending';
"""
SCHEMA = f"""
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE invocation (
    id TEXT PRIMARY KEY, handler TEXT NOT NULL, key TEXT, created_at REAL NOT NULL, due REAL NOT NULL,
    identity BLOB NOT NULL, start BLOB NOT NULL, checksum INTEGER NOT NULL,
    status TEXT NOT NULL, sequence INTEGER, updated_at REAL NOT NULL, wake REAL, revision INTEGER NOT NULL,
    state_checksum INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX invocation_by_key ON invocation (key, created_at) WHERE key IS NOT NULL;
CREATE INDEX invocation_wake ON invocation (wake) WHERE wake IS NOT NULL;
CREATE TABLE frame (
    id TEXT NOT NULL, revision INTEGER NOT NULL, data BLOB NOT NULL, checksum INTEGER NOT NULL,
    PRIMARY KEY (id, revision)
) WITHOUT ROWID;
CREATE TABLE message (
    id TEXT PRIMARY KEY, invocation TEXT NOT NULL, data BLOB NOT NULL, checksum INTEGER NOT NULL, answer TEXT,
    answered INTEGER NOT NULL DEFAULT 0, answer_checksum INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX message_open ON message (invocation) WHERE answered = 0;
{_MESSAGE_OF}
{_KEYS}
{_VERSION_4}
{ADDITIONS}
"""
MIGRATIONS = {
    1: f"{_MESSAGE_OF} {_KEYS}",
    2: "",  # other indexes of invocations, as now
    3: (
        "DROP INDEX invocation_by_time; DROP INDEX invocation_by_status; DROP INDEX IF EXISTS invocation_settled;"
        "DROP INDEX invocation_queued;"
        f"{_VERSION_4}"  # `file` fills the table of awakeables
    ),
}
"""By version: the script that migrates a file to the next one."""
WITH_TAGS = WITH_AWAKEABLES = WITH_GRANTS = 4
"""The first version that has tags and waits, an index of awakeables, and the numbers of grants."""

NOTHING_OPEN = (
    "NOT EXISTS (SELECT 1 FROM message INDEXED BY message_open WHERE invocation = invocation.id AND answered = 0)"
)


def frame_checksum(id: str, revision: int, data: bytes) -> int:
    """Return the checksum of a frame, which covers its id and revision as well as its bytes."""
    return zlib.crc32(data, zlib.crc32(f"{id}\n{revision}".encode()))


def state_checksum(
    id: str,
    status: str,
    sequence: int | None,
    updated_at: float,
    wake: float | None,
    revision: int,
    wait: str | None = None,
) -> int:
    times = _pack_times(updated_at, NO_TIME if wake is None else wake)
    checksum = zlib.crc32(times, zlib.crc32(f"{id}\n{status}\n{sequence}\n{revision}".encode()))
    return zlib.crc32(wait.encode(), checksum) if wait else checksum


_pack_times = struct.Struct("<dd").pack


def key_checksum(name: str, holder: str | None, generation: int, state: bytes, grant: int = 0) -> int:
    checksum = zlib.crc32(state, zlib.crc32(f"{name}\n{holder!r}\n{generation}".encode()))
    return zlib.crc32(str(grant).encode(), checksum) if grant else checksum


def line_checksum(key: str, sequence: int, id: str, generation: int) -> int:
    return zlib.crc32(f"{key}\n{sequence}\n{id}\n{generation}".encode())


def answer_checksum(message_id: str, answer: str | None) -> int:
    """Return the checksum of an answered message. It is never 0, which is the checksum of an open message."""
    return zlib.crc32(f"{message_id}\n{answer!r}".encode()) | 1 << 32


def meta_checksum(schema: int, secret: bytes) -> int:
    return zlib.crc32(secret, schema)
