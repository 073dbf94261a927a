"""Checkpoints: saved in full, loaded strictly, recognised by their fingerprint."""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gmsa_rag.config import GMSAConfig
from gmsa_rag.errors import ConfigError
from gmsa_rag.modeling.adapters import adapter_fingerprint, load_adapters
from gmsa_rag.modeling.compressor import Compressor
from gmsa_rag.modeling.files import (
    COMPRESSOR_FILE,
    DECODER_FOLDER,
    SHARD_BYTES,
    Checkpoint,
    as_saved,
    embedding_table,
    load_decoder,
    load_strictly,
    load_weights,
    read_config,
    replacing,
    save_decoder,
    save_sharded,
)
from gmsa_rag.modeling.fingerprints import check_fingerprint, fingerprint
from gmsa_rag.modeling.lora import carries_lora

__all__ = [
    "Checkpoint",
    "embedding_table",
    "fingerprint",
    "load_checkpoint",
    "read_config",
    "save_checkpoint",
    "verify_fingerprint",
]

EMBEDDINGS = "encoder.embed_tokens.weight"
NO_ADAPTERS = {
    "base": "", "base_revision": None, "lora_rank": 0, "lora_alpha": 0.0,
    "decoder_weights": "full", "decoder_lora_rank": 0, "decoder_lora_alpha": 0.0,
}  # fmt: skip


def save_checkpoint(
    checkpoint: Checkpoint, directory: Path, dtype: torch.dtype | None = None, *, shard_bytes: int = SHARD_BYTES
) -> GMSAConfig:
    """Write a checkpoint in full; the directory holds the old one or the new one, never a part.

    Args:
        checkpoint: What to write, LoRA merged. One loaded from adapters gets a fingerprint of its own: that of the
            merged weights.
        directory: Where to; an existing checkpoint there is replaced, its model card (README.md) kept.
        dtype: Cast weights to it, in the files alone; None keeps the decoder's, and for the compressor that of the
            files it was loaded from.
        shard_bytes: Most bytes of a file of weights, as far as single weights allow.

    Returns:
        The settings as written, with the fingerprint of the compressor as saved.

    Raises:
        CheckpointError: If the directory holds something that is no checkpoint.
        ConfigError: If a model carries LoRA that is not merged.
    """
    _check_merged(checkpoint)
    config = GMSAConfig.from_dict(checkpoint.config.to_dict() | NO_ADAPTERS)
    with replacing(directory) as beside:
        # A compressor loaded in another dtype than its files' is saved in theirs: casts leave the fingerprint alone.
        own = dtype or _file_dtype(config)
        weights = {name: as_saved(tensor, own) for name, tensor in checkpoint.compressor.state_dict().items()}
        config.shared_embeddings = torch.equal(weights[EMBEDDINGS], as_saved(embedding_table(checkpoint.decoder), own))
        config.compressor_dtype = str(weights[EMBEDDINGS].dtype).removeprefix("torch.")
        config.fingerprint = fingerprint(weights, config, checkpoint.tokenizer)
        if config.shared_embeddings:
            del weights[EMBEDDINGS]
        save_sharded(weights, beside, shard_bytes)
        save_decoder(checkpoint, beside / DECODER_FOLDER, dtype, shard_bytes)
        config.save_pretrained(beside)
    return config


def load_checkpoint(
    directory: Path,
    *,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    token: str | None = None,
    local_files_only: bool = False,
) -> Checkpoint:
    """Read a checkpoint strictly, one in full or one of adapters.

    Args:
        directory: Where it is.
        dtype: Cast weights to it; None keeps the files' own, with adapters the base's.
        device: Where the weights go.
        token: For adapters on a private base of the hub.
        local_files_only: Never ask the hub for the base of adapters.

    Raises:
        CheckpointError: If a file or the base is missing or damaged, or a weight is missing, unexpected or misshapen;
            it is named.
    """
    config = read_config(directory)
    if config.base:
        return load_adapters(directory, dtype=dtype, device=device, token=token, local_files_only=local_files_only)
    decoder, tokenizer = load_decoder(directory / DECODER_FOLDER, dtype)
    compressor = Compressor.from_base(decoder, config)
    weights = load_weights(directory)
    if config.shared_embeddings:
        weights[EMBEDDINGS] = embedding_table(decoder)
    else:
        compressor.encoder.set_input_embeddings(_own_table(decoder, weights.get(EMBEDDINGS)))
    load_strictly(compressor, weights, directory / COMPRESSOR_FILE)
    return Checkpoint(config, compressor.to(device).eval(), decoder.to(device).eval(), tokenizer)  # type: ignore[arg-type]


def verify_fingerprint(directory: Path, *, token: str | None = None, local_files_only: bool = False) -> str:
    """Compute the fingerprint of the files anew and compare it with the recorded one.

    Args:
        directory: Where the checkpoint is. The base of adapters is read as well, as `load_checkpoint` does.
        token: As for `load_checkpoint`.
        local_files_only: As for `load_checkpoint`.

    Returns:
        The fingerprint.

    Raises:
        CheckpointError: If they differ: weights, tokenizer, settings or the base were changed after saving.
    """
    recorded = read_config(directory)
    if recorded.base:
        computed = adapter_fingerprint(directory, token=token, local_files_only=local_files_only)
    else:
        checkpoint = load_checkpoint(directory)
        dtype = _file_dtype(checkpoint.config)
        weights = {name: as_saved(tensor, dtype) for name, tensor in checkpoint.compressor.state_dict().items()}
        computed = fingerprint(weights, checkpoint.config, checkpoint.tokenizer)
    return check_fingerprint(directory, recorded.fingerprint, computed)


def _check_merged(checkpoint: Checkpoint) -> None:
    for name, model in (("encoder", checkpoint.compressor.encoder), ("decoder", checkpoint.decoder)):
        if carries_lora(model):
            raise ConfigError(
                f"{name} to save", expected="plain weights", got="LoRA beside them",
                remedy="Merge it first (merge_lora), or save adapters alone (save_adapters).",
            )  # fmt: skip


def _own_table(decoder: PreTrainedModel, weight: Tensor | None) -> nn.Module:
    """A table like the decoder's, not shared with it."""
    table = copy.deepcopy(decoder.get_input_embeddings())
    if weight is not None and weight.shape == table.weight.shape:
        table.weight = nn.Parameter(weight.to(embedding_table(decoder).dtype))
    return table


def _file_dtype(config: GMSAConfig) -> torch.dtype | None:
    """The dtype the compressor's weights have in the files; None for one that was never saved."""
    return getattr(torch, config.compressor_dtype) if config.compressor_dtype else None
