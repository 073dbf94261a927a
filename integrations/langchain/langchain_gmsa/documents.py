"""Documents and the handles they carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.documents import Document

from gmsa_rag.errors import InputTypeError
from gmsa_rag.inference.replacing import KEY, METADATA, Passage, passage_of


def check_documents(documents: object) -> list[Document]:
    """The documents as a list; InputTypeError unless they are a sequence of Document."""
    if not isinstance(documents, Sequence) or isinstance(documents, (str, bytes)):
        remedy = "Put it into a list." if isinstance(documents, Document) else "Pass [Document(page_content=...), ...]."
        got = type(documents).__name__
        raise InputTypeError("documents", expected="a sequence of Document", got=got, remedy=remedy)
    for index, document in enumerate(documents):
        if not isinstance(document, Document):
            got = type(document).__name__
            raise InputTypeError(
                f"document {index}", expected="a Document", got=got, remedy="Wrap texts in Document(page_content=...)."
            )
    return list(documents)


def passage(document: Document) -> Passage:
    """The passage of a document.

    Raises:
        MalformedHandleError: If it was compressed, and its text is a cut or altered handle now.
    """
    name = f"document {document.id or document.metadata.get(KEY, '')}".rstrip()
    return passage_of(document.page_content, document.metadata, name)


def undescribed(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata without what compression adds."""
    return {name: value for name, value in metadata.items() if name not in METADATA}


def changed(document: Document, text: str, metadata: Mapping[str, Any]) -> Document:
    """A copy of a document, its id kept; the document itself is left as it is."""
    return document.model_copy(update={"page_content": text, "metadata": dict(metadata)})
