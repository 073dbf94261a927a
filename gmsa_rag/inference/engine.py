"""GMSA: compress passages, and generate, stream, restore and answer from their memories."""

import logging
from collections.abc import Sequence
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gmsa_rag.checks import check_name, check_rate, check_texts
from gmsa_rag.config import GMSAConfig
from gmsa_rag.errors import ConfigError
from gmsa_rag.inference.chat import chat_parts
from gmsa_rag.inference.compression import compress_passages
from gmsa_rag.inference.decoders.local import LocalDecoder
from gmsa_rag.inference.embedding import check_memory, embed_prompt
from gmsa_rag.inference.generation import Sampling, TextStream
from gmsa_rag.inference.loading import resolve_checkpoint, resolve_device, resolve_dtype, warn_of_slow_dtype
from gmsa_rag.inference.prompt import (
    Answer,
    Fitted,
    Part,
    answer_prompt,
    check_fits,
    check_overflow,
    check_prompt,
    fit,
    num_positions,
    parse_answer,
    restore_length,
    restore_prompt,
    tokenise,
)
from gmsa_rag.inference.tokens import TokenCodec
from gmsa_rag.memory.keys import memory_key
from gmsa_rag.memory.memory import Memory
from gmsa_rag.memory.store import MemoryStore, opened_store
from gmsa_rag.modeling.checkpoint import Checkpoint, fingerprint, load_checkpoint, save_checkpoint
from gmsa_rag.modeling.compressor import Compressor

logger = logging.getLogger(__name__)
TOKENISED_AT_ONCE = 256


class GMSA:
    """A compressor and the decoder that reads its memories. Safe to use from several threads.

    Build one with `from_pretrained` or `from_base`.

    Attributes:
        config: Settings of the checkpoint.
        compressor: Encoder, group merging, layer semantic alignment.
        decoder: A plain transformers causal LM.
        tokenizer: The tokenizer of both.
        decoding: How the decoder is run here; `decoding.cache = "dynamic"` turns CUDA graphs off.

    Source: GMSA, arXiv 2505.12215.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config, self.compressor = checkpoint.config, checkpoint.compressor
        self.decoder, self.tokenizer = checkpoint.decoder, checkpoint.tokenizer
        self.codec = TokenCodec(self.tokenizer)
        self.decoding = LocalDecoder(self.decoder, self.codec, self.decoder_window)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
        revision: str | None = None,
        token: str | None = None,
        local_files_only: bool = False,
    ) -> "GMSA":
        """Load a checkpoint.

        Args:
            name: A bundled name such as "gmsa-mini", a directory, or a hub id.
            device: "auto" takes cuda, mps or cpu, the first there is.
            dtype: "auto" keeps the files' dtype on a GPU and computes in float32 on a CPU.
            revision: Of a hub id.
            token: For a private hub id.
            local_files_only: Never ask the hub.

        Raises:
            CheckpointError: If there is no such checkpoint, or it is damaged.
            ConfigError: If there is no such device or dtype.
        """
        place = resolve_device(device)
        hub: Any = {"token": token, "local_files_only": local_files_only}
        directory = resolve_checkpoint(check_name(name), revision=revision, **hub)
        checkpoint = load_checkpoint(directory, dtype=resolve_dtype(dtype, place), device=place, **hub)
        logger.info("%s on %s in %s", directory.name, place, checkpoint.decoder.dtype)
        warn_of_slow_dtype(place, checkpoint.decoder.dtype)
        return cls(checkpoint)

    @classmethod
    def from_base(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        encoder_layers: int = 8,
        lsa_layers: int = 1,
        **settings: Any,
    ) -> "GMSA":
        """Make an untrained compressor for any causal LM: layers copied from it, its embeddings shared.

        Args:
            model: The base; it becomes the decoder.
            tokenizer: Its fast tokenizer.
            encoder_layers: Layers of the encoder.
            lsa_layers: Layers of the layer semantic alignment.
            **settings: Other fields of GMSAConfig.

        Raises:
            ConfigError: If the base has too few layers or no known shape.
        """
        if unknown := sorted(set(settings) - {field.name for field in fields(GMSAConfig)}):
            raise ConfigError(
                "settings", expected="fields of GMSAConfig", got=", ".join(unknown), remedy="Check their names."
            )
        config = GMSAConfig(
            encoder_layers=encoder_layers, lsa_layers=lsa_layers, hidden_size=model.config.hidden_size, **settings
        )
        compressor = Compressor.from_base(model, config).to(model.device)
        return cls(Checkpoint(config, compressor.eval(), model.eval(), tokenizer))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the compressor, 64 hex digits; for an unsaved one computed once, at first use."""
        if not self.config.fingerprint:
            self.config.fingerprint = fingerprint(self.compressor.state_dict(), self.config, self.tokenizer)
        return self.config.fingerprint

    @property
    def decoder_window(self) -> int:
        """Positions the decoder can hold, prompt and answer together."""
        return int(self.decoder.config.max_position_embeddings)

    @overload  # a str is a Sequence[str] too: the first signature takes it
    def compress(  # type: ignore[overload-overlap]
        self, passages: str, rate: int = 8, *, store: MemoryStore | str | Path | None = None
    ) -> Memory: ...
    @overload
    def compress(
        self, passages: Sequence[str], rate: int = 8, *, store: MemoryStore | str | Path | None = None
    ) -> list[Memory]: ...
    def compress(
        self, passages: str | Sequence[str], rate: int = 8, *, store: MemoryStore | str | Path | None = None
    ) -> Memory | list[Memory]:
        """Turn passages into memories, equal ones once.

        Args:
            passages: A passage, or several; of any length. An empty one gives a memory of no soft tokens.
            rate: Tokens per soft token, >= 1.
            store: Read what is there, compute and write what is missing.

        Returns:
            A memory for a str, else a list in order; soft tokens on the CPU in the compressor's dtype.

        Raises:
            RateError: If the rate is not an int >= 1, or beyond 2**31 - 1.
            InputTypeError: If a passage is no str.
            InputError: If a passage is not valid Unicode.
        """
        check_rate(rate)
        texts = check_texts(passages)
        keys = [memory_key(self.fingerprint, rate, text) for text in texts]
        with opened_store(store) as opened:
            stored = opened.get_many(keys) if opened is not None else [None] * len(keys)
            found = {key: memory for key, memory in zip(keys, stored, strict=True) if memory is not None}
            missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
            computed = self._compress(list(missing.values()), list(missing), rate)
            if opened is not None and computed:
                opened.put_many(computed, list(missing.values()))
        found |= {memory.key: memory for memory in computed}
        memories = [found[key] for key in keys]
        return memories[0] if isinstance(passages, str) else memories

    def generate(
        self,
        prompt: Part | Sequence[Part] | Sequence[Sequence[Part]],
        *,
        max_new_tokens: int = 128,
        temperature: float | None = 0.0,
        top_p: float = 1.0,
        stop: str | Sequence[str] | None = (),
        overflow: str = "error",
        seed: int | None = None,
        min_new_tokens: int = 0,
        details: bool = False,
    ) -> Any:
        """Generate after a prompt, or after each of a batch.

        Args:
            prompt: Parts, str or Memory in any order; a list of lists is a batch. Names of control tokens in a str are
                control tokens, as in a rendered chat template; wrap what others wrote in `Verbatim`.
            max_new_tokens: Most tokens to generate; generation also ends where the decoder's window does.
            temperature: 0 or None takes the likeliest token.
            top_p: Draw from the likeliest tokens that together have this probability.
            stop: Strings to end before; None for none.
            overflow: "error", or "drop_last" to leave memories out from the end until it fits, as the log then says.
            seed: Makes what is drawn repeatable, for the same prompts; None draws anew each time.
            min_new_tokens: Fewest tokens to generate; 0 lets an answer be empty.
            details: Give a `Generated` in the place of each str, which also says why the text ended.

        Returns:
            A str, or a list of str for a batch, equal to single calls.

        Raises:
            PromptTooLongError: If a prompt does not fit.
            FingerprintError: If a memory was made by another compressor.
            InputError: If a prompt is empty; ConfigError or InputTypeError: for a setting that `Sampling` refuses.
        """
        batched = isinstance(prompt, Sequence) and not isinstance(prompt, str) and _is_batch(prompt)
        prompts: Any = prompt if batched else [prompt]
        sampling = Sampling.of(max_new_tokens, temperature, top_p, stop, seed, min_new_tokens)
        fitted = [self._fit(parts, overflow, max_new_tokens) for parts in prompts]
        generated = self.decoding.generate([self._embed(prompt) for prompt in fitted], sampling)
        found: list[Any] = generated if details else [one.text for one in generated]
        return found if batched else found[0]

    def stream(
        self,
        prompt: Part | Sequence[Part],
        *,
        max_new_tokens: int = 128,
        temperature: float | None = 0.0,
        top_p: float = 1.0,
        stop: str | Sequence[str] | None = (),
        overflow: str = "error",
        seed: int | None = None,
        min_new_tokens: int = 0,
    ) -> TextStream:
        """Generate piece by piece; the pieces add up to what `generate` gives. Arguments and errors are its own.

        Returns:
            An iterator of str; once it has ended, its `finish_reason` says why.
        """
        sampling = Sampling.of(max_new_tokens, temperature, top_p, stop, seed, min_new_tokens)
        return self.decoding.stream(self._embed(self._fit(prompt, overflow, max_new_tokens)), sampling)

    def restore(self, memory: Memory) -> str:
        """The text as the memory holds it, generated window by window.

        Raises:
            FingerprintError: If the memory was made by another compressor.
            PromptTooLongError: If a window's memory and text together do not fit into the decoder.
        """
        check_memory(memory, self.fingerprint, self.decoder.config.hidden_size)
        ids: list[int] = []
        for window in memory.windows():
            prompt = self._fit(restore_prompt(self.config, window))
            check_fits(num_positions(prompt.tokens) + window.num_tokens, self.decoder_window)
            sampling = Sampling(restore_length(window.num_tokens))
            ids += self.decoding.generate_ids([self._embed(prompt)], sampling)[0]
        return self.codec.decode(ids)

    def answer(
        self,
        question: str,
        passages: Sequence[Part],
        titles: Sequence[str] | None = None,
        *,
        max_new_tokens: int = 32,
        overflow: str = "error",
    ) -> Answer:
        """Answer a question from passages with the checkpoint's own prompt.

        Args:
            question: The question.
            passages: Memories, or texts left as they are; in the order of their numbers.
            titles: One a passage, "" for none.
            max_new_tokens: Most tokens of the answer.
            overflow: "error", or "drop_last" to leave passages out from the end, reported in `Answer.dropped`.

        Raises:
            PromptTooLongError: If the prompt, or the question alone, does not fit.
            FingerprintError: If a memory was made by another compressor.
        """
        sampling = Sampling(max_new_tokens)
        prompt, kept = self._fit_answer(question, passages, titles, overflow, max_new_tokens)
        [said] = self.decoding.generate([self._embed(prompt)], sampling)
        return parse_answer(
            said.text, self.config, num_passages=kept, num_dropped=prompt.dropped, finish_reason=said.finish_reason
        )

    def answer_prompt(self, question: str, passages: Sequence[Part], titles: Sequence[str] | None = None) -> list[Part]:
        """The prompt that `answer` uses, for `generate`, `stream` and `num_positions`."""
        return answer_prompt(self.config, question, passages, titles)

    def fit_answer_prompt(
        self,
        question: str,
        passages: Sequence[Part],
        titles: Sequence[str] | None = None,
        *,
        overflow: str = "drop_last",
        room: int = 1,
    ) -> tuple[list[Part], int]:
        """The prompt that `answer` uses, and how many of the passages are in it.

        Args:
            question: The question.
            passages: Memories, or texts left as they are.
            titles: One a passage, "" for none.
            overflow: "error", or "drop_last" to leave passages out from the end until the prompt fits.
            room: Positions to leave for an answer, >= 1.

        Raises:
            PromptTooLongError: If the prompt, or the question alone, does not fit.
        """
        prompt, kept = self._fit_answer(question, passages, titles, overflow, room)
        return prompt.parts, kept

    def chat_prompt(self, messages: Sequence[dict[str, Any]]) -> list[Part]:
        """The decoder's chat template over messages, for `generate` and `stream`.

        Args:
            messages: `{"role": ..., "content": parts}`, content a str or a sequence of str and Memory. Names of
                control tokens in a content stay text.

        Raises:
            ConfigError: If the tokenizer has no chat template.
        """
        return chat_parts(self.tokenizer, messages)

    def fit(self, prompt: Part | Sequence[Part], overflow: str = "error", room: int = 1) -> tuple[list[Part], int]:
        """Make a prompt fit the decoder's window.

        Args:
            prompt: Its parts.
            overflow: "error", or "drop_last" to leave memories out from the end until it fits.
            room: Positions to leave for an answer with "drop_last"; one is needed in any case.

        Returns:
            The parts that fit, and how many memories were left out; a warning in the log says so too.

        Raises:
            PromptTooLongError: If the prompt does not fit, or not even without its memories.
        """
        fitted = self._fit(prompt, overflow, room)
        return fitted.parts, fitted.dropped

    def num_positions(self, prompt: Part | Sequence[Part]) -> int:
        """Positions a prompt takes in the decoder."""
        return num_positions(tokenise(check_prompt(prompt), self.codec))

    def save_pretrained(self, directory: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write a checkpoint in full, atomically; one loaded from adapters gets a fingerprint of its own.

        Args:
            directory: Where to; a checkpoint already there is replaced.
            dtype: Of the files; None keeps the weights' own.

        Raises:
            CheckpointError: If the directory holds other files.
        """
        save_checkpoint(Checkpoint(self.config, self.compressor, self.decoder, self.tokenizer), Path(directory), dtype)

    def _compress(self, texts: Sequence[str], keys: Sequence[str], rate: int) -> list[Memory]:
        # Some at a time, as compression asks for them: a GPU computes while the next ones are tokenised.
        pieces = (texts[start : start + TOKENISED_AT_ONCE] for start in range(0, len(texts), TOKENISED_AT_ONCE))
        passages = chain.from_iterable(map(self.codec.encode, pieces))
        compressed = compress_passages(self.compressor, passages, rate, self.config.window)
        return [
            Memory(soft_tokens, key, rate, borders[-1], self.fingerprint, borders)
            for key, (soft_tokens, borders) in zip(keys, compressed, strict=True)
        ]

    def _fit(self, prompt: Part | Sequence[Part], overflow: str = "error", room: int = 1) -> Fitted:
        return fit(check_prompt(prompt), self.codec, self.decoder_window, overflow, room)

    def _fit_answer(
        self, question: str, passages: Sequence[Part], titles: Sequence[str] | None, overflow: str, room: int
    ) -> tuple[Fitted, int]:
        """The prompt of `fit_answer_prompt`, and how many of the passages are in it."""
        check_overflow(overflow)
        parts = self.answer_prompt(question, passages, titles)
        tokens, kept = tokenise(check_prompt(parts), self.codec), len(passages)
        while overflow == "drop_last" and kept and num_positions(tokens) + room > self.decoder_window:
            kept -= 1
            parts = self.answer_prompt(question, passages[:kept], titles[:kept] if titles else None)
            tokens = tokenise(check_prompt(parts), self.codec)
        check_fits(num_positions(tokens), self.decoder_window)
        return Fitted(parts, tokens, len(passages) - kept), kept

    def _embed(self, prompt: Fitted) -> Tensor:
        return embed_prompt(prompt.tokens, self.decoder, self.fingerprint)


def _is_batch(prompt: Sequence[Any]) -> bool:
    return all(isinstance(part, Sequence) and not isinstance(part, str) for part in prompt)
