"""What indexing does to rows that are there: whose they are, which of them leave, which are compressed again."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from gmsa_rag.documents import Document, Root
from gmsa_rag.errors import InputError, StoreError
from gmsa_rag.memory.handles import neutralise
from gmsa_rag.memory.index import Entry, VectorIndex
from gmsa_rag.memory.store import MemoryStore

__all__ = ["Plan", "batches", "check_root", "document_of", "forget", "leaves", "noting", "only_of", "title_of"]


@dataclass
class Plan:
    """What is to become of the rows.

    Attributes:
        stale: Ids to remove.
        again: Other rows to compress again, each with its rate.
        outdated: Texts that rows lose, as they were indexed.
    """

    stale: list[str] = field(default_factory=list)
    again: list[tuple[Document, int]] = field(default_factory=list)
    outdated: list[str] = field(default_factory=list)


def noting(document: Document, root: Root | None) -> Document:
    """The document with its root in its metadata; None notes none."""
    return replace(document, metadata={**document.metadata, "gmsa_root": root.digest}) if root else document


def document_of(entry: Entry) -> Document:
    """The document that a row was made of."""
    source = str(entry.metadata.get("gmsa_source", entry.id))
    return Document(entry.id, entry.text, title_of(entry), source, entry.metadata)


def title_of(entry: Entry) -> str:
    """The title of a row; "" for none."""
    return str(entry.metadata.get("title", ""))


def check_root(entry: Entry, document: Document, root: Root | None, path: str) -> None:
    """Raise StoreError if a document would take the id of another root's row that says something else."""
    noted, same = entry.metadata.get("gmsa_root"), (entry.text, title_of(entry)) == (document.text, document.title)
    what = f"passage {entry.id!r} of store {path}"
    if noted is None:
        return
    if root is None:
        got, remedy = "documents of no root", "Pass root=root_of(path) with the documents."
        raise StoreError(what, expected="documents of the folder or file it is of", got=got, remedy=remedy)
    if noted != root.digest and not same:
        raise StoreError(
            what,
            expected="an id that no other folder or file has taken",
            got="that of a passage which was indexed from elsewhere and has another text",
            remedy="Index into another store, or remove the passage that is there first: `gmsa forget STORE ID`.",
        )


def leaves(entry: Entry, sources: Collection[str], root: Root | None) -> bool:
    """Whether a row that is not among the documents goes, by its source or as one of their whole root."""
    noted = entry.metadata.get("gmsa_root")
    if noted is None:
        return entry.metadata.get("gmsa_source") in sources
    if root is None or noted != root.digest:
        return False
    return root.whole or entry.metadata.get("gmsa_source") in sources


def batches(jobs: Sequence[tuple[Document, int]], size: int) -> Iterator[tuple[list[Document], int]]:
    """Neighbours of one rate together, at most `size` of them, and the rate."""
    for rate, group in groupby(jobs, key=itemgetter(1)):
        documents = [document for document, _ in group]
        for start in range(0, len(documents), size):
            yield documents[start : start + size], rate


def only_of(texts: Sequence[str], index: VectorIndex, without: Collection[str] = ()) -> list[str]:
    """The texts, neutralised, that no row is of but those named by `without`."""
    if not texts:
        return []
    held = {neutralise(entry.text) for entry in index.entries() if entry.id not in without}
    return [text for text in dict.fromkeys(map(neutralise, texts)) if text not in held]


def forget(path: str | Path, ids: Sequence[str]) -> int:
    """Remove passages: rows of the index, and their memories at every rate and of every checkpoint.

    The memories of a text that another row is of, too, stay. No model is loaded.

    Args:
        path: A file that a library made.
        ids: Names of passages, `id` of a Source; repeats count once.
    Returns:
        Passages removed.
    Raises:
        InputError: If there is no passage of one of the names; nothing is removed then.
        StoreError: If the file cannot be opened, or another connection keeps the bytes in its log.
    """
    ids = list(dict.fromkeys(ids))
    with MemoryStore(path) as store, VectorIndex(path) as index:
        found = index.get(ids)
        missing = [name for name, row in zip(ids, found, strict=True) if row is None]
        if missing:
            raise InputError(
                "passages to forget",
                expected=f"ids of passages in store {path}",
                got=", ".join(map(repr, missing)),
                remedy="Take the ids from `gmsa ask STORE QUESTION --json`; nothing was removed.",
            )
        try:
            store.forget_many(only_of([row.text for row in found if row is not None], index, without=ids))
        finally:
            index.delete(ids)
    return len(ids)
