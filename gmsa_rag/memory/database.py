"""The SQLite file that memories and vectors share: opening, namespaces, transactions, errors."""

from __future__ import annotations

import hmac
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

from gmsa_rag.errors import CorruptStoreError, InputError, InputTypeError, StoreError
from gmsa_rag.memory.handles import check_secret
from gmsa_rag.memory.keys import encode_text
from gmsa_rag.memory.migrations import migrate, version_of

IN_MEMORY = ":memory:"
BUSY_SECONDS = 30.0
Value = TypeVar("Value", str, bytes, int)
CHUNK = 500  # values in one IN (...), below the 999 variables that older SQLite builds allow
_creating = threading.RLock()
_PRAGMAS = (
    "PRAGMA secure_delete = ON",
    "PRAGMA foreign_keys = ON",
    "PRAGMA trusted_schema = OFF",
    "PRAGMA cell_size_check = ON",
    "PRAGMA temp_store = MEMORY",
)


class Database:
    """One connection to one namespace of a file, safe to use from several threads.

    Args:
        path: The file, made if missing (readable by its owner only); ":memory:" keeps it in memory.
        namespace: Made if missing, with a random secret.
        secret: A configured secret of the namespace, at least 16 bytes; None takes what is stored.
    Raises:
        InputError: If an argument has a wrong type or value.
        StoreError: If the file cannot be opened, is not a store, is newer, or its namespace has another secret.
        CorruptStoreError: If the file is damaged.
    """

    def __init__(self, path: str | Path, namespace: str, secret: bytes | None = None) -> None:
        self.path = _check_path(path)
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._closed = False
        check_namespace(namespace)
        if secret is not None:
            check_secret(secret)
        with self._typed_errors():
            self._connection = _open(self.path)
        self._file = _identity_of(self.path)
        try:
            self.namespace_id, self.secret = self._enter(namespace, secret)
        except BaseException:
            self.close()
            raise

    @property
    def is_current(self) -> bool:
        """Whether it is open in this process, and its file still the one under its path."""
        return not self._closed and self._process == os.getpid() and self._file == _identity_of(self.path)

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """One snapshot of the file for several queries; may be nested."""
        with self._lock, self._typed_errors():
            connection = self._usable()
            if connection.in_transaction:
                yield connection
            else:
                with connection:
                    connection.execute("BEGIN")
                    yield connection

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it is stored, or after any error none of it."""
        with self._lock, self._typed_errors():
            connection = self._usable()
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                yield connection

    def erase_deleted(self) -> None:
        """Empty the write-ahead log, where deleted rows still lie in older page images.

        Raises:
            StoreError: If another connection reads an old snapshot for longer than the busy timeout.
        """
        with self._lock, self._typed_errors():
            busy = self._usable().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if busy:
            raise StoreError(
                f"store {self.path}",
                expected="deleted bytes to leave the write-ahead log",
                got="another connection that still reads them",
                remedy="The rows are deleted; close the other readers and delete again to erase their bytes.",
            )

    def check_integrity(self) -> None:
        """Raise CorruptStoreError unless SQLite finds the whole file sound; writes nothing."""
        with self.read() as connection:
            problems = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(5)")]
        if problems != ["ok"]:
            raise self.corrupt("; ".join(problems))

    def corrupt(self, got: str) -> CorruptStoreError:
        """The error of a store whose contents are damaged."""
        return CorruptStoreError(
            f"store {self.path}",
            expected="sound contents",
            got=got[:500],
            remedy="Restore a backup, or delete what is named here and compress it again.",
        )

    def close(self) -> None:
        """Close the connection; closing again does nothing."""
        # A forked child shares the parent's file locks and log: closing there is the parent's business. Nor may it wait
        # for a lock that a thread of the parent held at the fork.
        if self._process != os.getpid():
            return
        with self._lock:
            if not self._closed:
                self._closed = True
                self._connection.close()

    def _usable(self) -> sqlite3.Connection:
        if self._closed or self._process != os.getpid():
            raise StoreError(
                f"store {self.path}",
                expected="an open store",
                got="a closed one" if self._closed else "one that another process opened before forking",
                remedy="Open it again, in the process that uses it.",
            )
        return self._connection

    def _enter(self, namespace: str, secret: bytes | None) -> tuple[int, bytes]:
        query = "SELECT id, secret FROM namespaces WHERE name = ?"
        with self.read() as connection:
            row = connection.execute(query, (namespace,)).fetchone()
        if row is None:
            with self.write() as connection:
                values = namespace, secret or secrets.token_bytes(32)
                connection.execute("INSERT OR IGNORE INTO namespaces (name, secret) VALUES (?, ?)", values)
                row = connection.execute(query, (namespace,)).fetchone()
        stored = row[1]
        if not isinstance(stored, bytes) or len(stored) < 16:
            raise self.corrupt(f"a broken secret of namespace {namespace!r}")
        if secret is not None and not hmac.compare_digest(secret, stored):
            raise StoreError(
                f"namespace {namespace!r} of store {self.path}",
                expected="the secret it was made with",
                got="another one",
                remedy="Configure the same secret wherever the store is used, or choose another namespace.",
            )
        return int(row[0]), stored

    @contextmanager
    def _typed_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            # SQLite reports damage as a plain DatabaseError, all else as one of its subclasses.
            if type(error) is sqlite3.DatabaseError:
                raise self.corrupt(str(error)) from error
            raise StoreError(
                f"store {self.path}",
                expected="to read and write it",
                got=str(error),
                remedy="Check the path, its permissions, the free space and who else holds the file.",
            ) from error


def chunks(values: list[Value]) -> Iterator[tuple[list[Value], str]]:
    """Pieces of a list that fit one query, each with its `?, ?, ...`."""
    for start in range(0, len(values), CHUNK):
        piece = values[start : start + CHUNK]
        yield piece, ", ".join("?" * len(piece))


def check_namespace(namespace: str) -> str:
    """The namespace itself; InputError unless it is a text that is not empty."""
    if not encode_text(namespace, "namespace"):
        raise InputError("namespace", expected="a name", got="an empty one", remedy='Use "default".')
    return namespace


def _identity_of(path: str) -> tuple[int, int] | None:
    """What tells a file from another that takes its path; None in memory."""
    try:
        status = os.stat(path) if path != IN_MEMORY else None
    except FileNotFoundError:
        return 0, 0
    return status and (status.st_dev, status.st_ino)


def _check_path(path: str | Path) -> str:
    if not isinstance(path, (str, Path)):
        raise InputTypeError("path", expected="a str or Path", got=type(path).__name__, remedy="Pass the file's path.")
    if path == "" or "\x00" in str(path):
        raise InputError("path", expected="a file", got=repr(path)[:80], remedy='Use ":memory:" for none.')
    return str(path)


def _renew_lock() -> None:
    global _creating
    _creating = threading.RLock()


# A thread may have held the lock when another one forked.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def _open(path: str) -> sqlite3.Connection:
    with _creating:  # a file that another thread is making looks like another program's until its first migration
        return _open_alone(path)


def _open_alone(path: str) -> sqlite3.Connection:
    if path != IN_MEMORY:
        _create(Path(path))
        _inspect(Path(path))
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        # A damaged text column should fail the check that names its record, not the whole query.
        connection.text_factory = lambda data: data.decode("utf-8", "replace")
        for pragma in _PRAGMAS:
            connection.execute(pragma)
        migrate(connection)
        if path != IN_MEMORY:
            _use_write_ahead_log(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _create(path: Path) -> None:
    """Make the file if it is missing: soft tokens are as confidential as their text, so for its owner only."""
    try:
        # Closing any descriptor of a file drops this process's locks on it, those of SQLite included: only a file
        # that is new is touched, and no other thread opens it meanwhile.
        with _creating:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        remedy = "Check the path and its permissions; folders are not created."
        got = error.strerror or str(error)
        raise StoreError(f"store {path}", expected="a file to open", got=got, remedy=remedy) from error


def _inspect(path: Path) -> None:
    """Make sure that the file is ours before it is opened for real, which writes a log beside any file."""
    try:
        _read_header(path)
    except sqlite3.DatabaseError as error:
        # SQLite takes a file of one byte for an empty one.
        if getattr(error, "sqlite_errorname", "") == "SQLITE_NOTADB" or path.stat().st_size == 1:
            remedy = "Choose another path; the file was left untouched."
            raise StoreError(f"store {path}", expected="an SQLite file", got="other contents", remedy=remedy) from error
        # While there is a log the file may rightly be behind; what was in a log that is gone by now has reached it.
        if not _has_log(path):
            _read_header(path)


def _read_header(path: Path) -> None:
    # Immutable: no locks, no log, nothing written; unlike open(), it keeps the locks that this process holds.
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
        version_of(connection)
        pages, size = (int(connection.execute(f"PRAGMA page_{name}").fetchone()[0]) for name in ("count", "size"))
    on_disk = path.stat().st_size
    if on_disk < pages * size or on_disk == 1:
        raise sqlite3.DatabaseError("the last page is cut short")


def _has_log(path: Path) -> bool:
    logs = [path.with_name(path.name + suffix) for suffix in ("-wal", "-journal")]
    return any(log.exists() and log.stat().st_size for log in logs)


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    # Only after the first migration, so that the file itself always says whose it is. The switch needs the file
    # alone and does not wait for others by itself.
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
