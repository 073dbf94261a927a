"""Decoding with a cache of fixed size, whose steps can be recorded as CUDA graphs."""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from gmsa_rag.inference.decoders.dynamic import pad_left
from gmsa_rag.inference.decoders.graphs import Recorded

# Prompts up to here are padded to a multiple of WIDTH and read by a graph; longer ones keep a device busy anyway.
LONGEST_RECORDED = 1_024
WIDTH = 64


class StaticSteps:
    """Generations of one batch size in one cache, one after another; see `Steps`.

    Rows are padded on the left, so that the next token of every row goes to the same slot.

    Args:
        model: A decoder that `sessions.reason_against` has nothing against.
        rows: Rows of a batch; a smaller batch leaves some idle.
        slots: Positions that the cache holds for each row, padding included.
        lock: Held while anything is computed or recorded.
        record: Whether steps are recorded as CUDA graphs, in memory of their own.
    """

    @torch.inference_mode()
    def __init__(self, model: PreTrainedModel, rows: int, slots: int, lock: threading.Lock, record: bool) -> None:
        self._model: Any = model
        self.rows, self.slots = rows, slots
        self._lock, self._pool = lock, new_pool() if record else None
        self._lengths, self._tokens, self._positions, self._slot = (
            torch.ones(shape, dtype=torch.long, device=model.device) for shape in ((rows,), (rows, 1), (rows, 1), (1,))
        )
        self._mask = torch.zeros((rows, 1, 1, slots), dtype=torch.bool, device=model.device)
        self._cache = Cache(layers=[_Slots(slots, self._slot) for _ in range(model.config.num_hidden_layers)])
        self._readers: dict[int, tuple[Tensor, Callable[[], Tensor]]] = {}
        self._decode: Callable[[], Tensor] = self._read_token
        if record:
            with lock:
                self._reader(WIDTH)  # the cache has to be there before a step is recorded
                self._decode = self._recorded(self._read_token)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Tensor]) -> Tensor:
        """See `Steps`; whatever the cache held before is gone."""
        lengths = [len(prompt) for prompt in prompts]
        width, idle = prompt_width(max(lengths)), self.rows - len(prompts)
        with self._lock:
            self._lengths.copy_(torch.tensor(lengths + [1] * idle))
            if width <= LONGEST_RECORDED:
                embeds, read = self._reader(width)
                embeds[: len(prompts)] = pad_left(prompts, width, self._model)
                return read()[: len(prompts)]
            embeds = pad_left([*prompts, *[torch.zeros_like(prompts[0][:1])] * idle], width, self._model)
            return self._read(embeds, padded=self.rows > 1)[: len(prompts)]

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """See `Steps`."""
        with self._lock:
            self._tokens[: len(tokens), 0] = tokens
            return self._decode()[: len(tokens)]

    def _reader(self, width: int) -> tuple[Tensor, Callable[[], Tensor]]:
        """What reads prompts of a width, and the tensor it reads them from, (rows, width, hidden_size)."""
        if width not in self._readers:
            shape = self.rows, width, self._model.config.hidden_size
            embeds = torch.zeros(shape, dtype=self._model.dtype, device=self._model.device)
            self._readers[width] = embeds, self._recorded(partial(self._read, embeds, padded=True))
        return self._readers[width]

    def _recorded(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return function if self._pool is None else Recorded(function, self._pool, self._model.device)

    def _read(self, embeds: Tensor, padded: bool) -> Tensor:
        """Read prompts into the cache; logits after each, (rows, vocab_size)."""
        width = embeds.shape[1]
        places = torch.arange(width, device=embeds.device)
        starts = width - self._lengths[:, None]
        kept = places >= starts
        logits = self._run(
            inputs_embeds=embeds,
            attention_mask=_prompt_mask(kept, places) if padded else None,
            position_ids=(places - starts).clamp(min=0),
            logits_to_keep=1,
        )
        self._slot.fill_(width)
        self._positions.copy_(self._lengths[:, None])
        self._mask.zero_()
        self._mask[..., :width] = kept[:, None, None]
        return logits

    def _read_token(self) -> Tensor:
        """Read the next token of each row; logits after it, (rows, vocab_size)."""
        self._mask.index_fill_(3, self._slot, True)
        logits = self._run(input_ids=self._tokens, attention_mask=self._mask, position_ids=self._positions)
        self._slot.add_(1)
        self._positions.add_(1)
        return logits

    def _run(self, **inputs: Any) -> Tensor:
        logits: Tensor = self._model(**inputs, past_key_values=self._cache, use_cache=True).logits[:, -1]
        return logits


def new_pool() -> tuple[int, int]:
    """Memory for the CUDA graphs of one cache."""
    return torch.cuda.graph_pool_handle()


def prompt_width(length: int) -> int:
    """Positions that a prompt is read with: few different ones, so that few graphs serve all; a long one's own."""
    return length if length > LONGEST_RECORDED else -(-length // WIDTH) * WIDTH


class _Slots(CacheLayerMixin):
    """Keys and values of one layer in tensors that stay where they are; all layers share the slot of the next token."""

    keys: Tensor
    values: Tensor

    def __init__(self, slots: int, slot: Tensor) -> None:
        self.is_initialized = False
        self._slots, self._slot = slots, slot

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = (
            states.new_zeros((*states.shape[:2], self._slots, states.shape[3])) for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        width = key_states.shape[2]
        if width > 1:  # a prompt attends to nothing before it; prompts are never one position wide
            self.keys[:, :, :width] = key_states
            self.values[:, :, :width] = value_states
            return key_states, value_states
        self.keys.index_copy_(2, self._slot, key_states)
        self.values.index_copy_(2, self._slot, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0  # asked for prompts without padding; all else brings its mask

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return self._slots


def _prompt_mask(kept: Tensor, places: Tensor) -> Tensor:
    """Who attends to whom, (rows, 1, width, width): each to itself, so that padding has something to attend to."""
    earlier = places[:, None] > places
    itself = places[:, None] == places
    return ((earlier & kept[:, None]) | itself)[:, None]
