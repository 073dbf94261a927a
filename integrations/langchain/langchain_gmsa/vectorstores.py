"""GMSAVectorStore: texts and vectors in the memories' own database, searched through FAISS."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from langchain_core.vectorstores.utils import maximal_marginal_relevance

from gmsa_rag.memory.database import IN_MEMORY
from gmsa_rag.memory.index import Entry, VectorIndex

Filter = Mapping[str, Any] | Callable[[Document], bool]


class GMSAVectorStore(VectorStore):
    """A vector store over VectorIndex: exact cosine search, rows that survive, no pickle.

    Give it documents as they are, never compressed ones: a handle means nothing to an embedding model. Compress what
    it finds. A filter is either a mapping, whose every item a document's metadata must have (a list means any of its
    values), or a function of the document.

    Args:
        embedding: Embeds documents and questions.
        path: The database, made if missing; may be that of a MemoryStore. ":memory:" keeps it in memory.
        namespace: Of the database; made if missing.
    Raises:
        DependencyError: If faiss is missing, or installed twice.
        StoreError: If the file cannot be opened.
    Example:
        >>> from langchain_core.embeddings import DeterministicFakeEmbedding
        >>> vectors = GMSAVectorStore.from_texts(["Rome", "Oslo"], DeterministicFakeEmbedding(size=8))
        >>> [document.page_content for document in vectors.similarity_search("Oslo", k=1)]
        ['Oslo']
    """

    def __init__(self, embedding: Embeddings, path: str | Path = IN_MEMORY, *, namespace: str = "default") -> None:
        self._embedding = embedding
        self.index = VectorIndex(path, namespace)

    @property
    def embeddings(self) -> Embeddings:
        """What embeds documents and questions."""
        return self._embedding

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        path: str | Path = IN_MEMORY,
        namespace: str = "default",
        **kwargs: Any,
    ) -> GMSAVectorStore:
        """Make a store and add texts to it.

        Args:
            texts: Texts.
            embedding: Embeds them, and questions later.
            metadatas: One JSON object for each text.
            ids: One name for each text.
            path: The database.
            namespace: Of the database.
            **kwargs: Nothing; LangChain's signature.
        Returns:
            The store.
        """
        store = cls(embedding, path, namespace=namespace)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Embed and add texts in one transaction; one whose id is there already replaces it.

        Args:
            texts: Texts.
            metadatas: One JSON object for each text.
            ids: One name for each text; None makes a random one.
            **kwargs: Nothing; LangChain's signature.
        Returns:
            The ids.
        Raises:
            InputError: If counts differ, or a metadata is not JSON.
            ShapeError: If the vectors have another width than those in the store.
        """
        texts = list(texts)
        names = None if ids is None else [uuid.uuid4().hex if name is None else name for name in ids]
        vectors = self._embedding.embed_documents(texts) if texts else []
        return self.index.add(texts, vectors, metadatas, names)

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Delete documents; their bytes leave the file.

        Args:
            ids: Their ids; those that are not there are passed over. None deletes all.
            **kwargs: Nothing; LangChain's signature.
        Returns:
            True.
        """
        self.index.delete([entry.id for entry in self.index.entries()] if ids is None else ids)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Read documents by id; those that are not there are passed over."""
        return [_document(entry) for entry in self.index.get(ids) if entry is not None]

    def similarity_search(self, query: str, k: int = 4, filter: Filter | None = None, **kwargs: Any) -> list[Document]:
        """Find the documents nearest to a question.

        Args:
            query: The question.
            k: Documents wanted, >= 1.
            filter: A mapping of metadata or a function of the document; see the class.
            **kwargs: Not used; LangChain passes on other searches' settings.
        Returns:
            Documents, best first.
        """
        return [document for document, _ in self.similarity_search_with_score(query, k, filter)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Find documents as similarity_search() does, each with its cosine similarity, in [-1, 1], higher is closer."""
        return self.similarity_search_with_score_by_vector(self._embedding.embed_query(query), k, filter)

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[Document]:
        """Find documents as similarity_search() does, by the question's vector."""
        return [document for document, _ in self.similarity_search_with_score_by_vector(embedding, k, filter)]

    def similarity_search_with_score_by_vector(
        self, embedding: list[float], k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Find documents as similarity_search_with_score() does, by the question's vector."""
        hits = self.index.search(embedding, k, _predicate(filter))
        return [(_document(hit.entry), hit.score) for hit in hits]

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Find documents that are near a question and unlike each other.

        Args:
            query: The question.
            k: Documents wanted, >= 1.
            fetch_k: Nearest documents to choose from, >= 1.
            lambda_mult: 1 for the nearest, 0 for the most diverse.
            filter: A mapping of metadata or a function of the document; see the class.
            **kwargs: Not used.
        Returns:
            Documents in the order they were chosen.
        """
        vector = self._embedding.embed_query(query)
        return self.max_marginal_relevance_search_by_vector(vector, k, fetch_k, lambda_mult, filter)

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Find documents as max_marginal_relevance_search() does, by the question's vector."""
        entries = [hit.entry for hit in self.index.search(embedding, fetch_k, _predicate(filter))]
        if not entries:
            return []
        vectors = [entry.vector.tolist() for entry in entries]
        chosen = maximal_marginal_relevance(np.asarray(embedding, np.float32), vectors, lambda_mult, k)
        return [_document(entries[index]) for index in chosen]

    def close(self) -> None:
        """Close the database; closing again does nothing."""
        self.index.close()

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return _relevance


def _document(entry: Entry) -> Document:
    return Document(id=entry.id, page_content=entry.text, metadata=entry.metadata)


def _predicate(wanted: Filter | None) -> Callable[[Entry], bool] | None:
    if wanted is None:
        return None
    if callable(wanted):
        return lambda entry: wanted(_document(entry))
    return lambda entry: all(_matches(entry.metadata, name, value) for name, value in wanted.items())


def _matches(metadata: Mapping[str, Any], name: str, wanted: object) -> bool:
    if name not in metadata:
        return False
    value = metadata[name]
    return bool(value == wanted) or (isinstance(wanted, list) and value in wanted)


def _relevance(score: float) -> float:
    """A cosine similarity as a number in [0, 1]."""
    return (score + 1) / 2
