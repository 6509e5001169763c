"""Opening a file: create it or see that it is whole, and learn what a store needs to know of it."""

from __future__ import annotations

import os
import secrets
import sqlite3
from pathlib import Path
from typing import Any, cast

from msgspec import Struct

from perdure.errors import (
    StoreDamaged,
    StoreError,
    StoreTooNew,
)
from perdure.stores.sqlite.aside import Aside
from perdure.stores.sqlite.checked import (
    check_answer,
    check_described,
    check_frames,
    check_state,
    damaged,
    message_of,
    start_of,
)
from perdure.stores.sqlite.faults import about, explained
from perdure.stores.sqlite.keys import verify_keys
from perdure.stores.sqlite.schema import (
    MIGRATIONS,
    SCHEMA,
    SCHEMA_VERSION,
    meta_checksum,
)

VERIFY_LIMIT_BYTES = 64 * 1024 * 1024
"""Files up to this size are checked whole when they are opened; of larger ones, what is not settled."""
LOOK_LIMIT_BYTES = 16 * 1024 * 1024
"""Files up to this size are checked whole when they are opened only to be read: a quarter of a second."""
HEADER_BYTES = 100
"""A database has at least these."""


class Opened(Struct):
    """What a file says of itself."""

    secret: bytes
    commit_number: int
    schema: int
    sequence: int = 0  # the last that was given to a start


def side_file(path: str) -> str:
    return path + "-commit"


def connect(path: str) -> sqlite3.Connection:
    with explained(path):
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=64)
        try:
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA busy_timeout = 5000")
            db.text_factory = _decode
        except sqlite3.Error:
            db.close()
            raise
        return db


def _decode(text: bytes) -> str:
    """Decode text of any bytes: a damaged cell must not keep the rows beside it from being read."""
    return text.decode("utf-8", "surrogateescape")


def open_file(path: str, aside: Aside) -> Opened:
    """Open or create the database, see that it is whole, and return what a store needs to know of it."""
    existed = os.path.exists(path) and os.path.getsize(path) > 0
    remembered = _remembered_commit(path)
    if not existed and remembered:
        lost = f"it is missing or empty, and had {remembered} commits: restore it"
        raise StoreDamaged(about(path, f"{lost}, or remove {side_file(path)} to begin anew"))
    with explained(path):
        if existed:
            _check_kind(path)
        db = connect(path)
        try:
            if existed:
                _read_meta(db, path)  # before anything is written: it may be somebody else's
            if db.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
                raise StoreError(about(path, "its file system cannot hold a write-ahead log: use a local disk"))
            if not existed:
                _create(db)
            opened = _read_meta(db, path)
            _check_commit(path, opened, remembered)
            _migrate(db, opened)
            _verify(db, path, aside)
            given = "SELECT max(sequence) FROM (SELECT sequence FROM invocation UNION ALL SELECT sequence FROM line)"
            opened.sequence = db.execute(given).fetchone()[0] or 0
            return opened
        finally:
            db.close()


def look(path: str, aside: Aside) -> tuple[sqlite3.Connection, Opened]:
    """Open a database that exists to read it, whoever serves it meanwhile; nothing of it is written or made.

    A small one is checked whole, as `open_file` does; of any other, what is read is checked as it is read.
    """
    if not os.path.exists(path):
        raise StoreError(about(path, "there is no such file: name the one that the workers use"))
    if os.path.isdir(path):
        raise StoreError(about(path, "it is a folder: name a file"))
    remembered = _remembered_commit(path)  # before the database is read: it may grow meanwhile
    with explained(path):
        _check_kind(path)
        db = sqlite3.connect(_to_read(path), uri=True, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA query_only = ON")
            db.execute("PRAGMA busy_timeout = 5000")
            db.text_factory = _decode
            db.execute("BEGIN")  # one state of it, whatever is written meanwhile
            opened = _read_meta(db, path)
            if opened.schema != SCHEMA_VERSION:
                text = f"its schema is an earlier one ({opened.schema}, now {SCHEMA_VERSION})"
                raise StoreError(about(path, f"{text}: serve it once with this release, which brings it forward"))
            _check_commit(path, opened, remembered)
            if os.path.getsize(path) <= LOOK_LIMIT_BYTES:
                _verify(db, path, aside)
            db.execute("COMMIT")
        except BaseException:
            db.close()
            raise
        return db, opened


def _to_read(path: str) -> str:
    """Return the URI to read a database. Where no log can be made beside it, and there is none, nobody writes it."""
    logs = os.path.exists(path + "-wal")
    alone = not logs and not os.access(os.path.dirname(path), os.W_OK)
    return f"{Path(path).as_uri()}?mode=ro" + ("&immutable=1" if alone else "")


def _check_commit(path: str, opened: Opened, remembered: int) -> None:
    if opened.commit_number < remembered:
        lost = f"it ends at commit {opened.commit_number}, and {remembered} were acknowledged"
        cause = "its write-ahead log was lost or damaged"
        remedy = f"restore a backup; to go on without what is lost, remove {side_file(path)}"
        raise StoreDamaged(about(path, f"{lost}: {cause}; {remedy}"))


def _check_kind(path: str) -> None:
    """See that a file begins as a database does. SQLite itself takes a few bytes of anything for an empty one."""
    with open(path, "rb") as file:
        head = file.read(HEADER_BYTES)
    if len(head) < HEADER_BYTES or not head.startswith(b"SQLite format 3\0"):
        raise StoreDamaged(about(path, "it is not a database, or cut short: restore it, or name another file"))


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


def _read_meta(db: sqlite3.Connection, path: str) -> Opened:
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not {"meta", "invocation", "frame", "message"} <= tables:
        raise StoreError(about(path, "it is a database of something else: name another file"))
    meta = dict(cast("list[tuple[str, Any]]", db.execute("SELECT name, value FROM meta").fetchall()))
    if not isinstance(meta.get("schema"), int):
        raise StoreDamaged(about(path, "its description of itself is incomplete"))
    if meta["schema"] > SCHEMA_VERSION:
        text = (
            f"its schema has version {meta['schema']}, and this release knows up to {SCHEMA_VERSION}: upgrade perdure"
        )
        raise StoreTooNew(about(path, text), schema=meta["schema"])
    whole = meta.keys() >= {"secret", "checksum"} and isinstance(meta.get("commit"), int)
    if not whole or meta_checksum(meta["schema"], meta["secret"]) != meta["checksum"]:
        raise StoreDamaged(about(path, "its description of itself was changed"))
    return Opened(meta["secret"], meta["commit"], meta["schema"])


def _migrate(db: sqlite3.Connection, opened: Opened) -> None:
    """Bring a file of an older release to the present schema, in one transaction. Nothing is lost by it."""
    if opened.schema == SCHEMA_VERSION:
        return
    db.execute("BEGIN IMMEDIATE")
    for version in range(opened.schema, SCHEMA_VERSION):
        _run_script(db, MIGRATIONS[version])
    changed = [(SCHEMA_VERSION, "schema"), (meta_checksum(SCHEMA_VERSION, opened.secret), "checksum")]
    db.executemany("UPDATE meta SET value = ? WHERE name = ?", changed)
    db.execute("COMMIT")


def _remembered_commit(path: str) -> int:
    try:
        with open(side_file(path), "rb") as side:
            text = side.read(32).strip()
    except FileNotFoundError:
        return 0
    return int(text) if text.isdigit() else 0


def _verify(db: sqlite3.Connection, path: str, aside: Aside) -> None:
    """Check every page and every row of a small file; of a large one, the keys and the rows of what is not settled.

    Damage to pages refuses the file. A row that does not fit its checksum sets its invocation aside, and no other.
    """
    if (fault := verify_keys(db)) is not None:
        raise StoreDamaged(about(path, fault))
    if os.path.getsize(path) > VERIFY_LIMIT_BYTES:
        _verify_rows(db, path, "WHERE status NOT IN ('completed', 'failed', 'cancelled')", aside)
        return
    (verdict,) = db.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != "ok":
        raise StoreDamaged(about(path, f"SQLite finds it damaged: {verdict}"))
    _verify_rows(db, path, "", aside)
    for (stray,) in db.execute("SELECT DISTINCT id FROM frame WHERE id NOT IN (SELECT id FROM invocation)"):
        aside.add(stray, damaged(path, f"the row of invocation {stray!r} is missing, and its journal is there"))
    query = "SELECT invocation, id, data, checksum, answer, answered, answer_checksum FROM message"
    for to, id, data, checksum, answer, answered, recorded in db.execute(query):
        try:
            if message_of(path, to, data, checksum).id != id:
                raise damaged(path, f"a message to invocation {to!r} was changed")
            check_answer(path, to, id, answer, answered, recorded)
        except StoreError as error:
            aside.add(to, error)


def _verify_rows(db: sqlite3.Connection, path: str, where: str, aside: Aside) -> None:
    query = (
        "SELECT id, handler, key, created_at, due, identity, start, checksum, status, sequence, updated_at, wake, "
        f"revision, state_checksum FROM invocation {where}"
    )
    for id, *described, data, checksum, status, sequence, at, wake, revision, recorded in db.execute(query):
        try:
            check_described(path, start_of(path, id, data, checksum), described)
            check_state(path, id, status, sequence, at, wake, revision, recorded)
            frames = db.execute(
                "SELECT revision, data, checksum FROM frame WHERE id = ? ORDER BY revision", (id,)
            ).fetchall()
            check_frames(path, id, revision, frames)
        except StoreError as error:
            aside.add(id, error)
        except (TypeError, ValueError) as error:
            aside.add(id, damaged(path, f"the row of invocation {id!r} was changed ({error})"))
