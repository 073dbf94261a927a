"""LlamaIndex messages to turns of the chat template, and answers back to responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    MessageRole,
    TextBlock,
    ThinkingBlock,
)

from gmsa_rag.errors import InputError, InputTypeError
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.generation import FinishReason
from gmsa_rag.inference.reading import Prompt, Turn

_ROLES = {
    MessageRole.DEVELOPER: "system",
    MessageRole.FUNCTION: "tool",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
}
_FRAMES = (("system", "user"), ("user",))
_template_positions: WeakKeyDictionary[GMSA, int] = WeakKeyDictionary()


def turns(messages: Sequence[ChatMessage]) -> list[Turn]:
    """The role and text of each message.

    Raises:
        InputTypeError: If a message holds an image, audio, video, document, citation or tool call.
    """
    return [(_ROLES.get(message.role, message.role.value), _text(message)) for message in messages]


def template_positions(gmsa: GMSA) -> int:
    """Positions that the chat template takes around a user's message, with a system message or without.

    Each message is counted as one space, which leaves room for text that takes one token more beside the template.

    Args:
        gmsa: Whose template; it is looked at once.
    Returns:
        The larger number of the two, or the only one if the template takes no system message; 0 without a template.
    Raises:
        InputError: If the template takes neither.
    """
    if gmsa not in _template_positions:
        _template_positions[gmsa] = _counted(gmsa) if gmsa.tokenizer.chat_template else 0
    return _template_positions[gmsa]


def usage(prompt: Prompt, text: str, gmsa: GMSA) -> dict[str, int]:
    """Positions of the prompt, and tokens of the answer's text, under the names that LlamaIndex counts by."""
    answered = len(gmsa.codec.encode([text])[0])
    numbers = {"prompt_tokens": prompt.positions, "completion_tokens": answered}
    return {**numbers, "total_tokens": prompt.positions + answered}


def raw(prompt: Prompt, numbers: dict[str, int], model: str, finish_reason: FinishReason | None) -> dict[str, Any]:
    """What a response says of its making."""
    gmsa = {"soft_tokens": prompt.soft_tokens, "original_tokens": prompt.original_tokens}
    if prompt.dropped:
        gmsa["dropped_memories"] = prompt.dropped
    return {"model": model, "usage": numbers, "finish_reason": finish_reason, "gmsa": gmsa}


def completion(text: str, delta: str | None = None, raw: dict[str, Any] | None = None) -> CompletionResponse:
    """A completion; `raw` is for a whole one, or the last of a stream."""
    return CompletionResponse(text=text, delta=delta, raw=raw, additional_kwargs=raw["usage"] if raw else {})


def as_chat(response: CompletionResponse) -> ChatResponse:
    """A completion as an answer in a chat."""
    return ChatResponse(
        message=ChatMessage(role=MessageRole.ASSISTANT, content=response.text),
        delta=response.delta,
        raw=response.raw,
        additional_kwargs=response.additional_kwargs,
    )


def _counted(gmsa: GMSA) -> int:
    counts, refused = [], None
    for roles in _FRAMES:
        try:
            prompt = gmsa.chat_prompt([{"role": role, "content": " "} for role in roles])
        except InputError as error:
            refused = error
        else:
            counts.append(gmsa.num_positions(prompt))
    if refused is not None and not counts:
        raise refused
    return max(counts)


def _text(message: ChatMessage) -> str:
    texts = []
    for block in message.blocks:
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif not isinstance(block, (CachePoint, ThinkingBlock)):
            got = f"a block of type {block.block_type!r}"
            raise InputTypeError("message", expected="text", got=got, remedy="Send its text instead.")
    return "\n".join(texts)
