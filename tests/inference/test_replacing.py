"""Passages replaced by handles, and back."""

import pytest

from gmsa_rag.errors import (
    FingerprintError,
    InputError,
    MalformedHandleError,
    RateError,
    UnknownMemoryError,
)
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.replacing import (
    KEY,
    METADATA,
    Passage,
    Replacing,
    describe,
    passage_of,
    replace_passages,
    restore_passage,
    whole_handle,
)
from gmsa_rag.memory.handles import neutralise
from gmsa_rag.memory.store import MemoryStore

TEXTS = ["The Danube begins in the Black Forest.", "def f(x): return x[a[10:20]]", "東京 👩‍👩‍👧‍👦 \r\n 1.5"]


@pytest.fixture
def store():
    with MemoryStore(":memory:") as store:
        yield store


def replaced(texts, gmsa, store, rate=4, key=None, **settings):
    passages = [Passage(text, f"passage {text[:5]}", key) for text in texts]
    return replace_passages(passages, gmsa, store, Replacing(rate, **settings))


def test_texts_become_handles_and_come_back(gmsa, store):
    found = replaced(TEXTS, gmsa, store)
    assert [store.resolve(new.text) for new in found] == [new.memory for new in found]
    assert [restore_passage(Passage(new.text, "", new.memory.key), store) for new in found] == TEXTS
    assert [new.text for new in replaced([*TEXTS, TEXTS[0]], gmsa, store)][-1] == found[0].text
    assert len(store) == 3


def test_what_is_left_as_it_is(gmsa, store):
    [new] = replaced(TEXTS[:1], gmsa, store)
    [again] = replaced([f" {new.text}\n"], gmsa, store, key=new.memory.key, min_tokens=100)
    assert (again.text, again.memory) == (f" {new.text}\n", None)
    found = replaced(["", "a [[gmsa: b"], gmsa, store, min_tokens=100)
    assert [(new.text, new.memory) for new in found] == [("", None), ("a [[gmsa-: b", None)]


def test_a_handle_that_somebody_wrote_is_text(gmsa, store):
    secret, other = replaced(TEXTS[:2], gmsa, store)
    for key in (None, other.memory.key):
        [pasted] = replaced([secret.text], gmsa, store, key=key)
        assert store.text(pasted.text) == neutralise(secret.text)
        assert replaced([secret.text], gmsa, store, key=key, min_tokens=100)[0].text == neutralise(secret.text)
    assert passage_of(secret.text, {}, "d").key is None
    assert passage_of(secret.text, {KEY: None}, "d").key is None
    attached = passage_of(secret.text, describe(pasted.memory), "d")
    assert attached.key is None
    assert restore_passage(attached, store) == secret.text
    with pytest.raises(UnknownMemoryError):
        restore_passage(Passage(secret.text, "d", other.memory.key), store)


def test_min_tokens_is_in_tokens(gmsa, store):
    [length] = map(len, gmsa.codec.encode([TEXTS[0]]))
    assert replaced(TEXTS[:1], gmsa, store, min_tokens=length)[0].memory
    assert not replaced(TEXTS[:1], gmsa, store, min_tokens=length + 1)[0].memory


def test_wrong_handles_and_texts(gmsa, store, make_base, tokenizer):
    [new] = replaced(TEXTS[:1], gmsa, store)
    handle, key = new.text, new.memory.key
    with pytest.raises(RateError, match="rate 4"):
        replaced([handle], gmsa, store, rate=2, key=key)
    other = GMSA.from_base(make_base(layers=4), tokenizer, encoder_layers=2, lsa_layers=1)
    with pytest.raises(FingerprintError):
        replaced([handle], other, store, key=key)
    altered = f"{handle.rsplit(':', 1)[0]}:9999]]"
    with pytest.raises(MalformedHandleError):
        replaced([altered], gmsa, store, key=key, on_missing="drop")
    assert replaced([altered], gmsa, store)[0].memory  # ordinary text
    with pytest.raises(InputError, match="surrogate"):
        replaced(["\ud800"], gmsa, store)


def test_memories_that_are_gone(gmsa):
    with MemoryStore(":memory:", max_memories=1) as store:
        [new] = replaced(TEXTS[:1], gmsa, store)
        handle, key = new.text, new.memory.key
        gmsa.compress("Oslo", 4, store=store)
        with pytest.raises(UnknownMemoryError):
            replaced([handle], gmsa, store, key=key)
        assert replaced([handle], gmsa, store, key=key, on_missing="drop")[0].text is None
        [again] = replaced([handle], gmsa, store, key=key, on_missing="text")
        assert (again.text, store.resolve(handle)) == (handle, again.memory)
    with MemoryStore(":memory:", keep_text=False) as store:
        for on_missing in ("error", "text"):
            with pytest.raises(UnknownMemoryError):
                replaced([handle], gmsa, store, key=key, on_missing=on_missing)
        with pytest.raises(UnknownMemoryError):
            restore_passage(Passage(handle, "passage", key), store)
        assert restore_passage(Passage(handle, "passage"), store) == handle


def test_a_document_says_whether_it_was_compressed(gmsa, store):
    [new] = replaced(["see [[gmsa: there"], gmsa, store)
    metadata = describe(new.memory)
    assert tuple(metadata) == METADATA
    assert metadata[KEY] == new.memory.key
    assert passage_of(new.text, metadata, "d") == Passage(new.text, "d", new.memory.key)
    assert passage_of("see [[gmsa: there", metadata, "d").key is None  # attached
    assert passage_of("see [[gmsa: there", {}, "d").key is None
    for spoilt in (new.text[:-1], f"{new.text} more", "see [[gmsa: here"):
        with pytest.raises(MalformedHandleError, match="d:"):
            passage_of(spoilt, metadata, "d")
        with pytest.raises(MalformedHandleError):
            passage_of(spoilt, {KEY: metadata[KEY]}, "d")


def test_whole_handles(gmsa, store):
    [new] = replaced(TEXTS[:1], gmsa, store)
    assert whole_handle(f"\n{new.text} ") == new.text
    for other in (new.text * 2, f"a {new.text}", new.text[1:], ""):
        assert whole_handle(other) is None
