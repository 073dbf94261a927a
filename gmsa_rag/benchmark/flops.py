"""Floating-point operations of compressing: what the model needs, what a route does, and what the device could do."""

from collections.abc import Callable, Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from gmsa_rag.benchmark.harness import Alternative, Clock, measure
from gmsa_rag.modeling.alignment import backbone_of
from gmsa_rag.modeling.compressor import Compressor
from gmsa_rag.modeling.group_merging import num_groups

# Dense matrix products, 1e12 operations a second, from the vendors' data sheets; part of the device's name, bfloat16
# or float16, float32.
PEAKS = {
    "H200": (989.0, 67.0),
    "H100 PCIe": (756.0, 51.0),
    "H100": (989.0, 67.0),
    "A100": (312.0, 19.5),
    "L40S": (362.0, 91.6),
    "L4": (121.0, 30.3),
}
MATMUL_TOKENS = 2_048
ATTENTION_KERNELS = ("flash", "efficient", "cudnn")


def model_flops(compressor: Compressor, lengths: Sequence[int], rate: int) -> int:
    """Operations that compressing passages needs: each weight of a layer once a token, and causal attention.

    Neither padding nor vocabulary logits are among them, nor norms and other small operations.

    Args:
        compressor: The compressor.
        lengths: Tokens of each passage.
        rate: Tokens per soft token.
    """
    groups = [num_groups(length, rate) for length in lengths]
    return _backbone_flops(compressor.encoder, lengths) + _backbone_flops(compressor.alignment.block, groups)


def counted_flops(run: Callable[[], object]) -> int:
    """Operations of the matrix products and attention that a call does, counted by torch while it runs.

    Causal attention counts as if it were not, and attention kernels that torch does not know count as nothing.
    """
    kernels = (getattr(torch.ops.aten, f"_scaled_dot_product_{name}_attention") for name in ATTENTION_KERNELS)
    with FlopCounterMode(display=False, custom_mapping=dict.fromkeys(kernels, attention_flops)) as counter:
        run()
    return int(counter.get_total_flops())


def attention_flops(query: Sequence[int], key: Sequence[int], *args: object, **kwargs: object) -> int:
    """Operations of attention between shapes (batch, heads, tokens, width); torch 2.11 refuses shared key heads."""
    batch, heads, tokens, width = query
    return 4 * batch * heads * tokens * key[2] * width


def known_peak(device: torch.device, dtype: torch.dtype) -> float | None:
    """Operations a second that a GPU's data sheet states; None if it is not in `PEAKS`."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    found = next((peaks for part, peaks in PEAKS.items() if part in name), None)
    return None if found is None else 1e12 * found[dtype == torch.float32]


def matmul_rate(compressor: Compressor, *, repeats: int = 5, clock: Clock | None = None) -> float:
    """Operations a second of the model's own largest matrix product, 2,048 tokens by one layer's widest weight."""
    weight = max(
        (w for w in backbone_of(compressor.encoder).layers.parameters() if w.dim() == 2), key=lambda w: w.numel()
    )
    tokens = torch.randn((MATMUL_TOKENS, weight.shape[1]), dtype=weight.dtype, device=weight.device)
    with torch.inference_mode():
        run = Alternative("matmul", lambda: torch.nn.functional.linear(tokens, weight))
        timings = measure([run], baseline="matmul", device=weight.device, repeats=repeats, memory=False, clock=clock)
    return float(2 * MATMUL_TOKENS * weight.numel() / timings[0].seconds)


def _backbone_flops(backbone: PreTrainedModel, lengths: Sequence[int]) -> int:
    layers, config = backbone_of(backbone).layers, backbone.config
    weights: int = sum(weight.numel() for weight in layers.parameters() if weight.dim() == 2)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # Scores and their product with the values: two operations each for a token and one that it sees.
    attention = 4 * len(layers) * config.num_attention_heads * head_dim
    seen = sum(length * (length + 1) // 2 for length in lengths)
    return int(2 * weights * sum(lengths) + attention * seen)
