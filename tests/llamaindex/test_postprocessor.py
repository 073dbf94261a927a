"""GMSANodePostprocessor: nothing of a node is lost, and its text comes back."""

import copy
import pickle

import pytest
from llama_index.core.schema import (
    ImageNode,
    IndexNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeWithScore,
    QueryBundle,
    TextNode,
)
from pydantic import ValidationError

from gmsa_rag.errors import (
    ConfigError,
    FingerprintError,
    InputError,
    InputTypeError,
    MalformedHandleError,
    RateError,
    UnknownMemoryError,
)
from gmsa_rag.inference.replacing import METADATA
from gmsa_rag.memory.handles import find_handles, neutralise, parse_handle
from gmsa_rag.memory.store import MemoryStore, default_store
from llama_index.postprocessor.gmsa import GMSANodePostprocessor


def dumped(nodes):
    return [(node.score, node.node.model_dump()) for node in nodes]


def test_it_is_a_node_postprocessor():
    assert "BaseNodePostprocessor" in [base.__name__ for base in GMSANodePostprocessor.__mro__]
    assert GMSANodePostprocessor.class_name() == "GMSANodePostprocessor"


def test_a_node_keeps_everything_but_its_text(post, nodes, store, wide):
    before = copy.deepcopy(dumped(nodes))
    found = post.postprocess_nodes(nodes, query_bundle=QueryBundle("Where does it begin?"))
    assert dumped(nodes) == before
    assert len(found) == len(nodes)
    for old, new in zip(nodes, found, strict=True):
        memory = store.resolve(new.text)
        assert (memory.fingerprint, memory.rate) == (wide.fingerprint, 4)
        added = {name: new.metadata[name] for name in METADATA}
        assert tuple(added.values()) == (memory.key, 4, memory.num_tokens, memory.num_soft_tokens, wide.fingerprint)
        assert new.score == old.score
        same = old.node.model_dump() | {
            "text": new.text,
            "metadata": {**old.metadata, **added},
            "excluded_llm_metadata_keys": [*old.node.excluded_llm_metadata_keys, *METADATA],
            "excluded_embed_metadata_keys": [*old.node.excluded_embed_metadata_keys, *METADATA],
        }
        assert new.node.model_dump() == same
        for mode in (MetadataMode.LLM, MetadataMode.EMBED):
            assert new.node.get_content(mode).count("gmsa") == 1  # the handle alone


def test_the_text_comes_back_byte_for_byte(post, nodes):
    found = post.postprocess_nodes(nodes)
    assert [node.text for node in found] != [node.text for node in nodes]
    assert dumped(post.restore_nodes(found)) == dumped(nodes)
    assert [node.text.encode() for node in post.restore_nodes(found)] == [node.text.encode() for node in nodes]


async def test_the_async_forms_give_the_same(post, nodes):
    found = await post.apostprocess_nodes(nodes, query_str="?")
    assert dumped(found) == dumped(post.postprocess_nodes(nodes))
    assert dumped(await post.arestore_nodes(found)) == dumped(nodes)


def test_all_nodes_are_one_fused_compression(post, nodes, monkeypatch, wide):
    calls, compress = [], type(wide).compress
    monkeypatch.setattr(type(wide), "compress", lambda *args, **kw: calls.append(args[1]) or compress(*args, **kw))
    post.postprocess_nodes(nodes)
    assert calls == [[node.text for node in nodes]]


def test_handles_pass_and_nothing_is_computed_twice(post, nodes, store):
    once = post.postprocess_nodes(nodes)
    assert dumped(post.postprocess_nodes(once)) == dumped(once)
    assert len(store) == len(nodes)
    with pytest.raises(RateError, match="rate 4"):
        post.model_copy(update={"rate": 2}).postprocess_nodes(once)


def test_attach_leaves_the_text_for_others(post, nodes):
    attached = post.model_copy(update={"mode": "attach"}).postprocess_nodes(nodes)
    assert [node.text for node in attached] == [node.text for node in nodes]
    assert [node.metadata["gmsa_rate"] for node in attached] == [4] * len(nodes)
    handles = post.postprocess_nodes(attached)
    assert dumped(handles) == dumped(post.postprocess_nodes(nodes))
    assert dumped(post.restore_nodes(attached)) == dumped(nodes)


def test_short_passages_stay_text_and_are_neutralised(post, nodes):
    post = post.model_copy(update={"min_tokens": 20})
    nodes[3].node.text = "see [[gmsa:"
    found = post.postprocess_nodes(nodes)
    assert [bool(find_handles(node.text)) for node in found] == [True, True, True, False]
    assert found[3].text == "see [[gmsa-:"
    assert found[3].metadata == nodes[3].metadata


def test_look_alikes_in_a_text_are_neutralised(post, nodes):
    handle = post.postprocess_nodes(nodes)[0].text
    [found] = post.postprocess_nodes([NodeWithScore(node=TextNode(text=f"Read {handle} aloud."))])
    [restored] = post.restore_nodes([found])
    assert restored.text == f"Read {handle} aloud.".replace("[[gmsa:", "[[gmsa-:").replace("]]", "-]]")


def test_a_foreign_handle_is_text_unless_the_node_says_that_it_was_compressed(post, nodes, wide):
    with MemoryStore(":memory:") as other:
        foreign = GMSANodePostprocessor(gmsa=wide, store=other, rate=4).postprocess_nodes(nodes)
    bare = NodeWithScore(node=TextNode(text=foreign[0].text))
    [found] = post.postprocess_nodes([bare])
    assert found.text != bare.text
    assert post.restore_nodes([found])[0].text.startswith("[[gmsa-:")
    with pytest.raises(UnknownMemoryError):
        post.postprocess_nodes(foreign)
    with pytest.raises(UnknownMemoryError):
        post.restore_nodes(foreign)
    assert post.model_copy(update={"on_missing": "drop"}).postprocess_nodes([foreign[0], nodes[1]])[0].id_ == "n1"
    with pytest.raises(UnknownMemoryError):
        post.model_copy(update={"on_missing": "text"}).postprocess_nodes(foreign)


def test_a_node_that_is_the_handle_of_another_reads_nothing_of_it(post, nodes, store):
    secret = post.postprocess_nodes(nodes)[0].text
    pasted = [NodeWithScore(node=TextNode(text=secret, id_="mallory"))]
    attached = post.model_copy(update={"mode": "attach"}).postprocess_nodes(pasted)
    for found in (pasted, attached, post.postprocess_nodes(pasted)):
        [compressed] = post.postprocess_nodes(found)
        assert store.text(compressed.text) == neutralise(secret)
        assert post.postprocess_nodes([compressed])[0].text == compressed.text
        assert post.restore_nodes(found)[0].text in (secret, neutralise(secret))


def test_a_handle_that_was_cut_on_its_way_raises(post, nodes):
    found = post.postprocess_nodes(nodes)
    for spoil in (lambda text: text[:-2], lambda text: text[3:], lambda text: f"{text} and more"):
        cut = [
            node.model_copy(update={"node": node.node.model_copy(update={"text": spoil(node.text)})}) for node in found
        ]
        with pytest.raises(MalformedHandleError, match="node n0"):
            post.postprocess_nodes(cut)
        with pytest.raises(MalformedHandleError, match="node n0"):
            post.restore_nodes(cut)
    attach = post.model_copy(update={"mode": "attach"})
    text = f"An attached text may quote {found[0].text}."
    attached = attach.postprocess_nodes([NodeWithScore(node=TextNode(text=text))])
    assert find_handles(post.postprocess_nodes(attached)[0].text)


def test_a_memory_that_was_evicted_is_computed_again_from_its_text(nodes, wide):
    with MemoryStore(":memory:", max_memories=4) as store:
        post = GMSANodePostprocessor(gmsa=wide, store=store, rate=4, on_missing="text")
        found = post.postprocess_nodes(nodes)
        post.postprocess_nodes([NodeWithScore(node=TextNode(text=text)) for text in "abcd"])
        with pytest.raises(UnknownMemoryError):
            post.model_copy(update={"on_missing": "error"}).postprocess_nodes(found)
        again = post.postprocess_nodes(found)
        assert [node.text for node in again] == [node.text for node in found]
        assert all(store.resolve(node.text) for node in again)


def test_nodes_without_text_are_left_as_they_are(post, store):
    nodes = [
        NodeWithScore(node=TextNode(text="")),
        NodeWithScore(node=ImageNode(image_path="picture.png"), score=0.5),
        NodeWithScore(node=Node(image_resource=MediaResource(url="https://example.org/picture.png"))),
    ]
    found = post.postprocess_nodes(nodes)
    assert dumped(found) == dumped(nodes)
    assert all(new.node is not old.node for old, new in zip(nodes, found, strict=True))
    assert len(store) == 0
    assert post.postprocess_nodes([]) == []


def test_what_stands_beside_the_text_stays(post):
    kinds = [
        Node(
            text_resource=MediaResource(text="A castle.", mimetype="text/markdown", path="castle.md"),
            image_resource=MediaResource(url="https://example.org/castle.png"),
        ),
        ImageNode(text="A castle.", image="aW1hZ2U="),
        IndexNode(text="A castle.", index_id="castles", obj=object()),
    ]
    for node in kinds:
        [found] = post.postprocess_nodes([NodeWithScore(node=node)])
        assert find_handles(found.text if isinstance(node, TextNode) else found.node.get_content())
        assert type(found.node) is type(node)
    [found] = post.postprocess_nodes([NodeWithScore(node=kinds[0])])
    assert found.node.text_resource.path == kinds[0].text_resource.path
    assert found.node.image_resource == kinds[0].image_resource
    assert post.postprocess_nodes([NodeWithScore(node=kinds[2])])[0].node.obj is kinds[2].obj


def test_wrong_input_is_a_typed_error(post):
    with pytest.raises(InputTypeError, match="NodeWithScore"):
        post.postprocess_nodes([TextNode(text="a")])
    with pytest.raises(InputTypeError, match="a list"):
        post.postprocess_nodes("a text")
    with pytest.raises(InputError, match="surrogate"):
        post.postprocess_nodes([NodeWithScore(node=TextNode(text="\ud800"))])


def test_wrong_settings_are_errors():
    with pytest.raises(RateError):
        GMSANodePostprocessor(rate=0)
    for wrong in ({"mode": "other"}, {"rates": 8}, {"min_tokens": -1}):
        with pytest.raises(ValidationError):
            GMSANodePostprocessor(**wrong)


def test_a_dict_of_it_names_what_it_was_made_with(post, wide, tmp_path):
    with MemoryStore(tmp_path / "memories.db", "tenant") as store:
        data = GMSANodePostprocessor(gmsa=wide, store=store, rate=4, token="secret").to_dict()
    assert data["class_name"] == "GMSANodePostprocessor"
    assert (data["rate"], data["store"], data["namespace"]) == (4, str(tmp_path / "memories.db"), "tenant")
    assert data["fingerprint"] == wide.fingerprint
    assert "gmsa" not in data and "token" not in data
    again = GMSANodePostprocessor.from_dict(data)
    assert again.memories.namespace == "tenant"
    with pytest.raises(FingerprintError, match="gmsa-mini"):
        _ = again.engine
    again.gmsa = wide
    assert again.engine is wide
    assert post.to_dict()["store"] is None  # one in memory


def test_pickling_drops_the_engine_and_refuses_an_open_store(post, wide, nodes):
    with pytest.raises(ConfigError, match="path"):
        pickle.dumps(post)
    post = GMSANodePostprocessor(gmsa=wide, rate=4)
    data = pickle.dumps(post)
    assert len(data) < 5000
    assert post.gmsa is wide
    again = pickle.loads(data)
    assert (again.gmsa, again.rate, again.fingerprint) == (None, 4, wide.fingerprint)
    assert again.memories is default_store()
    assert copy.deepcopy(post).gmsa is wide


def test_the_handle_says_how_many_positions_it_takes(post, nodes):
    for node in post.postprocess_nodes(nodes):
        assert parse_handle(node.text).num_soft_tokens == node.metadata["gmsa_num_soft_tokens"]
