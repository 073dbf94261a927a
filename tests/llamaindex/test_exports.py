"""What the namespace packages export, what importing them loads, and that they share LlamaIndex's namespace."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "integrations" / "llama_index" / "llama_index"
NAMES = {
    "llms": ["GMSALLM", "GMSATokenizer", "neutralise"],
    "postprocessor": ["GMSACompressTransform", "GMSANodePostprocessor", "neutralise"],
    "vector_stores": ["GMSAVectorStore", "SentenceTransformerEmbedding"],
}


def printed(script):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("kind", NAMES)
def test_the_names_are_these(kind):
    module = import_module(f"llama_index.{kind}.gmsa")
    assert module.__all__ == NAMES[kind] == sorted(NAMES[kind])
    assert set(NAMES[kind]) <= set(dir(module))
    for name in NAMES[kind]:
        assert getattr(module, name).__name__ == name
    with pytest.raises(AttributeError, match="GMSAOther"):
        module.GMSAOther  # noqa: B018


def test_the_namespace_is_llama_indexs():
    """An __init__.py in a folder that LlamaIndex owns too would hide the rest of it."""
    for folder in (ROOT, *(ROOT / kind for kind in NAMES)):
        assert not (folder / "__init__.py").exists()
        assert sorted(path.name for path in folder.iterdir() if not path.name.startswith("__")) == (
            sorted(NAMES) if folder == ROOT else ["gmsa"]
        )


def test_importing_them_loads_nothing():
    script = f"""
import sys
for kind in {list(NAMES)}:
    __import__(f"llama_index.{{kind}}.gmsa")
from llama_index.postprocessor.gmsa import neutralise
print(sorted({{"torch", "transformers", "llama_index.core", "pydantic", "faiss", "numpy"}} & set(sys.modules)))
import llama_index.core, llama_index.core.ingestion, llama_index.core.postprocessor, llama_index.core.query_engine
from llama_index.core.llms import MockLLM
print(sorted({{"torch", "transformers", "langchain_core"}} & set(sys.modules)))
from llama_index.vector_stores.gmsa import GMSAVectorStore
GMSAVectorStore()
print(sorted({{"torch", "transformers", "langchain_core"}} & set(sys.modules)))
"""
    assert printed(script).splitlines() == ["[]", "[]", "[]"]
