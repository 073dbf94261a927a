"""A LangGraph graph that retrieves, compresses and answers; stopped before the answer, it goes on from SQLite."""

import json
import os
import tempfile
from pathlib import Path
from typing import TypedDict

from langchain_core.documents import Document
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import START, StateGraph

from langchain_gmsa import (
    ChatGMSA,
    GMSAContextCompressor,
    GMSAVectorStore,
    SentenceTransformerEmbeddings,
    format_docs,
    gmsa_prompt,
    neutralise,
)

MODEL = os.environ.get("GMSA_MODEL", "gmsa-mini")
LINES = (Path(__file__).parent / "data" / "passages.jsonl").read_text(encoding="utf-8").splitlines()
QUESTION = "By what name is the Mekong known inside China?"
THREAD = {"configurable": {"thread_id": "1"}}

records = [json.loads(line) for line in LINES]
documents = [Document(r["text"], id=r["id"], metadata={"title": r["title"]}) for r in records]
vectors = GMSAVectorStore.from_documents(documents, SentenceTransformerEmbeddings("minilm"))


class State(TypedDict, total=False):
    question: str
    documents: list[Document]
    answer: str


def build(folder: str) -> StateGraph:
    """The graph; compressor and chat model find each other through a file, as in two processes."""
    compressor = GMSAContextCompressor(model=MODEL, rate=8, store=f"{folder}/memories.db")
    chat = ChatGMSA(model=MODEL, max_tokens=32, store=f"{folder}/memories.db")

    def retrieve(state: State) -> State:
        return {"documents": vectors.similarity_search(state["question"], k=2)}

    def compress(state: State) -> State:
        return {"documents": compressor.invoke(state["documents"])}

    def answer(state: State) -> State:
        values = {"context": format_docs(state["documents"]), "question": neutralise(state["question"])}
        return {"answer": (gmsa_prompt | chat).invoke(values).text}

    graph = StateGraph(State)
    graph.add_sequence([retrieve, compress, answer])
    graph.add_edge(START, "retrieve")
    return graph


with tempfile.TemporaryDirectory() as folder:
    with SqliteSaver.from_conn_string(f"{folder}/checkpoints.db") as saver:
        stopped = build(folder).compile(checkpointer=saver, interrupt_before=["answer"])
        state = stopped.invoke({"question": QUESTION}, THREAD)
        print("In the state:", *(document.page_content for document in state["documents"]))
    with SqliteSaver.from_conn_string(f"{folder}/checkpoints.db") as saver:
        resumed = build(folder).compile(checkpointer=saver).invoke(None, THREAD)
        print(f"Resumed: {QUESTION} -> {resumed['answer']!r}")
