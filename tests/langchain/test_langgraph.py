"""LangGraph: compressed documents live through checkpoints, and a graph retrieves, compresses and answers."""

import json
import sqlite3
from contextlib import closing, nullcontext
from typing import Annotated, TypedDict

import pytest
from langchain_core.documents import Document
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.tools import create_retriever_tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import ToolNode

from gmsa_rag.errors import HandleNotAllowedError, MalformedHandleError, UnknownMemoryError
from gmsa_rag.memory import find_handles
from langchain_gmsa import ChatGMSA, GMSAContextCompressor, GMSARetriever, format_docs, gmsa_prompt, neutralise

QUESTION = "Where does the Danube begin?"
THREAD = {"configurable": {"thread_id": "1"}}


class State(TypedDict, total=False):
    question: str
    documents: list[Document]
    answer: str


def build(vectors, compressor, chat, checkpointer=None, **settings):
    """A graph with one node for each step."""

    def retrieve(state: State) -> State:
        return {"documents": vectors.similarity_search(state["question"], k=2)}

    def compress(state: State) -> State:
        return {"documents": compressor.invoke(state["documents"])}

    def answer(state: State) -> State:
        values = {"context": format_docs(state["documents"]), "question": neutralise(state["question"])}
        return {"answer": (gmsa_prompt | chat).invoke(values).text}

    graph = StateGraph(State)
    steps = [("retrieve", retrieve), ("compress", compress), ("answer", answer)]
    for name, step in steps:
        graph.add_node(name, step)
    for (before, _), (after, _) in zip([(START, None), *steps], [*steps, (END, None)], strict=True):
        graph.add_edge(before, after)
    return graph.compile(checkpointer=checkpointer, **settings)


@pytest.fixture
def expected(vectors, compressor, chat):
    documents = compressor.invoke(vectors.similarity_search(QUESTION, k=2))
    return documents, chat.invoke(gmsa_prompt.invoke({"context": format_docs(documents), "question": QUESTION})).text


async def test_it_retrieves_compresses_and_answers(vectors, compressor, chat, expected):
    graph = build(vectors, compressor, chat)
    state = {"question": QUESTION, "documents": expected[0], "answer": expected[1]}
    assert graph.invoke({"question": QUESTION}) == state
    assert await graph.ainvoke({"question": QUESTION}) == state
    steps = [next(iter(step)) for step in graph.stream({"question": QUESTION}, stream_mode="updates")]
    assert steps == ["retrieve", "compress", "answer"]
    pieces = [chunk.text for chunk, _ in graph.stream({"question": QUESTION}, stream_mode="messages")]
    assert "".join(pieces) == expected[1]


def resume(vectors, compressor, chat, open_saver, expected):
    """Stop after compression, and go on in another graph over what open_saver() gives then."""
    with open_saver() as saver:
        build(vectors, compressor, chat, saver, interrupt_before=["answer"]).invoke({"question": QUESTION}, THREAD)
    with open_saver() as saver:
        graph = build(vectors, compressor, ChatGMSA(gmsa=chat.gmsa, store=chat.store, max_tokens=8), saver)
        state = graph.get_state(THREAD)
        assert state.next == ("answer",)
        assert state.values["documents"] == expected[0]
        assert graph.invoke(None, THREAD)["answer"] == expected[1]


def test_a_state_in_memory_resumes_in_another_graph(vectors, compressor, chat, expected):
    saver = InMemorySaver()
    resume(vectors, compressor, chat, lambda: nullcontext(saver), expected)


def test_a_state_in_sqlite_resumes_in_another_graph(vectors, compressor, chat, expected, tmp_path):
    path = str(tmp_path / "checkpoints.db")
    resume(vectors, compressor, chat, lambda: SqliteSaver.from_conn_string(path), expected)
    with closing(sqlite3.connect(path)) as connection:
        written = b"".join(row[0] for row in connection.execute("SELECT checkpoint FROM checkpoints"))
        written += b"".join(row[0] for row in connection.execute("SELECT value FROM writes"))
    assert find_handles(written.decode("latin-1"))
    assert len(written) < 30_000  # handles and texts, no soft tokens


async def test_an_asynchronous_saver_resumes_too(vectors, compressor, chat, expected, tmp_path):
    path = str(tmp_path / "checkpoints.db")
    async with AsyncSqliteSaver.from_conn_string(path) as saver:
        stopping = build(vectors, compressor, chat, saver, interrupt_before=["answer"])
        await stopping.ainvoke({"question": QUESTION}, THREAD)
    async with AsyncSqliteSaver.from_conn_string(path) as saver:
        resumed = await build(vectors, compressor, chat, saver).ainvoke(None, THREAD)
    assert resumed["documents"] == expected[0]
    assert resumed["answer"] == expected[1]


def test_a_resumed_state_needs_its_memories(vectors, compressor, chat, store):
    saver = InMemorySaver()
    build(vectors, compressor, chat, saver, interrupt_before=["answer"]).invoke({"question": QUESTION}, THREAD)
    store.forget(vectors.similarity_search(QUESTION, k=1)[0].page_content)
    with pytest.raises(UnknownMemoryError):
        build(vectors, compressor, chat, saver).invoke(None, THREAD)
    lenient = chat.model_copy(update={"on_missing": "drop"})
    assert isinstance(build(vectors, compressor, lenient, saver).invoke(None, THREAD)["answer"], str)


def test_a_handle_that_is_cut_in_a_resumed_state_raises(vectors, compressor, chat):
    saver = InMemorySaver()
    graph = build(vectors, compressor, chat, saver, interrupt_before=["answer"])
    cut = graph.invoke({"question": QUESTION}, THREAD)["documents"]
    cut[0].page_content = cut[0].page_content[:30]
    graph.update_state(THREAD, {"documents": cut})
    with pytest.raises(MalformedHandleError):
        build(vectors, compressor, chat, saver).invoke(None, THREAD)


class Conversation(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


def build_agent(tool, answering):
    """A model that plans calls the tool; ChatGMSA, which plans nothing, answers from what it gave."""
    call = {"name": tool.name, "args": {"query": QUESTION}, "id": "1", "type": "tool_call"}
    planner = GenericFakeChatModel(messages=(AIMessage("", tool_calls=[call]) for _ in range(9)))

    def plan(state: Conversation) -> Conversation:
        return {"messages": [planner.invoke(state["messages"])]}

    def answer(state: Conversation) -> Conversation:
        return {"messages": [answering.invoke(state["messages"])]}

    graph = StateGraph(Conversation)
    graph.add_node("plan", plan)
    graph.add_node("tools", ToolNode([tool]))
    graph.add_node("answer", answer)
    graph.add_edge(START, "plan")
    graph.add_edge("plan", "tools")
    graph.add_edge("tools", "answer")
    graph.add_edge("answer", END)
    return graph.compile()


@pytest.fixture
def retriever(vectors, compressor):
    return GMSARetriever(vectorstore=vectors, compressor=compressor, k=2)


def tool_of(retriever, **settings):
    return create_retriever_tool(retriever, "search", "Finds passages.", **settings)


@pytest.mark.parametrize("response_format", ["content", "content_and_artifact"])
async def test_handles_of_a_retriever_tool_resolve(retriever, chat, expected, response_format):
    tool = tool_of(retriever, response_format=response_format)
    messages = build_agent(tool, chat).invoke({"messages": [HumanMessage(QUESTION)]})["messages"]
    assert [message.type for message in messages] == ["human", "ai", "tool", "ai"]
    handles = [document.page_content for document in expected[0]]
    assert find_handles(messages[2].content) == handles
    total = sum(document.metadata["gmsa_num_tokens"] for document in expected[0])
    assert messages[3].response_metadata["gmsa"]["original_tokens"] == total
    again = await build_agent(tool, chat).ainvoke({"messages": [HumanMessage(QUESTION)]})
    assert again["messages"][3].text == messages[3].text


def test_a_cut_handle_comes_out_of_the_graph(vectors, compressor, chat, retriever):
    class Cutting(GMSAContextCompressor):
        def invoke(self, input, config=None, **kwargs):
            found = super().invoke(input, config, **kwargs)
            return [Document(document.page_content[:-4], metadata=document.metadata) for document in found]

    cutting = Cutting(gmsa=compressor.gmsa, store=compressor.store, rate=4)
    with pytest.raises(MalformedHandleError):
        chat.invoke(cutting.invoke(vectors.similarity_search(QUESTION, k=1))[0].page_content)
    agent = build_agent(tool_of(retriever.model_copy(update={"compressor": cutting})), chat)
    with pytest.raises(MalformedHandleError):
        agent.invoke({"messages": [HumanMessage(QUESTION)]})


async def test_an_unknown_handle_comes_out_of_the_graph(vectors, retriever, chat, gmsa, tmp_path):
    stranger = GMSAContextCompressor(gmsa=gmsa, store=tmp_path / "other.db", rate=4)
    agent = build_agent(tool_of(retriever.model_copy(update={"compressor": stranger})), chat)
    with pytest.raises(UnknownMemoryError):
        agent.invoke({"messages": [HumanMessage(QUESTION)]})
    with pytest.raises(UnknownMemoryError):
        await agent.ainvoke({"messages": [HumanMessage(QUESTION)]})
    with pytest.raises(UnknownMemoryError):
        build(vectors, stranger, chat).invoke({"question": QUESTION})
    with pytest.raises(HandleNotAllowedError):
        build_agent(tool_of(retriever), chat.model_copy(update={"allowed_handles": frozenset()})).invoke(
            {"messages": [HumanMessage(QUESTION)]}
        )


def test_messages_with_handles_survive_json_and_a_restart(retriever, chat, tmp_path):
    content = tool_of(retriever).invoke({"query": QUESTION})
    message = ToolMessage(json.loads(json.dumps(content)), tool_call_id="1")
    path = str(tmp_path / "checkpoints.db")

    def make(saver):
        graph = StateGraph(Conversation)
        graph.add_node("answer", lambda state: {"messages": [chat.invoke(state["messages"])]})
        graph.add_edge(START, "answer")
        return graph.compile(checkpointer=saver)

    with SqliteSaver.from_conn_string(path) as saver:
        first = make(saver).invoke({"messages": [HumanMessage(QUESTION), message]}, THREAD)["messages"]
    with SqliteSaver.from_conn_string(path) as saver:
        messages = make(saver).invoke({"messages": [HumanMessage("And where does it end?")]}, THREAD)["messages"]
    assert messages[:3] == first
    assert messages[4].response_metadata["gmsa"] == first[2].response_metadata["gmsa"]
