"""The published implementation's way to compress, as a baseline: same weights, same soft tokens, another route."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from gmsa_rag.modeling.compressor import Compressor

BATCH_SIZE = 8


class PublishedWay:
    """Compresses right-padded batches in input order with whole causal LMs.

    Encoder and alignment are causal LMs that compute logits over the vocabulary, keep all hidden states and fill a
    cache, none of which is used; a loop over the rows pools their states. The published LoRA is left merged, so that
    the comparison is of routes and not of weights.

    Args:
        compressor: Whose weights to use; they are not copied.
        batch_size: Passages a batch.

    Source: github.com/Twilightaaa/GMSA, modeling_gmsa.py and ft_inference.py.
    """

    def __init__(self, compressor: Compressor, batch_size: int = BATCH_SIZE) -> None:
        table: Any = compressor.encoder.get_input_embeddings()
        self._encoder = _causal_lm(compressor.encoder, table.weight)
        self._alignment = _causal_lm(compressor.alignment.block, table.weight)
        self._batch_size = batch_size

    @torch.no_grad()
    def compress(self, passages: Sequence[Sequence[int]], rate: int) -> list[Tensor]:
        """Soft tokens of each passage, on the device.

        Args:
            passages: Token ids of each, at least one and no more than the encoder's window.
            rate: Tokens per soft token.
        """
        soft: list[Tensor] = []
        for start in range(0, len(passages), self._batch_size):
            soft += self._compress_batch(passages[start : start + self._batch_size], rate)
        return soft

    def _compress_batch(self, passages: Sequence[Sequence[int]], rate: int) -> list[Tensor]:
        ids, mask = _right_padded(passages, self._encoder.device)
        embeddings = self._encoder.get_input_embeddings()(ids)
        states = _last_states(self._encoder, embeddings, mask)
        pooled = [_pool(states[row][mask[row]], rate) for row in range(len(passages))]
        width = max(len(rows) for rows in pooled)
        merged = states.new_zeros((len(passages), width, states.shape[2]))
        merged_mask = torch.zeros((len(passages), width), dtype=torch.bool, device=states.device)
        for row, vectors in enumerate(pooled):
            merged[row, : len(vectors)] = vectors
            merged_mask[row, : len(vectors)] = True
        aligned = _last_states(self._alignment, merged, merged_mask)
        return [aligned[row, : len(vectors)] for row, vectors in enumerate(pooled)]


def _causal_lm(backbone: PreTrainedModel, table: Tensor) -> Any:
    """A causal LM around a backbone, with the embedding table for its head."""
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(backbone.config, dtype=backbone.dtype)
        head = nn.Linear(table.shape[1], table.shape[0], bias=False)
    head.weight = nn.Parameter(table.detach(), requires_grad=False)
    # Modules of its own around the same weights: asking for hidden states leaves hooks in a module for good.
    shared = {id(tensor): tensor for tensor in (*backbone.parameters(), *backbone.buffers())}
    setattr(model, model.base_model_prefix, copy.deepcopy(backbone, shared))
    model.set_output_embeddings(head)
    return model.eval()


def _last_states(model: Any, embeddings: Tensor, mask: Tensor) -> Tensor:
    output = model(inputs_embeds=embeddings, attention_mask=mask, output_hidden_states=True, return_dict=True)
    states: Tensor = output.hidden_states[-1]
    return states


def _right_padded(passages: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask of a batch, filled on the device row by row."""
    shape = len(passages), max(map(len, passages))
    ids = torch.zeros(shape, dtype=torch.long, device=device)
    mask = torch.zeros(shape, dtype=torch.bool, device=device)
    for row, passage in enumerate(passages):
        ids[row, : len(passage)] = torch.tensor(passage, device=device)
        mask[row, : len(passage)] = True
    return ids, mask


def _pool(states: Tensor, rate: int) -> Tensor:
    """Means of whole groups, and of what is left."""
    whole = len(states) - len(states) % rate
    pooled = states[:whole].reshape(-1, rate, states.shape[1]).mean(dim=1)
    return torch.cat([pooled, states[whole:].mean(dim=0, keepdim=True)]) if whole < len(states) else pooled
