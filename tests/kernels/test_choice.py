import logging

import pytest
import torch

from gmsa_rag.errors import ConfigError, ShapeError
from gmsa_rag.kernels import choice
from gmsa_rag.kernels.choice import choose_kernels, fuses_norms
from gmsa_rag.kernels.reference import RMSNorm, normed_group_merge_reference
from gmsa_rag.modeling.group_merging import group_bounds, group_merge, normed_group_merge

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    for name in (choice.SETTING, "TRITON_INTERPRET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(choice, "_has_triton", lambda: True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_gpu_takes_triton_and_a_cpu_the_reference(dtype):
    assert choose_kernels(CUDA, dtype) == "triton" and fuses_norms(CUDA, dtype)
    assert choose_kernels(CPU, dtype) == "reference" and not fuses_norms(CPU, dtype)


def test_what_triton_cannot_compute_takes_the_reference(monkeypatch):
    assert choose_kernels(CUDA, torch.float64) == "reference"
    monkeypatch.setattr(choice, "_has_triton", lambda: False)
    assert choose_kernels(CUDA, torch.float32) == "reference"
    with pytest.raises(ConfigError, match="no package triton"):
        choose_kernels(CUDA, torch.float32, "triton")


def test_asking_for_triton_where_it_cannot_run_is_an_error(monkeypatch):
    for device, dtype, what in ((CPU, torch.float32, "tensors on cpu"), (CUDA, torch.float64, "torch.float64")):
        with pytest.raises(ConfigError, match=what):
            choose_kernels(device, dtype, "triton")
    states, bounds = torch.randn(6, 4), group_bounds([6], [3])
    with pytest.raises(ConfigError, match="tensors on cpu"):
        normed_group_merge(states, bounds, None, None, "triton")
    monkeypatch.setenv("GMSA_KERNELS", "triton")
    with pytest.raises(ConfigError, match="tensors on cpu"):
        group_merge(states, bounds)


def test_the_setting_is_read_and_an_argument_goes_before_it(monkeypatch):
    monkeypatch.setenv("GMSA_KERNELS", "reference")
    assert choose_kernels(CUDA, torch.float32) == "reference" and fuses_norms(CPU, torch.float32)
    assert choose_kernels(CUDA, torch.float32, "auto") == "triton"
    monkeypatch.setenv("GMSA_KERNELS", "fastest")
    with pytest.raises(ConfigError, match="fastest"):
        choose_kernels(CPU, torch.float32)


def test_a_choice_is_logged_once(caplog):
    choice._log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger=choice.__name__):
        for _ in range(3):
            choose_kernels(CPU, torch.float32)
        choose_kernels(CUDA, torch.float32)
    assert [record.getMessage() for record in caplog.records] == [
        "group merging on cpu: reference, as GMSA_KERNELS=auto says (tensors on cpu)",
        "group merging on cuda: triton, as GMSA_KERNELS=auto says",
    ]


@pytest.mark.parametrize("kernels", [None, "auto", "reference"])
def test_on_a_cpu_the_reference_computes(kernels):
    states, bounds = torch.randn(11, 6, dtype=torch.float64), group_bounds([7, 0, 4], [3, 3, 4])
    norms = RMSNorm(torch.rand(6, dtype=torch.float64), 1e-5), RMSNorm(torch.rand(6, dtype=torch.float64), 1e-3, 1.0)
    expected = normed_group_merge_reference(states, bounds, *norms)
    for got, wanted in zip(normed_group_merge(states, bounds, *norms, kernels), expected, strict=True):
        assert torch.equal(got, wanted)


def test_the_reference_has_exact_gradients():
    bounds = group_bounds([7, 4], [3, 4])
    leaves = [torch.rand(n, 5, dtype=torch.float64)[0 if n == 1 else slice(n)].requires_grad_() for n in (11, 1, 1)]

    def merge(states, token, group):
        return normed_group_merge(states, bounds, RMSNorm(token, 1e-3), RMSNorm(group, 1e-2, 1.0))

    assert torch.autograd.gradcheck(merge, leaves)


def test_shapes_are_checked():
    states, bounds = torch.randn(6, 4), group_bounds([6], [3])
    with pytest.raises(ShapeError, match="norm weight"):
        normed_group_merge(states, bounds, RMSNorm(torch.ones(5), 1e-6), None)
    with pytest.raises(ShapeError, match="bounds"):
        normed_group_merge(states, group_bounds([5], [3]), None, None)
