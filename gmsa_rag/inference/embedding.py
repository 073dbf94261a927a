"""A tokenised prompt as the vectors that the decoder reads, soft tokens in their places."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gmsa_rag.errors import FingerprintError, ShapeError
from gmsa_rag.memory.memory import Memory


@torch.inference_mode()
def embed_prompt(tokens: Sequence[list[int] | Memory], decoder: PreTrainedModel, fingerprint: str) -> Tensor:
    """Embed a prompt; all token ids go to the device in one copy, and all soft tokens in another.

    Args:
        tokens: Token ids and memories, in order.
        decoder: Whose embeddings to take.
        fingerprint: Of the compressor whose memories it reads.

    Returns:
        (num_positions, hidden_size), in the decoder's dtype and on its device.

    Raises:
        FingerprintError: If a memory was made by another compressor.
        ShapeError: If its soft tokens are of another width.
    """
    width = int(decoder.config.hidden_size)
    ids: list[int] = []
    places: list[int] = []
    memories: list[Memory] = []
    for part in tokens:
        if isinstance(part, Memory):
            check_memory(part, fingerprint, width)
            places += range(len(ids), len(ids) + part.num_soft_tokens)
            ids += [0] * part.num_soft_tokens
            memories.append(part)
        else:
            ids += part
    table: Any = decoder.get_input_embeddings()
    numbers = torch.tensor(ids + places, device=decoder.device)
    embedded: Tensor = table(numbers[: len(ids)])
    if places:
        embedded.index_copy_(0, numbers[len(ids) :], _gather(memories, len(places), decoder))
    return embedded


def check_memory(memory: Memory, fingerprint: str, width: int) -> None:
    """Raise FingerprintError or ShapeError unless a memory is of this compressor and width."""
    if memory.fingerprint != fingerprint:
        raise FingerprintError(
            f"memory {memory.key}",
            expected=f"one made by the compressor {fingerprint[:16]}…",
            got=f"one made by {memory.fingerprint[:16]}…",
            remedy="Compress the passage again with this checkpoint, or load the one it was made with.",
        )
    if memory.soft_tokens.shape[1] != width:
        raise ShapeError(
            f"memory {memory.key}",
            expected=f"soft tokens of width {width}",
            got=str(memory.soft_tokens.shape[1]),
            remedy="Compress the passage again.",
        )


def _gather(memories: Sequence[Memory], count: int, decoder: PreTrainedModel) -> Tensor:
    """Soft tokens of several memories in one tensor, (count, hidden_size), by way of page-locked memory to a GPU."""
    pinned = decoder.device.type == "cuda"
    buffer = torch.empty((count, int(decoder.config.hidden_size)), dtype=decoder.dtype, pin_memory=pinned)
    at = 0
    for memory in memories:
        buffer[at : at + memory.num_soft_tokens] = memory.soft_tokens
        at += memory.num_soft_tokens
    return buffer.to(decoder.device, non_blocking=True)
