"""The docstrings' examples run as they are, here with a tiny model for the bundled one."""

import doctest
from importlib import import_module

import pytest

from gmsa_rag.inference import loading, sharing
from llama_index.vector_stores.gmsa import embedding as adapter


class Model:
    def encode_query(self, texts, **settings):
        return [[1.0] * 384 for _ in texts]


@pytest.fixture(autouse=True)
def bundled(gmsa, tmp_path, monkeypatch):
    gmsa.save_pretrained(tmp_path / "gmsa-mini")
    monkeypatch.setattr(loading, "BUNDLED", tmp_path)
    monkeypatch.setattr(sharing, "_engines", {})
    monkeypatch.setattr(adapter, "load_embedder", lambda *args: Model())


@pytest.mark.parametrize(
    "module",
    [
        "llms.gmsa.base",
        "llms.gmsa.tokenizer",
        "postprocessor.gmsa.base",
        "postprocessor.gmsa.transform",
        "vector_stores.gmsa.base",
        "vector_stores.gmsa.embedding",
    ],
)
def test_the_examples_of_docstrings_run(module):
    results = doctest.testmod(import_module(f"llama_index.{module}"))
    assert results.attempted
    assert not results.failed
