"""Prompts: text and memories in any order, the checkpoint's own templates, and what fits into the decoder."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from gmsa_rag.checks import check_text
from gmsa_rag.config import GMSAConfig
from gmsa_rag.errors import ConfigError, InputError, InputTypeError, PromptTooLongError
from gmsa_rag.inference.generation import FinishReason
from gmsa_rag.inference.tokens import TokenCodec
from gmsa_rag.memory.memory import Memory

logger = logging.getLogger(__name__)
_CITED = r"\[\d{1,3}(?:\s*,\s*\d{1,3})*\]"
CITATION_AT_END, CITATION_WITHIN = re.compile(rf"{_CITED}$"), re.compile(rf"\s{_CITED}(?=[\s.,;:!?])")
CUT_CITATION = re.compile(r"\[[\d\s,]*$")  # by a limit on new tokens


class Verbatim(str):
    """Text of a passage or a user: a control token's name in it stays text."""


class _Run(int):
    """Number of a run of ordinary text."""


Part = str | Memory
# What stands among the text of a prompt.
Kept = TypeVar("Kept")


class Fitted(NamedTuple):
    """A prompt that fits into the decoder.

    Attributes:
        parts: What it was made of, without what was left out.
        tokens: The same, its text tokenised.
        dropped: Memories that were left out.
    """

    parts: list[Part]
    tokens: list[list[int] | Memory]
    dropped: int


@dataclass(frozen=True)
class Answer:
    """What a decoder answered.

    Attributes:
        text: The bare answer.
        citations: Numbers of the passages it names, counted from 1 as in the prompt; empty if it names none.
        dropped: Numbers of the passages that were left out with `overflow="drop_last"`.
        abstained: Whether it says that the passages do not hold the answer, in the words of the checkpoint's
            `no_answer`.
        finish_reason: "stop" if it came to its end; "length" if the limit on new tokens or the window cut it off.
    """

    text: str
    citations: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()
    abstained: bool = False
    finish_reason: FinishReason = "stop"


def check_prompt(prompt: object) -> list[Part]:
    """Return a prompt's parts, or raise InputError / InputTypeError."""
    parts = [prompt] if isinstance(prompt, (str, Memory)) else list(prompt) if isinstance(prompt, Sequence) else None
    if parts is None or not all(isinstance(part, (str, Memory)) for part in parts):
        got = next((type(part).__name__ for part in parts or [] if not isinstance(part, (str, Memory))), "")
        raise InputTypeError(
            "prompt",
            expected="a sequence of str and Memory",
            got=got or type(prompt).__name__,
            remedy="Turn documents into memories with compress(), or into text.",
        )
    for part in parts:
        if isinstance(part, str):
            check_text(part, "prompt")
    if not any(part.num_soft_tokens if isinstance(part, Memory) else part for part in parts):
        raise InputError("prompt", expected="some text or a memory", got="an empty one", remedy="Ask something.")
    return parts


def tokenise(parts: Sequence[str | Kept], codec: TokenCodec) -> list[list[int] | Kept]:
    """Token ids of a prompt's text, its memories in between; a beginning-of-sequence token in front.

    Text that touches is tokenised as one, whatever parts it came in. What is no text stays as it is: training has
    passages where inference has memories.
    """
    tokens = tokenise_pieces(parts, codec)
    first = tokens[0] if tokens and isinstance(tokens[0], list) else []
    if first[: len(codec.prefix)] == codec.prefix:
        return tokens
    return [codec.prefix + first, *(tokens[1:] if first else tokens)]


def tokenise_pieces(parts: Sequence[str | Kept], codec: TokenCodec) -> list[list[int] | Kept]:
    """The same of a piece of a prompt, with nothing put in front."""
    runs: list[str] = []  # ordinary text that touches; all of them are tokenised in one call
    places: list[_Run | list[int] | Kept] = []
    for part in parts:
        if not isinstance(part, str):
            places.append(part)
            continue
        for piece, control in [(str(part), False)] if isinstance(part, Verbatim) else codec.split_control(part):
            if control:
                places.append([codec.control_id(piece)])
            elif places and isinstance(places[-1], _Run):
                runs[-1] += piece
            elif piece:
                places.append(_Run(len(runs)))
                runs.append(piece)
    return _joined(places, codec.encode(runs))


def num_positions(tokens: Sequence[Sequence[int] | Memory]) -> int:
    """Positions a tokenised prompt takes in the decoder."""
    return sum(part.num_soft_tokens if isinstance(part, Memory) else len(part) for part in tokens)


def fit(parts: list[Part], codec: TokenCodec, window: int, overflow: str, room: int = 1) -> Fitted:
    """Leave memories out from the end until a prompt and `room` positions fit; see `GMSA.fit`."""
    check_overflow(overflow)
    tokens, dropped = tokenise(parts, codec), 0
    while overflow == "drop_last" and num_positions(tokens) + room > window:
        last = max((index for index, part in enumerate(parts) if isinstance(part, Memory)), default=None)
        if last is None:
            break
        parts = parts[:last] + parts[last + 1 :]
        tokens, dropped = tokenise(parts, codec), dropped + 1
    if dropped:
        logger.warning("prompt too long: left out the last %d of its memories", dropped)
    check_fits(num_positions(tokens), window)
    return Fitted(parts, tokens, dropped)


def check_fits(positions: int, window: int) -> None:
    """Raise PromptTooLongError if a prompt leaves no room for an answer in the decoder's window."""
    if positions >= window:
        excess = positions - window + 1
        raise PromptTooLongError(
            "prompt",
            expected=f"at most {window - 1} positions, one left for an answer",
            got=f"{positions}, {excess} too many",
            remedy="Pass fewer passages, compress at a higher rate, or use overflow='drop_last'.",
            excess=excess,
        )


def check_overflow(overflow: str) -> None:
    """Raise InputError unless it is a way to handle overflow."""
    if overflow not in ("error", "drop_last"):
        raise InputError("overflow", expected="'error' or 'drop_last'", got=repr(overflow), remedy="Choose one.")


def passage_frame(template: str, number: int, title: str) -> tuple[str, str]:
    """What stands before and after a passage in a prompt; an empty title leaves no gap."""
    before, _, after = template.partition("{passage}")
    if not title:
        for gap in (" ({title})", " {title}", "{title}: ", "{title}\n"):
            before = before.replace(gap, "")
    return _fill(before, {"number": str(number), "title": title}), _fill(after, {"number": str(number), "title": title})


def restore_length(num_tokens: int) -> int:
    """Most tokens to generate for a restoration: those of the passage, and room for one that goes astray."""
    return num_tokens + num_tokens // 4 + 8


def restore_prompt(config: GMSAConfig, memory: Memory) -> list[Part]:
    """The checkpoint's prompt for restoring a memory."""
    before, found, after = config.restore_template.partition("{memory}")
    if not found:
        raise ConfigError("restore_template", expected="{memory} in it", got=config.restore_template, remedy="Add it.")
    return [before, memory, after]


def answer_prompt(
    config: GMSAConfig, question: str, passages: Sequence[Part], titles: Sequence[str] | None
) -> list[Part]:
    """The checkpoint's prompt for a question.

    Raises:
        InputTypeError: If the question, a passage or a title is of a wrong type.
        InputError: If titles and passages differ in number, or a text is not valid Unicode.
    """
    check_text(question, "question")
    if isinstance(passages, (str, Memory)):
        got, remedy = type(passages).__name__, "Put it into a list."
        raise InputTypeError("passages", expected="a sequence of str and Memory", got=got, remedy=remedy)
    for text in [*(passage for passage in passages if not isinstance(passage, Memory)), *(titles or ())]:
        check_text(text)
    if titles is not None and len(titles) != len(passages):
        raise InputError(
            "titles", expected=f"{len(passages)}, one a passage", got=str(len(titles)), remedy="Use '' for none."
        )
    parts: list[Part] = []
    for number, passage in enumerate(passages, 1):
        before, after = passage_frame(config.passage_template, number, titles[number - 1] if titles else "")
        parts += [Verbatim(before), passage if isinstance(passage, Memory) else Verbatim(passage), Verbatim(after)]
    head, found, tail = config.answer_template.partition("{passages}")
    if not found or "{question}" not in tail:
        raise ConfigError(
            "answer_template",
            expected="{passages}, then {question}",
            got=repr(config.answer_template),
            remedy="Mend config.json.",
        )
    before, _, after = tail.partition("{question}")
    return [head, *parts, before, Verbatim(question), after]


def parse_answer(
    text: str,
    config: GMSAConfig,
    *,
    num_passages: int | None = None,
    num_dropped: int = 0,
    finish_reason: FinishReason = "stop",
) -> Answer:
    """Part an answer from the passage numbers in it.

    Args:
        text: What the decoder said.
        config: Says whether it was trained to cite, and what it says where it finds no answer.
        num_passages: How many the prompt had; a number beyond is no citation. None if that is not known.
        num_dropped: How many were left out after them.
        finish_reason: Why nothing came after the text.
    """
    bare, numbers = _part_citations(text, num_passages) if config.cites else (text.strip(), [])
    ends = ".!"
    abstained = bool(config.no_answer) and bare.casefold().rstrip(ends) == config.no_answer.casefold().rstrip(ends)
    first_dropped = (num_passages or 0) + 1
    dropped = tuple(range(first_dropped, first_dropped + num_dropped))
    return Answer(bare, tuple(dict.fromkeys(numbers)), dropped, abstained, finish_reason)


def _part_citations(text: str, num_passages: int | None) -> tuple[str, list[int]]:
    """An answer without its citations, and their numbers; within it, only numbers of passages are taken for some."""

    def known(cited: str) -> list[int]:
        numbers = map(int, re.findall(r"\d+", cited))
        return [number for number in numbers if number >= 1 and (num_passages is None or number <= num_passages)]

    within: list[int] = []

    def take(match: re.Match[str]) -> str:
        numbers = known(match.group())
        within.extend(numbers)
        return "" if numbers else match.group()

    whole = CUT_CITATION.sub("", text).strip()
    bare = whole.rstrip(".!?")
    sentence_end, at_end = whole[len(bare) :], ""
    while found := CITATION_AT_END.search(bare):
        bare, at_end = bare[: found.start()].rstrip(" \n,;"), found.group() + at_end
    if not at_end:
        bare = whole
    bare = CITATION_WITHIN.sub(take, bare + " ").strip()
    return bare + sentence_end if at_end else bare, within + known(at_end)


def _fill(template: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        template = template.replace("{" + name + "}", value)
    return template


def _joined(places: Sequence[_Run | list[int] | Kept], runs: Sequence[list[int]]) -> list[list[int] | Kept]:
    """Put the token ids of runs in their places, and join those that touch."""
    tokens: list[list[int] | Kept] = []
    for place in places:
        ids = runs[place] if isinstance(place, _Run) else place
        last = tokens[-1] if tokens else None
        if isinstance(ids, list) and isinstance(last, list):
            last.extend(ids)
        elif not isinstance(ids, list):
            tokens.append(ids)
        elif ids:
            tokens.append(list(ids))
    return tokens
