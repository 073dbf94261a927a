"""LangChain's ContextualCompressionRetriever, with soft tokens in the place of an LLM that shortens each passage."""

import json
import os
from pathlib import Path

from langchain_classic.retrievers import ContextualCompressionRetriever
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
QUESTION = "In which year did Lise Meitner explain nuclear fission?"

records = [json.loads(line) for line in LINES]
documents = [Document(r["text"], id=r["id"], metadata={"title": r["title"]}) for r in records]
vectors = GMSAVectorStore.from_documents(documents, SentenceTransformerEmbeddings("minilm"))

compressor = GMSAContextCompressor(model=MODEL, rate=8)
retriever = ContextualCompressionRetriever(
    base_compressor=compressor, base_retriever=vectors.as_retriever(search_kwargs={"k": 2})
)

found = retriever.invoke(QUESTION)
for document in found:
    tokens, soft = document.metadata["gmsa_num_tokens"], document.metadata["gmsa_num_soft_tokens"]
    print(f"{document.metadata['title']}: {tokens} tokens as {soft} soft tokens, {document.page_content}")

values = {"context": format_docs(found), "question": neutralise(QUESTION)}
print(QUESTION, "->", repr((gmsa_prompt | ChatGMSA(model=MODEL, max_tokens=32)).invoke(values).text))
print("Original text:", compressor.restore_documents(found)[0].page_content[:60], "...")
