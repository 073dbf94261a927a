"""Decoding with a cache that grows: any family, any device."""

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel


class Steps(Protocol):
    """One generation of a batch, run step by step."""

    def prefill(self, prompts: Sequence[Tensor]) -> Tensor:
        """Read embedded prompts, each (num_positions, hidden_size); logits of what follows, (batch, vocab_size)."""

    def step(self, tokens: Tensor) -> Tensor:
        """Read the next token of each row, (batch,); logits of what follows, (batch, vocab_size)."""


class DynamicSteps:
    """One generation with transformers' own growing cache.

    Args:
        model: The decoder.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model: Any = model
        self._cache = DynamicCache(config=model.config)
        # Of a ragged batch alone; without padding the model finds mask and positions by itself.
        self._mask: Tensor | None = None
        self._positions: Tensor | None = None

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Tensor]) -> Tensor:
        """See `Steps`; shorter prompts are padded on the left."""
        embeds, positions = pad_left(prompts, max(map(len, prompts)), self._model), None
        if any(len(prompt) != embeds.shape[1] for prompt in prompts):
            self._mask = kept_positions([len(prompt) for prompt in prompts], embeds.shape[1], embeds.device).long()
            positions = (self._mask.cumsum(dim=1) - 1).clamp(min=0)
            self._positions = positions[:, -1:]
        last = {"logits_to_keep": 1} if _keeps_logits(self._model) else {}
        return self._run(inputs_embeds=embeds, attention_mask=self._mask, position_ids=positions, **last)

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """See `Steps`."""
        if self._mask is not None and self._positions is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones((len(tokens), 1))], dim=1)
            self._positions = self._positions + 1
        return self._run(input_ids=tokens[:, None], attention_mask=self._mask, position_ids=self._positions)

    def _run(self, **inputs: Any) -> Tensor:
        output = self._model(**inputs, past_key_values=self._cache, use_cache=True)
        logits: Tensor = output.logits[:, -1]
        return logits


def pad_left(prompts: Sequence[Tensor], width: int, model: PreTrainedModel) -> Tensor:
    """Embedded prompts in one batch, (batch, width, hidden_size), in the model's dtype, zeros in front."""
    if len(prompts) == 1 and len(prompts[0]) == width:
        return prompts[0].to(model.device, model.dtype)[None]
    embeds = torch.zeros((len(prompts), width, prompts[0].shape[1]), dtype=model.dtype, device=model.device)
    for row, prompt in enumerate(prompts):
        embeds[row, width - len(prompt) :] = prompt
    return embeds


def kept_positions(lengths: Sequence[int], width: int, device: torch.device) -> Tensor:
    """Which positions of a batch padded on the left are real, (batch, width), bool."""
    starts = torch.tensor([width - length for length in lengths], device=device)
    return torch.arange(width, device=device) >= starts[:, None]


def _keeps_logits(model: PreTrainedModel) -> bool:
    """Whether a model can leave out the logits of all but the last position."""
    return "logits_to_keep" in inspect.signature(type(model).forward).parameters
