"""From LongLLMLinguaPostprocessor to GMSANodePostprocessor, line by line, and what stays that used to be lost.

Before, with llama-index-postprocessor-longllmlingua:

    from llama_index.postprocessor.longllmlingua import LongLLMLinguaPostprocessor

    compress = LongLLMLinguaPostprocessor(          # a 7B model, on CUDA unless told otherwise, at construction
        instruction_str="Given the context, please answer the final question",
        target_token=300,                           # for all nodes together, anew for each question
    )
    engine = index.as_query_engine(llm=OpenAI(), node_postprocessors=[compress])

Now, below: each changed line says why.
"""

import json
import os
from pathlib import Path

from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode

from llama_index.llms.gmsa import GMSALLM
from llama_index.postprocessor.gmsa import GMSANodePostprocessor  # was: longllmlingua.LongLLMLinguaPostprocessor
from llama_index.vector_stores.gmsa import SentenceTransformerEmbedding

MODEL = os.environ.get("GMSA_MODEL", "gmsa-mini")
LINES = (Path(__file__).parent / "data" / "passages.jsonl").read_text(encoding="utf-8").splitlines()
QUESTION = "Which nephew of Lise Meitner helped her explain nuclear fission?"

records = [json.loads(line) for line in LINES]
nodes = [TextNode(id_=r["id"], text=r["text"], metadata={"title": r["title"]}) for r in records]
index = VectorStoreIndex(nodes, embed_model=SentenceTransformerEmbedding())

compress = GMSANodePostprocessor(
    model=MODEL,  # was: model_name=, device_map=; loaded at first use, on a GPU if there is one
    rate=8,  # was: target_token=; tokens per soft token, the same for each passage whatever the question, so cacheable
)  # was: instruction_str=; gone: a memory serves every question
llm = GMSALLM(model=MODEL, max_tokens=32)  # was: OpenAI(); soft tokens are read by the decoder trained for them

retrieved = index.as_retriever(similarity_top_k=2).retrieve(QUESTION)
compressed = compress.postprocess_nodes(retrieved, query_str=QUESTION)

for before, after in zip(retrieved, compressed, strict=True):  # was: one new node, ids and scores lost, metadata mixed
    assert (after.id_, after.score) == (before.id_, before.score)
    assert after.metadata.items() >= before.metadata.items()
    numbers = after.metadata["gmsa_num_tokens"], after.metadata["gmsa_num_soft_tokens"]
    print(f"{after.id_} {after.score:.2f}: {numbers[0]} tokens -> {numbers[1]}")
restored = compress.restore_nodes(compressed)
print("restored:", [after.text for after in restored] == [before.text for before in retrieved])

engine = index.as_query_engine(llm=llm, similarity_top_k=2, node_postprocessors=[compress])  # as it was
print("answer:  ", engine.query(QUESTION))
