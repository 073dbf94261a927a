"""Migrating from LLMLinguaCompressor: what the lines become. Each `was` comment is the line before."""

import json
import os
from pathlib import Path

# was: from langchain.retrievers import ContextualCompressionRetriever
# was: from langchain_community.document_compressors import LLMLinguaCompressor
# was: from langchain_community.vectorstores import FAISS
# was: from langchain_openai import ChatOpenAI
from langchain_core.documents import Document

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
QUESTION = "Who was the first person to stand on the summit of Denali?"

records = [json.loads(line) for line in LINES]
documents = [Document(r["text"], id=r["id"], metadata={"title": r["title"]}) for r in records]

# was: vectors = FAISS.from_documents(documents, embeddings)
vectors = GMSAVectorStore.from_documents(documents, SentenceTransformerEmbeddings("minilm"))
retriever = vectors.as_retriever(search_kwargs={"k": 2})

# was: compressor = LLMLinguaCompressor(model_name="openai-community/gpt2", device_map="cpu", target_token=300)
# A rate in the place of a budget: every passage shrinks alike, once, whatever the question.
compressor = GMSAContextCompressor(model=MODEL, rate=8)

# was: compressing = ContextualCompressionRetriever(base_compressor=compressor, base_retriever=retriever)
# The old line works as well; the pipe needs no langchain-classic.
compressing = retriever | compressor

# was: llm = ChatOpenAI()
# Soft tokens are read by the decoder that was trained for them.
llm = ChatGMSA(model=MODEL, max_tokens=32)

found = compressing.invoke(QUESTION)
assert [document.id for document in found] == [document.id for document in retriever.invoke(QUESTION)]
assert compressor.restore_documents(found) == retriever.invoke(QUESTION)
print("kept: ids, metadata, and the text, which the store gives back")

# was: answer = llm.invoke(f"{context}\n\n{QUESTION}")
answer = llm.invoke(gmsa_prompt.invoke({"context": format_docs(found), "question": neutralise(QUESTION)}))
print(f"{QUESTION} -> {answer.text!r}, {answer.response_metadata['gmsa']}")
