"""Every file form of a published state dict, and nothing in it taken on trust."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file

from gmsa_rag.errors import CheckpointError
from gmsa_rag.modeling.published import import_published, state_dict
from tests.modeling.published import (
    ALIGNMENT,
    ALPHA,
    BASE,
    ENCODER,
    FIXTURE,
    LORA_A,
    LORA_B,
    QUERY,
    assert_equal,
    weights,
    written,
)


@pytest.fixture
def state():
    """The fixture's state dict, to be changed."""
    return load_file(FIXTURE / "model.safetensors")


@pytest.fixture(scope="module")
def imported():
    return import_published(FIXTURE, BASE, lora_alpha=ALPHA)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "other.safetensors", "gmsa.pt"])
def test_every_kind_of_file_gives_the_same(imported, state, tmp_path, name):
    file = written(state, tmp_path, name)
    assert_equal(weights(import_published(file, BASE, lora_alpha=ALPHA)), weights(imported))
    if name.startswith(("model", "pytorch_model")):
        assert_equal(weights(import_published(tmp_path, BASE, lora_alpha=ALPHA)), weights(imported))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_shards_are_read_by_their_index(imported, state, tmp_path, name):
    shard(state, tmp_path, name)
    assert_equal(weights(import_published(tmp_path, BASE, lora_alpha=ALPHA)), weights(imported))


def shard(state, folder, name="model.safetensors"):
    names = sorted(state)
    places = {}
    for number, part in enumerate((names[::2], names[1::2])):
        written({name: state[name] for name in part}, folder, f"{number}-{name}")
        places |= dict.fromkeys(part, f"{number}-{name}")
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return places


def test_a_wrapper_s_prefix_is_removed(imported, state, tmp_path):
    file = written({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path)
    assert_equal(weights(import_published(file, BASE, lora_alpha=ALPHA)), weights(imported))


UNUSED = (
    "encoder.base_model.model.lm_head.weight",
    "memory_fusion_layer.lm_head.weight",
    "memory_fusion_layer.model.embed_tokens.weight",
    "semantic_alignment_layer.weight",
    "semantic_alignment_layer.bias",
)


def test_the_unused_tensors_may_be_left_out(imported, state, tmp_path):
    for name in UNUSED:
        del state[name]
    assert_equal(weights(import_published(written(state, tmp_path), BASE, lora_alpha=ALPHA)), weights(imported))


def test_every_other_tensor_is_needed(state, tmp_path, monkeypatch):
    monkeypatch.setattr(state_dict, "MOST_NAMED", len(state))
    kept = f"{ENCODER}layers.1.mlp.up_proj.{LORA_A}"  # of the last layer, so that rank and layers are known
    with pytest.raises(CheckpointError) as caught:
        import_published(written({kept: state[kept]}, tmp_path), BASE, lora_alpha=ALPHA)
    missing = caught.value.got.removeprefix("missing ").split(", ")
    assert sorted(missing) == sorted(set(state) - {kept, *UNUSED})


def put(name, tensor):
    return lambda state: state.update({name: tensor})


def rename(old, new):
    return lambda state: state.update({new: state.pop(old)})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (put("decoder.model.extra.weight", torch.ones(1)), "unexpected decoder.model.extra.weight"),
        (put(ALIGNMENT + "layers.9.mlp.up_proj.weight", torch.ones(1)), f"unexpected {ALIGNMENT}layers.9"),
        (put("encoder.base_model.model.lm_head.extra", torch.ones(1)), "unexpected encoder.*lm_head.extra"),
        (put("encoder.model.norm.weight", torch.ones(64)), "unexpected encoder.model.norm.weight"),
        (put(QUERY + "lora_A.other.weight", torch.ones(4, 64)), "unexpected .*lora_A.other.weight"),
        (put(QUERY + "lora_magnitude_vector.default.weight", torch.ones(64)), "unexpected .*magnitude_vector"),
        (put(QUERY + "weight", torch.ones(64, 64)), "unexpected .*q_proj.weight"),
        (put(QUERY + LORA_A, torch.ones(5, 64)), r"lora_A.default.weight of shape \(5, 64\) in the place of \(4, 64\)"),
        (put(QUERY + LORA_B, torch.ones(64)), r"lora_B.default.weight of shape \(64,\) in the place of \(64, 4\)"),
        (put(ENCODER + "norm.weight", torch.ones(3)), r"norm.weight of shape \(3,\) in the place of \(64,\)"),
        (put("decoder.lm_head.weight", torch.ones(401, 64)), r"decoder.lm_head.weight of shape \(401, 64\)"),
        (put("decoder.model.norm.weight", torch.ones(64, dtype=torch.int8)), "decoder.model.norm.weight of dtype"),
        (rename(QUERY + "base_layer.weight", QUERY + "weight"), "missing .*q_proj.base_layer.weight"),
        (rename("decoder.model.norm.weight", "decoder.norm.weight"), "missing decoder.model.norm.weight"),
        (lambda state: state.clear(), "missing .* and [0-9]+ more"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(state, tmp_path, spoil, message):
    spoil(state)
    with pytest.raises(CheckpointError, match=message):
        import_published(written(state, tmp_path), BASE, lora_alpha=None if not state else ALPHA)


class Marker:
    """Unpickling it leaves a mark."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_torch_file_runs_no_code(tmp_path):
    torch.save({"decoder.model.norm.weight": Marker(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    (tmp_path / "old.bin").write_bytes(pickle.dumps(Marker(tmp_path / "ran"), protocol=2))
    for name in ("pytorch_model.bin", "old.bin"):
        with pytest.raises(CheckpointError, match=name):
            import_published(tmp_path / name, BASE)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
@pytest.mark.parametrize("keep", [0, 7, 2_000])
def test_a_damaged_file_is_named(state, tmp_path, name, keep):
    file = written(state, tmp_path, name)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=name):
        import_published(file, BASE, lora_alpha=ALPHA)


def test_files_that_are_no_state_dict_are_named(state, tmp_path):
    torch.save({"model": state}, tmp_path / "nested.pt")
    torch.save([1], tmp_path / "list.pt")
    (tmp_path / "weights.npz").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    for name, message in {
        "nested.pt": "'model', which is no tensor",
        "list.pt": "a list",
        "weights.npz": "another name",
        "empty": r"none of model\.safetensors, .*pytorch_model\.bin",
        "nowhere.pt": "nothing there",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            import_published(tmp_path / name, BASE, lora_alpha=ALPHA)


def test_an_index_is_not_trusted(state, tmp_path):
    places = shard(state, tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    norm = "decoder.model.norm.weight"
    for content, message in [
        ({"weight_map": {norm: "../model.safetensors"}}, "outside the checkpoint"),
        ({"weight_map": places | {norm: "2-model.safetensors"}}, "model.safetensors"),
        ({"weight_map": places | {"decoder.other": places[norm]}}, "describes wrongly: decoder.other"),
        ({}, "weight_map"),
    ]:
        index.write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=message):
            import_published(tmp_path, BASE, lora_alpha=ALPHA)
