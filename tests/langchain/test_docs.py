"""docs/langchain.md and the docstrings' examples run as they are, here with a tiny model for the bundled one."""

import doctest
import re
from importlib import import_module
from pathlib import Path

import pytest

from gmsa_rag.inference import loading, sharing
from langchain_gmsa import embeddings as adapter

DOCS = Path(__file__).parents[2] / "docs" / "langchain.md"


class FakeModel:
    def __init__(self, embeddings):
        self.embeddings = embeddings

    def encode_document(self, texts, **settings):
        return self.embeddings.embed_documents(texts)

    def encode_query(self, texts, **settings):
        return self.embeddings.embed_documents(texts)


@pytest.fixture(autouse=True)
def bundled(gmsa, tmp_path, embeddings, monkeypatch):
    gmsa.save_pretrained(tmp_path / "gmsa-mini")
    monkeypatch.setattr(loading, "BUNDLED", tmp_path)
    monkeypatch.setattr(sharing, "_engines", {})
    monkeypatch.setattr(adapter, "load_embedder", lambda *args: FakeModel(embeddings))


def test_the_page_runs_from_top_to_bottom(capsys):
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    namespace = {}
    for block in blocks:
        exec(compile(block, str(DOCS), "exec"), namespace)
    assert len(blocks) > 5
    assert "[[gmsa:" in capsys.readouterr().out


@pytest.mark.parametrize(
    "module",
    [
        "langchain_gmsa.chat_models",
        "langchain_gmsa.compressor",
        "langchain_gmsa.prompts",
        "langchain_gmsa.restoring",
        "langchain_gmsa.retrievers",
        "langchain_gmsa.stores",
        "langchain_gmsa.vectorstores",
        "gmsa_rag.memory.cache",
        "gmsa_rag.memory.items",
    ],
)
def test_the_examples_of_docstrings_run(module):
    results = doctest.testmod(import_module(module))
    assert results.attempted
    assert not results.failed
