"""LlamaIndex components for gmsa-rag that handle nodes: compress what was retrieved, or what is ingested.

Importing this package loads neither torch nor LlamaIndex; a name brings in what it needs when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gmsa_rag.memory.handles import neutralise
    from llama_index.postprocessor.gmsa.base import GMSANodePostprocessor
    from llama_index.postprocessor.gmsa.transform import GMSACompressTransform

__all__ = ["GMSACompressTransform", "GMSANodePostprocessor", "neutralise"]

_HOME = {
    "GMSACompressTransform": "llama_index.postprocessor.gmsa.transform",
    "GMSANodePostprocessor": "llama_index.postprocessor.gmsa.base",
    "neutralise": "gmsa_rag.memory.handles",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
