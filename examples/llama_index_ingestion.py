"""A LlamaIndex ingestion pipeline with a cache: compress once, when documents come in, and never again."""

import json
import os
import tempfile
from pathlib import Path

from llama_index.core import Document, VectorStoreIndex
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter

from gmsa_rag import MemoryStore
from llama_index.llms.gmsa import GMSALLM, GMSATokenizer
from llama_index.postprocessor.gmsa import GMSACompressTransform, GMSANodePostprocessor
from llama_index.vector_stores.gmsa import GMSAVectorStore, SentenceTransformerEmbedding

MODEL = os.environ.get("GMSA_MODEL", "gmsa-mini")
LINES = (Path(__file__).parent / "data" / "passages.jsonl").read_text(encoding="utf-8").splitlines()[:6]
QUESTION = "Into which sea does the Danube empty?"


def main(folder: str) -> None:
    """Ingest twice into one file of memories and vectors, then ask."""
    path, embedding = f"{folder}/library.db", SentenceTransformerEmbedding()
    records = [json.loads(line) for line in LINES]
    documents = [Document(id_=r["id"], text=r["text"], metadata={"title": r["title"]}) for r in records]
    pipeline = IngestionPipeline(
        transformations=[
            SentenceSplitter(chunk_size=256, chunk_overlap=0, tokenizer=GMSATokenizer(MODEL)),
            GMSACompressTransform(model=MODEL, rate=4, store=path),
            embedding,
        ],
        vector_store=GMSAVectorStore(path=path),
        cache=IngestionCache(),
    )
    for run in ("first", "second"):
        with MemoryStore(path) as store:
            before = len(store)
        nodes = pipeline.run(documents=documents)
        with MemoryStore(path) as store:
            print(f"{run} run: {len(nodes)} nodes, {len(store) - before} memories computed")

    index = VectorStoreIndex.from_vector_store(GMSAVectorStore(path=path), embed_model=embedding)
    engine = index.as_query_engine(
        llm=GMSALLM(model=MODEL, store=path, max_tokens=32),
        similarity_top_k=1,
        node_postprocessors=[GMSANodePostprocessor(model=MODEL, rate=4, store=path)],
    )
    response = engine.query(QUESTION)
    print("answer:", response)
    print("source:", response.source_nodes[0].metadata["title"], response.source_nodes[0].text)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)
