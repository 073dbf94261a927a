"""Decoding in this process with a transformers model, from embedded prompts."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gmsa_rag.inference.batching import token_budget_batches
from gmsa_rag.inference.decoders.sampling import Sampling, choose_tokens, random_state
from gmsa_rag.inference.decoders.sessions import Sessions, check_cache
from gmsa_rag.inference.stopping import is_stopped
from gmsa_rag.inference.tokens import TokenCodec

__all__ = ["BATCH_POSITIONS", "LocalDecoder", "Sampling"]

BATCH_POSITIONS = 16_384


class LocalDecoder:
    """Generates from embedded prompts with a transformers causal LM. Safe to call from several threads.

    The same tokens as transformers' `generate`, with less around each step. What the base's generation_config.json
    holds stays out, but for its end tokens.

    Args:
        model: The decoder.
        codec: Its tokenizer.
        window: Positions it can hold.
        cache: "auto", "static" or "dynamic", see the property.
    """

    def __init__(self, model: PreTrainedModel, codec: TokenCodec, window: int, cache: str = "auto") -> None:
        self.model, self.codec, self.window = model, codec, window
        self._sessions = Sessions(model, cache)

    @property
    def cache(self) -> str:
        """How keys and values are kept.

        "auto" takes a cache of fixed size on CUDA, up to 4,096 positions and for the families that can have one: its
        steps, and prompts of up to 1,024 positions, are recorded as CUDA graphs when a size first occurs, and replayed.
        "dynamic" takes a cache that grows; "static" the one of fixed size on any device. May be set at any time, to a
        value that the decoder can have, or it is a ConfigError.
        """
        return self._sessions.cache

    @cache.setter
    def cache(self, cache: str) -> None:
        check_cache(self.model, cache)
        self._sessions.cache = cache

    def generate(self, prompts: Sequence[Tensor], sampling: Sampling) -> list[str]:
        """Text after each prompt, in order; a batch gives what single calls give.

        Inside `stopping.stopped_when` it may end early, with the texts as far as they are.

        Args:
            prompts: Embedded prompts, each (num_positions, hidden_size), num_positions < window.
            sampling: How to choose tokens.
        """
        return [self._text(ids, sampling.stop)[0] for ids in self.generate_ids(prompts, sampling)]

    def generate_ids(self, prompts: Sequence[Tensor], sampling: Sampling) -> list[list[int]]:
        """Token ids after each prompt, without the end token; see `generate`."""
        rows: list[list[int]] = [[] for _ in prompts]
        for batch in self._batches([len(prompt) for prompt in prompts], sampling.max_new_tokens):
            for tokens in self._tokens([prompts[index] for index in batch], sampling):
                for index, token in zip(batch, tokens, strict=True):
                    if token is not None:
                        rows[index].append(token)
        return rows

    def stream(self, prompt: Tensor, sampling: Sampling) -> Iterator[str]:
        """Text after a prompt, piece by piece; the pieces add up to what `generate` gives.

        Tokens are computed as pieces are asked for; closing the iterator ends the generation.
        """
        ids: list[int] = []
        sent = 0
        with closing(self._tokens([prompt], sampling)) as steps:
            for (token,) in steps:
                if token is None:
                    break
                ids.append(token)
                text, stopped = self._text(ids, sampling.stop)
                # Hold back what may yet change: half a character, or the start of a stop string.
                safe = len(text) if stopped else len(text.rstrip("\ufffd")) - _stop_overlap(text, sampling.stop)
                if safe > sent:
                    yield text[sent:safe]
                    sent = safe
        rest = self._text(ids, sampling.stop)[0][sent:]
        if rest:
            yield rest

    def _batches(self, lengths: Sequence[int], max_new_tokens: int) -> Iterator[list[int]]:
        """Batches of prompts; one that the window cuts short is alone, so that it does not cut the others short."""
        for batch in token_budget_batches(lengths, BATCH_POSITIONS):
            roomy = [index for index in batch if lengths[index] + max_new_tokens <= self.window]
            yield from ([index] for index in batch if lengths[index] + max_new_tokens > self.window)
            if roomy:
                yield roomy

    def _tokens(self, prompts: Sequence[Tensor], sampling: Sampling) -> Generator[list[int | None], None, None]:
        """The next token of each row, step by step; None where a row has ended, by an end token or a stop string."""
        if is_stopped():
            return
        longest = max(map(len, prompts))
        left = min(sampling.max_new_tokens, self.window - longest)
        may_end = left - sampling.min_new_tokens
        rows = [_Row(self, sampling) for _ in prompts]
        ends = torch.tensor([end for end in self._ends() if end is not None], dtype=torch.long).to(self.model.device)
        state = random_state(sampling, self.model.device)
        with self._sessions.open(len(prompts), longest, left) as steps:
            logits = steps.prefill(prompts)
            while True:
                allowed = logits.index_fill(1, ends, -torch.inf) if left > may_end else logits
                chosen = choose_tokens(allowed, sampling, state)
                yield [row.take(token) for row, token in zip(rows, chosen.tolist(), strict=True)]
                left -= 1
                if not left or all(row.ended for row in rows) or is_stopped():
                    return
                logits = steps.step(chosen)

    def _ends(self) -> frozenset[int | None]:
        end = self.model.generation_config.eos_token_id
        return frozenset(end if isinstance(end, list) else [end])

    def _text(self, ids: Sequence[int], stop: tuple[str, ...]) -> tuple[str, bool]:
        """Text of token ids up to a stop string, and whether one was found."""
        text = self.codec.decode(ids)
        places = [at for at in (text.find(string) for string in stop) if at >= 0]
        return (text[: min(places)], True) if places else (text, False)


class _Row:
    """What has been generated of one row."""

    def __init__(self, decoder: LocalDecoder, sampling: Sampling) -> None:
        self._decoder, self._stop = decoder, sampling.stop
        self._ends = decoder._ends()
        self._ids: list[int] = []
        self.ended = False

    def take(self, token: int) -> int | None:
        """The token itself if it belongs to the text, else None."""
        if self.ended or token in self._ends:
            self.ended = True
            return None
        if self._stop:
            self._ids.append(token)
            self.ended = self._decoder._text(self._ids, self._stop)[1]
        return token


def _stop_overlap(text: str, stop: tuple[str, ...]) -> int:
    """Length of the longest end of the text that begins a stop string."""
    longest = max(map(len, stop), default=0)
    return max(
        (n for s in stop for n in range(1, min(longest, len(s), len(text)) + 1) if text.endswith(s[:n])), default=0
    )
