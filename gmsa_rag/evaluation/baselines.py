"""Readers without a compressor: what a question prompt holds in the place of memories."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from gmsa_rag.modeling.alignment import backbone_of
from gmsa_rag.modeling.group_merging import num_groups
from gmsa_rag.training.examples import IGNORED, Batch
from gmsa_rag.training.objective import Loss, Objective


class EmbeddedText(nn.Module):
    """Stands in for a compressor with nothing but the decoder's embeddings.

    Attributes:
        encoder: The decoder's own backbone, of which the embeddings are read.
    """

    can_pack = False  # there is nothing to gain

    def __init__(self, decoder: PreTrainedModel) -> None:
        super().__init__()
        self.encoder = backbone_of(decoder)

    def embed(self, input_ids: Tensor, counts: Sequence[int]) -> Tensor:
        """Embeddings of the first tokens of each row, packed."""
        kept = torch.cat([row[:count] for row, count in zip(input_ids, counts, strict=True)])
        embedded: Tensor = self.encoder.get_input_embeddings()(kept)
        return embedded


class TruncatedText(EmbeddedText):
    """The first tokens of a passage, as many as it has soft tokens, embedded."""

    def forward(self, input_ids: Tensor, lengths: Sequence[int], rates: Sequence[int]) -> Tensor:
        """Cut a batch of windows.

        Args:
            input_ids: (batch, max_length), int64, padded on the right.
            lengths: Tokens of each row, 1 to max_length.
            rates: Rate of each row, >= 1.

        Returns:
            Embeddings of all rows, packed: (sum of ceil(length / rate), hidden_size).
        """
        return self.embed(input_ids, [num_groups(length, rate) for length, rate in zip(lengths, rates, strict=True)])


class FullTextObjective(Objective):
    """Learns from the same batches, passages read as text.

    Args:
        decoder: A causal LM.
        bf16: Whether to compute in bfloat16.
    """

    def __init__(self, decoder: PreTrainedModel, *, bf16: bool = False) -> None:
        # A run collates its batches as text, too, where there is a teacher.
        super().__init__(decoder, teacher=decoder, bf16=bf16)

    def forward(self, batch: Batch, as_text: Batch | None = None) -> Loss:
        """Loss of the batch as text."""
        return super().forward(batch if as_text is None else as_text)


class ClosedBookObjective(Objective):
    """Learns from the same batches, passages taken out; their titles stay."""

    def forward(self, batch: Batch, as_text: Batch | None = None) -> Loss:
        """Loss of the batch without its passages."""
        return super().forward(without_passages(batch))


def without_passages(batch: Batch) -> Batch:
    """The batch as if its passages were empty; what is learned stays the same."""
    kept = torch.ones_like(batch.input_ids, dtype=torch.bool).flatten()
    kept[batch.soft_positions] = False
    rows = kept.view_as(batch.input_ids)
    input_ids, labels = (
        pad_sequence([row[keep] for row, keep in zip(values, rows, strict=True)], batch_first=True, padding_value=pad)
        for values, pad in ((batch.input_ids, 0), (batch.labels, IGNORED))
    )
    # Nothing is learned behind the last label, so nothing need be read there.
    width = int((labels != IGNORED).any(dim=0).nonzero()[-1]) + 1
    input_ids, labels = input_ids[:, :width], labels[:, :width]
    learned = (labels != IGNORED).flatten().nonzero()[:, 0]
    nothing = batch.soft_positions[:0]
    return replace(
        batch, input_ids=input_ids, labels=labels, predicting=learned - 1, targets=labels.flatten()[learned],
        soft_positions=nothing, window_ids=batch.window_ids[:0], window_lengths=[], window_rates=[],
    )  # fmt: skip
