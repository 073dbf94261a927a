"""Decoding in this process with transformers, from `inputs_embeds`."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from gmsa_rag.errors import ConfigError
from gmsa_rag.inference.batching import token_budget_batches
from gmsa_rag.inference.tokens import TokenCodec

BATCH_POSITIONS = 16_384
# Left unset, these would come from the base's own generation_config.json.
PLAIN: dict[str, Any] = {"num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0}


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token.

    Attributes:
        max_new_tokens: Most tokens to generate, >= 1; generation also ends where the decoder's window does.
        temperature: 0 takes the likeliest token; higher draws more freely.
        top_p: Draw from the likeliest tokens that together have this probability.
        stop: Strings to end before; they are not part of the text.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1 or "" in self.stop:
            raise ConfigError(
                "sampling",
                expected="max_new_tokens >= 1, temperature >= 0, 0 < top_p <= 1, no empty stop string",
                got=f"{self.max_new_tokens}, {self.temperature}, {self.top_p}, {list(self.stop)}",
                remedy="Change the setting.",
            )


class LocalDecoder:
    """Generates from embedded prompts with a transformers causal LM. Safe to call from several threads.

    Args:
        model: The decoder.
        codec: Its tokenizer.
        window: Positions it can hold.
    """

    def __init__(self, model: PreTrainedModel, codec: TokenCodec, window: int) -> None:
        self.model, self.codec, self.window = model, codec, window

    def generate(self, prompts: Sequence[Tensor], sampling: Sampling) -> list[str]:
        """Text after each prompt, in order; a batch gives what single calls give.

        Args:
            prompts: Embedded prompts, each (num_positions, hidden_size), num_positions < window.
            sampling: How to choose tokens.
        """
        return [self._text(ids, sampling.stop)[0] for ids in self.generate_ids(prompts, sampling)]

    def generate_ids(self, prompts: Sequence[Tensor], sampling: Sampling) -> list[list[int]]:
        """Token ids after each prompt, without the end token; see `generate`."""
        rows: list[list[int]] = [[] for _ in prompts]
        for batch in self._batches([len(prompt) for prompt in prompts], sampling.max_new_tokens):
            generated = self._run([prompts[index] for index in batch], sampling).tolist()
            for index, row in zip(batch, generated, strict=True):
                rows[index] = self._until_end(row)
        return rows

    def stream(self, prompt: Tensor, sampling: Sampling) -> Iterator[str]:
        """Text after a prompt, piece by piece; the pieces add up to what `generate` gives.

        Closing the iterator ends the generation.
        """
        tokens: queue.Queue[int | BaseException | None] = queue.Queue()
        cancelled = threading.Event()
        worker = threading.Thread(target=self._produce, args=(prompt, sampling, tokens, cancelled), daemon=True)
        worker.start()
        try:
            yield from self._pieces(tokens, sampling.stop)
        finally:
            cancelled.set()
            worker.join()

    def _batches(self, lengths: Sequence[int], max_new_tokens: int) -> Iterator[list[int]]:
        """Batches of prompts; one that the window cuts short is alone, so that it does not cut the others short."""
        for batch in token_budget_batches(lengths, BATCH_POSITIONS):
            roomy = [index for index in batch if lengths[index] + max_new_tokens <= self.window]
            yield from ([index] for index in batch if lengths[index] + max_new_tokens > self.window)
            if roomy:
                yield roomy

    def _produce(
        self, prompt: Tensor, sampling: Sampling, tokens: "queue.Queue[int | BaseException | None]",
        cancelled: threading.Event,
    ) -> None:  # fmt: skip
        try:
            self._run([prompt], sampling, _Streamer(tokens.put), cancelled)
            tokens.put(None)
        except BaseException as error:
            tokens.put(error)

    def _pieces(self, tokens: "queue.Queue[int | BaseException | None]", stop: tuple[str, ...]) -> Iterator[str]:
        ids: list[int] = []
        sent = 0
        while (token := tokens.get()) is not None:
            if isinstance(token, BaseException):
                raise token
            ids.append(token)
            text, stopped = self._text(self._until_end(ids), stop)
            # Hold back what may yet change: half a character, or the start of a stop string.
            safe = len(text) if stopped else len(text.rstrip("\ufffd")) - _stop_overlap(text, stop)
            if safe > sent:
                yield text[sent:safe]
                sent = safe
            if stopped:
                return
        rest = self._text(self._until_end(ids), stop)[0][sent:]
        if rest:
            yield rest

    def _run(
        self,
        prompts: Sequence[Tensor],
        sampling: Sampling,
        streamer: BaseStreamer | None = None,
        cancelled: threading.Event | None = None,
    ) -> Tensor:
        """Token ids after each prompt, (batch, num_new_tokens), padded on the right after an end."""
        embeds, mask = _pad_left(prompts, self.model)
        room = self.window - embeds.shape[1]
        criteria: list[StoppingCriteria] = [_Stopped(self, sampling.stop)] if sampling.stop else []
        criteria += [_Cancelled(cancelled)] if cancelled else []
        with torch.inference_mode():
            generate: Any = self.model.generate
            ids: Tensor = generate(
                inputs_embeds=embeds,
                attention_mask=mask,
                generation_config=self._config(sampling, room),
                stopping_criteria=StoppingCriteriaList(criteria),
                streamer=streamer,
            )
        return ids

    def _config(self, sampling: Sampling, room: int) -> GenerationConfig:
        end = self.model.generation_config.eos_token_id
        draws = (
            {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0} if sampling.temperature else {}
        )
        return GenerationConfig(
            max_new_tokens=min(sampling.max_new_tokens, room),
            do_sample=bool(draws),
            **PLAIN,
            eos_token_id=end,
            pad_token_id=_first(end, self.model.config.pad_token_id),
            **draws,
        )

    def _until_end(self, ids: Sequence[int]) -> list[int]:
        end = self.model.generation_config.eos_token_id
        ends = set(end if isinstance(end, list) else [end])
        return list(ids[: next((at for at, token in enumerate(ids) if token in ends), len(ids))])

    def _text(self, ids: Sequence[int], stop: tuple[str, ...]) -> tuple[str, bool]:
        """Text of token ids up to a stop string, and whether one was found."""
        text = self.codec.decode(ids)
        places = [at for at in (text.find(string) for string in stop) if at >= 0]
        return (text[: min(places)], True) if places else (text, False)


class _Stopped(StoppingCriteria):
    """Ends a row once a stop string is in its text."""

    def __init__(self, decoder: LocalDecoder, stop: tuple[str, ...]) -> None:
        self.decoder, self.stop = decoder, stop

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        found = [self.decoder._text(self.decoder._until_end(row), self.stop)[1] for row in input_ids.tolist()]
        return torch.tensor(found, device=input_ids.device)


class _Cancelled(StoppingCriteria):
    """Ends a generation nobody reads any more."""

    def __init__(self, cancelled: threading.Event) -> None:
        self.cancelled = cancelled

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        return torch.full((len(input_ids),), self.cancelled.is_set(), device=input_ids.device)


class _Streamer(BaseStreamer):
    """Hands on each new token."""

    def __init__(self, put: Callable[[int], None]) -> None:
        self.emit = put

    def put(self, value: Tensor) -> None:
        for token in value.flatten().tolist():
            self.emit(token)

    def end(self) -> None:
        """Nothing to do: the producer says when it ends."""


def _pad_left(prompts: Sequence[Tensor], model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    length = max(map(len, prompts))
    embeds = torch.zeros((len(prompts), length, prompts[0].shape[1]), dtype=model.dtype, device=model.device)
    mask = torch.zeros((len(prompts), length), dtype=torch.long, device=model.device)
    for row, prompt in enumerate(prompts):
        embeds[row, length - len(prompt) :] = prompt
        mask[row, length - len(prompt) :] = 1
    return embeds, mask


def _stop_overlap(text: str, stop: tuple[str, ...]) -> int:
    """Length of the longest end of the text that begins a stop string."""
    longest = max(map(len, stop), default=0)
    return max(
        (n for s in stop for n in range(1, min(longest, len(s), len(text)) + 1) if text.endswith(s[:n])), default=0
    )


def _first(end: int | list[int] | None, pad: int | None) -> int:
    if pad is not None:
        return pad
    return end[0] if isinstance(end, list) else end or 0
