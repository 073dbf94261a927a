"""How the next token is chosen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from gmsa_rag.checks import check_int, check_number, check_texts
from gmsa_rag.errors import ConfigError

MOST_TOKENS = 2**63
SEEDS = range(-(2**63), 2**64)  # those of torch
# Further out, scores divided by it in float32 would be infinite, or NaN where they are infinite already.
COLDEST, HOTTEST = 1e-20, 1e20


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token.

    Attributes:
        max_new_tokens: Most tokens to generate, >= 1; generation also ends where the decoder's window does.
        temperature: 0 takes the likeliest token; higher draws more freely, 1e-20 to 1e20.
        top_p: Draw from the likeliest tokens that together have this probability.
        stop: Strings to end before; they are not part of the text.
        seed: Of what is drawn, for each call and each of its batches anew, -2**63 to 2**64 - 1; None draws from
            torch's own random state.
        min_new_tokens: Fewest tokens to generate before an end token may come, >= 0.
    Raises:
        InputTypeError: If one of them is of a wrong type; True is no number.
        InputError: If a stop string is not valid Unicode.
        ConfigError: If one of them is out of range.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    min_new_tokens: int = 0

    def __post_init__(self) -> None:
        check_int(self.max_new_tokens, "sampling, max_new_tokens", range(1, MOST_TOKENS))
        check_int(self.min_new_tokens, "sampling, min_new_tokens", range(MOST_TOKENS))
        if self.seed is not None:
            check_int(self.seed, "sampling, seed", SEEDS)
        if check_number(self.temperature, "sampling, temperature") and not COLDEST <= self.temperature <= HOTTEST:
            raise _out_of_range("sampling, temperature", f"0, or {COLDEST:g} to {HOTTEST:g}", self.temperature)
        if not 0 < check_number(self.top_p, "sampling, top_p") <= 1:
            raise _out_of_range("sampling, top_p", "more than 0 and at most 1", self.top_p)
        object.__setattr__(self, "stop", tuple(check_texts(self.stop, "stop string")))
        if "" in self.stop:
            raise _out_of_range("sampling, stop", "no empty string", self.stop)

    @classmethod
    def of(
        cls,
        max_new_tokens: int,
        temperature: float | None,
        top_p: float,
        stop: str | Sequence[str] | None,
        seed: int | None,
        min_new_tokens: int,
    ) -> Self:
        """The settings of a call, which may leave temperature and stop strings unset by None."""
        strings: Any = () if stop is None else stop
        return cls(max_new_tokens, 0.0 if temperature is None else temperature, top_p, strings, seed, min_new_tokens)


def random_state(sampling: Sampling, device: torch.device) -> torch.Generator | None:
    """What a generation draws from; None stands for torch's own random state."""
    return None if sampling.seed is None else torch.Generator(device).manual_seed(sampling.seed)


@torch.inference_mode()
def choose_tokens(logits: Tensor, sampling: Sampling, state: torch.Generator | None = None) -> Tensor:
    """The next token of each row, as transformers' `generate` chooses it.

    Args:
        logits: Scores of the vocabulary, (batch, vocab_size), any float dtype.
        sampling: How to choose.
        state: From `random_state`; what is drawn changes it.

    Returns:
        Token ids, (batch,), int64, on the logits' device.
    """
    if not sampling.temperature:
        return logits.argmax(dim=-1)
    scores = logits.float()
    nothing = torch.empty(0)  # neither warper looks at the tokens so far
    if sampling.temperature != 1.0:
        scores = TemperatureLogitsWarper(sampling.temperature)(nothing, scores)
    if sampling.top_p < 1.0:
        scores = TopPLogitsWarper(sampling.top_p)(nothing, scores)
    return torch.multinomial(scores.softmax(dim=-1), num_samples=1, generator=state).squeeze(1)


def _out_of_range(what: str, expected: str, got: object) -> ConfigError:
    return ConfigError(what, expected=expected, got=repr(got)[:80], remedy="Change the setting.")
