import dataclasses

import pytest

from gmsa_rag.errors import ConfigError
from gmsa_rag.modeling.lora import LoraSettings
from gmsa_rag.training.recipe import Distillation, Optimisation, Phase, PruneRecipe
from tests.training.stages import AUTOENCODE, KEFT, PRETRAIN, changed

LORA = LoraSettings(rank=4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"save": "weights"}, "full, adapters"),
        ({"save": "adapters", "train_decoder": False}, "lora, and a frozen decoder"),
        ({"save": "adapters", "lora": LORA, "train_decoder": True}, "lora, and a frozen decoder"),
        ({"frozen_dtype": "float16"}, "float32, bfloat16"),
        ({"frozen_dtype": "bfloat16"}, "nothing is computed in bfloat16"),
        ({"noise": 1.0}, "0 or more, below 1"),
        ({"tasks": {"restor": 1.0}}, "some of restore, continue, quote, cloze, got .'restor'"),
        ({"tasks": {"question": 1.0}}, "some of restore, continue, quote, cloze, got .'question'"),
        ({"tasks": {"restore": 0.0}}, "one of them above"),
        ({"tasks": {"restore": 1.0, "cloze": -0.5}}, "weights of 0 or more"),
        ({"templates": {"restor_template": "{memory}"}}, "templates: .* got .'restor_template'"),
        ({"templates": {"restore_template": "Restore:"}}, "restore_template: .*{memory} in it once"),
        ({"templates": {"answer_template": "{passages}"}}, "{passages} and {question} in it once"),
        ({"phases": ()}, "phases: expected at least one"),
        ({"text": "wikipedia_en"}, "text: expected a list of names"),
        ({"encoder_layers": 0}, "encoder_layers: expected a whole number, 1 or more"),
        ({"window": 0}, "window: expected a whole number"),
    ],
)
def test_an_autoencoding_that_makes_no_sense_is_a_typed_error(settings, message):
    with pytest.raises(ConfigError, match=message):
        changed(AUTOENCODE, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trainable": "heads"}, "qkv, attention, lora, all"),
        ({"trainable": "lora"}, "lora settings with trainable: lora"),
        ({"lora": LORA}, "lora settings with trainable: lora"),
        ({"save": "weights"}, "full, adapters"),
        ({"frozen_dtype": "float16"}, "float32, bfloat16"),
        ({"frozen_dtype": "bfloat16"}, "nothing is computed in bfloat16"),
        ({"noise": 1.0}, "0 or more, below 1"),
        ({"tasks": {"sing": 1.0}}, "some of .*question, got .'sing'"),
        ({"full_text": 15}, "full_text: expected a number from 0 to 1, got 15"),
        ({"unanswerable": -3}, "unanswerable: expected a number from 0 to 1"),
        ({"whole_passages": True}, "whole_passages: expected a number from 0 to 1"),
        ({"questions": "squad"}, "questions: expected a list of names"),
        ({"max_positions": 0}, "max_positions: expected a whole number"),
        ({"phases": ()}, "phases: expected at least one"),
    ],
)
def test_a_fine_tuning_that_makes_no_sense_is_a_typed_error(settings, message):
    with pytest.raises(ConfigError, match=message):
        changed(KEFT, **settings)


@pytest.mark.parametrize(("weight", "temperature"), [(0.0, 1.0), (1.5, 1.0), (0.5, 0.0), (0.5, -1.0)])
def test_a_distillation_that_makes_no_sense_is_a_typed_error(weight, temperature):
    with pytest.raises(ConfigError, match="0 < weight <= 1"):
        Distillation(weight, temperature)


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 0}, {"save_every": 0}, {"accumulate": 0}, {"pool": 0}, {"batch_tokens": 0.5}, {"pad_to": 0},
        {"warmup": -1}, {"workers": -1}, {"learning_rate": -1.0}, {"encoder_weight": -0.5}, {"clip": 0}, {"seed": -1},
        {"learning_rate": float("nan")}, {"encoder_weight": 0.0}, {"max_minutes": 0}, {"seed": 2**32},
    ],
    ids=str,
)  # fmt: skip
def test_an_optimisation_that_makes_no_sense_is_a_typed_error(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Optimisation(**{"steps": 1} | settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rates": ()}, "rates"), ({"rates": (0,)}, "1 or more each"), ({"rates": (2.5,)}, "whole numbers"),
        ({"rates": 4}, "a list"), ({"windows": (48, 16)}, "the shortest passage"), ({"windows": (16,)}, "two whole"),
        ({"windows": (0, 16)}, "1 or more"), ({"until": 2.0}, "until"), ({"max_steps": 0}, "max_steps"),
    ],
    ids=str,
)  # fmt: skip
def test_a_phase_that_makes_no_sense_is_a_typed_error(settings, message):
    with pytest.raises(ConfigError, match=message):
        Phase(**{"rates": (4,), "windows": (16, 32)} | settings)


def test_a_base_of_no_size_is_a_typed_error():
    with pytest.raises(ConfigError, match="vocab_size"):
        dataclasses.replace(PRETRAIN, vocab_size=0)
    with pytest.raises(ConfigError, match="text: expected a list of names"):
        dataclasses.replace(PRETRAIN, text="rivers")
    with pytest.raises(ConfigError, match="num_hidden_layers"):
        PruneRecipe(("rivers",), num_hidden_layers=0, intermediate_size=8, vocab_size=300)


def test_an_unknown_cross_entropy_is_a_typed_error():
    with pytest.raises(ConfigError, match="chunked, liger"):
        Optimisation(steps=1, cross_entropy="fused")


def test_a_number_written_as_text_is_named():
    with pytest.raises(TypeError, match="clip is the text"):
        Optimisation(steps=1, clip="1e-3")  # type: ignore[arg-type]
    assert Optimisation(steps=1, attention="eager").attention == "eager"
