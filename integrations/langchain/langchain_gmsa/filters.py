"""GMSAVectorStore's filters: what a document's metadata must have, or a function of the document."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from langchain_core.documents import Document

from gmsa_rag.errors import InputError, InputTypeError

Filter = Mapping[str, Any] | Callable[[Document], bool]
Test = Callable[[Mapping[str, Any]], bool]

_SEVERAL = (list, tuple, set, frozenset)
_ORDERS = {"$gt": operator.gt, "$gte": operator.ge, "$lt": operator.lt, "$lte": operator.le}
_OPERATORS = ("$eq", "$ne", "$in", "$nin", *_ORDERS)
_GROUPS = {"$and": all, "$or": any}


def wanted_metadata(wanted: object) -> Test:
    """A filter as a function of metadata, which holds where all its items do.

    Args:
        wanted: A mapping, as the class GMSAVectorStore says.
    Returns:
        The function. What metadata lacks passes "$ne" and "$nin" only; what cannot be compared passes no order.
    Raises:
        InputError: If there is an operator of another name.
        InputTypeError: If the filter, or what an operator is given, is of a wrong type.
    """
    if not isinstance(wanted, Mapping):
        got = f"a {type(wanted).__name__}, {wanted!r}"[:80]
        remedy = 'Pass one such as {"title": "Danube"}.'
        raise InputTypeError("filter", expected="a mapping of metadata, or a function", got=got, remedy=remedy)
    tests = [_item(name, value) for name, value in wanted.items()]
    return lambda metadata: all(test(metadata) for test in tests)


def _item(name: str, value: object) -> Test:
    if name in _GROUPS:
        tests, join = [wanted_metadata(part) for part in _list(name, value)], _GROUPS[name]
        return lambda metadata: join(test(metadata) for test in tests)
    if name == "$not":
        inner = wanted_metadata(value)
        return lambda metadata: not inner(metadata)
    if _is_operator(name):
        raise _unknown(name, (*_GROUPS, "$not"))
    if isinstance(value, Mapping) and any(map(_is_operator, value)):
        compared = [_comparison(name, kind, operand) for kind, operand in value.items()]
        return lambda metadata: all(test(metadata) for test in compared)
    return lambda metadata: name in metadata and _is_one_of(metadata[name], value)


def _comparison(name: str, kind: str, operand: object) -> Test:
    """What one operator says of the metadata of a name."""
    if kind in ("$ne", "$nin"):
        positive = _comparison(name, "$eq" if kind == "$ne" else "$in", operand)
        return lambda metadata: not positive(metadata)
    if kind == "$eq":
        return lambda metadata: name in metadata and bool(metadata[name] == operand)
    if kind == "$in":
        values = _list(kind, operand)
        return lambda metadata: name in metadata and metadata[name] in values
    if kind not in _ORDERS:
        raise _unknown(kind, _OPERATORS)
    return lambda metadata: name in metadata and _is_ordered(kind, metadata[name], operand)


def _is_operator(name: object) -> bool:
    return isinstance(name, str) and name.startswith("$")


def _is_one_of(value: object, wanted: object) -> bool:
    if not isinstance(wanted, _SEVERAL):
        return bool(value == wanted)
    values = list(wanted)  # a list in metadata may be searched for in one, but not in a set
    return value in values or (isinstance(wanted, (list, tuple)) and value == values)


def _is_ordered(kind: str, value: Any, operand: Any) -> bool:
    try:
        return bool(_ORDERS[kind](value, operand))
    except TypeError:  # metadata of another kind than the filter's value
        return False


def _list(name: str, value: object) -> list[Any]:
    if not isinstance(value, _SEVERAL):
        got = f"{type(value).__name__}, {value!r}"[:80]
        raise InputTypeError(f"filter's {name}", expected="a list", got=got, remedy="Put it into a list.")
    return list(value)


def _unknown(name: str, supported: tuple[str, ...]) -> InputError:
    remedy = "Use one of these, or pass a function of the document."
    return InputError("filter", expected=f"one of {', '.join(supported)}", got=repr(name)[:80], remedy=remedy)
