"""Memories to fill a store with, and its file behind its back."""

import sqlite3
from contextlib import closing

import torch

from gmsa_rag.memory import Memory, memory_key

FINGERPRINT = "f" * 64


def build(text, rate=8, fingerprint=FINGERPRINT, num_tokens=12, fill=1.0, hidden_size=64):
    """A memory of a text, all of its numbers the same."""
    tensor = torch.full((-(-num_tokens // rate), hidden_size), fill)
    return Memory(tensor, memory_key(fingerprint, rate, text), rate, num_tokens, fingerprint, (0, num_tokens))


def fill(store, *texts):
    """Put the memories of texts into a store in one call, and give them."""
    memories = [build(text) for text in texts]
    store.put_many(memories, texts)
    return memories


def raw(path, *statements):
    """Change the file as nobody should."""
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)
