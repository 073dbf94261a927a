"""The norms around group merging, taken over from the layers that hold them.

Group merging stands between two norms: the encoder's final one and the one with which the LSA's first layer begins.
Computed in one kernel, the states are read once. The modules of transformers apply these norms themselves, so for the
length of a call they are run through a view: another module object with the same layers and weights, and something
else in the place of one norm. The model itself is never changed, so that threads can share it, names in state dicts
stay, and autograd, LoRA and gradient checkpointing work as they do without.
"""

import copy
from typing import Any, TypeVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from gmsa_rag.kernels.reference import RMSNorm

# What is added to the weight, for the classes known to be root mean square norms.
OFFSETS = {
    "LlamaRMSNorm": 0.0,
    "MistralRMSNorm": 0.0,
    "Qwen2RMSNorm": 0.0,
    "Qwen3RMSNorm": 0.0,
    "GemmaRMSNorm": 1.0,
    "Gemma2RMSNorm": 1.0,
}
Module = TypeVar("Module", bound=nn.Module)


def final_norm(backbone: PreTrainedModel) -> RMSNorm | None:
    """The final norm of a backbone, None if it has to be applied by the backbone itself."""
    return as_rms_norm(backbone._modules.get("norm")) if _is_plain(backbone) else None


def first_norm(backbone: PreTrainedModel) -> RMSNorm | None:
    """The norm with which a backbone's first layer begins, None if it has to be applied by the layer itself."""
    layers = backbone._modules.get("layers")
    if not _is_plain(backbone) or not isinstance(layers, nn.ModuleList) or not _is_plain(layers[0]):
        return None
    return as_rms_norm(layers[0]._modules.get("input_layernorm"))


def as_rms_norm(module: nn.Module | None) -> RMSNorm | None:
    """Weight, eps and offset of a module, None if it is no root mean square norm that we know.

    Weights that are sharded at the moment are none that we can read, and a module with hooks is left to run.
    """
    offset = OFFSETS.get(type(module).__name__)
    if module is None or offset is None or not _is_plain(module) or type(module.weight) is not nn.Parameter:
        return None
    return RMSNorm(module.weight, float(getattr(module, "variance_epsilon", getattr(module, "eps", 0.0))), offset)


def without_final_norm(backbone: PreTrainedModel) -> PreTrainedModel:
    """A view of a backbone that gives its last residual stream, its final norm not applied."""
    return _view(backbone, norm=nn.Identity())


def with_first_norm_given(backbone: PreTrainedModel, normed: Tensor) -> PreTrainedModel:
    """A view of a backbone whose first layer begins with a norm's result instead of computing it."""
    layers: Any = backbone.layers
    first = _view(layers[0], input_layernorm=_Given(normed))
    return _view(backbone, layers=nn.ModuleList([first, *layers[1:]]))


class _Given(nn.Module):
    """Answers any input with one value, as the result of a norm that was computed elsewhere."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.value


def _view(module: Module, **replaced: nn.Module) -> Module:
    view = copy.copy(module)
    view._modules = {**module._modules, **replaced}
    return view


def _is_plain(module: nn.Module) -> bool:
    """Whether a call of the module runs its class's forward on these very weights, and nothing else."""
    replaced = "forward" in vars(module) or module._compiled_call_impl is not None
    return not (replaced or module._forward_hooks or module._forward_pre_hooks)
