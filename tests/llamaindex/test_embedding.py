"""SentenceTransformerEmbedding: LlamaIndex's forms, over a stand-in for the model."""

import asyncio
import pickle

import pytest

from llama_index.vector_stores.gmsa import SentenceTransformerEmbedding
from llama_index.vector_stores.gmsa import embedding as adapter


class Model:
    """Embeds a text as its length, a question as minus that."""

    def __init__(self):
        self.batches = []

    def encode_document(self, texts, *, batch_size, show_progress_bar):
        self.batches.append((list(texts), batch_size))
        return [[len(text), 1] for text in texts]

    def encode_query(self, texts, *, show_progress_bar):
        return [[-len(text), 1] for text in texts]


@pytest.fixture
def loaded(monkeypatch):
    models = []
    monkeypatch.setattr(adapter, "load_embedder", lambda *args: models.append((args, Model())) or models[-1][1])
    return models


def test_documents_and_questions(loaded):
    embedding = SentenceTransformerEmbedding(model_name="a-model", device="cpu", embed_batch_size=2)
    assert loaded == []
    assert embedding.get_text_embedding_batch(["a", "bb", "ccc"]) == [[1.0, 1.0], [2.0, 1.0], [3.0, 1.0]]
    assert embedding.get_text_embedding("a") == [1.0, 1.0]
    assert embedding.get_query_embedding("bb") == [-2.0, 1.0]
    [(arguments, model)] = loaded
    assert arguments == ("a-model", "cpu")
    assert model.batches == [(["a", "bb"], 2), (["ccc"], 2), (["a"], 2)]


async def test_the_async_forms_give_the_same(loaded):
    embedding = SentenceTransformerEmbedding()
    found = await asyncio.gather(
        embedding.aget_text_embedding("a"),
        embedding.aget_query_embedding("bb"),
        embedding.aget_text_embedding_batch(["a", "bb"]),
    )
    assert found == [[1.0, 1.0], [-2.0, 1.0], [[1.0, 1.0], [2.0, 1.0]]]
    assert len(loaded) == 1


def test_it_is_sent_without_its_model(loaded):
    embedding = SentenceTransformerEmbedding(model_name="a-model")
    embedding.get_text_embedding("a")
    for again in (pickle.loads(pickle.dumps(embedding)), SentenceTransformerEmbedding.from_dict(embedding.to_dict())):
        assert again.get_query_embedding("bb") == [-2.0, 1.0]
        assert again.model_name == "a-model"
    assert len(loaded) == 3
    assert embedding.get_query_embedding("bb") == [-2.0, 1.0]
    assert len(loaded) == 3
