"""Compressors as they are when training ends, before their adapters are saved."""

from dataclasses import dataclass
from pathlib import Path

import torch

from gmsa_rag.modeling.adapters import save_adapters
from gmsa_rag.modeling.checkpoint import Checkpoint
from gmsa_rag.modeling.lora import LoraSettings

LORA = LoraSettings(rank=4, alpha=6.0, dropout=0.0)


@dataclass
class Trained:
    """A compressor whose encoder carries trained LoRA, as it is when training ends, and its base's directory."""

    checkpoint: Checkpoint
    base: Path

    def save(self, directory: Path, **settings: object) -> Path:
        save_adapters(self.checkpoint, directory, **{"base": str(self.base), "lora": LORA} | settings)
        return directory


def stir(parameters, seed=3):
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1
