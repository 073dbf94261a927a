"""MemoryStore: what is stored comes back, what is deleted is gone, and damage is named."""

import gc
import multiprocessing
import sqlite3
import threading
from contextlib import closing

import pytest
import torch

from gmsa_rag.errors import (
    CorruptStoreError,
    FingerprintError,
    InputError,
    InputTypeError,
    MalformedHandleError,
    StoreError,
    UnknownMemoryError,
)
from gmsa_rag.memory import MemoryStore, default_store, open_store
from tests.memory.stores import FINGERPRINT, build, fill, raw


def contents(path):
    return b"".join(file.read_bytes() for file in sorted(path.parent.iterdir()) if file.name.startswith(path.name))


def test_memories_come_back_in_the_order_asked_for(store):
    first, second = fill(store, "one", "two")
    assert store.get_many([second.key, "0" * 32, first.key, second.key]) == [second, None, first, second]
    assert store.get(first.key) == first and store.get("0" * 32) is None
    assert store.keys() == [first.key, second.key] and len(store) == 2
    assert first.key in store and "0" * 32 not in store and 3 not in store
    assert store.get_many([]) == []


def test_many_keys_are_read_at_once(store):
    memories = fill(store, *(f"text {number}" for number in range(1203)))
    assert store.get_many([memory.key for memory in memories]) == memories
    assert store.delete(memory.key for memory in memories) == 1203


def test_stores_survive_closing(path):
    with MemoryStore(path) as store:
        [memory] = fill(store, "one")
        handle = store.handle(memory)
    with MemoryStore(str(path)) as store:
        assert store.resolve(handle) == memory and store.text(handle) == "one"
        store.check()


def test_putting_again_changes_nothing_and_keeps_the_text(store):
    [memory] = fill(store, "one")
    store.put(memory)
    assert len(store) == 1 and store.text(memory.key) == "one"
    half = memory.to(dtype=torch.float16)
    store.put(half)
    assert store.get(memory.key) == half


def test_texts_are_optional(path, store):
    store.put(build("one"))
    assert store.text(build("one").key) is None and store.text("0" * 32) is None
    with MemoryStore(path, "no texts", keep_text=False) as other:
        [memory] = fill(other, "secret passage")
        assert other.text(memory.key) is None and other.get(memory.key) == memory
        assert other.forget("secret passage") == 1
        other.check()


@pytest.mark.parametrize("text", ["", "a\x00b", "naïve 🙂", "'; DROP TABLE memories; --"])
def test_any_text_comes_back(store, text):
    [memory] = fill(store, text)
    assert store.text(store.handle(memory)) == text


def test_nothing_is_written_if_one_is_bad(store):
    good, bad = build("good"), build("bad", fill=float("nan"))
    for memories, texts, error in [
        ([good, bad], None, InputError),
        ([good, build("a")], ["good", "b"], InputError),
        ([good], ["good", "more"], InputError),
        ([good, "memory"], None, InputTypeError),
        ([good], ["\ud800"], InputError),
    ]:
        with pytest.raises(error):
            store.put_many(memories, texts)
    assert len(store) == 0


def test_keys_are_checked(store):
    for use in (store.get, lambda key: store.delete([key])):
        with pytest.raises(InputError, match="32"):
            use("A" * 32)


def test_handles_are_a_function_of_secret_and_key(store, path):
    memory = build("one")
    assert store.handle(memory) == store.handle(memory) and memory.key not in store.handle(memory)
    with pytest.raises(UnknownMemoryError):
        store.resolve(store.handle(memory))
    store.put(memory)
    assert store.resolve(store.handle(memory), fingerprint=FINGERPRINT) == memory
    with pytest.raises(FingerprintError):
        store.resolve(store.handle(memory), fingerprint="other")


def test_altered_handles_are_refused(store):
    [memory] = fill(store, "one")
    handle = store.handle(memory)
    for altered in (handle[:-1], handle.upper(), f" {handle}", handle.replace(":2]", ":3]"), memory.key, 3):
        with pytest.raises(MalformedHandleError):
            store.resolve(altered)
    with pytest.raises(MalformedHandleError):
        store.text(handle[:-1])
    with pytest.raises(UnknownMemoryError):
        store.resolve(handle.replace(handle[7:39], memory.key))


def test_namespaces_see_nothing_of_each_other(path, store):
    [memory] = fill(store, "one")
    with MemoryStore(path, "other") as other:
        assert len(other) == 0 and other.get(memory.key) is None and memory.key not in other
        assert other.handle(memory) != store.handle(memory)
        with pytest.raises(UnknownMemoryError):
            other.resolve(store.handle(memory))
        assert other.text(store.handle(memory)) is None
        assert other.delete([memory.key]) == other.forget("one") == 0
        assert other.namespaces() == ["default", "other"]
        other.put(memory)
        assert store.forget("one") == 1 and other.get(memory.key) == memory
        other.check()


def test_an_identity_tells_namespaces_and_files_apart_and_is_there_again(path, store, tmp_path):
    with MemoryStore(path, "other") as other, MemoryStore(tmp_path / "other.db") as elsewhere:
        assert len({store.identity, other.identity, elsewhere.identity}) == 3
    with MemoryStore(path) as again:
        assert again.identity == store.identity
    secret = b"x" * 32
    made = {}
    for name in ("one", "two"):
        with MemoryStore(":memory:", name, secret=secret) as one, MemoryStore(":memory:", name, secret=secret) as two:
            assert one.identity == two.identity
            made[name] = one.identity
    assert made["one"] != made["two"]
    assert secret.hex() not in made.values()


def test_a_configured_secret_gives_the_same_handles_everywhere(tmp_path):
    secret, memory = bytes(range(32)), build("one")
    with MemoryStore(tmp_path / "a", secret=secret) as one, MemoryStore(tmp_path / "b", secret=secret) as two:
        assert one.handle(memory) == two.handle(memory)
    with MemoryStore(tmp_path / "a") as again:
        assert again.handle(memory) == two.handle(memory)
        again.check()
    with pytest.raises(StoreError, match="secret"):
        MemoryStore(tmp_path / "a", secret=bytes(32))
    with pytest.raises(InputError, match="secret"):
        MemoryStore(tmp_path / "c", secret=b"short")


def test_forget_takes_every_rate_and_fingerprint_and_leaves_no_bytes(path, store):
    marker = "the passage to be forgotten"
    others = fill(store, "kept")
    memories = [build(marker, rate, name, fill=0.7377) for rate in (4, 8) for name in ("f1", "f2")]
    store.put_many(memories, [marker] * 4)
    pattern = memories[0].soft_tokens.numpy().tobytes()[:64]
    assert marker.encode() in contents(path) and pattern in contents(path)
    assert store.forget(marker) == 4 and store.forget(marker) == 0
    assert marker.encode() not in contents(path) and pattern not in contents(path)
    assert memories[0].key.encode() not in contents(path)
    assert store.keys() == [others[0].key]
    with pytest.raises(InputError):
        store.forget("\ud800")


def test_several_texts_are_forgotten_at_once(store):
    fill(store, "one", "two", "three")
    assert store.forget_many(["one", "three", "never seen"]) == 2
    assert list(map(store.text, store.keys())) == ["two"]
    with pytest.raises(InputError):
        store.forget_many(["two", "\ud800"])
    assert len(store) == 1 and store.forget_many([]) == 0


def test_bytes_that_a_reader_holds_back_are_reported(path, store, monkeypatch):
    [memory] = fill(store, "held back")
    store._database._connection.execute("PRAGMA busy_timeout = 50")
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM memories").fetchone()
        with pytest.raises(StoreError, match="deleted"):
            store.forget("held back")
        assert memory.key not in store and b"held back" in contents(path)
    assert store.forget("held back") == 0 and b"held back" not in contents(path)


def test_a_store_that_is_dropped_closes_its_file(path):
    store = MemoryStore(path)
    database = store._database
    del store
    gc.collect()
    assert not database.is_current


def test_reading_an_unbounded_store_writes_nothing(path, store):
    [memory] = fill(store, "one")
    log = path.with_name("memories.db-wal")
    before = path.read_bytes(), log.read_bytes()
    store.get(memory.key), store.resolve(store.handle(memory)), store.keys(), store.check()
    assert (path.read_bytes(), log.read_bytes()) == before


def test_damage_to_one_record_is_named_and_spares_the_others(path):
    with MemoryStore(path) as store:
        first, second, third = fill(store, "one", "two", "three")
        raw(path, f"UPDATE memories SET data = substr(data, 1, 500) || x'00' WHERE key = '{first.key}'")
        for read in (lambda: store.get(first.key), lambda: store.resolve(store.handle(first)), store.check):
            with pytest.raises(CorruptStoreError, match=first.key):
                read()
        assert store.get(second.key) == second
        store.put(first)
        store.check()
        raw(path, f"UPDATE memories SET rate = 9 WHERE key = '{second.key}'")
        raw(path, f"UPDATE memories SET text = x'ff' WHERE key = '{third.key}'")
        with pytest.raises(CorruptStoreError, match=second.key):
            store.get(second.key)
        with pytest.raises(CorruptStoreError, match=third.key):
            store.text(third.key)
        with pytest.raises(CorruptStoreError, match=f"2 damaged.*{second.key}.*{third.key}"):
            store.check()


@pytest.mark.parametrize(
    "change",
    [
        "text = CAST('four' AS BLOB)",
        "handle = '0'",
        "fingerprint = 'g'",
        "fingerprint = CAST(x'ff' AS TEXT)",
        "num_tokens = 11",
        "num_soft_tokens = 1",
        "key = '00000000000000000000000000000000'",
        "key = 'short'",
        "data = 'text'",
        "data = x''",
        "text = 5",
    ],
)
def test_check_sees_columns_that_disagree(path, change):
    with MemoryStore(path) as store:
        fill(store, "one")
        raw(path, f"UPDATE memories SET {change}")
        with pytest.raises(CorruptStoreError, match="memory "):
            store.check()


def test_threads_share_a_store(store):
    errors = []

    def work(number):
        try:
            for step in range(15):
                [memory] = fill(store, f"thread {number} step {step % 5}")
                assert store.resolve(store.handle(memory)) == memory
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and len(store) == 20


def test_the_default_store_is_one_bounded_store_in_memory():
    assert default_store() is default_store() is open_store(None)
    assert default_store().path == ":memory:" and default_store().max_memories is None
    assert default_store() and default_store().max_bytes == 2**30


def test_open_store_takes_what_a_store_argument_may_be(path, store):
    assert open_store(store) is store
    with open_store(path) as opened, open_store(str(path)) as again:
        assert opened.path == again.path == str(path)


def _in_child(handle, open_file, results):
    try:
        default_store().resolve(handle)
    except UnknownMemoryError:
        results.put("unknown")
    try:
        open_file.keys()
    except StoreError as error:
        results.put(str(error))
    open_file.close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_gets_its_own_default_store(store):
    memory = build("one")
    default_store().put(memory)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=_in_child, args=(default_store().handle(memory), store, results))
    child.start()
    answers = [results.get(timeout=20), results.get(timeout=20)]
    child.join()
    assert answers[0] == "unknown" and "forking" in answers[1] and child.exitcode == 0
    assert default_store().get(memory.key) == memory
