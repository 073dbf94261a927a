"""Checks of what callers pass in, shared by all packages. Loads nothing heavy."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from gmsa_rag.errors import ConfigError, InputError, InputTypeError, RateError

LARGEST_RATE = 2**31 - 1


def check_rate(rate: object) -> int:
    """The rate itself; RateError unless it is an int of 1 to LARGEST_RATE."""
    if not is_int(rate) or not 1 <= rate <= LARGEST_RATE:
        raise RateError(
            "rate",
            expected=f"an int >= 1 and at most {LARGEST_RATE}",
            got=_shown(rate),
            remedy="Pass the tokens per soft token, such as 8.",
        )
    return rate


def check_int(value: object, what: str, allowed: range) -> int:
    """The setting itself; InputTypeError unless it is an int, ConfigError unless it is one of those allowed."""
    expected, remedy = f"an int from {allowed[0]} to {allowed[-1]}", "Change the setting."
    if not is_int(value):
        raise InputTypeError(what, expected=expected, got=_shown(value), remedy=remedy)
    if value not in allowed:
        raise ConfigError(what, expected=expected, got=_shown(value), remedy=remedy)
    return value


def check_number(value: object, what: str) -> float:
    """The setting itself; InputTypeError unless it is an int or a float, ConfigError unless it is finite."""
    expected, remedy = "a finite number", "Change the setting."
    if not is_int(value) and not isinstance(value, float):
        raise InputTypeError(what, expected=expected, got=_shown(value), remedy=remedy)
    if not -math.inf < value < math.inf:
        raise ConfigError(what, expected=expected, got=_shown(value), remedy=remedy)
    return value


def check_name(name: str | Path) -> str | Path:
    """The name of a checkpoint itself; InputTypeError unless it is a str or a path."""
    if not isinstance(name, (str, os.PathLike)):
        raise InputTypeError(
            "checkpoint", expected="a str or a path", got=_shown(name), remedy='Name one, such as "gmsa-mini".'
        )
    return name


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


def check_texts(texts: object, what: str = "passage") -> list[str]:
    """Texts as a list, one str as a list of one; InputTypeError or InputError unless each is valid Unicode."""
    if isinstance(texts, str):
        return [check_text(texts, what)]
    if not isinstance(texts, Sequence) or isinstance(texts, bytes):
        raise InputTypeError(
            f"{what}s", expected="a str or a sequence of str", got=type(texts).__name__, remedy="Pass their texts."
        )
    return [check_text(text, f"{what} {index}") for index, text in enumerate(texts)]


def check_several(values: Iterable[Any], what: str) -> list[Any]:
    """The values as a list; InputTypeError for one str, whose letters would be taken for them."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        got, remedy = f"a {type(values).__name__}, {values!r}"[:80], "Put it into a list."
        raise InputTypeError(what, expected="a list of str", got=got, remedy=remedy)
    return list(values)


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


def _shown(value: object) -> str:
    """A value as `got` of an error; Python refuses to write out an int of thousands of digits."""
    return f"an int of {value.bit_length()} bits" if is_int(value) and value.bit_length() > 256 else repr(value)[:80]
