import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from gmsa_rag.errors import CheckpointError
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.modeling import checkpoint as module
from gmsa_rag.modeling.checkpoint import Checkpoint, load_checkpoint, read_config, save_checkpoint, verify_fingerprint
from gmsa_rag.modeling.files import load_base
from tests.conftest import FAMILIES

PASSAGE = "The Danube begins in the Black Forest and ends in the Black Sea."


@pytest.fixture
def saved(gmsa, tmp_path):
    gmsa.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("family", FAMILIES)
def test_save_and_load_give_equal_memories_and_text(make_base, tokenizer, tmp_path, family):
    made = GMSA.from_base(make_base(family), tokenizer, encoder_layers=2, lsa_layers=1, window=16)
    made.save_pretrained(tmp_path / "c")
    loaded = GMSA.from_pretrained(tmp_path / "c")
    before, after = made.compress(PASSAGE, rate=4), loaded.compress(PASSAGE, rate=4)
    assert before.key == after.key and before.fingerprint == after.fingerprint
    assert torch.equal(before.soft_tokens, after.soft_tokens)
    assert made.restore(before) == loaded.restore(after)


def test_the_decoder_folder_is_a_plain_transformers_checkpoint(gmsa, saved):
    decoder = AutoModelForCausalLM.from_pretrained(saved / "decoder")
    tokenizer = AutoTokenizer.from_pretrained(saved / "decoder")
    assert tokenizer.chat_template == gmsa.tokenizer.chat_template
    for name, weight in gmsa.decoder.state_dict().items():
        assert torch.equal(weight, decoder.state_dict()[name])


def test_shared_embeddings_are_stored_once(gmsa, saved):
    assert read_config(saved).shared_embeddings
    assert not any("embed" in name for name in load_file(saved / "compressor.safetensors"))
    assert gmsa.config.hidden_size == read_config(saved).hidden_size == 32


def test_embeddings_of_their_own_are_kept(make_base, tokenizer, tmp_path):
    made = GMSA.from_base(make_base(tie_word_embeddings=False), tokenizer, encoder_layers=2, lsa_layers=1)
    before = made.compress(PASSAGE, rate=4).soft_tokens
    table = torch.nn.Embedding.from_pretrained(made.decoder.get_input_embeddings().weight.detach().clone())
    made.compressor.encoder.set_input_embeddings(table)
    with torch.no_grad():
        made.decoder.get_input_embeddings().weight.add_(1.0)
    made.save_pretrained(tmp_path / "c")
    loaded = GMSA.from_pretrained(tmp_path / "c")
    assert not loaded.config.shared_embeddings
    torch.testing.assert_close(loaded.compress(PASSAGE, rate=4).soft_tokens, before)


def test_bfloat16_files_keep_one_fingerprint_at_every_dtype(gmsa, make_base, tokenizer, tmp_path):
    tied = GMSA.from_base(make_base(tie_word_embeddings=True), tokenizer, encoder_layers=2)
    tied.save_pretrained(tmp_path / "tied", dtype=torch.bfloat16)
    gmsa.save_pretrained(tmp_path / "c", dtype=torch.bfloat16)
    wide, narrow = (GMSA.from_pretrained(tmp_path / "c", dtype=d) for d in ("float32", "bfloat16"))
    assert wide.fingerprint == narrow.fingerprint == verify_fingerprint(tmp_path / "c")
    assert wide.fingerprint != gmsa.fingerprint
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "decoder" / "model.safetensors")
    assert narrow.compress(PASSAGE).soft_tokens.dtype == torch.bfloat16
    assert wide.compress(PASSAGE).key == narrow.compress(PASSAGE).key


def test_large_weights_are_sharded(gmsa, tmp_path):
    checkpoint = Checkpoint(gmsa.config, gmsa.compressor, gmsa.decoder, gmsa.tokenizer)
    save_checkpoint(checkpoint, tmp_path / "c", shard_bytes=16_384)
    shards = [*(tmp_path / "c").glob("compressor-*.safetensors"), *(tmp_path / "c" / "decoder").glob("model-*")]
    assert len(shards) > 4
    # A single weight may be larger: embeddings and head are.
    assert sum(shard.stat().st_size > 20_000 for shard in shards) == 2
    assert GMSA.from_pretrained(tmp_path / "c").fingerprint == verify_fingerprint(tmp_path / "c")


def test_a_changed_weight_does_not_verify(saved):
    weights = load_file(saved / "compressor.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, saved / "compressor.safetensors")
    with pytest.raises(CheckpointError, match="changed after saving"):
        verify_fingerprint(saved)


def edit_weights(change):
    def spoil(saved):
        weights = load_file(saved / "compressor.safetensors")
        change(weights)
        save_file(weights, saved / "compressor.safetensors")

    return spoil


def truncate(name):
    def spoil(saved):
        data = (saved / name).read_bytes()
        (saved / name).write_bytes(data[: len(data) // 2])

    return spoil


def drop_decoder_weight(saved):
    weights = load_file(saved / "decoder" / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, saved / "decoder" / "model.safetensors", metadata={"format": "pt"})


NORM = "alignment.block.norm.weight"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (edit_weights(lambda w: w.pop(NORM)), f"missing {NORM}"),
        (edit_weights(lambda w: w.update(extra=torch.zeros(1))), "unexpected extra"),
        (edit_weights(lambda w: w.update({NORM: torch.zeros(3)})), rf"{NORM} of shape \(3,\)"),
        (truncate("compressor.safetensors"), "compressor.safetensors"),
        (truncate("config.json"), "config.json"),
        (truncate("decoder/model.safetensors"), "decoder"),
        (drop_decoder_weight, "model.norm.weight"),
        (lambda saved: shutil.rmtree(saved / "decoder"), "no config.json there"),
        (lambda saved: (saved / "compressor.safetensors").unlink(), "compressor.safetensors"),
        (lambda saved: (saved / "config.json").write_text('{"model_type": "bert"}'), "'bert'"),
        (lambda saved: (saved / "config.json").write_text('{"model_type": "gmsa", "format_version": 9}'), "Upgrade"),
    ],
)
def test_a_damaged_checkpoint_is_a_typed_error(saved, spoil, message):
    spoil(saved)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved)


def test_an_index_cannot_lead_out_of_the_checkpoint(saved):
    (saved / "compressor.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../x.safetensors"}}))
    with pytest.raises(CheckpointError, match="outside the checkpoint"):
        load_checkpoint(saved)


def test_saving_replaces_a_checkpoint_and_nothing_else(gmsa, saved, tmp_path):
    (saved / "README.md").write_text("the card")
    (saved / "compressor-00001-of-00009.safetensors").write_text("of an older one")
    gmsa.save_pretrained(saved)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]
    assert sorted(path.name for path in saved.iterdir()) == [
        "README.md",
        "compressor.safetensors",
        "config.json",
        "decoder",
    ]
    assert (saved / "README.md").read_text() == "the card"
    (tmp_path / "carded").mkdir()
    (tmp_path / "carded" / "README.md").write_text("written first")
    gmsa.save_pretrained(tmp_path / "carded")
    assert (tmp_path / "carded" / "README.md").read_text() == "written first"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    with pytest.raises(CheckpointError, match="other files"):
        gmsa.save_pretrained(tmp_path / "other")
    assert (tmp_path / "other" / "thesis.txt").read_text() == "precious"


def test_a_base_model_s_folder_is_not_replaced(gmsa, tmp_path):
    gmsa.decoder.save_pretrained(tmp_path / "base")
    with pytest.raises(CheckpointError, match="other files"):
        gmsa.save_pretrained(tmp_path / "base")
    assert (tmp_path / "base" / "model.safetensors").exists()


def test_a_swap_that_fails_puts_the_old_checkpoint_back(gmsa, saved, monkeypatch):
    rename = Path.rename

    def fail(self, target):
        if target == saved and not self.name.endswith("-old"):
            raise OSError("no space")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no space"):
        gmsa.save_pretrained(saved)
    monkeypatch.undo()
    assert verify_fingerprint(saved) == gmsa.fingerprint
    assert [path.name for path in saved.parent.iterdir()] == ["checkpoint"]


def test_a_cast_at_run_time_leaves_the_fingerprint_when_saved_again(gmsa, tmp_path):
    gmsa.save_pretrained(tmp_path / "narrow", dtype=torch.bfloat16)
    wide = GMSA.from_pretrained(tmp_path / "narrow")
    assert wide.decoder.dtype == torch.float32
    wide.save_pretrained(tmp_path / "again")
    assert verify_fingerprint(tmp_path / "again") == wide.fingerprint
    assert read_config(tmp_path / "again").shared_embeddings


def test_a_failed_save_leaves_the_old_checkpoint(gmsa, saved, monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(module, "save_decoder", fail)
    with pytest.raises(OSError, match="disk full"):
        gmsa.save_pretrained(saved)
    assert verify_fingerprint(saved) == gmsa.fingerprint
    assert [path.name for path in saved.parent.iterdir()] == ["checkpoint"]


def test_an_unknown_name_is_a_typed_error(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="bundled name"):
        GMSA.from_pretrained("no-such-checkpoint", local_files_only=True)


@pytest.mark.parametrize("removed", ["model.layers.0.mlp.up_proj.weight", "model.norm.weight"])
def test_a_base_that_lacks_weights_is_not_trained_from_random_ones(make_base, tokenizer, tmp_path, removed):
    make_base().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    load_base(tmp_path, dtype=torch.float32)
    weights = load_file(tmp_path / "model.safetensors")
    del weights[removed]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"one without {removed}"):
        load_base(tmp_path, dtype=torch.float32)


def test_a_base_that_is_not_there_is_a_typed_error(tmp_path):
    with pytest.raises(CheckpointError, match="expected a directory or hub id of a causal LM"):
        load_base(tmp_path / "none", dtype=torch.float32)
