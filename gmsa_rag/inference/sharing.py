"""Engines and stores, shared by all components of a process that name the same ones."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from gmsa_rag.errors import ConfigError, FingerprintError, InputError
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.memory.database import IN_MEMORY
from gmsa_rag.memory.store import DEFAULT_STORE_BYTES, MemoryStore, default_store

DEFAULT_MODEL = "gmsa-mini"
DEFAULT_NAMESPACE = "default"

_engines: dict[tuple[str, str, str, str | None], GMSA] = {}
_engines_lock = threading.Lock()
Key = tuple[int, str | None, str]
FILES_KEPT_OPEN = 32
# A file stays open for whoever holds its store. The ones used last also stay open for whoever asks next; one that is in
# neither closes itself. What is in memory would be lost, so it stays.
_stores: WeakValueDictionary[Key, MemoryStore] = WeakValueDictionary()
_recent: OrderedDict[Key, MemoryStore] = OrderedDict()
_in_memory: dict[Key, MemoryStore] = {}
_stores_lock = threading.Lock()
_opening: WeakValueDictionary[Key, threading.Lock] = WeakValueDictionary()
_of_parents: list[OrderedDict[Key, MemoryStore]] = []


def load_engine(
    model: str, *, device: str = "auto", dtype: str = "auto", revision: str | None = None, token: str | None = None
) -> GMSA:
    """Load a checkpoint, once per process and combination of arguments, the token aside.

    Args:
        model: A bundled name such as "gmsa-mini", a directory, or a hub id.
        device: "auto" takes cuda, mps or cpu, the first there is.
        dtype: "auto" keeps the files' dtype on a GPU and computes in float32 on a CPU.
        revision: Of a hub id.
        token: For a private hub id.
    Returns:
        The engine; the same one for the same arguments.
    Raises:
        CheckpointError: If there is no such checkpoint, or it is damaged.
        ConfigError: If there is no such device or dtype.
    """
    key = (model, device, dtype, revision)
    if key in _engines:  # without waiting for another one that is being loaded
        return _engines[key]
    with _engines_lock:
        if key not in _engines:
            _engines[key] = GMSA.from_pretrained(model, device=device, dtype=dtype, revision=revision, token=token)
        return _engines[key]


def chosen_engine(gmsa: GMSA | None, model: str, fingerprint: str | None, **settings: Any) -> GMSA:
    """The engine that a component's settings mean.

    Args:
        gmsa: An engine in memory, instead of `model`.
        model: A checkpoint.
        fingerprint: The only one that may be used; None takes any.
        **settings: As for load_engine().
    Returns:
        The engine; one of `model` is loaded once per process.
    Raises:
        CheckpointError: As load_engine(), and so is ConfigError.
        FingerprintError: If it is not the one of `fingerprint`.
    """
    engine = gmsa or load_engine(model, **settings)
    if fingerprint not in (None, engine.fingerprint):
        raise FingerprintError(
            "checkpoint",
            expected=f"one of fingerprint {fingerprint}",
            got=f"{'the engine' if gmsa else repr(model)} of {engine.fingerprint}",
            remedy="Name the checkpoint in `model`, or assign the engine to `gmsa`.",
        )
    return engine


def check_picklable(store: object) -> None:
    """Raise ConfigError for a `store=` setting that cannot be pickled: one that is open."""
    if isinstance(store, MemoryStore):
        raise ConfigError(
            "store",
            expected="None or a path, which can be pickled",
            got="a MemoryStore, an open file",
            remedy="Name the store by its path.",
        )


def shared_store(store: MemoryStore | str | Path | None, namespace: str | None = None) -> MemoryStore:
    """The store that a `store=` and a `namespace=` setting mean, the same one for all who ask while it is open.

    It is open as long as somebody holds it. A file that nobody holds is closed once 32 other stores on files were asked
    for, and opened again when it is asked for; what is in memory stays until the process ends.

    Args:
        store: A store, the path of its file, or None for default_store().
        namespace: Of a path or of None, whose other namespaces are in memory and bounded like default_store(); a
            store has its own already. None for that, or for "default".
    Returns:
        The store of that path and namespace.
    Raises:
        InputError: If a store is of another namespace.
        StoreError: If the file cannot be opened, see MemoryStore.
    """
    if isinstance(store, MemoryStore):
        if namespace not in (None, store.namespace):
            raise InputError(
                "namespace",
                expected=f"{store.namespace!r}, that of the store",
                got=repr(namespace),
                remedy="Name the store by its path, or pass a MemoryStore of that namespace.",
            )
        return store
    name = DEFAULT_NAMESPACE if namespace is None else namespace
    if store is None and name == DEFAULT_NAMESPACE:
        return default_store()
    path = str(store) if store is None or str(store) == IN_MEMORY else os.path.realpath(store)
    return _opened((os.getpid(), None if store is None else path, name))


def path_text(value: object) -> object:
    """A path as text, which serialises; anything else unchanged."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _opened(key: Key) -> MemoryStore:
    opened = _open_already(key)
    if opened is not None:  # without waiting for another one that is being opened
        return opened
    with _stores_lock:
        opening = _opening.setdefault(key, threading.Lock())
    with opening:
        return _open_already(key) or _open_anew(key)


def _open_already(key: Key) -> MemoryStore | None:
    """The store of a key, unless someone closed it, or its file was deleted or replaced: it would write to nowhere."""
    with _stores_lock:
        opened = _stores.get(key)
    if opened is None or not opened.is_current:
        return None
    return _keep(key, opened)


def _open_anew(key: Key) -> MemoryStore:
    _, path, namespace = key
    bound = DEFAULT_STORE_BYTES if path is None else None
    return _keep(key, MemoryStore(path or IN_MEMORY, namespace, max_bytes=bound))


def _keep(key: Key, store: MemoryStore) -> MemoryStore:
    idle = []  # closed once the lock is free: closing the last connection of a file writes to it
    with _stores_lock:
        _stores[key] = store
        if store.path == IN_MEMORY:
            _in_memory[key] = store
        else:
            idle.append(_recent.pop(key, None))
            _recent[key] = store
            if len(_recent) > FILES_KEPT_OPEN:
                idle.append(_recent.popitem(last=False)[1])
    return store


def _renew_locks() -> None:
    global _engines_lock, _stores_lock, _stores, _recent, _opening
    _engines_lock, _stores_lock = threading.Lock(), threading.Lock()
    # Stores of the parent are never used here, nor dropped, which would close files that the parent has open.
    _of_parents.append(_recent)
    _stores, _recent, _opening = WeakValueDictionary(), OrderedDict(), WeakValueDictionary()


# A thread may have held one of them when another one forked.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
