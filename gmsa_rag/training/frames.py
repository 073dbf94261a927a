"""Frames: what a tokenizer's chat template puts around a question and its answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

# A private-use character stands for contents while the template runs.
_PLACE = "\ue000"


@dataclass(frozen=True)
class Frame:
    """How a conversation is laid out.

    Attributes:
        opening: Before a user's words, at the start.
        closing: After them: the answer follows.
        before_answer: What an answer starts with, such as a space.
        between: After an answer's end token, before the user's next words.
    """

    opening: str
    closing: str
    before_answer: str
    between: str


# A model without a chat template goes on from plain text; see Wording.
BARE = Frame("", "\nAnswer:", " ", "\n")


def frame_of(tokenizer: PreTrainedTokenizerBase) -> Frame:
    """The frame of a tokenizer's chat template; `BARE` where it has none.

    Args:
        tokenizer: Any; its template is rendered once without and once with an earlier answer.
    """
    if not tokenizer.chat_template:
        return BARE
    user, assistant = {"role": "user", "content": _PLACE}, {"role": "assistant", "content": _PLACE}
    opening, closing = _render(tokenizer, [user])
    _, answering, between, _ = _render(tokenizer, [user, assistant, user])
    before_answer = answering.removeprefix(closing) if answering.startswith(closing) else ""
    end = str(tokenizer.eos_token or "")
    return Frame(opening, closing, before_answer, between.removeprefix(end))


@lru_cache(maxsize=256)
def lay_out(tokenizer: PreTrainedTokenizerBase, turns: tuple[tuple[str, str], ...]) -> str:
    """Turns laid out by a tokenizer's chat template, ready for an answer; one below the other where it has none.

    Args:
        tokenizer: Any.
        turns: Role and content of each.
    """
    if not tokenizer.chat_template:
        return "\n".join(content for _, content in turns)
    pieces = _render(tokenizer, [{"role": role, "content": _PLACE} for role, _ in turns])
    contents = [*(content for _, content in turns), ""]
    return "".join(piece + content for piece, content in zip(pieces, contents, strict=True))


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]) -> list[str]:
    rendered = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    return str(rendered).split(_PLACE)
