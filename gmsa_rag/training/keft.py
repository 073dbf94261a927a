"""Stage 2, knowledge extraction fine-tuning (KEFT): the decoder learns to answer from soft tokens."""

import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from gmsa_rag.config import GMSAConfig
from gmsa_rag.errors import ConfigError
from gmsa_rag.inference.tokens import TokenCodec
from gmsa_rag.modeling.adapters import save_tuned_decoder
from gmsa_rag.modeling.alignment import cast_weights
from gmsa_rag.modeling.checkpoint import Checkpoint, load_checkpoint, read_config, save_checkpoint
from gmsa_rag.modeling.lora import add_lora, merge_lora
from gmsa_rag.training.data import find_files, token_stream
from gmsa_rag.training.loop import Run
from gmsa_rag.training.objective import Objective, embedding_weights
from gmsa_rag.training.pretraining import TEXT_SUFFIXES
from gmsa_rag.training.question_file import QuestionGroups
from gmsa_rag.training.recipe import KeftRecipe
from gmsa_rag.training.recipe_file import keep_recipe
from gmsa_rag.training.tasks import Tasks

QUESTION_SUFFIXES = (".jsonl.gz", ".jsonl")
# Names of the parameters that learn, beside "all" and "lora"; fused projections of some families are covered.
PARTS = {"qkv": (".q_proj.", ".k_proj.", ".v_proj.", ".qkv_proj."), "attention": (".self_attn.",)}


def keft(
    recipe: KeftRecipe, checkpoint: Path, data: Path, out: Path, device: str = "cpu", *, strict: bool = True
) -> Path:
    """Fine-tune the decoder of a checkpoint; resumes where an earlier run in `out` stopped.

    Args:
        recipe: The stage's settings.
        checkpoint: Directory of an autoencoded checkpoint.
        data: Directory of the training data.
        out: Directory of the run.
        device: Where to train.
        strict: Whether a malformed row of a question file ends the run; else it is named, counted and left out.

    Returns:
        Directory of the new checkpoint; its fingerprint is the old one's, since the compressor is the same.

    Raises:
        DataError: If a data file is missing, or malformed while strict.
        ConfigError: If the recipe's `save`, `frozen_dtype` or `unanswerable` does not fit what it trains or starts
            from.
        CheckpointError: If the run in `out` was started with another recipe or checkpoint.

    Source: GMSA, arXiv 2505.12215, "Knowledge Extraction Fine-tuning".
    """
    _check_fits(recipe, read_config(checkpoint))
    text = find_files(data, recipe.text, "text", TEXT_SUFFIXES)
    files = find_files(data, recipe.questions, "qa", QUESTION_SUFFIXES)
    keep_recipe(recipe, out)
    start = load_checkpoint(checkpoint, dtype=getattr(torch, recipe.frozen_dtype))
    start.config.no_answer = recipe.no_answer or start.config.no_answer
    codec = TokenCodec(start.tokenizer)
    stream = token_stream(text, codec, codec.end, out.parent)
    groups = QuestionGroups.build(files, out.parent, strict=strict)
    objective = _objective(recipe, start)
    set_seed(recipe.optimisation.seed)  # LoRA starts from random weights
    trainable = trainable_parameters(recipe, start.decoder)
    run = Run(
        out, recipe.optimisation, objective, trainable, window=start.config.window, phases=recipe.phases, device=device
    )
    run.train(lambda phase: question_tasks(recipe, phase, codec, start.config, stream, groups).draw(recipe.tasks))
    if run.gather():
        start.config.rates = sorted(set(recipe.phases[-1].rates))
        _save(recipe, start, checkpoint, out / "checkpoint")
    return out / "checkpoint"


def question_tasks(
    recipe: KeftRecipe, phase: int, codec: TokenCodec, config: GMSAConfig, stream: np.ndarray, groups: QuestionGroups
) -> Tasks:
    """What is asked in a phase; of whole passages in the last one alone.

    Args:
        recipe: The stage's settings.
        phase: Its index among the recipe's phases.
        codec: The tokenizer.
        config: The checkpoint's templates.
        stream: Token stream of the corpus.
        groups: The questions.
    """
    current, last = recipe.phases[phase], phase == len(recipe.phases) - 1
    return Tasks(
        codec, config, stream, current.rates, current.windows, groups, recipe.full_text, recipe.mixed,
        recipe.unanswerable, recipe.refine, recipe.max_positions, recipe.distractors, recipe.noise, recipe.own_wording,
        recipe.whole_passages if last else 0.0,
    )  # fmt: skip


def _objective(recipe: KeftRecipe, start: Checkpoint) -> Objective:
    """What is learned; the teacher is the decoder as it is now, before it gets any LoRA."""
    settings = recipe.optimisation
    teacher = copy.deepcopy(start.decoder).eval() if recipe.distillation else None
    return Objective(
        start.decoder, start.compressor, teacher=teacher, distillation=recipe.distillation, bf16=settings.bf16,
        cross_entropy=settings.cross_entropy,
    )  # fmt: skip


def trainable_parameters(recipe: KeftRecipe, decoder: PreTrainedModel) -> list[Tensor]:
    """What learns. Embeddings never do: the compressor reads the same table, and memories were made with it."""
    if recipe.lora is not None:
        return list(add_lora(decoder, recipe.lora))
    frozen = {id(weight) for weight in embedding_weights(decoder)}
    parts = PARTS.get(recipe.trainable, ("",))
    named = decoder.named_parameters()
    return [p for name, p in named if id(p) not in frozen and any(part in name for part in parts)]


def _check_fits(recipe: KeftRecipe, config: GMSAConfig) -> None:
    """Raise ConfigError unless a checkpoint of these settings can be fine-tuned and its compressor kept as it is."""
    if recipe.unanswerable and not (recipe.no_answer or config.no_answer):
        raise ConfigError(
            "no_answer", expected="what to say where the passages do not hold the answer, as unanswerable is above 0",
            got="none in the recipe and none in the checkpoint", remedy="Set no_answer, or unanswerable: 0.",
        )  # fmt: skip
    if recipe.save == "adapters" and (recipe.lora is None or not config.base):
        raise ConfigError(
            "save: adapters", expected="trainable: lora, on a checkpoint of adapters",
            got=f"trainable: {recipe.trainable}, on one {'of adapters' if config.base else 'in full'}",
            remedy="Use save: full.",
        )  # fmt: skip
    rounded = recipe.frozen_dtype != "float32" and config.compressor_dtype != recipe.frozen_dtype
    if rounded and not config.base:
        raise ConfigError(
            "frozen_dtype", expected=f"float32 with a compressor in {config.compressor_dtype}, which would be rounded",
            got=recipe.frozen_dtype, remedy="Change the recipe, or export the checkpoint in bfloat16 first.",
        )  # fmt: skip


def _save(recipe: KeftRecipe, trained: Checkpoint, start: Path, target: Path) -> None:
    """In full, or beside the adapters it started from, so that memories already stored can still be read."""
    if recipe.save == "adapters":
        save_tuned_decoder(trained, target, start=start, decoder="lora", decoder_lora=recipe.lora)
        return
    if recipe.lora is not None:
        merge_lora(trained.decoder)
    dtype = getattr(torch, recipe.frozen_dtype)
    if trained.config.base:
        cast_weights(trained.decoder, dtype)
        save_tuned_decoder(trained, target, start=start, decoder="full")
    else:
        save_checkpoint(trained, target, None if dtype == torch.float32 else dtype)
