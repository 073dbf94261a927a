"""GMSAVectorStore: nodes and vectors in the memories' own database, searched through FAISS."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from llama_index.core.indices.query.embedding_utils import get_top_k_mmr_embeddings
from llama_index.core.schema import BaseNode, MetadataMode, Node
from llama_index.core.vector_stores.simple import DEFAULT_VECTOR_STORE, NAMESPACE_SEP
from llama_index.core.vector_stores.types import (
    DEFAULT_PERSIST_DIR,
    DEFAULT_PERSIST_FNAME,
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict
from pydantic import BeforeValidator, ConfigDict, PrivateAttr

from gmsa_rag.checks import check_several, dump_metadata
from gmsa_rag.errors import InputError, StoreError
from gmsa_rag.memory.database import IN_MEMORY
from gmsa_rag.memory.handles import find_handles
from gmsa_rag.memory.index import Entry, Hit, VectorIndex
from llama_index.vector_stores.gmsa.filters import has_empty_group, matches

_OWNER = "ref_doc_id"
_NO_OWNER = "None"  # node_to_metadata_dict writes this
_MMR_FACTOR = 4  # as LlamaIndex's other stores have it


class GMSAVectorStore(BasePydanticVectorStore):
    """A vector store over VectorIndex: exact cosine search, deletes, all metadata filters, rows that survive.

    Give it nodes as they are, never compressed ones: a handle means nothing to an embedding model. Compress what it
    finds. Nodes come back as they were, all but `MediaResource.data`, which LlamaIndex itself never serialises.

    Args:
        path: The database, made if missing; may be that of a MemoryStore. ":memory:" keeps it in memory.
        namespace: Of the database; made if missing.
    Raises:
        DependencyError: If faiss is missing, or installed twice.
        StoreError: If the file cannot be opened.
    Example:
        >>> from llama_index.core.schema import TextNode
        >>> vectors = GMSAVectorStore()
        >>> vectors.add([TextNode(id_="r", text="Rome", embedding=[1, 0]), TextNode(text="Oslo", embedding=[0, 1])])[0]
        'r'
        >>> found = vectors.query(VectorStoreQuery(query_embedding=[2, 0], similarity_top_k=1))
        >>> found.ids, found.similarities
        (['r'], [1.0])
    """

    model_config = ConfigDict(extra="forbid")

    stores_text: bool = True
    path: Annotated[str, BeforeValidator(os.fspath)] = IN_MEMORY
    namespace: str = "default"
    _index: VectorIndex = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Open the index."""
        self._index = VectorIndex(self.path, self.namespace)

    @classmethod
    def class_name(cls) -> str:
        """The name that LlamaIndex serialises."""
        return "GMSAVectorStore"

    @classmethod
    def from_persist_path(
        cls, persist_path: str | Path, namespace: str = "default", fs: AbstractFileSystem | None = None
    ) -> GMSAVectorStore:
        """Open what persist() wrote, or any other database.

        Args:
            persist_path: The file.
            namespace: Of the database.
            fs: None, or the local file system.
        Returns:
            The store.
        Raises:
            StoreError: If there is no such file.
            InputError: If the file system is another one.
        """
        _check_local(fs)
        if not Path(persist_path).is_file():
            raise StoreError(str(persist_path), expected="a database", got="no such file", remedy="Check the path.")
        return cls(path=os.fspath(persist_path), namespace=namespace)

    @classmethod
    def from_persist_dir(
        cls,
        persist_dir: str | Path = DEFAULT_PERSIST_DIR,
        namespace: str = "default",
        fs: AbstractFileSystem | None = None,
        *,
        name: str = DEFAULT_VECTOR_STORE,
    ) -> GMSAVectorStore:
        """Open what StorageContext.persist() wrote.

        Args:
            persist_dir: The folder.
            namespace: Of the database.
            fs: None, or the local file system.
            name: Of the vector store, in a storage context with several.
        Returns:
            The store; a new StorageContext takes it as its `vector_store`, beside the `persist_dir`.
        Raises:
            StoreError: If there is no such file.
            InputError: If the file system is another one.
        """
        persist_path = Path(persist_dir) / f"{name}{NAMESPACE_SEP}{DEFAULT_PERSIST_FNAME}"
        return cls.from_persist_path(persist_path, namespace, fs)

    @property
    def client(self) -> VectorIndex:
        """The index."""
        return self._index

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Add nodes that have embeddings, in one transaction; one whose id is there already is replaced.

        Args:
            nodes: Nodes.
            **kwargs: Not used; LlamaIndex's signature.
        Returns:
            Their ids.
        Raises:
            InputError: If a node has no embedding, holds a handle, or has metadata that is not JSON.
            ShapeError: If the vectors have another width than those in the store.
        """
        nodes = list(nodes)
        texts = [_text(node) for node in nodes]
        vectors = [_embedding(node) for node in nodes]
        for node in nodes:
            dump_metadata(node.metadata)  # LlamaIndex would write null for what JSON lacks, such as NaN
        # Not remove_text, which removes all of a Node's text_resource.
        metadatas = [node_to_metadata_dict(_with_text(node, ""), flat_metadata=False) for node in nodes]
        return self._index.add(texts, vectors, metadatas, [node.node_id for node in nodes])

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete the nodes of a document; their bytes leave the file.

        Args:
            ref_doc_id: Id of the document, their source.
            **delete_kwargs: Not used; LlamaIndex's signature.
        """
        marked = [entry for entry in self._index.entries() if entry.metadata.get(_OWNER) == ref_doc_id]
        # The mark of nodes without a source may be the id of a document: the nodes themselves know.
        self._index.delete([entry.id for entry in marked if _node(entry).ref_doc_id == ref_doc_id])

    def delete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """Delete nodes; their bytes leave the file.

        Args:
            node_ids: Their ids; those that are not there are passed over.
            filters: What their metadata must pass too.
            **delete_kwargs: Not used; LlamaIndex's signature.
        Raises:
            InputError: If neither is given, or no ids and a group of filters that is empty; clear() deletes all.
            InputTypeError: If node_ids are one str.
        """
        if node_ids is not None:
            check_several(node_ids, "node_ids")
        if node_ids is None and (filters is None or has_empty_group(filters)):
            got, remedy = "neither" if filters is None else "an empty group of filters", "Call clear() to delete all."
            raise InputError("delete_nodes", expected="node_ids or filters", got=got, remedy=remedy)
        if node_ids is not None and filters is None:
            self._index.delete(node_ids)
        else:
            self._index.delete([entry.id for entry in self._entries(node_ids, filters)])

    def clear(self) -> None:
        """Delete all nodes."""
        self._index.delete([entry.id for entry in self._index.entries()])

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Read nodes with their embeddings.

        Args:
            node_ids: Their ids; None for all, oldest first.
            filters: What their metadata must pass.
        Returns:
            Those that are there.
        Raises:
            InputTypeError: If node_ids are one str.
        """
        if node_ids is not None:
            check_several(node_ids, "node_ids")
        return [_node(entry, with_vector=True) for entry in self._entries(node_ids, filters)]

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Find the nodes nearest to a question.

        Args:
            query: Its embedding, how many nodes, filters, node ids, document ids, and the mode: DEFAULT or MMR. An
                empty list of document ids finds nothing, one of node ids counts as none given.
            **kwargs: For MMR: `mmr_threshold`, 1 for the nearest to 0 for the most diverse, 0.5 unless given here or in
                the query; `mmr_prefetch_factor`, nearest nodes to choose from for each wanted, 4, or
                `mmr_prefetch_k`, how many in all.
        Returns:
            Nodes, best first or in the order they were chosen, with their cosine similarities, in [-1, 1].
        Raises:
            InputError: If there is no embedding, the mode is another one, or a filter's value does not suit it.
            ShapeError: If the embedding has another width than those in the store.
        """
        if query.query_embedding is None:
            remedy = "Embed the question; this store does not."
            raise InputError("query", expected="an embedding", got="none", remedy=remedy)
        # An index that keeps no list of its nodes, and wants all, asks for the nodes of an empty list. Documents it
        # asks for only if its caller does: none of them are none.
        wanted = _predicate(query.node_ids or None, query.doc_ids, query.filters)
        if query.mode == VectorStoreQueryMode.MMR:
            hits = self._diverse(query, wanted, **kwargs)
        elif query.mode == VectorStoreQueryMode.DEFAULT:
            hits = self._index.search(query.query_embedding, query.similarity_top_k, wanted)
        else:
            got, remedy = query.mode.value, "Ask in another mode."
            raise InputError("query mode", expected="default or mmr", got=got, remedy=remedy)
        return VectorStoreQueryResult(
            nodes=[_node(hit.entry) for hit in hits],
            similarities=[hit.score for hit in hits],
            ids=[hit.entry.id for hit in hits],
        )

    def persist(self, persist_path: str, fs: AbstractFileSystem | None = None) -> None:
        """Write all rows to another database; to the store's own file there is nothing to do.

        Args:
            persist_path: The file, made if missing, and so is its folder. Rows of the same namespace in it are
                replaced, in one transaction; its memories and other namespaces stay.
            fs: None, or the local file system.
        Raises:
            InputError: If the file system is another one.
            ShapeError: If the file holds vectors of another width.
            StoreError: If the file cannot be written, or is no database of this kind.
        """
        _check_local(fs)
        Path(persist_path).parent.mkdir(parents=True, exist_ok=True)
        self._index.save(persist_path)

    def close(self) -> None:
        """Close the database; closing again does nothing."""
        self._index.close()

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Add nodes without blocking the event loop; see add()."""
        return await asyncio.to_thread(self.add, nodes, **kwargs)

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete a document's nodes without blocking the event loop; see delete()."""
        await asyncio.to_thread(self.delete, ref_doc_id, **delete_kwargs)

    async def adelete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """Delete nodes without blocking the event loop; see delete_nodes()."""
        await asyncio.to_thread(self.delete_nodes, node_ids, filters, **delete_kwargs)

    async def aclear(self) -> None:
        """Delete all nodes without blocking the event loop."""
        await asyncio.to_thread(self.clear)

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """Read nodes without blocking the event loop; see get_nodes()."""
        return await asyncio.to_thread(self.get_nodes, node_ids, filters)

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Find nodes without blocking the event loop; see query()."""
        return await asyncio.to_thread(self.query, query, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        if self.path == IN_MEMORY:
            remedy = "Give it a path, or persist() it."
            raise StoreError("vector store", expected="a file, to be pickled", got="one in memory", remedy=remedy)
        # A copy: LlamaIndex deletes from the object what cannot be pickled. The index is opened again.
        state = super(GMSAVectorStore, self.model_copy()).__getstate__()
        return {**state, "__pydantic_private__": None}

    def _entries(self, node_ids: Sequence[str] | None, filters: MetadataFilters | None) -> list[Entry]:
        entries = self._index.entries() if node_ids is None else self._index.get(node_ids)
        return [entry for entry in entries if entry and (filters is None or matches(filters, entry.metadata))]

    def _diverse(
        self,
        query: VectorStoreQuery,
        wanted: Callable[[Entry], bool],
        mmr_threshold: float | None = None,
        mmr_prefetch_factor: float = _MMR_FACTOR,
        mmr_prefetch_k: int | None = None,
        **kwargs: Any,
    ) -> list[Hit]:
        wide = mmr_prefetch_k or max(query.similarity_top_k, int(query.similarity_top_k * mmr_prefetch_factor))
        hits = self._index.search(query.query_embedding, wide, wanted)
        threshold = query.mmr_threshold if mmr_threshold is None else mmr_threshold
        _, chosen = get_top_k_mmr_embeddings(
            list(map(float, query.query_embedding or ())),
            [hit.entry.vector.tolist() for hit in hits],
            similarity_top_k=query.similarity_top_k,
            mmr_threshold=threshold,
        )
        return [hits[index] for index in chosen]


def _predicate(
    node_ids: Sequence[str] | None, doc_ids: Sequence[str] | None, filters: MetadataFilters | None
) -> Callable[[Entry], bool]:
    nodes = None if node_ids is None else set(node_ids)
    owners = None if doc_ids is None else set(doc_ids) - {_NO_OWNER}

    def wanted(entry: Entry) -> bool:
        if nodes is not None and entry.id not in nodes:
            return False
        if owners is not None and entry.metadata.get(_OWNER) not in owners:
            return False
        return filters is None or matches(filters, entry.metadata)

    return wanted


def _text(node: BaseNode) -> str:
    text = node.get_content(MetadataMode.NONE)
    if find_handles(text):
        raise InputError(
            f"node {node.node_id}",
            expected="text, as it was embedded",
            got="a handle in it",
            remedy="Restore compressed nodes before indexing, or neutralise() text that looks like a handle.",
        )
    return text


def _with_text(node: BaseNode, text: str) -> BaseNode:
    """A copy with another text, which keeps what a Node says of its text's origin."""
    copy = node.model_copy()
    if text == node.get_content(MetadataMode.NONE):
        return copy
    if isinstance(copy, Node) and copy.text_resource is not None:
        copy.text_resource = copy.text_resource.model_copy(update={"text": text})
    else:
        copy.set_content(text)
    return copy


def _embedding(node: BaseNode) -> list[float]:
    if node.embedding is None:
        remedy = "Add nodes through an index, or embed them first."
        raise InputError(f"node {node.node_id}", expected="an embedding", got="none", remedy=remedy)
    return node.embedding


def _node(entry: Entry, *, with_vector: bool = False) -> BaseNode:
    node = _with_text(metadata_dict_to_node(entry.metadata), entry.text)
    if with_vector:
        node.embedding = entry.vector.tolist()
    return node


def _check_local(fs: AbstractFileSystem | None) -> None:
    if fs is not None and not isinstance(fs, LocalFileSystem):
        got, remedy = type(fs).__name__, "Write to a local file and copy it."
        raise InputError("fs", expected="None, or the local file system", got=got, remedy=remedy)
