"""The schema of the SQLite file, as numbered steps. Append only: a step that was released is never edited."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from gmsa_rag.errors import StoreError

APPLICATION_ID = int.from_bytes(b"GMSA", "big")

MIGRATIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "namespaces",
        (
            f"PRAGMA application_id = {APPLICATION_ID}",
            """CREATE TABLE migrations (
                number INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_at TEXT NOT NULL)""",
            """CREATE TABLE namespaces (
                id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, secret BLOB NOT NULL,
                generation INTEGER NOT NULL DEFAULT 0)""",
        ),
    ),
    (
        "memories",
        (
            """CREATE TABLE memories (
                id INTEGER PRIMARY KEY AUTOINCREMENT,
                namespace_id INTEGER NOT NULL REFERENCES namespaces (id),
                key TEXT NOT NULL, handle TEXT NOT NULL, fingerprint TEXT NOT NULL, rate INTEGER NOT NULL,
                num_tokens INTEGER NOT NULL, num_soft_tokens INTEGER NOT NULL, used INTEGER NOT NULL,
                text BLOB, data BLOB,
                UNIQUE (namespace_id, key), UNIQUE (namespace_id, handle))""",
            "CREATE INDEX memories_used ON memories (namespace_id, used)",
        ),
    ),
    (
        "vectors",
        (
            """CREATE TABLE vectors (
                position INTEGER PRIMARY KEY AUTOINCREMENT,
                namespace_id INTEGER NOT NULL REFERENCES namespaces (id),
                id TEXT NOT NULL, metadata TEXT NOT NULL, text BLOB NOT NULL, vector BLOB NOT NULL,
                UNIQUE (namespace_id, id))""",
            "CREATE INDEX vectors_position ON vectors (namespace_id, position)",
        ),
    ),
    (
        "items",
        (
            """CREATE TABLE items (
                id INTEGER PRIMARY KEY,
                namespace_id INTEGER NOT NULL REFERENCES namespaces (id),
                name TEXT NOT NULL, value BLOB NOT NULL,
                UNIQUE (namespace_id, name))""",
        ),
    ),
)


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a file to the newest schema, step by step, each in one transaction that also records it.

    A failure or a kill leaves the file at the last whole step, and the next opening goes on from there.

    Args:
        connection: In autocommit mode, outside a transaction.
    Raises:
        StoreError: If the file belongs to another program or to a newer gmsa-rag; it is left untouched.
    """
    while version_of(connection) < len(MIGRATIONS):
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            _apply_next(connection)


def version_of(connection: sqlite3.Connection) -> int:
    """Steps applied so far, 0 for an empty file; StoreError unless the file is ours and not newer."""
    with _snapshot(connection):
        application_id = int(connection.execute("PRAGMA application_id").fetchone()[0])
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if (application_id, version, tables) != (0, 0, 0):
        _check_identity(application_id, version)
    return version


@contextmanager
def _snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """Have the queries inside see one state of the file, whatever another process commits between them."""
    if connection.in_transaction:
        yield
        return
    with connection:
        connection.execute("BEGIN")
        # BEGIN alone takes no lock: the first table that is read does, and a pragma of the header reads none.
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()
        yield


def _apply_next(connection: sqlite3.Connection) -> None:
    # Read again inside the transaction: another process may have applied the step meanwhile.
    version = version_of(connection)
    if version == len(MIGRATIONS):
        return
    name, statements = MIGRATIONS[version]
    for statement in statements:
        connection.execute(statement)
    connection.execute("INSERT INTO migrations VALUES (?, ?, datetime('now'))", (version + 1, name))
    connection.execute(f"PRAGMA user_version = {version + 1}")


def _check_identity(application_id: int, version: int) -> None:
    """Raise StoreError unless these numbers of a file's header are those of a store that this version can read."""
    if application_id != APPLICATION_ID:
        raise StoreError(
            "store",
            expected="a gmsa-rag store",
            got=f"an SQLite file of another program (application_id {application_id})",
            remedy="Choose another path; the file was left untouched.",
        )
    if version > len(MIGRATIONS):
        raise StoreError(
            "store",
            expected=f"schema version {len(MIGRATIONS)} or older",
            got=f"version {version}",
            remedy="Upgrade gmsa-rag; the file was left untouched.",
        )
