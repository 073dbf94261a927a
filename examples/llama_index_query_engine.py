"""A LlamaIndex query engine and chat engine over memories: sync, streaming and async."""

import asyncio
import json
import os
from pathlib import Path

from llama_index.core import PromptTemplate, Settings, StorageContext, VectorStoreIndex, get_response_synthesizer
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.schema import TextNode

from llama_index.llms.gmsa import GMSALLM, GMSATokenizer
from llama_index.postprocessor.gmsa import GMSANodePostprocessor, neutralise
from llama_index.vector_stores.gmsa import GMSAVectorStore, SentenceTransformerEmbedding

MODEL = os.environ.get("GMSA_MODEL", "gmsa-mini")
LINES = (Path(__file__).parent / "data" / "passages.jsonl").read_text(encoding="utf-8").splitlines()
QUESTION = "By what name is the Mekong known inside China?"

Settings.llm = GMSALLM(model=MODEL, max_tokens=32)
Settings.tokenizer = GMSATokenizer(MODEL)  # LlamaIndex packs prompts by positions, a handle as its soft tokens
Settings.embed_model = SentenceTransformerEmbedding()

# The words that gmsa-mini was trained on: a title, a passage, and then the question.
PROMPT = PromptTemplate("{context_str}\nQuestion: {query_str}")
records = [json.loads(line) for line in LINES]
nodes = [
    TextNode(id_=r["id"], text=r["text"], metadata={"title": r["title"]}, metadata_template="{value}",
             text_template="[1] {metadata_str}\n{content}")
    for r in records
]  # fmt: skip
storage = StorageContext.from_defaults(vector_store=GMSAVectorStore())
index = VectorStoreIndex(nodes, storage_context=storage)
compress = GMSANodePostprocessor(model=MODEL, rate=4)

synthesizer = get_response_synthesizer(text_qa_template=PROMPT)
engine = index.as_query_engine(
    similarity_top_k=1, node_postprocessors=[compress], response_synthesizer=synthesizer
)  # fmt: skip
response = engine.query(neutralise(QUESTION))
[source] = response.source_nodes
print("query:  ", response)
print("source: ", source.id_, source.metadata["title"], f"score {source.score:.2f},", source.text[:15] + "...")
print("text:   ", compress.restore_nodes([source])[0].text[:60] + "...")
print(
    "tokens: ", source.metadata["gmsa_num_tokens"], "of text in", source.metadata["gmsa_num_soft_tokens"], "positions"
)
print("aquery: ", asyncio.run(engine.aquery(neutralise(QUESTION))))

chat = index.as_chat_engine(
    chat_mode="context",
    similarity_top_k=1,
    node_postprocessors=[compress],
    context_template="{context_str}",
    memory=ChatMemoryBuffer.from_defaults(),
)
print("chat:   ", chat.chat(neutralise(QUESTION)))
print(
    "stream: ",
    " + ".join(repr(piece) for piece in chat.stream_chat("Into which sea does the Danube empty?").response_gen),
)
