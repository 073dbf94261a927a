"""Prompts with handles in them, as a chat model reads them: memories in their places, and what the whole takes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.prompt import Part, Verbatim
from gmsa_rag.memory.handles import OnMissing, resolve_parts
from gmsa_rag.memory.memory import Memory
from gmsa_rag.memory.store import MemoryStore

Turn = tuple[str, str]
"""A role of the chat template, and a text."""


@dataclass(frozen=True)
class Reading:
    """How handles are read.

    Attributes:
        on_missing: For a handle whose memory is gone: "error", "text" or "drop".
        allowed: The handles that may be used; None allows all.
        overflow: For a prompt that does not fit: "error", or "drop_last" to leave memories out from the end.
        room: Positions to leave for an answer with "drop_last"; as many as the window holds, or more, count as 1.
    """

    on_missing: OnMissing = "error"
    allowed: Collection[str] | None = None
    overflow: str = "error"
    room: int = 1


@dataclass(frozen=True)
class Prompt:
    """A prompt as the decoder reads it, and what it takes.

    Attributes:
        parts: For GMSA.generate.
        positions: Positions in the decoder.
        soft_tokens: How many of them are soft tokens.
        original_tokens: Tokens of the passages that those stand for.
        dropped: Memories that were left out.
    """

    parts: list[Part]
    positions: int
    soft_tokens: int
    original_tokens: int
    dropped: int = 0


def read_turns(turns: Sequence[Turn], gmsa: GMSA, store: MemoryStore, reading: Reading) -> Prompt:
    """Put memories in the place of handles, and the chat template around it all.

    Args:
        turns: The messages of a chat.
        gmsa: Whose template and window count.
        store: Holds the memories.
        reading: How handles are read.
    Returns:
        The prompt.
    Raises:
        HandleError: If a handle was cut, is unknown, or is not allowed.
        FingerprintError: If a memory is of another checkpoint.
        PromptTooLongError: If the prompt does not fit.
        ConfigError: If the checkpoint has no chat template.
    """
    messages = [{"role": role, "content": _resolve(text, gmsa, store, reading)} for role, text in turns]
    return _measured(gmsa.chat_prompt(messages), gmsa, reading)


def read_text(text: str, gmsa: GMSA, store: MemoryStore, reading: Reading, *, verbatim: bool = False) -> Prompt:
    """Put memories in the place of handles in a prompt that is complete, template and all.

    Args:
        text: The prompt.
        gmsa: Whose window counts.
        store: Holds the memories.
        reading: How handles are read.
        verbatim: Whether names of control tokens in it stay text.
    Returns:
        The prompt.
    Raises:
        HandleError: As read_turns(), and so are FingerprintError and PromptTooLongError.
    """
    parts = _resolve(text, gmsa, store, reading)
    return _measured([Verbatim(p) if verbatim and isinstance(p, str) else p for p in parts], gmsa, reading)


def without_leading_space(pieces: Iterable[str]) -> Iterator[str]:
    """Pieces of an answer without the one space that the decoder puts in front of it."""
    started = False
    for piece in pieces:
        rest = piece if started else piece.removeprefix(" ")
        started = started or bool(piece)
        if rest:
            yield rest


def _resolve(text: str, gmsa: GMSA, store: MemoryStore, reading: Reading) -> list[Part]:
    return resolve_parts(
        text,
        lambda handle: store.resolve(handle, fingerprint=gmsa.fingerprint),
        on_missing=reading.on_missing,
        text_of=store.text,
        allowed=reading.allowed,
    )


def _measured(parts: list[Part], gmsa: GMSA, reading: Reading) -> Prompt:
    room = reading.room if reading.room < gmsa.decoder_window else 1
    parts, dropped = gmsa.fit(parts, reading.overflow, room)
    memories = [part for part in parts if isinstance(part, Memory)]
    return Prompt(
        parts,
        gmsa.num_positions(parts),
        sum(memory.num_soft_tokens for memory in memories),
        sum(memory.num_tokens for memory in memories),
        dropped,
    )
