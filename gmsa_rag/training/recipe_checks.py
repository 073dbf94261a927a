"""What the settings of a recipe must be; each check raises ConfigError, which names the setting."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from gmsa_rag.checks import is_int
from gmsa_rag.errors import ConfigError

# Placeholders that a template must hold once, and its further ones.
TEMPLATES = {
    "restore_template": ("{memory}",),
    "passage_template": ("{passage}",),
    "answer_template": ("{passages}", "{question}"),
}
TEMPLATE_SETTINGS = (*TEMPLATES, "cites", "no_answer", "encoder_norm", "lsa_norm")


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Refuse all but one of the known values."""
    if value not in known:
        raise _wrong(name, f"one of {', '.join(known)}", value)


def check_count(name: str, value: object, least: int = 1) -> None:
    """Refuse all but a whole number that is not below the least."""
    if not is_int(value) or value < least:
        raise _wrong(name, f"a whole number, {least} or more", value)


def check_positive(name: str, value: object, *, zero: bool = False) -> None:
    """Refuse all but a number above 0, or 0 where that is allowed."""
    if not _is_number(value) or not (value > 0 or (zero and value == 0)):
        raise _wrong(name, "a number of 0 or more" if zero else "a number above 0", value)


def check_share(name: str, value: object, *, below: bool = False) -> None:
    """Refuse all but a number from 0 to 1, or below 1."""
    if not _is_number(value) or not 0 <= value <= 1 or (below and value == 1):
        raise _wrong(name, "0 or more, below 1" if below else "a number from 0 to 1", value)


def check_names(name: str, value: object) -> None:
    """Refuse all but a list of names."""
    if not isinstance(value, tuple) or not all(isinstance(item, str) and item for item in value):
        raise _wrong(name, "a list of names, as [wikipedia_en]", value)


def check_tasks(tasks: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuse unknown tasks, and weights by which none could be drawn."""
    if unknown := sorted(set(tasks) - set(known)):
        raise _wrong("tasks", f"some of {', '.join(known)}", unknown)
    if not all(_is_number(weight) and weight >= 0 for weight in tasks.values()) or not sum(tasks.values()) > 0:
        raise _wrong("tasks", "weights of 0 or more, one of them above", dict(tasks))


def check_phase(rates: object, windows: object) -> None:
    """Refuse a phase that draws no rate, or no length."""
    if not isinstance(rates, tuple) or not rates or not all(is_int(rate) and rate >= 1 for rate in rates):
        raise _wrong("rates", "a list of whole numbers, 1 or more each", rates)
    if not isinstance(windows, tuple) or len(windows) != 2 or not all(map(is_int, windows)):
        raise _wrong("windows", "two whole numbers, as [32, 512]", windows)
    if not 1 <= windows[0] <= windows[1]:
        raise _wrong("windows", "the shortest passage, 1 or more, and then the longest", windows)


def check_templates(templates: Mapping[str, Any]) -> None:
    """Refuse unknown settings of a checkpoint, and templates that lack a place for what goes into them."""
    if unknown := sorted(set(templates) - set(TEMPLATE_SETTINGS)):
        raise _wrong("templates", f"some of {', '.join(TEMPLATE_SETTINGS)}", unknown)
    for name, places in TEMPLATES.items():
        template = templates.get(name)
        if template is not None and not (isinstance(template, str) and all(template.count(p) == 1 for p in places)):
            raise _wrong(name, f"a text with {' and '.join(places)} in it once", template)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _wrong(name: str, expected: str, got: object) -> ConfigError:
    return ConfigError(name, expected=expected, got=repr(got), remedy="Correct the recipe.")
