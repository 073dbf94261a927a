"""Training of an ablation: every variant through the same two stages, on the same examples in the same order."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn

from gmsa_rag.config import GMSAConfig
from gmsa_rag.errors import CheckpointError, ConfigError
from gmsa_rag.evaluation.variants import (
    AUTOENCODED,
    make_objective,
    start_variant,
)
from gmsa_rag.inference.tokens import TokenCodec
from gmsa_rag.modeling.checkpoint import Checkpoint
from gmsa_rag.modeling.files import load_decoder
from gmsa_rag.modeling.fingerprints import fingerprint
from gmsa_rag.training.autoencoding import compressor_parameters, draw_restorations
from gmsa_rag.training.data import find_files, token_stream
from gmsa_rag.training.examples import Example
from gmsa_rag.training.keft import QUESTION_SUFFIXES, question_tasks, trainable_parameters
from gmsa_rag.training.loop import Run
from gmsa_rag.training.objective import Objective
from gmsa_rag.training.pretraining import TEXT_SUFFIXES
from gmsa_rag.training.question_file import QuestionGroups
from gmsa_rag.training.recipe import AutoencodeRecipe, KeftRecipe, PretrainRecipe
from gmsa_rag.writing import beside

PLAN = "plan.json"
Stage = TypeVar("Stage", PretrainRecipe, AutoencodeRecipe, KeftRecipe)


@dataclass(frozen=True)
class Plan:
    """How variants are trained.

    Attributes:
        autoencoding: Stage 1; the decoder is frozen in it.
        fine_tuning: Stage 2, KEFT.
        base: Directory of the pretrained base of all variants.
        data: Directory of the training data.
        out: Directory of the ablation, a folder a variant in it.
        rates: Rates that will be evaluated.
        seed: Of what variants initialise at random; that of the stages is in their settings.
        device: Where to train: "cpu" or "cuda".
    """

    autoencoding: AutoencodeRecipe
    fine_tuning: KeftRecipe
    base: Path
    data: Path
    out: Path
    rates: tuple[int, ...]
    seed: int = 0
    device: str = "cpu"

    @property
    def all_rates(self) -> tuple[int, ...]:
        """Rates of training and evaluation."""
        phases = (*self.autoencoding.phases, *self.fine_tuning.phases)
        return tuple(sorted({*self.rates, *(rate for phase in phases for rate in phase.rates)}))

    def check(self) -> None:
        """Raise ConfigError if a stage trains in a way that would not be the same for all variants."""
        settings = (self.autoencoding.optimisation, self.fine_tuning.optimisation)
        wrong = {
            "train_decoder": self.autoencoding.train_decoder,
            "lora": self.autoencoding.lora or self.fine_tuning.lora,
            "distillation": self.fine_tuning.distillation,
            "full_text or mixed": self.fine_tuning.full_text or self.fine_tuning.mixed,
            "whole_passages": self.fine_tuning.whole_passages,
            "max_minutes": any(setting.max_minutes for setting in settings),
        }
        if named := [name for name, value in wrong.items() if value]:
            raise ConfigError(
                "recipe of an ablation", expected="stages bounded by steps, a frozen decoder in autoencoding, no lora "
                "or distillation, no text beside memories, no whole passages", got=", ".join(named),
                remedy="Leave these out of the recipe; whole_passages is 0.5 unless it is set to 0.",
            )  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """What trained weights depend on, as JSON gives it back; the lowest rate decides how long a table is."""
        values = {
            "autoencoding": asdict(self.autoencoding), "fine_tuning": asdict(self.fine_tuning), "seed": self.seed,
            "lowest_rate": self.all_rates[0], "base": _digest(self.base),
        }  # fmt: skip
        described: dict[str, Any] = json.loads(json.dumps(values))
        return described


def seeded(recipe: Stage, seed: int) -> Stage:
    """A stage that draws other examples for another seed; seed 0 leaves it as it is."""
    settings = recipe.optimisation
    return replace(recipe, optimisation=replace(settings, seed=settings.seed + 100 * seed))


def autoencode_variant(plan: Plan, variant: str) -> Checkpoint:
    """A variant after autoencoding, or as it starts where it has none; resumes where an earlier run stopped.

    Raises:
        CheckpointError: If the variant's folder was begun with another base, seed or recipe.
    """
    _keep_plan(plan, plan.out / variant)
    checkpoint = start_variant(variant, plan.base, plan.autoencoding, plan.all_rates, plan.seed)
    nn.ModuleList([checkpoint.decoder, checkpoint.compressor]).to(plan.device)
    if variant not in AUTOENCODED:
        return checkpoint
    recipe, codec = plan.autoencoding, TokenCodec(checkpoint.tokenizer)
    stream = _stream(plan, recipe, codec)

    def make(phase: int) -> Callable[[random.Random], Example]:
        return draw_restorations(recipe, phase, codec, checkpoint.config, stream)

    objective = Objective(checkpoint.decoder, checkpoint.compressor, bf16=recipe.optimisation.bf16)
    learned = compressor_parameters(checkpoint)
    _run(plan, plan.out / variant / "ae", recipe, objective, learned).train(make)
    return checkpoint


def fine_tune_variant(plan: Plan, variant: str, checkpoint: Checkpoint) -> None:
    """Let a variant's decoder learn to answer, in place; resumes where an earlier run stopped.

    Args:
        plan: How.
        variant: Its name.
        checkpoint: What `autoencode_variant` gave.
    """
    recipe, codec = plan.fine_tuning, TokenCodec(checkpoint.tokenizer)
    stream = _stream(plan, recipe, codec)
    groups = QuestionGroups.build(find_files(plan.data, recipe.questions, "qa", QUESTION_SUFFIXES), plan.out)

    def make(phase: int) -> Callable[[random.Random], Example]:
        return question_tasks(recipe, phase, codec, checkpoint.config, stream, groups).draw(recipe.tasks)

    objective = make_objective(variant, checkpoint, bf16=recipe.optimisation.bf16)
    learned = trainable_parameters(recipe, checkpoint.decoder)
    _run(plan, plan.out / variant / "keft", recipe, objective, learned).train(make)


def _run(
    plan: Plan, out: Path, recipe: AutoencodeRecipe | KeftRecipe, objective: Objective, learned: Sequence[Tensor]
) -> Run:
    return Run(
        out, recipe.optimisation, objective, learned, window=plan.autoencoding.window, phases=recipe.phases,
        device=plan.device,
    )  # fmt: skip


def _stream(plan: Plan, recipe: AutoencodeRecipe | KeftRecipe, codec: TokenCodec) -> np.ndarray:
    return token_stream(find_files(plan.data, recipe.text, "text", TEXT_SUFFIXES), codec, codec.end, plan.out)


def _keep_plan(plan: Plan, folder: Path) -> None:
    """Save the plan in a variant's folder; CheckpointError if training there was begun with another one."""
    kept, values = folder / PLAN, plan.describe()
    if kept.exists() and json.loads(kept.read_text(encoding="utf-8")) != values:
        raise CheckpointError(
            f"variant {folder.name}", expected=f"the base, recipe and seed it was begun with, {PLAN}", got="others",
            remedy="Choose another --out, or go on with the old ones.",
        )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    with beside(kept) as part:
        part.write_text(json.dumps(values, indent=1), encoding="utf-8")


def _digest(base: Path) -> str:
    """Of the base's weights and tokenizer."""
    decoder, tokenizer = load_decoder(base, None)
    return fingerprint(decoder.state_dict(), GMSAConfig(), tokenizer)
