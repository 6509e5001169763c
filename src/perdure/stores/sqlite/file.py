"""Opens a file: creates it, or checks that it is whole, and reads its metadata."""

from __future__ import annotations

import logging
import os
import secrets
import sqlite3
import struct
from contextlib import closing
from pathlib import Path
from typing import Any, cast

from msgspec import Struct

from perdure.core.history import History
from perdure.core.journal import decode_frame
from perdure.errors import (
    StoreDamaged,
    StoreError,
    StoreTooNew,
)
from perdure.stores.awakeables import made_by
from perdure.stores.sql import awakeables, index
from perdure.stores.sql.index import SETTLED
from perdure.stores.sqlite.aside import Aside
from perdure.stores.sqlite.checked import (
    check_answer,
    check_described,
    check_frames,
    check_state,
    damaged,
    damaged_awakeable,
    message_of,
    start_of,
)
from perdure.stores.sqlite.faults import about, explained
from perdure.stores.sqlite.keys import verify_keys
from perdure.stores.sqlite.schema import (
    ADDITIONS,
    MIGRATIONS,
    SCHEMA,
    SCHEMA_VERSION,
    WITH_AWAKEABLES,
    WITH_GRANTS,
    WITH_TAGS,
    meta_checksum,
)

VERIFY_LIMIT_BYTES = 64 * 1024 * 1024
"""Files up to this size are checked completely when they are opened; of larger ones, only unsettled invocations."""
LOOK_LIMIT_BYTES = 16 * 1024 * 1024
"""Files up to this size are checked completely when they are opened to read only, which takes a quarter of a second."""
BUSY_MILLISECONDS = 5_000
"""How long a connection waits for another that locks the file."""
HEADER_BYTES = 100
"""The size of the header, which every database has."""
WAL_HEADER_BYTES = 32
"""The size of the header of a write-ahead log; the frames follow."""
_TABLES = {"meta", "invocation", "frame", "message"}
WITH_KEYS = 2
"""The first schema version with keys."""

log = logging.getLogger("perdure.sqlite")


class Opened(Struct):
    """The metadata of an opened file."""

    secret: bytes
    commit_number: int
    schema: int
    sequence: int = 0  # the last that was assigned to a start


def side_file(path: str) -> str:
    return path + "-commit"


def connect(path: str) -> sqlite3.Connection:
    with explained(path):
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=64)
        try:
            db.execute("PRAGMA synchronous = FULL")
            db.execute(f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}")
            db.text_factory = decode
        except sqlite3.Error:
            db.close()
            raise
        return db


def connect_to_read(path: str, options: str = "") -> sqlite3.Connection:
    """Connect without ever writing to the database: closing such a connection checkpoints nothing."""
    uri = f"{Path(path).as_uri()}?mode=ro{options}"
    db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA query_only = ON")
    db.execute("PRAGMA busy_timeout = 5000")
    db.text_factory = decode
    return db


def decode(text: bytes) -> str:
    """Decode any bytes as text, so that a damaged cell does not prevent reading other rows."""
    return text.decode("utf-8", "surrogateescape")


def refuse_lost(path: str) -> None:
    """Refuse a missing or empty file if the files beside it show that it had commits."""
    if _size(path):
        return
    if remembered := remembered_commit(path):
        lost = f"it is missing or empty, and had {remembered} commits: restore it"
        raise StoreDamaged(about(path, f"{lost}, or remove {side_file(path)} to begin anew"))
    if _size(path + "-wal") > WAL_HEADER_BYTES:  # one that holds no frame holds no commit
        lost = f"it is missing or empty, but its log {path}-wal exists: restore it"
        raise StoreDamaged(about(path, f"{lost}, or remove the log to begin anew"))


def refuse_foreign(path: str) -> None:
    """Refuse a file that is not a database, or is one of another program."""
    if not _size(path):
        return
    check_size(path)
    with explained(path), closing(connect_to_read(path, "&immutable=1")) as db:
        try:
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_NOTADB:
                raise
            return  # it is being written, or it is damaged, which opening it will show
        if tables and not tables >= _TABLES:
            raise StoreError(about(path, "it is a database of another program: name another file"))


def open_file(path: str, aside: Aside) -> Opened:
    """Open or create the database, check that it is whole, and return its metadata."""
    refuse_lost(path)
    remembered = remembered_commit(path)
    with explained(path):
        if os.path.exists(path + "-journal"):
            connect(path).close()  # rolls back a creation that was interrupted
        is_new = not _size(path) or _is_blank(path)
        if not is_new:
            _examine(path, remembered, aside)
        with closing(connect(path)) as db:
            if db.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
                raise StoreError(about(path, "its file system cannot hold a write-ahead log: use a local disk"))
            if is_new:
                _create(db)
            opened = read_meta(db, path)
            _migrate(db, opened)
            _note_name(db, path)
            _merge_log(db, path)
            last = "SELECT max(sequence) FROM (SELECT sequence FROM invocation UNION ALL SELECT sequence FROM line)"
            opened.sequence = db.execute(last).fetchone()[0] or 0
            return opened


def _examine(path: str, remembered: int, aside: Aside) -> None:
    """Check that a file is ours and whole before anything is written: closing it would checkpoint its log."""
    with closing(connect_to_read(path)) as db:
        opened = read_meta(db, path)
        _check_name(db, path)
        check_commit(path, opened, remembered)
        _check_log(path, opened)
        verify(db, path, aside, opened.schema)


def _check_name(db: sqlite3.Connection, path: str) -> None:
    """Refuse a hard link to a file with an unmerged log: the log lies beside the name that was served."""
    row = db.execute("SELECT value FROM meta WHERE name = 'name'").fetchone()
    if row is None or not isinstance(row[0], bytes) or (name := os.fsdecode(row[0])) == path:
        return
    if _size(name + "-wal") and os.path.exists(name) and os.path.samefile(name, path):
        text = f"it was last served as {name}, and its log {name}-wal is not merged: serve it once by that name"
        raise StoreDamaged(about(path, text))


def _note_name(db: sqlite3.Connection, path: str) -> None:
    """Record in the database the name by which it is served: SQLite finds its log by this name alone."""
    name = os.fsencode(path)
    if db.execute("SELECT value FROM meta WHERE name = 'name'").fetchone() != (name,):
        db.execute("INSERT OR REPLACE INTO meta VALUES ('name', ?)", (name,))


def _merge_log(db: sqlite3.Connection, path: str) -> None:
    """Write an earlier process's log into the database, and begin it anew.

    What that process failed to sync is read as if it were on the disk, where it may never be; what followed it in the
    log would be lost with it.
    """
    (busy, *_) = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        log.warning("%s", about(path, "another program reads it, so its log goes on as an earlier process left it"))


def check_commit(path: str, opened: Opened, remembered: int) -> None:
    """Check that a file has every acknowledged commit."""
    if opened.commit_number < remembered:
        lost = f"it ends at commit {opened.commit_number}, and {remembered} were acknowledged"
        cause = "its write-ahead log was lost or damaged, or the file was replaced by an older copy"
        remedy = f"restore a backup; to go on without what is lost, remove {side_file(path)}"
        raise StoreDamaged(about(path, f"{lost}: {cause}; {remedy}"))


def _check_log(path: str, opened: Opened) -> None:
    """Check that a log continues the database beside it, which may be an older copy.

    The commit number of the database without its log, plus the commits in the log, must reach the last commit number.
    """
    if not (commits := _commits_in_log(path + "-wal")):
        return
    try:
        with closing(connect_to_read(path, "&immutable=1")) as db:
            found = db.execute("SELECT value FROM meta WHERE name = 'commit'").fetchone()
    except sqlite3.Error:
        found = None
    without: object = None if found is None else found[0]
    if not isinstance(without, int):
        return  # the log holds its first commits, or a checkpoint was interrupted: the log repairs it
    if without + commits < opened.commit_number:
        text = (
            f"it is an older copy (commit {without}) than the log beside it, which has {commits} commits and ends at "
            f"{opened.commit_number}: put the right file back; to go on with the old copy, remove {path}-wal, "
            f"{path}-shm and {side_file(path)}"
        )
        raise StoreDamaged(about(path, text))


_LOG_HEADER = struct.Struct(">8xI4x8s8x")  # page size, salts: https://www.sqlite.org/fileformat2.html#walformat
_LOG_FRAME = struct.Struct(">4xI8s8x")  # size of the database after a commit, else 0; salts


def _commits_in_log(log: str) -> int:
    """Count the transactions in a write-ahead log."""
    commits = 0
    if not _size(log):
        return 0
    with open(log, "rb") as file:
        header = file.read(_LOG_HEADER.size)
        if len(header) < _LOG_HEADER.size:
            return 0
        page_size, salts = _LOG_HEADER.unpack(header)
        while len(frame := file.read(_LOG_FRAME.size)) == _LOG_FRAME.size:
            size_after, own_salts = _LOG_FRAME.unpack(frame)
            if own_salts != salts:
                break
            commits += size_after > 0
            file.seek(page_size, os.SEEK_CUR)
    return commits


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.exists(path) else 0


def check_size(path: str) -> None:
    """Check that a file is long enough: SQLite takes a few arbitrary bytes for an empty database."""
    if _size(path) < HEADER_BYTES:
        raise StoreDamaged(about(path, "it is not a database, or truncated: restore it, or name another file"))


def _is_blank(path: str) -> bool:
    """Report whether a database has no tables: its creation was interrupted."""
    check_size(path)
    with closing(connect_to_read(path)) as db:
        return db.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)


def _create(db: sqlite3.Connection) -> None:
    db.execute("BEGIN IMMEDIATE")
    _run_script(db, SCHEMA)
    secret = secrets.token_bytes(16)
    checksum = meta_checksum(SCHEMA_VERSION, secret)
    values = [("schema", SCHEMA_VERSION), ("secret", secret), ("checksum", checksum), ("commit", 0)]
    db.executemany("INSERT INTO meta VALUES (?, ?)", values)
    db.execute("COMMIT")


def _run_script(db: sqlite3.Connection, script: str) -> None:
    for statement in script.split(";"):
        if statement.strip():
            db.execute(statement)


def read_meta(db: sqlite3.Connection, path: str) -> Opened:
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables >= _TABLES:
        raise StoreError(about(path, "it is a database of another program: name another file"))
    meta = dict(cast("list[tuple[str, Any]]", db.execute("SELECT name, value FROM meta").fetchall()))
    if not isinstance(meta.get("schema"), int):
        raise StoreDamaged(about(path, "its metadata is incomplete"))
    if meta["schema"] > SCHEMA_VERSION:
        text = (
            f"its schema has version {meta['schema']}, and this release knows up to {SCHEMA_VERSION}: upgrade perdure"
        )
        raise StoreTooNew(about(path, text), schema=meta["schema"])
    whole = meta.keys() >= {"secret", "checksum"} and isinstance(meta.get("commit"), int)
    if not whole or meta_checksum(meta["schema"], meta["secret"]) != meta["checksum"]:
        raise StoreDamaged(about(path, "its metadata was changed"))
    return Opened(meta["secret"], meta["commit"], meta["schema"])


def _migrate(db: sqlite3.Connection, opened: Opened) -> None:
    """Migrate a file of an earlier release to the current schema, in one transaction; write only what is missing."""
    db.execute("BEGIN IMMEDIATE")
    for version in range(opened.schema, SCHEMA_VERSION):
        _run_script(db, MIGRATIONS[version])
    _run_script(db, ADDITIONS)
    if opened.schema < WITH_AWAKEABLES:
        _index_awakeables(db)
    if opened.schema != SCHEMA_VERSION:
        changed = [(SCHEMA_VERSION, "schema"), (meta_checksum(SCHEMA_VERSION, opened.secret), "checksum")]
        db.executemany("UPDATE meta SET value = ? WHERE name = ?", changed)
    db.execute("COMMIT")


_AWAKEABLE_TAG = b"awakeable"  # of the command, in the encoded frame


def _index_awakeables(db: sqlite3.Connection) -> None:
    """Fill the tables of awakeables from the journals. One that cannot be read is set aside elsewhere."""
    of_any = "SELECT DISTINCT id FROM frame WHERE instr(data, ?) ORDER BY id"
    for (id,) in db.execute(of_any, (_AWAKEABLE_TAG,)).fetchall():
        rows = db.execute("SELECT data FROM frame WHERE id = ? ORDER BY revision", (id,))
        try:
            history = History.of(decode_frame(data, id) for (data,) in rows)
        except StoreError as error:
            log.warning("the awakeables of invocation %s are not in the index: %s", id, error)
            continue
        if history.start is not None:
            awakeables.put(db, made_by(history.start, history))


def remembered_commit(path: str) -> int:
    try:
        with open(side_file(path), "rb") as side:
            text = side.read(32).strip()
    except FileNotFoundError:
        return 0
    return int(text) if text.isdigit() else 0


def verify(db: sqlite3.Connection, path: str, aside: Aside, schema: int = SCHEMA_VERSION) -> None:
    """Check every page and every row of a small file; of a large one, the keys and unsettled invocations.

    Damaged pages refuse the file. A row that does not match its checksum sets only its own invocation aside.
    """
    if schema >= WITH_KEYS:
        verify_keys(db, path, aside, with_grants=schema >= WITH_GRANTS)
    if schema >= WITH_AWAKEABLES:
        _verify_awakeables(db, path, aside)
    if os.path.getsize(path) > VERIFY_LIMIT_BYTES:
        _verify_rows(db, path, f"WHERE NOT {SETTLED}", aside, schema)
        return
    (verdict,) = db.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != "ok":
        raise StoreDamaged(about(path, f"SQLite finds it damaged: {verdict}"))
    _verify_rows(db, path, "", aside, schema)
    if schema >= WITH_TAGS:
        _verify_tags(db, path, aside)
    for (stray,) in db.execute("SELECT DISTINCT id FROM frame WHERE id NOT IN (SELECT id FROM invocation)"):
        aside.add(stray, damaged(path, f"the row of invocation {stray!r} is missing, but its journal exists"))
    query = "SELECT invocation, id, data, checksum, answer, answered, answer_checksum FROM message"
    for to, id, data, checksum, answer, answered, recorded in db.execute(query):
        try:
            if message_of(path, to, data, checksum).id != id:
                raise damaged(path, f"a message to invocation {to!r} was changed")
            check_answer(path, to, id, answer, answered, recorded)
        except StoreError as error:
            aside.add(to, error)


def _verify_awakeables(db: sqlite3.Connection, path: str, aside: Aside) -> None:
    """Check the index of awakeables: each row, the columns that are searched by, and the assignees."""
    columns = "generation, n, at, handler, expires_at"
    assigned: set[tuple[str, float, str, int, int]] = set()
    for *stored, generation, n, at, handler, expires_at in db.execute(
        f"SELECT {awakeables.STORED}, {columns} FROM awakeable"
    ):
        found = awakeables.decode(stored)
        if found is None or awakeables.searched_by(found) != (generation, n, at, handler, expires_at):
            aside.add(stored[0], damaged_awakeable(path, stored[0]))
        else:
            assigned.update(awakeables.assignees_of(found))
    have = set(cast("list[tuple[str, float, str, int, int]]", db.execute("SELECT * FROM assignee")))
    for _, _, id, *_ in have ^ assigned:
        aside.add(id, damaged_awakeable(path, id))


def _verify_tags(db: sqlite3.Connection, path: str, aside: Aside) -> None:
    """Check that the index of tags has those of the invocations, and no others."""
    have = set(cast("list[tuple[str, str, float, str]]", db.execute("SELECT name, value, at, invocation FROM tag")))
    wanted: set[tuple[str, str, float, str]] = set()
    for id, start, checksum in db.execute("SELECT id, start, checksum FROM invocation WHERE tags IS NOT NULL"):
        try:
            found = start_of(path, id, start, checksum)
        except StoreError:
            continue  # it is set aside already
        wanted.update(index.tag_rows(id, found.at, found.tags))
    for *_, id in have ^ wanted:
        aside.add(id, damaged(path, f"a tag of invocation {id!r} was changed in the index"))


def _verify_rows(db: sqlite3.Connection, path: str, where: str, aside: Aside, schema: int) -> None:
    query = (
        f"SELECT id, handler, key, created_at, due, identity, {'tags' if schema >= WITH_TAGS else 'NULL'}, start, "
        f"checksum, {'wait' if schema >= WITH_TAGS else 'NULL'}, status, sequence, updated_at, wake, revision, "
        f"state_checksum FROM invocation {where}"
    )
    for id, *described, data, checksum, wait, status, sequence, at, wake, revision, recorded in db.execute(query):
        try:
            check_described(path, start_of(path, id, data, checksum), described)
            check_state(path, id, status, sequence, at, wake, revision, wait, recorded)
            frames = db.execute(
                "SELECT revision, data, checksum FROM frame WHERE id = ? ORDER BY revision", (id,)
            ).fetchall()
            check_frames(path, id, revision, frames)
        except StoreError as error:
            aside.add(id, error)
        except (TypeError, ValueError) as error:
            aside.add(id, damaged(path, f"the row of invocation {id!r} was changed ({error})"))
