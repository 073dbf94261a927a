import logging

import pytest
import torch

from gmsa_rag.errors import InputTypeError
from gmsa_rag.inference import loading
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.training.loop import Run
from gmsa_rag.training.objective import Objective
from gmsa_rag.training.recipe import Optimisation


@pytest.mark.parametrize("name", [None, 5, b"gmsa-mini"])
def test_a_checkpoint_has_a_name(name):
    with pytest.raises(InputTypeError, match="a str or a path"):
        GMSA.from_pretrained(name)


@pytest.fixture
def warned(monkeypatch, caplog):
    """What is said on a CPU with instructions for bfloat16, or without."""

    def on(supported):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
        loading.warn_of_slow_dtype.cache_clear()
        caplog.set_level(logging.WARNING, logger=loading.__name__)
        return lambda: [record.getMessage() for record in caplog.records if "bfloat16" in record.getMessage()]

    yield on
    loading.warn_of_slow_dtype.cache_clear()


@pytest.mark.parametrize(("supported", "times"), [(False, 1), (True, 0)])
def test_bfloat16_without_instructions_is_warned_of_once(gmsa, tmp_path, warned, supported, times):
    said = warned(supported)
    gmsa.save_pretrained(tmp_path / "checkpoint")
    for _ in range(2):
        GMSA.from_pretrained(tmp_path / "checkpoint", device="cpu", dtype="bfloat16")
    assert len(said()) == times
    assert all("use float32" in message for message in said())


def test_float32_is_not_warned_of(gmsa, tmp_path, warned):
    said = warned(False)
    gmsa.save_pretrained(tmp_path / "checkpoint")
    GMSA.from_pretrained(tmp_path / "checkpoint", device="cpu")
    assert not said()


def test_where_torch_cannot_tell_nothing_is_said(warned, monkeypatch):
    said = warned(False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    loading.warn_of_slow_dtype("cpu", torch.bfloat16)
    assert not said()


@pytest.mark.parametrize(("bf16", "times"), [(True, 1), (False, 0)])
def test_training_warns_of_it_too(make_base, tmp_path, warned, bf16, times):
    said = warned(False)
    decoder = make_base()
    Run(
        tmp_path / "run",
        Optimisation(steps=1, bf16=bf16),
        Objective(decoder, bf16=bf16),
        decoder.parameters(),
        window=8,
    )
    assert len(said()) == times
