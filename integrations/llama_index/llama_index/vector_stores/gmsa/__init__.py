"""LlamaIndex's vector store over gmsa-rag's FAISS index, and embeddings that need no network.

Importing this package loads neither torch nor LlamaIndex; a name brings in what it needs when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama_index.vector_stores.gmsa.base import GMSAVectorStore
    from llama_index.vector_stores.gmsa.embedding import SentenceTransformerEmbedding

__all__ = ["GMSAVectorStore", "SentenceTransformerEmbedding"]

_HOME = {
    "GMSAVectorStore": "llama_index.vector_stores.gmsa.base",
    "SentenceTransformerEmbedding": "llama_index.vector_stores.gmsa.embedding",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
