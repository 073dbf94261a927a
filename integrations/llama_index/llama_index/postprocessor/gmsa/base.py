"""GMSANodePostprocessor: retrieved nodes in, the same nodes with handles of their memories out."""

from __future__ import annotations

import asyncio
from typing import Literal

from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle

from gmsa_rag.inference.replacing import Replacement, Replacing, replace_passages, restore_passage
from llama_index.postprocessor.gmsa.nodes import check_found, copied, described, passage, undescribed, with_text
from llama_index.postprocessor.gmsa.settings import CompressionSettings


class GMSANodePostprocessor(CompressionSettings, BaseNodePostprocessor):
    """Compresses retrieved nodes and puts handles of their memories in the place of their text.

    Make it the last of the `node_postprocessors`: rerankers after it would work on the handle. Give the same store to
    the GMSALLM that answers.

    Each node is a copy that keeps id, score, relationships, embedding and metadata; `gmsa_key`, `gmsa_rate`,
    `gmsa_num_tokens`, `gmsa_num_soft_tokens` and `gmsa_fingerprint` join the metadata and are excluded from what LLMs
    and embeddings are shown. Look-alikes of handles in the text are neutralised before compression; those in metadata
    are not, so a GMSALLM over sources that are not trusted needs `allowed_handles`. A node without text, such as an
    image, is left as it is, and so is one that was compressed before: its text is a handle, and its `gmsa_key` that of
    the memory. A handle without the metadata is ordinary text, whoever wrote it. All nodes are one fused compression;
    what the store holds already is not computed again.

    Args:
        rate: Tokens per soft token, >= 1.
        model: Checkpoint: a bundled name, a directory, or a hub id. It is loaded at first use, once per process.
        mode: "replace" puts the handle in the place of the text; "attach" leaves that alone and adds the metadata
            only, for postprocessors that still need the text.
        min_tokens: Shorter passages stay text.
        on_missing: For a node that says it was compressed, but whose memory is gone: "error" raises, "text" compresses
            the passage's own text again if the store still holds it, "drop" leaves the node out.
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
        >>> from llama_index.core.schema import NodeWithScore, TextNode
        >>> node = TextNode(text="The Danube begins in the Black Forest of Germany.", metadata={"title": "Danube"})
        >>> [found] = GMSANodePostprocessor(rate=8).postprocess_nodes([NodeWithScore(node=node, score=0.9)])
        >>> found.score, found.metadata["title"], found.metadata["gmsa_rate"], found.text[:7]
        (0.9, 'Danube', 8, '[[gmsa:')
    """

    mode: Literal["replace", "attach"] = "replace"
    on_missing: Literal["error", "text", "drop"] = "error"

    @classmethod
    def class_name(cls) -> str:
        """The name that LlamaIndex serialises."""
        return "GMSANodePostprocessor"

    def restore_nodes(self, nodes: list[NodeWithScore]) -> list[NodeWithScore]:
        """Give nodes their text back from the store, and take the gmsa metadata out again.

        The text is the one that was compressed: look-alikes of handles in it stay neutralised.

        Args:
            nodes: Compressed ones, such as a response's `source_nodes`, or others, which are copied.
        Returns:
            A copy of each node, in order.
        Raises:
            InputTypeError: If they are no sequence of NodeWithScore.
            UnknownMemoryError: If the store does not hold the text of a compressed node.
        """
        store = self.memories
        return [
            found.model_copy(update={"node": undescribed(with_text(found.node, text))})
            for found in check_found(nodes)
            for text in [restore_passage(passage(found.node), store)]
        ]

    async def arestore_nodes(self, nodes: list[NodeWithScore]) -> list[NodeWithScore]:
        """Restore nodes without blocking the event loop; see restore_nodes()."""
        return await asyncio.to_thread(self.restore_nodes, nodes)

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        found = check_found(nodes)
        if not found:
            return []
        settings = Replacing(self.rate, self.min_tokens, self.on_missing)
        passages = [passage(node.node) for node in found]
        replacements = replace_passages(passages, self.engine, self.memories, settings)
        changed = (self._changed(node, new) for node, new in zip(found, replacements, strict=True))
        return [node for node in changed if node is not None]

    def _changed(self, found: NodeWithScore, new: Replacement) -> NodeWithScore | None:
        if new.text is None:
            return None
        node = copied(found.node) if self.mode == "attach" else with_text(found.node, new.text)
        if new.memory is not None:
            node = described(node, new.memory)
        return found.model_copy(update={"node": node})
