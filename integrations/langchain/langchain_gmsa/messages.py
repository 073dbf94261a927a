"""LangChain messages to prompts with memories, and answers back to messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
from gmsa_rag.inference.generation import FinishReason
from gmsa_rag.inference.reading import Prompt, Turn
from gmsa_rag.memory.handles import parse_handle

PROVIDER = "gmsa"
_ROLES: tuple[tuple[type[BaseMessage], str], ...] = (
    (SystemMessage, "system"),
    (HumanMessage, "user"),
    (AIMessage, "assistant"),
    (ToolMessage, "tool"),
    (FunctionMessage, "tool"),
)
_FILE_ID = "gmsa:"
_UNREADABLE = ("audio", "file", "image", "video")


def turns_of(messages: Iterable[BaseMessage]) -> list[Turn]:
    """The role and text of each message.

    A block may name a memory instead of text: `{"type": "non_standard", "value": {"gmsa": {"handle": handle}}}`, or a
    `text-plain` block whose `file_id` is a handle without its brackets, which then is read in the place of its text.

    Raises:
        InputTypeError: If a message is of an unknown kind, or holds an image, audio, video or file.
        MalformedHandleError: If a block names no whole handle.
    """
    return [(_role(message), _text(message)) for message in messages]


def usage(prompt: Prompt, text: str, gmsa: GMSA) -> UsageMetadata:
    """Positions of the prompt, and tokens of the answer's text, which has neither its end nor its leading space."""
    answered = len(gmsa.codec.encode([text])[0])
    return UsageMetadata(
        input_tokens=prompt.positions, output_tokens=answered, total_tokens=prompt.positions + answered
    )


def response_metadata(prompt: Prompt, model: str, finish_reason: FinishReason | None) -> dict[str, Any]:
    """What a response says of its making."""
    numbers = {"soft_tokens": prompt.soft_tokens, "original_tokens": prompt.original_tokens}
    if prompt.dropped:
        numbers["dropped_memories"] = prompt.dropped
    return {"model_name": model, "model_provider": PROVIDER, "finish_reason": finish_reason, "gmsa": numbers}


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
    return "".join(_block_text(block) for block in message.content_blocks)


def _block_text(block: Mapping[str, Any]) -> str:
    """Text of a content block, the handle of one that names a memory, nothing for calls and reasoning."""
    if block["type"] in _UNREADABLE:
        raise InputTypeError(
            "message", expected="text", got=f"a block of type {block['type']!r}", remedy="Send its text instead."
        )
    if block["type"] == "non_standard":
        value = block.get("value")
        return _block_handle(value[PROVIDER]) if isinstance(value, Mapping) and PROVIDER in value else ""
    if block["type"] == "text-plain" and str(block.get("file_id") or "").startswith(_FILE_ID):
        return str(parse_handle(f"[[{block['file_id']}]]"))
    return str(block.get("text") or "") if block["type"] in ("text", "text-plain") else ""


def _block_handle(value: object) -> str:
    handle = value.get("handle") if isinstance(value, Mapping) else None
    if not isinstance(handle, str):
        raise InputTypeError(
            "non_standard block", expected='{"gmsa": {"handle": ...}}', got=repr(value)[:80], remedy="Name the handle."
        )
    return str(parse_handle(handle))
