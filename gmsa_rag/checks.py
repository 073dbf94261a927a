"""Checks of what callers pass in, shared by all packages. Loads nothing heavy."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from gmsa_rag.errors import InputError, InputTypeError, RateError


def check_rate(rate: object) -> int:
    """The rate itself; RateError unless it is an int >= 1."""
    if not is_int(rate) or rate < 1:
        raise RateError(
            "rate", expected="an int >= 1", got=repr(rate)[:80], remedy="Pass the tokens per soft token, such as 8."
        )
    return rate


def check_text(text: object, what: str = "passage") -> str:
    """The text itself; InputTypeError unless it is a str, InputError unless it is valid Unicode."""
    if not isinstance(text, str):
        raise InputTypeError(what, expected="a str", got=type(text).__name__, remedy="Decode or convert it first.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            what,
            expected="valid Unicode",
            got=f"a lone surrogate at position {error.start}",
            remedy='Clean it first, as with text.encode("utf-8", "replace").decode().',
        ) from error
    return text


def check_texts(texts: object) -> list[str]:
    """Texts as a list, one str as a list of one; InputTypeError or InputError unless each is valid Unicode."""
    if isinstance(texts, str):
        return [check_text(texts)]
    if not isinstance(texts, Sequence) or isinstance(texts, bytes):
        raise InputTypeError(
            "passages", expected="a str or a sequence of str", got=type(texts).__name__, remedy="Pass their texts."
        )
    return [check_text(text, f"passage {index}") for index, text in enumerate(texts)]


def dump_metadata(metadata: Mapping[str, Any]) -> str:
    """Metadata as JSON; InputError unless reading it back gives the same."""
    try:
        dumped = json.dumps(dict(metadata), allow_nan=False)
        if json.loads(dumped) == dict(metadata):
            return dumped
        got = "values that JSON would change, such as tuples or keys that are not texts"
    except (ValueError, TypeError, RecursionError) as error:
        got = str(error)[:200]
    raise InputError("metadata", expected="a JSON object", got=got, remedy="Use texts, numbers, lists and dicts.")


def is_int(value: object) -> TypeGuard[int]:
    """Whether the value is an int and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)
