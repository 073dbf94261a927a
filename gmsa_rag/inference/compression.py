"""Compression of passages of any length, in batches of similar windows."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from gmsa_rag.inference.batching import token_budget_batches
from gmsa_rag.modeling.compressor import Compressor, cut_windows
from gmsa_rag.modeling.group_merging import num_groups

BATCH_TOKENS = 8_192


def compress_passages(
    compressor: Compressor, passages: Sequence[Sequence[int]], rate: int, window: int
) -> list[tuple[Tensor, tuple[int, ...]]]:
    """Cut passages into windows, compress these in batches, and join them again.

    Args:
        compressor: The compressor.
        passages: Token ids of each passage, of any length.
        rate: Tokens per soft token, >= 1.
        window: Longest run of tokens the encoder takes.

    Returns:
        For each passage its soft tokens, (ceil(num_tokens / rate), hidden_size) on the CPU, and the windows' borders.

    Raises:
        RateError: If a passage has to be cut, and the rate is beyond the window.
    """
    borders = [cut_windows(len(ids), rate, window) for ids in passages]
    spans = [(row, a, b) for row, cuts in enumerate(borders) for a, b in pairwise(cuts) if b > a]
    rows: list[list[Tensor]] = [[_nothing(compressor)] for _ in passages]
    windows = [passages[row][a:b] for row, a, b in spans]
    for (row, _, _), soft_tokens in zip(spans, _compress_windows(compressor, windows, rate), strict=True):
        rows[row].append(soft_tokens)
    return [(torch.cat(pieces), tuple(cuts)) for pieces, cuts in zip(rows, borders, strict=True)]


@torch.inference_mode()
def _compress_windows(compressor: Compressor, windows: Sequence[Sequence[int]], rate: int) -> list[Tensor]:
    """Soft tokens of each window, on the CPU."""
    soft: list[Tensor] = [torch.empty(0)] * len(windows)
    for batch in token_budget_batches([len(ids) for ids in windows], BATCH_TOKENS):
        lengths = [len(windows[index]) for index in batch]
        ids = torch.zeros((len(batch), max(lengths)), dtype=torch.long)
        for row, index in enumerate(batch):
            ids[row, : lengths[row]] = torch.tensor(windows[index])
        packed = compressor(ids.to(compressor.encoder.device), lengths, [rate] * len(batch)).cpu()
        counts = [num_groups(length, rate) for length in lengths]
        for index, soft_tokens in zip(batch, packed.split(counts), strict=True):
            soft[index] = soft_tokens
    return soft


def _nothing(compressor: Compressor) -> Tensor:
    encoder = compressor.encoder
    return torch.zeros((0, int(encoder.config.hidden_size)), dtype=encoder.dtype)
