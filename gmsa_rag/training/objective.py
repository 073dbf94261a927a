"""The training objective: next-token cross-entropy over text that surrounds soft tokens."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from gmsa_rag.modeling.alignment import backbone_of
from gmsa_rag.modeling.compressor import Compressor
from gmsa_rag.training.examples import IGNORED, Batch


@dataclass(frozen=True)
class Loss:
    """Loss of a batch.

    Attributes:
        mean: Cross-entropy per learned token, in nats, with its gradient.
        num_learned: Learned tokens.
        num_correct: Learned tokens the decoder ranks first when it has seen all before them (teacher-forced).
    """

    mean: Tensor
    num_learned: int
    num_correct: int


def compute_loss(decoder: PreTrainedModel, compressor: Compressor | None, batch: Batch) -> Loss:
    """Run compressor and decoder over a batch.

    Args:
        decoder: A causal LM.
        compressor: Where the batch's passages go; None for plain language modelling.
        batch: The batch, on the decoder's device.

    Returns:
        The loss. Logits are computed at learned positions only.
    """
    embeds = decoder.get_input_embeddings()(batch.input_ids)
    if compressor is not None and len(batch.soft_positions):
        embeds = splice(embeds, compressor(batch.window_ids, batch.window_lengths, batch.window_rates), batch)
    hidden = backbone_of(decoder)(inputs_embeds=embeds, use_cache=False).last_hidden_state
    learned = batch.labels[:, 1:] != IGNORED
    targets = batch.labels[:, 1:][learned]
    logits = head_logits(decoder, hidden[:, :-1][learned]).float()
    return Loss(F.cross_entropy(logits, targets), targets.numel(), _num_correct(logits.detach(), targets))


def _num_correct(logits: Tensor, targets: Tensor) -> int:
    # The highest logit is found ten times faster than its index on a CPU.
    return int((logits.gather(1, targets[:, None])[:, 0] >= logits.amax(dim=-1)).sum())


def splice(embeds: Tensor, soft_tokens: Tensor, batch: Batch) -> Tensor:
    """Put packed soft tokens at their places among text embeddings, (batch, max_length, hidden_size)."""
    flat = embeds.flatten(0, 1).index_copy(0, batch.soft_positions, soft_tokens.to(embeds.dtype))
    return flat.view_as(embeds)


def head_logits(decoder: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Vocabulary logits of normed hidden states, (..., vocab_size), capped as Gemma 2 does."""
    logits: Tensor = decoder.get_output_embeddings()(hidden)
    cap = getattr(decoder.config, "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits
