"""GMSAByteStore: a MemoryStore, and any other bytes beside its memories, as a LangChain ByteStore."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from langchain_core.stores import BaseStore

from gmsa_rag.errors import InputError, InputTypeError
from gmsa_rag.inference.sharing import shared_store
from gmsa_rag.memory.cache import GMSAMemoryCache
from gmsa_rag.memory.cache_records import key_of, memory_name
from gmsa_rag.memory.database import IN_MEMORY
from gmsa_rag.memory.items import ItemStore
from gmsa_rag.memory.memory import Memory
from gmsa_rag.memory.store import MemoryStore


class GMSAByteStore(BaseStore[str, bytes]):
    """A file of memories, as LangChain's key-value interface.

    `gmsa/v1/<key>` names the memory of that key, and its value is the memory's bytes: what the compressor has put into
    the store is there, and what is set here is found by it. Any other name holds any bytes, in the same file and
    namespace. Deleting a memory deletes its text too.

    Args:
        store: A MemoryStore, the path of its file, or None for default_store(). Items that are not memories are in
            the same file; those beside a store in memory are in memory. ":memory:" keeps all in memory, for itself.
    Raises:
        InputTypeError: If it is a GMSAMemoryCache, which has a byte store already.
        StoreError: If the file cannot be opened, see MemoryStore.
    Example:
        >>> items = GMSAByteStore(":memory:")
        >>> items.mset([("a", b"1"), ("b", b"2")])
        >>> items.mget(["b", "c"]), list(items.yield_keys(prefix="a"))
        ([b'2', None], ['a'])
    """

    def __init__(self, store: MemoryStore | str | Path | None = None) -> None:
        if isinstance(store, GMSAMemoryCache):
            remedy = "Use the byte store of the cache."
            raise InputTypeError("store", expected="a MemoryStore over a file", got="a GMSAMemoryCache", remedy=remedy)
        self._owns_store = store is not None and str(store) == IN_MEMORY
        self.store = MemoryStore(IN_MEMORY) if self._owns_store else shared_store(store)
        self._items = ItemStore(self.store.path, self.store.namespace)

    def mget(self, keys: Sequence[str]) -> list[bytes | None]:
        """Read values.

        Args:
            keys: Names, in any order, repeats allowed.
        Returns:
            One value per name; None where there is none.
        Raises:
            CorruptStoreError: If a memory is damaged.
        """
        memories, others = _split(keys)
        found: dict[str, bytes | None] = dict(zip(others, self._items.get_many(others), strict=True))
        for name, memory in zip(memories, self.store.get_many(list(memories.values())), strict=True):
            found[name] = memory.to_bytes() if memory else None
        return [found[name] for name in keys]

    def mset(self, key_value_pairs: Sequence[tuple[str, bytes]]) -> None:
        """Write values, replacing those that are there; all memories in one transaction, all others in another.

        Args:
            key_value_pairs: Names and values; of equal names the last wins.
        Raises:
            MemoryFormatError: If the value of a memory's name is not the bytes of a memory; nothing is written.
            InputError: If it is another memory, or a value is not bytes.
        """
        values = dict(key_value_pairs)
        memories, others = _split(list(values))
        checked = [_memory(name, key, values[name]) for name, key in memories.items()]
        self._items.put_many({name: values[name] for name in others})
        self.store.put_many(checked)

    def mdelete(self, keys: Sequence[str]) -> None:
        """Delete values, and the texts of memories; their bytes leave the file.

        Args:
            keys: Names; those that are not there are passed over.
        """
        memories, others = _split(keys)
        self.store.delete(memories.values())
        self._items.delete(others)

    def yield_keys(self, *, prefix: str | None = None) -> Iterator[str]:
        """Go through the names, first those of memories.

        Args:
            prefix: What they begin with; None for all.
        Yields:
            Names.
        """
        wanted = prefix or ""
        yield from (name for name in map(memory_name, self.store.keys()) if name.startswith(wanted))
        yield from self._items.names(wanted)

    def close(self) -> None:
        """Close what was opened for it alone, which a store that was given is not; closing again does nothing."""
        self._items.close()
        if self._owns_store:
            self.store.close()


def _split(names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The names of memories with their keys, and the others, each once."""
    memories = {name: key for name in names if (key := key_of(name))}
    return memories, [name for name in dict.fromkeys(names) if name not in memories]


def _memory(name: str, key: str, value: bytes) -> Memory:
    memory = Memory.from_bytes(value)
    if memory.key != key:
        raise InputError(name, expected="the memory of that key", got=f"key {memory.key}", remedy="Use its own key.")
    return memory
