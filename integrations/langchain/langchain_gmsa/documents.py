"""Documents and the handles they carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.documents import Document

from gmsa_rag.errors import InputTypeError
from gmsa_rag.memory.handles import find_handles
from gmsa_rag.memory.memory import Memory

KEY, RATE = "gmsa_key", "gmsa_rate"
METADATA = (KEY, RATE, "gmsa_num_tokens", "gmsa_num_soft_tokens", "gmsa_fingerprint")


def check_documents(documents: object) -> list[Document]:
    """The documents as a list; InputTypeError unless they are a sequence of Document."""
    if not isinstance(documents, Sequence) or isinstance(documents, (str, bytes)):
        raise InputTypeError(
            "documents", expected="a sequence of Document", got=type(documents).__name__, remedy="Pass a list of them."
        )
    for index, document in enumerate(documents):
        if not isinstance(document, Document):
            got = type(document).__name__
            raise InputTypeError(
                f"document {index}", expected="a Document", got=got, remedy="Wrap texts in Document(page_content=...)."
            )
    return list(documents)


def whole_handle(text: str) -> str | None:
    """The handle, if a text is exactly one, with no more than white space around it."""
    handles = find_handles(text)
    return handles[0] if len(handles) == 1 and handles[0] == text.strip() else None


def describe(memory: Memory) -> dict[str, Any]:
    """The metadata of a compressed document: flat JSON scalars."""
    values = (memory.key, memory.rate, memory.num_tokens, memory.num_soft_tokens, memory.fingerprint)
    return dict(zip(METADATA, values, strict=True))


def undescribed(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata without what describe() adds."""
    return {name: value for name, value in metadata.items() if name not in METADATA}


def changed(document: Document, text: str, metadata: Mapping[str, Any]) -> Document:
    """A copy of a document, its id kept; the document itself is left as it is."""
    return document.model_copy(update={"page_content": text, "metadata": dict(metadata)})
