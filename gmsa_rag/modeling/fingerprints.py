"""Fingerprints: what tells one compressor from another, whatever machine and dtype it runs in."""

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gmsa_rag.config import GMSAConfig
from gmsa_rag.errors import CheckpointError

POOLING_SETTINGS = ("encoder_layers", "lsa_layers", "window", "encoder_norm", "lsa_norm")
LORA_SETTINGS = ("lora_rank", "lora_alpha")


def fingerprint(weights: dict[str, Tensor], config: GMSAConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over the compressor's weights as saved, its tokenizer and its pooling settings, 64 hex digits.

    Args:
        weights: State dict of the compressor, embeddings included, in the dtype of the files; for adapters what
            `adapter_fingerprint` in `adapters.py` puts together.
        config: Settings; those that change soft tokens count, the scale of LoRA among them where there is a base.
        tokenizer: Fast tokenizer.
    """
    digest = hashlib.sha256(b"gmsa-compressor-1")
    names = POOLING_SETTINGS + LORA_SETTINGS if config.base else POOLING_SETTINGS
    settings = {name: getattr(config, name) for name in names}
    for part in (json.dumps(settings, sort_keys=True), tokenizer.backend_tokenizer.to_str()):
        digest.update(len(part.encode()).to_bytes(8, "big") + part.encode())
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        head = f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
        digest.update(len(head).to_bytes(8, "big") + head + bytes(tensor.flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()


def check_fingerprint(directory: Path, recorded: str, computed: str) -> str:
    """The fingerprint, or CheckpointError where the one computed anew is not the one recorded."""
    if computed != recorded:
        raise CheckpointError(
            f"fingerprint of {directory}",
            expected=recorded,
            got=computed,
            remedy="The files, or the base they stand on, were changed after saving; fetch the checkpoint again.",
        )
    return computed
