"""Training examples and the batches made of them: text, memories in between, and what is to be learned."""

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gmsa_rag.modeling.compressor import cut_windows
from gmsa_rag.modeling.group_merging import num_groups

IGNORED = -100


@dataclass(frozen=True)
class Segment:
    """Tokens the decoder reads, and learns to predict where `learn` is set.

    Attributes:
        ids: The tokens.
        learn: Whether they are to be predicted.
        read: As many tokens that the decoder reads in their place; None where it reads them as they are.
    """

    ids: Sequence[int]
    learn: bool = False
    read: Sequence[int] | None = None


@dataclass(frozen=True)
class Passage:
    """Tokens the decoder reads as soft tokens at a rate."""

    ids: Sequence[int]
    rate: int


Example = Sequence[Segment | Passage]


@dataclass(frozen=True)
class Budget:
    """What a batch may hold, padding included.

    Attributes:
        positions: Decoder positions, and encoder tokens by their weight.
        window: The compressor's window; what is longer is cut.
        encoder_weight: What an encoder token counts beside a decoder position.
    """

    positions: int
    window: int
    encoder_weight: float = 1.0


@dataclass(frozen=True)
class Batch:
    """A padded batch of examples.

    Attributes:
        input_ids: (batch, max_length), 0 where a soft token goes or a row has ended.
        labels: (batch, max_length), the token to be predicted at this position by the one before, or IGNORED.
        predicting: (num_learned,), positions in the flattened batch from which a learned token is predicted.
        targets: (num_learned,), these tokens, in the same order.
        soft_positions: (num_soft_tokens,), where the packed soft tokens go in the flattened batch.
        window_ids: (num_windows, max_window), tokens of all passages' windows, padded on the right.
        window_lengths: Tokens of each window.
        window_rates: Rate of each window.
    """

    input_ids: Tensor
    labels: Tensor
    predicting: Tensor
    targets: Tensor
    soft_positions: Tensor
    window_ids: Tensor
    window_lengths: list[int]
    window_rates: list[int]

    def to(self, device: torch.device) -> "Batch":
        """The batch with its tensors on a device."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The batch with its tensors in pinned memory; torch's DataLoader calls it."""
        return self._mapped(Tensor.pin_memory)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        changed: dict[str, Any] = {name: change(v) for name, v in fields.items() if isinstance(v, Tensor)}
        return dataclasses.replace(self, **changed)


def num_positions(example: Example) -> int:
    """Positions the example takes in the decoder."""
    return sum(num_groups(len(part.ids), part.rate) if isinstance(part, Passage) else len(part.ids) for part in example)


def as_text(example: Example) -> Example:
    """The same example with its passages read as text."""
    return [Segment(part.ids) if isinstance(part, Passage) else part for part in example]


def collate(examples: Sequence[Example], window: int, pad_to: int = 1) -> Batch:
    """Pad examples to a batch, their passages cut into windows; lengths become multiples of `pad_to`."""
    length = _multiple(max(map(num_positions, examples)), pad_to)
    input_ids = torch.zeros((len(examples), length), dtype=torch.long)
    labels = torch.full_like(input_ids, IGNORED)
    soft: list[int] = []
    windows: list[tuple[Sequence[int], int]] = []
    for row, example in enumerate(examples):
        at = 0
        for part in example:
            if isinstance(part, Passage):
                count = num_groups(len(part.ids), part.rate)
                soft.extend(range(row * length + at, row * length + at + count))
                windows += _windows(part, window)
            else:
                count = len(part.ids)
                input_ids[row, at : at + count] = _tensor(part.ids if part.read is None else part.read)
                if part.learn:
                    labels[row, at : at + count] = _tensor(part.ids)
            at += count
    labels[:, 0] = IGNORED  # nothing before it to be predicted from
    learned = (labels != IGNORED).flatten().nonzero()[:, 0]
    targets = labels.flatten()[learned]
    soft_positions = torch.tensor(soft, dtype=torch.long)
    return Batch(input_ids, labels, learned - 1, targets, soft_positions, *_pad_windows(windows, pad_to))


def batches(
    make: Callable[[random.Random], Example], rng: random.Random, budget: Budget, pool: int
) -> Iterator[list[Example]]:
    """Group a pool of new examples into batches of similar length in the decoder, in random order.

    Args:
        make: Draws one example.
        rng: Where all randomness comes from.
        budget: What a batch may hold.
        pool: Examples drawn at once.

    Yields:
        Lists of examples, at least one each.
    """
    groups: list[list[Example]] = [[]]
    windows: list[int] = []
    for example in sorted((make(rng) for _ in range(pool)), key=num_positions):
        own = [len(ids) for part in example if isinstance(part, Passage) for ids, _ in _windows(part, budget.window)]
        encoded = (len(windows) + len(own)) * max([*windows, *own], default=0)
        padded = (len(groups[-1]) + 1) * num_positions(example)
        if groups[-1] and padded + budget.encoder_weight * encoded > budget.positions:
            groups.append([])
            windows = []
        groups[-1].append(example)
        windows += own
    rng.shuffle(groups)
    yield from groups


def _tensor(ids: Sequence[int]) -> Tensor:
    return torch.as_tensor(np.asarray(ids, dtype=np.int64))


def _multiple(length: int, of: int) -> int:
    return -(-length // of) * of


def _windows(passage: Passage, window: int) -> list[tuple[Sequence[int], int]]:
    borders = cut_windows(len(passage.ids), passage.rate, window)
    return [(passage.ids[a:b], passage.rate) for a, b in pairwise(borders) if b > a]


def _pad_windows(windows: list[tuple[Sequence[int], int]], pad_to: int) -> tuple[Tensor, list[int], list[int]]:
    lengths = [len(ids) for ids, _ in windows]
    padded = torch.zeros((len(windows), _multiple(max(lengths, default=0), pad_to)), dtype=torch.long)
    for row, (ids, _) in enumerate(windows):
        padded[row, : len(ids)] = _tensor(ids)
    return padded, lengths, [rate for _, rate in windows]
