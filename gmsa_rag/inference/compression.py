"""Compression of passages of any length, in batches of similar windows, the device never waiting for the host."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise

import torch
from torch import Tensor

from gmsa_rag.inference.batching import token_budget_batches
from gmsa_rag.modeling.compressor import Compressor, cut_windows
from gmsa_rag.modeling.group_merging import num_groups, to_device

# Tokens of a batch. A CPU is busy with few, which hold less padding and stay in its caches; more threads want more. A
# GPU needs many to be busy.
CPU_THREAD_TOKENS, CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 256, 512, 16_384
# Passages are sorted by length within so many tokens: enough for hardly any padding, and little enough that a GPU is
# at work while the next ones are tokenised.
SORTED_TOKENS = 131_072


def compress_passages(
    compressor: Compressor, passages: Iterable[Sequence[int]], rate: int, window: int
) -> list[tuple[Tensor, tuple[int, ...]]]:
    """Cut passages into windows, compress these in batches, and join them again.

    Args:
        compressor: The compressor.
        passages: Token ids of each passage, of any length. They are taken as they are needed: while a GPU computes,
            an iterator may tokenise what comes next.
        rate: Tokens per soft token, >= 1.
        window: Longest run of tokens the encoder takes.

    Returns:
        For each passage its soft tokens, (ceil(num_tokens / rate), hidden_size) on the CPU, and the windows' borders.

    Raises:
        RateError: If a passage has to be cut, and the rate is beyond the window.
    """
    borders: list[tuple[int, ...]] = []
    pieces: list[Tensor] = []  # soft tokens of all windows in order, perhaps still on their way from a GPU
    for chunk in _chunks(passages):
        cuts = [tuple(cut_windows(len(ids), rate, window)) for ids in chunk]
        windows = [ids[a:b] for ids, cut in zip(chunk, cuts, strict=True) for a, b in pairwise(cut) if b > a]
        pieces += _compress_windows(compressor, windows, rate)
        borders += cuts
    if compressor.encoder.device.type == "cuda":
        torch.cuda.current_stream(compressor.encoder.device).synchronize()
    nothing, rest = _nothing(compressor), iter(pieces)
    return [(torch.cat([nothing, *(next(rest) for a, b in pairwise(cut) if b > a)]), cut) for cut in borders]


def _chunks(passages: Iterable[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Runs of passages to be sorted together."""
    chunk: list[Sequence[int]] = []
    held = 0
    for ids in passages:
        chunk.append(ids)
        held += len(ids)
        if held >= SORTED_TOKENS:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


@torch.inference_mode()
def _compress_windows(compressor: Compressor, windows: Sequence[Sequence[int]], rate: int) -> list[Tensor]:
    """Soft tokens of each window, on the CPU or on their way to it."""
    lengths = [len(ids) for ids in windows]
    packed, device = compressor.can_pack, compressor.encoder.device
    run, join = (compressor.forward_packed, _pack_ids) if packed else (compressor, _pad_ids)
    soft: list[Tensor] = [torch.empty(0)] * len(windows)
    for batch in token_budget_batches(lengths, _batch_tokens(device), padded=not packed):
        ids, sizes = join([windows[index] for index in batch]), [lengths[index] for index in batch]
        on_host = _to_host(run(to_device(ids, device), sizes, [rate] * len(batch)))
        counts = [num_groups(size, rate) for size in sizes]
        for index, soft_tokens in zip(batch, on_host.split(counts), strict=True):
            soft[index] = soft_tokens
    return soft


def _batch_tokens(device: torch.device) -> int:
    if device.type == "cpu":
        return max(CPU_BATCH_TOKENS, CPU_THREAD_TOKENS * torch.get_num_threads())
    return GPU_BATCH_TOKENS


def _pack_ids(windows: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor(list(chain.from_iterable(windows)), dtype=torch.long)


def _pad_ids(windows: Sequence[Sequence[int]]) -> Tensor:
    width = max(map(len, windows))
    return torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in windows], dtype=torch.long)


def _to_host(soft_tokens: Tensor) -> Tensor:
    """Copy to the CPU; from a GPU into pinned memory, there once the stream has been waited for."""
    if soft_tokens.device.type != "cuda":
        return soft_tokens.cpu()
    pinned = torch.empty(soft_tokens.shape, dtype=soft_tokens.dtype, pin_memory=True)
    return pinned.copy_(soft_tokens, non_blocking=True)


def _nothing(compressor: Compressor) -> Tensor:
    encoder = compressor.encoder
    return torch.zeros((0, int(encoder.config.hidden_size)), dtype=encoder.dtype)
