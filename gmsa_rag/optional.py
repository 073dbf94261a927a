"""Packages of the optional extras, imported where they are needed."""

from importlib import import_module
from typing import Any

from gmsa_rag.errors import DependencyError


def load_optional(name: str, extra: str = "eval") -> Any:
    """Import a module of an optional package.

    Args:
        name: Of the module, such as "matplotlib.figure".
        extra: Of gmsa-rag, that brings the package.

    Raises:
        DependencyError: If it cannot be imported.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise DependencyError(
            name.partition(".")[0].replace("_", "-"),
            expected="the package to be installed",
            got=str(error),
            remedy=f'Run: pip install "gmsa-rag[{extra}]"',
        ) from error
