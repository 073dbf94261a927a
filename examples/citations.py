"""Questions over several documents, each answer with the passages that it names."""

import json
import os
from pathlib import Path

from langchain_core.documents import Document

from gmsa_rag import GMSA
from langchain_gmsa import GMSAVectorStore, SentenceTransformerEmbeddings, neutralise

MODEL = os.environ.get("GMSA_MODEL", "gmsa-mini")
DATA = Path(__file__).parent / "data"

records = [json.loads(line) for line in (DATA / "passages.jsonl").read_text(encoding="utf-8").splitlines()]
questions = [json.loads(line) for line in (DATA / "questions.jsonl").read_text(encoding="utf-8").splitlines()[:3]]
documents = [Document(r["text"], id=r["id"], metadata={"title": r["title"]}) for r in records]
vectors = GMSAVectorStore.from_documents(documents, SentenceTransformerEmbeddings("minilm"))
gmsa = GMSA.from_pretrained(MODEL)

for question in questions:
    asked = neutralise(question["question"])
    found = vectors.similarity_search(asked, k=3)
    memories = gmsa.compress([neutralise(document.page_content) for document in found], rate=8)
    answer = gmsa.answer(asked, memories, titles=[document.metadata["title"] for document in found])
    print(f"Question: {asked}\nAnswer:   {answer.text}   (expected: {question['answers'][0]})")
    for number in answer.citations:
        source = found[number - 1]
        print(f"  [{number}] {source.metadata['title']}: {source.page_content[:80]}...")
    if not answer.citations:
        print("  no passage named")
