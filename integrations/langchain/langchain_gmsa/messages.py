"""LangChain messages to prompts with memories, and answers back to messages."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages.ai import UsageMetadata

from gmsa_rag.errors import InputTypeError
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.prompt import Part
from gmsa_rag.memory.handles import OnMissing, resolve_parts
from gmsa_rag.memory.memory import Memory
from gmsa_rag.memory.store import MemoryStore

PROVIDER = "gmsa"
Turn = tuple[str, str]
"""A role of the chat template, and a text."""

_ROLES: tuple[tuple[type[BaseMessage], str], ...] = (
    (SystemMessage, "system"),
    (HumanMessage, "user"),
    (AIMessage, "assistant"),
    (ToolMessage, "tool"),
    (FunctionMessage, "tool"),
)
_UNREADABLE = ("audio", "file", "image", "video")


@dataclass(frozen=True)
class Reading:
    """How handles are read.

    Attributes:
        on_missing: For a handle whose memory is gone: "error", "text" or "drop".
        allowed: The handles that may be used; None allows all.
        overflow: For a prompt that does not fit: "error", or "drop_last" to leave memories out from the end.
    """

    on_missing: OnMissing = "error"
    allowed: Collection[str] | None = None
    overflow: str = "error"


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


def read_turns(messages: Iterable[BaseMessage]) -> list[Turn]:
    """The role and text of each message.

    Raises:
        InputTypeError: If a message is of an unknown kind, or holds an image, audio, video or file.
    """
    return [(_role(message), _text(message)) for message in messages]


def read_prompt(turns: Sequence[Turn], gmsa: GMSA, store: MemoryStore, reading: Reading) -> Prompt:
    """Put memories in the place of handles, and the chat template around it all.

    Raises:
        HandleError: If a handle was cut, is unknown, or is not allowed.
        FingerprintError: If a memory is of another checkpoint.
        PromptTooLongError: If the prompt does not fit.
    """
    resolve = partial(store.resolve, fingerprint=gmsa.fingerprint)
    options: dict[str, Any] = {"on_missing": reading.on_missing, "text_of": store.text, "allowed": reading.allowed}
    messages = [{"role": role, "content": resolve_parts(text, resolve, **options)} for role, text in turns]
    parts, dropped = gmsa.fit(gmsa.chat_prompt(messages), reading.overflow)
    memories = [part for part in parts if isinstance(part, Memory)]
    return Prompt(
        parts,
        gmsa.num_positions(parts),
        sum(memory.num_soft_tokens for memory in memories),
        sum(memory.num_tokens for memory in memories),
        dropped,
    )


def usage(prompt: Prompt, text: str, gmsa: GMSA) -> UsageMetadata:
    """Positions of the prompt, and tokens of the answer's text, which has neither its end nor its leading space."""
    answered = len(gmsa.codec.encode([text])[0])
    return UsageMetadata(
        input_tokens=prompt.positions, output_tokens=answered, total_tokens=prompt.positions + answered
    )


def response_metadata(prompt: Prompt, model: str) -> dict[str, Any]:
    """What a response says of its making."""
    numbers = {"soft_tokens": prompt.soft_tokens, "original_tokens": prompt.original_tokens}
    if prompt.dropped:
        numbers["dropped_memories"] = prompt.dropped
    return {"model_name": model, "model_provider": PROVIDER, "gmsa": numbers}


def without_leading_space(pieces: Iterable[str]) -> Iterator[str]:
    """Pieces of an answer without the one space that the decoder puts in front of it."""
    started = False
    for piece in pieces:
        rest = piece if started else piece.removeprefix(" ")
        started = started or bool(piece)
        if rest:
            yield rest


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        return message.role
    for kind, role in _ROLES:
        if isinstance(message, kind):
            return role
    raise InputTypeError(
        "message",
        expected="a system, human, AI, tool or chat message",
        got=type(message).__name__,
        remedy="Leave it out.",
    )


def _text(message: BaseMessage) -> str:
    texts: list[str] = []
    for block in message.content_blocks:
        if block["type"] in _UNREADABLE:
            raise InputTypeError(
                "message", expected="text", got=f"a block of type {block['type']!r}", remedy="Send its text instead."
            )
        if block["type"] in ("text", "text-plain"):
            texts.append(str(block.get("text") or ""))
    return "".join(texts)
