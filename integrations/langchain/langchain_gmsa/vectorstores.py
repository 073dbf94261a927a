"""GMSAVectorStore: texts and vectors in the memories' own database, searched through FAISS."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore, VectorStoreRetriever
from langchain_core.vectorstores.utils import maximal_marginal_relevance

from gmsa_rag.checks import check_several
from gmsa_rag.errors import GMSAError, StoreError
from gmsa_rag.memory.database import IN_MEMORY
from gmsa_rag.memory.handles import neutralise
from gmsa_rag.memory.index import Entry, VectorIndex
from langchain_gmsa.arguments import check_original, check_settings
from langchain_gmsa.filters import Filter, wanted_metadata

# The engine, and with it torch, is loaded only where there is something to compress or to forget.
if TYPE_CHECKING:
    from gmsa_rag.memory.store import MemoryStore
    from langchain_gmsa.compressor import GMSAContextCompressor

COMPRESSED_AT_ONCE = 256
_SIMILARITY = ("k", "filter")
_MARGINAL = ("k", "fetch_k", "lambda_mult", "filter")
_opened: WeakValueDictionary[int, GMSAVectorStore] = WeakValueDictionary()


class GMSAVectorStore(VectorStore):
    """A vector store over VectorIndex: exact cosine search, rows that survive, no pickle.

    It embeds, keeps and finds documents as they are; a compressed one is refused, since a handle means nothing to an
    embedding model. With a compressor, documents are compressed when they are added, so that the first question finds
    their memories; without one, when they are first retrieved. `as_retriever(compressed=True)` gives them with handles
    in the place of their text.

    What is deleted or replaced is forgotten: the vector, the row, and the memories of its text at every rate, unless
    another row has the same text. Memories are looked for in the compressor's store, or without one in default_store(),
    and in the database itself. They stay where another open vector store of this process, whose memories are there
    too, has a row of that text; the last one to delete it forgets them.

    A filter is either a mapping, whose every item a document's metadata must have, or a function of the document. In a
    mapping a list, tuple or set means any of its values; `{"page": {"$gt": 2}}` compares with $eq, $ne, $gt, $gte, $lt,
    $lte, $in or $nin; `$and` and `$or` join lists of mappings, `$not` turns one round.

    Args:
        embedding: Embeds documents and questions.
        path: The database, made if missing; may be that of a MemoryStore. ":memory:" keeps it in memory.
        namespace: Of the database; made if missing.
        compressor: Compresses what is added into its own store; None compresses nothing.
    Raises:
        DependencyError: If faiss is missing, or installed twice.
        StoreError: If the file cannot be opened.
    Example:
        >>> from langchain_core.embeddings import DeterministicFakeEmbedding
        >>> vectors = GMSAVectorStore.from_texts(["Rome", "Oslo"], DeterministicFakeEmbedding(size=8))
        >>> [document.page_content for document in vectors.similarity_search("Oslo", k=1)]
        ['Oslo']
    """

    def __init__(
        self,
        embedding: Embeddings,
        path: str | Path = IN_MEMORY,
        *,
        namespace: str = "default",
        compressor: GMSAContextCompressor | None = None,
    ) -> None:
        self._embedding, self.compressor = embedding, compressor
        self.index = VectorIndex(path, namespace)
        _opened[id(self)] = self

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
        compressor: GMSAContextCompressor | None = None,
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
            compressor: Compresses them, see the class.
            **kwargs: Nothing; LangChain's signature.
        Returns:
            The store.
        """
        store = cls(embedding, path, namespace=namespace, compressor=compressor)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    @classmethod
    def load(
        cls,
        path: str | Path,
        embedding: Embeddings,
        *,
        namespace: str = "default",
        compressor: GMSAContextCompressor | None = None,
    ) -> GMSAVectorStore:
        """Open a database that is there, such as one that save() wrote.

        Args:
            path: The database.
            embedding: What its documents were embedded with.
            namespace: Of the database.
            compressor: See the class.
        Returns:
            The store; what it is told to change, it changes in the file.
        Raises:
            StoreError: If there is no such file, or it cannot be opened.
        """
        if not Path(path).is_file():
            raise StoreError(f"store {path}", expected="a file", got="none", remedy="Check the path, or save() first.")
        return cls(embedding, path, namespace=namespace, compressor=compressor)

    def save(self, path: str | Path) -> None:
        """Write texts, metadata and vectors to a file in one transaction, in the place of those of this namespace.

        Memories are not among them: they are where the compressor has them, found by content.

        Args:
            path: The file, made if missing; the store's own needs no saving.
        Raises:
            ShapeError: If the file holds vectors of another width.
            StoreError: If it cannot be written.
        """
        self.index.save(path)

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Embed and add texts in one transaction; one whose id is there already replaces it.

        Memories are made before, and those of replaced texts go afterwards: an error or a kill leaves the index and
        its memories as they were. Only after a kill in between, `MemoryStore.forget` has to do the rest.

        Args:
            texts: Texts, none of which is a handle.
            metadatas: One JSON object for each text.
            ids: One name for each text; None makes a random one. Of equal ones the last wins.
            **kwargs: Nothing; LangChain's signature.
        Returns:
            The ids.
        Raises:
            InputTypeError: If texts or ids are one str.
            InputError: If counts differ, a text is a handle, or a metadata is not JSON.
            ShapeError: If the vectors have another width than those in the store.
        """
        texts = [check_original(text) for text in check_several(texts, "texts")]
        given = [None] * len(texts) if ids is None else check_several(ids, "ids")
        names = [uuid.uuid4().hex if name is None else name for name in given]
        vectors = self._embedding.embed_documents(texts) if texts else []
        self._compress(list(dict(zip(names, texts, strict=False)).values()))
        replaced = {entry.text for entry in self.index.get(names) if entry}
        added = self.index.add(texts, vectors, metadatas, names)
        self._forget(replaced)
        return added

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Delete documents and their memories; their bytes leave the files.

        Memories go first: after a kill in between, deleting again does the rest.

        Args:
            ids: Their ids; those that are not there are passed over. None deletes all.
            **kwargs: Nothing; LangChain's signature.
        Returns:
            True.
        Raises:
            InputTypeError: If ids are one str.
            StoreError: If another connection keeps bytes in the log of a file; deleting again erases them.
        """
        rows = self.index.entries() if ids is None else self.index.get(check_several(ids, "ids"))
        entries = [entry for entry in rows if entry]
        texts, names = {entry.text for entry in entries}, [entry.id for entry in entries]
        kept = self._forget(texts, names)
        self.index.delete(names)
        self._forget(kept)  # another vector store may have deleted them meanwhile, and kept them for this one
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Read documents by id; those that are not there are passed over. InputTypeError if ids are one str."""
        return [_document(entry) for entry in self.index.get(check_several(ids, "ids")) if entry is not None]

    def similarity_search(self, query: str, k: int = 4, filter: Filter | None = None, **kwargs: Any) -> list[Document]:
        """Find the documents nearest to a question.

        Args:
            query: The question.
            k: Documents wanted, >= 1.
            filter: A mapping of metadata or a function of the document; see the class.
            **kwargs: Nothing; LangChain's signature.
        Returns:
            Documents, best first.
        Raises:
            InputError: If there is another setting, or the filter has an operator of another name.
            InputTypeError: If the filter is neither a mapping nor a function.
        """
        check_settings(kwargs, *_SIMILARITY)
        return [document for document, _ in self.similarity_search_with_score(query, k, filter)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Find documents as similarity_search() does, each with its cosine similarity, in [-1, 1], higher is closer."""
        check_settings(kwargs, *_SIMILARITY)
        return self.similarity_search_with_score_by_vector(self._embed_query(query), k, filter)

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[Document]:
        """Find documents as similarity_search() does, by the question's vector."""
        check_settings(kwargs, *_SIMILARITY)
        return [document for document, _ in self.similarity_search_with_score_by_vector(embedding, k, filter)]

    def similarity_search_with_score_by_vector(
        self, embedding: list[float], k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Find documents as similarity_search_with_score() does, by the question's vector."""
        check_settings(kwargs, *_SIMILARITY)
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
            **kwargs: Nothing; LangChain's signature.
        Returns:
            Documents in the order they were chosen.
        Raises:
            InputError: As similarity_search().
        """
        check_settings(kwargs, *_MARGINAL)
        vector = self._embed_query(query)
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
        check_settings(kwargs, *_MARGINAL)
        entries = [hit.entry for hit in self.index.search(embedding, fetch_k, _predicate(filter))]
        if not entries:
            return []
        vectors = [entry.vector.tolist() for entry in entries]
        chosen = maximal_marginal_relevance(np.asarray(embedding, np.float32), vectors, lambda_mult, k)
        return [_document(entries[index]) for index in chosen]

    def as_retriever(self, *, compressed: bool = False, **kwargs: Any) -> VectorStoreRetriever:
        """Make a retriever over this store.

        Args:
            compressed: Have it give documents with handles: a GMSARetriever.
            **kwargs: LangChain's `search_type`, `search_kwargs` and `tags`. If compressed also `k`, and a `compressor`
                other than the store's own, which is `GMSAContextCompressor()` where it has none.
        Returns:
            The retriever.
        """
        if not compressed:
            return super().as_retriever(**kwargs)
        from langchain_gmsa.retrievers import GMSARetriever

        if self.compressor is not None:
            kwargs.setdefault("compressor", self.compressor)
        tags = kwargs.pop("tags", None) or self._get_retriever_tags()
        return GMSARetriever(vectorstore=self, tags=tags, **kwargs)

    def close(self) -> None:
        """Close the database; closing again does nothing."""
        _opened.pop(id(self), None)
        self.index.close()

    def _embed_query(self, query: str) -> list[float]:
        return self._embedding.embed_query(check_original(query))

    def _compress(self, texts: list[str]) -> None:
        """Have the compressor put the memories of texts into its store, some at a time."""
        if self.compressor is not None:
            for start in range(0, len(texts), COMPRESSED_AT_ONCE):
                # Not invoke(), which would show every passage to tracers.
                self.compressor._compress([Document(text) for text in texts[start : start + COMPRESSED_AT_ONCE]])

    def _forget(self, texts: set[str], without: Iterable[str] = ()) -> set[str]:
        """Delete the memories of texts that no row but those named has; returns the texts kept for other stores."""
        kept: set[str] = set()
        gone = texts - self.index.held(texts, without=without) if texts else texts
        for store in self._stores() if gone else ():
            elsewhere = self._held_elsewhere(gone, store)
            store.forget_many(neutralise(text) for text in gone - elsewhere)
            kept |= elsewhere
        return kept

    def _held_elsewhere(self, texts: set[str], store: MemoryStore) -> set[str]:
        """Those of the texts whose memories in a store other open vector stores of this process may use."""
        held: set[str] = set()
        for other in filter(None, (reference() for reference in _opened.valuerefs())):
            with suppress(GMSAError):  # one that was closed, was opened before a fork or is broken finds nothing more
                if other._rows != self._rows and store in other._stores():
                    held |= other.index.held(texts)
        return held

    @property
    def _rows(self) -> tuple[object, str]:
        """What tells the rows of one vector store from those of another; two may be open over the same."""
        path = self.index.path
        return id(self) if path == IN_MEMORY else os.path.realpath(path), self.index.namespace

    def _stores(self) -> list[MemoryStore]:
        """Where memories of this store's texts may be."""
        from gmsa_rag.inference.sharing import shared_store

        own = shared_store(self.compressor.store, self.compressor.namespace) if self.compressor else shared_store(None)
        beside = own if self.index.path == IN_MEMORY else shared_store(self.index.path, self.index.namespace)
        return [own] if beside is own else [own, beside]

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return _relevance


def _document(entry: Entry) -> Document:
    return Document(id=entry.id, page_content=entry.text, metadata=entry.metadata)


def _predicate(wanted: Filter | None) -> Callable[[Entry], bool] | None:
    if wanted is None:
        return None
    if callable(wanted):
        return lambda entry: wanted(_document(entry))
    test = wanted_metadata(wanted)
    return lambda entry: test(entry.metadata)


def _relevance(score: float) -> float:
    """A cosine similarity as a number in [0, 1]."""
    return (score + 1) / 2
