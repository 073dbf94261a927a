"""GMSAByteStore: LangChain's standard suites; and GMSAMemoryCache over LangChain's byte stores."""

import subprocess
import sys

import pytest
from langchain_classic.storage import EncoderBackedStore, LocalFileStore
from langchain_core.stores import InMemoryByteStore
from langchain_tests.integration_tests import BaseStoreAsyncTests, BaseStoreSyncTests

from gmsa_rag.errors import CorruptStoreError, InputError, InputTypeError, MemoryFormatError, UnknownMemoryError
from gmsa_rag.memory import Memory, MemoryStore
from langchain_gmsa import ChatGMSA, GMSAByteStore, GMSAContextCompressor, GMSAMemoryCache

TEXTS = ["The Danube begins in Germany.", "Vienna stands on its banks.", ""]


@pytest.fixture
def memories(gmsa):
    return gmsa.compress(TEXTS, rate=4)


class Values:
    """Real memories as values, over a file."""

    @pytest.fixture
    def three_values(self, memories):
        return tuple(memory.to_bytes() for memory in memories)


class TestSync(Values, BaseStoreSyncTests[bytes]):
    @pytest.fixture
    def kv_store(self, tmp_path):
        store = GMSAByteStore(tmp_path / "memories.db")
        yield store
        store.close()


class TestAsync(Values, BaseStoreAsyncTests[bytes]):
    @pytest.fixture
    async def kv_store(self):
        store = GMSAByteStore(MemoryStore(":memory:"))
        yield store
        store.close()


def name(memory):
    return f"gmsa/v1/{memory.key}"


def test_what_the_compressor_stored_is_there_under_its_name(compressor, store, documents):
    keys = [document.metadata["gmsa_key"] for document in compressor.invoke(documents)]
    items = GMSAByteStore(store)
    names = list(items.yield_keys())
    assert names == [f"gmsa/v1/{key}" for key in keys]
    assert list(items.yield_keys(prefix=names[0][:-1])) == [names[0]]
    assert list(items.yield_keys(prefix="other")) == []
    values = items.mget([names[1], "other", names[0], names[1]])
    assert [value and Memory.from_bytes(value).key for value in values] == [keys[1], None, keys[0], keys[1]]


def test_what_is_set_is_found_by_the_compressor_and_deleted_with_its_text(gmsa, store, memories):
    items = GMSAByteStore(store)
    items.mset([(name(memory), memory.to_bytes()) for memory in memories] + [("other", b"x")])
    assert store.get(memories[0].key) == memories[0]
    assert store.handle(memories[0]) == store.handle(gmsa.compress(TEXTS[0], rate=4, store=store))
    store.put(memories[0], TEXTS[0])
    items.mdelete([name(memories[0]), "other", name(memories[0]), "none"])
    assert store.text(memories[0].key) is None
    assert sorted(items.yield_keys()) == sorted(map(name, memories[1:]))


def test_a_name_holds_its_own_memory_only(store, memories):
    items = GMSAByteStore(store)
    with pytest.raises(MemoryFormatError):
        items.mset([("other", b"x"), (name(memories[0]), b"no memory")])
    with pytest.raises(InputError, match=memories[1].key):
        items.mset([("other", b"x"), (name(memories[0]), memories[1].to_bytes())])
    with pytest.raises(InputTypeError):
        items.mset([("other", "text")])
    assert list(items.yield_keys()) == []


def test_a_store_in_memory_is_for_itself_and_closed_with_it(memories):
    one, two = GMSAByteStore(":memory:"), GMSAByteStore(":memory:")
    one.mset([(name(memories[0]), memories[0].to_bytes()), ("other", b"x")])
    assert list(one.yield_keys()) == [name(memories[0]), "other"]
    assert list(two.yield_keys()) == []
    one.close()
    one.close()
    assert not one.store.is_current and two.store.is_current
    two.close()


def test_a_store_that_was_given_stays_open(store, tmp_path):
    for given in (store, tmp_path / "memories.db"):
        items = GMSAByteStore(given)
        items.close()
        assert items.store.is_current


def test_it_is_over_files_not_over_a_cache(gmsa):
    with pytest.raises(InputTypeError, match="byte store of the cache"):
        GMSAByteStore(GMSAMemoryCache(InMemoryByteStore()))


@pytest.fixture(params=["memory", "files", "ours"])
def byte_store(request, tmp_path):
    made = {
        "memory": lambda: InMemoryByteStore(),
        "files": lambda: LocalFileStore(tmp_path / "files"),
        "ours": lambda: GMSAByteStore(tmp_path / "memories.db"),
    }
    return made[request.param]()


async def test_a_chain_works_over_any_byte_store(byte_store, gmsa, documents, vectors):
    compressor = GMSAContextCompressor(gmsa=gmsa, store=GMSAMemoryCache(byte_store), rate=4)
    [first, *_] = compressed = compressor.invoke(documents)
    other_host = GMSAMemoryCache(byte_store)
    chat = ChatGMSA(gmsa=gmsa, store=other_host, max_tokens=4)
    message = await chat.ainvoke(f"{first.page_content} Where does it begin?")
    assert message.response_metadata["gmsa"]["original_tokens"] == first.metadata["gmsa_num_tokens"]
    restored = GMSAContextCompressor(gmsa=gmsa, store=other_host, rate=4).restore_documents(compressed)
    assert restored == documents
    other_host.check()
    assert other_host.forget(documents[0].page_content) == 1
    with pytest.raises(UnknownMemoryError):
        chat.invoke(first.page_content)
    assert sorted(other_host.keys()) == sorted(document.metadata["gmsa_key"] for document in compressed[1:])


def test_damage_is_repaired_by_compressing_again(tmp_path, gmsa, documents):
    cache = GMSAMemoryCache(LocalFileStore(tmp_path))
    compressor = GMSAContextCompressor(gmsa=gmsa, store=cache, rate=4)
    compressed = compressor.invoke(documents)
    file = tmp_path / f"gmsa/v1/{compressed[0].metadata['gmsa_key']}"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(CorruptStoreError):
        ChatGMSA(gmsa=gmsa, store=cache).invoke(compressed[0].page_content)
    assert compressor.invoke(documents) == compressed
    cache.check()


def test_a_second_process_issues_the_same_handle_and_reads_the_memory(tmp_path, memories):
    cache = GMSAMemoryCache(LocalFileStore(tmp_path))
    cache.put(memories[0], TEXTS[0])
    script = f"""
from langchain_classic.storage import LocalFileStore
from gmsa_rag.memory import GMSAMemoryCache
cache = GMSAMemoryCache(LocalFileStore({str(tmp_path)!r}))
[key] = cache.keys()
print(cache.handle(cache.get(key)), cache.text(key))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{cache.handle(memories[0])} {TEXTS[0]}"


def test_a_wrapped_byte_store_serves_too(memories):
    def shift(value):
        return bytes(byte ^ 1 for byte in value)

    inner = InMemoryByteStore()
    cache = GMSAMemoryCache(EncoderBackedStore(inner, lambda name: f"tenant/{name}", shift, shift))
    with pytest.raises(UnknownMemoryError):
        cache.resolve(cache.handle(memories[0]))
    cache.put(memories[0], TEXTS[0])
    assert cache.resolve(cache.handle(memories[0])) == memories[0]
    assert all(key.startswith("tenant/") for key in inner.yield_keys())
