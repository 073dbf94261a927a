"""GMSACompressTransform: fills the store while documents are ingested."""

from __future__ import annotations

import asyncio
import multiprocessing
import warnings
from collections.abc import Sequence
from typing import Any

from llama_index.core.schema import BaseNode, TransformComponent
from pydantic import PrivateAttr

from gmsa_rag.errors import StoreError
from gmsa_rag.inference.loading import recorded_fingerprint
from gmsa_rag.inference.replacing import Replacing, replace_passages
from gmsa_rag.memory.database import IN_MEMORY
from llama_index.postprocessor.gmsa.nodes import check_nodes, copied, described, passage
from llama_index.postprocessor.gmsa.settings import CompressionSettings


class GMSACompressTransform(CompressionSettings, TransformComponent):
    """Compresses nodes as they are ingested, so that GMSANodePostprocessor finds their memories at retrieval.

    The text stays, for embeddings, keyword search and rerankers; `gmsa_key`, `gmsa_rate`, `gmsa_num_tokens`,
    `gmsa_num_soft_tokens` and `gmsa_fingerprint` join the metadata and are excluded from what LLMs and embeddings are
    shown. Put it after the splitters.

    A pipeline with a cache skips nodes that it has seen with the same settings: checkpoint, revision, fingerprint,
    rate, store. A fingerprint is read from a local checkpoint without loading it. If the memories of skipped nodes are
    gone, GMSANodePostprocessor computes them when they are retrieved.

    Leave the pipeline's `num_workers` at None: each worker would load the checkpoint for itself. With a store on a
    file that works, with a warning; into a store in memory, which ends with its process, it is an error.

    Args:
        rate: Tokens per soft token, >= 1.
        model: Checkpoint: a bundled name, a directory, or a hub id. It is loaded at first use, once per process.
        min_tokens: Shorter passages are not compressed.
        gmsa: An engine in memory, instead of `model`; not serialised.
        device: "auto" takes cuda, mps or cpu, the first there is.
        dtype: "auto", "float32", "bfloat16" or "float16".
        revision: Of a hub id.
        token: For a private hub id; not serialised.
        fingerprint: The only checkpoint that may be used; None takes any.
        store: Where memories are kept: None for default_store(), a path, or a MemoryStore.
        namespace: Of a path or of None.
    Raises:
        RateError: If the rate is not an int >= 1.
        pydantic.ValidationError: If another field has a wrong type or value.
    Example:
        >>> from llama_index.core.schema import TextNode
        >>> [node] = GMSACompressTransform(rate=8)([TextNode(text="The Danube begins in the Black Forest.")])
        >>> node.text, node.metadata["gmsa_rate"]
        ('The Danube begins in the Black Forest.', 8)
    """

    _in_worker: bool = PrivateAttr(default=False)

    @classmethod
    def class_name(cls) -> str:
        """The name that LlamaIndex serialises."""
        return "GMSACompressTransform"

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[BaseNode]:
        """Compress nodes into the store.

        Args:
            nodes: Nodes, which are not changed.
            **kwargs: Not used; LlamaIndex's signature.
        Returns:
            A copy of each node, in order.
        Raises:
            InputTypeError: If they are no sequence of nodes.
            InputError: If a text is not valid Unicode.
            StoreError: If this runs in a worker process with a store in memory.
        """
        self._check_process()
        found = check_nodes(nodes)
        if not found:
            return []
        settings = Replacing(self.rate, self.min_tokens)
        replacements = replace_passages([passage(node) for node in found], self.engine, self.memories, settings)
        return [
            copied(node) if new.memory is None else described(node, new.memory)
            for node, new in zip(found, replacements, strict=True)
        ]

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[BaseNode]:
        """Compress nodes without blocking the event loop; see __call__()."""
        return await asyncio.to_thread(self, nodes, **kwargs)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._in_worker = multiprocessing.parent_process() is not None

    def _check_process(self) -> None:
        """Raise StoreError, or warn, in a process that a pipeline with several workers sent this to."""
        if not self._in_worker:
            return
        if self.store in (None, IN_MEMORY):
            raise StoreError(
                "GMSACompressTransform",
                expected="a store on a file, or a pipeline without workers",
                got="a store in memory, in a worker process with which it would end",
                remedy="Leave num_workers at None, or name the file of a store.",
            )
        warnings.warn("Each worker loads the checkpoint for itself: leave num_workers at None.", stacklevel=3)

    def _expected(self) -> str | None:
        return super()._expected() or recorded_fingerprint(self.model)
