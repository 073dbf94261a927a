"""What langchain_gmsa exports, and what importing it loads."""

import os
import subprocess
import sys

import pytest

import langchain_gmsa

NAMES = [
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


def test_the_names_are_these():
    assert langchain_gmsa.__all__ == NAMES == sorted(NAMES)
    assert set(NAMES) <= set(dir(langchain_gmsa))
    for name in NAMES:
        assert getattr(langchain_gmsa, name) is not None
    with pytest.raises(AttributeError, match="GMSAOther"):
        langchain_gmsa.GMSAOther  # noqa: B018


def test_gmsa_rag_exports_them_too():
    import gmsa_rag

    for name in (name for name in NAMES if "GMSA" in name and name != "GMSARestorer"):
        assert getattr(gmsa_rag, name) is getattr(langchain_gmsa, name)


def test_importing_it_loads_neither_torch_nor_langchain():
    script = """
import sys, langchain_gmsa
from langchain_gmsa import neutralise
print(sorted({"torch", "transformers", "langchain_core", "pydantic", "faiss", "numpy"} & set(sys.modules)))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
