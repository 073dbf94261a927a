"""The training objective: next-token cross-entropy over text that surrounds soft tokens, in chunks of logits."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from gmsa_rag.errors import DependencyError
from gmsa_rag.modeling.alignment import backbone_of
from gmsa_rag.training.examples import Batch
from gmsa_rag.training.recipe import Distillation

# Logits held at once, in numbers: 256 MiB of float32, however large the vocabulary.
CHUNK_LOGITS = 2**26


@dataclass(frozen=True)
class Loss:
    """Loss of a batch.

    Attributes:
        mean: Per learned token, in nats, with its gradient.
        num_learned: Learned tokens.
        num_correct: Learned tokens the decoder ranks first when it has seen all before them (teacher-forced), a
            tensor without dimensions, so that a GPU is not waited for.
    """

    mean: Tensor
    num_learned: int
    num_correct: Tensor


class Objective(nn.Module):
    """Compressor and decoder as one module, from a batch to its loss.

    Args:
        decoder: A causal LM.
        compressor: Where the batch's passages go, anything with the compressor's `forward`; None for plain language
            modelling.
        teacher: A frozen causal LM that reads the passages as text, for distillation.
        distillation: How much is learned from it.
        bf16: Whether to compute in bfloat16.
        cross_entropy: "chunked" or "liger".
    """

    def __init__(
        self,
        decoder: PreTrainedModel,
        compressor: nn.Module | None = None,
        *,
        teacher: PreTrainedModel | None = None,
        distillation: Distillation | None = None,
        bf16: bool = False,
        cross_entropy: str = "chunked",
    ) -> None:
        super().__init__()
        self.decoder, self.compressor, self.teacher = decoder, compressor, teacher
        self.distillation, self.bf16, self.cross_entropy = distillation, bf16, cross_entropy
        # Where accelerate shards weights, it gathers those of one such layer at a time.
        self._no_split_modules = sorted(decoder._no_split_modules or ())
        self._shared = _shared_names(self)

    def tie_weights(self) -> None:
        """Share again what was shared at first; accelerate calls it, since sharding gives each name its own weights."""
        for first, *others in self._shared:
            weight = self.get_parameter(first)
            for other in others:
                owner, _, name = other.rpartition(".")
                setattr(self.get_submodule(owner), name, weight)

    def train(self, mode: bool = True) -> "Objective":
        """Set training or evaluation mode; a teacher always stays in the latter."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(self, batch: Batch, as_text: Batch | None = None) -> Loss:
        """Loss of a batch on the model's device.

        Args:
            batch: The batch.
            as_text: The same examples with text in the place of memories, for the teacher.
        """
        with torch.autocast(batch.input_ids.device.type, torch.bfloat16, enabled=self.bf16):
            hidden = read(self.decoder, self.compressor, batch)
            if self.teacher is not None and as_text is not None and self.distillation is not None:
                with torch.no_grad():
                    taught = read(self.teacher, None, as_text)
                head = partial(_distilled, self.decoder, self.teacher, self.distillation)
                return _in_chunks(head, self._chunk_size(), batch.targets, hidden, taught)
            if self.cross_entropy == "liger":
                return _liger(self.decoder, hidden, batch.targets)
            return _in_chunks(partial(_plain, self.decoder), self._chunk_size(), batch.targets, hidden)

    def _chunk_size(self) -> int:
        return max(1, CHUNK_LOGITS // int(self.decoder.config.vocab_size))


def _shared_names(module: nn.Module) -> list[list[str]]:
    """Names of each parameter that has several."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def read(decoder: PreTrainedModel, compressor: nn.Module | None, batch: Batch) -> Tensor:
    """Normed hidden states from which the learned tokens are predicted, (num_learned, hidden_size)."""
    embeds = decoder.get_input_embeddings()(batch.input_ids)
    if compressor is not None:
        embeds = splice(embeds, _soft_tokens(compressor, batch), batch)
    hidden: Tensor = backbone_of(decoder)(inputs_embeds=embeds, use_cache=False).last_hidden_state
    return hidden.flatten(0, 1)[batch.predicting]


def _soft_tokens(compressor: nn.Module, batch: Batch) -> Tensor:
    """The batch's packed soft tokens."""
    soft_tokens: Tensor
    if not batch.window_lengths:
        # Processes that train together gather sharded weights together: the compressor has to run in all of them.
        soft_tokens = compressor(batch.input_ids[:1, :1], [1], [1])
        return soft_tokens[:0]
    soft_tokens = compressor(batch.window_ids, batch.window_lengths, batch.window_rates)
    return soft_tokens


def splice(embeds: Tensor, soft_tokens: Tensor, batch: Batch) -> Tensor:
    """Put packed soft tokens at their places among text embeddings, (batch, max_length, hidden_size)."""
    flat = embeds.flatten(0, 1).index_copy(0, batch.soft_positions, soft_tokens.to(embeds.dtype))
    return flat.view_as(embeds)


def head_logits(decoder: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Vocabulary logits of normed hidden states, (..., vocab_size), capped as Gemma 2 does."""
    logits: Tensor = decoder.get_output_embeddings()(hidden)
    cap = _softcap(decoder)
    return torch.tanh(logits / cap) * cap if cap else logits


def embedding_weights(decoder: PreTrainedModel) -> list[nn.Parameter]:
    """Tables of tokens of a causal LM, that of its input and that of its output, which may be the same."""
    return [decoder.get_input_embeddings().weight, decoder.get_output_embeddings().weight]


def _in_chunks(head: Callable[..., tuple[Tensor, Tensor]], size: int, targets: Tensor, *hidden: Tensor) -> Loss:
    """Sum a head's loss over chunks of rows; where there are several, logits are computed again in the backward pass.

    Source: Apple, "Cut Your Losses in Large-Vocabulary Language Models", arXiv 2411.09009, for why logits are what
    fills the memory.
    """
    if len(targets) <= size:
        total, correct = head(targets, *hidden)
    else:
        pieces = [
            checkpoint(head, *rows, use_reentrant=False)
            for rows in zip(*(t.split(size) for t in (targets, *hidden)), strict=True)
        ]
        total, correct = (torch.stack(values).sum() for values in zip(*pieces, strict=True))
    return Loss(total / max(len(targets), 1), len(targets), correct.detach())


def _plain(decoder: PreTrainedModel, targets: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    logits = head_logits(decoder, hidden).float()
    return F.cross_entropy(logits, targets, reduction="sum"), _num_correct(logits.detach(), targets)


def _distilled(
    decoder: PreTrainedModel, teacher: PreTrainedModel, how: Distillation, targets: Tensor, hidden: Tensor,
    taught: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    logits = head_logits(decoder, hidden).float()
    with torch.no_grad():
        wanted = F.log_softmax(head_logits(teacher, taught).float() / how.temperature, dim=-1)
    found = F.log_softmax(logits / how.temperature, dim=-1)
    # Gradients of softened distributions shrink with the square of the temperature (Hinton et al., arXiv 1503.02531).
    divergence = F.kl_div(found, wanted, reduction="sum", log_target=True) * how.temperature**2
    plain = F.cross_entropy(logits, targets, reduction="sum")
    return how.weight * divergence + (1 - how.weight) * plain, _num_correct(logits.detach(), targets)


def _liger(decoder: PreTrainedModel, hidden: Tensor, targets: Tensor) -> Loss:
    head = decoder.get_output_embeddings()
    total = _liger_loss(_softcap(decoder))(head.weight, hidden, targets, head.bias)
    with torch.no_grad():
        correct = _num_correct(head_logits(decoder, hidden), targets)
    return Loss(total / max(len(targets), 1), len(targets), correct)


@cache
def _liger_loss(softcap: float | None) -> Any:
    try:
        kernels = import_module("liger_kernel.transformers.fused_linear_cross_entropy")
    except ImportError as error:
        raise DependencyError(
            "cross_entropy: liger", expected="liger-kernel to be installed", got=str(error),
            remedy='Run: pip install "gmsa-rag[liger]", or set cross_entropy: chunked.',
        ) from error  # fmt: skip
    return kernels.LigerFusedLinearCrossEntropyLoss(reduction="sum", softcap=softcap)


def _softcap(decoder: PreTrainedModel) -> float | None:
    cap: float | None = getattr(decoder.config, "final_logit_softcapping", None)
    return cap


def _num_correct(logits: Tensor, targets: Tensor) -> Tensor:
    # The highest logit is found ten times faster than its index on a CPU.
    return (logits.gather(1, targets[:, None])[:, 0] >= logits.amax(dim=-1)).sum()
