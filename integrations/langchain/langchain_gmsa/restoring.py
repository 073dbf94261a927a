"""GMSARestorer: compressed documents in, the same documents with their text out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from langchain_core.documents import Document
from langchain_core.runnables import RunnableConfig, RunnableSerializable
from langchain_core.runnables.config import run_in_executor

from gmsa_rag.errors import UnknownMemoryError
from gmsa_rag.inference.replacing import restore_passage
from gmsa_rag.memory.store import MemoryStore
from langchain_gmsa.documents import changed, check_documents, passage, undescribed
from langchain_gmsa.engines import StoreSettings


class GMSARestorer(RunnableSerializable[Sequence[Document], list[Document]], StoreSettings):
    """Gives documents their text back from the store, and takes the gmsa metadata out again.

    A runnable, for what comes after the answer: citations, rerankers, splitters, models that read no memories. The
    text is the one that was compressed: look-alikes of handles in it stay neutralised. No weights are needed.

    Args:
        store: The compressor's: None for default_store(), a path, or a MemoryStore.
        namespace: The compressor's.
        on_missing: For a compressed document whose text the store does not hold: "error" raises, "drop" leaves it out.
    Raises:
        pydantic.ValidationError: If a field has a wrong type or value.
    Example:
        >>> from langchain_gmsa.compressor import GMSAContextCompressor
        >>> chain = GMSAContextCompressor(rate=8) | GMSARestorer()
        >>> chain.invoke([Document("Vienna lies on the Danube.")])[0].page_content
        'Vienna lies on the Danube.'
    """

    on_missing: Literal["error", "drop"] = "error"

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Whether LangChain may serialise it: yes."""
        return True

    def invoke(self, input: Sequence[Document], config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        """Restore documents.

        Args:
            input: Compressed ones, or others, which are copied.
            config: LangChain's.
            **kwargs: Nothing; LangChain's signature.
        Returns:
            A copy of each document, in order.
        Raises:
            InputTypeError: If they are no sequence of documents.
            MalformedHandleError: If the handle of a compressed document was cut.
            UnknownMemoryError: If the store does not hold the text of a compressed document.
        """
        return self._call_with_config(self._restore, input, config)

    async def ainvoke(
        self, input: Sequence[Document], config: RunnableConfig | None = None, **kwargs: Any
    ) -> list[Document]:
        """Restore documents without blocking the event loop; see invoke()."""
        return await self._acall_with_config(self._arestore, input, config)

    async def _arestore(self, documents: Sequence[Document]) -> list[Document]:
        return await run_in_executor(None, self._restore, documents)

    def _restore(self, documents: Sequence[Document]) -> list[Document]:
        store = self._memories()
        return [restored for document in check_documents(documents) for restored in self._restored(document, store)]

    def _restored(self, document: Document, store: MemoryStore) -> Iterator[Document]:
        try:
            text = restore_passage(passage(document), store)
        except UnknownMemoryError:
            if self.on_missing == "error":
                raise
        else:
            yield changed(document, text, undescribed(document.metadata))
