import pytest

from gmsa_rag.benchmark.shapes import SHAPES, Shape


@pytest.fixture
def tiny_shape(monkeypatch):
    """A shape of a few thousand weights, under the name "tiny"."""
    shape = Shape(
        {
            "family": "qwen3", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-6,
            "max_position_embeddings": 128, "tie_word_embeddings": True,
        },
        {"rope_type": "default", "rope_theta": 10_000.0},
        encoder_layers=2,
        window=32,
    )  # fmt: skip
    monkeypatch.setitem(SHAPES, "tiny", shape)
    return shape
