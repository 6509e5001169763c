"""The layout of the file, and the checksums that cover every row. Changes to it need a version and a migration."""

from __future__ import annotations

import struct
import zlib

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE invocation (
    id TEXT PRIMARY KEY, handler TEXT NOT NULL, key TEXT, created_at REAL NOT NULL, due REAL NOT NULL,
    identity BLOB NOT NULL, start BLOB NOT NULL, checksum INTEGER NOT NULL,
    status TEXT NOT NULL, sequence INTEGER, updated_at REAL NOT NULL, wake REAL, revision INTEGER NOT NULL,
    state_checksum INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX invocation_by_time ON invocation (created_at, id);
CREATE INDEX invocation_by_status ON invocation (status, handler);
CREATE INDEX invocation_by_key ON invocation (key, created_at) WHERE key IS NOT NULL;
CREATE INDEX invocation_queued ON invocation (handler, sequence) WHERE status = 'pending';
CREATE INDEX invocation_scheduled ON invocation (due) WHERE status = 'scheduled';
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
"""

SETTLED = "status IN ('completed', 'failed', 'cancelled')"
NOTHING_OPEN = (
    "NOT EXISTS (SELECT 1 FROM message INDEXED BY message_open WHERE invocation = invocation.id AND answered = 0)"
)
PURGE_INDEXES = f"""
CREATE INDEX IF NOT EXISTS invocation_settled ON invocation (updated_at) WHERE {SETTLED};
CREATE INDEX IF NOT EXISTS message_of ON message (invocation);
"""
"""What retention needs. Made at every opening where they are missing: releases that do not use them keep them right."""


def frame_checksum(id: str, revision: int, data: bytes) -> int:
    """Return the checksum of a frame: it covers its place as well as its bytes."""
    return zlib.crc32(data, zlib.crc32(f"{id}\n{revision}".encode()))


def state_checksum(
    id: str, status: str, sequence: int | None, updated_at: float, wake: float | None, revision: int
) -> int:
    times = _pack_times(updated_at, -1.0 if wake is None else wake)
    return zlib.crc32(times, zlib.crc32(f"{id}\n{status}\n{sequence}\n{revision}".encode()))


_pack_times = struct.Struct("<dd").pack


def answer_checksum(message_id: str, answer: str | None) -> int:
    """Return the checksum of an answered message, which is never 0: that is the one of an open message."""
    return zlib.crc32(f"{message_id}\n{answer!r}".encode()) | 1 << 32


def meta_checksum(schema: int, secret: bytes) -> int:
    return zlib.crc32(secret, schema)
