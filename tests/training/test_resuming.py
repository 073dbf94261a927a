import json

import pytest
import torch
from torch import nn

from gmsa_rag.errors import CheckpointError
from gmsa_rag.training.resuming import digest_weights, load_state, save_state


def trained(steps=3, width=4, seed=0):
    """A little model and its optimiser after some steps."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(width, 3), nn.LayerNorm(3))
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    for _ in range(steps):
        step(model, optimiser)
    return model, optimiser


def step(model, optimiser):
    model(torch.linspace(-1, 1, 2 * model[0].in_features).view(2, -1)).square().sum().backward()
    optimiser.step()
    optimiser.zero_grad()


def save(folder, number, model, optimiser, **more):
    save_state(folder, {"step": number, **more}, list(model.parameters()), optimiser)


def test_weights_moments_and_place_come_back(tmp_path):
    model, optimiser = trained()
    save(tmp_path, 3, model, optimiser, places=[{"pool": 1, "used": 2}], loss=0.25)
    other, its = trained(steps=0, seed=1)
    assert load_state(tmp_path, list(other.parameters()), its) == {
        "step": 3, "places": [{"pool": 1, "used": 2}], "loss": 0.25
    }  # fmt: skip
    for _ in range(2):  # moments and step count matter from here on
        step(model, optimiser)
        step(other, its)
    for expected, got in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(expected, got)


def test_there_is_nothing_to_load_where_nothing_was_saved(tmp_path):
    model, optimiser = trained(steps=0)
    before = [parameter.clone() for parameter in model.parameters()]
    assert load_state(tmp_path / "resume", list(model.parameters()), optimiser) is None
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


def test_another_start_is_refused_and_nothing_is_changed(tmp_path):
    save(tmp_path / "resume", 3, *trained(), start="one")
    other, its = trained(steps=0)
    before = [parameter.clone() for parameter in other.parameters()]
    with pytest.raises(CheckpointError, match="that it was started with"):
        load_state(tmp_path / "resume", list(other.parameters()), its, start="another")
    assert all(torch.equal(*pair) for pair in zip(before, other.parameters(), strict=True))
    assert load_state(tmp_path / "resume", list(other.parameters()), its, start="one")["step"] == 3


@pytest.mark.parametrize("change", [lambda m: m[0].weight.data.mul_(2), lambda m: m[1].bias.data.add_(1e-3)])
def test_a_digest_tells_weights_apart_whatever_their_dtype(change):
    model, same = trained()[0].bfloat16(), trained()[0].bfloat16().float()
    assert digest_weights(model) == digest_weights(same)
    change(same)
    assert digest_weights(model) != digest_weights(same)


@pytest.mark.parametrize("drop", [0, 1])
def test_other_shapes_are_refused_and_nothing_is_changed(tmp_path, drop):
    save(tmp_path / "resume", 3, *trained())
    other, its = trained(steps=0, width=4 + (not drop))
    before = [parameter.clone() for parameter in other.parameters()]
    with pytest.raises(CheckpointError, match="choose another --out"):
        load_state(tmp_path / "resume", list(other.parameters())[drop:], its)
    assert all(torch.equal(*pair) for pair in zip(before, other.parameters(), strict=True))


def test_only_the_latest_is_kept(tmp_path):
    model, optimiser = trained()
    save(tmp_path, 3, model, optimiser)
    step(model, optimiser)
    save(tmp_path, 4, model, optimiser)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"state.json", "4-weights.safetensors", "4-optimiser.safetensors"}


def test_a_save_that_was_cut_short_leaves_the_one_before(tmp_path, monkeypatch):
    model, optimiser = trained()
    save(tmp_path, 3, model, optimiser)
    expected = [parameter.clone() for parameter in model.parameters()]
    step(model, optimiser)
    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", lambda *_: pytest.fail("killed here"))  # after the weights, before the place
        with pytest.raises(pytest.fail.Exception):
            save(tmp_path, 4, model, optimiser)
    assert (tmp_path / "4-weights.safetensors").exists()
    other, its = trained(steps=0, seed=1)
    assert load_state(tmp_path, list(other.parameters()), its)["step"] == 3
    assert all(torch.equal(*pair) for pair in zip(expected, other.parameters(), strict=True))


def test_a_process_that_does_not_write_leaves_the_folder_alone(tmp_path):
    model, optimiser = trained()
    save_state(tmp_path / "resume", {"step": 3}, list(model.parameters()), optimiser, writes=False)
    assert not (tmp_path / "resume").exists()
