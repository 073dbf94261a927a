"""The compressor: encoder, group merging and layer semantic alignment."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
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
        # Causal layers cannot see what is padded on the right, so no mask is needed. Places and borders are worked out
        # on the CPU: asking a GPU for them would wait for it.
        hidden = self.encoder(input_ids=input_ids, use_cache=False).last_hidden_state
        merged = group_merge(_pack(hidden, lengths), group_bounds(lengths, rates))
        counts = [num_groups(length, rate) for length, rate in zip(lengths, rates, strict=True)]
        return _pack(self.alignment(_pad(merged, counts)), counts)


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
    flat = padded.flatten(0, 1)
    return flat if len(flat) == sum(lengths) else flat[_places(lengths, padded.shape[1], padded.device)]


def _pad(packed: Tensor, lengths: Sequence[int]) -> Tensor:
    """The reverse, padded with zeros on the right."""
    shape = len(lengths), max(lengths, default=0), packed.shape[1]
    if len(packed) == shape[0] * shape[1]:
        return packed.view(shape)
    flat = packed.new_zeros((shape[0] * shape[1], shape[2]))
    return flat.index_copy(0, _places(lengths, shape[1], packed.device), packed).view(shape)


def _places(lengths: Sequence[int], width: int, device: torch.device) -> Tensor:
    """Where the rows' tokens stand in a flattened batch of so many columns."""
    filled = torch.arange(width) < torch.tensor(lengths)[:, None]
    return filled.flatten().nonzero()[:, 0].to(device, non_blocking=True)
