import copy
import dataclasses

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from gmsa_rag.errors import ConfigError
from gmsa_rag.training.optimisers import check_whole, make_optimiser
from gmsa_rag.training.recipe import Optimisation

MUON = Optimisation(steps=8, optimiser="muon", learning_rate=1e-2, weight_decay=0.1)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(20, 24), nn.Linear(24, 40), nn.LayerNorm(40), nn.Linear(40, 24, bias=False))


def optimiser_of(model, settings=MUON):
    return make_optimiser(list(model.parameters()), settings, embeddings=[model[0].weight])


def backward(model):
    tokens = torch.arange(20)
    (model(tokens) - torch.linspace(-1, 1, 24)).square().sum().backward()


def step(model, optimiser):
    backward(model)
    optimiser.step()
    optimiser.zero_grad()


def weights(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


def cosine(one, other):
    return float(torch.cosine_similarity(one.flatten(), other.flatten(), dim=0))


def orthogonal(matrix):
    """What Muon's iteration comes near to: the matrix with all of its singular values at 1."""
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right


@pytest.mark.parametrize("layer", [1, 3])
def test_matrices_move_by_orthogonal_steps_of_adamw_size(model, layer):
    weight = model[layer].weight
    optimiser, before = optimiser_of(model), weight.detach().clone()
    backward(model)
    gradient, wanted = weight.grad.clone(), -orthogonal(weight.grad) * 0.2 * max(weight.shape) ** 0.5 * 1e-2
    optimiser.step()
    moved = weight.detach() - before * (1 - MUON.learning_rate * MUON.weight_decay)
    assert 0.7 < moved.norm() / wanted.norm() < 1.2
    assert cosine(moved, wanted) > max(0.85, cosine(-gradient, wanted) + 0.2)


def test_what_muon_is_not_for_moves_as_with_adamw(model):
    twin = copy.deepcopy(model)
    step(model, optimiser_of(model))
    step(twin, optimiser_of(twin, dataclasses.replace(MUON, optimiser="adamw")))
    for (name, found), expected in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(found, expected) == (name not in ("1.weight", "3.weight"))


def test_the_groups_govern_both_also_where_accelerate_has_loaded_a_state(model):
    prepared, optimiser = Accelerator(cpu=True).prepare(model, optimiser_of(model))
    before = weights(prepared)
    for group in optimiser.param_groups:
        group["lr"] = 0.0
    step(prepared, optimiser)
    assert all(torch.equal(*pair) for pair in zip(before, weights(prepared), strict=True))
    for group in optimiser.param_groups:
        group["lr"] = 1e-2
    step(prepared, optimiser)
    assert not any(torch.equal(*pair) for pair in zip(before, weights(prepared), strict=True))


def test_a_saved_state_goes_on_as_if_it_had_not_stopped(model):
    optimiser = optimiser_of(model)
    for _ in range(3):
        step(model, optimiser)
    twin = copy.deepcopy(model)
    other = optimiser_of(twin)
    other.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    for _ in range(2):
        step(model, optimiser)
        step(twin, other)
    assert all(torch.equal(*pair) for pair in zip(weights(model), weights(twin), strict=True))


def test_a_closure_is_called_with_gradients(model):
    optimiser = optimiser_of(model)

    def closure():
        optimiser.zero_grad()
        backward(model)
        return 7.0

    before = weights(model)
    assert optimiser.step(closure) == 7.0
    assert not any(torch.equal(*pair) for pair in zip(before, weights(model), strict=True))


def test_tables_alone_are_left_to_adamw(model):
    optimiser = optimiser_of(nn.Sequential(model[0]))
    assert [len(group["params"]) for group in optimiser.param_groups] == [0, 1, 0]


def test_adamw_is_the_default(model):
    assert type(optimiser_of(model, Optimisation(steps=1))) is torch.optim.AdamW


def test_sharded_matrices_are_refused(model, monkeypatch):
    monkeypatch.setattr("gmsa_rag.training.optimisers.DTensor", nn.Parameter)
    with pytest.raises(ConfigError, match="whole matrices in every process"):
        check_whole(list(model.parameters()), MUON)
    check_whole(list(model.parameters()), Optimisation(steps=1))


def test_an_unknown_optimiser_is_refused():
    with pytest.raises(ConfigError, match="one of adamw, muon"):
        Optimisation(steps=1, optimiser="sgd")
