"""What GMSAVectorStore is given, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gmsa_rag.errors import InputError
from gmsa_rag.memory.handles import find_handles


def check_original(text: str) -> str:
    """The text itself; InputError if it is nothing but handles."""
    rest = text
    for handle in find_handles(text):
        rest = rest.replace(handle, "")
    if rest != text and not rest.strip():
        raise InputError(
            "text",
            expected="the original, which an embedding model understands",
            got=f"a handle, {text.strip()[:80]}",
            remedy="Index documents before they are compressed, or restore_documents() first.",
        )
    return text


def check_settings(settings: Mapping[str, Any], *supported: str) -> None:
    """Raise InputError if a search is given settings beyond those it supports: a filter misspelt filters nothing."""
    if settings:
        remedy = "Leave out the rest, or mend its spelling."
        got = ", ".join(map(repr, settings))[:80]
        raise InputError("search", expected=f"only {', '.join(supported)}", got=got, remedy=remedy)
