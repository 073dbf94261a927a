"""Recipes: one frozen dataclass a training stage, read from YAML and saved beside the stage's checkpoint."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from gmsa_rag.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class Optimisation:
    """How a stage steps.

    Attributes:
        steps: Optimiser steps in all; the learning rate falls to a tenth along a cosine over them.
        max_minutes: End after this long, the learning rate falling in time for it; None for no limit.
        batch_tokens: Positions a batch may hold, those of encoder and decoder together.
        learning_rate: Peak, reached after `warmup` steps.
        warmup: Steps of linear warm-up.
        betas: AdamW's.
        weight_decay: On matrices, embeddings included, not on norms.
        clip: Largest gradient norm.
        save_every: Steps between checkpoints to resume from.
        seed: Of everything drawn.
        bf16: Whether to compute in bfloat16 (weights stay float32).
        compile: Whether to run the layers through torch.compile; it needs a C++ compiler.
    """

    steps: int
    max_minutes: float | None = None
    batch_tokens: int = 4096
    learning_rate: float = 1e-3
    warmup: int = 100
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    clip: float = 1.0
    save_every: int = 500
    seed: int = 0
    bf16: bool = True
    compile: bool = False

    def __post_init__(self) -> None:
        for field_ in dataclasses.fields(self):
            value = getattr(self, field_.name)
            if isinstance(value, str):  # YAML reads 1e-3 as a text, 1.0e-3 as a number
                raise TypeError(f"{field_.name} is the text {value!r}; write a number with a point, as 1.0e-3")


@dataclass(frozen=True)
class PretrainRecipe:
    """Stage 0: language modelling of a small base from scratch.

    Attributes:
        optimisation: How it steps.
        text: Text files to train on, by name.
        architecture: model_type and fields of a transformers config.
        vocab_size: Of the byte-level BPE trained first.
        window: Tokens a row.
    """

    optimisation: Optimisation
    text: tuple[str, ...]
    architecture: dict[str, Any]
    vocab_size: int = 8192
    window: int = 256


@dataclass(frozen=True)
class Phase:
    """A part of the rate curriculum.

    Attributes:
        rates: Drawn evenly, one a passage.
        windows: Shortest and longest passage, in tokens.
        until: Leave when the running token accuracy reaches this.
        max_steps: Leave after this many steps anyway.
    """

    rates: tuple[int, ...]
    windows: tuple[int, int]
    until: float = 1.0
    max_steps: int = 1_000_000


@dataclass(frozen=True)
class AutoencodeRecipe:
    """Stage 1, AE: restore a passage from its soft tokens.

    Attributes:
        optimisation: How it steps.
        text: Text files to train on, by name.
        encoder_layers: Layers of the encoder.
        lsa_layers: Layers of the layer semantic alignment.
        window: The compressor's window.
        phases: The rate curriculum; the last phase lasts to the end.
        tasks: Weights of `restore`, `continue`, `quote`, `cloze` in the last phase; before it, restoration alone.
        train_decoder: Whether the decoder learns too; the paper freezes it, a base trained from scratch needs it.
        templates: restore_template, passage_template, answer_template of the checkpoint.
    """

    optimisation: Optimisation
    text: tuple[str, ...]
    phases: tuple[Phase, ...]
    encoder_layers: int = 8
    lsa_layers: int = 1
    window: int = 256
    tasks: dict[str, float] = field(default_factory=lambda: {"restore": 1.0})
    train_decoder: bool = False
    templates: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class KeftRecipe:
    """Stage 2, KEFT: the compressor and all embeddings frozen, the decoder learns to answer from soft tokens.

    Attributes:
        optimisation: How it steps.
        text: Text files for `restore`, `continue`, `quote` and `cloze`, by name.
        questions: Question files, by name.
        phases: A curriculum as in autoencoding: before the last phase, questions are asked of the few sentences that
            hold their answers, cut to the phase's windows; in the last one half of the time of whole passages.
        tasks: Weights of `restore`, `continue`, `quote`, `cloze`, `question`.
        full_text: Share of question prompts with text in the place of memories.
        max_positions: Longest question prompt trained on; a longer one is drawn anew as a cloze.
    """

    optimisation: Optimisation
    text: tuple[str, ...]
    questions: tuple[str, ...]
    phases: tuple[Phase, ...]
    tasks: dict[str, float]
    full_text: float = 0.1
    max_positions: int = 768


Stage = TypeVar("Stage", PretrainRecipe, AutoencodeRecipe, KeftRecipe)
_SECTIONS = {PretrainRecipe: "pretrain", AutoencodeRecipe: "autoencode", KeftRecipe: "keft"}


def load_recipe(path: Path, kind: type[Stage]) -> Stage:
    """Read one stage of a recipe file.

    Args:
        path: YAML with sections `pretrain`, `autoencode`, `keft`; a bundled recipe's bare name works too.
        kind: The stage's dataclass.

    Raises:
        ConfigError: If the file or the section is missing, a field is unknown or a required one missing.
    """
    if not path.exists() and path.name == str(path):
        path = Path(__file__).parent / "recipes" / f"{path.stem}.yaml"
    try:
        section = yaml.safe_load(path.read_text(encoding="utf-8"))[_SECTIONS[kind]]
        stage: Stage = _build(kind, section)
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(
            f"recipe {path.name}",
            expected=f"a YAML file with a valid section {_SECTIONS[kind]!r}",
            got=f"{type(error).__name__}: {error}",
            remedy="See gmsa_rag/training/recipes/gmsa-mini.yaml for a whole one.",
        ) from error
    return stage


def keep_recipe(recipe: PretrainRecipe | AutoencodeRecipe | KeftRecipe, out: Path) -> None:
    """Save a stage's recipe in its directory.

    Raises:
        CheckpointError: If a run there was started with another one; how long it lasts may differ.
    """
    kept = out / "recipe.json"
    values = json.loads(json.dumps(dataclasses.asdict(recipe)))
    if kept.exists() and _lasting(json.loads(kept.read_text(encoding="utf-8"))) != _lasting(values):
        raise CheckpointError(
            f"run in {out}",
            expected=f"the recipe it was started with, {kept.name}",
            got="another recipe",
            remedy="Choose another --out, or go on with the old recipe.",
        )
    out.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(values, indent=1), encoding="utf-8")


def _lasting(values: dict[str, Any]) -> dict[str, Any]:
    """What may not change while a run goes on."""
    optimisation = {k: v for k, v in values["optimisation"].items() if k not in ("steps", "max_minutes", "compile")}
    return {**values, "optimisation": optimisation}


def _build(kind: type[Any], values: dict[str, Any]) -> Any:
    values = dict(values)
    if "optimisation" in values:
        values["optimisation"] = _build(Optimisation, values["optimisation"])
    if "phases" in values:
        values["phases"] = tuple(_build(Phase, phase) for phase in values["phases"])
    names = {f.name for f in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - names):
        raise TypeError(f"unknown fields {unknown}")
    return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
