"""A bounded store keeps what was used last, says what it evicted, and keeps whole what one put wrote."""

import pytest

from gmsa_rag.errors import InputError, UnknownMemoryError
from gmsa_rag.memory import MemoryStore, default_store, resolve_parts
from tests.memory.stores import build, fill


def test_the_least_recently_used_memory_goes_first_and_its_text_stays_for_a_while(path):
    with MemoryStore(path, max_memories=2) as store:
        first, second = fill(store, "one", "two")
        assert store.get(first.key) == first
        [third] = fill(store, "three")
        assert store.keys() == [first.key, third.key] and len(store) == 2 and second.key not in store
        handle = store.handle(second)
        with pytest.raises(UnknownMemoryError):
            store.resolve(handle)
        assert resolve_parts(handle, store.resolve, on_missing="text", text_of=store.text) == ["two"]
        store.put(second)
        assert store.resolve(handle) == second and store.text(handle) == "two"
        fill(store, *(f"text {number}" for number in range(30)))
        assert len(store) == 2 and store.text(handle) is None
        assert store._database._connection.execute("SELECT count(*) FROM memories").fetchone()[0] == 2 + 2 * 8
        store.check()


@pytest.mark.parametrize("name", ["max_memories", "max_bytes"])
@pytest.mark.parametrize("bound", [0, -1, True, "3"])
def test_bounds_are_checked(name, bound):
    with pytest.raises(InputError, match=name):
        MemoryStore(":memory:", **{name: bound})


def held_bytes(store):
    query = "SELECT sum(coalesce(length(data), 0) + coalesce(length(text), 0)) FROM memories"
    return store._database._connection.execute(query).fetchone()[0]


def test_bytes_are_bounded_and_those_used_last_stay(path):
    bound = 40 * len(build("one").to_bytes())
    with MemoryStore(path, max_bytes=bound) as store:
        first, *others = fill(store, *(f"text {number}" for number in range(30)))
        assert len(store) == 30
        for number in range(100):
            assert store.get(first.key) == first
            [last] = fill(store, f"more {number}")
            assert last.key in store and held_bytes(store) <= bound
        assert 20 < len(store) < 40 and others[0].key not in store
        store.check()
        fill(store, *(f"{number} {'long ' * 200}" for number in range(200)))
        fill(store, "end")
        assert held_bytes(store) <= bound
        assert store.text(others[0].key) is None
        store.check()
    with MemoryStore(path, max_bytes=bound // 2) as store:
        fill(store, "a smaller bound")
        assert held_bytes(store) <= bound // 2


def test_one_put_evicts_nothing_of_its_own(path):
    with MemoryStore(path, max_bytes=1000) as store:
        [old] = fill(store, "old")
        memories = fill(store, *(f"text {number}" for number in range(50)))
        assert store.keys() == [memory.key for memory in memories] and old.key not in store
        fill(store, "text 7", "new")
        assert len(store) == 2 and memories[7].key in store


def test_a_handle_whose_memory_was_evicted_says_so():
    with MemoryStore(":memory:", max_memories=1, max_bytes=100_000) as store:
        evicted, _ = fill(store, "one", "two")
        with pytest.raises(UnknownMemoryError, match=r"evicted.*keeps 1 memories and 100,000 bytes.*on_missing"):
            store.resolve(store.handle(evicted))
        with pytest.raises(
            UnknownMemoryError, match=r"never issued.*has evicted.*keeps 1 memories.*store that compressed"
        ):
            store.resolve(store.handle(build("three")))
    with MemoryStore(":memory:") as store, pytest.raises(UnknownMemoryError) as raised:
        store.resolve(store.handle(build("three")))
    assert "never issued" in str(raised.value) and "evicted" not in str(raised.value)


def test_the_default_store_keeps_a_large_batch():
    for part in range(3):
        fill(default_store(), *(f"part {part} passage {number}" for number in range(700)))
    assert all(
        store_key in default_store() for store_key in (build("part 0 passage 0").key, build("part 2 passage 9").key)
    )
