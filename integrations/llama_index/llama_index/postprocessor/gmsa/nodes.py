"""LlamaIndex nodes and the handles they carry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.schema import BaseNode, MetadataMode, Node, NodeWithScore

from gmsa_rag.errors import InputTypeError
from gmsa_rag.inference.replacing import KEY, METADATA, Passage, describe, passage_of
from gmsa_rag.memory.memory import Memory


def check_nodes(nodes: object) -> list[BaseNode]:
    """The nodes as a list; InputTypeError unless they are a sequence of nodes."""
    checked: list[BaseNode] = _checked(nodes, BaseNode)
    return checked


def check_found(nodes: object) -> list[NodeWithScore]:
    """The nodes as a list; InputTypeError unless they are a sequence of NodeWithScore."""
    checked: list[NodeWithScore] = _checked(nodes, NodeWithScore)
    return checked


def passage(node: BaseNode) -> Passage:
    """The passage of a node; that of a node without text, such as an image, is empty.

    Raises:
        MalformedHandleError: If it was compressed, and its text is a cut or altered handle now.
    """
    return passage_of(node.get_content(MetadataMode.NONE), node.metadata, f"node {node.node_id}")


def copied(node: BaseNode) -> BaseNode:
    """A copy with lists and dicts of its own; the embedding, and what an IndexNode leads to, are shared."""
    return node.model_copy(
        update={
            "metadata": dict(node.metadata),
            "relationships": dict(node.relationships),
            "excluded_llm_metadata_keys": list(node.excluded_llm_metadata_keys),
            "excluded_embed_metadata_keys": list(node.excluded_embed_metadata_keys),
        }
    )


def with_text(node: BaseNode, text: str) -> BaseNode:
    """A copy of a node with another text; all else, such as an image beside it, stays."""
    copy = copied(node)
    if text != node.get_content(MetadataMode.NONE):
        if isinstance(copy, Node) and copy.text_resource is not None:
            copy.text_resource = copy.text_resource.model_copy(update={"text": text})
        else:
            copy.set_content(text)
    return copy


def described(node: BaseNode, memory: Memory) -> BaseNode:
    """A copy of a node with the metadata of its memory, which neither LLMs nor embeddings are shown."""
    copy = copied(node)
    copy.metadata |= describe(memory)
    for excluded in (copy.excluded_llm_metadata_keys, copy.excluded_embed_metadata_keys):
        excluded += [name for name in METADATA if name not in excluded]
    return copy


def undescribed(node: BaseNode) -> BaseNode:
    """A copy of a node without what described() adds."""
    copy = copied(node)
    if KEY in copy.metadata:
        copy.metadata = {name: value for name, value in copy.metadata.items() if name not in METADATA}
        copy.excluded_llm_metadata_keys = _others(copy.excluded_llm_metadata_keys)
        copy.excluded_embed_metadata_keys = _others(copy.excluded_embed_metadata_keys)
    return copy


def _checked(nodes: object, kind: type) -> list[Any]:
    if not isinstance(nodes, Sequence) or isinstance(nodes, (str, bytes)):
        got, remedy = type(nodes).__name__, "Pass a list of them."
        raise InputTypeError("nodes", expected=f"a sequence of {kind.__name__}", got=got, remedy=remedy)
    for index, node in enumerate(nodes):
        if not isinstance(node, kind):
            got, remedy = type(node).__name__, f"Pass {kind.__name__} objects."
            raise InputTypeError(f"node {index}", expected=f"a {kind.__name__}", got=got, remedy=remedy)
    return list(nodes)


def _others(names: list[str]) -> list[str]:
    return [name for name in names if name not in METADATA]
