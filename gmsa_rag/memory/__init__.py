"""Memories: the value type, its handles, the SQLite store, the cache over any byte store, and the FAISS index.

Importing this package loads neither torch nor faiss; a name brings in what it needs when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gmsa_rag.memory.byte_store import ByteStore
    from gmsa_rag.memory.cache import GMSAMemoryCache
    from gmsa_rag.memory.entries import Entry, Hit
    from gmsa_rag.memory.flat import faiss_distributions
    from gmsa_rag.memory.handles import Handle, find_handles, make_handle, neutralise, resolve_parts, split_handles
    from gmsa_rag.memory.index import VectorIndex
    from gmsa_rag.memory.items import ItemStore
    from gmsa_rag.memory.keys import memory_key
    from gmsa_rag.memory.memory import Memory
    from gmsa_rag.memory.store import MemoryStore, default_store, open_store

__all__ = [
    "ByteStore",
    "Entry",
    "GMSAMemoryCache",
    "Handle",
    "Hit",
    "ItemStore",
    "Memory",
    "MemoryStore",
    "VectorIndex",
    "default_store",
    "faiss_distributions",
    "find_handles",
    "make_handle",
    "memory_key",
    "neutralise",
    "open_store",
    "resolve_parts",
    "split_handles",
]

_MODULES = {
    "byte_store": ("ByteStore",),
    "cache": ("GMSAMemoryCache",),
    "entries": ("Entry", "Hit"),
    "flat": ("faiss_distributions",),
    "handles": ("Handle", "find_handles", "make_handle", "neutralise", "resolve_parts", "split_handles"),
    "index": ("VectorIndex",),
    "items": ("ItemStore",),
    "keys": ("memory_key",),
    "memory": ("Memory",),
    "store": ("MemoryStore", "default_store", "open_store"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
