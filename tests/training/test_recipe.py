import pytest

from gmsa_rag.errors import ConfigError
from gmsa_rag.modeling.lora import LoraSettings
from gmsa_rag.training.recipe import Distillation, Optimisation
from tests.training.stages import AUTOENCODE, KEFT, changed

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
    ],
)
def test_a_fine_tuning_that_makes_no_sense_is_a_typed_error(settings, message):
    with pytest.raises(ConfigError, match=message):
        changed(KEFT, **settings)


@pytest.mark.parametrize(("weight", "temperature"), [(0.0, 1.0), (1.5, 1.0), (0.5, 0.0), (0.5, -1.0)])
def test_a_distillation_that_makes_no_sense_is_a_typed_error(weight, temperature):
    with pytest.raises(ConfigError, match="0 < weight <= 1"):
        Distillation(weight, temperature)


def test_an_unknown_cross_entropy_is_a_typed_error():
    with pytest.raises(ConfigError, match="chunked, liger"):
        Optimisation(steps=1, cross_entropy="fused")


def test_a_number_written_as_text_is_named():
    with pytest.raises(TypeError, match="clip is the text"):
        Optimisation(steps=1, clip="1e-3")  # type: ignore[arg-type]
    assert Optimisation(steps=1, attention="eager").attention == "eager"
