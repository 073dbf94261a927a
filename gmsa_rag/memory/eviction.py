"""Bounds of a store: what is evicted, and when."""

from __future__ import annotations

import sqlite3

from gmsa_rag.checks import is_int
from gmsa_rag.errors import InputError
from gmsa_rag.memory.records import NEXT_USE

TEXTS_PER_MEMORY = 8
_SIZE = "length(data) + coalesce(length(text), 0)"
_FORGET_EMPTY = "DELETE FROM memories WHERE namespace_id = :namespace AND data IS NULL AND text IS NULL"
_TOTAL = """SELECT coalesce(sum(coalesce(length(data), 0) + coalesce(length(text), 0)), 0)
            FROM memories WHERE namespace_id = :namespace"""
# An evicted memory leaves its text behind for a while: it is small, and a prompt can fall back on it.
_EVICT_BEYOND_COUNT = (
    """UPDATE memories SET data = NULL WHERE id IN (
        SELECT id FROM memories WHERE namespace_id = :namespace AND data IS NOT NULL
        ORDER BY used DESC LIMIT -1 OFFSET :memories)""",
    _FORGET_EMPTY,
    """DELETE FROM memories WHERE id IN (
        SELECT id FROM memories WHERE namespace_id = :namespace AND data IS NULL
        ORDER BY used DESC LIMIT -1 OFFSET :texts)""",
)
_EVICT_BEYOND_BYTES = (
    f"""UPDATE memories SET data = NULL WHERE id IN (
        SELECT id FROM (
            SELECT id, used, sum({_SIZE}) OVER (ORDER BY used DESC) AS held
            FROM memories WHERE namespace_id = :namespace AND data IS NOT NULL)
        WHERE held > :memories AND used < :first)""",
    _FORGET_EMPTY,
    """DELETE FROM memories WHERE id IN (
        SELECT id FROM (
            SELECT id, sum(length(text)) OVER (ORDER BY used DESC) AS held
            FROM memories WHERE namespace_id = :namespace AND data IS NULL)
        WHERE held > :texts)""",
)


class Bounds:
    """The most that a namespace holds; what was not used for longest goes first.

    Args:
        max_memories: Most memories, >= 1, whatever one put holds; None for no such bound.
        max_bytes: Most bytes of memories and texts together, >= 1, but for what the last put held; None for no such
            bound.
    Raises:
        InputError: If one is neither None nor an int >= 1.
    """

    def __init__(self, max_memories: int | None, max_bytes: int | None) -> None:
        for name, bound in (("max_memories", max_memories), ("max_bytes", max_bytes)):
            if bound is not None and (not is_int(bound) or bound < 1):
                got = repr(bound)[:80]
                raise InputError(name, expected="an int >= 1 or None", got=got, remedy="Pass None for no bound.")
        self.max_memories, self.max_bytes = max_memories, max_bytes
        # Bytes that may be put until they are counted again: counting reads every row.
        self._room = 0

    def __bool__(self) -> bool:
        return self.max_memories is not None or self.max_bytes is not None

    def __str__(self) -> str:
        count = f"{self.max_memories:,} memories" if self.max_memories is not None else ""
        size = f"{self.max_bytes:,} bytes of memories and texts" if self.max_bytes is not None else ""
        return " and ".join(filter(None, (count, size))) or "all memories"

    def next_use(self, connection: sqlite3.Connection, namespace: int) -> int:
        """The lowest `used` that a row put from now on will have."""
        return int(connection.execute(f"SELECT {NEXT_USE}", {"namespace": namespace}).fetchone()[0])

    def enforce(self, connection: sqlite3.Connection, namespace: int, first: int, put: int) -> None:
        """Evict what is beyond the bounds, in the transaction of a put.

        Args:
            connection: In that transaction.
            namespace: Id of the namespace.
            first: next_use() before the put.
            put: Bytes of memories and texts that it wrote, >= 0.
        """
        if self.max_memories is not None:
            values = {"memories": self.max_memories, "texts": TEXTS_PER_MEMORY * self.max_memories}
            _execute(connection, _EVICT_BEYOND_COUNT, {"namespace": namespace, **values})
        self._room -= put
        if self.max_bytes is not None and self._room < 0:
            total = _total(connection, namespace)
            if total > self.max_bytes:
                # Down to 3/4 of the bound in memories and 1/8 in texts, so that the next puts need not count.
                values = {"memories": self.max_bytes * 3 // 4, "texts": self.max_bytes // 8, "first": first}
                _execute(connection, _EVICT_BEYOND_BYTES, {"namespace": namespace, **values})
                total = _total(connection, namespace)
            self._room = self.max_bytes - total


def _execute(connection: sqlite3.Connection, statements: tuple[str, ...], values: dict[str, int]) -> None:
    for statement in statements:
        connection.execute(statement, values)


def _total(connection: sqlite3.Connection, namespace: int) -> int:
    return int(connection.execute(_TOTAL, {"namespace": namespace}).fetchone()[0])
