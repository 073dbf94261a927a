"""Chat templates around prompts that hold memories."""

import re
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from gmsa_rag.errors import ConfigError, InputError
from gmsa_rag.inference.prompt import Part, Verbatim, check_prompt
from gmsa_rag.memory.memory import Memory

# Private-use characters stand for contents while the template runs: it sees no text it could mistake for its own.
_PLACE = re.compile("\ue000(\\d+)\ue001")


def chat_parts(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]]) -> list[Part]:
    """Render messages with the tokenizer's chat template.

    Args:
        tokenizer: With a chat template.
        messages: `{"role": ..., "content": parts}`; neighbours of the same role are joined, as most templates want.

    Returns:
        Prompt parts: the template's text, and the contents as verbatim text and memories.

    Raises:
        ConfigError: If there is no chat template.
        InputError: If there is no message, or the template refuses them.
    """
    if not tokenizer.chat_template:
        raise ConfigError(
            "tokenizer", expected="a chat template", got="none", remedy="Use generate() or answer(), or set one."
        )
    contents: list[Sequence[Part]] = []
    rendered_messages: list[dict[str, str]] = []
    for message in _join_neighbours(messages):
        rendered_messages.append({"role": message["role"], "content": f"\ue000{len(contents)}\ue001"})
        contents.append(message["content"])
    try:
        rendered = tokenizer.apply_chat_template(rendered_messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise InputError(
            "messages", expected="roles the chat template takes", got=str(error), remedy="Change their order or roles."
        ) from error
    parts: list[Part] = []
    for index, piece in enumerate(_PLACE.split(str(rendered))):
        parts += [piece] if index % 2 == 0 else contents[int(piece)]
    return [part for part in parts if isinstance(part, Memory) or part]


def _join_neighbours(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    if not messages:
        raise InputError("messages", expected="at least one", got="none", remedy="Send a message.")
    joined: list[dict[str, Any]] = []
    for message in messages:
        content = [Verbatim(p) if isinstance(p, str) else p for p in check_prompt(message["content"] or " ")]
        if joined and joined[-1]["role"] == message["role"]:
            joined[-1]["content"] += [Verbatim("\n"), *content]
        else:
            joined.append({"role": message["role"], "content": content})
    return joined
