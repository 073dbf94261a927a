"""ItemStore: bytes by name, in the file of the memories."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from gmsa_rag.errors import InputTypeError
from gmsa_rag.memory.database import Database, chunks
from gmsa_rag.memory.keys import encode_text

_PUT = """
    INSERT INTO items (namespace_id, name, value) VALUES (?, ?, ?)
    ON CONFLICT (namespace_id, name) DO UPDATE SET value = excluded.value"""


class ItemStore:
    """Any bytes under any names, in one namespace of an SQLite file; safe for several threads and processes.

    Args:
        path: The file, made if missing; may be that of a MemoryStore. ":memory:" keeps it in memory, for itself.
        namespace: Made if missing; no namespace sees the items of another.
    Raises:
        InputError: If an argument has a wrong type or value.
        StoreError: If the file cannot be opened, is not a store, or is newer.
        CorruptStoreError: If the file is damaged.
    Example:
        >>> items = ItemStore(":memory:")
        >>> items.put_many({"a": b"1", "b": b"2"})
        >>> items.get_many(["b", "c"]), items.names()
        ([b'2', None], ['a', 'b'])
    """

    def __init__(self, path: str | Path, namespace: str = "default") -> None:
        self._database = Database(path, namespace)

    def get_many(self, names: Sequence[str]) -> list[bytes | None]:
        """Read items.

        Args:
            names: Names, in any order, repeats allowed.
        Returns:
            One value per name; None where there is none.
        """
        found: dict[str, bytes] = {}
        with self._database.read() as connection:
            for piece, marks in chunks([_check_name(name) for name in names]):
                query = f"SELECT name, value FROM items WHERE namespace_id = ? AND name IN ({marks})"
                found.update(connection.execute(query, (self._database.namespace_id, *piece)).fetchall())
        return [found.get(name) for name in names]

    def put_many(self, items: Mapping[str, bytes]) -> None:
        """Write items in one transaction, replacing those that are there.

        Args:
            items: Value by name.
        Raises:
            InputTypeError: If a name is no str, or a value is not bytes.
            StoreError: If the file cannot be written.
        """
        rows = [(self._database.namespace_id, _check_name(name), _check_value(value)) for name, value in items.items()]
        with self._database.write() as connection:
            connection.executemany(_PUT, rows)

    def delete(self, names: Iterable[str]) -> int:
        """Delete items; their bytes leave the file and its log.

        Args:
            names: Names; those that are not there are passed over.
        Returns:
            Items deleted, >= 0.
        Raises:
            StoreError: If another connection keeps the bytes in the log; the items are deleted all the same.
        """
        deleted = 0
        with self._database.write() as connection:
            for piece, marks in chunks([_check_name(name) for name in names]):
                query = f"DELETE FROM items WHERE namespace_id = ? AND name IN ({marks})"
                deleted += connection.execute(query, (self._database.namespace_id, *piece)).rowcount
        self._database.erase_deleted()
        return deleted

    def names(self, prefix: str = "") -> list[str]:
        """The names that begin with a prefix, sorted."""
        query = "SELECT name FROM items WHERE namespace_id = ? AND substr(name, 1, ?) = ? ORDER BY name"
        values = self._database.namespace_id, len(_check_name(prefix)), prefix
        with self._database.read() as connection:
            return [row[0] for row in connection.execute(query, values)]

    def check(self) -> None:
        """Verify the whole file, writing nothing; CorruptStoreError if something is damaged."""
        self._database.check_integrity()

    def close(self) -> None:
        """Close the file; closing again does nothing."""
        self._database.close()

    def __enter__(self) -> ItemStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_name(name: str) -> str:
    encode_text(name, "name")
    return name


def _check_value(value: bytes) -> bytes:
    if not isinstance(value, bytes):
        raise InputTypeError("value", expected="bytes", got=type(value).__name__, remedy="Encode it first.")
    return value
