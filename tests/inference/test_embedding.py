from dataclasses import replace

import pytest
import torch

from gmsa_rag.errors import FingerprintError, ShapeError
from gmsa_rag.inference.embedding import embed_prompt
from gmsa_rag.inference.engine import GMSA


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_soft_tokens_stand_in_their_places(make_base, tokenizer, family):
    made = GMSA.from_base(make_base(family), tokenizer, encoder_layers=2, window=48)
    one, two = made.compress(["The Danube begins", "Lise Meitner"], 2)
    embedded = embed_prompt([[5, 6, 7], one, two, [8]], made.decoder, made.fingerprint)
    table = made.decoder.get_input_embeddings()
    with torch.no_grad():
        expected = [table(torch.tensor([5, 6, 7])), one.soft_tokens, two.soft_tokens, table(torch.tensor([8]))]
    assert torch.equal(embedded, torch.cat(expected))


def test_memories_of_another_dtype_are_cast_and_empty_ones_take_no_place(gmsa):
    memory, empty = gmsa.compress(["The Danube begins", ""], 2)
    embedded = embed_prompt([empty, memory.to(dtype=torch.bfloat16)], gmsa.decoder, gmsa.fingerprint)
    assert torch.equal(embedded, memory.soft_tokens.bfloat16().float())
    assert embed_prompt([[3], empty], gmsa.decoder, gmsa.fingerprint).shape == (1, 32)


def test_memories_that_the_decoder_cannot_read_are_refused(gmsa):
    memory = gmsa.compress("The Danube begins", 2)
    with pytest.raises(FingerprintError, match="Compress the passage again"):
        embed_prompt([memory], gmsa.decoder, "0" * 64)
    with pytest.raises(ShapeError, match="width 32"):
        embed_prompt([replace(memory, soft_tokens=memory.soft_tokens[:, :8])], gmsa.decoder, gmsa.fingerprint)
