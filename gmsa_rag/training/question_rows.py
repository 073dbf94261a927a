"""A row of a question file, in either of its two forms, and the question it holds."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gmsa_rag.checks import check_text, is_int


@dataclass(frozen=True)
class Question:
    """A question with the passages it is asked of.

    Attributes:
        question: The question.
        answers: Accepted answers, the first is the one trained on.
        titles: Title of each passage.
        passages: Text of each passage.
        gold: Indices of the passages that hold the answer.
    """

    question: str
    answers: tuple[str, ...]
    titles: tuple[str, ...]
    passages: tuple[str, ...]
    gold: tuple[int, ...]


def parse_line(line: bytes) -> Question:
    """The question of a line of a question file.

    Raises:
        ValueError: If it is malformed; the message says why.
    """
    return parse_row(parse_object(line))


def parse_object(line: bytes) -> Mapping[str, Any]:
    """The JSON object of a line.

    Raises:
        ValueError: If it holds none; the message says why.
    """
    try:
        row = json.loads(line.decode())
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(row, Mapping):
        raise ValueError(f"no JSON object: {type(row).__name__}")
    return row


def parse_row(row: Mapping[str, Any]) -> Question:
    """The question of a row in one of the two forms.

    Raises:
        ValueError: If it is malformed; the message says why.
    """
    if "input" in row and "contexts" not in row:
        return _published(row)
    contexts = _list(row, "contexts")
    if not all(isinstance(context, Mapping) for context in contexts):
        raise ValueError("`contexts` holds what is no object")
    gold = _list(row, "gold")
    if not gold or not all(is_int(g) and 0 <= g < len(contexts) for g in gold):
        raise ValueError("`gold` names no context")
    for index in gold:
        _filled(contexts[index], "text")
    return Question(
        question=_filled(row, "question").strip(),
        answers=_texts(row, "answers"),
        titles=tuple(_text(context, "title") if context.get("title") else "" for context in contexts),
        passages=tuple(_text(context, "text") for context in contexts),
        gold=tuple(gold),
    )


def _published(row: Mapping[str, Any]) -> Question:
    answers = (_filled(row, "answer"),) if isinstance(row.get("answer"), str) else _texts(row, "answer")
    return Question(_filled(row, "prompt").strip(), answers, ("",), (_filled(row, "input"),), (0,))


def _list(row: Mapping[str, Any], name: str) -> list[Any]:
    if name not in row:
        raise ValueError(f"`{name}` is missing")
    if not isinstance(row[name], list):
        raise ValueError(f"`{name}` is no list: {type(row[name]).__name__}")
    return list(row[name])


def _texts(row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A field's list of at least one text, none of them blank."""
    texts = _list(row, name)
    if not texts:
        raise ValueError(f"`{name}` is empty")
    return tuple(_filled({name: text}, name) for text in texts)


def _filled(row: Mapping[str, Any], name: str) -> str:
    """A field's text, which is not blank."""
    text = _text(row, name)
    if not text.strip():
        raise ValueError(f"`{name}` is blank")
    return text


def _text(row: Mapping[str, Any], name: str) -> str:
    """A field's text, which UTF-8 can write: a tokenizer would refuse lone surrogates in the middle of a run."""
    if name not in row:
        raise ValueError(f"`{name}` is missing")
    if not isinstance(row[name], str):
        raise ValueError(f"`{name}` is no text: {type(row[name]).__name__}")
    return check_text(row[name], f"`{name}`")
