import pytest
import torch
from transformers import AutoModelForCausalLM

from gmsa_rag.inference.engine import GMSA
from gmsa_rag.modeling.checkpoint import Checkpoint
from gmsa_rag.modeling.lora import add_lora
from tests.modeling.trained import LORA, Trained, stir


@pytest.fixture
def train(make_base, tokenizer, tmp_path):
    def make(family: str = "llama", dtype: torch.dtype = torch.float32, **settings: object) -> Trained:
        directory = tmp_path / f"base-{family}"
        make_base(family).to(dtype).save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        base = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        made = GMSA.from_base(base, tokenizer, encoder_layers=2, lsa_layers=1, window=16, **settings)
        stir(add_lora(made.compressor.encoder, LORA))
        stir(made.compressor.alignment.parameters())
        return Trained(Checkpoint(made.config, made.compressor, base, tokenizer), directory)

    return make


@pytest.fixture
def trained(train):
    return train()
