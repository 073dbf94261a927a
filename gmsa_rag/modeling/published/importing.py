"""Import of published checkpoints: their names, their LoRA and their prompts, turned into ours."""

import copy
import logging
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from gmsa_rag.checks import is_int
from gmsa_rag.config import GMSAConfig
from gmsa_rag.errors import CheckpointError, InputError, first_line
from gmsa_rag.modeling.checkpoint import Checkpoint
from gmsa_rag.modeling.compressor import Compressor
from gmsa_rag.modeling.lora import LoraSettings, apply_lora
from gmsa_rag.modeling.published.state_dict import StateDict, read_state_dict

logger = logging.getLogger(__name__)
# With peft around the encoder, and without.
ENCODERS = ("encoder.base_model.model.model.", "encoder.model.")
ALIGNMENT, DECODER = "memory_fusion_layer.model.", "decoder."
TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# The encoder gives states and no logits, the alignment is given states and no ids, and the linear alignment is what
# training without the alignment block would have used.
UNUSED = re.compile(
    r"encoder\.(base_model\.model\.)?lm_head\.((base_layer\.)?(weight|bias)|lora_[AB]\.default\.weight)"
    r"|memory_fusion_layer\.(lm_head\.(weight|bias)|model\.embed_tokens\.weight)"
    r"|semantic_alignment_layer\.(weight|bias)"
)
# The published prompts: soft tokens first, then the instruction or the question, with nothing in between.
TEMPLATES: dict[str, Any] = {
    "restore_template": "{memory}Restate the aforementioned Text.",
    "passage_template": "{passage}",
    "answer_template": "{passages}{question}",
}


def import_published(
    checkpoint: Path | str,
    base: Path | str,
    *,
    lora_alpha: float | None = None,
    window: int | None = None,
    tokenizer: Path | str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Checkpoint:
    """Turn a state dict of the published implementation into a checkpoint of ours, with equal soft tokens.

    Args:
        checkpoint: File or directory of the state dict, see `read_state_dict`.
        base: Directory or hub id of the model it was trained on; only its config and tokenizer are read.
        lora_alpha: Of the encoder's LoRA, > 0; the files do not hold it. None takes the published 32 for a LoRA of the
            published rank 128, and stands for a state dict whose LoRA is merged already.
        window: Longest run of tokens to compress at once; None takes as many as the base has positions.
        tokenizer: Directory or hub id, where it is not the base's.
        revision: Of a hub id of the base.
        local_files_only: Never ask the hub.

    Returns:
        A checkpoint to be saved, in float32 on the CPU. Its prompts are the published ones.

    Raises:
        CheckpointError: If the base cannot be read, or a tensor is missing, unexpected or misshapen; it is named.
        InputError: If lora_alpha is needed and not given, or given and not needed, or the window does not fit.
        ConfigError: If lora_alpha is not above 0, or the base's architecture is not supported.
    """
    state = read_state_dict(Path(checkpoint))
    encoder_prefix = next((prefix for prefix in ENCODERS if state.named(re.escape(prefix))), ENCODERS[0])
    lora = _lora_settings(state, encoder_prefix, lora_alpha)
    decoder, own_tokenizer = _read_base(base, revision, local_files_only)
    if tokenizer is not None:
        own_tokenizer = _read_tokenizer(tokenizer, None, local_files_only)
    config = GMSAConfig(
        encoder_layers=state.num_layers(encoder_prefix, decoder.config.num_hidden_layers),
        lsa_layers=state.num_layers(ALIGNMENT, decoder.config.num_hidden_layers),
        hidden_size=decoder.config.hidden_size,
        window=_checked_window(window, decoder.config.max_position_embeddings),
        **TEMPLATES,
    )
    compressor = Compressor.from_base(decoder, config)
    _load(state, encoder_prefix, lora, compressor, decoder)
    return Checkpoint(config, compressor.eval(), decoder.eval(), _without_prefix(own_tokenizer))


def _load(
    state: StateDict, prefix: str, lora: LoraSettings | None, compressor: Compressor, decoder: PreTrainedModel
) -> None:
    """Fill all weights from the state dict, or raise CheckpointError."""
    encoder, block = compressor.encoder, compressor.alignment.block
    # The decoder's fine-tuning moved its own table, and the encoder kept the base's.
    encoder.set_input_embeddings(copy.deepcopy(decoder.get_input_embeddings()))
    updates = _take_lora(state, prefix, lora, encoder)
    encoder_weights = _take_encoder(state, prefix, lora, encoder, _is_tied(decoder))
    block_weights = {name: state.take(ALIGNMENT + name, own.shape) for name, own in block.state_dict().items()}
    decoder_weights = _take_decoder(state, decoder)
    state.finish(UNUSED)
    encoder.load_state_dict(encoder_weights)
    block.load_state_dict(block_weights)
    decoder.load_state_dict(decoder_weights)
    if lora is None:
        logger.info("%s holds no LoRA: the encoder's weights are taken as they are", state.where)
    else:
        apply_lora(encoder, updates, lora.scale)
        logger.info("%s: LoRA of rank %d merged with alpha %g", state.where, lora.rank, lora.alpha)


def _take_encoder(
    state: StateDict, prefix: str, lora: LoraSettings | None, encoder: PreTrainedModel, tied: bool
) -> dict[str, Tensor]:
    """The encoder's weights under our names, LoRA left out."""
    weights = {}
    for name, own in encoder.state_dict().items():
        module, _, kind = name.rpartition(".")
        wrapped = f"{prefix}{module}.base_layer.{kind}"
        expected = lora is not None and kind == "weight" and isinstance(encoder.get_submodule(module), nn.Linear)
        if f"model.{name}" == TABLE:
            weights[name] = _take_table(state, prefix.removesuffix("model."), own.shape, tied)
        else:
            weights[name] = state.take(wrapped if expected or wrapped in state else prefix + name, own.shape)
    return weights


def _take_lora(state: StateDict, prefix: str, lora: LoraSettings | None, encoder: PreTrainedModel) -> dict[str, Tensor]:
    """The LoRA of every linear layer, named as `apply_lora` takes it."""
    if lora is None:
        return {}
    weights = {}
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Linear):
            shapes = {"A": (lora.rank, module.in_features), "B": (module.out_features, lora.rank)}
            for half, shape in shapes.items():
                published = f"{prefix}{name}.lora_{half}.default.weight"
                weights[f"{name}.lora_{half}"] = state.take(published, torch.Size(shape))
    return weights


def _take_decoder(state: StateDict, decoder: PreTrainedModel) -> dict[str, Tensor]:
    tied = _is_tied(decoder)
    shapes = {name: own.shape for name, own in decoder.state_dict().items()}
    weights = {TABLE: _take_table(state, DECODER, shapes.pop(TABLE), tied)}
    if tied:
        del shapes[HEAD]
        state.take_equal(DECODER + HEAD, weights[TABLE])
        weights[HEAD] = weights[TABLE]
    return weights | {name: state.take(DECODER + name, shape) for name, shape in shapes.items()}


def _take_table(state: StateDict, prefix: str, shape: torch.Size, tied: bool) -> Tensor:
    """An embedding table; files that hold tied weights once may hold them as the head."""
    return state.take(prefix + (HEAD if tied and prefix + TABLE not in state else TABLE), shape)


def _is_tied(decoder: PreTrainedModel) -> bool:
    return decoder.get_output_embeddings().weight is decoder.get_input_embeddings().weight


def _lora_settings(state: StateDict, prefix: str, alpha: float | None) -> LoraSettings | None:
    """Rank and alpha of the encoder's LoRA, None where there is none."""
    down = state.named(re.escape(prefix) + r".+\.lora_A\.default\.weight$")
    ranks = [tensor.shape[0] for tensor in down.values() if tensor.dim() == 2 and len(tensor)]
    if not ranks:
        if alpha is not None:
            raise InputError(
                "lora_alpha",
                expected="none, since the state dict holds no LoRA to scale",
                got=str(alpha),
                remedy="Leave it out if the LoRA is merged already; else save the state dict with its LoRA.",
            )
        return None
    if alpha is None and ranks[0] != LoraSettings.rank:
        raise InputError(
            "lora_alpha",
            expected=f"the alpha that the LoRA of rank {ranks[0]} was trained with",
            got="none",
            remedy="Pass it (--lora-alpha): the files do not hold it, and only rank 128 has a published one.",
        )
    return LoraSettings(ranks[0], LoraSettings.alpha if alpha is None else alpha)


def _read_base(
    base: Path | str, revision: str | None, local_files_only: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model of the base's config, its weights drawn at random, and the base's tokenizer."""
    try:
        config = AutoConfig.from_pretrained(base, revision=revision, local_files_only=local_files_only)
        decoder: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise _no_base(f"base {base}", "the config of a causal LM", error) from error
    return decoder, _read_tokenizer(base, revision, local_files_only)


def _read_tokenizer(name: Path | str, revision: str | None, local_files_only: bool) -> PreTrainedTokenizerBase:
    load: Any = AutoTokenizer.from_pretrained
    try:
        tokenizer: PreTrainedTokenizerBase = load(name, revision=revision, local_files_only=local_files_only)
    except (OSError, ValueError) as error:
        raise _no_base(f"tokenizer {name}", "a tokenizer", error) from error
    return tokenizer


def _without_prefix(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer that puts nothing in front of a prompt: published prompts begin with the soft tokens."""
    if tokenizer("")["input_ids"]:
        tokenizer.add_bos_token = False
    return tokenizer


def _checked_window(window: int | None, positions: int) -> int:
    if window is None:
        return positions
    if not is_int(window) or not 1 <= window <= positions:
        raise InputError(
            "window", expected=f"1 to {positions}, the positions of the base", got=repr(window), remedy="Change it."
        )
    return window


def _no_base(what: str, expected: str, error: Exception) -> CheckpointError:
    return CheckpointError(what, expected=expected, got=first_line(error), remedy="Give its directory or a hub id.")
