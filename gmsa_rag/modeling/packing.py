"""Passages packed one behind the other, without padding, through the attention of transformers' models.

transformers calls the attention function that a model's config names and hands it what the model was called with. Ours
is registered under `PACKED` when a model is first run packed. It keeps passages apart by their borders: on a GPU with
the flash-attention kernel that torch brings (`varlen_attn`), elsewhere passage by passage, which is its plain
reference. Called without borders, for a padded batch, it is transformers' own "sdpa".
"""

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from gmsa_rag.modeling.group_merging import to_device

PACKED = "gmsa_packed"
# Families for which tests compare packed with padded. Gemma 2 caps its attention scores, which the kernel cannot.
FAMILIES = ("gemma", "llama", "mistral", "qwen2", "qwen3")
KERNEL_DTYPES, MAX_HEAD_DIM, HEAD_DIM_STEP, CAPABILITY = (torch.float16, torch.bfloat16), 256, 8, (8, 0)


def packing_obstacle(model: PreTrainedModel) -> str:
    """Why a backbone cannot be run packed where it is, "" if it can."""
    config = model.config
    if config.model_type not in FAMILIES:
        return f"a model of type {config.model_type}"
    if config._attn_implementation not in ("sdpa", PACKED):
        return f"attention by {config._attn_implementation}"
    if model.training and getattr(config, "attention_dropout", None):
        return "dropout of attention"
    return _kernel_obstacle(model) if model.device.type == "cuda" else ""


def _kernel_obstacle(model: PreTrainedModel) -> str:
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if torch.version.hip is not None or torch.cuda.get_device_capability(model.device) < CAPABILITY:
        return f"a {torch.cuda.get_device_name(model.device)}"
    if model.dtype not in KERNEL_DTYPES:
        return f"weights of {model.dtype}"
    return f"heads of {head_dim}" if head_dim > MAX_HEAD_DIM or head_dim % HEAD_DIM_STEP else ""


def packed_arguments(lengths: Sequence[int], device: torch.device) -> dict[str, Any]:
    """What a backbone is called with beside ids or embeddings of shape (1, sum of lengths, ...).

    Args:
        lengths: Tokens of each passage, >= 1; at least one passage.
        device: Where the backbone is. Borders are worked out on the CPU, so that nothing waits for a GPU.
    """
    counts = torch.tensor(lengths)
    borders = F.pad(counts.cumsum(0), (1, 0))
    positions = torch.arange(int(borders[-1])) - borders[:-1].repeat_interleave(counts)
    cu_seq_lens, longest = to_device(borders.int(), device), max(lengths)
    return {
        "position_ids": to_device(positions, device)[None],
        "cu_seq_lens_q": cu_seq_lens,
        "cu_seq_lens_k": cu_seq_lens,
        "max_length_q": longest,
        "max_length_k": longest,
        # transformers passes a mask of four dimensions on as it is. Without one it would build one, of num_tokens
        # squared, from the positions.
        "attention_mask": torch.empty((1, 1, 0, 0), device=device),
    }


def use_packed_attention(model: PreTrainedModel) -> None:
    """Let a backbone run packed when it is called with borders; called without, it computes what it did before."""
    if model.config._attn_implementation != PACKED:
        AttentionInterface.register(PACKED, packed_attention)
        AttentionMaskInterface.register(PACKED, AttentionMaskInterface()["sdpa"])
        model.set_attn_implementation(PACKED)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int = 0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each passage, as transformers calls it.

    Args:
        module: The attention module.
        query: (1, num_heads, num_tokens, head_dim).
        key: (1, num_key_value_heads, num_tokens, head_dim).
        value: As key.
        attention_mask: Read for padded batches only.
        scaling: Factor of the scores.
        sliding_window: Tokens that a token sees, itself among them; None for all before it.
        cu_seq_lens_q: Borders of the passages, (num_passages + 1,), int32; None for a padded batch.
        max_length_q: Tokens of the longest passage.
        **kwargs: What else transformers passes on.

    Returns:
        (1, num_tokens, num_heads, head_dim), and no attention weights.
    """
    if cu_seq_lens_q is None:
        padded: Any = AttentionInterface()["sdpa"]
        output: Tensor = padded(
            module, query, key, value, attention_mask, scaling=scaling, sliding_window=sliding_window, **kwargs
        )[0]
        return output, None
    window = sliding_window if sliding_window and sliding_window < max_length_q else None
    rows = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    if query.is_cuda:
        return _by_kernel(rows, cu_seq_lens_q, max_length_q, scaling, window)[None], None
    return _one_by_one(rows, cu_seq_lens_q, scaling, window)[None], None


def _by_kernel(rows: list[Tensor], borders: Tensor, longest: int, scale: float | None, window: int | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # brings torch's compiler with it, which takes a second to load

    query, key, value = rows
    shared, settings = query.shape[1] // key.shape[1], cast(dict[str, Any], {})
    if shared > 1 and _takes_shared_heads(varlen_attn):
        settings["enable_gqa"] = True
    elif shared > 1:
        key, value = (tensor.repeat_interleave(shared, dim=1) for tensor in (key, value))
    # Of the tokens to the left it counts those beside the token itself; none to the right makes it causal.
    seen = (-1 if window is None else window - 1, 0)
    attended = varlen_attn(
        query, key, value, borders, borders, longest, longest, scale=scale, window_size=seen, **settings
    )
    return cast(Tensor, attended)


@cache
def _takes_shared_heads(kernel: Callable[..., Any]) -> bool:
    """Whether this torch's kernel takes fewer key than query heads; 2.11 has no word for it."""
    return "enable_gqa" in inspect.signature(kernel).parameters


def _one_by_one(rows: list[Tensor], borders: Tensor, scale: float | None, window: int | None) -> Tensor:
    return torch.cat([
        _attend([tensor[a:b].transpose(0, 1) for tensor in rows], scale, window).transpose(0, 1)
        for a, b in pairwise(borders.tolist())
    ])  # fmt: skip


def _attend(heads: list[Tensor], scale: float | None, window: int | None) -> Tensor:
    """One passage, all tensors (num_heads, length, head_dim)."""
    query, key, value = (tensor[None] for tensor in heads)
    mask = None
    if window is not None:
        far = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool, device=query.device)
        mask = far.tril() & ~far.tril(-window)
    attended = F.scaled_dot_product_attention(
        query, key, value, mask, is_causal=mask is None, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )
    return attended[0]
