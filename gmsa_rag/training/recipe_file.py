"""Recipe files: YAML with a section a stage, and the copy kept beside a run."""

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar

import yaml

from gmsa_rag.errors import CheckpointError, ConfigError
from gmsa_rag.modeling.lora import LoraSettings
from gmsa_rag.training.recipe import (
    AutoencodeRecipe,
    Distillation,
    KeftRecipe,
    Optimisation,
    Phase,
    PretrainRecipe,
    PruneRecipe,
)
from gmsa_rag.writing import beside

RECIPES = Path(__file__).parent / "recipes"
# How long a run lasts and how fast it goes may change while it goes on, and what mends one that diverged.
FREE = ("steps", "max_minutes", "compile", "workers", "save_every", "learning_rate", "clip")
Stage = TypeVar("Stage", PruneRecipe, PretrainRecipe, AutoencodeRecipe, KeftRecipe)
_SECTIONS = {PruneRecipe: "prune", PretrainRecipe: "pretrain", AutoencodeRecipe: "autoencode", KeftRecipe: "keft"}
_NESTED = {"optimisation": Optimisation, "lora": LoraSettings, "distillation": Distillation}


def load_recipe(path: Path, kind: type[Stage], *, steps: int | None = None) -> Stage:
    """Read one stage of a recipe file.

    Args:
        path: YAML with sections `prune`, `pretrain`, `autoencode`, `keft`; a bundled recipe's bare name works too.
        kind: The stage's dataclass.
        steps: In the place of the recipe's steps; None for these.

    Raises:
        ConfigError: If the file or the section is missing, a field is unknown or a required one missing, or a value
            makes no sense.
    """
    if not path.exists() and path.name == str(path):
        path = RECIPES / f"{path.name.removesuffix('.yaml')}.yaml"
    try:
        section = yaml.safe_load(path.read_text(encoding="utf-8"))[_SECTIONS[kind]]
        if steps is not None:
            section["optimisation"]["steps"] = steps
        stage: Stage = _build(kind, section)
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(
            f"recipe {path.name}",
            expected=f"a YAML file with a valid section {_SECTIONS[kind]!r}",
            got=f"{type(error).__name__}: {error}",
            remedy=f"Bundled ones to start from: {', '.join(sorted(p.stem for p in RECIPES.glob('*.yaml')))}.",
        ) from error
    return stage


def keep_recipe(recipe: PruneRecipe | PretrainRecipe | AutoencodeRecipe | KeftRecipe, out: Path, **more: Any) -> None:
    """Save a stage's recipe in its directory, and what else it is a matter of.

    Raises:
        CheckpointError: If a run there was started with another one; the settings in `FREE` may differ.
    """
    kept = out / "recipe.json"
    values = json.loads(json.dumps(dataclasses.asdict(recipe) | more))
    if kept.exists() and _lasting(json.loads(kept.read_text(encoding="utf-8"))) != _lasting(values):
        raise CheckpointError(
            f"run in {out}",
            expected=f"the recipe it was started with, {kept.name}",
            got="another recipe or base",
            remedy="Choose another --out, or go on with the old recipe.",
        )
    out.mkdir(parents=True, exist_ok=True)
    with beside(kept) as part:  # several processes write and read it at once
        part.write_text(json.dumps(values, indent=1), encoding="utf-8")


def _lasting(values: dict[str, Any]) -> dict[str, Any]:
    """What may not change while a run goes on."""
    optimisation = values.get("optimisation", {})
    return {**values, "optimisation": {k: v for k, v in optimisation.items() if k not in FREE}}


def _build(kind: type[Any], values: dict[str, Any]) -> Any:
    values = dict(values)
    for name, nested in _NESTED.items():
        if values.get(name) is not None:
            values[name] = _build(nested, values[name])
    if "phases" in values:
        values["phases"] = tuple(_build(Phase, phase) for phase in values["phases"])
    names = {f.name for f in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - names):
        raise TypeError(f"unknown fields {unknown}")
    return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
