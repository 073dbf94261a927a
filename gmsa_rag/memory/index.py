"""VectorIndex: texts and their vectors in the store's SQLite file, searched through FAISS.

The rows are the truth. The FAISS structure is derived from them, lives in memory only, and is built again when
another process has changed them, so there is no index file to lose, to trust or to keep in step.
"""

from __future__ import annotations

import json
import os
import sqlite3
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from gmsa_rag.checks import dump_metadata, is_int
from gmsa_rag.errors import InputError, ShapeError
from gmsa_rag.memory.database import IN_MEMORY, Database, chunks
from gmsa_rag.memory.entries import Entry, Hit, check_counts, check_id
from gmsa_rag.memory.flat import FlatIndex, Floats, check_vectors, cosine, faiss_distributions, load_faiss
from gmsa_rag.memory.keys import encode_text

__all__ = ["Entry", "Hit", "VectorIndex", "faiss_distributions"]

Predicate = Callable[[Entry], bool]
_COLUMNS = "position, id, metadata, text, vector"
_PUT = """
    INSERT INTO vectors (namespace_id, id, metadata, text, vector) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (namespace_id, id) DO UPDATE SET
        metadata = excluded.metadata, text = excluded.text, vector = excluded.vector"""
# FAISS scores in float32; rows this close to the last one may belong before it.
_TIE = 1e-5


class VectorIndex:
    """Texts with vectors, found by cosine similarity; exact, safe for several threads and processes.

    Args:
        path: The file, made if missing; may be that of a MemoryStore. ":memory:" keeps it in memory, for itself.
        namespace: Made if missing; indexes of different namespaces do not see each other.
        dimension: Width of the vectors, >= 1; None takes that of the first vector added.
    Raises:
        DependencyError: If faiss is missing, or installed twice.
        InputError: If an argument has a wrong type or value.
        ShapeError: If the file holds vectors of another width.
        StoreError: If the file cannot be opened, is not a store, or is newer.
        CorruptStoreError: If the file is damaged.
    Example:
        >>> index = VectorIndex(":memory:")
        >>> index.add(["Rome", "Oslo"], [[1, 0], [0, 1]], ids=["a", "b"])
        ['a', 'b']
        >>> [(hit.entry.text, hit.score) for hit in index.search([2, 0], k=1)]
        [('Rome', 1.0)]
    """

    def __init__(self, path: str | Path, namespace: str = "default", dimension: int | None = None) -> None:
        if dimension is not None and (not is_int(dimension) or dimension < 1):
            got = repr(dimension)[:80]
            raise InputError("dimension", expected="an int >= 1 or None", got=got, remedy="Pass the embedding width.")
        load_faiss()
        self.namespace = namespace
        self._dimension = dimension
        self._database = Database(path, namespace)
        self._flat: FlatIndex | None = None
        self._generation = -1
        try:
            self.rebuild()
        except BaseException:
            self.close()
            raise

    @property
    def path(self) -> str:
        """The file, or ":memory:"."""
        return self._database.path

    @property
    def dimension(self) -> int | None:
        """Width of the vectors; None while the index is empty and none was given."""
        with self._database.read() as connection:
            return self._width(connection)

    def add(
        self,
        texts: Sequence[str],
        vectors: object,
        metadatas: Sequence[Mapping[str, Any]] | None = None,
        ids: Sequence[str] | None = None,
        *,
        remove: Iterable[str] = (),
    ) -> list[str]:
        """Write rows in one transaction; a row whose id is there already is replaced and keeps its place.

        Args:
            texts: The embedded texts.
            vectors: One for each text, (count, dimension), anything numpy can read; any length but zero.
            metadatas: One JSON object for each text; None for empty ones.
            ids: One name for each text; None makes random ones. Of equal ones the last wins.
            remove: Names of rows to delete in the same transaction.
        Returns:
            The ids.
        Raises:
            ShapeError: If a vector has another width than the index.
            InputError: If counts differ, a vector is zero or not finite, or a metadata is not JSON.
        """
        texts = list(texts)
        names = [uuid.uuid4().hex for _ in texts] if ids is None else [check_id(name) for name in ids]
        objects = [dump_metadata(value) for value in ([{}] * len(texts) if metadatas is None else metadatas)]
        passages = [encode_text(text) for text in texts]
        array = check_vectors(vectors, None) if texts else np.zeros((0, 1), np.float32)
        check_counts(len(texts), vectors=len(array), metadatas=len(objects), ids=len(names))
        if names:
            self._put(names, objects, passages, array, remove)
        return names

    def delete(self, ids: Iterable[str]) -> int:
        """Delete rows; their bytes leave the file and its log.

        Args:
            ids: Names; those that are not there are passed over.
        Returns:
            Rows deleted, >= 0.
        Raises:
            StoreError: If another connection keeps the bytes in the log; the rows are deleted all the same.
        """
        with self._database.write() as connection:
            dropped = self._drop(connection, ids)
            generation = self._bump(connection) if dropped else -1  # where nothing changes there is nothing to follow
        self._follow(generation, lambda flat: flat.remove(dropped))
        self._database.erase_deleted()
        return len(dropped)

    def get(self, ids: Sequence[str]) -> list[Entry | None]:
        """Read rows by id.

        Args:
            ids: Names, in any order, repeats allowed.
        Returns:
            One entry per id; None where there is none.
        Raises:
            CorruptStoreError: If a row is damaged.
        """
        with self._database.read() as connection:
            positions = self._positions(connection, [check_id(name) for name in ids])
            found = self._entries(connection, [*positions.values()])
        return [found[positions[name]] if name in positions else None for name in ids]

    def search(self, vector: object, k: int = 4, predicate: Predicate | None = None) -> list[Hit]:
        """Find the nearest rows.

        Args:
            vector: The question's, (dimension,).
            k: Hits wanted, >= 1; fewer come where there are fewer rows.
            predicate: Keeps only the entries it is true for; as many are looked at as it takes to find k.
        Returns:
            Hits, best first; of equal scores the row added first.
        Raises:
            ShapeError: If the vector has another width than the index.
            InputError: If it is zero or not finite, or k is not an int >= 1.
            CorruptStoreError: If a row is damaged.
        """
        return self._search(np.asarray(vector)[None], k, predicate)[0]

    def search_many(self, vectors: object, k: int = 4) -> list[list[Hit]]:
        """Find the nearest rows of each vector, as search() does for one.

        Args:
            vectors: (count, dimension).
            k: Hits wanted for each, >= 1.
        Returns:
            One list of hits per vector.
        Raises:
            ShapeError: As search().
            InputError: As search().
        """
        return self._search(vectors, k, None)

    def entries(self) -> list[Entry]:
        """All rows, oldest first; CorruptStoreError if one is damaged."""
        query = f"SELECT {_COLUMNS} FROM vectors WHERE namespace_id = ? ORDER BY position"
        with self._database.read() as connection:
            width = self._width(connection)
            return [self._decode(row, width) for row in connection.execute(query, (self._database.namespace_id,))]

    def held(self, texts: Iterable[str], *, without: Iterable[str] = ()) -> set[str]:
        """Find out which texts the index still holds.

        Args:
            texts: Texts, as they were added.
            without: Names of rows that do not count.
        Returns:
            Those of the texts that another row is of.
        """
        passages = [encode_text(text) for text in texts]
        others = {check_id(name) for name in without}
        found: set[str] = set()
        with self._database.read() as connection:
            for piece, marks in chunks(passages):
                query = f"SELECT id, text FROM vectors WHERE namespace_id = ? AND text IN ({marks})"
                rows = connection.execute(query, (self._database.namespace_id, *piece))
                found |= {bytes(text).decode() for name, text in rows if name not in others}
        return found

    def save(self, path: str | Path) -> None:
        """Write all rows to another file in one transaction, instead of those of the same namespace there.

        Args:
            path: The file, made if missing; other namespaces and memories in it stay. The index's own changes nothing.
        Raises:
            InputError: If it is ":memory:".
            ShapeError: If the file holds vectors of another width.
            StoreError: If the file cannot be written, or is not a store.
        """
        if str(path) == IN_MEMORY:
            raise InputError("path", expected="a file", got=IN_MEMORY, remedy="Name the file to save to.")
        if self.path != IN_MEMORY and os.path.realpath(path) == os.path.realpath(self.path):
            return
        rows = [(entry.text, entry.vector, entry.metadata, entry.id) for entry in self.entries()]
        with VectorIndex(path, self.namespace) as target:
            there = [entry.id for entry in target.entries()]
            if not rows:
                target.delete(there)
            else:
                texts, vectors, metadatas, ids = zip(*rows, strict=True)
                target.add(texts, vectors, metadatas, ids, remove=there)

    def rebuild(self) -> None:
        """Build the FAISS structure from the rows; it happens by itself when they have changed.

        Raises:
            ShapeError: If the rows are of another width than the index was opened with.
            CorruptStoreError: If a vector is damaged.
        """
        with self._database.read() as connection:
            width = self._width(connection)
            query = "SELECT position, id, vector FROM vectors WHERE namespace_id = ? ORDER BY position"
            rows = connection.execute(query, (self._database.namespace_id,))
            vectors = {position: self._vector(name, data, width) for position, name, data in rows}
            self._flat = FlatIndex(width) if width else None
            if self._flat is not None:
                self._flat.put(vectors)
            self._generation = self._stored_generation(connection)

    def check(self) -> None:
        """Verify the whole file, that every row decodes, and that FAISS holds the same rows. Writes nothing.

        Raises:
            CorruptStoreError: If something is damaged.
        """
        self._database.check_integrity()
        with self._database.read() as connection:
            self._refresh(connection)
            count = len(self.entries())
            if count != (len(self._flat) if self._flat is not None else 0):
                raise self._database.corrupt(f"{count} rows, and another number in FAISS")

    def close(self) -> None:
        """Close the file; closing again does nothing."""
        self._database.close()

    def __enter__(self) -> VectorIndex:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        query = "SELECT count(*) FROM vectors WHERE namespace_id = ?"
        with self._database.read() as connection:
            return int(connection.execute(query, (self._database.namespace_id,)).fetchone()[0])

    def _put(
        self, names: list[str], objects: list[str], passages: list[bytes], array: Floats, remove: Iterable[str]
    ) -> None:
        rows = zip(names, objects, passages, (vector.tobytes() for vector in array), strict=True)
        with self._database.write() as connection:
            check_vectors(array, self._width(connection))
            dropped = self._drop(connection, remove)
            connection.executemany(_PUT, [(self._database.namespace_id, *row) for row in rows])
            positions = self._positions(connection, names)
            vectors = {positions[name]: vector for name, vector in zip(names, array, strict=True)}
            generation = self._bump(connection)

        def change(flat: FlatIndex) -> None:
            flat.remove(dropped)
            flat.put(vectors)

        self._follow(generation, change)
        if dropped:
            self._database.erase_deleted()

    def _drop(self, connection: sqlite3.Connection, ids: Iterable[str]) -> list[int]:
        positions = [*self._positions(connection, [check_id(name) for name in ids]).values()]
        connection.executemany("DELETE FROM vectors WHERE position = ?", [(position,) for position in positions])
        return positions

    def _bump(self, connection: sqlite3.Connection) -> int:
        generation = self._stored_generation(connection) + 1
        query = "UPDATE namespaces SET generation = ? WHERE id = ?"
        connection.execute(query, (generation, self._database.namespace_id))
        return generation

    def _follow(self, generation: int, change: Callable[[FlatIndex], None]) -> None:
        """Make a committed change in FAISS too, unless that has missed others or was rebuilt meanwhile."""
        with self._database.read() as connection:
            flat = self._flat
            in_step = self._generation == generation - 1
            if flat is not None and in_step and flat.dimension == self._width(connection):
                self._generation = -1  # a change that fails half-way has the next search rebuild
                change(flat)
                self._generation = generation

    def _search(self, vectors: object, k: int, predicate: Predicate | None) -> list[list[Hit]]:
        if not is_int(k) or k < 1:
            raise InputError("k", expected="an int >= 1", got=repr(k)[:80], remedy="Ask for at least one hit.")
        with self._database.read() as connection:
            self._refresh(connection)
            array = check_vectors(vectors, self._width(connection))
            flat = self._flat
            if flat is None or not len(flat):
                return [[] for _ in array]
            return [self._nearest(connection, flat, query, k, predicate) for query in array]

    def _nearest(
        self, connection: sqlite3.Connection, flat: FlatIndex, query: Floats, k: int, predicate: Predicate | None
    ) -> list[Hit]:
        count, seen = min(len(flat), 2 * k + 8), set[int]()
        best: list[tuple[float, int, Entry]] = []  # of equal scores the lowest position, and so the row added first
        while True:
            positions, lowest = flat.nearest(query, count)
            fresh = self._entries(connection, [position for position in positions if position not in seen])
            seen.update(positions)
            wanted = [(at, entry) for at, entry in fresh.items() if predicate is None or predicate(entry)]
            best = sorted([*best, *((-cosine(entry.vector, query), at, entry) for at, entry in wanted)])[:k]
            if count == len(flat) or (len(best) == k and lowest < -best[-1][0] - _TIE):
                return [Hit(entry, -score) for score, _, entry in best]
            count = min(len(flat), 4 * count)

    def _refresh(self, connection: sqlite3.Connection) -> None:
        if self._generation != self._stored_generation(connection):
            self.rebuild()

    def _stored_generation(self, connection: sqlite3.Connection) -> int:
        query = "SELECT generation FROM namespaces WHERE id = ?"
        return int(connection.execute(query, (self._database.namespace_id,)).fetchone()[0])

    def _width(self, connection: sqlite3.Connection) -> int | None:
        query = "SELECT length(vector) FROM vectors WHERE namespace_id = ? ORDER BY position LIMIT 1"
        row = connection.execute(query, (self._database.namespace_id,)).fetchone()
        if row is None:
            return self._dimension
        width = int(row[0]) // 4
        if self._dimension not in (None, width):
            expected = f"vectors of dimension {self._dimension}"
            remedy = "Open it with that dimension, or use another namespace."
            raise ShapeError(f"index {self.path}", expected=expected, got=f"dimension {width}", remedy=remedy)
        return width

    def _positions(self, connection: sqlite3.Connection, names: list[str]) -> dict[str, int]:
        positions: dict[str, int] = {}
        for piece, marks in chunks(names):
            query = f"SELECT id, position FROM vectors WHERE namespace_id = ? AND id IN ({marks})"
            positions.update(connection.execute(query, (self._database.namespace_id, *piece)).fetchall())
        return positions

    def _entries(self, connection: sqlite3.Connection, positions: list[int]) -> dict[int, Entry]:
        width, found = self._width(connection), dict[int, Entry]()
        for piece, marks in chunks(positions):
            query = f"SELECT {_COLUMNS} FROM vectors WHERE position IN ({marks})"
            found.update((row[0], self._decode(row, width)) for row in connection.execute(query, piece))
        return found

    def _decode(self, row: tuple[int, str, str, bytes, bytes], width: int | None) -> Entry:
        _, name, metadata, text, vector = row
        try:
            loaded = json.loads(metadata)
            if not isinstance(loaded, dict):
                raise ValueError("metadata that is no object")
            return Entry(name, text.decode(), loaded, self._vector(name, vector, width))
        except (ValueError, TypeError, AttributeError) as error:
            raise self._database.corrupt(f"vector {name!r}: {error}") from error

    def _vector(self, name: str, data: bytes, width: int | None) -> Floats:
        whole = isinstance(data, bytes) and len(data) % 4 == 0 and len(data) == 4 * (width or len(data) // 4)
        vector = np.frombuffer(data if whole else b"", dtype="<f4").astype(np.float32)
        if not vector.any() or not np.isfinite(vector).all():
            raise self._database.corrupt(f"vector {name!r}: damaged numbers")
        return vector
