"""Soft-token compression for retrieval-augmented generation: GMSA (arXiv 2505.12215).

Importing this package loads neither torch nor a framework; a name brings in what it needs when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gmsa_rag.config import GMSAConfig
    from gmsa_rag.inference.engine import GMSA
    from gmsa_rag.inference.prompt import Answer, Verbatim
    from gmsa_rag.memory.cache import GMSAMemoryCache
    from gmsa_rag.memory.handles import neutralise
    from gmsa_rag.memory.index import VectorIndex
    from gmsa_rag.memory.memory import Memory
    from gmsa_rag.memory.store import MemoryStore, default_store
    from langchain_gmsa import ChatGMSA, GMSAByteStore, GMSAContextCompressor, GMSARetriever, GMSAVectorStore
    from llama_index.llms.gmsa import GMSALLM
    from llama_index.postprocessor.gmsa import GMSACompressTransform, GMSANodePostprocessor

__version__ = "0.1.0"

__all__ = [
    "GMSA",
    "GMSALLM",
    "Answer",
    "ChatGMSA",
    "GMSAByteStore",
    "GMSACompressTransform",
    "GMSAConfig",
    "GMSAContextCompressor",
    "GMSAMemoryCache",
    "GMSANodePostprocessor",
    "GMSARetriever",
    "GMSAVectorStore",
    "Memory",
    "MemoryStore",
    "VectorIndex",
    "Verbatim",
    "default_store",
    "neutralise",
]

_HOME = {
    "GMSA": "gmsa_rag.inference.engine",
    "Answer": "gmsa_rag.inference.prompt",
    "ChatGMSA": "langchain_gmsa",
    "GMSAByteStore": "langchain_gmsa",
    "GMSACompressTransform": "llama_index.postprocessor.gmsa",
    "GMSAConfig": "gmsa_rag.config",
    "GMSAContextCompressor": "langchain_gmsa",
    "GMSALLM": "llama_index.llms.gmsa",
    "GMSAMemoryCache": "gmsa_rag.memory.cache",
    "GMSANodePostprocessor": "llama_index.postprocessor.gmsa",
    "GMSARetriever": "langchain_gmsa",
    "GMSAVectorStore": "langchain_gmsa",
    "Memory": "gmsa_rag.memory.memory",
    "MemoryStore": "gmsa_rag.memory.store",
    "VectorIndex": "gmsa_rag.memory.index",
    "Verbatim": "gmsa_rag.inference.prompt",
    "default_store": "gmsa_rag.memory.store",
    "neutralise": "gmsa_rag.memory.handles",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
