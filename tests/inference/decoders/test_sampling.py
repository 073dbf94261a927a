"""What a sampling setting may be."""

import math

import pytest
import torch

from gmsa_rag.errors import ConfigError, GMSAError, InputError, InputTypeError
from gmsa_rag.inference.decoders.sampling import choose_tokens, random_state
from gmsa_rag.inference.generation import COLDEST, HOTTEST, Sampling

MISTYPED = [
    {"max_new_tokens": "16"},
    {"max_new_tokens": 2.5},
    {"max_new_tokens": True},
    {"max_new_tokens": None},
    {"min_new_tokens": "a"},
    {"temperature": "hot"},
    {"temperature": False},
    {"top_p": None},
    {"seed": "x"},
    {"seed": 1.0},
    {"stop": 5},
    {"stop": ["x", None]},
    {"stop": b"x"},
]
NOT_TEXT = {"stop": "\ud800"}
OUT_OF_RANGE = [
    {"max_new_tokens": 0},
    {"max_new_tokens": 10**5000},
    {"min_new_tokens": -1},
    {"temperature": -1.0},
    {"temperature": 1e-40},
    {"temperature": 1e300},
    {"temperature": math.nan},
    {"temperature": 10**400},
    {"top_p": 0},
    {"top_p": 1.5},
    {"top_p": math.nan},
    {"seed": 2**70},
    {"seed": -(2**64)},
    {"stop": ""},
    {"stop": ["x", ""]},
]


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        *((setting, InputTypeError) for setting in MISTYPED),
        *((setting, ConfigError) for setting in OUT_OF_RANGE),
        (NOT_TEXT, InputError),
    ],
)
def test_a_wrong_setting_is_a_typed_error_that_names_it(gmsa, setting, error):
    [name] = setting
    for ask in (Sampling, lambda **setting: gmsa.generate("Hello", **setting)):
        with pytest.raises(GMSAError, match=name) as caught:
            ask(**setting)
        assert type(caught.value) is error


def test_none_leaves_temperature_and_stop_strings_unset(gmsa):
    unset = {"temperature": None, "stop": None}
    expected = gmsa.generate("Hello", max_new_tokens=4)
    assert gmsa.generate("Hello", max_new_tokens=4, **unset) == expected
    assert "".join(gmsa.stream("Hello", max_new_tokens=4, **unset)) == expected


@pytest.mark.parametrize("temperature", [COLDEST, 1, HOTTEST])
@pytest.mark.parametrize("top_p", [5e-324, 0.5, 1])
@pytest.mark.parametrize("seed", [-(2**63), 2**64 - 1])
def test_the_ends_of_the_ranges_can_be_drawn_with(temperature, top_p, seed):
    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
    logits = torch.tensor([[3.0, -torch.inf, -1e4], [-torch.inf, 1e4, -1e4]])
    drawn = choose_tokens(logits, sampling, random_state(sampling, logits.device))
    assert drawn[0] != 1 and drawn[1] != 0
