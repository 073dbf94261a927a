"""Recipes: one frozen dataclass a training stage; `recipe_file.py` reads them from YAML."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from gmsa_rag.errors import ConfigError
from gmsa_rag.modeling.lora import LoraSettings
from gmsa_rag.training.recipe_checks import (
    check_choice,
    check_count,
    check_names,
    check_phase,
    check_positive,
    check_share,
    check_tasks,
    check_templates,
)

TRAINABLE = ("qkv", "attention", "lora", "all")
SAVED = ("full", "adapters")
TEXT_TASKS = ("restore", "continue", "quote", "cloze")
QUESTION_TASKS = (*TEXT_TASKS, "question")
MAX_SEED = 2**32 - 1  # numpy takes no larger one


@dataclass(frozen=True)
class Optimisation:
    """How a stage steps.

    Attributes:
        steps: Optimiser steps in all; the learning rate falls to a tenth along a cosine over them.
        max_minutes: End after this long, the learning rate falling in time for it; None for no limit. A run that ends
            by time depends on the machine: only one that ends by steps gives the same weights again.
        batch_tokens: Positions a batch may hold, those of encoder and decoder together, padding included.
        encoder_weight: What an encoder token counts there. By time it is the compressor's layers to the decoder's, and
            a third of that where they are frozen; 1 is safe for memory.
        accumulate: Batches whose gradients make one step.
        optimiser: "adamw", or "muon": that for the layers' matrices, AdamW for all else. A step learns more and takes
            longer, the less so the larger its batch; matrices must not be sharded.
        learning_rate: Peak, reached after `warmup` steps.
        warmup: Steps of linear warm-up.
        betas: AdamW's.
        weight_decay: On matrices, embeddings included, not on norms.
        clip: Largest gradient norm.
        save_every: Steps between checkpoints to resume from.
        seed: Of everything drawn.
        bf16: Whether to compute in bfloat16 (what learns stays float32).
        compile: Whether to run the layers through torch.compile; it needs a C++ compiler.
        gradient_checkpointing: Whether to compute activations again in the backward pass, for large models.
        attention: Attention implementation of transformers, "" for its own choice. "eager" trains faster on a CPU.
        cross_entropy: "chunked", or "liger" for Liger's fused kernel on a GPU.
        pool: Examples drawn at once and sorted by length into batches.
        workers: Processes that draw examples; 0 draws them in the training process.
        pad_to: Lengths are padded to a multiple of this, so that compiled code meets fewer shapes.
    """

    steps: int
    max_minutes: float | None = None
    batch_tokens: int = 4096
    encoder_weight: float = 1.0
    accumulate: int = 1
    optimiser: str = "adamw"
    learning_rate: float = 1e-3
    warmup: int = 100
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    clip: float = 1.0
    save_every: int = 500
    seed: int = 0
    bf16: bool = True
    compile: bool = False
    gradient_checkpointing: bool = False
    attention: str = ""
    cross_entropy: str = "chunked"
    pool: int = 512
    workers: int = 0
    pad_to: int = 1

    def __post_init__(self) -> None:
        for field_ in dataclasses.fields(self):
            value = getattr(self, field_.name)
            if isinstance(value, str) and field_.type is not str:
                # YAML reads 1e-3 as a text, 1.0e-3 as a number
                raise TypeError(f"{field_.name} is the text {value!r}; write a number with a point, as 1.0e-3")
        check_choice("cross_entropy", self.cross_entropy, ("chunked", "liger"))
        check_choice("optimiser", self.optimiser, ("adamw", "muon"))
        for name in ("steps", "batch_tokens", "accumulate", "save_every", "pool", "pad_to"):
            check_count(name, getattr(self, name))
        for name in ("warmup", "workers", "seed"):
            check_count(name, getattr(self, name), 0)
        for name in ("encoder_weight", "clip"):
            check_positive(name, getattr(self, name))
        check_positive("learning_rate", self.learning_rate, zero=True)
        if self.max_minutes is not None:
            check_positive("max_minutes", self.max_minutes)
        if self.seed > MAX_SEED:
            raise ConfigError("seed", expected=f"at most {MAX_SEED}", got=str(self.seed), remedy="Choose another.")


@dataclass(frozen=True)
class PruneRecipe:
    """Before stage 0, where a pretrained model is to be had: a small base cut out of it.

    Attributes:
        text: Text files to measure on, by name.
        num_hidden_layers: Layers that are left.
        intermediate_size: Width that is left of the MLPs.
        vocab_size: Tokens that are left, control tokens included.
        max_position_embeddings: Positions of the small base.
        calibration_rows: Rows of 256 tokens of plain text to measure on, and as many of repeated text.
    """

    text: tuple[str, ...]
    num_hidden_layers: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int = 4096
    calibration_rows: int = 4

    def __post_init__(self) -> None:
        check_names("text", self.text)
        for name in ("num_hidden_layers", "intermediate_size", "vocab_size", "max_position_embeddings"):
            check_count(name, getattr(self, name))
        if not self.text or self.calibration_rows < 1:
            raise ConfigError(
                "pruning", expected="a text and at least one row to measure on",
                got=f"text {self.text}, calibration_rows {self.calibration_rows}", remedy="Correct the recipe.",
            )  # fmt: skip


@dataclass(frozen=True)
class PretrainRecipe:
    """Stage 0: language modelling of a small base, from scratch or from a pruned one.

    Attributes:
        optimisation: How it steps.
        text: Text files to train on, by name.
        architecture: model_type and fields of a transformers config; not read where a base is trained on.
        vocab_size: Of the byte-level BPE trained first; not read where a base is trained on.
        window: Tokens a row.
    """

    optimisation: Optimisation
    text: tuple[str, ...]
    architecture: dict[str, Any] = field(default_factory=dict)
    vocab_size: int = 8192
    window: int = 256

    def __post_init__(self) -> None:
        check_names("text", self.text)
        check_count("vocab_size", self.vocab_size)
        check_count("window", self.window)


@dataclass(frozen=True)
class Phase:
    """A part of the rate curriculum.

    Attributes:
        rates: Drawn evenly, one a passage.
        windows: Shortest and longest passage, in tokens.
        until: Leave when the token accuracy of the last steps reaches this.
        max_steps: Leave after this many steps anyway.
    """

    rates: tuple[int, ...]
    windows: tuple[int, int]
    until: float = 1.0
    max_steps: int = 1_000_000

    def __post_init__(self) -> None:
        check_phase(self.rates, self.windows)
        check_share("until", self.until)
        check_count("max_steps", self.max_steps)


@dataclass(frozen=True)
class AutoencodeRecipe:
    """Stage 1, AE: restore a passage from its soft tokens.

    Attributes:
        optimisation: How it steps.
        text: Text files to train on, by name.
        phases: The rate curriculum; the last phase lasts to the end.
        encoder_layers: Layers of the encoder.
        lsa_layers: Layers of the layer semantic alignment.
        window: The compressor's window.
        tasks: Weights of `restore`, `continue`, `quote`, `cloze` in the last phase; before it, restoration alone.
        noise: Share of a restoration's tokens that the decoder reads as others of the passage, so that it can go on
            after a mistake of its own; below 1.
        lora: LoRA of the encoder, as in the paper; None trains all of its weights.
        train_decoder: Whether the decoder learns too; the paper freezes it, a base trained from scratch needs it.
        frozen_dtype: Of the weights that do not learn.
        save: "full", or "adapters": LoRA and LSA alone, the base named by its id and revision.
        templates: restore_template, passage_template, answer_template, cites and no_answer of the checkpoint.
    """

    optimisation: Optimisation
    text: tuple[str, ...]
    phases: tuple[Phase, ...]
    encoder_layers: int = 8
    lsa_layers: int = 1
    window: int = 256
    tasks: dict[str, float] = field(default_factory=lambda: {"restore": 1.0})
    noise: float = 0.0
    lora: LoraSettings | None = None
    train_decoder: bool = False
    frozen_dtype: str = "float32"
    save: str = "full"
    templates: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_stage(self, TEXT_TASKS)
        check_templates(self.templates)
        for name in ("encoder_layers", "lsa_layers", "window"):
            check_count(name, getattr(self, name))
        if self.save == "adapters" and (self.lora is None or self.train_decoder):
            raise ConfigError(
                "save: adapters", expected="lora, and a frozen decoder", got="weights that are no adapters",
                remedy="Set lora and train_decoder: false, or save: full.",
            )  # fmt: skip


@dataclass(frozen=True)
class Distillation:
    """Learning from the answers that the decoder, as it was before the stage, gives on full text.

    Attributes:
        weight: Share of the loss, 0 to 1: Kullback-Leibler divergence from the full-text reader's distribution.
        temperature: Both distributions are softened by it.
    """

    weight: float = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 1 or self.temperature <= 0:
            raise ConfigError(
                "distillation", expected="0 < weight <= 1 and temperature > 0",
                got=f"{self.weight}, {self.temperature}", remedy="Change the recipe, or leave distillation out.",
            )  # fmt: skip


@dataclass(frozen=True)
class KeftRecipe:
    """Stage 2, KEFT: the compressor and all embeddings frozen, the decoder learns to answer from soft tokens.

    Attributes:
        optimisation: How it steps.
        text: Text files for `restore`, `continue`, `quote` and `cloze`, by name.
        questions: Question files, by name.
        phases: A curriculum as in autoencoding: before the last phase, questions are asked of the few sentences that
            hold their answers, cut to the phase's windows; in the last one also of whole passages.
        tasks: Weights of `restore`, `continue`, `quote`, `cloze`, `question`.
        trainable: What learns of the decoder: "qkv", "attention", "lora" or "all" but the embeddings.
        lora: With `trainable: lora`.
        distillation: From the full-text answers of the same decoder; None for none.
        full_text: Share of question prompts with text in the place of all memories.
        mixed: Share of passages, in the other prompts, that stay text beside memories.
        unanswerable: Share of question prompts whose gold passage is taken out; the answer is then `no_answer`.
        no_answer: What is said then; "" keeps the checkpoint's.
        refine: Share of question prompts worded as a refinement of an earlier answer.
        own_wording: Share of the others in the checkpoint's own wording, which alone cites.
        distractors: Share of the questions without wrong passages of their own that get one to four of other questions,
            in every phase.
        whole_passages: Share of the last phase's questions that are asked of whole passages. All of them then stand
            among the wrong passages that their rows name; with 0 none do.
        noise: As in autoencoding.
        max_positions: Longest question prompt trained on; a longer one is drawn anew as a cloze.
        frozen_dtype: Of the weights that do not learn.
        save: "full", all of the decoder's weights, or "adapters": its LoRA alone, on a checkpoint of adapters.
    """

    optimisation: Optimisation
    text: tuple[str, ...]
    questions: tuple[str, ...]
    phases: tuple[Phase, ...]
    tasks: dict[str, float]
    trainable: str = "all"
    lora: LoraSettings | None = None
    distillation: Distillation | None = None
    full_text: float = 0.1
    mixed: float = 0.1
    unanswerable: float = 0.0
    no_answer: str = ""
    refine: float = 0.0
    own_wording: float = 0.5
    distractors: float = 0.0
    whole_passages: float = 0.5
    noise: float = 0.0
    max_positions: int = 768
    frozen_dtype: str = "float32"
    save: str = "full"

    def __post_init__(self) -> None:
        _check_stage(self, QUESTION_TASKS)
        check_names("questions", self.questions)
        check_choice("trainable", self.trainable, TRAINABLE)
        for name in (
            "full_text", "mixed", "unanswerable", "refine", "own_wording", "distractors", "whole_passages"
        ):  # fmt: skip
            check_share(name, getattr(self, name))
        check_count("max_positions", self.max_positions)
        if (self.trainable == "lora") != (self.lora is not None):
            raise ConfigError(
                "trainable", expected="lora settings with trainable: lora, and only then",
                got=f"{self.trainable}, lora {self.lora}", remedy="Set both or neither.",
            )  # fmt: skip


def check_frozen_dtype(dtype: str, optimisation: Optimisation) -> None:
    """Raise ConfigError unless weights that do not learn can be kept in this dtype."""
    check_choice("frozen_dtype", dtype, ("float32", "bfloat16"))
    if dtype == "bfloat16" and not optimisation.bf16:
        raise ConfigError(
            "frozen_dtype", expected="float32 where nothing is computed in bfloat16", got=dtype,
            remedy="Set bf16: true, or frozen_dtype: float32.",
        )  # fmt: skip


def _check_stage(recipe: AutoencodeRecipe | KeftRecipe, tasks: tuple[str, ...]) -> None:
    """What both stages that train soft tokens ask of their settings."""
    check_names("text", recipe.text)
    check_choice("save", recipe.save, SAVED)
    check_frozen_dtype(recipe.frozen_dtype, recipe.optimisation)
    check_share("noise", recipe.noise, below=True)
    check_tasks(recipe.tasks, tasks)
    if not recipe.phases:
        raise ConfigError("phases", expected="at least one", got="none", remedy="Correct the recipe.")
