"""Which engine, and which store: namespaces per request, pickles and copies without weights."""

import copy
import pickle

import pytest
from langchain_core.documents import Document
from langchain_core.runnables import ConfigurableField

from gmsa_rag.errors import ConfigError, FingerprintError, InputError, UnknownMemoryError
from gmsa_rag.memory import MemoryStore, find_handles
from langchain_gmsa import ChatGMSA, GMSAContextCompressor, format_docs
from langchain_gmsa.restoring import GMSARestorer


def per_request(component):
    fields = {name: ConfigurableField(name) for name in ("store", "namespace")}
    return component.configurable_fields(**fields)


@pytest.fixture(params=["file", "default"])
def chain(request, gmsa, tmp_path):
    """Compresses, formats and answers; store and namespace are of the request."""
    store = tmp_path / "memories.db" if request.param == "file" else None
    compressor = per_request(GMSAContextCompressor(gmsa=gmsa, store=store, rate=4))
    return compressor, per_request(ChatGMSA(gmsa=gmsa, store=store, max_tokens=4))


def namespace(name):
    return {"configurable": {"namespace": name}}


async def test_two_namespaces_of_a_chain_do_not_see_each_others_handles(chain, documents):
    compressor, chat = chain
    asking = compressor | format_docs | chat
    assert asking.invoke(documents, namespace("a")).text == asking.invoke(documents, namespace("b")).text
    assert (await asking.ainvoke(documents, namespace("a"))).response_metadata["gmsa"]["soft_tokens"] > 0
    ours, theirs = (compressor.invoke(documents, namespace(name))[0].page_content for name in "ab")
    assert ours != theirs
    assert chat.invoke(f"{ours}Where?", namespace("a")).text == chat.invoke(f"{theirs}Where?", namespace("b")).text
    for config in (namespace("b"), namespace("default"), None):
        with pytest.raises(UnknownMemoryError):
            chat.invoke(f"{ours}Where?", config)
        with pytest.raises(UnknownMemoryError):
            await chat.ainvoke(f"{ours}Where?", config)
        with pytest.raises(UnknownMemoryError):
            list(chat.stream(f"{ours}Where?", config))
    configs = [namespace("a"), namespace("b"), namespace("a")]
    answers = chat.batch([f"{ours}Where?"] * 3, configs, return_exceptions=True)
    assert [type(answer).__name__ for answer in answers] == ["AIMessage", "UnknownMemoryError", "AIMessage"]
    with pytest.raises(UnknownMemoryError):
        compressor.invoke(compressor.invoke(documents, namespace("a")), namespace("b"))


def test_a_store_can_be_set_per_request(chain, gmsa, documents, tmp_path):
    compressor, chat = chain
    config = {"configurable": {"store": str(tmp_path / "other.db"), "namespace": "a"}}
    [compressed, *_] = compressor.invoke(documents, config)
    assert chat.invoke(f"{compressed.page_content}Where?", config).text
    with MemoryStore(tmp_path / "other.db", "a") as store:
        assert store.text(compressed.page_content) == documents[0].page_content
    with pytest.raises(UnknownMemoryError):
        chat.invoke(f"{compressed.page_content}Where?")


def test_restoring_is_of_a_namespace_too(chain, documents):
    compressor, _ = chain
    restorer = per_request(compressor.default.restorer)
    assert (compressor | restorer).invoke(documents, namespace("a")) == documents
    with pytest.raises(UnknownMemoryError):
        restorer.invoke(compressor.invoke(documents, namespace("a")), namespace("b"))


def test_the_default_namespace_is_the_default_store(gmsa, documents):
    named, unnamed = (GMSAContextCompressor(gmsa=gmsa, rate=4, namespace=name) for name in ("default", None))
    assert named.invoke(documents) == unnamed.invoke(documents)


def test_a_store_has_its_own_namespace(gmsa, documents):
    with MemoryStore(":memory:", "a") as store:
        assert GMSAContextCompressor(gmsa=gmsa, store=store, namespace="a").invoke(documents)
        with pytest.raises(InputError, match="'a', that of the store"):
            GMSAContextCompressor(gmsa=gmsa, store=store, namespace="b").invoke(documents)


@pytest.mark.parametrize("component", [GMSAContextCompressor, ChatGMSA])
def test_pickles_hold_no_weights(component, gmsa, tmp_path):
    pickled = pickle.dumps(component(gmsa=gmsa, store=tmp_path / "memories.db", namespace="a"))
    assert len(pickled) < 5_000
    loaded = pickle.loads(pickled)
    assert loaded.gmsa is None
    assert loaded.store == str(tmp_path / "memories.db")
    assert loaded.namespace == "a"


def test_a_pickle_goes_on_with_the_same_checkpoint_only(gmsa, checkpoint, documents, chat):
    compressor = GMSAContextCompressor(gmsa=gmsa, model=checkpoint, rate=4, store=checkpoint.parent / "memories.db")
    loaded = pickle.loads(pickle.dumps(compressor))
    assert loaded.invoke(documents) == compressor.invoke(documents)
    astray = pickle.loads(pickle.dumps(ChatGMSA(gmsa=gmsa)))  # the bundled checkpoint is another one
    with pytest.raises(FingerprintError, match="gmsa-mini"):
        astray.invoke("Where?")
    astray.gmsa = gmsa
    assert astray.bind(max_tokens=8).invoke("Where?").text == chat.invoke("Where?").text


def test_an_open_store_cannot_be_pickled(compressor, chat):
    for component in (compressor, chat, compressor.restorer):
        with pytest.raises(ConfigError, match="by its path"):
            pickle.dumps(component)


@pytest.mark.parametrize("deep", [True, False])
def test_copies_share_engine_and_store(compressor, chat, deep):
    for component in (compressor, chat):
        for copied in (component.model_copy(deep=deep), copy.deepcopy(component) if deep else copy.copy(component)):
            assert copied == component
            assert copied is not component
            assert copied.gmsa is component.gmsa
            assert copied.store is component.store


def test_a_restorer_needs_no_weights(compressor, documents, gmsa, monkeypatch):
    compressed = compressor.invoke(documents)
    monkeypatch.setattr(type(gmsa), "from_pretrained", None)
    assert GMSARestorer(store=compressor.store).invoke(compressed) == documents


async def test_a_restorer_is_a_runnable(compressor, documents):
    there_and_back = compressor | compressor.restorer
    assert there_and_back.invoke(documents) == documents
    assert await there_and_back.ainvoke(documents) == documents
    assert there_and_back.batch([documents, []]) == [documents, []]
    assert await there_and_back.abatch([documents, []]) == [documents, []]
    assert list(there_and_back.stream(documents)) == [documents]


def test_a_restorer_leaves_out_what_is_gone(compressor, store, documents):
    compressed = compressor.invoke(documents)
    store.forget(documents[1].page_content)
    with pytest.raises(UnknownMemoryError):
        compressor.restorer.invoke(compressed)
    dropping = compressor.model_copy(update={"on_missing": "drop"}).restorer
    assert dropping.invoke(compressed) == [documents[0], documents[2]]


TEXTS = [
    "In 1939, 2.5 % of 1,234,567 cost 3.00 € ± 0.01; 7 wonders, 0x1F, 1e-9, 007.",
    'def f(x):\n\treturn {"a": [x[0], x[1:2]]}  # {{not}} a {template}\r\n\n  end\x00',
    "Zażółć gęślą jaźń, Ὀδυσσεύς, Пушкин, 東京都, العربية, हिन्दी, ไทย",
    "👩\u200d👧 🇩🇪 e\u0301 \u00e9 \u200b\u200d \ufeff \U0001d50a \U0010ffff",
    "  leading and trailing space \n",
    "[[wiki]] [[gmsa]] gmsa: x[a[10:20]] <s></s> <|user|> {page_content} {{title}}",
]


def test_any_text_is_restored_byte_for_byte_and_nothing_else_changes(compressor):
    documents = [
        Document(text, id=f"id-{n}", metadata={"n": n, "score": 0.5 - n, "nested": {"a": [1, {"b": None}]}, "ø": text})
        for n, text in enumerate(TEXTS)
    ]
    before = copy.deepcopy(documents)
    compressed = compressor.invoke(documents)
    restored = compressor.restore_documents(compressed)
    assert documents == before
    for old, small, new in zip(before, compressed, restored, strict=True):
        assert new.page_content.encode() == old.page_content.encode()
        assert (new.id, new.metadata) == (old.id, old.metadata)
        assert find_handles(small.page_content) == [small.page_content]
        assert small.id == old.id
        added = {name: value for name, value in small.metadata.items() if name not in old.metadata}
        assert sorted(added) == [
            "gmsa_fingerprint", "gmsa_key", "gmsa_num_soft_tokens", "gmsa_num_tokens", "gmsa_rate",
        ]  # fmt: skip
        assert {**added, **old.metadata} == small.metadata
