"""GMSAContextCompressor: retrieved documents in, the same documents with handles of their memories out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, BaseDocumentTransformer, Document
from langchain_core.runnables import RunnableConfig, RunnableSerializable
from langchain_core.runnables.config import run_in_executor
from pydantic import BeforeValidator, Field

from gmsa_rag.checks import check_rate, check_text
from gmsa_rag.errors import GMSAError, HandleError, RateError, UnknownMemoryError
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.memory.handles import neutralise
from gmsa_rag.memory.memory import Memory
from gmsa_rag.memory.store import MemoryStore
from langchain_gmsa.documents import KEY, changed, check_documents, describe, undescribed, whole_handle
from langchain_gmsa.engines import DEFAULT_MODEL, GMSASettings, path_text

logger = logging.getLogger(__name__)


class GMSAContextCompressor(
    RunnableSerializable[Sequence[Document], list[Document]],
    GMSASettings,
    BaseDocumentCompressor,
    BaseDocumentTransformer,
):
    """Compresses documents and puts handles of their memories in the place of their text.

    A runnable, a document compressor and a document transformer in one: `retriever | GMSAContextCompressor(rate=8)`,
    ContextualCompressionRetriever and DocumentCompressorPipeline all take it. Make it the last step that handles
    documents: splitters and rerankers after it would work on the handle.

    Each document keeps its id and metadata; `gmsa_key`, `gmsa_rate`, `gmsa_num_tokens`, `gmsa_num_soft_tokens` and
    `gmsa_fingerprint` join the metadata. Look-alikes of handles in the text are neutralised before compression. An
    empty document is left as it is, and so is one that is exactly a handle of this store. A handle that the store does
    not know is an error if the metadata says that it once was compressed, else ordinary text.

    Args:
        rate: Tokens per soft token, >= 1.
        model: Checkpoint: a bundled name, a directory, or a hub id. It is loaded at first use, once per process.
        mode: "replace" puts the handle into `page_content`; "attach" leaves that alone and adds the metadata only.
        gmsa: An engine in memory, instead of `model`; not serialised.
        device: "auto" takes cuda, mps or cpu, the first there is.
        dtype: "auto", "float32", "bfloat16" or "float16".
        revision: Of a hub id.
        store: Where memories are kept: None for default_store(), a path, or a MemoryStore.
    Raises:
        RateError: If the rate is not an int >= 1.
        pydantic.ValidationError: If another field has a wrong type or value.
    Example:
        >>> documents = [Document("The Danube begins in the Black Forest of Germany.", metadata={"title": "Danube"})]
        >>> [compressed] = GMSAContextCompressor(rate=8).invoke(documents)
        >>> compressed.metadata["title"], compressed.metadata["gmsa_rate"], compressed.page_content[:7]
        ('Danube', 8, '[[gmsa:')
    """

    rate: int = Field(default=8, strict=True)
    model: Annotated[str, BeforeValidator(path_text)] = DEFAULT_MODEL
    mode: Literal["replace", "attach"] = "replace"

    if not TYPE_CHECKING:  # type checkers read the signature off the fields

        def __init__(self, **settings: Any) -> None:
            check_rate(settings.get("rate", 8))  # a validator's error would come out as pydantic's
            super().__init__(**settings)

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Whether LangChain may serialise it: yes, all but `gmsa`."""
        return True

    def invoke(self, input: Sequence[Document], config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        """Compress documents.

        Args:
            input: Documents, which are not changed.
            config: LangChain's.
            **kwargs: Nothing; LangChain's signature.
        Returns:
            A copy of each document, in order.
        Raises:
            InputTypeError: If the input is no sequence of documents; a str or a single Document is none.
            InputError: If a text is not valid Unicode.
            RateError: If a document is a handle of another rate.
            UnknownMemoryError: If a document was compressed into another store.
            FingerprintError: If a document was compressed with another checkpoint.
        """
        return self._call_with_config(self._compress, input, config)

    async def ainvoke(
        self, input: Sequence[Document], config: RunnableConfig | None = None, **kwargs: Any
    ) -> list[Document]:
        """Compress documents without blocking the event loop; see invoke()."""
        return await self._acall_with_config(self._acompress, input, config)

    def batch(
        self,
        inputs: list[Sequence[Document]],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[Document]]:
        """Compress several lists of documents in one fused call; see invoke().

        Args:
            inputs: Lists of documents.
            config: LangChain's, one for all or one each.
            return_exceptions: Put an error in the place of its list instead of raising it.
            **kwargs: Nothing; LangChain's signature.
        Returns:
            One list per input.
        """
        return self._batch_with_config(self._compress_all, inputs, config, return_exceptions=return_exceptions)

    async def abatch(
        self,
        inputs: list[Sequence[Document]],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[Document]]:
        """Compress several lists of documents without blocking the event loop; see batch()."""
        return await self._abatch_with_config(self._acompress_all, inputs, config, return_exceptions=return_exceptions)

    def compress_documents(
        self, documents: Sequence[Document], query: str = "", callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Compress documents, as invoke() does.

        Args:
            documents: Documents.
            query: Not used: a memory serves every question.
            callbacks: Not used.
        Returns:
            A copy of each document, in order.
        """
        return self._compress(documents)

    async def acompress_documents(
        self, documents: Sequence[Document], query: str = "", callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Compress documents without blocking the event loop; see compress_documents()."""
        return await self._acompress(documents)

    def transform_documents(self, documents: Sequence[Document], **kwargs: Any) -> list[Document]:
        """Compress documents, as invoke() does."""
        return self._compress(documents)

    async def atransform_documents(self, documents: Sequence[Document], **kwargs: Any) -> list[Document]:
        """Compress documents without blocking the event loop; see transform_documents()."""
        return await self._acompress(documents)

    def restore_documents(self, documents: Sequence[Document]) -> list[Document]:
        """Give documents their text back from the store, and take the gmsa metadata out again.

        The text is the one that was compressed: look-alikes of handles in it stay neutralised.

        Args:
            documents: Compressed ones, or others, which are copied.
        Returns:
            A copy of each document, in order.
        Raises:
            InputTypeError: If they are no sequence of documents.
            UnknownMemoryError: If the store does not hold the text of a compressed document.
        """
        store = self._memories()
        return [self._restore(document, store) for document in check_documents(documents)]

    async def arestore_documents(self, documents: Sequence[Document]) -> list[Document]:
        """Restore documents without blocking the event loop; see restore_documents()."""
        return await run_in_executor(None, self.restore_documents, documents)

    def _compress(self, documents: Sequence[Document]) -> list[Document]:
        [result] = self._compress_all([documents])
        if isinstance(result, Exception):
            raise result
        return result

    async def _acompress(self, documents: Sequence[Document]) -> list[Document]:
        return await run_in_executor(None, self._compress, documents)

    async def _acompress_all(self, batches: list[Sequence[Document]]) -> list[list[Document] | Exception]:
        return await run_in_executor(None, self._compress_all, batches)

    def _compress_all(self, batches: list[Sequence[Document]]) -> list[list[Document] | Exception]:
        """Compress what needs it of all batches at once; a batch that is wrong gets its error."""
        store = self._memories()
        plans = [self._plan(batch, store) for batch in batches]
        texts = [text for plan in plans if not isinstance(plan, Exception) for _, text in plan if text is not None]
        memories = iter(self._gmsa().compress(texts, self.rate, store=store) if texts else ())
        return [plan if isinstance(plan, Exception) else self._finish(plan, memories, store) for plan in plans]

    def _plan(self, documents: object, store: MemoryStore) -> list[tuple[Document, str | None]] | GMSAError:
        """Each document with the text to compress, None for one to leave as it is; or what is wrong with them."""
        try:
            return [(document, self._passage(document, store)) for document in check_documents(documents)]
        except GMSAError as error:
            return error

    def _passage(self, document: Document, store: MemoryStore) -> str | None:
        text = check_text(document.page_content, "document")
        handle = whole_handle(text)
        if not text or (handle and self._is_compressed(document, handle, store)):
            return None
        return neutralise(text)

    def _is_compressed(self, document: Document, handle: str, store: MemoryStore) -> bool:
        try:
            memory = store.resolve(handle, fingerprint=self._gmsa().fingerprint)
        except HandleError:
            if KEY in document.metadata:
                raise
            logger.warning("document %s looks like a handle, but not of this store: compressed as text", document.id)
            return False
        if memory.rate != self.rate:
            raise RateError(
                f"document {document.id or handle}",
                expected=f"text, or a handle of rate {self.rate}",
                got=f"a handle of rate {memory.rate}",
                remedy="Restore the document first: restore_documents(), then compress it again.",
            )
        return True

    def _finish(
        self, plan: list[tuple[Document, str | None]], memories: Iterator[Memory], store: MemoryStore
    ) -> list[Document]:
        return [
            changed(document, document.page_content, document.metadata)
            if text is None
            else self._compressed(document, next(memories), store)
            for document, text in plan
        ]

    def _compressed(self, document: Document, memory: Memory, store: MemoryStore) -> Document:
        text = store.handle(memory) if self.mode == "replace" else document.page_content
        return changed(document, text, {**document.metadata, **describe(memory)})

    def _restore(self, document: Document, store: MemoryStore) -> Document:
        handle = whole_handle(document.page_content)
        text = store.text(handle) if handle else document.page_content
        if text is None and KEY in document.metadata:
            raise UnknownMemoryError(
                f"document {document.id or handle}",
                expected="one whose text this store holds",
                got=f"the handle {handle}",
                remedy="Use the store that compressed it, one that keeps texts.",
            )
        return changed(document, document.page_content if text is None else text, undescribed(document.metadata))

    def _gmsa(self) -> GMSA:
        return self._engine(self.model)
