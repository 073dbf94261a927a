"""Compress a passage, store its memory, answer from it, and restore it."""

import os

from gmsa_rag import GMSA, MemoryStore

PASSAGE = (
    "The Mekong rises on the Tibetan Plateau and flows through China, Myanmar, Laos, Thailand, Cambodia and Vietnam. "
    "Within China the river is known as the Lancang."
)

gmsa = GMSA.from_pretrained(os.environ.get("GMSA_MODEL", "gmsa-mini"))
store = MemoryStore(":memory:")  # or a file, which other processes can read

memory = gmsa.compress(PASSAGE, rate=4, store=store)
print(f"{memory.num_tokens} tokens became {memory.num_soft_tokens} soft tokens; stored: {len(store)}")
print("Answer:  ", gmsa.answer("By what name is the Mekong known inside China?", [memory], titles=["Mekong"]).text)
print("Restored:", gmsa.restore(memory))
