"""LangChain components for gmsa-rag: compress retrieved documents, and have a chat model read their memories.

Importing this package loads neither torch nor LangChain; a name brings in what it needs when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gmsa_rag.memory.cache import GMSAMemoryCache
    from gmsa_rag.memory.handles import neutralise
    from langchain_gmsa.chat_models import ChatGMSA
    from langchain_gmsa.compressor import GMSAContextCompressor
    from langchain_gmsa.embeddings import SentenceTransformerEmbeddings
    from langchain_gmsa.prompts import format_docs, gmsa_prompt
    from langchain_gmsa.restoring import GMSARestorer
    from langchain_gmsa.retrievers import GMSARetriever
    from langchain_gmsa.stores import GMSAByteStore
    from langchain_gmsa.vectorstores import GMSAVectorStore

__all__ = [
    "ChatGMSA",
    "GMSAByteStore",
    "GMSAContextCompressor",
    "GMSAMemoryCache",
    "GMSARestorer",
    "GMSARetriever",
    "GMSAVectorStore",
    "SentenceTransformerEmbeddings",
    "format_docs",
    "gmsa_prompt",
    "neutralise",
]

_HOME = {
    "ChatGMSA": "langchain_gmsa.chat_models",
    "GMSAByteStore": "langchain_gmsa.stores",
    "GMSAContextCompressor": "langchain_gmsa.compressor",
    "GMSAMemoryCache": "gmsa_rag.memory.cache",
    "GMSARestorer": "langchain_gmsa.restoring",
    "GMSARetriever": "langchain_gmsa.retrievers",
    "GMSAVectorStore": "langchain_gmsa.vectorstores",
    "SentenceTransformerEmbeddings": "langchain_gmsa.embeddings",
    "format_docs": "langchain_gmsa.prompts",
    "gmsa_prompt": "langchain_gmsa.prompts",
    "neutralise": "gmsa_rag.memory.handles",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
