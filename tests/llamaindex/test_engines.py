"""Query and chat engines: every handle that goes in is read, and a cut or unknown one raises."""

import asyncio
import inspect

import pytest
from llama_index.core import PromptHelper, VectorStoreIndex, get_response_synthesizer
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import TextNode

from gmsa_rag.errors import MalformedHandleError, UnknownMemoryError
from gmsa_rag.memory.handles import find_handles
from llama_index.postprocessor.gmsa import neutralise

MODES = ["compact", "refine", "tree_summarize", "simple_summarize", "accumulate"]
QUESTION = "Into which sea does the Danube empty?"
COUNT = 12


class Spoil(BaseNodePostprocessor):
    """Changes each handle on its way."""

    how: str

    def _postprocess_nodes(self, nodes, query_bundle=None):
        for node in nodes:
            handle = node.text
            node.node.set_content(handle[:-2] if self.how == "cut" else f"[[gmsa:{'0' * 32}:3]]")
        return nodes


@pytest.fixture(autouse=True)
def loop(request):
    """LlamaIndex's sync calls take the thread's event loop; one that they make themselves would stay open."""
    if inspect.iscoroutinefunction(request.function):
        yield
        return
    with asyncio.Runner() as runner:
        asyncio.set_event_loop(runner.get_loop())
        yield
    asyncio.set_event_loop(None)


@pytest.fixture
def index(embedding, own_tokenizer):
    texts = [f"Passage {n}: the Danube passes town {n} of the {n} towns that lie on it." for n in range(COUNT)]
    nodes = [TextNode(id_=f"n{n}", text=text, metadata={"page": n}) for n, text in enumerate(texts)]
    return VectorStoreIndex(nodes, embed_model=embedding)


@pytest.fixture
def settings(llm, post):
    return {"llm": llm, "node_postprocessors": [post], "similarity_top_k": COUNT}


def keys_of(nodes):
    return {node.metadata["gmsa_key"] for node in nodes}


def check(prompts, nodes, calls=None):
    """Each memory was read, and one that a response mode shows once was read once."""
    read = [key for keys in prompts for key in keys]
    assert set(read) == keys_of(nodes)
    assert len(nodes) == len(read) == COUNT
    assert calls is None or len([keys for keys in prompts if keys]) == calls


@pytest.mark.parametrize("mode", MODES)
def test_every_handle_is_read_in_each_response_mode(index, settings, mode, prompts, post):
    engine = index.as_query_engine(response_mode=mode, **settings)
    response = engine.query(QUESTION)
    check(prompts, response.source_nodes, COUNT if mode in ("refine", "accumulate") else 1)
    assert [node.id_ for node in post.restore_nodes(response.source_nodes)] == [n.id_ for n in response.source_nodes]
    assert all(node.text.startswith("Passage") for node in post.restore_nodes(response.source_nodes))
    prompts.clear()
    answer = asyncio.run(engine.aquery(QUESTION))
    check(prompts, answer.source_nodes)
    assert str(answer) == str(response)


@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize", "simple_summarize"])
def test_streaming(index, settings, mode, prompts):
    plain = str(index.as_query_engine(response_mode=mode, **settings).query(QUESTION))
    prompts.clear()
    response = index.as_query_engine(response_mode=mode, streaming=True, **settings).query(QUESTION)
    assert "".join(response.response_gen) == plain
    check(prompts, response.source_nodes)


@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize", "simple_summarize"])
async def test_async_streaming(index, settings, mode, prompts):
    plain = str(await index.as_query_engine(response_mode=mode, **settings).aquery(QUESTION))
    prompts.clear()
    response = await index.as_query_engine(response_mode=mode, streaming=True, **settings).aquery(QUESTION)
    assert "".join([piece async for piece in response.async_response_gen()]) == plain
    check(prompts, response.source_nodes)


@pytest.mark.parametrize("mode", ["context", "condense_plus_context"])
async def test_chat_engines(index, settings, mode, prompts):
    engine = index.as_chat_engine(chat_mode=mode, memory=ChatMemoryBuffer.from_defaults(), **settings)
    response = engine.chat(neutralise(QUESTION))
    check(prompts, response.source_nodes)
    prompts.clear()
    streamed = engine.stream_chat("And then?")
    assert "".join(streamed.response_gen)
    check(prompts, streamed.source_nodes)
    prompts.clear()
    answer = await engine.achat("And then?")
    check(prompts, answer.source_nodes)
    prompts.clear()
    later = await engine.astream_chat("And then?")
    assert "".join([piece async for piece in later.async_response_gen()])
    check(prompts, later.source_nodes)
    assert len(engine.chat_history) == 8
    assert not find_handles(" ".join(str(message.content) for message in engine.chat_history))


async def test_the_condense_question_chat_engine(index, settings, prompts):
    """It answers by a query engine, with a question that it makes of the chat so far."""
    engine = index.as_chat_engine(chat_mode="condense_question", memory=ChatMemoryBuffer.from_defaults(), **settings)
    response = engine.chat(neutralise(QUESTION))
    check(prompts, response.source_nodes, 1)
    assert len(prompts) == 1
    prompts.clear()
    streamed = engine.stream_chat("And then?")
    assert "".join(streamed.response_gen)
    check(prompts, streamed.source_nodes, 1)
    assert len(prompts) == 2
    prompts.clear()
    answer = await engine.achat("And then?")
    check(prompts, answer.source_nodes, 1)
    prompts.clear()
    later = await engine.astream_chat("And then?")
    assert "".join([piece async for piece in later.async_response_gen()])
    [answered] = later.sources  # LlamaIndex's source_nodes are empty here
    check(prompts, answered.raw_output.source_nodes, 1)
    assert not find_handles(" ".join(str(message.content) for message in engine.chat_history))


@pytest.mark.parametrize(("how", "error"), [("cut", MalformedHandleError), ("unknown", UnknownMemoryError)])
@pytest.mark.parametrize("mode", MODES)
def test_a_cut_or_unknown_handle_raises_in_each_response_mode(index, settings, mode, how, error, prompts):
    settings["node_postprocessors"].append(Spoil(how=how))
    engine = index.as_query_engine(response_mode=mode, **settings)
    with pytest.raises(error):
        engine.query(QUESTION)
    with pytest.raises(error):
        asyncio.run(engine.aquery(QUESTION))
    assert not any(prompts)


@pytest.mark.parametrize("mode", ["compact", "tree_summarize"])
def test_prompts_are_packed_by_positions(index, settings, mode, prompts, post):
    """What the window of 4096 takes in one prompt is in several where the window is smaller, and no handle is cut."""
    settings["node_postprocessors"] = [post.model_copy(update={"rate": 1})]
    plain = index.as_query_engine(response_mode=mode, **settings).query(QUESTION)
    soft = sum(node.metadata["gmsa_num_soft_tokens"] for node in plain.source_nodes)
    assert len(prompts) == 1
    prompts.clear()
    helper = PromptHelper(context_window=soft // 2 + 700, num_output=2, chunk_overlap_ratio=0)
    synthesizer = get_response_synthesizer(llm=settings["llm"], response_mode=mode, prompt_helper=helper)
    response = index.as_query_engine(response_synthesizer=synthesizer, **settings).query(QUESTION)
    check(prompts, response.source_nodes)
    assert len([keys for keys in prompts if keys]) > 1
