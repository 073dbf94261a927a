"""Stage 0, pruning: a small base cut out of a pretrained one, which knows words that a small corpus does not teach."""

import copy
import itertools
import logging
import random
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gmsa_rag.errors import ConfigError, DataError
from gmsa_rag.inference.tokens import TokenCodec
from gmsa_rag.modeling.alignment import backbone_of, cast_weights, check_unquantised
from gmsa_rag.modeling.files import load_base
from gmsa_rag.training.data import find_files
from gmsa_rag.training.pretraining import TEXT_SUFFIXES, first_documents, save_base
from gmsa_rag.training.recipe import PruneRecipe
from gmsa_rag.training.recipe_file import keep_recipe
from gmsa_rag.training.tokenizer import prune_tokenizer

WINDOW = 256
log = logging.getLogger(__name__)


def prune(recipe: PruneRecipe, base: str | Path, data: Path, out: Path, *, revision: str | None = None) -> Path:
    """Cut a small base out of a pretrained causal LM; one that is in `out` already is kept.

    Three cuts, each by what is least missed on the recipe's text: tokens by how often they and those made of them
    occur; layers one after another, each time the one without which the loss on plain text and on text said twice rises
    least; rows of the MLPs by how much the next weights read of them. What is left has to be trained on, see
    `pretrain`.

    Args:
        recipe: The stage's settings.
        base: Directory or hub id of a causal LM, or a GGUF file, whose weights are dequantised.
        data: Directory of the training data.
        out: Directory of the run.
        revision: Of a hub id.

    Returns:
        Directory of the base, a plain transformers checkpoint.

    Raises:
        ConfigError: If the base is of another kind, or has fewer layers, tokens, MLP rows or positions than are to be
            left.
        CheckpointError: If the base cannot be read or lacks weights, or `out` holds one cut by another recipe or out of
            another base.
        DataError: If a data file is missing, unreadable or too short.
    """
    made, origin = out / "base", {"base": str(base), "revision": revision}
    if made.exists():
        keep_recipe(recipe, out, **origin)
        return made
    files = find_files(data, recipe.text, "text", TEXT_SUFFIXES)
    decoder, tokenizer = load_base(base, dtype=torch.float32, revision=revision)
    _check(recipe, decoder)
    texts = list(first_documents(files))
    smaller, kept = prune_tokenizer(tokenizer, texts, recipe.vocab_size)
    take_tokens(decoder, kept, smaller)
    rows = calibration_rows(TokenCodec(smaller), texts, recipe.calibration_rows)
    keep_layers(decoder, choose_layers(decoder, recipe.num_hidden_layers, rows))
    narrow_mlps(decoder, recipe.intermediate_size, rows)
    decoder.config.max_position_embeddings = recipe.max_position_embeddings
    keep_recipe(recipe, out, **origin)
    save_base(decoder, smaller, made)
    return made


def take_tokens(decoder: PreTrainedModel, kept: Sequence[int | None], tokenizer: PreTrainedTokenizerBase) -> None:
    """Cut the tied embedding table to these rows, in this order; None, a new token, starts from the mean row."""
    old = decoder.get_input_embeddings().get_parameter("weight").detach()
    mean = old.mean(0)
    table = torch.stack([mean if row is None else old[row] for row in kept])
    decoder.resize_token_embeddings(len(kept), mean_resizing=False)
    decoder.get_input_embeddings().get_parameter("weight").data.copy_(table)
    config = decoder.config
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    decoder.generation_config = type(decoder.generation_config).from_model_config(config)


def calibration_rows(codec: TokenCodec, texts: Sequence[str], count: int) -> Tensor:
    """Rows to measure on: text as it stands, then half a row of it said twice.

    Args:
        codec: Of the smaller tokenizer.
        texts: Documents, of which as many as are wanted are drawn.
        count: Rows of each kind.

    Returns:
        Token ids, (2 * count, prefix + WINDOW), each row with the beginning of a text in front.

    Raises:
        DataError: If fewer documents are long enough.
    """
    drawn = random.Random(0).sample(texts, len(texts))
    encoded = (codec.encode([text])[0][:WINDOW] for text in drawn)
    rows = list(itertools.islice((ids for ids in encoded if len(ids) == WINDOW), count))
    if len(rows) < count:
        raise DataError(
            "corpus", expected=f"{count} documents of {WINDOW} tokens and more", got=str(len(rows)),
            remedy="Name more text files.",
        )  # fmt: skip
    half = WINDOW // 2
    return torch.tensor([[*codec.prefix, *ids] for ids in [*rows, *(ids[:half] * 2 for ids in rows)]])


@torch.no_grad()
def calibration_loss(decoder: PreTrainedModel, rows: Tensor) -> float:
    """Mean loss on the plain rows and on the second halves of the repeated ones, in nats, the two added."""
    logits = decoder(input_ids=rows, use_cache=False).logits[:, :-1].float()
    losses = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none").view(len(rows), -1)
    count = len(rows) // 2
    return float(losses[:count].mean() + losses[count:, 1 - WINDOW // 2 :].mean())  # the first is no copy yet


@torch.no_grad()
def choose_layers(decoder: PreTrainedModel, count: int, rows: Tensor) -> list[int]:
    """Numbers of the layers to keep: again and again the one is left out without which the loss is lowest."""
    measured = copy.deepcopy(decoder).eval()
    cast_weights(measured, torch.bfloat16)  # losses are only compared with one another
    backbone = backbone_of(measured)
    layers, numbers = list(backbone.layers), list(range(len(backbone.layers)))
    while len(numbers) > count:
        losses = {}
        for number in numbers:
            backbone.layers = nn.ModuleList(layers[other] for other in numbers if other != number)
            losses[number] = calibration_loss(measured, rows)
        least = min(losses, key=losses.__getitem__)
        numbers.remove(least)
        log.info("layer %d left out, %d are left, loss %.3f", least, len(numbers), losses[least])
    return numbers


def keep_layers(decoder: PreTrainedModel, numbers: Sequence[int]) -> None:
    """Cut the decoder to these layers, and what its config lists for each; once saved and loaded it can use a cache."""
    backbone, config = backbone_of(decoder), decoder.config
    for name, value in config.to_dict().items():
        if "layer" in name and isinstance(value, list) and len(value) == len(backbone.layers):
            setattr(config, name, [value[number] for number in numbers])
    backbone.layers = nn.ModuleList(backbone.layers[number] for number in numbers)
    config.num_hidden_layers = len(numbers)


@torch.no_grad()
def narrow_mlps(decoder: PreTrainedModel, width: int, rows: Tensor) -> None:
    """Cut every MLP to the rows with the largest mean absolute activation times norm of the weights that read it."""
    mlps = [layer.mlp for layer in backbone_of(decoder).layers]
    activity: dict[nn.Module, Tensor] = {}
    hooks = [
        mlp.down_proj.register_forward_pre_hook(
            lambda module, inputs: activity.update({module: inputs[0].abs().flatten(0, -2).mean(0)})
        )
        for mlp in mlps
    ]
    calibration_loss(decoder.eval(), rows)
    for hook in hooks:
        hook.remove()
    for mlp in mlps:
        importance = activity[mlp.down_proj] * mlp.down_proj.weight.norm(dim=0)
        kept = importance.topk(width).indices.sort().values
        mlp.gate_proj = _linear(mlp.gate_proj.weight[kept])
        mlp.up_proj = _linear(mlp.up_proj.weight[kept])
        mlp.down_proj = _linear(mlp.down_proj.weight[:, kept])
    decoder.config.intermediate_size = width


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data.copy_(weight)
    return linear


def _check(recipe: PruneRecipe, decoder: PreTrainedModel) -> None:
    check_unquantised(decoder)
    config = decoder.config
    mlps = [getattr(layer, "mlp", None) for layer in backbone_of(decoder).layers]
    projections = [getattr(mlp, name, None) for mlp in mlps for name in ("gate_proj", "up_proj", "down_proj")]
    gated = all(isinstance(projection, nn.Linear) and projection.bias is None for projection in projections)
    if not gated or not config.tie_word_embeddings:
        raise ConfigError(
            "base model", expected="gated MLPs without biases and tied embeddings, as SmolLM2 or Qwen3 0.6B",
            got=type(decoder).__name__, remedy="Choose a base of such a family.",
        )  # fmt: skip
    for name in ("num_hidden_layers", "intermediate_size", "max_position_embeddings"):
        if not 1 <= getattr(recipe, name) <= getattr(config, name):
            raise ConfigError(
                name, expected=f"1 to {getattr(config, name)}, as in the base", got=str(getattr(recipe, name)),
                remedy="Change the recipe, or choose a larger base.",
            )  # fmt: skip
