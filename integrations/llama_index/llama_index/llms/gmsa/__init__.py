"""LlamaIndex's LLM for gmsa-rag, which reads memories, and a tokenizer that counts their handles as it does.

Importing this package loads neither torch nor LlamaIndex; a name brings in what it needs when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gmsa_rag.memory.handles import neutralise
    from llama_index.llms.gmsa.base import GMSALLM
    from llama_index.llms.gmsa.tokenizer import GMSATokenizer

__all__ = ["GMSALLM", "GMSATokenizer", "neutralise"]

_HOME = {
    "GMSALLM": "llama_index.llms.gmsa.base",
    "GMSATokenizer": "llama_index.llms.gmsa.tokenizer",
    "neutralise": "gmsa_rag.memory.handles",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
