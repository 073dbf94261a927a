"""The prompt that bundled checkpoints were trained on, in LangChain's terms."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate

from gmsa_rag.config import PASSAGE_TEMPLATE
from gmsa_rag.inference.prompt import passage_frame
from gmsa_rag.memory.handles import neutralise
from langchain_gmsa.documents import check_documents, passage

gmsa_prompt = ChatPromptTemplate.from_messages([("human", "{context}Question: {question}")])
"""Variables `context`, from format_docs(), and `question`; together the answer prompt of "gmsa-mini"."""


def format_docs(documents: Sequence[Document]) -> str:
    r"""Number documents for a prompt, each under its title if its metadata has a "title".

    Args:
        documents: Compressed or not. The handle of one whose metadata says that it was compressed stays as it is; in
            texts and titles, handles and look-alikes are neutralised.
    Returns:
        "[1] title\npassage\n" for each, without a title "[1]\npassage\n"; "" for none.
    Raises:
        InputTypeError: If they are no sequence of documents.
        MalformedHandleError: If a document was compressed, and its text is a cut or altered handle now.
    Example:
        >>> format_docs([Document("It begins in Germany.", metadata={"title": "Danube"}), Document("It is blue.")])
        '[1] Danube\nIt begins in Germany.\n[2]\nIt is blue.\n'
    """
    return "".join(_format(number, document) for number, document in enumerate(check_documents(documents), 1))


def _format(number: int, document: Document) -> str:
    before, after = passage_frame(PASSAGE_TEMPLATE, number, neutralise(str(document.metadata.get("title") or "")))
    found = passage(document)
    return before + (neutralise(found.text) if found.key is None else found.text.strip()) + after
