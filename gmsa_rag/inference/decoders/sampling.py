"""How the next token is chosen."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from gmsa_rag.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token.

    Attributes:
        max_new_tokens: Most tokens to generate, >= 1; generation also ends where the decoder's window does.
        temperature: 0 takes the likeliest token; higher draws more freely.
        top_p: Draw from the likeliest tokens that together have this probability.
        stop: Strings to end before; they are not part of the text.
        seed: Of what is drawn, for each call and each of its batches anew; None draws from torch's own random state.
        min_new_tokens: Fewest tokens to generate before an end token may come, >= 0.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    min_new_tokens: int = 0

    def __post_init__(self) -> None:
        too_few = self.max_new_tokens < 1 or self.min_new_tokens < 0
        if too_few or self.temperature < 0 or not 0 < self.top_p <= 1 or "" in self.stop:
            raise ConfigError(
                "sampling",
                expected="max_new_tokens >= 1, min_new_tokens, temperature >= 0, 0 < top_p <= 1, no empty stop string",
                got=f"{self.max_new_tokens}, {self.min_new_tokens}, {self.temperature}, {self.top_p}, {self.stop}",
                remedy="Change the setting.",
            )


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
