"""GMSAVectorStore: nodes come back whole, deletes delete, and every filter filters."""

import asyncio
import pickle
import sqlite3
from contextlib import closing

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from llama_index.core import StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.schema import (
    ImageNode,
    IndexNode,
    MediaResource,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from pydantic import ValidationError

from gmsa_rag.errors import InputError, InputTypeError, ShapeError, StoreError
from gmsa_rag.memory.index import VectorIndex
from gmsa_rag.memory.store import MemoryStore
from llama_index.vector_stores.gmsa import GMSAVectorStore


def node(name, vector, **metadata):
    return TextNode(
        id_=name,
        text=f"Text of {name}: 東京 👩‍👩‍👧‍👦\n",
        embedding=vector,
        metadata=metadata,
        excluded_llm_metadata_keys=["page"],
        relationships={
            NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"doc-{metadata.get('of', 'none')}"),
            NodeRelationship.NEXT: RelatedNodeInfo(node_id="next"),
        },
    )


NODES = [
    node("a", [1.0, 0.0, 0.125], of=1, page=1, title="Danube", tags=["river", "long"], empty=""),
    node("b", [0.875, 0.125, 0.125], of=1, page=2, title="Rhine", tags=["river"], nested={"deep": [1, {"x": None}]}),
    node("c", [0.0, 1.0, 0.125], of=2, page=3, title="Lise Meitner", tags=[], ratio=0.5),
    node("d", [0.125, 0.875, 0.125], of=3, page="4", title=None),
]
QUERY = [1.0, 0.0, 0.0]


@pytest.fixture
def vectors():
    store = GMSAVectorStore()
    assert store.add([node.model_copy(deep=True) for node in NODES]) == ["a", "b", "c", "d"]
    yield store
    store.client.check()
    store.close()


def ids(store, **settings):
    settings = {"query_embedding": QUERY, "similarity_top_k": 10} | settings
    return store.query(VectorStoreQuery(**settings)).ids


def filters(*found, condition=FilterCondition.AND):
    made = [one if isinstance(one, MetadataFilters) else MetadataFilter(key=one[0], operator=one[1], value=one[2])
            for one in found]  # fmt: skip
    return MetadataFilters(filters=made, condition=condition)


def test_nodes_come_back_whole(vectors):
    assert vectors.stores_text
    assert [node.model_dump() for node in vectors.get_nodes()] == [node.model_dump() for node in NODES]
    result = vectors.query(VectorStoreQuery(query_embedding=QUERY, similarity_top_k=2))
    assert result.ids == ["a", "b"]
    assert result.similarities == pytest.approx([0.992278, 0.980196], abs=1e-5)
    bare = [node.model_dump() | {"embedding": None} for node in NODES[:2]]
    assert [node.model_dump() for node in result.nodes] == bare


def test_other_kinds_of_nodes_come_back(vectors):
    text = MediaResource(text="text", mimetype="text/markdown", path="a/b.md", url="https://example.org/b.md")
    image = MediaResource(url="https://example.org/b.png", path="b.png")
    nodes = [
        ImageNode(id_="i", text="A castle.", image="aW1hZ2U=", embedding=[0.0, 0.0, 1.0]),
        IndexNode(id_="x", text="Further on.", index_id="other", embedding=[0.0, 0.25, 1.0]),
        Node(id_="n", text_resource=text, image_resource=image, embedding=[0.0, 0.125, 1.0]),
        Node(id_="o", text_resource=MediaResource(path="a/b.md"), embedding=[0.0, 0.125, 0.5]),
        Node(id_="p", image_resource=image, embedding=[0.0, 0.125, 0.25]),
    ]
    before = [node.model_dump() for node in nodes]
    vectors.add(nodes)
    assert [node.model_dump() for node in nodes] == before
    found = vectors.get_nodes([node.node_id for node in nodes])
    assert [type(node) for node in found] == [type(node) for node in nodes]
    assert [node.model_dump() for node in found] == before
    assert [entry.metadata["_node_content"].count("castle") for entry in vectors.client.get(["i"])] == [0]


def test_a_node_replaces_that_of_its_id(vectors):
    vectors.add([TextNode(id_="a", text="new", embedding=[0.0, 0.0, 1.0])])
    assert [found.text for found in vectors.get_nodes(["a", "unknown"])] == ["new"]
    assert len(vectors.client) == 4


def test_deletes(vectors):
    vectors.delete("doc-1")
    assert ids(vectors) == ["d", "c"]
    vectors.delete("None")  # what LlamaIndex writes for a node without a source
    assert ids(vectors) == ["d", "c"]
    vectors.delete_nodes(["c", "unknown"])
    assert ids(vectors) == ["d"]
    vectors.delete_nodes(filters=filters(("page", "==", 4)))
    assert ids(vectors) == ["d"]
    vectors.delete_nodes(["d"], filters=filters(("page", "==", "4")))
    assert ids(vectors) == []
    vectors.add(NODES)
    with pytest.raises(InputError, match="clear"):
        vectors.delete_nodes()
    vectors.clear()
    assert ids(vectors) == [] == vectors.get_nodes()


@pytest.mark.parametrize("condition", list(FilterCondition))
def test_an_empty_group_of_filters_deletes_nothing(vectors, condition):
    empty = filters(condition=condition)
    for wanted in (empty, filters(empty, condition=condition), filters(("page", "==", 1), filters(empty))):
        with pytest.raises(InputError, match="clear"):
            vectors.delete_nodes(filters=wanted)
    assert len(vectors.client) == 4
    vectors.delete_nodes(["a"], filters=empty)
    assert len(vectors.client) == 3


def test_deletes_by_id_read_those_rows_only(vectors, monkeypatch):
    def entries(self):
        raise AssertionError("the whole index was read")

    monkeypatch.setattr(VectorIndex, "entries", entries)
    vectors.delete_nodes(["a", "unknown"])
    vectors.delete_nodes(["b", "c", "unknown"], filters=filters(("page", "==", 2)))
    assert len(vectors.client) == 2


def test_a_delete_that_finds_nothing_writes_nothing(tmp_path):
    path = tmp_path / "vectors.db"
    store = GMSAVectorStore(path=path)
    store.add(NODES)
    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT generation FROM namespaces"
        before = connection.execute(query).fetchall()
        store.delete("doc-9")
        store.delete_nodes([])
        store.delete_nodes(["unknown"])
        store.delete_nodes(["a"], filters=filters(("page", "==", 9)))
        store.delete_nodes(filters=filters(("page", "==", 9)))
        assert connection.execute(query).fetchall() == before
        store.delete_nodes(["a"])
        assert connection.execute(query).fetchall() != before
    assert ids(store) == ["b", "d", "c"]
    store.close()


@pytest.mark.parametrize(
    ("key", "operator", "value", "expected"),
    [
        ("title", "==", "Danube", "a"),
        ("page", "==", 2, "b"),
        ("title", "!=", "Danube", "bcd"),
        ("page", ">", 1, "bc"),
        ("page", ">=", 2, "bc"),
        ("page", "<", 2, "a"),
        ("ratio", "<=", 0.5, "c"),
        ("page", "in", [1, 3], "ac"),
        ("page", "nin", [1, 3], "bd"),
        ("ratio", "nin", [0.5], "abd"),
        ("tags", "any", ["long", "short"], "a"),
        ("tags", "all", ["river", "long"], "a"),
        ("tags", "all", ["river"], "ab"),
        ("tags", "contains", "river", "ab"),
        ("title", "contains", "Rhi", "b"),
        ("title", "text_match", "ise M", "c"),
        ("title", "text_match_insensitive", "dANUBE", "a"),
        ("page", "text_match", "4", "d"),
        ("tags", "is_empty", None, "cd"),
        ("empty", "is_empty", None, "abcd"),
        ("title", "is_empty", None, "d"),
        ("ref_doc_id", "==", "doc-1", "ab"),
    ],
)
def test_operators(vectors, key, operator, value, expected):
    assert sorted(ids(vectors, filters=filters((key, operator, value)))) == list(expected)
    assert {node.id_ for node in vectors.get_nodes(filters=filters((key, operator, value)))} == set(expected)


def test_every_operator_is_there():
    from llama_index.vector_stores.gmsa.filters import _COMPARE

    assert {*_COMPARE, FilterOperator.IS_EMPTY} == set(FilterOperator)


def test_conditions(vectors):
    river, late = ("tags", "contains", "river"), ("page", ">", 1)
    assert ids(vectors, filters=filters(river, late)) == ["b"]
    assert sorted(ids(vectors, filters=filters(river, late, condition="or"))) == ["a", "b", "c"]
    assert ids(vectors, filters=filters(river, late, condition="not")) == ["d"]
    nested = filters(filters(river, late, condition="or"), filters(("title", "==", "Rhine"), condition="not"))
    assert sorted(ids(vectors, filters=nested)) == ["a", "c"]
    for condition in FilterCondition:
        assert len(ids(vectors, filters=filters(condition=condition))) == 4


@pytest.mark.parametrize(("operator", "value"), [("in", "ab"), ("any", 1), ("text_match", 3), ("nin", None)])
def test_a_value_that_does_not_suit_its_operator_is_an_error(vectors, operator, value):
    with pytest.raises(InputError, match="operator"):
        ids(vectors, filters=filters(("title", operator, value)))


def test_ids_filter_too(vectors):
    assert ids(vectors, node_ids=["b", "c"]) == ["b", "c"]
    assert ids(vectors, doc_ids=["doc-1", "doc-2"]) == ["a", "b", "c"]
    assert ids(vectors, doc_ids=["doc-1"], node_ids=["b", "c"], filters=filters(("page", "==", 2))) == ["b"]
    assert len(ids(vectors, node_ids=[])) == 4  # an index without a list of its nodes sends this
    assert ids(vectors, doc_ids=[]) == ids(vectors, node_ids=[], doc_ids=[]) == []
    assert ids(vectors, doc_ids=[], mode=VectorStoreQueryMode.MMR) == []
    assert vectors.get_nodes([]) == []
    for call in (vectors.get_nodes, vectors.delete_nodes):
        with pytest.raises(InputTypeError, match="list of str, got a str, 'ab'"):
            call("ab")
    vectors.delete_nodes([])
    assert len(vectors.get_nodes()) == 4


def test_mmr_finds_what_is_unlike(vectors):
    query = VectorStoreQuery(query_embedding=[1.0, 0.5, 0.0], similarity_top_k=2, mode=VectorStoreQueryMode.MMR)
    plain = VectorStoreQuery(query_embedding=[1.0, 0.5, 0.0], similarity_top_k=2)
    assert vectors.query(plain).ids == ["b", "a"]
    diverse = vectors.query(query, mmr_threshold=0.3)
    assert diverse.ids[0] == "b"
    assert diverse.ids[1] in "cd"
    assert diverse.similarities[0] == pytest.approx(vectors.query(plain).similarities[0])
    assert vectors.query(query, mmr_threshold=1.0).ids == ["b", "a"]
    assert vectors.query(query, mmr_threshold=0.3, mmr_prefetch_k=2).ids == ["b", "a"]
    query.mmr_threshold = 1.0
    assert vectors.query(query).ids == ["b", "a"]
    query.filters = filters(("page", "==", 99))
    assert vectors.query(query).ids == []


def test_wrong_queries_and_nodes_are_errors(vectors, post, nodes):
    with pytest.raises(InputError, match="mode"):
        ids(vectors, mode=VectorStoreQueryMode.HYBRID)
    with pytest.raises(InputError, match="embedding"):
        ids(vectors, query_embedding=None)
    with pytest.raises(ShapeError):
        ids(vectors, query_embedding=[1.0])
    with pytest.raises(InputError, match="embedding"):
        vectors.add([TextNode(text="a")])
    with pytest.raises(InputError, match="handle"):
        vectors.add([found.node for found in post.postprocess_nodes(nodes)])
    with pytest.raises(InputError, match="JSON"):
        vectors.add([TextNode(text="a", embedding=QUERY, metadata={"x": float("nan")})])
    with pytest.raises(ValidationError):
        GMSAVectorStore(file="x.db")


def test_it_stays_on_a_file_and_goes_from_one_to_another(tmp_path, vectors):
    vectors.persist(str(tmp_path / "sub" / "vectors.db"))
    vectors.persist(str(tmp_path / "sub" / "vectors.db"))
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["vectors.db"]
    vectors.persist(tmp_path / "sub" / "vectors.db")
    again = GMSAVectorStore.from_persist_path(tmp_path / "sub" / "vectors.db")
    assert [node.model_dump() for node in again.get_nodes()] == [node.model_dump() for node in NODES]
    again.delete("doc-1")
    again.persist(again.path)
    for other in (pickle.loads(pickle.dumps(again)), GMSAVectorStore.from_dict(again.to_dict())):
        assert ids(other) == ["d", "c"]
        other.close()
    assert ids(again) == ["d", "c"]
    again.close()
    empty = GMSAVectorStore()
    empty.persist(str(tmp_path / "empty.db"))
    empty.close()
    reopened = GMSAVectorStore.from_persist_path(str(tmp_path / "empty.db"))
    assert reopened.get_nodes() == []
    reopened.close()


def test_persisting_leaves_all_else_in_the_file(tmp_path, vectors, wide):
    path = tmp_path / "library.db"
    other = GMSAVectorStore(path=path, namespace="other")
    other.add(NODES[:1])
    with MemoryStore(path) as store:
        memory = wide.compress("The Danube begins in the Black Forest.", store=store)
        handle = store.handle(memory)
        vectors.persist(str(path))
        assert store.resolve(handle).key == memory.key
    other.close()
    with MemoryStore(path) as store, GMSAVectorStore(path=path, namespace="other").client as there:
        assert store.resolve(handle).key == memory.key
        assert [entry.id for entry in there.entries()] == ["a"]
    again = GMSAVectorStore.from_persist_path(path)
    assert [node.model_dump() for node in again.get_nodes()] == [node.model_dump() for node in NODES]
    again.close()


def test_persisting_over_an_open_store_with_a_log_replaces_its_rows(tmp_path, vectors):
    path = tmp_path / "library.db"
    there = GMSAVectorStore(path=path)
    there.add([node("old", [0.0, 0.0, 1.0])])
    assert path.with_name("library.db-wal").stat().st_size
    vectors.persist(str(path))
    assert sorted(ids(there)) == ["a", "b", "c", "d"]
    again = GMSAVectorStore.from_persist_path(path)
    assert sorted(ids(again)) == ["a", "b", "c", "d"]
    again.client.check()
    again.close()
    there.close()


def test_a_storage_context_persists_it_and_takes_it_again(tmp_path, embedding):
    store = GMSAVectorStore(namespace="tenant")
    context = StorageContext.from_defaults(vector_store=store)
    VectorStoreIndex([TextNode(id_="r", text="Rome")], storage_context=context, embed_model=embedding)
    context.persist(tmp_path)
    store.close()
    again = GMSAVectorStore.from_persist_dir(tmp_path, "tenant")
    context = StorageContext.from_defaults(vector_store=again, persist_dir=str(tmp_path))
    index = load_index_from_storage(context, embed_model=embedding)
    assert [found.id_ for found in index.as_retriever().retrieve("Rome")] == ["r"]
    again.close()
    with pytest.raises(StoreError, match="image__vector_store"):
        GMSAVectorStore.from_persist_dir(tmp_path, name="image")


def test_what_cannot_be_opened_or_written(tmp_path, vectors):
    with pytest.raises(StoreError, match="no such file"):
        GMSAVectorStore.from_persist_path(tmp_path / "missing.db")
    with pytest.raises(InputError, match="local"):
        vectors.persist("vectors.db", fs=MemoryFileSystem())
    (tmp_path / "notes.txt").write_text("notes", encoding="utf-8")
    with pytest.raises(StoreError):
        vectors.persist(str(tmp_path / "notes.txt"))
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "notes"
    with pytest.raises(StoreError, match="pickled"):
        pickle.dumps(vectors)
    assert len(vectors.get_nodes()) == 4


def test_namespaces_are_apart(tmp_path):
    path = tmp_path / "vectors.db"
    one, two = GMSAVectorStore(path=path, namespace="one"), GMSAVectorStore(path=path, namespace="two")
    one.add(NODES[:1])
    assert (ids(one), ids(two)) == (["a"], [])
    one.close()
    two.close()


async def test_the_async_forms_give_the_same():
    store = GMSAVectorStore()
    assert await store.async_add(NODES) == ["a", "b", "c", "d"]
    query = VectorStoreQuery(query_embedding=QUERY, similarity_top_k=2)
    assert (await store.aquery(query)).ids == store.query(query).ids == ["a", "b"]
    assert len(await store.aget_nodes(["a"])) == 1
    await store.adelete("doc-1")
    await store.adelete_nodes(["c"])
    assert [node.id_ for node in await store.aget_nodes()] == ["d"]
    await store.aclear()
    assert await store.aget_nodes() == []
    store.close()


def test_an_index_on_it(tmp_path, embedding):
    path = tmp_path / "vectors.db"
    store = GMSAVectorStore(path=path)
    documents = [TextNode(id_=name, text=name, metadata={"n": n}) for n, name in enumerate(["Rome", "Oslo", "Bonn"])]
    index = VectorStoreIndex(
        documents, storage_context=StorageContext.from_defaults(vector_store=store), embed_model=embedding
    )
    assert [found.id_ for found in index.as_retriever(similarity_top_k=1).retrieve("Oslo")] == ["Oslo"]
    assert index.as_retriever(doc_ids=[]).retrieve("Oslo") == []
    index.delete_nodes(["Oslo"])
    store.close()
    again = GMSAVectorStore(path=path)
    retriever = VectorStoreIndex.from_vector_store(again, embed_model=embedding).as_retriever(
        similarity_top_k=3, filters=filters(("n", ">", 0))
    )
    assert [found.id_ for found in retriever.retrieve("Oslo")] == ["Bonn"]
    assert [found.id_ for found in asyncio.run(retriever.aretrieve("Oslo"))] == ["Bonn"]
    again.close()
