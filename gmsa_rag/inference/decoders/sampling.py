"""How the next token is chosen."""

import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from gmsa_rag.inference.generation import Sampling


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
