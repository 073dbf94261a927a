"""GMSARetriever: a vector store and a compressor as one retriever."""

from __future__ import annotations

from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStoreRetriever
from pydantic import Field

from langchain_gmsa.compressor import GMSAContextCompressor


class GMSARetriever(VectorStoreRetriever):
    """Finds documents in any vector store and gives them compressed.

    The same as `vectors.as_retriever() | compressor`, for what takes a retriever only: `create_retriever_tool`, chains
    of langchain-classic. Memories are found by content, so no vector store needs to know of them.

    Args:
        vectorstore: Where to search; it holds the original texts.
        compressor: Compresses what is found, with its own store.
        k: Documents wanted, >= 1. A `k` in search_kwargs comes before it, one of the call before both.
        search_type: "similarity", "similarity_score_threshold" or "mmr".
        search_kwargs: Settings of the search, such as `filter`.
    Raises:
        pydantic.ValidationError: If a field has a wrong type or value.
    Example:
        >>> from langchain_core.embeddings import DeterministicFakeEmbedding
        >>> from langchain_core.vectorstores import InMemoryVectorStore
        >>> vectors = InMemoryVectorStore.from_texts(["Rome", "Oslo"], DeterministicFakeEmbedding(size=8))
        >>> [document.page_content[:7] for document in GMSARetriever(vectorstore=vectors, k=1).invoke("Oslo")]
        ['[[gmsa:']
    """

    compressor: GMSAContextCompressor = Field(default_factory=GMSAContextCompressor)
    k: int = Field(default=4, ge=1)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        found = super()._get_relevant_documents(query, run_manager=run_manager, **self._search(kwargs))
        return self.compressor.invoke(found, {"callbacks": run_manager.get_child()})

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        found = await super()._aget_relevant_documents(query, run_manager=run_manager, **self._search(kwargs))
        return await self.compressor.ainvoke(found, {"callbacks": run_manager.get_child()})

    def _search(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {"k": self.k, **self.search_kwargs, **kwargs}
