"""Which cache a generation gets: one of fixed size that is kept for the next, or one that grows."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

from gmsa_rag.errors import ConfigError
from gmsa_rag.inference.decoders.dynamic import DynamicSteps, Steps
from gmsa_rag.inference.decoders.static import StaticSteps, prompt_width

logger = logging.getLogger(__name__)
CACHES = ("auto", "static", "dynamic")
# Families whose forward pass is the same chain of kernels whatever its inputs hold.
FAMILIES = frozenset({"gemma", "llama", "mistral", "qwen2", "qwen3"})
SMALLEST_CACHE = 256
# A step attends to all slots of a static cache, filled or not, under a mask: a longer one would not pay.
LONGEST_STATIC = 4_096
# Positions of all static caches of a decoder together: about 8 GB for a Llama 3.2 3B in bfloat16.
MAX_POSITIONS = 65_536


class Sessions:
    """Hands out what generations run on. Safe to use from several threads.

    A static cache belongs to one generation at a time and is kept for later ones of its size; those not used for
    longest make room for others. Where there is no room, the generation gets a cache that grows.

    Args:
        model: The decoder.
        cache: "static", "dynamic", or "auto": static on CUDA, where its steps are CUDA graphs, if the family can.
            On other devices a static cache runs the same steps unrecorded, which is for tests.

    Raises:
        ConfigError: If `cache` is none of these, or "static" and the decoder cannot.
    """

    def __init__(self, model: PreTrainedModel, cache: str = "auto") -> None:
        check_cache(model, cache)
        self._model, self.cache = model, cache
        self._counting = threading.Lock()
        self._computing = threading.Lock()
        self._idle: list[StaticSteps] = []
        self._in_use = 0
        self._weights: tuple[Any, ...] = ()
        self._told = False

    @contextmanager
    def open(self, rows: int, length: int, max_new_tokens: int) -> Iterator[Steps]:
        """What one batch runs on, to be used inside the `with` only.

        Args:
            rows: Prompts, >= 1.
            length: Positions of the longest.
            max_new_tokens: Most tokens that will follow.
        """
        slots = slots_of(prompt_width(length) + max_new_tokens)
        fits = self.cache == "static" or slots <= LONGEST_STATIC
        steps = self._take(rows_of(rows), slots) if fits and self._static() else None
        if steps is None:
            yield DynamicSteps(self._model)
            return
        weights = self._weights
        try:
            yield steps
        finally:
            self._give_back(steps, weights)

    def _static(self) -> bool:
        if self.cache != "auto":
            return self.cache == "static"
        reason = reason_against(self._model) if self._model.device.type == "cuda" else "not on CUDA"
        if not self._told:
            self._told = True
            logger.info("decoding with %s", f"a growing cache: {reason}" if reason else "a static cache, CUDA graphs")
        return reason is None

    def _take(self, rows: int, slots: int) -> StaticSteps | None:
        """A session of this size; None if there is no room for it."""
        with self._counting:
            self._forget_stale()
            found = next((steps for steps in reversed(self._idle) if (steps.rows, steps.slots) == (rows, slots)), None)
            if found is not None:
                self._idle.remove(found)
            else:
                while self._idle and self._held() + rows * slots > MAX_POSITIONS:
                    self._idle.pop(0)
                if self._held() + rows * slots > MAX_POSITIONS:
                    logger.debug("no room for a static cache of %d x %d positions", rows, slots)
                    return None
            self._in_use += rows * slots
        if found is not None:
            return found
        try:
            return StaticSteps(self._model, rows, slots, self._computing, self._records())
        except BaseException:
            with self._counting:
                self._in_use -= rows * slots
            raise

    def _give_back(self, steps: StaticSteps, weights: object) -> None:
        with self._counting:
            self._in_use -= steps.rows * steps.slots
            if weights == self._weights:
                self._idle.append(steps)

    def _held(self) -> int:
        return self._in_use + sum(steps.rows * steps.slots for steps in self._idle)

    def _forget_stale(self) -> None:
        """Graphs hold addresses: forget them if the model has moved or been cast since."""
        table: Any = self._model.get_input_embeddings()
        weights = table.weight.data_ptr(), table.weight.dtype, table.weight.device
        if weights != self._weights:
            self._weights, self._idle = weights, []

    def _records(self) -> bool:
        return bool(self._model.device.type == "cuda")


def check_cache(model: PreTrainedModel, cache: str) -> None:
    """Raise ConfigError unless a decoder can have this kind of cache."""
    if cache not in CACHES:
        raise ConfigError("cache", expected=", ".join(CACHES), got=repr(cache), remedy="Choose one.")
    if cache == "static" and (reason := reason_against(model)):
        raise ConfigError("cache", expected="a decoder that can have a static one", got=reason, remedy="Use 'auto'.")


def reason_against(model: PreTrainedModel) -> str | None:
    """Why a decoder cannot have a static cache, in words; None if it can."""
    config = model.config
    if config.model_type not in FAMILIES:
        return f"the family {config.model_type} is none of {', '.join(sorted(FAMILIES))}"
    slides = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    if slides or set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        return "a layer attends to a sliding window"
    if config._attn_implementation != "sdpa":
        return f"its attention is {config._attn_implementation}, not sdpa"
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type") in ("dynamic", "longrope"):
        return "its rotary embedding depends on the text's length"
    if getattr(model, "hf_device_map", None) or getattr(model, "is_quantized", False):
        return "it is quantised or spread over devices"
    return None


def rows_of(rows: int) -> int:
    """Rows of a session for so many prompts: the next power of two."""
    return 1 << (rows - 1).bit_length()


def slots_of(positions: int) -> int:
    """Slots of a session for so many positions: the next of 256, 384, 512, 768, 1024, ..."""
    power = max(SMALLEST_CACHE, 1 << (positions - 1).bit_length())
    return power * 3 // 4 if power > SMALLEST_CACHE and positions <= power * 3 // 4 else power
