"""Retrieval as a plain matrix product: the passages whose vectors are closest to a question's."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gmsa_rag.memory.embedding import Embedder

QUERIES_AT_ONCE = 1024


def retrieve(texts: Sequence[str], queries: Sequence[str], k: int, embedder: Embedder) -> list[list[int]]:
    """Indices of the k texts closest to each query by cosine similarity, closest first; of equals the earlier.

    Args:
        texts: At least k.
        queries: At least one.
        k: Texts a query, >= 1.
        embedder: What turns both into vectors.
    """
    vectors = _unit(embedder.encode_document(list(texts), show_progress_bar=False))
    asked = _unit(embedder.encode_query(list(queries), show_progress_bar=False))
    found: list[list[int]] = []
    for start in range(0, len(asked), QUERIES_AT_ONCE):
        scores = asked[start : start + QUERIES_AT_ONCE] @ vectors.T
        found += np.argsort(-scores, axis=1, kind="stable")[:, :k].tolist()
    return found


def _unit(vectors: Any) -> np.ndarray:
    """Vectors of length 1, (count, dimension), float32; one of length 0 stays 0."""
    array = np.asarray(vectors, dtype=np.float32)
    unit: np.ndarray = array / np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-12)
    return unit
