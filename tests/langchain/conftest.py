"""A deterministic embedding, documents, and components over the tiny random model."""

import re
import warnings
import zlib

import pytest
from langchain_core._api import LangChainBetaWarning
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.load import load

from gmsa_rag.memory import MemoryStore
from langchain_gmsa import ChatGMSA, GMSAContextCompressor, GMSAVectorStore

DOCUMENTS = [
    Document("The Danube begins in the Black Forest of Germany.", id="d", metadata={"title": "Danube", "page": 1}),
    Document("Lise Meitner explained nuclear fission in 1939.", id="m", metadata={"title": "Lise Meitner", "page": 2}),
    Document("Vienna and Budapest stand on its banks.", id="v", metadata={"page": 3}),
]


class HashingEmbeddings(Embeddings):
    """Counts words in 64 hashed buckets; the same in every process."""

    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text):
        vector = [0.01] * 64
        for word in re.findall(r"\w+", text.lower()):
            vector[zlib.crc32(word.encode()) % 64] += 1.0
        return vector


@pytest.fixture
def embeddings():
    return HashingEmbeddings()


@pytest.fixture
def documents():
    return [document.model_copy(deep=True) for document in DOCUMENTS]


@pytest.fixture
def store():
    with MemoryStore(":memory:") as store:
        yield store
        store.check()


@pytest.fixture
def compressor(gmsa, store):
    return GMSAContextCompressor(gmsa=gmsa, store=store, rate=4)


@pytest.fixture
def chat(gmsa, store):
    return ChatGMSA(gmsa=gmsa, store=store, max_tokens=8)


@pytest.fixture
def checkpoint(gmsa, tmp_path):
    """A directory of the tiny model."""
    gmsa.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def vectors(embeddings, documents):
    vectors = GMSAVectorStore.from_documents(documents, embeddings)
    yield vectors
    vectors.close()


@pytest.fixture
def load_again():
    """LangChain's load(), which says once per process that it is in beta."""

    def load_quietly(dumped, allowed_objects="core", **settings):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LangChainBetaWarning)
            return load(dumped, allowed_objects=allowed_objects, **settings)

    return load_quietly


@pytest.fixture
def count_calls(monkeypatch):
    """Counts the calls of a method from now on."""

    def count(owner, name):
        calls, method = [], getattr(owner, name)

        def counted(*args, **kwargs):
            calls.append(args)
            return method(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)
        return calls

    return count
