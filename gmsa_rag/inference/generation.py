"""What a generation is asked for, and what it gives. Loads nothing heavy."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from gmsa_rag.checks import check_int, check_number, check_texts
from gmsa_rag.errors import ConfigError

FinishReason = Literal["stop", "length"]
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


@dataclass(frozen=True)
class Generated:
    """A text that a decoder generated.

    Attributes:
        text: Without its end token or stop string.
        finish_reason: "stop" if the text came to its end, by an end token or a stop string; "length" if it was cut off,
            by `max_new_tokens` or the end of the decoder's window.
    """

    text: str
    finish_reason: FinishReason


class TextStream(Iterator[str]):
    """A text that is generated piece by piece, as its pieces are asked for.

    Args:
        pieces: Gives them, and returns why the text ended.
    Attributes:
        finish_reason: Why it ended, as `Generated` says it; None until it has, and if it is closed before.
    """

    def __init__(self, pieces: Generator[str, None, FinishReason]) -> None:
        self._pieces = pieces
        self.finish_reason: FinishReason | None = None

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except StopIteration as end:
            self.finish_reason = self.finish_reason or end.value
            raise

    def close(self) -> None:
        """End the generation; closing again does nothing."""
        self._pieces.close()


def _out_of_range(what: str, expected: str, got: object) -> ConfigError:
    return ConfigError(what, expected=expected, got=repr(got)[:80], remedy="Change the setting.")
