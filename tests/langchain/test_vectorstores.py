"""GMSAVectorStore: LangChain's standard suite, filters, scores, and one database with the memories."""

import pytest
from langchain_core.documents import Document
from langchain_tests.integration_tests import VectorStoreIntegrationTests

from gmsa_rag.errors import CorruptStoreError, InputError, ShapeError
from gmsa_rag.memory import MemoryStore
from langchain_gmsa import GMSAContextCompressor, GMSAVectorStore


class TestStandard(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self):
        store = GMSAVectorStore(self.get_embeddings())
        yield store
        store.index.check()
        store.close()


def ids(documents):
    return [document.id for document in documents]


def test_the_nearest_come_first_with_their_cosine(vectors, documents):
    hits = vectors.similarity_search_with_score("The Danube begins in the Black Forest of Germany.", k=2)
    assert hits[0][0] == documents[0]
    assert hits[0][1] == pytest.approx(1.0)
    assert -1 <= hits[1][1] < hits[0][1]
    query = vectors.embeddings.embed_query("nuclear fission")
    assert ids(vectors.similarity_search_by_vector(query, k=1)) == ["m"]
    assert vectors.similarity_search_with_score_by_vector(query, k=3) == vectors.similarity_search_with_score(
        "nuclear fission", k=3
    )


async def test_async_forms_find_the_same(vectors):
    assert await vectors.asimilarity_search("nuclear fission", k=2) == vectors.similarity_search("nuclear fission", k=2)
    assert await vectors.asimilarity_search_with_score("fission") == vectors.similarity_search_with_score("fission")
    query = vectors.embeddings.embed_query("fission")
    assert await vectors.asimilarity_search_by_vector(query) == vectors.similarity_search("fission")
    expected = vectors.max_marginal_relevance_search("fission", k=2)
    assert await vectors.amax_marginal_relevance_search("fission", k=2) == expected


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"page": 2}, {"m"}),
        ({"page": [1, 3]}, {"d", "v"}),
        ({"title": "Danube", "page": 1}, {"d"}),
        ({"title": "Danube", "page": 2}, set()),
        ({"title": None}, set()),
        ({}, {"d", "m", "v"}),
        (lambda document: "title" not in document.metadata, {"v"}),
        (lambda document: document.page_content.startswith("Lise"), {"m"}),
    ],
)
def test_a_filter_keeps_what_it_says(vectors, wanted, found):
    assert set(ids(vectors.similarity_search("any", filter=wanted))) == found
    assert set(ids(vectors.max_marginal_relevance_search("any", filter=wanted))) == found
    assert set(ids(vectors.as_retriever(search_kwargs={"filter": wanted}).invoke("any"))) == found


def test_relevance_is_between_0_and_1(vectors):
    scores = [score for _, score in vectors.similarity_search_with_relevance_scores("nuclear fission")]
    assert all(0 <= score <= 1 for score in scores)
    threshold = {"score_threshold": scores[0] - 1e-6}
    retriever = vectors.as_retriever(search_type="similarity_score_threshold", search_kwargs=threshold)
    assert ids(retriever.invoke("nuclear fission")) == ["m"]


def test_marginal_relevance_prefers_what_is_different(embeddings):
    texts = ["red apple", "red apple red", "green pear and an apple"]
    vectors = GMSAVectorStore.from_texts(texts, embeddings, ids=["a", "b", "c"])
    assert ids(vectors.similarity_search("red apple", k=2)) == ["a", "b"]
    assert ids(vectors.max_marginal_relevance_search("red apple", k=2, lambda_mult=0.1)) == ["a", "c"]
    assert vectors.max_marginal_relevance_search("red apple", k=2, filter={"x": 1}) == []
    vectors.close()


def test_documents_without_an_id_get_one(embeddings):
    vectors = GMSAVectorStore(embeddings)
    names = vectors.add_documents([Document("one", id="1"), Document("two")])
    assert names[0] == "1"
    assert ids(vectors.get_by_ids(names)) == names
    assert vectors.delete()
    assert vectors.similarity_search("one") == []
    assert vectors.add_texts([]) == []
    vectors.close()


@pytest.mark.parametrize("value", [(1, 2), {1}, float("nan"), object(), {1: "a"}])
def test_metadata_that_is_not_json_is_a_typed_error_and_nothing_is_stored(vectors, value):
    with pytest.raises(InputError, match="metadata"):
        vectors.add_documents([Document("fine"), Document("wrong", metadata={"value": value})])
    assert len(vectors.index) == 3


def test_counts_and_widths_are_checked(vectors):
    with pytest.raises(InputError):
        vectors.add_texts(["one", "two"], ids=["1"])
    with pytest.raises(InputError):
        vectors.add_texts(["one", "two"], [{}])
    with pytest.raises(ShapeError):
        vectors.similarity_search_by_vector([1.0, 2.0])


def test_it_shares_a_file_with_the_memories_and_is_there_the_next_time(gmsa, embeddings, documents, tmp_path):
    path = tmp_path / "memories.db"
    vectors = GMSAVectorStore.from_documents(documents, embeddings, path=path)
    compressor = GMSAContextCompressor(gmsa=gmsa, store=path)
    compressed = (vectors.as_retriever(search_kwargs={"k": 1}) | compressor).invoke("nuclear fission")
    vectors.close()
    again = GMSAVectorStore(embeddings, path)
    assert again.similarity_search("nuclear fission", k=1) == [documents[1]]
    again.index.check()
    again.close()
    with MemoryStore(path) as store:
        assert store.text(compressed[0].page_content) == documents[1].page_content
        store.check()


def test_namespaces_do_not_see_each_other(embeddings, tmp_path):
    path = tmp_path / "memories.db"
    one = GMSAVectorStore.from_texts(["one"], embeddings, path=path, namespace="one")
    two = GMSAVectorStore.from_texts(["two"], embeddings, path=path, namespace="two")
    assert [document.page_content for document in one.similarity_search("one")] == ["one"]
    assert [document.page_content for document in two.similarity_search("one")] == ["two"]
    one.close()
    two.close()


def test_a_damaged_file_is_a_typed_error(embeddings, tmp_path):
    path = tmp_path / "memories.db"
    GMSAVectorStore.from_texts(["one"], embeddings, path=path).close()
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptStoreError):
        GMSAVectorStore(embeddings, path)
