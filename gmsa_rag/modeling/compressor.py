"""The compressor: encoder, group merging and layer semantic alignment."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gmsa_rag.checks import check_rate
from gmsa_rag.config import GMSAConfig
from gmsa_rag.errors import ConfigError, RateError, ShapeError
from gmsa_rag.kernels.choice import fuses_norms
from gmsa_rag.kernels.reference import RMSNorm
from gmsa_rag.modeling.alignment import LayerSemanticAlignment, first_layers
from gmsa_rag.modeling.fusing import final_norm, first_norm, without_final_norm
from gmsa_rag.modeling.group_merging import group_bounds, group_merge, normed_group_merge, num_groups
from gmsa_rag.modeling.packing import FAMILIES, packed_arguments, packing_obstacle, use_packed_attention


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
        states, token_norm = self._encode(input_ids=input_ids)
        merged = self._merge(_pack(states, lengths), lengths, rates, token_norm)
        counts = _counts(lengths, rates)
        return _pack(self.alignment(*(_pad(tensor, counts) for tensor in merged)), counts)

    def forward_packed(self, input_ids: Tensor, lengths: Sequence[int], rates: Sequence[int]) -> Tensor:
        """Compress windows that stand one behind the other, without any padding; equal to `forward` row for row.

        Args:
            input_ids: (num_tokens,), int64.
            lengths: Tokens of each window, >= 1, num_tokens together.
            rates: Rate of each window, >= 1.

        Returns:
            Soft tokens of all windows, packed: (sum of ceil(length / rate), hidden_size).

        Raises:
            ConfigError: If the model cannot be run packed; on a GPU, `can_pack` tells.
            ShapeError: If the lengths do not add up to the tokens.
        """
        if obstacle := self._packing_obstacle():
            raise ConfigError(
                "packed compression",
                expected=f"a model of {', '.join(FAMILIES)} with sdpa attention, in half precision on a GPU",
                got=obstacle, remedy="Call the compressor with a padded batch.",
            )  # fmt: skip
        if input_ids.dim() != 1 or len(input_ids) != sum(lengths) or min(lengths, default=1) < 1:
            raise ShapeError(
                "input_ids", expected=f"({sum(lengths)},), and lengths >= 1", got=str(tuple(input_ids.shape)),
                remedy="Concatenate the windows' tokens.",
            )  # fmt: skip
        if not lengths:
            nothing: Tensor = self.encoder.get_input_embeddings()(input_ids)
            return nothing
        use_packed_attention(self.encoder)
        use_packed_attention(self.alignment.block)
        states, token_norm = self._encode(input_ids=input_ids[None], **packed_arguments(lengths, input_ids.device))
        merged = self._merge(states[0], lengths, rates, token_norm)
        packed = packed_arguments(_counts(lengths, rates), input_ids.device)
        soft_tokens: Tensor = self.alignment(*(tensor[None] for tensor in merged), packed=packed)[0]
        return soft_tokens

    @property
    def can_pack(self) -> bool:
        """Whether `forward_packed` is the faster way: on a GPU, for a model that it can run."""
        return self.encoder.device.type == "cuda" and not self._packing_obstacle()

    def _packing_obstacle(self) -> str:
        if (block := self._block()) is None:
            return "no layer semantic alignment"
        return packing_obstacle(self.encoder) or packing_obstacle(block)

    def _block(self) -> PreTrainedModel | None:
        """The LSA's backbone; an ablation has an identity in its place."""
        return getattr(self.alignment, "block", None)

    def _encode(self, **inputs: Any) -> tuple[Tensor, RMSNorm | None]:
        """The encoder's states and its final norm, if that is still to be applied to them."""
        fused = fuses_norms(self.encoder.device, self.encoder.dtype)
        norm = final_norm(self.encoder) if fused else None
        encoder = self.encoder if norm is None else without_final_norm(self.encoder)
        states: Tensor = encoder(use_cache=False, **inputs).last_hidden_state
        return states, norm

    def _merge(
        self, states: Tensor, lengths: Sequence[int], rates: Sequence[int], token_norm: RMSNorm | None
    ) -> list[Tensor]:
        """Merged states, and the same as the LSA's first layer norms them where group merging has done that."""
        bounds, block = group_bounds(lengths, rates), self._block()
        if token_norm is None and not fuses_norms(states.device, states.dtype):
            return [group_merge(states, bounds)]
        group_norm = first_norm(block) if block is not None else None
        # A norm of another dtype decides what dtype comes out of it; that is left to the layer.
        if group_norm is not None and group_norm.weight.dtype != states.dtype:
            group_norm = None
        return [tensor for tensor in normed_group_merge(states, bounds, token_norm, group_norm) if tensor is not None]


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


def _counts(lengths: Sequence[int], rates: Sequence[int]) -> list[int]:
    """Soft tokens of each row."""
    return [num_groups(length, rate) for length, rate in zip(lengths, rates, strict=True)]


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
