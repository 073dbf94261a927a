"""GMSAVectorStore: LangChain's standard suite, filters, scores, and one database with the memories."""

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.tracers.context import collect_runs
from langchain_tests.integration_tests import VectorStoreIntegrationTests

from gmsa_rag.errors import CorruptStoreError, InputError, RateError, ShapeError, StoreError
from gmsa_rag.inference.sharing import shared_store
from gmsa_rag.memory import MemoryStore, default_store
from langchain_gmsa import GMSAContextCompressor, GMSAVectorStore, neutralise


class TestStandard(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self):
        store = GMSAVectorStore(self.get_embeddings())
        yield store
        store.index.check()
        store.close()


class TestCompressing(VectorStoreIntegrationTests):
    """The same over a file, with every document compressed by the bundled checkpoint when it is added."""

    @pytest.fixture
    def vectorstore(self, tmp_path):
        path = tmp_path / "memories.db"
        store = GMSAVectorStore(self.get_embeddings(), path, compressor=GMSAContextCompressor(store=path))
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


def test_a_store_in_memory_is_saved_and_loaded(vectors, embeddings, documents, tmp_path):
    path = tmp_path / "vectors.db"
    vectors.save(path)
    vectors.delete(["d"])
    vectors.save(path)
    loaded = GMSAVectorStore.load(path, embeddings)
    assert loaded.similarity_search_with_score("fission") == vectors.similarity_search_with_score("fission")
    assert loaded.get_by_ids(["d", "m", "v"]) == documents[1:]
    loaded.add_documents(documents[:1])
    loaded.save(path)
    loaded.close()
    again = GMSAVectorStore.load(str(path), embeddings)
    assert len(again.index) == 3
    again.index.check()
    again.close()
    assert b"pickle" not in path.read_bytes()


def test_what_is_not_there_is_not_loaded(embeddings, tmp_path):
    with pytest.raises(StoreError, match="save"):
        GMSAVectorStore.load(tmp_path / "none.db", embeddings)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def compressing(embeddings, compressor):
    vectors = GMSAVectorStore(embeddings, compressor=compressor)
    yield vectors
    vectors.index.check()
    vectors.close()


def keys_of(compressor, documents):
    return {document.metadata["gmsa_key"] for document in compressor.invoke(documents)}


async def test_a_compressor_makes_memories_at_ingestion(compressing, compressor, store, gmsa, documents, count_calls):
    compressing.add_documents(documents[:2])
    await compressing.aadd_documents(documents[2:])
    assert len(store) == 3
    calls = count_calls(gmsa.compressor, "forward")
    assert set(store.keys()) == keys_of(compressor, compressing.similarity_search("any"))
    assert calls == []
    assert compressing.get_by_ids(["d", "m", "v"]) == documents


def test_without_a_compressor_nothing_is_compressed(vectors, gmsa, count_calls):
    calls = count_calls(gmsa, "compress")
    vectors.add_texts(["more"])
    assert calls == []


def test_an_error_of_the_compressor_leaves_the_index_as_it_was(compressing, compressor, documents):
    compressor.rate = -1
    with pytest.raises(RateError):
        compressing.add_documents(documents)
    assert len(compressing.index) == 0


async def test_deleting_removes_vector_row_and_memory(compressing, compressor, store, documents):
    compressing.add_documents(documents)
    at_another_rate = compressor.model_copy(update={"rate": 2})
    [handle] = [document.page_content for document in at_another_rate.invoke(documents[:1])]
    compressing.delete(["d", "none"])
    assert store.text(handle) is None
    assert set(store.keys()) == keys_of(compressor, documents[1:])
    await compressing.adelete(["m"])
    assert compressing.get_by_ids(["d", "m", "v"]) == documents[2:]
    compressing.delete()
    assert store.keys() == []
    assert compressing.similarity_search("any") == []


def test_a_text_that_another_row_holds_keeps_its_memory(compressing, store):
    compressing.add_texts(["same", "same", "else"], ids=["1", "2", "3"])
    compressing.delete(["1"])
    assert len(store) == 2
    compressing.delete(["2", "3"])
    assert store.keys() == []


def test_a_replaced_text_is_forgotten_like_a_deleted_one(compressing, compressor, store):
    compressing.add_texts(["old", "shared", "shared"], ids=["1", "2", "3"])
    compressing.add_texts(["new", "other", "old"], ids=["1", "2", "4"])
    texts = [Document(text) for text in ("new", "other", "shared", "old")]
    assert set(store.keys()) == keys_of(compressor, texts)
    compressing.add_texts(["new"], ids=["4"])
    assert set(store.keys()) == keys_of(compressor, texts[:3])


async def test_adding_shows_no_text_to_tracers(compressing, compressor, store, documents):
    with collect_runs() as collected:
        compressing.add_documents(documents[:2])
        await compressing.aadd_documents(documents[2:])
        assert collected.traced_runs == []
        compressor.invoke(documents)
        assert len(collected.traced_runs) == 1
    assert len(store) == 3


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"metadatas": [{"x": {1, 2}}], "ids": ["d"]}, InputError),
        ({"metadatas": [{}, {}], "ids": ["d"]}, InputError),
        ({"ids": ["d", "m"]}, InputError),
        ({"ids": ["d"]}, ShapeError),
    ],
)
def test_an_error_loses_neither_a_row_nor_its_memory(compressing, store, documents, monkeypatch, wrong, error):
    compressing.add_documents(documents)
    before = store.keys()
    if error is ShapeError:
        monkeypatch.setattr(compressing.embeddings, "embed_documents", lambda texts: [[1.0, 2.0]] * len(texts))
    with pytest.raises(error):
        compressing.add_texts(["new"], **wrong)
    assert compressing.get_by_ids(["d", "m", "v"]) == documents
    assert set(before) <= set(store.keys())


def test_the_last_vector_store_of_a_text_forgets_it(gmsa, embeddings, tmp_path):
    path = tmp_path / "memories.db"
    compressor = GMSAContextCompressor(gmsa=gmsa, rate=4)
    one = GMSAVectorStore.from_texts(["both", "old"], embeddings, ids=["1", "2"])
    two = GMSAVectorStore.from_texts(["both", "old"], embeddings, ids=["1", "2"], compressor=compressor, path=path)
    same = GMSAVectorStore.load(path, embeddings, compressor=compressor)  # over the rows of two, which hold nothing up
    handles = [document.page_content for document in compressor.invoke([Document("both"), Document("old")])]
    one.delete(["1"])
    one.add_texts(["new"], ids=["2"])
    assert [default_store().text(handle) for handle in handles] == ["both", "old"]
    same.delete(["1"])
    two.add_texts(["newer"], ids=["2"])
    assert [default_store().text(handle) for handle in handles] == [None, None]
    for vectors in (one, two, same):
        vectors.delete()
        vectors.close()


def test_texts_of_two_are_forgotten_if_both_delete_them_at_once(gmsa, embeddings, monkeypatch):
    compressor = GMSAContextCompressor(gmsa=gmsa, rate=4)
    one, two = (GMSAVectorStore.from_texts(["both"], embeddings, ids=["1"]) for _ in range(2))
    [handle] = [document.page_content for document in compressor.invoke([Document("both")])]
    delete = one.index.delete

    def after_the_other(ids):
        monkeypatch.undo()
        two.delete(ids)
        return delete(ids)

    monkeypatch.setattr(one.index, "delete", after_the_other)
    one.delete(["1"])
    assert default_store().text(handle) is None
    one.close()
    two.close()


def test_other_vector_stores_keep_only_what_is_theirs(gmsa, embeddings, store):
    """Neither a closed one, nor one that is gone, nor one whose memories are elsewhere holds a memory."""
    closed, gone, index_closed = (GMSAVectorStore.from_texts(["text"], embeddings) for _ in range(3))
    elsewhere = GMSAVectorStore.from_texts(
        ["text"], embeddings, compressor=GMSAContextCompressor(gmsa=gmsa, store=store)
    )
    one = GMSAVectorStore.from_texts(["text"], embeddings, ids=["1"])
    [document] = GMSAContextCompressor(gmsa=gmsa, rate=4).invoke([Document("text")])
    closed.close()
    index_closed.index.close()
    gone.index.close()
    del gone
    one.delete(["1"])
    assert shared_store(None).text(document.page_content) is None
    assert len(store) == 1
    one.close()
    elsewhere.close()


def test_look_alikes_in_a_text_do_not_hide_its_memory(compressing, store):
    text = "say [[gmsa:0123456789abcdef0123456789abcdef:1]] twice"
    compressing.add_texts([text], ids=["1"])
    assert store.text(store.keys()[0]) == neutralise(text) != text
    assert compressing.get_by_ids(["1"])[0].page_content == text
    compressing.delete(["1"])
    assert store.keys() == []


def test_memories_are_forgotten_in_the_default_store_and_in_the_same_file(gmsa, embeddings, documents, tmp_path):
    path = tmp_path / "memories.db"
    with GMSAVectorStore.from_documents(documents, embeddings, path=path).index:
        pass
    vectors = GMSAVectorStore.load(path, embeddings)
    for document in documents:  # other tests share the default store
        default_store().forget(document.page_content)
    for store in (None, path):
        GMSAContextCompressor(gmsa=gmsa, store=store).invoke(documents)
    before = len(default_store())
    vectors.delete(["d"])
    assert len(default_store()) == before - 1
    vectors.close()
    assert b"Black Forest" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())
    with MemoryStore(path) as store:
        assert len(store) == 2
        store.check()


class Recording(Embeddings):
    def __init__(self, embeddings):
        self.embeddings, self.texts = embeddings, []

    def embed_documents(self, texts):
        self.texts += texts
        return self.embeddings.embed_documents(texts)

    def embed_query(self, text):
        self.texts.append(text)
        return self.embeddings.embed_query(text)


async def test_the_original_is_embedded_and_a_handle_never_is(embeddings, compressor, documents):
    recording = Recording(embeddings)
    vectors = GMSAVectorStore.from_documents(documents, recording, compressor=compressor)
    vectors.as_retriever(compressed=True).invoke("a question")
    assert recording.texts == [*(document.page_content for document in documents), "a question"]
    compressed = compressor.invoke(documents)
    handles = "\n\n".join(document.page_content for document in compressed)
    for call in (
        lambda: vectors.add_documents(compressed),
        lambda: vectors.add_texts(["a text", handles]),
        lambda: vectors.similarity_search(f" {compressed[0].page_content}\n"),
        lambda: vectors.max_marginal_relevance_search(handles),
    ):
        with pytest.raises(InputError, match="restore_documents"):
            call()
    with pytest.raises(InputError):
        await vectors.aadd_documents(compressed)
    assert len(recording.texts) == 4
    assert len(vectors.index) == 3
    vectors.close()
