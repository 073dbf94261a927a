"""The FAISS side of the vector index: exact cosine search over rows that live elsewhere."""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from importlib.metadata import distributions
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmsa_rag.errors import DependencyError, InputError, ShapeError

Floats = NDArray[np.float32]
_FAISS = re.compile(r"faiss(-(cpu|gpu|cuda)(-[a-z0-9-]+)?)?")


def faiss_distributions() -> list[str]:
    """List the installed distributions that bring the `faiss` module; more than one overwrite each other's files.

    Returns:
        Their normalised names, sorted, e.g. ["faiss-cpu"].
    """
    names = (str(distribution.metadata["Name"]) for distribution in distributions())
    return sorted({name for raw in names if _FAISS.fullmatch(name := re.sub(r"[-_.]+", "-", raw).lower())})


@cache
def load_faiss() -> Any:
    """Import faiss.

    Returns:
        The module.
    Raises:
        DependencyError: If it is missing, or installed by more than one distribution.
    """
    installed = faiss_distributions()
    if len(installed) > 1:
        raise DependencyError(
            "faiss",
            expected="one distribution of it",
            got=" and ".join(installed) + ", which overwrite each other's files",
            remedy=f'Run `pip uninstall {" ".join(installed)}`, then `pip install "gmsa-rag[cpu]"`.',
        )
    try:
        return import_module("faiss")
    except ImportError as error:
        remedy = 'Run `pip install "gmsa-rag[cpu]"`.'
        raise DependencyError("faiss", expected="it installed", got=str(error), remedy=remedy) from error


class FlatIndex:
    """Exact cosine search: IndexIDMap2 over IndexFlatIP on vectors of length 1.

    Args:
        dimension: Width of every vector, >= 1.
    Raises:
        DependencyError: If faiss is missing, or installed twice.
    """

    def __init__(self, dimension: int) -> None:
        faiss = load_faiss()
        self.dimension = dimension
        self._index = faiss.IndexIDMap2(faiss.IndexFlatIP(dimension))
        self._positions: set[int] = set()

    def put(self, vectors: dict[int, Floats]) -> None:
        """Add vectors by position, replacing those that are there."""
        self.remove(vectors)
        if vectors:
            positions = np.fromiter(vectors, dtype=np.int64, count=len(vectors))
            self._index.add_with_ids(unit(np.stack(list(vectors.values()))).astype(np.float32), positions)
            self._positions.update(vectors)

    def remove(self, positions: Any) -> None:
        """Take out the vectors of these positions; those that are not there are passed over."""
        present = sorted(self._positions.intersection(positions))
        if present:
            self._index.remove_ids(np.array(present, dtype=np.int64))
            self._positions.difference_update(present)

    def nearest(self, query: Floats, count: int) -> tuple[list[int], float]:
        """The positions of the nearest vectors, and the lowest score among them."""
        scores, positions = self._index.search(unit(query[None]).astype(np.float32), count)
        return [int(position) for position in positions[0]], float(scores[0, -1])

    def __len__(self) -> int:
        return len(self._positions)


def unit(vectors: Floats) -> NDArray[np.float64]:
    """The same directions with length 1, computed in float64 so that no float32 vector over- or underflows."""
    wide = vectors.astype(np.float64)
    scaled = wide / np.abs(wide).max(axis=-1, keepdims=True)
    normalised: NDArray[np.float64] = scaled / np.sqrt((scaled * scaled).sum(axis=-1, keepdims=True))
    return normalised


def check_vectors(vectors: object, dimension: int | None) -> Floats:
    """Turn vectors into one float32 array.

    Args:
        vectors: (count, dimension), anything numpy can read.
        dimension: The width they must have; None takes any.
    Returns:
        The array, contiguous.
    Raises:
        ShapeError: If they are ragged, not 2-D, or of another width.
        InputError: If a vector is not finite as float32, or is zero and so has no direction.
    """
    try:
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(np.asarray(vectors), dtype=np.float32)
    except (ValueError, TypeError) as error:
        got = str(error)[:200]
        raise ShapeError("vectors", expected="rows of numbers", got=got, remedy="Give all the same width.") from error
    if array.ndim != 2 or array.shape[1] < 1 or array.shape[1] != (dimension or array.shape[1]):
        raise ShapeError(
            "vectors",
            expected=f"(count, {dimension or 'dimension'})",
            got=str(array.shape),
            remedy="Embed documents and questions with the same model as the index.",
        )
    if not np.isfinite(array).all():
        raise InputError("vectors", expected="finite values", got="NaN or infinity", remedy="Check the embeddings.")
    if not array.any(axis=1).all():
        raise InputError("vectors", expected="a direction", got="a zero vector", remedy="Leave empty texts out.")
    return array


def cosine(vector: Floats, query: Floats) -> float:
    """Cosine of the angle between two vectors, -1 to 1, higher is closer."""
    # Summed row by row in float64, so that equal vectors score equally wherever they stand.
    score = float((unit(vector) * unit(query)).sum())
    return max(-1.0, min(1.0, round(score, 12)))
