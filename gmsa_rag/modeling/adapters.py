"""Checkpoints of adapters: LoRA and LSA alone, beside the name of the base that they stand on."""

from functools import reduce
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gmsa_rag.config import GMSAConfig
from gmsa_rag.errors import CheckpointError, ConfigError
from gmsa_rag.modeling.alignment import backbone_of, cast_weights, first_layers
from gmsa_rag.modeling.compressor import Compressor
from gmsa_rag.modeling.files import (
    COMPRESSOR_FILE,
    DECODER_FOLDER,
    Checkpoint,
    as_saved,
    damaged,
    embedding_table,
    load_base,
    load_decoder,
    load_strictly,
    load_tensors,
    load_weights,
    read_config,
    replacing,
    save_decoder,
    save_sharded,
)
from gmsa_rag.modeling.fingerprints import fingerprint
from gmsa_rag.modeling.lora import LoraSettings, apply_lora, carries_lora, lora_settings, lora_weights, plain_state

DECODER_LORA_FILE = "decoder_lora.safetensors"
ENCODER, ALIGNMENT = "encoder.", "alignment."
DecoderWeights = Literal["base", "lora", "full"]


def save_adapters(
    checkpoint: Checkpoint,
    directory: Path,
    *,
    base: str,
    revision: str | None = None,
    lora: LoraSettings,
    decoder: DecoderWeights = "base",
    decoder_lora: LoraSettings | None = None,
) -> GMSAConfig:
    """Write what was trained on a base: the encoder's LoRA, the LSA, and the decoder where it is not the base.

    Args:
        checkpoint: What to write; its encoder carries its LoRA unmerged, and with decoder="lora" its decoder, too.
        directory: Where to; an existing checkpoint there is replaced, its model card (README.md) kept.
        base: Directory, hub id or GGUF file of the causal LM that was trained on; it is read for the fingerprint.
        revision: Of a hub id, None for its main branch; the commit that it stands for is recorded.
        lora: Settings of the encoder's LoRA.
        decoder: "base" where it is the base itself, "lora" for its LoRA alone, "full" for all of its weights.
        decoder_lora: Settings of the decoder's LoRA, with decoder="lora" only.

    Returns:
        The settings as written, with the fingerprint.

    Raises:
        CheckpointError: If the base cannot be read, a weight said to be the base's is not, or the directory holds
            something that is no checkpoint.
        ConfigError: If a model does not carry the LoRA that the arguments tell of.
    """
    encoder, alignment = checkpoint.compressor.encoder, checkpoint.compressor.alignment
    _check_carried("encoder", encoder, lora)
    weights = {ENCODER + name: as_saved(tensor) for name, tensor in lora_weights(encoder).items()}
    weights |= {ALIGNMENT + name: as_saved(tensor) for name, tensor in alignment.state_dict().items()}
    settings = {"base": base, "base_revision": revision, "lora_rank": lora.rank, "lora_alpha": lora.alpha}
    config = _settings(checkpoint, decoder, decoder_lora, **settings)
    return _write(checkpoint, config, weights, directory, check_encoder=True)


def save_tuned_decoder(
    checkpoint: Checkpoint,
    directory: Path,
    *,
    start: Path,
    decoder: Literal["lora", "full"],
    decoder_lora: LoraSettings | None = None,
) -> GMSAConfig:
    """Write the checkpoint of adapters that fine-tuning a decoder gives: another decoder beside the same compressor.

    Args:
        checkpoint: Its decoder and settings are written, its compressor is not looked at.
        directory: Where to, as for `save_adapters`.
        start: The checkpoint of adapters that training started from. Its compressor is taken from its files, so that
            the fingerprint stays and memories already stored can still be read.
        decoder: "lora" for the LoRA that the decoder carries unmerged, on the base's own weights; "full" for all of
            its weights.
        decoder_lora: Settings of the decoder's LoRA, with decoder="lora" only.

    Returns:
        The settings as written, with the fingerprint.

    Raises:
        CheckpointError: As for `save_adapters`, and if `start` is no checkpoint of adapters.
        ConfigError: If the decoder does not carry the LoRA that the arguments tell of.
    """
    old = read_config(start)
    if not old.base:
        raise CheckpointError(
            f"checkpoint at {start}", expected="one of adapters", got="one with all weights in its files",
            remedy="Save in full (save_checkpoint).",
        )  # fmt: skip
    settings = {name: getattr(old, name) for name in ("base", "base_revision", "lora_rank", "lora_alpha")}
    config = _settings(checkpoint, decoder, decoder_lora, **settings)
    return _write(checkpoint, config, load_weights(start), directory, check_encoder=False)


def load_adapters(directory: Path, *, dtype: torch.dtype | None = None, device: str = "cpu", **hub: Any) -> Checkpoint:
    """Read a checkpoint of adapters strictly, LoRA merged into copies of the base's layers.

    Args:
        directory: Where it is.
        dtype: Of all weights; None keeps the base's, and for a decoder in full its own. LoRA is merged in float32 and
            rounded to it once.
        device: Where the weights go.
        **hub: `token` and `local_files_only`, for a base on the hub.

    Raises:
        CheckpointError: If the base or a file is missing or damaged, or a weight is missing, unexpected or misshapen.
    """
    config = _read_adapter_config(directory)
    base, tokenizer = _load_base(config, **hub)
    final = dtype or base.dtype
    compressor = Compressor.from_base(base, config)
    _fill(compressor, config, directory, final)
    decoder: PreTrainedModel = base
    if config.decoder_weights == "full":
        decoder, tokenizer = load_decoder(directory / DECODER_FOLDER, dtype)
        _share_table(compressor, decoder)
    else:
        _merge_decoder(base, config, directory, final)
    return Checkpoint(config, compressor.to(device).eval(), decoder.to(device).eval(), tokenizer)  # type: ignore[arg-type]


def adapter_fingerprint(directory: Path, **hub: Any) -> str:
    """Fingerprint of a checkpoint of adapters as its files and its base are now; `hub` as for `load_adapters`."""
    config = _read_adapter_config(directory)
    base, tokenizer = _load_base(config, **hub)
    if config.decoder_weights == "full":
        _, tokenizer = load_decoder(directory / DECODER_FOLDER, None)
    return _fingerprint(load_weights(directory), config, base, tokenizer)


def _settings(
    checkpoint: Checkpoint, decoder: DecoderWeights, decoder_lora: LoraSettings | None, **settings: Any
) -> GMSAConfig:
    _check_carried("decoder", checkpoint.decoder, decoder_lora)
    if (decoder == "lora") != (decoder_lora is not None):
        raise ConfigError(
            "decoder_lora", expected="settings with decoder='lora', and only then",
            got=f"{decoder_lora} with decoder={decoder!r}", remedy="Give both or neither.",
        )  # fmt: skip
    settings |= {"decoder_weights": decoder, "compressor_dtype": ""}
    settings["decoder_lora_rank"] = decoder_lora.rank if decoder_lora else 0
    settings["decoder_lora_alpha"] = decoder_lora.alpha if decoder_lora else 0.0
    config: GMSAConfig = GMSAConfig.from_dict(checkpoint.config.to_dict() | settings)
    return config


def _check_carried(what: str, model: PreTrainedModel, lora: LoraSettings | None) -> None:
    """Raise ConfigError unless a model carries the LoRA of these settings, or none for None."""
    carried = lora_settings(model) if carries_lora(model) else None
    if (lora and (lora.rank, lora.alpha)) != (carried and (carried.rank, carried.alpha)):
        raise ConfigError(
            f"{what} to save", expected=f"{lora or 'no LoRA'} on it", got=str(carried or "none"),
            remedy="Save with the settings it was trained with, before LoRA is merged; save_tuned_decoder takes a "
            "compressor from where it was loaded.",
        )  # fmt: skip


def _write(
    checkpoint: Checkpoint, config: GMSAConfig, weights: dict[str, Tensor], directory: Path, *, check_encoder: bool
) -> GMSAConfig:
    base, tokenizer = _load_base(config)
    config.base, config.base_revision = _resolved(config.base, config.base_revision)
    decoder, full = checkpoint.decoder, config.decoder_weights == "full"
    if check_encoder:
        _check_frozen("encoder", checkpoint.compressor.encoder, backbone_of(base))
    if full:
        tokenizer = checkpoint.tokenizer
    else:
        _check_frozen("decoder", decoder, base)
        _check_tokenizer(checkpoint.tokenizer, tokenizer)
    config.shared_embeddings = _equal(embedding_table(decoder), embedding_table(base))
    config.fingerprint = _fingerprint(weights, config, base, tokenizer)
    with replacing(directory) as beside:
        save_sharded(weights, beside)
        if full:
            save_decoder(checkpoint, beside / DECODER_FOLDER)
        elif config.decoder_weights == "lora":
            tensors = {name: as_saved(tensor) for name, tensor in lora_weights(decoder).items()}
            save_file(tensors, beside / DECODER_LORA_FILE, metadata={"format": "pt"})
        config.save_pretrained(beside)
    return config


def _resolved(base: str, revision: str | None) -> tuple[str, str | None]:
    """The base under a name that stays: an absolute path, or a hub id and the commit that was read."""
    if Path(base).exists():
        return str(Path(base).resolve()), None
    found = try_to_load_from_cache(base, "config.json", revision=revision)
    return base, Path(found).parent.name if isinstance(found, str) else revision


def _check_frozen(what: str, model: PreTrainedModel, base: PreTrainedModel) -> None:
    """Raise CheckpointError if a weight that is not saved is not the base's either."""
    theirs = plain_state(base)
    for name, tensor in plain_state(model).items():
        if name not in theirs or not _equal(tensor, theirs[name]):
            raise CheckpointError(
                f"{what} to save", expected="the base's own weights below the LoRA", got=f"another {name}",
                remedy="Name the base that was trained on, or save in full.",
            )  # fmt: skip


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, of_base: PreTrainedTokenizerBase) -> None:
    if tokenizer.get_vocab() != of_base.get_vocab():
        raise CheckpointError(
            "tokenizer to save", expected="the base's own", got="one of another vocabulary",
            remedy="Save the decoder in full (decoder='full'): the tokenizer goes with it.",
        )  # fmt: skip


def _equal(tensor: Tensor, of_base: Tensor) -> bool:
    """Whether two weights are the same, but for a cast of the second to the first one's dtype."""
    return tensor.shape == of_base.shape and torch.equal(tensor.cpu(), of_base.cpu().to(tensor.dtype))


def _load_base(config: GMSAConfig, **hub: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        return load_base(config.base, dtype="auto", revision=config.base_revision or "main", **hub)
    except CheckpointError as error:
        raise _no_base(config, error.got) from error


def _no_base(config: GMSAConfig, got: str) -> CheckpointError:
    name = f"{config.base} at {config.base_revision}" if config.base_revision else config.base
    return CheckpointError(
        f"base {name}",
        expected="the causal LM that these adapters were trained on",
        got=got,
        remedy="Download it, or write the directory where it is into `base` of the checkpoint's config.json.",
    )


def _read_adapter_config(directory: Path) -> GMSAConfig:
    config = read_config(directory)
    ranks = [config.lora_rank, *([config.decoder_lora_rank] if config.decoder_weights == "lora" else [])]
    if config.decoder_weights not in get_args(DecoderWeights) or min(ranks) < 1:
        found = f"decoder_weights {config.decoder_weights!r} and LoRA of ranks {ranks}"
        raise damaged(directory / "config.json", found, "Upgrade gmsa-rag, or fetch the checkpoint again.")
    return config


def _fill(compressor: Compressor, config: GMSAConfig, directory: Path, final: torch.dtype) -> None:
    """Merge the encoder's LoRA and load the LSA, from the files of a checkpoint."""
    weights, path = load_weights(directory), directory / COMPRESSOR_FILE
    if stray := sorted(name for name in weights if not name.startswith((ENCODER, ALIGNMENT))):
        raise damaged(path, "; ".join(f"unexpected {name}" for name in stray))
    _merge(compressor.encoder, _below(ENCODER, weights), config.lora_alpha / config.lora_rank, path, final)
    cast_weights(compressor.alignment, final)
    load_strictly(compressor.alignment, _below(ALIGNMENT, weights), path)


def _merge_decoder(base: PreTrainedModel, config: GMSAConfig, directory: Path, final: torch.dtype) -> None:
    """Make the base the decoder."""
    if config.decoder_weights == "lora":
        path = directory / DECODER_LORA_FILE
        _merge(base, load_tensors(path), config.decoder_lora_alpha / config.decoder_lora_rank, path, final)
    cast_weights(base, final)


def _share_table(compressor: Compressor, decoder: PreTrainedModel) -> None:
    """Let the compressor read the decoder's embeddings where they are the base's, so that they are held once."""
    ours, theirs = embedding_table(compressor.encoder), embedding_table(decoder)
    if ours.dtype == theirs.dtype and _equal(ours, theirs):
        compressor.encoder.set_input_embeddings(decoder.get_input_embeddings())


def _merge(model: PreTrainedModel, weights: dict[str, Tensor], scale: float, path: Path, final: torch.dtype) -> None:
    """Merge LoRA in a dtype that holds the base's weights and the final ones, and round the sums once."""
    cast_weights(model, reduce(torch.promote_types, {parameter.dtype for parameter in model.parameters()}, final))
    try:
        apply_lora(model, weights, scale)
    except CheckpointError as error:
        raise damaged(path, error.got, error.remedy) from error
    cast_weights(model, final)


def _below(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _fingerprint(
    weights: dict[str, Tensor], config: GMSAConfig, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> str:
    """Over the adapters as saved and the base's weights below them, so how a merge is rounded does not count."""
    copied = first_layers(base, config.encoder_layers, norm=config.encoder_norm, embeddings=True)
    below = {f"base.{name}": tensor for name, tensor in copied.state_dict().items()}
    return fingerprint(weights | below, config, cast(Any, tokenizer))
