"""The compressor: encoder, group merging and layer semantic alignment."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from gmsa_rag.checks import check_rate
from gmsa_rag.config import GMSAConfig
from gmsa_rag.errors import RateError
from gmsa_rag.modeling.alignment import LayerSemanticAlignment, first_layers
from gmsa_rag.modeling.group_merging import group_bounds, group_merge, num_groups


class Compressor(nn.Module):
    """Turns the tokens of passages into soft tokens. It never sees a question.

    Attributes:
        encoder: The base's first layers, final norm applied; no language-model head, so no logits are computed.
        alignment: The layer semantic alignment.
    """

    def __init__(self, encoder: PreTrainedModel, alignment: LayerSemanticAlignment) -> None:
        super().__init__()
        self.encoder = encoder
        self.alignment = alignment

    @classmethod
    def from_base(cls, base: PreTrainedModel, config: GMSAConfig) -> "Compressor":
        """Copy encoder and alignment from a causal LM; the embedding table is the base's own."""
        encoder = first_layers(base, config.encoder_layers, norm=config.encoder_norm, embeddings=True)
        block = first_layers(base, config.lsa_layers, norm=config.lsa_norm, embeddings=False)
        return cls(encoder, LayerSemanticAlignment(block))

    def forward(self, input_ids: Tensor, lengths: Sequence[int], rates: Sequence[int]) -> Tensor:
        """Compress a batch of windows.

        Args:
            input_ids: (batch, max_length), int64, padded on the right with any valid id.
            lengths: Tokens of each row, 1 to max_length.
            rates: Rate of each row, >= 1.

        Returns:
            Soft tokens of all rows, packed: (sum of ceil(length / rate), hidden_size).
        """
        # Causal layers cannot see what is padded on the right, so no mask is needed.
        hidden = self.encoder(input_ids=input_ids, use_cache=False).last_hidden_state
        merged = group_merge(_pack(hidden, lengths), group_bounds(lengths, rates).to(hidden.device))
        counts = [num_groups(length, rate) for length, rate in zip(lengths, rates, strict=True)]
        padded = pad_sequence(list(merged.split(counts)), batch_first=True)
        return _pack(self.alignment(padded), counts)


def cut_windows(num_tokens: int, rate: int, window: int) -> list[int]:
    """Borders of the windows of a passage.

    Args:
        num_tokens: Tokens of the passage, >= 0.
        rate: Tokens per soft token, >= 1.
        window: Longest run of tokens the encoder takes, >= 1.

    Returns:
        Ascending token offsets from 0 to num_tokens. All but the last are multiples of `rate`, so that cutting does
        not change the number of soft tokens.

    Raises:
        RateError: If the passage has to be cut, and the rate is beyond the window.
    """
    if check_rate(rate) > window and num_tokens > window:
        raise RateError(
            "rate", expected=f"at most the window, {window}, for a passage of {num_tokens} tokens", got=str(rate),
            remedy="Compress at a lower rate.",
        )  # fmt: skip
    step = max(window // rate, 1) * rate
    return [*range(0, num_tokens, step), num_tokens] if num_tokens else [0, 0]


def _pack(padded: Tensor, lengths: Sequence[int]) -> Tensor:
    """Rows of (batch, max_length, hidden_size) without their padding, (sum of lengths, hidden_size)."""
    if all(length == padded.shape[1] for length in lengths):
        return padded.flatten(0, 1)
    positions = torch.arange(padded.shape[1], device=padded.device)
    return padded[positions < torch.tensor(lengths, device=padded.device)[:, None]]
