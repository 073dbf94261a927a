"""Components of a process that name the same checkpoint or store share it."""

import gc
import os
import subprocess
import sys
import threading

import pytest
import torch

from gmsa_rag.errors import CheckpointError, InputError
from gmsa_rag.inference import sharing
from gmsa_rag.inference.sharing import load_engine, path_text, shared_store
from gmsa_rag.memory.memory import Memory, memory_key
from gmsa_rag.memory.store import DEFAULT_STORE_BYTES, MemoryStore, default_store


@pytest.fixture(autouse=True)
def anew(monkeypatch):
    monkeypatch.setattr(sharing, "_engines", {})
    for name in ("_stores", "_recent", "_in_memory"):
        monkeypatch.setattr(sharing, name, type(getattr(sharing, name))())
    yield
    for store in list(sharing._stores.values()):
        store.close()


def test_an_engine_is_loaded_once_for_the_same_arguments(gmsa, monkeypatch):
    loaded = []
    monkeypatch.setattr(sharing.GMSA, "from_pretrained", lambda *args, **kw: loaded.append((args, kw)) or object())
    engines = [load_engine("m"), load_engine("m", token="t"), load_engine("m", revision="v2"), load_engine("n")]
    assert engines[0] is engines[1]
    assert len({*map(id, engines)}) == len(loaded) == 3
    assert loaded[0] == (("m",), {"device": "auto", "dtype": "auto", "revision": None, "token": None})
    threads = [threading.Thread(target=load_engine, args=("other",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 4


def test_a_real_checkpoint(gmsa, tmp_path):
    gmsa.save_pretrained(tmp_path / "checkpoint")
    engine = load_engine(str(tmp_path / "checkpoint"), device="cpu")
    assert engine is load_engine(str(tmp_path / "checkpoint"), device="cpu")
    assert engine.compress("Rome").num_soft_tokens == 1
    with pytest.raises(CheckpointError):
        load_engine(str(tmp_path / "missing"))


def test_a_path_is_opened_once(tmp_path):
    path = tmp_path / "memories.db"
    store = shared_store(path)
    (tmp_path / "link.db").symlink_to(path)
    assert store is shared_store(str(path)) is shared_store(tmp_path / "link.db") is shared_store(path, "default")
    assert (store.namespace, store.max_memories) == ("default", None)
    tenant = shared_store(path, "tenant")
    assert tenant is not store
    assert tenant.namespace == "tenant"


def test_a_namespace_that_nobody_holds_is_closed_and_opened_again(tmp_path, monkeypatch):
    monkeypatch.setattr(sharing, "FILES_KEPT_OPEN", 3)
    path = tmp_path / "memories.db"
    memory = Memory(torch.ones(1, 4), memory_key("f", 8, "Rome"), 8, 2, "f", (0, 2))
    held = shared_store(path, "held")
    in_memory = shared_store(None, "tenant")
    in_memory.put(memory, "Rome")
    handles = {}
    for number in range(20):
        tenant = shared_store(path, f"tenant {number}")
        tenant.put(memory, "Rome")
        handles[tenant.namespace] = tenant.handle(memory)
    del tenant
    gc.collect()
    assert len(sharing._stores) == 3 + 2
    for namespace, handle in handles.items():
        assert shared_store(path, namespace).resolve(handle) == memory
    assert shared_store(path, "held") is held and held.is_current
    assert shared_store(None, "tenant") is in_memory and in_memory.resolve(in_memory.handle(memory)) == memory
    held.check()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="a system that does not list descriptors")
def test_many_tenants_of_a_file_take_few_descriptors(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for number in range(200):
        shared_store(tmp_path / "memories.db", f"tenant {number}")
    assert len(os.listdir("/proc/self/fd")) - before <= 3 * (sharing.FILES_KEPT_OPEN + 1)


def test_a_file_that_is_being_opened_keeps_nobody_from_those_that_are_open(tmp_path, monkeypatch):
    opened, started, go_on = shared_store(tmp_path / "open.db"), threading.Event(), threading.Event()
    results = []

    def slow(*args, **settings):
        started.set()
        assert go_on.wait(20)
        return MemoryStore(*args, **settings)

    monkeypatch.setattr(sharing, "MemoryStore", slow)
    threads = [
        threading.Thread(target=lambda: results.append(sharing._opened((os.getpid(), str(tmp_path / "busy.db"), "n"))))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    assert started.wait(20)
    asking = threading.Thread(
        target=lambda: results.append(sharing._opened((os.getpid(), opened.path, opened.namespace)))
    )
    asking.start()
    asking.join(5)
    unhindered = list(results)
    go_on.set()
    for thread in (*threads, asking):
        thread.join()
    assert unhindered == [opened]
    assert len(results) == 4 and len({*map(id, results)}) == 2
    assert not sharing._opening


def test_a_file_that_was_deleted_is_made_anew(tmp_path):
    store = shared_store(tmp_path / "memories.db")
    os.remove(tmp_path / "memories.db")
    again = shared_store(tmp_path / "memories.db")
    assert again is not store
    assert (tmp_path / "memories.db").exists()
    store.close()


def test_a_file_that_was_replaced_is_opened_anew(tmp_path):
    path = tmp_path / "memories.db"
    store = shared_store(path)
    os.remove(path)
    with MemoryStore(path) as other:
        again = shared_store(path)
        assert again is not store and again is shared_store(path)
        memory = Memory(torch.ones(1, 4), memory_key("f", 8, "Rome"), 8, 2, "f", (0, 2))
        again.put(memory, "Rome")
        assert other.text(memory.key) == "Rome"
    store.close()


@pytest.mark.parametrize("name", [":memory:", None, "memories.db"])
def test_a_store_that_someone_closed_is_opened_anew(tmp_path, name):
    name = name and (name if name == ":memory:" else tmp_path / name)
    with shared_store(name) as store:
        assert store.is_current
    assert not store.is_current
    assert len(shared_store(name)) == 0
    assert shared_store(name) is shared_store(name) is not store


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_a_lock_that_is_held_at_a_fork_does_not_stop_the_child(tmp_path):
    script = """
import os, sys
from gmsa_rag.inference import sharing
from gmsa_rag.memory import database
with sharing._stores_lock, sharing._engines_lock, database._creating:
    child = os.fork()
    if child == 0:
        sharing.shared_store(sys.argv[1])
        os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    command = [sys.executable, "-W", "ignore", "-c", script, str(tmp_path / "memories.db")]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0


def test_stores_in_memory():
    assert shared_store(None) is shared_store(None, "default") is default_store()
    tenant = shared_store(None, "tenant")
    assert tenant is shared_store(None, "tenant") is not default_store()
    assert (tenant.namespace, tenant.max_bytes) == ("tenant", DEFAULT_STORE_BYTES)
    named = shared_store(":memory:")
    assert named is shared_store(":memory:") is not default_store()
    assert named.max_memories is named.max_bytes is None


def test_a_store_is_itself_and_of_its_own_namespace():
    with MemoryStore(":memory:", "tenant") as store:
        assert shared_store(store) is shared_store(store, "tenant") is store
        with pytest.raises(InputError, match="tenant"):
            shared_store(store, "default")


def test_what_one_component_writes_another_reads(tmp_path, gmsa):
    memory = gmsa.compress("Rome", 4, store=shared_store(tmp_path / "memories.db"))
    found = shared_store(str(tmp_path / "memories.db")).get(memory_key(gmsa.fingerprint, 4, "Rome"))
    assert isinstance(found, Memory)
    assert found == memory


def test_paths_become_text(tmp_path):
    assert path_text(tmp_path) == str(tmp_path)
    assert path_text("a") == "a"
    assert path_text(None) is None
