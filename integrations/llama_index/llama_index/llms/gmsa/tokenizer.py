"""GMSATokenizer: counts text as the decoder does, and a handle as its soft tokens."""

from __future__ import annotations

from pathlib import Path

from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.sharing import DEFAULT_MODEL
from gmsa_rag.memory.handles import Handle, find_handles, parse_handle
from llama_index.postprocessor.gmsa.settings import GMSASettings


class GMSATokenizer:
    """A tokenizer for `Settings.tokenizer` and `PromptHelper(tokenizer=...)`: one id for each position of a prompt.

    LlamaIndex counts with it to pack prompts. Its default counts some 23 tokens for any handle, so that prompts come
    out too long, or half empty. It can be pickled; the engine in memory stays behind, and no other checkpoint takes its
    place unseen.

    Args:
        model: Checkpoint: a bundled name, a directory, or a hub id. It is loaded at first use, once per process.
        gmsa: An engine in memory, instead of `model`.
        device: Of the engine, and so is dtype: give those of the GMSALLM, or another engine is loaded.
        dtype: See device.
        revision: Of a hub id.
        token: For a private hub id.
    Raises:
        pydantic.ValidationError: If an argument has a wrong type.
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
        token: str | None = None,
    ) -> None:
        settings = {"model": model, "gmsa": gmsa, "device": device, "dtype": dtype, "revision": revision}
        self._settings = GMSASettings.model_validate(settings | {"token": token})

    def __call__(self, text: str) -> list[int]:
        """Ids of a text.

        Args:
            text: With or without whole handles, which need not be of any store; a cut one counts as its letters.
        Returns:
            The tokens' ids; for each soft token of a handle that of the end token, which no text has. A handle that
            says it has more than the decoder's window holds, as anybody may write one, counts as the whole window.
        Raises:
            CheckpointError: If there is no such checkpoint, or it is damaged.
            FingerprintError: If this was pickled with an engine in memory, and the checkpoint is another one.
        """
        engine = self._settings.engine
        codec, window = engine.codec, engine.decoder_window
        ids: list[int] = []
        for part in _split(text):
            if isinstance(part, Handle):
                ids += [codec.end] * min(part.num_soft_tokens, window)
            else:
                ids += codec.encode([part])[0]
        return ids


def _split(text: str) -> list[str | Handle]:
    """Text and handles in order, cut handles among the text."""
    parts: list[str | Handle] = []
    for handle in find_handles(text):
        before, _, text = text.partition(handle)
        parts += [before, parse_handle(handle)]
    return [*parts, text]
