"""Engines and stores, shared by all components of a process that name the same ones."""

from __future__ import annotations

import atexit
import os
import threading
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from gmsa_rag.inference.engine import GMSA
from gmsa_rag.memory.database import IN_MEMORY
from gmsa_rag.memory.store import MemoryStore, open_store

DEFAULT_MODEL = "gmsa-mini"

_engines: dict[tuple[str, str, str, str | None], GMSA] = {}
_engines_lock = threading.Lock()
_stores: dict[tuple[int, str], MemoryStore] = {}
_stores_lock = threading.Lock()


def load_engine(model: str, *, device: str = "auto", dtype: str = "auto", revision: str | None = None) -> GMSA:
    """Load a checkpoint, once per process and combination of arguments.

    Args:
        model: A bundled name such as "gmsa-mini", a directory, or a hub id.
        device: "auto" takes cuda, mps or cpu, the first there is.
        dtype: "auto" keeps the files' dtype on a GPU and computes in float32 on a CPU.
        revision: Of a hub id.
    Returns:
        The engine; the same one for the same arguments.
    Raises:
        CheckpointError: If there is no such checkpoint, or it is damaged.
        ConfigError: If there is no such device or dtype.
    """
    key = (model, device, dtype, revision)
    with _engines_lock:
        if key not in _engines:
            _engines[key] = GMSA.from_pretrained(model, device=device, dtype=dtype, revision=revision)
        return _engines[key]


def shared_store(store: MemoryStore | str | Path | None) -> MemoryStore:
    """The store that a `store=` field means; a file is opened once per process and closed when that ends.

    Args:
        store: A store, the path of its file, or None for default_store().
    Returns:
        The store; the same one for the same path.
    Raises:
        StoreError: If the file cannot be opened, see MemoryStore.
    """
    if store is None or isinstance(store, MemoryStore):
        return open_store(store)
    key = (os.getpid(), str(store) if str(store) == IN_MEMORY else os.path.realpath(store))
    with _stores_lock:
        opened = _stores.get(key)
        # A file that was deleted meanwhile is made anew; the old connection would write to nowhere.
        if opened is None or (key[1] != IN_MEMORY and not os.path.exists(key[1])):
            opened = MemoryStore(store)
            atexit.register(opened.close)
            _stores[key] = opened
        return opened


def path_text(value: object) -> object:
    """A path as text, which serialises; anything else unchanged."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


class GMSASettings(BaseModel):
    """What the compressor and the chat model have in common: which engine, and which store.

    Attributes:
        gmsa: An engine in memory, instead of a checkpoint's name; it is not serialised.
        device: "auto" takes cuda, mps or cpu, the first there is.
        dtype: "auto", "float32", "bfloat16" or "float16".
        revision: Of a hub id.
        store: Where memories are kept: None for default_store(), a path, or a MemoryStore. Of a path, the namespace
            is "default".
    """

    model_config = ConfigDict(
        arbitrary_types_allowed=True, extra="forbid", populate_by_name=True, protected_namespaces=()
    )

    gmsa: GMSA | None = Field(default=None, exclude=True, repr=False)
    device: str = "auto"
    dtype: str = "auto"
    revision: str | None = None
    store: Annotated[MemoryStore | str | Path | None, BeforeValidator(path_text)] = None

    def _engine(self, model: str) -> GMSA:
        if self.gmsa is not None:
            return self.gmsa
        return load_engine(model, device=self.device, dtype=self.dtype, revision=self.revision)

    def _memories(self) -> MemoryStore:
        return shared_store(self.store)
