"""LoRA: low-rank updates of the linear layers, trained beside the frozen base and merged into it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gmsa_rag.errors import CheckpointError, ConfigError, DependencyError
from gmsa_rag.modeling.alignment import backbone_of, check_unquantised

ADAPTER = "default"


@dataclass(frozen=True)
class LoraSettings:
    """How LoRA is made; the defaults are the paper's.

    Attributes:
        rank: Width of the update's bottleneck, >= 1.
        alpha: The update is scaled by alpha / rank, > 0.
        dropout: Of the update's input while training, 0 to below 1.

    Raises:
        ConfigError: If a value is out of its range.
    """

    rank: int = 128
    alpha: float = 32.0
    dropout: float = 0.05

    def __post_init__(self) -> None:
        whole = isinstance(self.rank, int) and not isinstance(self.rank, bool)
        if not whole or self.rank < 1 or not 0 < self.alpha < float("inf") or not 0 <= self.dropout < 1:
            raise ConfigError(
                "lora", expected="a whole rank >= 1, alpha > 0 and 0 <= dropout < 1",
                got=f"rank {self.rank}, alpha {self.alpha}, dropout {self.dropout}", remedy="Change the settings.",
            )  # fmt: skip

    @property
    def scale(self) -> float:
        """What an update is multiplied by."""
        return self.alpha / self.rank


def add_lora(model: PreTrainedModel, settings: LoraSettings) -> list[nn.Parameter]:
    """Put LoRA on every linear layer within a model's layers, in place; at first it changes no output.

    Args:
        model: An encoder or a whole causal LM. Its embeddings and its language-model head get none. All weights it had
            are frozen, an embedding table shared with another model among them, and keep their dtype.
        settings: Rank, scale and dropout.

    Returns:
        What is to be trained, in float32: two matrices a linear layer, drawn from torch's global generator.

    Raises:
        ConfigError: If the weights are quantised, or the model carries LoRA already.
        DependencyError: If peft is missing.
    """
    check_unquantised(model)
    if carries_lora(model):
        raise ConfigError(
            "model", expected="one without LoRA", got="one that carries LoRA", remedy="Merge it first (merge_lora)."
        )
    peft, backbone = _peft(), backbone_of(model)
    model.requires_grad_(False)
    config = peft.LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=list(_linears(model))
    )
    peft.inject_adapter_in_model(config, backbone, adapter_name=ADAPTER)
    added = [parameter for name, parameter in backbone.named_parameters() if _lora_name(name)]
    for parameter in added:
        parameter.data = parameter.data.float()
    return added


def merge_lora(model: PreTrainedModel) -> None:
    """Add a model's LoRA to its weights and put the plain linear layers back, in place; weights stay frozen.

    Args:
        model: One that carries LoRA. The sum is computed in float32 and rounded to the weights' dtype once.

    Raises:
        ConfigError: If it carries none.
    """
    weights, scale, backbone = lora_weights(model), lora_settings(model).scale, backbone_of(model)
    for name in _wrapped(backbone):
        backbone.set_submodule(name, backbone.get_submodule(name).base_layer)
    del backbone.peft_config
    apply_lora(model, weights, scale)


def apply_lora(model: PreTrainedModel, weights: Mapping[str, Tensor], scale: float) -> None:
    """Merge LoRA into a plain model, in place.

    Args:
        model: An encoder or a whole causal LM, without LoRA of its own.
        weights: For every linear layer within its layers `NAME.lora_A`, (rank, in_features), and `NAME.lora_B`,
            (out_features, rank), as `lora_weights` names them; any float dtype.
        scale: Factor of the updates, `LoraSettings.scale`. Sums are computed in float32 and rounded to the weights'
            dtype once.

    Raises:
        CheckpointError: If a weight is missing, unexpected or misshapen; it is named, and nothing is merged.
        ConfigError: If the model's weights are quantised.
    """
    check_unquantised(model)
    linears = _linears(model)
    if wrong := _mismatches(linears, weights):
        raise CheckpointError(
            "LoRA weights",
            expected="a pair of matrices for every linear layer of the model",
            got="; ".join(sorted(wrong)),
            remedy="Take the base and the number of layers that they were trained on.",
        )
    with torch.no_grad():
        for name, linear in linears.items():
            down, up = (weights[f"{name}.lora_{half}"].to(linear.weight.device, torch.float32) for half in "AB")
            linear.weight.copy_(linear.weight.float() + scale * (up @ down))


def lora_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The LoRA that a model carries, {} for a plain one.

    Returns:
        `layers.0.self_attn.q_proj.lora_A` and its kin, named from the backbone on, to tensors without gradient.
    """
    named = {_lora_name(name): parameter for name, parameter in backbone_of(model).named_parameters()}
    return {name: parameter.detach() for name, parameter in named.items() if name}


def lora_settings(model: PreTrainedModel) -> LoraSettings:
    """The settings of the LoRA that a model carries, or ConfigError."""
    backbone = backbone_of(model)
    if not (wrapped := _wrapped(backbone)):
        raise ConfigError(
            "model", expected="one that carries LoRA", got="one without", remedy="Put LoRA on it first (add_lora)."
        )
    layer = backbone.get_submodule(wrapped[0])
    dropout = getattr(layer.lora_dropout[ADAPTER], "p", 0.0)  # an identity where it is 0
    return LoraSettings(layer.r[ADAPTER], layer.lora_alpha[ADAPTER], dropout)


def carries_lora(model: PreTrainedModel) -> bool:
    """Whether a model has LoRA that is not merged."""
    return any(".lora_A." in name for name, _ in model.named_parameters())


def plain_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """State dict of a model without the LoRA it carries, under the names of a plain one."""
    state: dict[str, Tensor] = model.state_dict()
    return {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if not _lora_name(name)}


def _linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    modules = backbone_of(model).layers.named_modules(prefix="layers")
    return {name: module for name, module in modules if isinstance(module, nn.Linear)}


def _wrapped(backbone: Any) -> list[str]:
    """Names of the layers that carry LoRA."""
    names = (_lora_name(name) for name, _ in backbone.named_parameters())
    return [name.removesuffix(".lora_A") for name in names if name.endswith(".lora_A")]


def _lora_name(parameter: str) -> str:
    """Name of a LoRA weight in files, "" for any other parameter."""
    name = parameter.removesuffix(f".{ADAPTER}.weight")
    return name if name.endswith((".lora_A", ".lora_B")) else ""


def _mismatches(linears: Mapping[str, nn.Linear], weights: Mapping[str, Tensor]) -> list[str]:
    names = {f"{name}.lora_{half}" for name in linears for half in "AB"}
    wrong = [f"missing {name}" for name in names - set(weights)] + [f"unexpected {n}" for n in set(weights) - names]
    for name, linear in linears.items():
        down, up = (weights.get(f"{name}.lora_{half}") for half in "AB")
        if down is None or up is None:
            continue
        rank = down.shape[0] if down.dim() else 0
        if down.shape != (rank, linear.in_features):
            wrong.append(f"{name}.lora_A of shape {tuple(down.shape)} for {linear.in_features} features")
        if up.shape != (linear.out_features, rank):
            wrong.append(f"{name}.lora_B of shape {tuple(up.shape)} in the place of {(linear.out_features, rank)}")
    return wrong


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise DependencyError(
            "LoRA", expected="the package peft", got="none", remedy='Install it: pip install "gmsa-rag[train]"'
        ) from error
    return cast(Any, peft)
