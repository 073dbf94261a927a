"""Passages of a framework's documents replaced by handles, and back: what to compress, and what to leave as it is."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gmsa_rag.checks import check_text, is_int
from gmsa_rag.errors import HandleError, MalformedHandleError, RateError, UnknownMemoryError
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.memory.handles import OnMissing, find_handles, neutralise
from gmsa_rag.memory.memory import Memory, memory_key
from gmsa_rag.memory.store import MemoryStore

logger = logging.getLogger(__name__)

KEY, RATE = "gmsa_key", "gmsa_rate"
_FINGERPRINT = "gmsa_fingerprint"
METADATA = (KEY, RATE, "gmsa_num_tokens", "gmsa_num_soft_tokens", _FINGERPRINT)


@dataclass(frozen=True)
class Passage:
    """A passage, and what its document says of it.

    Attributes:
        text: The text, or the handle that stands for it.
        name: What to call it in errors.
        key: The memory's, which the document's metadata says the handle stands for; None if the text is text, whatever
            it looks like.
    """

    text: str
    name: str
    key: str | None = None


@dataclass(frozen=True)
class Replacement:
    """What becomes of a passage.

    Attributes:
        text: What to put in its place: a handle, or the text; None to leave the document out.
        memory: The memory of the passage; None for one that was not compressed here.
    """

    text: str | None
    memory: Memory | None = None


Plan = Replacement | str
"""What becomes of a passage, or the text to compress."""


@dataclass(frozen=True)
class Replacing:
    """How passages are replaced.

    Attributes:
        rate: Tokens per soft token, >= 1.
        min_tokens: Shorter passages stay text.
        on_missing: For a handle whose memory is gone: "error" raises, "text" compresses the passage's own text again
            if the store still holds it, "drop" leaves the document out.
    """

    rate: int
    min_tokens: int = 0
    on_missing: OnMissing = "error"


def passage_of(text: str, metadata: Mapping[str, Any], name: str) -> Passage:
    """The passage of a document. A handle without the metadata that compression adds is text: anybody may write it.

    Args:
        text: Of the document.
        metadata: Of the document.
        name: What to call it in errors.
    Returns:
        The passage.
    Raises:
        MalformedHandleError: If it was compressed, and its text is a cut or altered handle now.
    """
    key, plain = metadata.get(KEY), neutralise(text)
    # An attached document keeps its text, in which look-alikes may be; any other has none but its handle.
    if not isinstance(key, str) or plain == text or _is_attached(plain, metadata):
        return Passage(text, name)
    if whole_handle(text) is None:
        raise MalformedHandleError(
            name,
            expected="one whole handle, as compression left it",
            got=repr(text[:60]),
            remedy="Make compression the last step that changes documents.",
        )
    return Passage(text, name, key)


def replace_passages(
    passages: Sequence[Passage], gmsa: GMSA, store: MemoryStore, settings: Replacing
) -> list[Replacement]:
    """Compress passages in one fused call; look-alikes of handles in them are neutralised.

    An empty passage is left as it is, and so is the handle of a memory whose key the document's metadata has. Any
    other handle is ordinary text.

    Args:
        passages: The passages.
        gmsa: Compresses them.
        store: Read and written.
        settings: How they are replaced.
    Returns:
        One replacement for each, in order.
    Raises:
        InputError: If a text is not valid Unicode.
        RateError: If a passage is a handle of another rate.
        UnknownMemoryError: If a memory is gone and `on_missing` says "error", or "text" and there is no text.
        FingerprintError: If a memory is of another checkpoint.
    """
    return carry_out([plan_passage(passage, gmsa, store, settings) for passage in passages], gmsa, store, settings)


def plan_passage(passage: Passage, gmsa: GMSA, store: MemoryStore, settings: Replacing) -> Plan:
    """What is to become of one passage; arguments and errors are those of replace_passages()."""
    text = check_text(passage.text, passage.name)
    if not text:
        return Replacement(text)
    if passage.key is None:
        return _as_text(passage)
    try:
        memory = store.resolve(text.strip(), fingerprint=gmsa.fingerprint)
    except HandleError as error:
        return _missing(passage, store, settings.on_missing, error)
    if memory.key != passage.key:
        return _as_text(passage)
    _check_rate(passage, memory, settings.rate)
    return Replacement(text)


def carry_out(plans: Sequence[Plan], gmsa: GMSA, store: MemoryStore, settings: Replacing) -> list[Replacement]:
    """Compress what is planned, in one fused call; see replace_passages()."""
    texts = [plan for plan in plans if isinstance(plan, str)]
    lengths = [len(ids) for ids in gmsa.codec.encode(texts)] if settings.min_tokens else [0] * len(texts)
    long = [text for text, length in zip(texts, lengths, strict=True) if length >= settings.min_tokens]
    found = dict(zip(long, gmsa.compress(long, settings.rate, store=store) if long else (), strict=True))
    return [_replacement(plan, found, store) if isinstance(plan, str) else plan for plan in plans]


def restore_passage(passage: Passage, store: MemoryStore) -> str:
    """The text that was compressed, look-alikes of handles in it neutralised.

    Args:
        passage: A compressed passage, or another, which is returned as it is.
        store: The store that compressed it.
    Returns:
        The text.
    Raises:
        MalformedHandleError: If the passage's key is not 32 hex digits.
        UnknownMemoryError: If the store does not hold the text of a compressed passage.
    """
    if passage.key is None:
        return passage.text
    text = _own_text(passage, store)
    if text is None:
        raise UnknownMemoryError(
            passage.name,
            expected="one whose text this store holds",
            got=f"the handle {passage.text.strip()}",
            remedy="Use the store that compressed it, one that keeps texts.",
        )
    return text


def whole_handle(text: str) -> str | None:
    """The handle, if a text is exactly one, with no more than white space around it."""
    handles = find_handles(text)
    return handles[0] if len(handles) == 1 and handles[0] == text.strip() else None


def describe(memory: Memory) -> dict[str, str | int]:
    """The metadata of a compressed document: flat JSON scalars."""
    values = (memory.key, memory.rate, memory.num_tokens, memory.num_soft_tokens, memory.fingerprint)
    return dict(zip(METADATA, values, strict=True))


def _is_attached(plain: str, metadata: Mapping[str, Any]) -> bool:
    """Whether the metadata is that of this text."""
    fingerprint, rate = metadata.get(_FINGERPRINT), metadata.get(RATE)
    if not isinstance(fingerprint, str) or not is_int(rate):
        return False
    return bool(memory_key(fingerprint, rate, plain) == metadata[KEY])


def _as_text(passage: Passage) -> str:
    if whole_handle(passage.text):
        logger.warning("%s is a handle that its metadata does not vouch for: compressed as text", passage.name)
    return neutralise(passage.text)


def _own_text(passage: Passage, store: MemoryStore) -> str | None:
    """What the store holds of a handle; None unless it is the text of the key as well, and so no other document's."""
    text = store.text(passage.text.strip())
    return text if text is not None and passage.key is not None and store.text(passage.key) == text else None


def _missing(passage: Passage, store: MemoryStore, on_missing: OnMissing, error: HandleError) -> Plan:
    if not isinstance(error, UnknownMemoryError):
        raise error
    if on_missing == "drop":
        return Replacement(None)
    text = _own_text(passage, store) if on_missing == "text" else None
    if text is None:
        raise error
    return text


def _check_rate(passage: Passage, memory: Memory, rate: int) -> None:
    if memory.rate != rate:
        raise RateError(
            passage.name,
            expected=f"text, or a handle of rate {rate}",
            got=f"a handle of rate {memory.rate}",
            remedy="Restore the text first, then compress it again.",
        )


def _replacement(text: str, found: dict[str, Memory], store: MemoryStore) -> Replacement:
    memory = found.get(text)
    return Replacement(text) if memory is None else Replacement(store.handle(memory), memory)
