"""MemoryStore: memories and their texts in an SQLite file, found by key or by handle."""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from gmsa_rag.errors import MemoryFormatError, UnknownMemoryError
from gmsa_rag.memory.database import IN_MEMORY, Database, chunks
from gmsa_rag.memory.eviction import Bounds
from gmsa_rag.memory.handles import Handle, make_handle, parse_handle, store_identity
from gmsa_rag.memory.keys import KEY, check_key, encode_text
from gmsa_rag.memory.memory import Memory, memory_key
from gmsa_rag.memory.records import (
    COLUMNS,
    PUT,
    TOUCH,
    Record,
    check_use,
    decode,
    encode,
    passages_of,
    problem_of,
    size_of,
)

DEFAULT_STORE_BYTES = 2**30


class MemoryStore:
    """Memories and their texts in one namespace of an SQLite file.

    Several threads may share a store, and several processes a file; after a fork, open it anew. One that is dropped
    without close() closes its file. An empty store is still true, so that `store or other` does what it says.

    Args:
        path: The file, made if missing and readable by its owner only; ":memory:" keeps everything in memory.
        namespace: Made if missing. No namespace sees the records or handles of another.
        secret: What handles are made with, at least 16 bytes. None: random, made with the namespace and kept in the
            file. Configure it where several files must issue the same handles.
        max_memories: Bound on the memories, >= 1; those not used for longest go first, and their texts stay until
            there are 8 times as many. None: no such bound.
        max_bytes: Bound on the bytes of memories and texts, >= 1, as each process counts what it puts itself. What one
            put_many() writes stays at least until the next one, however much it is. None: no such bound; with neither
            bound, reading writes nothing.
        keep_text: Whether to keep the passages' own texts.
    Raises:
        InputError: If an argument has a wrong type or value.
        StoreError: If the file cannot be opened, is not a store, is newer, or its namespace has another secret.
        CorruptStoreError: If the file is damaged.
    Example:
        >>> import torch
        >>> store = MemoryStore(":memory:")
        >>> key = memory_key("fingerprint", 8, "Rome")
        >>> store.put(Memory(torch.zeros(1, 4), key, 8, 2, "fingerprint", (0, 2)), "Rome")
        >>> store.text(key), len(store)
        ('Rome', 1)
    """

    def __init__(
        self,
        path: str | Path,
        namespace: str = "default",
        *,
        secret: bytes | None = None,
        max_memories: int | None = None,
        max_bytes: int | None = None,
        keep_text: bool = True,
    ) -> None:
        self._bounds = Bounds(max_memories, max_bytes)
        self.namespace, self.max_memories, self.max_bytes = namespace, max_memories, max_bytes
        self.keep_text = keep_text
        self._database = Database(path, namespace, secret)
        weakref.finalize(self, self._database.close)

    @property
    def path(self) -> str:
        """The file, or ":memory:"."""
        return self._database.path

    @property
    def identity(self) -> str:
        """What a cache tells stores apart by: the same wherever namespace and secret are, and no secret itself."""
        return store_identity(self._database.secret, self.namespace)

    @property
    def is_current(self) -> bool:
        """Whether it is open in this process, and its file still the one under its path."""
        return self._database.is_current

    def get_many(self, keys: Sequence[str]) -> list[Memory | None]:
        """Read memories by key.

        Args:
            keys: Keys, in any order, repeats allowed.
        Returns:
            One memory per key, on the CPU; None where there is none.
        Raises:
            InputError: If a key is not 32 hex digits.
            CorruptStoreError: If a record is damaged; it is named, and others can still be read.
        """
        rows = {row[0]: row for row in self._rows("key", [check_key(key) for key in keys])}
        found = {key: self._decode(row) for key, row in rows.items()}
        return [found.get(key) for key in keys]

    def get(self, key: str) -> Memory | None:
        """Read one memory, as get_many() does."""
        return self.get_many([key])[0]

    def put_many(self, memories: Sequence[Memory], texts: Sequence[str] | None = None) -> None:
        """Write memories in one transaction: all of them, or after any error none.

        A memory that is there already is replaced, which changes nothing unless its record was damaged or of another
        dtype; its text is kept where none is given.

        Args:
            memories: What to write.
            texts: The passage of each memory, or None.
        Raises:
            InputError: If the counts differ, a soft token is not finite, or a key is not that of its text.
            StoreError: If the file cannot be written.
        """
        passages = passages_of(memories, texts)
        rows = [self._encode(memory, text) for memory, text in zip(memories, passages, strict=True)]
        with self._database.write() as connection:
            if not self._bounds:
                connection.executemany(PUT, rows)
                return
            namespace_id = self._database.namespace_id
            first = self._bounds.next_use(connection, namespace_id)
            connection.executemany(PUT, rows)
            self._bounds.enforce(connection, namespace_id, first, put=sum(map(size_of, rows)))

    def put(self, memory: Memory, text: str | None = None) -> None:
        """Write one memory, as put_many() does."""
        self.put_many([memory], None if text is None else [text])

    def delete(self, keys: Iterable[str]) -> int:
        """Delete memories and their texts; their bytes leave the file and its log.

        Args:
            keys: Keys; those that are not there are passed over.
        Returns:
            Records deleted, >= 0.
        Raises:
            InputError: If a key is not 32 hex digits.
            StoreError: If another connection keeps the bytes in the log; the records are deleted all the same.
        """
        wanted = [check_key(key) for key in keys]
        with self._database.write() as connection:
            deleted = self._delete(connection, wanted)
        self._database.erase_deleted()
        return deleted

    def forget(self, text: str) -> int:
        """Delete the memories of a text at every rate and fingerprint, and the text; their bytes leave the file.

        A VectorIndex in the same file keeps its own copy of the text: delete that there.

        Args:
            text: The passage as it was given to the compressor.
        Returns:
            Records deleted, >= 0.
        Raises:
            InputError: If the text holds lone surrogates.
            StoreError: If another connection keeps the bytes in the log; the records are deleted all the same.
        """
        return self.forget_many([text])

    def forget_many(self, texts: Iterable[str]) -> int:
        """Forget several texts in one transaction, as forget() does."""
        wanted = list(texts)
        for text in wanted:
            encode_text(text)
        query = "SELECT DISTINCT fingerprint, rate FROM memories WHERE namespace_id = ?"
        with self._database.write() as connection:
            made_by = connection.execute(query, (self._database.namespace_id,)).fetchall()
            keys = [memory_key(fingerprint, rate, text) for text in wanted for fingerprint, rate in made_by]
            deleted = self._delete(connection, keys)
        self._database.erase_deleted()
        return deleted

    def keys(self) -> list[str]:
        """The keys of all memories, oldest first."""
        query = "SELECT key FROM memories WHERE namespace_id = ? AND data IS NOT NULL ORDER BY id"
        with self._database.read() as connection:
            return [row[0] for row in connection.execute(query, (self._database.namespace_id,))]

    def namespaces(self) -> list[str]:
        """The names of the file's namespaces, sorted."""
        with self._database.read() as connection:
            return [row[0] for row in connection.execute("SELECT name FROM namespaces ORDER BY name")]

    def handle(self, memory: Memory) -> str:
        """Issue the handle of a memory, stored or not.

        Args:
            memory: Any memory.
        Returns:
            `[[gmsa:<32 hex>:<num_soft_tokens>]]`, always the same for this memory and namespace.
        """
        return make_handle(self._database.secret, memory.key, memory.num_soft_tokens)

    def resolve(self, handle: str, *, fingerprint: str | None = None) -> Memory:
        """Read the memory that a handle stands for.

        Args:
            handle: A whole handle.
            fingerprint: The only compressor whose memories the caller can use; None takes any.
        Returns:
            The memory, on the CPU.
        Raises:
            MalformedHandleError: If the handle was cut or altered.
            UnknownMemoryError: If this namespace never issued it, or the memory is gone: evicted, deleted or forgotten.
            FingerprintError: If the memory is of another compressor.
            CorruptStoreError: If the record is damaged.
        """
        parsed = parse_handle(handle)
        rows = self._rows("handle", [parsed.digest])
        if not rows:
            raise self._unknown(handle, parsed)
        memory = self._decode(rows[0])
        return check_use(parsed, memory, fingerprint)

    def text(self, handle_or_key: str) -> str | None:
        """Read the passage of a handle or key.

        Args:
            handle_or_key: A whole handle, or 32 hex digits.
        Returns:
            The text; None if the record is unknown or has none.
        Raises:
            MalformedHandleError: If it is neither a whole handle nor a key.
            CorruptStoreError: If the text is damaged.
        """
        is_key = isinstance(handle_or_key, str) and KEY.fullmatch(handle_or_key)
        column, value = ("key", handle_or_key) if is_key else ("handle", parse_handle(handle_or_key).digest)
        query = f"SELECT key, text FROM memories WHERE namespace_id = ? AND {column} = ?"
        with self._database.read() as connection:
            row = connection.execute(query, (self._database.namespace_id, value)).fetchone()
        if row is None or row[1] is None:
            return None
        try:
            return bytes(row[1]).decode()
        except UnicodeDecodeError as error:
            raise self._database.corrupt(f"memory {row[0]}: its text is damaged") from error

    def check(self) -> None:
        """Verify the whole file, and that every record of this namespace decodes and agrees with its columns.

        Writes nothing.

        Raises:
            CorruptStoreError: If something is damaged; it names the records.
        """
        self._database.check_integrity()
        query = f"SELECT {COLUMNS} FROM memories WHERE namespace_id = ? ORDER BY id"
        with self._database.read() as connection:
            rows = connection.execute(query, (self._database.namespace_id,))
            problems = [problem for row in rows if (problem := problem_of(row, self._database.secret))]
        if problems:
            raise self._database.corrupt(f"{len(problems)} damaged records: " + "; ".join(problems))

    def close(self) -> None:
        """Close the file; closing again does nothing."""
        self._database.close()

    def __enter__(self) -> MemoryStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        query = "SELECT count(*) FROM memories WHERE namespace_id = ? AND data IS NOT NULL"
        with self._database.read() as connection:
            return int(connection.execute(query, (self._database.namespace_id,)).fetchone()[0])

    def __contains__(self, key: object) -> bool:
        query = "SELECT 1 FROM memories WHERE namespace_id = ? AND key = ? AND data IS NOT NULL"
        if not isinstance(key, str) or not KEY.fullmatch(key):
            return False
        with self._database.read() as connection:
            return connection.execute(query, (self._database.namespace_id, key)).fetchone() is not None

    def _rows(self, column: str, values: list[str]) -> list[Record]:
        bounded = bool(self._bounds)
        rows: list[Record] = []
        with self._database.write() if bounded else self._database.read() as connection:
            for piece, marks in chunks(values):
                query = f"""SELECT {COLUMNS} FROM memories
                            WHERE namespace_id = ? AND data IS NOT NULL AND {column} IN ({marks})"""
                rows += connection.execute(query, (self._database.namespace_id, *piece)).fetchall()
            if bounded:
                touched = [{"namespace": self._database.namespace_id, "key": row[0]} for row in rows]
                connection.executemany(TOUCH, touched)
        return rows

    def _encode(self, memory: Memory, text: str | None) -> dict[str, object]:
        return {**encode(memory, text, self._database.secret, self.keep_text), "namespace": self._database.namespace_id}

    def _decode(self, row: Record) -> Memory:
        try:
            return decode(row)
        except MemoryFormatError as error:
            raise self._database.corrupt(f"memory {row[0]}: {error.got}") from error

    def _unknown(self, handle: str, parsed: Handle) -> UnknownMemoryError:
        query = "SELECT 1 FROM memories WHERE namespace_id = ? AND handle = ?"
        with self._database.read() as connection:
            evicted = connection.execute(query, (self._database.namespace_id, parsed.digest)).fetchone()
        gone = f" or has evicted since: it keeps {self._bounds}" if self._bounds else ""
        got = f", whose memory was evicted, and only its text is left: the store keeps {self._bounds}"
        remedy = "Use the store that compressed the passage, or compress it again."
        larger = 'Compress the passage again, ask for on_missing="text", or use a store with more room, such as a file.'
        return UnknownMemoryError(
            "handle",
            expected="one that this store issued and still holds the memory of",
            got=handle + (got if evicted else f", which it never issued, or has forgotten{gone}"),
            remedy=larger if evicted else remedy,
        )

    def _delete(self, connection: sqlite3.Connection, keys: list[str]) -> int:
        deleted = 0
        for piece, marks in chunks(keys):
            query = f"DELETE FROM memories WHERE namespace_id = ? AND key IN ({marks})"
            deleted += connection.execute(query, (self._database.namespace_id, *piece)).rowcount
        return deleted


_default_stores: dict[int, MemoryStore] = {}
_default_lock = threading.Lock()


def default_store() -> MemoryStore:
    """The store that every component uses which is given none: in memory, one per process, gone when it ends.

    It keeps 1 GiB of memories and texts, those used last, and always all that the last put_many() wrote. A forked child
    gets an empty one of its own, with another secret: handles do not cross processes. For that, or to keep memories,
    use a file.

    Returns:
        Always the same store within a process, unless someone closes it.
    """
    process = os.getpid()
    with _default_lock:
        if process not in _default_stores or not _default_stores[process].is_current:
            _default_stores[process] = MemoryStore(IN_MEMORY, max_bytes=DEFAULT_STORE_BYTES)
        return _default_stores[process]


@contextmanager
def opened_store(store: MemoryStore | str | Path | None) -> Iterator[MemoryStore | None]:
    """The store, closed afterwards if it was opened here."""
    if store is None or isinstance(store, MemoryStore):
        yield store
    else:
        with open_store(store) as opened:
            yield opened


def open_store(store: MemoryStore | str | Path | None) -> MemoryStore:
    """Turn what a `store=` argument may be into a store.

    Args:
        store: A store, the path of its file, or None for default_store().
    Returns:
        The store; one opened from a path is the caller's to close.
    Raises:
        StoreError: If the file cannot be opened, see MemoryStore.
    """
    if store is None:
        return default_store()
    return store if isinstance(store, MemoryStore) else MemoryStore(store)


def _renew_lock() -> None:
    global _default_lock
    _default_lock = threading.Lock()


# A thread may have held the lock when another one forked.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
