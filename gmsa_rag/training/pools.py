"""Batches of a run, drawn pool by pool from seeds of their own, in worker processes where wanted."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from gmsa_rag.training.examples import Batch, Budget, Example, as_text, batches, collate
from gmsa_rag.training.recipe import Optimisation

# A batch, and the same examples as text where a teacher reads them.
Pair = tuple[Batch, Batch | None]
Draw = Callable[[random.Random], Example]


class Make(Protocol):
    """Draws the examples of a phase."""

    def __call__(self, phase: int) -> Draw:
        """The function that draws one."""


@dataclass
class Place:
    """Where one process stands among its pools.

    Attributes:
        pool: Pools used up.
        used: Batches used of the current one.
    """

    pool: int = 0
    used: int = 0


@dataclass(frozen=True)
class Pools(Dataset[list[Pair]]):
    """The pools of one phase: examples of similar length grouped into batches; equal for equal arguments.

    Attributes:
        draw: Draws one example.
        settings: Seed and sizes.
        window: The compressor's window.
        phase: Of the curriculum.
        rank: Of this process among those that train together; each draws other examples.
        taught: Whether a teacher reads the examples as text.
    """

    draw: Draw
    settings: Optimisation
    window: int
    phase: int
    rank: int = 0
    taught: bool = False

    def __getitem__(self, pool: int) -> list[Pair]:
        """All batches of a pool."""
        rng = random.Random(f"{self.settings.seed} {self.phase} {pool}" + (f" {self.rank}" if self.rank else ""))
        budget = Budget(self.settings.batch_tokens, self.window, self.settings.encoder_weight)
        return [self._pair(group) for group in batches(self.draw, rng, budget, self.settings.pool)]

    def _pair(self, group: Sequence[Example]) -> Pair:
        batch = collate(group, self.window, self.settings.pad_to)
        texts = collate([as_text(e) for e in group], self.window, self.settings.pad_to) if self.taught else None
        return batch, texts


def stream(pools: Pools, place: Place, *, pin: bool = False) -> Iterator[Pair]:
    """Batches from a place on, without end; the place is kept up to date.

    Args:
        pools: Where they come from.
        place: Where to start; the batch that was yielded last counts as used.
        pin: Whether to put them into pinned memory, for a GPU.
    """
    workers = pools.settings.workers
    if workers:  # a pool has hundreds of tensors, and by default each one on its way takes an open file
        torch.multiprocessing.set_sharing_strategy("file_system")
    # A generator of its own: a loader draws a seed when it starts, and dropout must not miss it after a resume.
    loader: DataLoader[list[Pair]] = DataLoader(
        pools, batch_size=None, sampler=_From(place.pool), num_workers=workers, pin_memory=pin,
        multiprocessing_context="fork" if workers else None, prefetch_factor=4 if workers else None,
        generator=torch.Generator(),
    )  # fmt: skip
    for drawn in loader:
        while place.used < len(drawn):
            place.used += 1
            yield drawn[place.used - 1]
        place.pool, place.used = place.pool + 1, 0


class _From:
    """Pool numbers from one on."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        return count(self.start)
