"""The files of a checkpoint: written beside and moved into place, read strictly."""

import contextlib
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
from gmsa_rag.errors import CheckpointError, first_line
from gmsa_rag.modeling.compressor import Compressor

CARD = "README.md"
COMPRESSOR_FILE, INDEX_FILE, DECODER_FOLDER = "compressor.safetensors", "compressor.safetensors.index.json", "decoder"
SHARD_BYTES = 4 * 2**30
LOADING_ERRORS = (OSError, ValueError, RuntimeError, SafetensorError)


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


def is_checkpoint(directory: Path) -> bool:
    """Whether a directory says that it is a GMSA checkpoint; damaged or not, it is no base model then."""
    try:
        return bool(json.loads((directory / "config.json").read_text("utf-8")).get("model_type") == "gmsa")
    except (OSError, ValueError, AttributeError):
        return False


def read_config(directory: Path) -> GMSAConfig:
    """Settings of the checkpoint in a directory, or CheckpointError."""
    path = directory / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("model_type") != GMSAConfig.model_type:
            raise damaged(path, f"model_type {values.get('model_type')!r}")
        config = GMSAConfig.from_dict(values)
    except (OSError, ValueError, AttributeError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from error
    if config.format_version > GMSAConfig().format_version:
        raise damaged(path, f"format_version {config.format_version}", "Upgrade gmsa-rag.")
    return config


@contextlib.contextmanager
def replacing(directory: Path) -> Iterator[Path]:
    """A folder beside the directory that takes its place when all is written, or leaves it as it was.

    A model card (README.md) already there is kept.

    Raises:
        CheckpointError: If the directory holds something that is no checkpoint.
    """
    if directory.exists() and any(path.name != CARD for path in directory.iterdir()):
        _check_replaceable(directory)
    with swapping(directory) as beside:
        yield beside


@contextlib.contextmanager
def swapping(directory: Path) -> Iterator[Path]:
    """A folder beside the directory that takes its place when all is written, whatever was there but a README.md."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    old = directory.with_name(f"{beside.name}-old")
    try:
        yield beside
        if (directory / CARD).exists():
            shutil.copy2(directory / CARD, beside / CARD)
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


def save_sharded(weights: dict[str, Tensor], folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write the compressor's weights: one file, or several of at most so many bytes and an index."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in weights.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
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


def load_weights(directory: Path) -> dict[str, Tensor]:
    """The compressor's weights as they are in the files of a checkpoint, or CheckpointError."""
    index = directory / INDEX_FILE
    try:
        named = json.loads(index.read_text("utf-8"))["weight_map"].values() if index.exists() else [COMPRESSOR_FILE]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise damaged(index, f"{type(error).__name__}: {error}") from error
    if unsafe := [file for file in named if Path(file).name != file]:
        raise damaged(index, f"a path outside the checkpoint, {unsafe[0]!r}")
    return {name: tensor for file in sorted(set(named)) for name, tensor in load_tensors(directory / file).items()}


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, or CheckpointError."""
    try:
        return load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from error


def load_strictly(module: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Load weights into a module, cast to its dtype; one missing, unexpected or misshapen is a CheckpointError."""
    own = module.state_dict()
    wrong = [f"missing {name}" for name in own if name not in weights]
    wrong += [f"unexpected {name}" for name in weights if name not in own]
    wrong += [
        f"{name} of shape {tuple(weights[name].shape)} in the place of {tuple(own[name].shape)}"
        for name in own
        if name in weights and own[name].shape != weights[name].shape
    ]
    if wrong:
        raise damaged(path, "; ".join(sorted(wrong)))
    module.load_state_dict(weights)


def save_decoder(
    checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None = None, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write decoder and tokenizer as a plain transformers checkpoint; dtype None keeps the weights' own."""
    decoder = checkpoint.decoder
    # Tied weights are cast once, so that they stay one tensor, which transformers writes once.
    saved: dict[int, Tensor] = {}
    state = {
        name: saved.setdefault(tensor.data_ptr(), as_saved(tensor, dtype))
        for name, tensor in decoder.state_dict().items()
    }
    decoder.save_pretrained(folder, state_dict=state, max_shard_size=shard_bytes)
    if dtype is not None:  # transformers writes the model's own dtype there, and "auto" loading goes by it
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        settings["dtype"] = str(dtype).removeprefix("torch.")
        (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    checkpoint.tokenizer.save_pretrained(folder)


def load_decoder(folder: Path, dtype: torch.dtype | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read `decoder/` of a checkpoint, or CheckpointError; dtype None keeps the files' own."""
    if not (folder / "config.json").is_file():
        raise damaged(folder, "no config.json there")
    try:
        decoder, tokenizer, wrong = load_causal_lm(folder, dtype=dtype or "auto", local_files_only=True)
    except LOADING_ERRORS as error:
        raise damaged(folder, f"{type(error).__name__}: {error}") from error
    if wrong:
        raise damaged(folder, "; ".join(f"{kind.replace('_', ' ')}: {names}" for kind, names in wrong.items()))
    return decoder, tokenizer


def load_causal_lm(
    source: str | Path, *, dtype: torch.dtype | str, **hub: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, list[str]]]:
    """Read a causal LM and its tokenizer from a directory or the hub.

    Args:
        source: Directory or hub id.
        dtype: Cast weights to it; "auto" keeps the files' own.
        **hub: `revision`, `token` and `local_files_only` of transformers.

    Returns:
        Model, tokenizer, and the names of weights that do not fit by kind: missing_keys, unexpected_keys and so on.

    Raises:
        OSError, ValueError, RuntimeError, SafetensorError: As transformers gives them, `LOADING_ERRORS`.
    """
    load: Any = AutoModelForCausalLM.from_pretrained
    model, info = load(source, dtype=dtype, output_loading_info=True, **hub)
    tokenizer = AutoTokenizer.from_pretrained(source, **hub)
    return model, tokenizer, {kind: sorted(map(str, names)) for kind, names in info.items() if names}


def load_base(
    base: str | Path, *, dtype: torch.dtype | str, **hub: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read a causal LM to train on and its tokenizer, from a directory, the hub or a GGUF file.

    Args:
        base: Directory, hub id or path of the file.
        dtype: Cast weights to it; "auto" keeps the files' own, float32 for a GGUF file.
        **hub: As for `load_causal_lm`; not read for a file.

    Raises:
        CheckpointError: If it cannot be read, or lacks weights, which would start at random.
    """
    path = Path(base)
    packed = path.suffix == ".gguf"
    source, settings = (path.parent, {"gguf_file": path.name}) if packed else (base, hub)
    decoder: Any
    try:
        decoder, tokenizer, wrong = load_causal_lm(source, dtype=dtype, **settings)
    except LOADING_ERRORS as error:
        raise _no_base(base, first_line(error)) from error
    if lacking := lacking_weights(wrong):
        raise _no_base(base, f"one without {', '.join(lacking)}")
    if packed:
        # transformers has turned the weights into plain ones, and still calls the model quantised.
        decoder.config.__dict__.pop("quantization_config", None)
        decoder.is_quantized, decoder.hf_quantizer = False, None
    return decoder, tokenizer


def lacking_weights(wrong: dict[str, list[str]]) -> list[str]:
    """Weights that a model should have and its files have not, or not in its shape.

    What the files have beyond the architecture, transformers passes over; what they lack is random after loading.

    Args:
        wrong: As `load_causal_lm` gives it.
    """
    return [name for kind, names in wrong.items() if kind != "unexpected_keys" for name in names]


def embedding_table(decoder: PreTrainedModel) -> Tensor:
    """The decoder's embeddings as stored, (vocab_size, hidden_size), without their gradient."""
    return cast(Tensor, decoder.get_input_embeddings().weight).detach()


def as_saved(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A weight as it goes into a file: without gradient, contiguous, a float cast to dtype if there is one."""
    tensor = tensor.detach()
    return (tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor).contiguous()


def damaged(path: Path, got: str, remedy: str = "Fetch or train the checkpoint again.") -> CheckpointError:
    """The error for a checkpoint that is not whole."""
    return CheckpointError(f"checkpoint at {path}", expected="a whole GMSA checkpoint", got=got, remedy=remedy)


def _no_base(base: str | Path, got: str) -> CheckpointError:
    return CheckpointError(
        f"base {base}", expected="a directory or hub id of a causal LM, or a GGUF file", got=got,
        remedy="Check the name, or fetch it again.",
    )  # fmt: skip


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
