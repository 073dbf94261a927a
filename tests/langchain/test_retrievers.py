"""GMSARetriever: LangChain's standard suite on the bundled checkpoint, and what it gives."""

from pathlib import Path

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import RetrieversIntegrationTests
from pydantic import ValidationError

from gmsa_rag.memory import MemoryStore
from langchain_gmsa import ChatGMSA, GMSAContextCompressor, GMSARetriever, GMSAVectorStore, format_docs

from .conftest import DOCUMENTS, HashingEmbeddings

TEXTS = ["red apple", "red apple red", "green pear and an apple"]


class TestStandard(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self):
        return GMSARetriever

    @property
    def retriever_constructor_params(self):
        vectors = GMSAVectorStore.from_documents(DOCUMENTS, HashingEmbeddings())
        return {"vectorstore": vectors, "compressor": GMSAContextCompressor(rate=8, model="gmsa-mini")}

    @property
    def retriever_query_example(self):
        return "Where does the Danube begin?"


@pytest.fixture
def retriever(vectors, compressor):
    return GMSARetriever(vectorstore=vectors, compressor=compressor, k=2)


async def test_it_gives_what_the_compressor_makes_of_what_is_found(retriever, vectors, compressor, store):
    found = vectors.similarity_search("nuclear fission", k=2)
    expected = compressor.invoke(found)
    assert retriever.invoke("nuclear fission") == expected
    assert await retriever.ainvoke("nuclear fission") == expected
    assert retriever.batch(["nuclear fission"] * 2) == [expected] * 2
    assert [document.id for document in expected] == [document.id for document in found]
    assert compressor.restore_documents(expected) == found
    assert store.resolve(expected[0].page_content).key == expected[0].metadata["gmsa_key"]


async def test_k_of_the_call_comes_before_search_kwargs_and_those_before_the_field(vectors, compressor):
    retriever = GMSARetriever(vectorstore=vectors, compressor=compressor, k=1, search_kwargs={"k": 2})
    assert len(retriever.invoke("any")) == 2
    assert len(retriever.invoke("any", k=3)) == len(await retriever.ainvoke("any", k=3)) == 3
    assert len(GMSARetriever(vectorstore=vectors, compressor=compressor).invoke("any")) == 3
    with pytest.raises(ValidationError):
        GMSARetriever(vectorstore=vectors, compressor=compressor, k=0)


async def test_the_other_searches_are_there(embeddings, compressor, vectors):
    fruit = GMSAVectorStore.from_texts(TEXTS, embeddings, ids=["a", "b", "c"])
    settings = {"vectorstore": fruit, "compressor": compressor, "k": 2}
    diverse = GMSARetriever(search_type="mmr", search_kwargs={"lambda_mult": 0.1}, **settings)
    assert [document.id for document in diverse.invoke("red apple")] == ["a", "c"]
    assert [document.id for document in await diverse.ainvoke("red apple")] == ["a", "c"]
    near = GMSARetriever(search_type="similarity_score_threshold", search_kwargs={"score_threshold": 0.99}, **settings)
    assert [document.id for document in near.invoke("red apple")] == ["a"]
    only = GMSARetriever(vectorstore=vectors, compressor=compressor, search_kwargs={"filter": {"page": 2}})
    assert [document.id for document in only.invoke("any")] == ["m"]
    fruit.close()


def test_any_vector_store_does_and_documents_can_be_added(embeddings, compressor, documents):
    retriever = GMSARetriever(vectorstore=InMemoryVectorStore(embeddings), compressor=compressor, k=1)
    retriever.add_documents(documents)
    [found] = retriever.invoke("nuclear fission")
    assert compressor.restore_documents([found]) == [documents[1]]


def test_a_chain_answers_from_it_without_naming_a_store(vectors, gmsa):
    retriever = GMSARetriever(vectorstore=vectors, compressor=GMSAContextCompressor(gmsa=gmsa))
    message = (retriever | format_docs | ChatGMSA(gmsa=gmsa, max_tokens=2)).invoke("nuclear fission")
    assert message.response_metadata["gmsa"]["soft_tokens"] > 0


def test_the_compression_is_a_child_run(retriever):
    parents = {}

    class Runs(BaseCallbackHandler):
        def on_retriever_start(self, serialized, query, *, run_id, **kwargs):
            parents["retriever"] = run_id

        def on_chain_start(self, serialized, inputs, *, parent_run_id=None, **kwargs):
            parents["compressor"] = parent_run_id

    retriever.invoke("any", {"callbacks": [Runs()]})
    assert parents["compressor"] == parents["retriever"]


def test_the_vector_store_makes_one(vectors, compressor, tmp_path):
    assert len(vectors.as_retriever(search_kwargs={"k": 1}).invoke("any")[0].page_content) > 20
    made = vectors.as_retriever(compressed=True, compressor=compressor, k=1, tags=["mine"])
    assert isinstance(made, GMSARetriever)
    assert (made.compressor, made.k, made.tags) == (compressor, 1, ["mine"])
    assert made.invoke("nuclear fission") == compressor.invoke(vectors.similarity_search("nuclear fission", k=1))
    default = vectors.as_retriever(compressed=True)
    assert default.compressor == GMSAContextCompressor()
    assert "GMSAVectorStore" in default.tags
    vectors.compressor = compressor
    assert vectors.as_retriever(compressed=True).compressor == compressor


def test_memories_can_lie_in_the_file_of_the_vectors(gmsa, embeddings, documents, tmp_path):
    path = Path(tmp_path / "memories.db")
    compressor = GMSAContextCompressor(gmsa=gmsa, store=path, rate=4)
    vectors = GMSAVectorStore.from_documents(documents, embeddings, path=path, compressor=compressor)
    handle = vectors.as_retriever(compressed=True, k=1).invoke("nuclear fission")[0].page_content
    vectors.close()
    with MemoryStore(path) as store:
        assert store.text(handle) == documents[1].page_content
