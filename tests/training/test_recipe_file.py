import json
from pathlib import Path

import pytest
import yaml

from gmsa_rag.errors import CheckpointError, ConfigError
from gmsa_rag.modeling.lora import LoraSettings
from gmsa_rag.training.recipe import AutoencodeRecipe, Distillation, KeftRecipe, Phase, PretrainRecipe, PruneRecipe
from gmsa_rag.training.recipe_file import RECIPES, keep_recipe, load_recipe
from tests.training.stages import AUTOENCODE, KEFT, changed

KINDS = {"prune": PruneRecipe, "pretrain": PretrainRecipe, "autoencode": AutoencodeRecipe, "keft": KeftRecipe}
BUNDLED = sorted(path.stem for path in RECIPES.glob("*.yaml"))


@pytest.mark.parametrize("name", BUNDLED)
def test_every_bundled_recipe_is_whole(name):
    sections = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    assert sections.keys() <= KINDS.keys()
    for section, values in sections.items():
        recipe = load_recipe(Path(name), KINDS[section])
        if section != "prune":
            assert recipe.optimisation.steps == values["optimisation"]["steps"] > 0


def test_the_bundled_recipes_are_known():
    assert {"gmsa-mini", "gmsa-mini-v0", "gmsa-tiny-cpu", "gmsa-qwen3-4b", "gmsa-llama-3.2-3b"} <= set(BUNDLED)


def test_nested_settings_become_their_types(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "keft: {optimisation: {steps: 3, betas: [0.9, 0.99]}, text: [a], questions: [b], tasks: {question: 1.0},"
        " phases: [{rates: [1, 2], windows: [8, 9]}], trainable: lora, lora: {rank: 3},"
        " distillation: {weight: 0.25, temperature: 2.0}}"
    )
    recipe = load_recipe(tmp_path / "r.yaml", KeftRecipe, steps=7)
    assert recipe.optimisation.steps == 7 and recipe.optimisation.betas == (0.9, 0.99)
    assert recipe.phases == (Phase((1, 2), (8, 9)),)
    assert recipe.lora == LoraSettings(rank=3) and recipe.distillation == Distillation(0.25, 2.0)


@pytest.mark.parametrize(
    "text",
    [
        "", "pretrain: {}", "a: [", "[]",
        "pretrain: {optimisation: {steps: 1, speed: 2}, text: [], architecture: {}}",
        "pretrain: {optimisation: {steps: 1, learning_rate: 1e-3}, text: [], architecture: {}}",
        "pretrain: {optimisation: {steps: 1, cross_entropy: fused}, text: [], architecture: {}}",
    ],
)  # fmt: skip
def test_a_bad_recipe_is_a_typed_error(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ConfigError):
        load_recipe(tmp_path / "r.yaml", PretrainRecipe)


def test_the_error_says_what_to_write(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "pretrain: {optimisation: {steps: 1, learning_rate: 1e-3}, text: [], architecture: {}}"
    )
    with pytest.raises(ConfigError, match=r"learning_rate is the text '1e-3'.*1\.0e-3"):
        load_recipe(tmp_path / "r.yaml", PretrainRecipe)


def test_a_missing_recipe_names_the_bundled_ones(tmp_path):
    with pytest.raises(ConfigError, match="gmsa-tiny-cpu"):
        load_recipe(Path("gmsa-huge"), PretrainRecipe)


@pytest.mark.parametrize(
    "free", [{"steps": 9}, {"max_minutes": 3.0}, {"save_every": 5}, {"learning_rate": 0.5}, {"clip": 0.5}]
)
def test_how_long_a_run_lasts_may_change(tmp_path, free):
    keep_recipe(AUTOENCODE, tmp_path)
    keep_recipe(changed(AUTOENCODE, **free), tmp_path)
    kept = json.loads((tmp_path / "recipe.json").read_text())["optimisation"]
    assert {name: kept[name] for name in free} == free


@pytest.mark.parametrize("other", [{"seed": 9}, {"weight_decay": 0.5}, {"accumulate": 2}, {"window": 47}, {"text": ()}])
def test_what_a_run_learns_from_may_not(tmp_path, other):
    keep_recipe(AUTOENCODE, tmp_path)
    with pytest.raises(CheckpointError, match="another recipe"):
        keep_recipe(changed(AUTOENCODE, **other), tmp_path)
    assert json.loads((tmp_path / "recipe.json").read_text())["window"] == 48


def test_another_stage_is_another_recipe(tmp_path):
    keep_recipe(AUTOENCODE, tmp_path)
    with pytest.raises(CheckpointError, match="another recipe"):
        keep_recipe(KEFT, tmp_path)
