"""SentenceTransformerEmbeddings: loaded at first use, and a plain translation."""

import numpy as np
import pytest
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from gmsa_rag.errors import CheckpointError
from langchain_gmsa import SentenceTransformerEmbeddings, embeddings


class Standard:
    """What both standard suites need to know."""

    embeddings_class = SentenceTransformerEmbeddings
    embedding_model_params = {"device": "cpu"}  # noqa: RUF012 - the suites' own interface


class TestUnit(Standard, EmbeddingsUnitTests):
    pass


@pytest.mark.slow
class TestIntegration(Standard, EmbeddingsIntegrationTests):
    pass


class FakeModel:
    def encode_document(self, texts, **settings):
        return np.array([[len(text), settings["batch_size"]] for text in texts], np.float32)

    def encode_query(self, texts, **settings):
        return np.array([[-len(text), 1] for text in texts], np.float32)


@pytest.fixture
def loads(monkeypatch):
    loads = []
    monkeypatch.setattr(embeddings, "load_embedder", lambda *args: loads.append(args) or FakeModel())
    return loads


async def test_documents_and_questions_are_embedded_as_such(loads):
    model = SentenceTransformerEmbeddings("some-model", device="cpu", batch_size=7)
    assert not loads
    assert model.embed_documents([]) == []
    assert not loads
    assert model.embed_documents(["one", "three"]) == [[3.0, 7.0], [5.0, 7.0]]
    assert model.embed_query("two") == [-3.0, 1.0]
    assert await model.aembed_query("two") == [-3.0, 1.0]
    assert all(type(number) is float for number in model.embed_query("two"))
    assert loads == [("some-model", "cpu")]


def test_no_such_model_is_a_typed_error(tmp_path):
    with pytest.raises(CheckpointError):
        SentenceTransformerEmbeddings(str(tmp_path), device="cpu").embed_query("two")


@pytest.mark.slow
def test_minilm_finds_what_means_the_same():
    model = SentenceTransformerEmbeddings(device="cpu")
    query = np.array(model.embed_query("a river in Europe"))
    near, far = map(np.array, model.embed_documents(["The Danube flows through Vienna.", "He paid by credit card."]))
    assert query @ near > query @ far
