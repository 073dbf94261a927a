"""GMSAMemoryCache: a MemoryStore over any byte store, whose hosts share memories, handles and deletions."""

import json
import logging

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
from gmsa_rag.memory import GMSAMemoryCache, Memory, MemoryStore, make_handle, memory_key, resolve_parts
from gmsa_rag.memory.cache_records import memory_name

FINGERPRINT = "f" * 64
SECRET = bytes(range(32))


class Bytes:
    """A byte store in a dict, which counts its requests."""

    def __init__(self):
        self.values, self.requests = {}, 0

    def mget(self, keys):
        self.requests += 1
        return [self.values.get(key) for key in keys]

    def mset(self, pairs):
        self.values.update(pairs)

    def mdelete(self, keys):
        for key in keys:
            self.values.pop(key, None)

    def yield_keys(self, *, prefix=None):
        yield from [key for key in self.values if key.startswith(prefix or "")]


def build(text, rate=8, fingerprint=FINGERPRINT, num_tokens=12):
    soft_tokens = torch.full((-(-num_tokens // rate), 4), float(len(text)))
    return Memory(soft_tokens, memory_key(fingerprint, rate, text), rate, num_tokens, fingerprint, (0, num_tokens))


def fill(cache, *texts):
    memories = [build(text) for text in texts]
    cache.put_many(memories, texts)
    return memories


def contents(store):
    return b"\n".join(value for value in store.values.values())


@pytest.fixture
def values():
    return Bytes()


@pytest.fixture
def cache(values):
    return GMSAMemoryCache(values)


def test_it_has_all_that_a_memory_store_has():
    public = {name for name in vars(MemoryStore) if not name.startswith("_")}
    built_on_others = {"get", "put"}
    assert public - built_on_others <= set(vars(GMSAMemoryCache))
    assert {"__len__", "__contains__", "__init__"} <= set(vars(GMSAMemoryCache))


def test_memories_come_back_in_the_order_asked_for(cache):
    first, second = fill(cache, "one", "two")
    assert cache.get_many([second.key, "0" * 32, first.key, second.key]) == [second, None, first, second]
    assert cache.get(first.key) == first
    assert cache.keys() == sorted([first.key, second.key])
    assert len(cache) == 2
    assert first.key in cache
    assert "0" * 32 not in cache
    assert 7 not in cache
    assert cache.get_many([]) == []
    assert bool(GMSAMemoryCache(Bytes()))
    cache.check()


def test_names_and_values_are_those_of_the_documentation(values):
    cache = GMSAMemoryCache(values, secret=SECRET)
    memory = build("Rome is in Italy.", num_tokens=6)
    cache.put(memory, "Rome is in Italy.")
    key, digest = "2732a7f4d8ddd9a3ca5ee198131014e6", "e072f7d0b4265d00c37bc540920c4b11"
    assert cache.handle(memory) == f"[[gmsa:{digest}:1]]"
    assert Memory.from_bytes(values.values.pop(f"gmsa/v1/{key}")) == memory
    source = {"fingerprint": FINGERPRINT, "rate": 8, "key": key, "text": "Rome is in Italy."}
    assert json.loads(values.values.pop(f"gmsa/v1/source/{digest}")) == source
    [(name, made_by)] = values.values.items()
    assert name == "gmsa/v1/made-by/f55268b9b0a437c6a397feefbbb8c45a"
    assert json.loads(made_by) == {"fingerprint": FINGERPRINT, "rate": 8}


def test_a_handle_resolves_wherever_the_byte_store_is_shared(values):
    one, other = GMSAMemoryCache(values), GMSAMemoryCache(values)
    [memory] = fill(one, "числа 1,5 и 🙂")
    handle = one.handle(memory)
    assert other.handle(memory) == handle
    assert other.resolve(handle, fingerprint=FINGERPRINT) == memory
    assert other.text(handle) == other.text(memory.key) == "числа 1,5 и 🙂"
    assert resolve_parts(f"[1] {handle}!", other.resolve) == ["[1] ", memory, "!"]


def test_a_configured_secret_is_not_written_and_others_cannot_issue_its_handles(values):
    [memory] = fill(GMSAMemoryCache(values, secret=SECRET), "one")
    assert SECRET not in values.values.values()
    assert GMSAMemoryCache(values, secret=SECRET).get(memory.key) == memory
    other = GMSAMemoryCache(values, secret=b"x" * 16)
    assert other.get(memory.key) is None
    with pytest.raises(UnknownMemoryError):
        other.resolve(other.handle(memory))
    with pytest.raises(CorruptStoreError, match="another handle"):
        other.check()


def test_hosts_that_share_a_byte_store_have_one_identity(values, cache):
    assert GMSAMemoryCache(values).identity == cache.identity != GMSAMemoryCache(Bytes()).identity
    assert GMSAMemoryCache(Bytes(), secret=SECRET).identity == GMSAMemoryCache(Bytes(), secret=SECRET).identity


def test_a_secret_other_than_the_stored_one_is_refused(values):
    GMSAMemoryCache(values)
    with pytest.raises(StoreError, match="another one"):
        GMSAMemoryCache(values, secret=SECRET)
    with pytest.raises(InputError):
        GMSAMemoryCache(values, secret=b"short")
    values.values["gmsa/v1/secret"] = b"short"
    with pytest.raises(CorruptStoreError, match="secret"):
        GMSAMemoryCache(values)


def test_two_secrets_made_at_the_same_moment_are_seen_at_the_next_write(values):
    one = GMSAMemoryCache(values)
    values.values.clear()  # as the other process saw it
    other = GMSAMemoryCache(values)
    with pytest.raises(StoreError, match="same secret"):
        fill(one, "one")
    fill(other, "one")
    other.check()


def test_an_evicted_secret_is_written_again(values, cache):
    secret = values.values.pop("gmsa/v1/secret")
    fill(cache, "one")
    assert values.values["gmsa/v1/secret"] == secret


@pytest.mark.parametrize("handle", ["[[gmsa:00]]", "", 7])
def test_what_is_no_handle_is_malformed(cache, handle):
    with pytest.raises(MalformedHandleError):
        cache.resolve(handle)
    with pytest.raises(MalformedHandleError):
        cache.text(handle)


def test_handles_that_stand_for_nothing_usable_are_typed_errors(cache, monkeypatch):
    [memory] = fill(cache, "one")
    with pytest.raises(UnknownMemoryError, match="never issued, or has lost"):
        cache.resolve(make_handle(SECRET, memory.key, 2))
    get, gone = cache._get, [memory_name(memory.key)]
    with monkeypatch.context() as patch, pytest.raises(UnknownMemoryError, match="whose memory is gone"):
        patch.setattr(cache, "_get", lambda names: [None] if names == gone else get(names))
        cache.resolve(cache.handle(memory))
    with pytest.raises(MalformedHandleError, match="2 soft tokens"):
        cache.resolve(cache.handle(memory).replace(":2]]", ":3]]"))
    with pytest.raises(FingerprintError):
        cache.resolve(cache.handle(memory), fingerprint="e" * 64)
    assert cache.text("0" * 32) is None


def test_forgetting_is_for_every_rate_fingerprint_and_host(values):
    one, other = GMSAMemoryCache(values), GMSAMemoryCache(values)
    [kept] = fill(one, "two")
    memories = [build("a secret", rate, fingerprint) for rate in (4, 8) for fingerprint in ("e" * 64, FINGERPRINT)]
    one.put_many(memories, ["a secret"] * 4)
    handles = [one.handle(memory) for memory in memories]
    assert b"a secret" in contents(values)
    assert other.forget("a secret") == 4
    assert other.forget("a secret") == 0
    assert b"a secret" not in contents(values)
    assert one.keys() == [kept.key]
    for handle in handles:
        with pytest.raises(UnknownMemoryError):
            one.resolve(handle)
    one.check()


def test_deleting_passes_over_what_is_not_there(cache):
    first, second = fill(cache, "one", "two")
    assert cache.delete([first.key, "0" * 32, first.key]) == 1
    assert cache.get_many([first.key, second.key]) == [None, second]
    assert cache.text(first.key) is None
    with pytest.raises(InputError):
        cache.delete(["no key"])


def test_texts_are_optional_and_kept_where_none_is_given(values):
    without = GMSAMemoryCache(values, keep_text=False)
    [memory] = fill(without, "one")
    assert without.text(memory.key) is None
    assert b"one" not in contents(values).replace(b'"one', b"")
    cache = GMSAMemoryCache(values)
    cache.put(memory, "one")
    cache.put(memory)
    fill(without, "one")
    assert without.text(memory.key) == "one"
    empty = build("", num_tokens=0)
    cache.put(empty, "")
    assert cache.text(empty.key) == ""
    assert cache.get(empty.key) == empty


def test_what_does_not_belong_together_is_refused(cache, values):
    memory, before = build("one"), dict(values.values)
    with pytest.raises(InputError, match="order"):
        cache.put(memory, "two")
    with pytest.raises(InputError, match="2 texts"):
        cache.put_many([memory], ["one", "two"])
    with pytest.raises(InputTypeError):
        cache.put("one")
    with pytest.raises(InputError):
        cache.get("no key")
    assert values.values == before


def damage(values, name, how):
    data = values.values[name]
    values.values[name] = {"cut": data[:-1], "flipped": data[:-1] + bytes([data[-1] ^ 1]), "other": b"{}"}[how]


@pytest.mark.parametrize("how", ["cut", "flipped", "other"])
@pytest.mark.parametrize("what", ["memory", "source"])
def test_a_damaged_record_is_computed_again_or_a_typed_error(cache, values, what, how, caplog):
    memory, other = fill(cache, "one", "two")
    handle = cache.handle(memory)
    damage(values, f"gmsa/v1/{memory.key}" if what == "memory" else f"gmsa/v1/source/{handle[7:39]}", how)
    with caplog.at_level(logging.WARNING):
        assert cache.get_many([memory.key, other.key]) == [None, other]
    assert "counts as missing" in caplog.text
    with pytest.raises(CorruptStoreError):
        cache.resolve(handle)
    with pytest.raises(CorruptStoreError, match="1 damaged"):
        cache.check()
    if what == "source":
        with pytest.raises(CorruptStoreError):
            cache.text(memory.key)
    fill(cache, "one")
    assert cache.resolve(handle) == memory
    cache.check()


def test_a_record_under_another_name_is_not_taken(cache, values):
    one, two = fill(cache, "one", "two")
    values.values[f"gmsa/v1/{one.key}"] = values.values[f"gmsa/v1/{two.key}"]
    assert cache.get(one.key) is None
    with pytest.raises(CorruptStoreError, match=two.key):
        cache.resolve(cache.handle(one))
    name = f"gmsa/v1/source/{cache.handle(two)[7:39]}"
    forged = json.loads(values.values[name]) | {"text": "what was never said"}
    values.values[name] = json.dumps(forged).encode()
    with pytest.raises(CorruptStoreError, match="text of another key"):
        cache.text(two.key)


@pytest.mark.parametrize(
    "value", [b"[]", b"\xff", b'{"fingerprint": "e", "rate": 8}', b'{"rate": 8}', b'{"fingerprint": 1, "rate": 8}']
)
def test_nothing_is_forgotten_by_a_damaged_record(cache, values, value):
    [memory] = fill(cache, "one")
    [name] = values.yield_keys(prefix="gmsa/v1/made-by/")
    values.values[name] = value
    with pytest.raises(CorruptStoreError):
        cache.forget("one")
    with pytest.raises(CorruptStoreError):
        cache.check()
    assert cache.get(memory.key) == memory
    values.values["gmsa/v1/else"] = b""
    with pytest.raises(CorruptStoreError, match="2 damaged"):
        cache.check()


def test_an_evicted_source_has_the_memory_computed_again(cache, values):
    [memory] = fill(cache, "one")
    values.mdelete([f"gmsa/v1/source/{cache.handle(memory)[7:39]}"])
    assert cache.get(memory.key) is None
    assert memory.key not in cache
    fill(cache, "one")
    assert cache.resolve(cache.handle(memory)) == memory
    values.mdelete([f"gmsa/v1/{memory.key}"])
    assert cache.text(cache.handle(memory)) == "one"
    with pytest.raises(UnknownMemoryError):
        cache.resolve(cache.handle(memory))


def test_values_must_be_bytes(cache, values):
    [memory] = fill(cache, "one")
    values.values = {name: memoryview(value) for name, value in values.values.items()}
    assert cache.get(memory.key) == memory
    values.values = dict.fromkeys(values.values, "text")
    with pytest.raises(StoreError, match="decode_responses"):
        cache.get(memory.key)


@pytest.mark.parametrize("store", [None, "memories.db", {}, MemoryStore])
def test_what_is_no_byte_store_is_refused(store):
    with pytest.raises(InputTypeError, match="ByteStore"):
        GMSAMemoryCache(store)


def test_many_memories_are_read_in_few_requests(cache, values):
    keys = [memory.key for memory in fill(cache, *(f"text {number}" for number in range(130)))]
    before = values.requests
    assert None not in cache.get_many(keys)
    assert values.requests - before == 3


def test_the_engine_computes_only_what_is_missing(gmsa, cache, values):
    texts = ["The Danube begins in Germany.", "Vienna."]
    first = gmsa.compress(texts, rate=4, store=cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gmsa, "_compress", lambda texts, keys, rate: [] if not texts else pytest.fail("computed"))
        assert gmsa.compress(texts, rate=4, store=GMSAMemoryCache(values)) == first
    damage(values, f"gmsa/v1/{first[0].key}", "flipped")
    assert [memory.key for memory in gmsa.compress(texts, rate=4, store=cache)] == [memory.key for memory in first]
    cache.check()
    cache.close()
