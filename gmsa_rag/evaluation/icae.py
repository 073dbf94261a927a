"""An ICAE-style compressor: learned memory tokens after the passage, read by the encoder's layers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from gmsa_rag.config import GMSAConfig
from gmsa_rag.errors import RateError
from gmsa_rag.modeling.alignment import first_layers
from gmsa_rag.modeling.files import embedding_table
from gmsa_rag.modeling.group_merging import num_groups


class ICAECompressor(nn.Module):
    """Turns the tokens of passages into as many soft tokens as the GMSA compressor does, without group merging.

    The first ceil(num_tokens / rate) rows of one learned table are put after a passage. What the encoder's last layer
    says at their places becomes the soft tokens, through an MLP.

    Attributes:
        encoder: The base's first layers, final norm applied.
        memory_tokens: The table, (num_memory_tokens, hidden_size).
        mlp: From the encoder's states to soft tokens.

    Source: Ge et al., "In-context Autoencoder for Context Compression in a Large Language Model", arXiv 2307.06945.
    """

    can_pack = False  # its memory tokens stand in the padding of a row

    def __init__(self, encoder: PreTrainedModel, num_memory_tokens: int) -> None:
        super().__init__()
        self.encoder = encoder
        table = embedding_table(encoder)
        width = table.shape[1]
        drawn = torch.randn(num_memory_tokens, width).to(table)
        # Spread as the embeddings are, so that the encoder's layers meet nothing new in size.
        self.memory_tokens = nn.Parameter(table.mean(dim=0) + drawn * table.std(dim=0))
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)).to(table)

    @classmethod
    def from_base(cls, base: PreTrainedModel, config: GMSAConfig, num_memory_tokens: int) -> "ICAECompressor":
        """Copy the encoder from a causal LM; memory tokens and MLP are drawn from torch's random state.

        Args:
            base: The causal LM; its embedding table is shared.
            config: encoder_layers and encoder_norm are read.
            num_memory_tokens: The most soft tokens a window may get, >= 1.
        """
        encoder = first_layers(base, config.encoder_layers, norm=config.encoder_norm, embeddings=True)
        return cls(encoder, num_memory_tokens)

    def forward(self, input_ids: Tensor, lengths: Sequence[int], rates: Sequence[int]) -> Tensor:
        """Compress a batch of windows.

        Args:
            input_ids: (batch, max_length), int64, padded on the right with any valid id.
            lengths: Tokens of each row, 1 to max_length.
            rates: Rate of each row, >= 1.

        Returns:
            Soft tokens of all rows, packed: (sum of ceil(length / rate), hidden_size).

        Raises:
            RateError: If a row needs more memory tokens than the table has.
        """
        counts = [num_groups(length, rate) for length, rate in zip(lengths, rates, strict=True)]
        self._check(counts)
        text = self.encoder.get_input_embeddings()(input_ids)
        rows = [torch.cat([row[:n], self.memory_tokens[:m]]) for row, n, m in zip(text, lengths, counts, strict=True)]
        # Causal layers cannot see what is padded on the right, so no mask is needed.
        hidden = self.encoder(inputs_embeds=pad_sequence(rows, batch_first=True), use_cache=False).last_hidden_state
        states = [row[n : n + m] for row, n, m in zip(hidden, lengths, counts, strict=True)]
        soft_tokens: Tensor = self.mlp(torch.cat(states))
        return soft_tokens

    def _check(self, counts: Sequence[int]) -> None:
        if max(counts) > len(self.memory_tokens):
            raise RateError(
                "rate", expected=f"at most {len(self.memory_tokens)} soft tokens a window, the length of the table",
                got=str(max(counts)), remedy="Compress at a higher rate, or make the table longer.",
            )  # fmt: skip
