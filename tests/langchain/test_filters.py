"""GMSAVectorStore's filters and arguments: what is meant as a restriction restricts, or is a typed error."""

import pytest
from langchain_core.documents import Document

from gmsa_rag.errors import InputError, InputTypeError
from langchain_gmsa import GMSAVectorStore


def found(vectors, wanted):
    return {document.id for document in vectors.similarity_search("any", k=9, filter=wanted)}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"page": {"$eq": 2}}, {"m"}),
        ({"title": {"$eq": None}}, set()),
        ({"title": {"$ne": "Danube"}}, {"m", "v"}),
        ({"page": {"$in": (1, 3)}}, {"d", "v"}),
        ({"page": {"$in": []}}, set()),
        ({"title": {"$nin": ["Danube", "Rhine"]}}, {"m", "v"}),
        ({"page": {"$gt": 1, "$lt": 3}}, {"m"}),
        ({"page": {"$gte": 2}}, {"m", "v"}),
        ({"page": {"$lte": 2}}, {"d", "m"}),
        ({"title": {"$gt": 1}}, set()),
        ({"$and": [{"page": {"$gt": 1}}, {"title": "Lise Meitner"}]}, {"m"}),
        ({"$or": [{"page": 1}, {"page": {"$gte": 3}}]}, {"d", "v"}),
        ({"$or": []}, set()),
        ({"$not": {"page": [1, 2]}}, {"v"}),
        ({"$not": {"$or": [{"page": 1}, {"page": 2}]}, "page": {"$ne": 9}}, {"v"}),
        ({"page": (1, 3)}, {"d", "v"}),
        ({"page": {1, 3}}, {"d", "v"}),
        ({"page": frozenset()}, set()),
        ({"page": []}, set()),
    ],
)
def test_operators_and_collections(vectors, wanted, expected):
    assert found(vectors, wanted) == expected


def test_lists_and_objects_in_metadata(embeddings):
    metadatas = [{"x": [1, 2]}, {"x": {"y": 1}}, {"x": {}}]
    vectors = GMSAVectorStore.from_texts(["a", "b", "c"], embeddings, metadatas, ids=["a", "b", "c"])
    assert found(vectors, {"x": [1, 2]}) == found(vectors, {"x": (1, 2)}) == {"a"}
    assert found(vectors, {"x": {"y": 1}}) == {"b"}
    assert found(vectors, {"x": {}}) == {"c"}
    assert found(vectors, {"x": {1, 2}}) == set()
    vectors.close()


@pytest.mark.parametrize("search", ["similarity_search", "max_marginal_relevance_search"])
@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ("title", InputTypeError, "a mapping"),
        (["title"], InputTypeError, "a mapping"),
        ({"$and": {"page": 1}}, InputTypeError, "a list"),
        ({"$or": ["page"]}, InputTypeError, "a mapping"),
        ({"$not": 3}, InputTypeError, "a mapping"),
        ({"page": {"$in": "12"}}, InputTypeError, "a list"),
        ({"page": {"$exists": True}}, InputError, r"\$eq.*'\$exists'"),
        ({"page": {"$eq": 1, "also": 2}}, InputError, "'also'"),
        ({"$nor": [{"page": 1}]}, InputError, r"\$and.*'\$nor'"),
    ],
)
def test_what_is_no_filter_is_a_typed_error(vectors, embeddings, search, wrong, error, says):
    empty = GMSAVectorStore(embeddings)
    for store in (vectors, empty):
        with pytest.raises(error, match=says):
            getattr(store, search)("any", filter=wrong)
    empty.close()


@pytest.mark.parametrize("misspelt", ["filters", "where", "score_threshold", "metadata"])
async def test_settings_that_a_search_does_not_have_are_refused(vectors, misspelt):
    wrong, vector = {misspelt: {"page": 1}}, vectors.embeddings.embed_query("any")
    searches = [vectors.similarity_search, vectors.similarity_search_with_score, vectors.max_marginal_relevance_search]
    by_vector = [
        vectors.similarity_search_by_vector,
        vectors.similarity_search_with_score_by_vector,
        vectors.max_marginal_relevance_search_by_vector,
    ]
    for search, question in [(one, "any") for one in searches] + [(one, vector) for one in by_vector]:
        with pytest.raises(InputError, match=f"only k, .*filter, got '{misspelt}'"):
            search(question, **wrong)
    for kind in ("similarity", "mmr"):
        retriever = vectors.as_retriever(search_type=kind, search_kwargs=wrong)
        with pytest.raises(InputError, match=misspelt):
            retriever.invoke("any")
        with pytest.raises(InputError, match=misspelt):
            await retriever.ainvoke("any")


async def test_settings_of_each_search_type_are_taken(vectors):
    for kind, settings in {
        "similarity": {"k": 1},
        "mmr": {"k": 1, "fetch_k": 5, "lambda_mult": 0.25},
        "similarity_score_threshold": {"k": 1, "score_threshold": 0.0},
    }.items():
        retriever = vectors.as_retriever(search_type=kind, search_kwargs=settings | {"filter": {"page": {"$eq": 3}}})
        assert [document.id for document in retriever.invoke("any")] == ["v"]
        assert [document.id for document in await retriever.ainvoke("any")] == ["v"]


def test_one_str_is_no_list_of_ids_or_texts(vectors, embeddings):
    vectors.add_texts(["one", "two"], ids=["1", "2"])
    calls = [
        lambda: vectors.delete("12"),
        lambda: vectors.get_by_ids("12"),
        lambda: vectors.add_texts("12"),
        lambda: vectors.add_texts(["a", "b"], ids="34"),
        lambda: GMSAVectorStore.from_texts("12", embeddings),
    ]
    for call in calls:
        with pytest.raises(InputTypeError, match="list of str, got a str, '"):
            call()
    assert [document.id for document in vectors.get_by_ids(iter(["1", "2"]))] == ["1", "2"]
    assert len(vectors.index) == 5


def test_of_equal_ids_the_last_wins_and_leaves_no_other_memory(embeddings, compressor, store):
    vectors = GMSAVectorStore(embeddings, compressor=compressor)
    ids = ["x", "y", "x"]
    assert vectors.add_texts(["first", "other", "last"], [{"n": 1}, {}, {"n": 3}], ids=ids) == ids
    assert vectors.get_by_ids(["x"]) == [Document("last", id="x", metadata={"n": 3})]
    assert set(map(store.text, store.keys())) == {"last", "other"}
    vectors.delete(["x", "y"])
    assert store.keys() == []
    vectors.close()
