"""Checkpoints: written beside and moved into place, loaded strictly, recognised by their fingerprint."""

import contextlib
import copy
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from gmsa_rag.config import GMSAConfig
from gmsa_rag.errors import CheckpointError
from gmsa_rag.modeling.compressor import Compressor

CARD = "README.md"
COMPRESSOR_FILE, INDEX_FILE, DECODER_FOLDER = "compressor.safetensors", "compressor.safetensors.index.json", "decoder"
EMBEDDINGS = "encoder.embed_tokens.weight"
POOLING_SETTINGS = ("encoder_layers", "lsa_layers", "window", "encoder_norm", "lsa_norm")
SHARD_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Checkpoint:
    """Everything a checkpoint holds.

    Attributes:
        config: Its settings.
        compressor: Encoder, group merging and layer semantic alignment.
        decoder: A plain causal LM.
        tokenizer: The tokenizer of both.
    """

    config: GMSAConfig
    compressor: Compressor
    decoder: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def save_checkpoint(checkpoint: Checkpoint, directory: Path, dtype: torch.dtype | None = None) -> GMSAConfig:
    """Write a checkpoint; the directory holds the old one or the new one, never a part.

    Args:
        checkpoint: What to write.
        directory: Where to; an existing checkpoint there is replaced, its model card (README.md) kept.
        dtype: Cast weights to it, in the files alone; None keeps the decoder's, and for the compressor that of the
            files it was loaded from.

    Returns:
        The settings as written, with the fingerprint of the compressor as saved.

    Raises:
        CheckpointError: If the directory holds something that is no checkpoint.
    """
    config = GMSAConfig.from_dict(checkpoint.config.to_dict())
    with _replacing(directory) as beside:
        # A compressor loaded in another dtype than its files' is saved in theirs: casts leave the fingerprint alone.
        own = dtype or _file_dtype(config)
        weights = {name: _cast(tensor, own) for name, tensor in checkpoint.compressor.state_dict().items()}
        config.shared_embeddings = torch.equal(weights[EMBEDDINGS], _cast(embedding_table(checkpoint.decoder), own))
        config.compressor_dtype = str(weights[EMBEDDINGS].dtype).removeprefix("torch.")
        config.fingerprint = fingerprint(weights, config, checkpoint.tokenizer)
        if config.shared_embeddings:
            del weights[EMBEDDINGS]
        _save_sharded(weights, beside)
        _save_decoder(checkpoint, beside / DECODER_FOLDER, dtype)
        config.save_pretrained(beside)
        if (directory / CARD).exists():
            shutil.copy2(directory / CARD, beside / CARD)
    return config


def load_checkpoint(directory: Path, *, dtype: torch.dtype | None = None, device: str = "cpu") -> Checkpoint:
    """Read a checkpoint strictly.

    Args:
        directory: Where it is.
        dtype: Cast weights to it; None keeps the files' own.
        device: Where the weights go.

    Raises:
        CheckpointError: If a file is missing or damaged, or a weight is missing, unexpected or misshapen; it is named.
    """
    config = read_config(directory)
    decoder, tokenizer = _load_decoder(directory / DECODER_FOLDER, dtype)
    compressor = Compressor.from_base(decoder, config)
    weights = _load_weights(directory)
    if config.shared_embeddings:
        weights[EMBEDDINGS] = embedding_table(decoder)
    else:
        compressor.encoder.set_input_embeddings(_own_table(decoder, weights.get(EMBEDDINGS)))
    _load_strictly(compressor, weights, directory)
    return Checkpoint(config, compressor.to(device).eval(), decoder.to(device).eval(), tokenizer)  # type: ignore[arg-type]


def embedding_table(decoder: PreTrainedModel) -> Tensor:
    """The decoder's embeddings as stored, (vocab_size, hidden_size), without their gradient."""
    return cast(Tensor, decoder.get_input_embeddings().weight).detach()


def read_config(directory: Path) -> GMSAConfig:
    """Settings of the checkpoint in a directory, or CheckpointError."""
    path = directory / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("model_type") != GMSAConfig.model_type:
            raise _damaged(path, f"model_type {values.get('model_type')!r}")
        config = GMSAConfig.from_dict(values)
    except (OSError, ValueError, AttributeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    if config.format_version > GMSAConfig().format_version:
        raise _damaged(path, f"format_version {config.format_version}", "Upgrade gmsa-rag.")
    return config


def fingerprint(weights: dict[str, Tensor], config: GMSAConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over the compressor's weights as saved, its tokenizer and its pooling settings, 64 hex digits.

    Args:
        weights: State dict of the compressor, embeddings included, in the dtype of the files.
        config: Settings; those that change soft tokens count.
        tokenizer: Fast tokenizer.
    """
    digest = hashlib.sha256(b"gmsa-compressor-1")
    settings = {name: getattr(config, name) for name in POOLING_SETTINGS}
    for part in (json.dumps(settings, sort_keys=True), tokenizer.backend_tokenizer.to_str()):
        digest.update(len(part.encode()).to_bytes(8, "big") + part.encode())
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        head = f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
        digest.update(len(head).to_bytes(8, "big") + head + bytes(tensor.flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()


def verify_fingerprint(directory: Path) -> str:
    """Compute the fingerprint of the files anew and compare it with the recorded one.

    Returns:
        The fingerprint.

    Raises:
        CheckpointError: If they differ: weights, tokenizer or settings were changed after saving.
    """
    checkpoint = load_checkpoint(directory)
    dtype = _file_dtype(checkpoint.config)
    weights = {name: _cast(tensor, dtype) for name, tensor in checkpoint.compressor.state_dict().items()}
    computed = fingerprint(weights, checkpoint.config, checkpoint.tokenizer)
    if computed != checkpoint.config.fingerprint:
        raise CheckpointError(
            f"fingerprint of {directory}",
            expected=checkpoint.config.fingerprint,
            got=computed,
            remedy="The files were changed after saving; fetch the checkpoint again.",
        )
    return computed


def _save_decoder(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None) -> None:
    decoder = checkpoint.decoder
    # Tied weights are cast once, so that they stay one tensor, which transformers writes once.
    cast: dict[int, Tensor] = {}
    state = {
        name: cast.setdefault(tensor.data_ptr(), _cast(tensor, dtype)) for name, tensor in decoder.state_dict().items()
    }
    decoder.save_pretrained(folder, state_dict=state)
    if dtype is not None:  # transformers writes the model's own dtype there, and "auto" loading goes by it
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        settings["dtype"] = str(dtype).removeprefix("torch.")
        (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    checkpoint.tokenizer.save_pretrained(folder)


def _load_decoder(folder: Path, dtype: torch.dtype | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if not (folder / "config.json").is_file():
        raise _damaged(folder, "no config.json there")
    try:
        load: Any = AutoModelForCausalLM.from_pretrained
        decoder, info = load(folder, dtype=dtype or "auto", local_files_only=True, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _damaged(folder, f"{type(error).__name__}: {error}") from error
    wrong = {kind: sorted(map(str, names)) for kind, names in info.items() if names}
    if wrong:
        raise _damaged(folder, "; ".join(f"{kind.replace('_', ' ')}: {names}" for kind, names in wrong.items()))
    return decoder, tokenizer


def _save_sharded(weights: dict[str, Tensor], folder: Path) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in weights.items():
        if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / COMPRESSOR_FILE, metadata={"format": "pt"})
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"compressor-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": places}, indent=1), encoding="utf-8")


def _load_weights(directory: Path) -> dict[str, Tensor]:
    index = directory / INDEX_FILE
    try:
        files = (
            set(json.loads(index.read_text("utf-8"))["weight_map"].values()) if index.exists() else {COMPRESSOR_FILE}
        )
        if unsafe := [file for file in files if Path(file).name != file]:
            raise _damaged(index, f"a path outside the checkpoint, {unsafe[0]!r}")
        return {name: tensor for file in sorted(files) for name, tensor in load_file(directory / file).items()}
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise _damaged(directory / COMPRESSOR_FILE, f"{type(error).__name__}: {error}") from error


def _load_strictly(compressor: Compressor, weights: dict[str, Tensor], directory: Path) -> None:
    own = compressor.state_dict()
    wrong = [f"missing {name}" for name in own if name not in weights]
    wrong += [f"unexpected {name}" for name in weights if name not in own]
    wrong += [
        f"{name} of shape {tuple(weights[name].shape)} in the place of {tuple(own[name].shape)}"
        for name in own
        if name in weights and own[name].shape != weights[name].shape
    ]
    if wrong:
        raise _damaged(directory / COMPRESSOR_FILE, "; ".join(sorted(wrong)))
    compressor.load_state_dict(weights)


def _own_table(decoder: PreTrainedModel, weight: Tensor | None) -> nn.Module:
    """A table like the decoder's, not shared with it."""
    table = copy.deepcopy(decoder.get_input_embeddings())
    if weight is not None and weight.shape == table.weight.shape:
        table.weight = nn.Parameter(weight.to(embedding_table(decoder).dtype))
    return table


@contextlib.contextmanager
def _replacing(directory: Path) -> Iterator[Path]:
    """A folder beside the directory that takes its place when all is written, or leaves it as it was."""
    if directory.exists() and any(path.name != CARD for path in directory.iterdir()):
        _check_replaceable(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    old = directory.with_name(f"{beside.name}-old")
    try:
        yield beside
        beside.chmod(0o755)
        if directory.exists():
            directory.rename(old)
        beside.rename(directory)
    except BaseException:
        if old.exists():
            old.rename(directory)
        raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _check_replaceable(directory: Path) -> None:
    """Only a GMSA checkpoint is ever replaced: a base model's folder has a config.json as well."""
    try:
        read_config(directory)
    except CheckpointError as error:
        raise CheckpointError(
            f"target {directory}",
            expected="a new or empty directory, or a GMSA checkpoint to replace",
            got="a directory of other files",
            remedy="Choose another directory.",
        ) from error


def _file_dtype(config: GMSAConfig) -> torch.dtype | None:
    """The dtype the compressor's weights have in the files; None for one that was never saved."""
    return getattr(torch, config.compressor_dtype) if config.compressor_dtype else None


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    tensor = tensor.detach()
    return (tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor).contiguous()


def _damaged(path: Path, got: str, remedy: str = "Fetch or train the checkpoint again.") -> CheckpointError:
    return CheckpointError(f"checkpoint at {path}", expected="a whole GMSA checkpoint", got=got, remedy=remedy)
