"""The published checkpoint that tests import, and what they do with state dicts."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

FIXTURE = Path(__file__).parents[1] / "fixtures" / "published-llama"
BASE = FIXTURE / "base"
SETTINGS = json.loads((FIXTURE / "settings.json").read_text(encoding="utf-8"))
ALPHA, RANK = SETTINGS["lora_alpha"], SETTINGS["lora_r"]
RATES = (1, 3, 4, 8, 16)
ENCODER, ALIGNMENT = "encoder.base_model.model.model.", "memory_fusion_layer.model."
QUERY = ENCODER + "layers.0.self_attn.q_proj."
LORA_A, LORA_B = "lora_A.default.weight", "lora_B.default.weight"


def written(state, tmp_path, name="model.safetensors"):
    """A file of a state dict."""
    save_file(state, tmp_path / name) if name.endswith(".safetensors") else torch.save(state, tmp_path / name)
    return tmp_path / name


def weights(checkpoint):
    return checkpoint.compressor.state_dict() | checkpoint.decoder.state_dict()


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
