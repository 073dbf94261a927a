"""The chain of the README over real vectors: sync, stream, async and batch."""

import asyncio
import json
import os
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnablePassthrough

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
QUESTIONS = ["By what name is the Mekong known inside China?", "Into which sea does the Danube empty?"]

records = [json.loads(line) for line in LINES]
documents = [Document(r["text"], id=r["id"], metadata={"title": r["title"]}) for r in records]
vectors = GMSAVectorStore.from_documents(documents, SentenceTransformerEmbeddings("minilm"))
retriever = vectors.as_retriever(search_kwargs={"k": 2})

chain = (
    {
        "context": retriever | GMSAContextCompressor(model=MODEL, rate=8) | format_docs,
        "question": RunnablePassthrough() | neutralise,
    }
    | gmsa_prompt
    | ChatGMSA(model=MODEL, max_tokens=32)
    | StrOutputParser()
)

print("invoke: ", repr(chain.invoke(QUESTIONS[0])))
print("stream: ", " + ".join(repr(piece) for piece in chain.stream(QUESTIONS[0])))
print("ainvoke:", repr(asyncio.run(chain.ainvoke(QUESTIONS[0]))))
print("batch:  ", chain.batch(QUESTIONS))
