"""GMSATokenizer: counts text as the decoder does, and a handle as its soft tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.sharing import DEFAULT_MODEL, load_engine, path_text
from gmsa_rag.memory.handles import Handle, find_handles, parse_handle


class GMSATokenizer:
    """A tokenizer for `Settings.tokenizer` and `PromptHelper(tokenizer=...)`: one id for each position of a prompt.

    LlamaIndex counts with it to pack prompts. Its default counts some 23 tokens for any handle, so that prompts come
    out too long, or half empty.

    Args:
        model: Checkpoint: a bundled name, a directory, or a hub id. It is loaded at first use, once per process.
        gmsa: An engine in memory, instead of `model`.
        device: Of the engine, and so is dtype: give those of the GMSALLM, or another engine is loaded.
        dtype: See device.
        revision: Of a hub id.
    Example:
        >>> tokenizer = GMSATokenizer()
        >>> len(tokenizer("[[gmsa:930a0f4289af11e83c1f223a0649ac05:100]]"))
        100
    """

    def __init__(
        self,
        model: str | Path = DEFAULT_MODEL,
        *,
        gmsa: GMSA | None = None,
        device: str = "auto",
        dtype: str = "auto",
        revision: str | None = None,
    ) -> None:
        self._load: Callable[[], GMSA] = lambda: (
            gmsa or load_engine(str(path_text(model)), device=device, dtype=dtype, revision=revision)
        )

    def __call__(self, text: str) -> list[int]:
        """Ids of a text.

        Args:
            text: With or without whole handles, which need not be of any store; a cut one counts as its letters.
        Returns:
            The tokens' ids; for each soft token of a handle that of the end token, which no text has.
        """
        codec = self._load().codec
        ids: list[int] = []
        for part in _split(text):
            ids += [codec.end] * part.num_soft_tokens if isinstance(part, Handle) else codec.encode([part])[0]
        return ids


def _split(text: str) -> list[str | Handle]:
    """Text and handles in order, cut handles among the text."""
    parts: list[str | Handle] = []
    for handle in find_handles(text):
        before, _, text = text.partition(handle)
        parts += [before, parse_handle(handle)]
    return [*parts, text]
