"""Decoding in this process with a transformers model, from embedded prompts."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gmsa_rag.inference.batching import token_budget_batches
from gmsa_rag.inference.decoders.sampling import choose_tokens, random_state
from gmsa_rag.inference.decoders.sessions import Sessions, check_cache
from gmsa_rag.inference.generation import FinishReason, Generated, Sampling, TextStream
from gmsa_rag.inference.stopping import is_stopped
from gmsa_rag.inference.tokens import TokenCodec

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

    def generate(self, prompts: Sequence[Tensor], sampling: Sampling) -> list[Generated]:
        """Text after each prompt, in order; a batch gives what single calls give.

        Inside `stopping.stopped_when` it may end early, with the texts as far as they are, cut off.

        Args:
            prompts: Embedded prompts, each (num_positions, hidden_size), num_positions < window.
            sampling: How to choose tokens.
        """
        return [Generated(row.text()[0], row.finish_reason) for row in self._generate(prompts, sampling)]

    def generate_ids(self, prompts: Sequence[Tensor], sampling: Sampling) -> list[list[int]]:
        """Token ids after each prompt, without the end token; see `generate`."""
        return [row.ids for row in self._generate(prompts, sampling)]

    def stream(self, prompt: Tensor, sampling: Sampling) -> TextStream:
        """Text after a prompt, piece by piece; the pieces add up to what `generate` gives.

        Tokens are computed as pieces are asked for; closing the stream ends the generation.
        """
        return TextStream(self._stream(prompt, sampling))

    def _generate(self, prompts: Sequence[Tensor], sampling: Sampling) -> list["_Row"]:
        rows = [self._row(sampling) for _ in prompts]
        for batch in self._batches([len(prompt) for prompt in prompts], sampling.max_new_tokens):
            for _ in self._steps([prompts[index] for index in batch], [rows[index] for index in batch], sampling):
                pass
        return rows

    def _stream(self, prompt: Tensor, sampling: Sampling) -> Generator[str, None, FinishReason]:
        row, sent = self._row(sampling), 0
        with closing(self._steps([prompt], [row], sampling)) as steps:
            for _ in steps:
                text, stopped = row.text()
                # Hold back what may yet change: half a character, or the start of a stop string.
                safe = len(text) if stopped else len(text.rstrip("\ufffd")) - _stop_overlap(text, sampling.stop)
                if safe > sent:
                    yield text[sent:safe]
                    sent = safe
        rest = row.text()[0][sent:]
        if rest:
            yield rest
        return row.finish_reason

    def _row(self, sampling: Sampling) -> "_Row":
        end = self.model.generation_config.eos_token_id
        return _Row(self.codec, frozenset(end if isinstance(end, list) else [end]), sampling.stop)

    def _batches(self, lengths: Sequence[int], max_new_tokens: int) -> Iterator[list[int]]:
        """Batches of prompts; one that the window cuts short is alone, so that it does not cut the others short."""
        for batch in token_budget_batches(lengths, BATCH_POSITIONS):
            roomy = [index for index in batch if lengths[index] + max_new_tokens <= self.window]
            yield from ([index] for index in batch if lengths[index] + max_new_tokens > self.window)
            if roomy:
                yield roomy

    def _steps(
        self, prompts: Sequence[Tensor], rows: Sequence["_Row"], sampling: Sampling
    ) -> Generator[None, None, None]:
        """Give each row its next token, step by step, until all have ended or there is no room left."""
        if is_stopped():
            return
        longest = max(map(len, prompts))
        left = min(sampling.max_new_tokens, self.window - longest)
        may_end = left - sampling.min_new_tokens
        ends = torch.tensor([end for end in rows[0].ends if end is not None], dtype=torch.long).to(self.model.device)
        state = random_state(sampling, self.model.device)
        with self._sessions.open(len(prompts), longest, left) as steps:
            logits = steps.prefill(prompts)
            while True:
                allowed = logits.index_fill(1, ends, -torch.inf) if left > may_end else logits
                chosen = choose_tokens(allowed, sampling, state)
                for row, token in zip(rows, chosen.tolist(), strict=True):
                    row.take(token)
                yield
                left -= 1
                if not left or all(row.ended for row in rows) or is_stopped():
                    return
                logits = steps.step(chosen)


class _Row:
    """What has been generated after one prompt.

    Args:
        codec: The tokenizer.
        ends: Tokens that end a text and are not part of it.
        stop: Strings that do.
    Attributes:
        ids: Token ids so far, without the end token.
        ended: Whether the text has come to its end.
    """

    def __init__(self, codec: TokenCodec, ends: frozenset[int | None], stop: tuple[str, ...]) -> None:
        self._codec, self.ends, self._stop = codec, ends, stop
        self.ids: list[int] = []
        self.ended = False

    @property
    def finish_reason(self) -> FinishReason:
        """Why nothing comes after these tokens."""
        return "stop" if self.ended else "length"

    def take(self, token: int) -> None:
        """Add the next token, unless it ends the text or comes after its end."""
        if self.ended or token in self.ends:
            self.ended = True
            return
        self.ids.append(token)
        if self._stop:
            self.ended = self.text()[1]

    def text(self) -> tuple[str, bool]:
        """The text up to a stop string, and whether there was one."""
        text = self._codec.decode(self.ids)
        places = [at for at in (text.find(string) for string in self._stop) if at >= 0]
        return (text[: min(places)], True) if places else (text, False)


def _stop_overlap(text: str, stop: tuple[str, ...]) -> int:
    """Length of the longest end of the text that begins a stop string."""
    longest = max(map(len, stop), default=0)
    return max(
        (n for s in stop for n in range(1, min(longest, len(s), len(text)) + 1) if text.endswith(s[:n])), default=0
    )
