"""What makes a step of the gradients: AdamW, or Muon for the layers' matrices and AdamW for all else."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from gmsa_rag.errors import ConfigError
from gmsa_rag.training.recipe import Optimisation


def make_optimiser(
    parameters: Sequence[nn.Parameter], settings: Optimisation, *, embeddings: Sequence[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """The optimiser that the settings name.

    Args:
        parameters: What learns.
        settings: Its kind, learning rate, betas and weight decay; matrices alone decay.
        embeddings: Those of the parameters that are tables of tokens, which Muon is not for.
    """
    if settings.optimiser == "muon":
        tables = {id(table) for table in embeddings}
        matrices = [p for p in parameters if p.dim() == 2 and id(p) not in tables]
        chosen = {id(matrix) for matrix in matrices}
        return MuonAdamW(matrices, [p for p in parameters if id(p) not in chosen], settings)
    return _adamw(parameters, settings)


def check_whole(parameters: Sequence[nn.Parameter], settings: Optimisation) -> None:
    """Raise ConfigError where Muon, which needs whole matrices, is to step parameters sharded among processes."""
    if settings.optimiser == "muon" and any(isinstance(parameter, DTensor) for parameter in parameters):
        raise ConfigError(
            "optimiser: muon", expected="whole matrices in every process", got="matrices sharded by FSDP",
            remedy="Launch with data parallelism alone, or set optimiser: adamw.",
        )  # fmt: skip


class MuonAdamW(torch.optim.Optimizer):
    """Muon for the matrices, AdamW for the rest, as one optimiser whose groups share a learning rate.

    Muon's updates are scaled to AdamW's usual size, so that one learning rate serves both.

    Args:
        matrices: The layers' matrices.
        others: Embeddings, norms and biases.
        settings: Learning rate, betas and weight decay.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; the scale: Liu et al.,
    "Muon is Scalable for LLM Training", arXiv 2502.16982.
    """

    def __init__(
        self, matrices: Sequence[nn.Parameter], others: Sequence[nn.Parameter], settings: Optimisation
    ) -> None:
        rate, decay = settings.learning_rate, settings.weight_decay
        muon = torch.optim.Muon(
            [{"params": list(matrices)}], lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
        )
        adamw = _adamw(others, settings)
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self.muon, self.adamw = muon, adamw

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both; the closure's value, where there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Loading a state puts new groups and a new state in the place of those that the two were made with.
        self.muon.param_groups, self.adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        self.muon.state = self.adamw.state = self.state
        self.muon.step()
        self.adamw.step()
        return loss


def _adamw(parameters: Sequence[nn.Parameter], settings: Optimisation) -> torch.optim.AdamW:
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)
