"""GMSAContextCompressor: retrieved documents in, the same documents with handles of their memories out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, BaseDocumentTransformer, Document
from langchain_core.runnables import RunnableConfig, RunnableSerializable
from langchain_core.runnables.config import run_in_executor
from pydantic import BeforeValidator, Field

from gmsa_rag.checks import check_rate
from gmsa_rag.errors import GMSAError
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.replacing import Plan, Replacement, Replacing, carry_out, describe, plan_passage
from gmsa_rag.inference.sharing import DEFAULT_MODEL, path_text
from gmsa_rag.memory.store import MemoryStore
from langchain_gmsa.documents import changed, check_documents, passage
from langchain_gmsa.engines import GMSASettings
from langchain_gmsa.restoring import GMSARestorer


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
    empty document is left as it is, and so is one that was compressed before: its text is a handle, and its `gmsa_key`
    that of the memory. If the store does not know that handle, it is an error (see `on_missing`). A handle without the
    metadata is ordinary text, whoever wrote it.

    Any field can be set per request: `compressor.configurable_fields(namespace=ConfigurableField("namespace"))`, then
    `invoke(documents, {"configurable": {"namespace": "a tenant"}})`. Pickles and dumps hold no weights.

    Args:
        rate: Tokens per soft token, >= 1.
        model: Checkpoint: a bundled name, a directory, or a hub id. It is loaded at first use, once per process.
        mode: "replace" puts the handle into `page_content`; "attach" leaves that alone and adds the metadata only.
        min_tokens: Passages of fewer tokens stay text, without the metadata; their look-alikes of handles are
            neutralised all the same.
        on_missing: For a compressed document whose memory is gone: "error" raises, "text" compresses the passage's
            own text again where the store still has it, "drop" leaves the document out.
        gmsa: An engine in memory, instead of `model`; not serialised.
        device: "auto" takes cuda, mps or cpu, the first there is.
        dtype: "auto", "float32", "bfloat16" or "float16".
        revision: Of a hub id.
        token: For a private hub id; serialised as the secret HF_TOKEN.
        fingerprint: The only checkpoint that may be used; None takes any.
        store: Where memories are kept: None for default_store(), a path, or a MemoryStore.
        namespace: Of a path or of None. No namespace sees the handles of another.
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
    min_tokens: int = Field(default=0, ge=0)
    on_missing: Literal["error", "text", "drop"] = "error"

    if not TYPE_CHECKING:  # type checkers read the signature off the fields

        def __init__(self, **settings: Any) -> None:
            check_rate(settings.get("rate", 8))  # a validator's error would come out as pydantic's
            super().__init__(**settings)

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Whether LangChain may serialise it: yes, all but `gmsa`."""
        return True

    @property
    def lc_secrets(self) -> dict[str, str]:
        """Fields that LangChain serialises by the name of a secret only."""
        return {"token": "HF_TOKEN"}

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """What LangChain serialises in the place of `gmsa`: its fingerprint."""
        return {} if self._expected() is None else {"fingerprint": self._expected()}

    @property
    def restorer(self) -> GMSARestorer:
        """The way back as a runnable: `compressor | ... | compressor.restorer`."""
        on_missing: Literal["error", "drop"] = "drop" if self.on_missing == "drop" else "error"
        return GMSARestorer(store=self.store, namespace=self.namespace, on_missing=on_missing)

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
            MalformedHandleError: If the handle of a compressed document was cut.
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
            callbacks: Told of the run.
        Returns:
            A copy of each document, in order.
        """
        return self.invoke(documents, RunnableConfig(callbacks=callbacks) if callbacks else None)

    async def acompress_documents(
        self, documents: Sequence[Document], query: str = "", callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Compress documents without blocking the event loop; see compress_documents()."""
        return await self.ainvoke(documents, RunnableConfig(callbacks=callbacks) if callbacks else None)

    def transform_documents(self, documents: Sequence[Document], **kwargs: Any) -> list[Document]:
        """Compress documents, as invoke() does."""
        return self.invoke(documents)

    async def atransform_documents(self, documents: Sequence[Document], **kwargs: Any) -> list[Document]:
        """Compress documents without blocking the event loop; see transform_documents()."""
        return await self.ainvoke(documents)

    def restore_documents(self, documents: Sequence[Document]) -> list[Document]:
        """Give documents their text back from the store, and take the gmsa metadata out again; see `restorer`."""
        return self.restorer.invoke(documents)

    async def arestore_documents(self, documents: Sequence[Document]) -> list[Document]:
        """Restore documents without blocking the event loop; see restore_documents()."""
        return await self.restorer.ainvoke(documents)

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
        settings = Replacing(self.rate, self.min_tokens, self.on_missing)
        planned = [self._plan(batch, store, settings) for batch in batches]
        plans = [plan for batch in planned if not isinstance(batch, Exception) for _, plan in batch]
        done = iter(carry_out(plans, self._gmsa(), store, settings) if plans else ())
        return [batch if isinstance(batch, Exception) else self._finish(batch, done) for batch in planned]

    def _plan(
        self, documents: object, store: MemoryStore, settings: Replacing
    ) -> list[tuple[Document, Plan]] | GMSAError:
        """What is to become of documents; or what is wrong with them."""
        try:
            checked = check_documents(documents)
            return [(document, plan_passage(passage(document), self._gmsa(), store, settings)) for document in checked]
        except GMSAError as error:
            return error

    def _finish(self, planned: list[tuple[Document, Plan]], done: Iterator[Replacement]) -> list[Document]:
        replaced = [(document, next(done)) for document, _ in planned]
        return [self._changed(document, new, new.text) for document, new in replaced if new.text is not None]

    def _changed(self, document: Document, new: Replacement, text: str) -> Document:
        metadata = {**document.metadata, **(describe(new.memory) if new.memory else {})}
        return changed(document, text if self.mode == "replace" else document.page_content, metadata)

    def _gmsa(self) -> GMSA:
        return self._engine(self.model)
