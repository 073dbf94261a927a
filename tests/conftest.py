"""Tiny random models, built in memory: no network, no GPU, no weights."""

from collections.abc import Callable

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, set_seed

from gmsa_rag.inference.engine import GMSA
from gmsa_rag.training.tokenizer import train_tokenizer

torch.set_num_threads(1)
FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2")
TEXT = (
    "The Danube is the second-longest river in Europe. It begins in the Black Forest of Germany and empties into the "
    "Black Sea. Four capitals stand on its banks: Vienna, Bratislava, Budapest and Belgrade.\n"
    "Lise Meitner was a physicist who explained nuclear fission in 1939 with her nephew, Otto Robert Frisch.\n"
)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 400 tokens with a chat template."""
    return train_tokenizer([TEXT], 400)


@pytest.fixture(scope="session")
def make_base(tokenizer: PreTrainedTokenizerFast) -> Callable[..., PreTrainedModel]:
    """Builds a tiny random causal LM of a family; weights large enough for outputs to differ."""

    def build(family: str = "llama", layers: int = 3, **settings: object) -> PreTrainedModel:
        set_seed(7)
        config = AutoConfig.for_model(
            family, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, vocab_size=len(tokenizer), max_position_embeddings=256,
            initializer_range=0.2, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id, **settings,
        )  # fmt: skip
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        return model.eval()

    return build


@pytest.fixture(scope="session")
def gmsa(make_base: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast) -> GMSA:
    """A tiny untrained GMSA on a Llama; shared, so leave it as it is."""
    return GMSA.from_base(make_base(), tokenizer, encoder_layers=2, lsa_layers=1, window=48)
