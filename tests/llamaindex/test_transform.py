"""GMSACompressTransform: fills the store, leaves text alone, and tells the pipeline's cache what it depends on."""

import asyncio
import json
import multiprocessing
import pickle
import threading

import pytest
from llama_index.core import Document
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import TokenTextSplitter
from llama_index.core.schema import MetadataMode, NodeRelationship, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore

from gmsa_rag.errors import ConfigError, InputTypeError, StoreError
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.replacing import KEY, METADATA
from gmsa_rag.memory.handles import find_handles
from gmsa_rag.memory.store import MemoryStore
from llama_index.postprocessor.gmsa import GMSACompressTransform, GMSANodePostprocessor

DOCUMENTS = [
    Document(id_="d", text="The Danube begins in the Black Forest of Germany.", metadata={"title": "Danube"}),
    Document(id_="m", text="Lise Meitner explained nuclear fission in 1939.", metadata={"title": "Lise Meitner"}),
]


@pytest.fixture
def transform(wide, store):
    return GMSACompressTransform(gmsa=wide, store=store, rate=4)


@pytest.fixture
def computed(monkeypatch):
    """The texts that engines compute from now on."""
    texts, compress = [], GMSA._compress

    def spy(self, passages, keys, rate):
        texts.extend(passages)
        return compress(self, passages, keys, rate)

    monkeypatch.setattr(GMSA, "_compress", spy)
    return texts


def test_it_is_a_transform():
    assert "TransformComponent" in [base.__name__ for base in GMSACompressTransform.__mro__]
    assert GMSACompressTransform.class_name() == "GMSACompressTransform"


def test_it_adds_metadata_and_nothing_else(transform, nodes, store):
    bare = [node.node for node in nodes]
    before = [node.model_dump() for node in bare]
    found = transform(bare)
    assert [node.model_dump() for node in bare] == before
    for old, new in zip(bare, found, strict=True):
        assert (new.metadata["gmsa_rate"], new.metadata[KEY] in store) == (4, True)
        same = new.model_dump() | {
            "metadata": {name: value for name, value in new.metadata.items() if name not in METADATA},
            "excluded_llm_metadata_keys": old.excluded_llm_metadata_keys,
            "excluded_embed_metadata_keys": old.excluded_embed_metadata_keys,
        }
        assert same == old.model_dump()
        for mode in (MetadataMode.LLM, MetadataMode.EMBED):
            assert new.get_content(mode) == old.get_content(mode)


def test_retrieval_finds_what_ingestion_computed(transform, wide, store, nodes, computed):
    for node, ready in zip(nodes, transform([node.node for node in nodes]), strict=True):
        node.node = ready
    assert len(computed) == len(nodes)
    found = GMSANodePostprocessor(gmsa=wide, store=store, rate=4).postprocess_nodes(nodes)
    assert all(find_handles(node.text) for node in found)
    assert len(computed) == len(nodes)


def test_handles_empty_and_short_nodes_pass(transform, post, nodes, store):
    handle = post.postprocess_nodes(nodes)[0].node
    kinds = [handle, TextNode(text=""), TextNode(text="short")]
    found = transform.model_copy(update={"min_tokens": 20})(kinds)
    assert [node.model_dump() for node in found] == [node.model_dump() for node in kinds]
    assert transform([]) == []
    assert len(store) == len(nodes)
    with pytest.raises(InputTypeError):
        transform(nodes)


async def test_the_async_form_gives_the_same(transform, nodes):
    bare = [node.node for node in nodes]
    found = await transform.acall(bare)
    assert [node.model_dump() for node in found] == [node.model_dump() for node in transform(bare)]


async def test_the_async_form_keeps_the_event_loop_ticking(transform, nodes, monkeypatch):
    """Compression waits for the loop: it can only end if the loop goes on meanwhile."""
    ticked, asked = threading.Event(), threading.Event()
    compress = GMSA._compress

    def wait(*args):
        asked.set()
        assert ticked.wait(30)
        return compress(*args)

    monkeypatch.setattr(GMSA, "_compress", wait)

    async def tick():
        while not asked.is_set():
            await asyncio.sleep(0)
        ticked.set()

    found, _ = await asyncio.gather(transform.acall([node.node for node in nodes]), tick())
    assert len(found) == len(nodes)


def test_a_pipeline_computes_once(transform, computed, embedding):
    splitter = TokenTextSplitter(chunk_size=20, chunk_overlap=0, tokenizer=str.split)
    pipeline = IngestionPipeline(
        transformations=[splitter, transform, embedding],
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.DUPLICATES_ONLY,
    )
    found = pipeline.run(documents=DOCUMENTS)
    assert [node.text for node in found] == [document.text for document in DOCUMENTS] == computed
    assert [node.relationships[NodeRelationship.SOURCE].node_id for node in found] == ["d", "m"]
    assert all(node.embedding for node in found)
    assert pipeline.run(documents=DOCUMENTS) == []  # the document store knows them
    assert len(computed) == 2


@pytest.mark.parametrize(
    ("change", "hits"),
    [
        ({}, True),
        ({"rate": 2}, False),
        ({"revision": "v2"}, False),
        ({"model": "another"}, False),
        ({"namespace": "tenant"}, False),
        ({"token": "secret"}, True),
    ],
)
def test_the_cache_hits_the_same_settings_only(wide, tmp_path, monkeypatch, change, hits):
    calls, call = [], GMSACompressTransform.__call__
    monkeypatch.setattr(
        GMSACompressTransform, "__call__", lambda self, nodes, **kw: calls.append(1) or call(self, nodes, **kw)
    )
    settings = {"gmsa": wide, "store": str(tmp_path / "memories.db"), "rate": 4, "revision": "v1"}
    pipeline = IngestionPipeline(transformations=[GMSACompressTransform(**settings)])
    pipeline.run(documents=DOCUMENTS)
    again = IngestionPipeline(transformations=[GMSACompressTransform(**settings | change)], cache=pipeline.cache)
    found = again.run(documents=DOCUMENTS)
    assert len(calls) == (1 if hits else 2)
    assert [node.metadata["gmsa_rate"] for node in found] == [change.get("rate", 4)] * 2


def test_the_cache_knows_a_checkpoint_by_its_fingerprint(wide, tmp_path, monkeypatch):
    def load(*args, **kwargs):
        raise AssertionError("loaded")

    monkeypatch.setattr(GMSA, "from_pretrained", load)
    assert GMSACompressTransform(gmsa=wide).to_dict()["fingerprint"] == wide.fingerprint
    bundled = GMSACompressTransform().to_dict()["fingerprint"]
    assert len(bundled) == 64
    (tmp_path / "config.json").write_text(json.dumps({"fingerprint": "f" * 64}), encoding="utf-8")
    transform = GMSACompressTransform(model=tmp_path)
    assert transform.to_dict()["fingerprint"] == "f" * 64
    (tmp_path / "config.json").write_text(json.dumps({"fingerprint": "0" * 64}), encoding="utf-8")
    assert transform.to_dict()["fingerprint"] == "0" * 64
    for broken in ("{", "[]", "{}"):
        (tmp_path / "config.json").write_text(broken, encoding="utf-8")
        assert transform.to_dict()["fingerprint"] is None
    assert GMSACompressTransform(model="someone/on-a-hub").to_dict()["fingerprint"] is None


def test_memories_that_are_gone_are_computed_at_retrieval(wide, tmp_path, nodes, computed):
    transform = GMSACompressTransform(gmsa=wide, store=str(tmp_path / "old.db"), rate=4)
    for node, ready in zip(nodes, transform([node.node for node in nodes]), strict=True):
        node.node = ready
    with MemoryStore(":memory:") as store:
        found = GMSANodePostprocessor(gmsa=wide, store=store, rate=4).postprocess_nodes(nodes)
        assert all(store.resolve(node.text) for node in found)
    assert len(computed) == 2 * len(nodes)


def test_a_worker_process_is_a_warning_or_an_error(wide, tmp_path, nodes, monkeypatch, transform):
    """A pipeline sends its transformations to its workers by pickle."""
    bare = [node.node for node in nodes]
    with pytest.raises(ConfigError, match="path"):
        pickle.dumps(transform)
    here = pickle.loads(pickle.dumps(GMSACompressTransform(gmsa=wide)))
    here.gmsa = wide
    assert len(here(bare)) == len(bare)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object())
    made_there = GMSACompressTransform(gmsa=wide)
    assert len(made_there(bare)) == len(bare)
    for memory in (GMSACompressTransform(gmsa=wide), GMSACompressTransform(gmsa=wide, store=":memory:")):
        with pytest.raises(StoreError, match="num_workers"):
            pickle.loads(pickle.dumps(memory))(bare)
    sent = pickle.loads(pickle.dumps(GMSACompressTransform(gmsa=wide, store=str(tmp_path / "memories.db"))))
    sent.gmsa = wide
    with pytest.warns(UserWarning, match="num_workers"):
        assert len(sent(bare)) == len(bare)


@pytest.mark.slow
def test_a_pipeline_with_workers(wide, tmp_path):
    wide.save_pretrained(tmp_path / "checkpoint")
    transform = GMSACompressTransform(model=tmp_path / "checkpoint", store=tmp_path / "memories.db", rate=4)
    found = IngestionPipeline(transformations=[transform]).run(documents=DOCUMENTS, num_workers=2)
    with MemoryStore(tmp_path / "memories.db") as store:
        assert [store.text(node.metadata[KEY]) for node in found] == [document.text for document in DOCUMENTS]
    in_memory = GMSACompressTransform(model=tmp_path / "checkpoint", rate=4)
    with pytest.raises(StoreError, match="num_workers"):
        IngestionPipeline(transformations=[in_memory]).run(documents=DOCUMENTS, num_workers=2)
