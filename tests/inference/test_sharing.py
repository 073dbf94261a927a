"""Components of a process that name the same checkpoint or store share it."""

import os
import threading

import pytest

from gmsa_rag.errors import CheckpointError, InputError
from gmsa_rag.inference import sharing
from gmsa_rag.inference.sharing import load_engine, path_text, shared_store
from gmsa_rag.memory.memory import Memory, memory_key
from gmsa_rag.memory.store import DEFAULT_STORE_MEMORIES, MemoryStore, default_store


@pytest.fixture(autouse=True)
def anew(monkeypatch):
    monkeypatch.setattr(sharing, "_engines", {})
    monkeypatch.setattr(sharing, "_stores", stores := {})
    yield
    for store in stores.values():
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


def test_a_file_that_was_deleted_is_made_anew(tmp_path):
    store = shared_store(tmp_path / "memories.db")
    os.remove(tmp_path / "memories.db")
    again = shared_store(tmp_path / "memories.db")
    assert again is not store
    assert (tmp_path / "memories.db").exists()
    store.close()


def test_stores_in_memory():
    assert shared_store(None) is shared_store(None, "default") is default_store()
    tenant = shared_store(None, "tenant")
    assert tenant is shared_store(None, "tenant") is not default_store()
    assert (tenant.namespace, tenant.max_memories) == ("tenant", DEFAULT_STORE_MEMORIES)
    named = shared_store(":memory:")
    assert named is shared_store(":memory:") is not default_store()
    assert named.max_memories is None


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
