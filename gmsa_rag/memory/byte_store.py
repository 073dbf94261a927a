"""ByteStore: what a store of memories can be built on, such as any LangChain `ByteStore`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from gmsa_rag.errors import InputTypeError, StoreError


class ByteStore(Protocol):
    """What GMSAMemoryCache needs of a byte store; every LangChain `ByteStore` has it."""

    def mget(self, keys: Sequence[str], /) -> list[bytes | None]:
        """The value of each name, None where there is none."""

    def mset(self, key_value_pairs: Sequence[tuple[str, bytes]], /) -> None:
        """Write values, replacing those that are there."""

    def mdelete(self, keys: Sequence[str], /) -> None:
        """Delete values; names that are not there are passed over."""

    def yield_keys(self, *, prefix: str | None = None) -> Iterator[str]:
        """Names with a prefix."""


def check_byte_store(store: ByteStore) -> ByteStore:
    """The byte store itself; InputTypeError if it lacks a method."""
    missing = [name for name in ("mget", "mset", "mdelete", "yield_keys") if not hasattr(store, name)]
    if missing:
        raise InputTypeError(
            "byte store",
            expected="mget, mset, mdelete and yield_keys, as a LangChain ByteStore has them",
            got=f"{type(store).__name__}, without {' and '.join(missing)}",
            remedy="Wrap the client in a ByteStore; docs/langchain.md has one for Redis.",
        )
    return store


def check_value(value: object, where: str) -> bytes | None:
    """A value that a byte store gave, as bytes or None; StoreError if it is something else."""
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if value is not None and not isinstance(value, bytes):
        raise StoreError(
            f"memories {where}",
            expected="bytes",
            got=type(value).__name__,
            remedy="Use a byte store that decodes nothing, for Redis a client with decode_responses=False.",
        )
    return value
