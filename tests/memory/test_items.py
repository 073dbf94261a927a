"""ItemStore: any bytes by name, beside the memories."""

import pytest

from gmsa_rag.errors import InputError, InputTypeError, StoreError
from gmsa_rag.memory import ItemStore, MemoryStore


@pytest.fixture
def items(path):
    with ItemStore(path) as items:
        yield items
        items.check()


def contents(path):
    return b"".join(file.read_bytes() for file in path.parent.iterdir() if file.name.startswith(path.name))


def test_items_come_back_in_the_order_asked_for(items):
    items.put_many({"b": b"2", "a": b"1", "": b""})
    assert items.get_many(["a", "c", "b", "a", ""]) == [b"1", None, b"2", b"1", b""]
    items.put_many({"a": b"\x00\xff"})
    assert items.get_many(["a"]) == [b"\x00\xff"]
    assert items.names() == ["", "a", "b"]


def test_prefixes_are_taken_literally(items):
    items.put_many(dict.fromkeys(["a%b", "a_b", "aXb", "ä1", "ä2"], b""))
    assert items.names("a%") == ["a%b"]
    assert items.names("a_") == ["a_b"]
    assert items.names("ä") == ["ä1", "ä2"]
    assert items.names("none") == []


def test_many_names_fit_one_call(items):
    names = [f"{number:04}" for number in range(1200)]
    items.put_many({name: name.encode() for name in names})
    assert items.get_many(names) == [name.encode() for name in names]
    assert items.delete(names) == 1200
    assert items.names() == []


def test_deleted_bytes_leave_the_file(items, path):
    items.put_many({"a": b"a secret" * 9, "b": b"kept"})
    assert b"a secret" in contents(path)
    assert items.delete(["a", "none"]) == 1
    assert b"a secret" not in contents(path)
    assert items.get_many(["a", "b"]) == [None, b"kept"]


def test_namespaces_do_not_see_each_other_and_memories_lie_in_the_same_file(items, path):
    items.put_many({"a": b"1"})
    with ItemStore(path, "other") as other, MemoryStore(path) as store:
        assert other.get_many(["a"]) == [None]
        assert store.keys() == []
        store.check()
    with ItemStore(path) as again:
        assert again.get_many(["a"]) == [b"1"]


def test_wrong_names_and_values_are_typed_errors_and_nothing_is_stored(items):
    with pytest.raises(InputTypeError):
        items.put_many({"a": b"1", "b": "text"})
    with pytest.raises(InputTypeError):
        items.put_many({"a": b"1", 7: b"2"})
    with pytest.raises(InputError):
        items.get_many(["\ud800"])
    assert items.names() == []
    items.close()
    with pytest.raises(StoreError):
        items.names()
    items._database = ItemStore(":memory:")._database
