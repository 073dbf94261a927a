"""LlamaIndex's metadata filters, all of them, as a function of a row's metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from gmsa_rag.errors import InputError

_COMPARE: dict[FilterOperator, Callable[[Any, Any], bool]] = {
    FilterOperator.EQ: lambda found, wanted: bool(found == wanted),
    FilterOperator.NE: lambda found, wanted: bool(found != wanted),
    FilterOperator.GT: lambda found, wanted: bool(found > wanted),
    FilterOperator.GTE: lambda found, wanted: bool(found >= wanted),
    FilterOperator.LT: lambda found, wanted: bool(found < wanted),
    FilterOperator.LTE: lambda found, wanted: bool(found <= wanted),
    FilterOperator.IN: lambda found, wanted: found in wanted,
    FilterOperator.NIN: lambda found, wanted: found not in wanted,
    FilterOperator.ANY: lambda found, wanted: any(value in found for value in wanted),
    FilterOperator.ALL: lambda found, wanted: all(value in found for value in wanted),
    FilterOperator.CONTAINS: lambda found, wanted: wanted in found,
    FilterOperator.TEXT_MATCH: lambda found, wanted: wanted in found,
    FilterOperator.TEXT_MATCH_INSENSITIVE: lambda found, wanted: wanted.casefold() in found.casefold(),
}
_TRUE_OF_NOTHING = (FilterOperator.NE, FilterOperator.NIN)
_LISTS = (FilterOperator.IN, FilterOperator.NIN, FilterOperator.ANY, FilterOperator.ALL)
_TEXTS = (FilterOperator.TEXT_MATCH, FilterOperator.TEXT_MATCH_INSENSITIVE)


def matches(filters: MetadataFilters, metadata: Mapping[str, Any]) -> bool:
    """Whether metadata passes filters.

    Args:
        filters: Filters, nested or not; AND, OR, or NOT, which holds where none of them does.
        metadata: Of a row. What it lacks, or has as None, passes only "!=", "nin" and "is_empty"; what cannot be
            compared with the filter's value, such as a text with a number, passes only the first two.
    Returns:
        Whether it passes; without filters it does.
    Raises:
        InputError: If a filter's value does not suit its operator.
    """
    # A list: a filter that is wrong is an error, wherever it stands.
    found = [
        matches(one, metadata) if isinstance(one, MetadataFilters) else _matches(one, metadata)
        for one in filters.filters
    ]
    if filters.condition == FilterCondition.OR:
        return any(found) or not found
    return not any(found) if filters.condition == FilterCondition.NOT else all(found)


def has_empty_group(filters: MetadataFilters) -> bool:
    """Whether filters, or a group nested in them, hold no filter: that passes everything."""
    nested = (one for one in filters.filters if isinstance(one, MetadataFilters))
    return not filters.filters or any(map(has_empty_group, nested))


def _matches(wanted: MetadataFilter, metadata: Mapping[str, Any]) -> bool:
    _check(wanted)
    found = metadata.get(wanted.key)
    if wanted.operator == FilterOperator.IS_EMPTY:
        return found is None or found in ("", [])
    if found is None:
        return wanted.operator in _TRUE_OF_NOTHING
    if wanted.operator in _TEXTS and not isinstance(found, str):
        return False
    try:
        return _COMPARE[wanted.operator](found, wanted.value)
    except TypeError:  # metadata of another kind than the filter's value
        return False


def _check(wanted: MetadataFilter) -> None:
    lists, texts = wanted.operator in _LISTS, wanted.operator in _TEXTS
    if (lists and not isinstance(wanted.value, list)) or (texts and not isinstance(wanted.value, str)):
        raise InputError(
            f"filter on {wanted.key!r}",
            expected=f"a {'list' if lists else 'text'} for the operator {wanted.operator.value!r}",
            got=repr(wanted.value)[:80],
            remedy="Change the filter's value.",
        )
