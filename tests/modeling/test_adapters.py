import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel
from typer.testing import CliRunner

from gmsa_rag.cli import app
from gmsa_rag.errors import CheckpointError, ConfigError
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.modeling.adapters import save_tuned_decoder
from gmsa_rag.modeling.checkpoint import Checkpoint, load_checkpoint, read_config, save_checkpoint, verify_fingerprint
from gmsa_rag.modeling.lora import LoraSettings, add_lora, carries_lora, merge_lora
from tests.modeling.trained import Trained, stir

PASSAGE = "The Danube begins in the Black Forest and ends in the Black Sea."
DECODER_LORA = LoraSettings(rank=2, alpha=8.0, dropout=0.0)
IDS = torch.arange(5, 26)[None]


@torch.no_grad()
def soft_tokens(checkpoint: Checkpoint):
    return checkpoint.compressor.eval()(IDS, [IDS.shape[1]], [4])


@torch.no_grad()
def logits(decoder: PreTrainedModel):
    return decoder.eval()(input_ids=IDS).logits


def files(directory: Path):
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("encoder_norm", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma", "gemma2"])
def test_what_is_loaded_gives_the_soft_tokens_of_what_was_trained(train, tmp_path, family, encoder_norm):
    trained = train(family, encoder_norm=encoder_norm)
    loaded = load_checkpoint(trained.save(tmp_path / "c"))
    torch.testing.assert_close(soft_tokens(loaded), soft_tokens(trained.checkpoint), atol=1e-5, rtol=1e-5)
    assert torch.equal(logits(loaded.decoder), logits(trained.checkpoint.decoder))
    assert not carries_lora(loaded.compressor.encoder)
    untrained = GMSA.from_base(loaded.decoder, loaded.tokenizer, encoder_layers=2, encoder_norm=encoder_norm)
    assert (soft_tokens(untrained) - soft_tokens(loaded)).abs().max() > 1e-2


def test_the_files_hold_adapters_alone(trained, tmp_path):
    directory = trained.save(tmp_path / "c")
    assert files(directory) == ["compressor.safetensors", "config.json"]
    weights = load_file(directory / "compressor.safetensors")
    lora = [name for name in weights if name.startswith("encoder.layers.") and ".lora_" in name]
    lsa = [name for name in weights if name.startswith("alignment.block.")]
    assert len(lora) == 2 * 7 * 2 and len(lsa) == 9 + 1 and len(weights) == len(lora) + len(lsa)
    config = read_config(directory)
    assert (config.base, config.base_revision) == (str(trained.base.resolve()), None)
    assert (config.lora_rank, config.lora_alpha, config.decoder_weights) == (4, 6.0, "base")


def test_the_engine_loads_adapters_as_any_checkpoint(trained, tmp_path):
    gmsa = GMSA.from_pretrained(trained.save(tmp_path / "c"), local_files_only=True)
    merge_lora(trained.checkpoint.compressor.encoder)
    before = GMSA(trained.checkpoint).compress(PASSAGE, rate=4)
    memory = gmsa.compress(PASSAGE, rate=4)
    torch.testing.assert_close(memory.soft_tokens, before.soft_tokens, atol=1e-5, rtol=1e-5)
    assert memory.fingerprint == read_config(tmp_path / "c").fingerprint
    assert gmsa.compressor.encoder.get_input_embeddings() is gmsa.decoder.get_input_embeddings()
    assert isinstance(gmsa.restore(memory), str)


def test_the_lora_of_a_decoder(trained, tmp_path):
    decoder = trained.checkpoint.decoder
    stir(add_lora(decoder, DECODER_LORA), seed=5)
    directory = trained.save(tmp_path / "c", decoder="lora", decoder_lora=DECODER_LORA)
    assert files(directory) == ["compressor.safetensors", "config.json", "decoder_lora.safetensors"]
    loaded = load_checkpoint(directory)
    torch.testing.assert_close(logits(loaded.decoder), logits(decoder), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(soft_tokens(loaded), soft_tokens(trained.checkpoint), atol=1e-5, rtol=1e-5)
    assert verify_fingerprint(directory) == read_config(trained_alone(trained, tmp_path)).fingerprint


def trained_alone(trained, tmp_path):
    """The same compressor saved with its base as the decoder."""
    base = AutoModelForCausalLM.from_pretrained(trained.base)
    alone = Checkpoint(trained.checkpoint.config, trained.checkpoint.compressor, base, trained.checkpoint.tokenizer)
    return Trained(alone, trained.base).save(tmp_path / "alone")


def test_a_decoder_in_full(trained, tmp_path):
    decoder = trained.checkpoint.decoder
    before = soft_tokens(trained.checkpoint)
    stir(decoder.model.layers.parameters(), seed=5)
    directory = trained.save(tmp_path / "c", decoder="full")
    assert files(directory) == ["compressor.safetensors", "config.json", "decoder"]
    loaded = load_checkpoint(directory)
    assert torch.equal(logits(loaded.decoder), logits(decoder)) and loaded.config.shared_embeddings
    torch.testing.assert_close(soft_tokens(loaded), before, atol=1e-5, rtol=1e-5)
    assert loaded.compressor.encoder.get_input_embeddings() is loaded.decoder.get_input_embeddings()
    assert verify_fingerprint(directory) == loaded.config.fingerprint


def test_a_decoder_in_full_may_have_embeddings_of_its_own(trained, tmp_path):
    decoder, base = trained.checkpoint.decoder, AutoModelForCausalLM.from_pretrained(trained.base)
    before = soft_tokens(trained.checkpoint)
    trained.checkpoint.compressor.encoder.set_input_embeddings(base.get_input_embeddings())
    decoder.get_input_embeddings().weight.data += 1.0
    loaded = load_checkpoint(trained.save(tmp_path / "c", decoder="full"))
    assert not loaded.config.shared_embeddings
    torch.testing.assert_close(soft_tokens(loaded), before, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits(loaded.decoder), logits(decoder))


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_tuned_decoder_keeps_the_compressor_and_its_fingerprint(trained, tmp_path, kind):
    start = trained.save(tmp_path / "autoencoded")
    tuned = load_checkpoint(start)
    settings = {"decoder_lora": DECODER_LORA} if kind == "lora" else {}
    learning = add_lora(tuned.decoder, DECODER_LORA) if kind == "lora" else tuned.decoder.model.layers.parameters()
    stir(learning, seed=5)
    tuned.config.rates = [8]
    save_tuned_decoder(tuned, tmp_path / "tuned", start=start, decoder=kind, **settings)
    loaded = load_checkpoint(tmp_path / "tuned")
    assert loaded.config.fingerprint == read_config(start).fingerprint == verify_fingerprint(tmp_path / "tuned")
    assert loaded.config.rates == [8]
    torch.testing.assert_close(logits(loaded.decoder), logits(tuned.decoder), atol=1e-5, rtol=1e-5)
    assert torch.equal(soft_tokens(loaded), soft_tokens(load_checkpoint(start)))


def test_a_tuned_decoder_can_take_the_place_of_its_start(trained, tmp_path):
    start = trained.save(tmp_path / "c")
    (start / "README.md").write_text("the card")
    fingerprint = read_config(start).fingerprint
    save_tuned_decoder(load_checkpoint(start), start, start=start, decoder="full")
    assert verify_fingerprint(start) == fingerprint
    assert files(start) == ["README.md", "compressor.safetensors", "config.json", "decoder"]
    assert files(tmp_path) == ["base-llama", "c"]


def test_a_start_with_all_weights_is_refused(gmsa, tmp_path):
    gmsa.save_pretrained(tmp_path / "full")
    full = load_checkpoint(tmp_path / "full")
    with pytest.raises(CheckpointError, match="one of adapters"):
        save_tuned_decoder(full, tmp_path / "tuned", start=tmp_path / "full", decoder="full")


def test_merges_on_a_bfloat16_base_are_rounded_once(train, tmp_path):
    trained = train(dtype=torch.bfloat16)
    directory = trained.save(tmp_path / "c")
    weight = trained.checkpoint.compressor.encoder.layers[1].mlp.up_proj
    down, up = (half["default"].weight.detach().double() for half in (weight.lora_A, weight.lora_B))
    exact = weight.base_layer.weight.detach().double() + 1.5 * up @ down
    for dtype, expected in ((None, torch.bfloat16), (torch.float32, torch.float32), (torch.float16, torch.float16)):
        loaded = load_checkpoint(directory, dtype=dtype)
        everything = (*loaded.compressor.parameters(), *loaded.decoder.parameters())
        assert {parameter.dtype for parameter in everything} == {expected}
        merged = loaded.compressor.encoder.layers[1].mlp.up_proj.weight
        torch.testing.assert_close(merged, exact.to(expected), atol=1e-7, rtol=1e-6)
    wide = load_checkpoint(directory, dtype=torch.float32)
    torch.testing.assert_close(soft_tokens(wide), soft_tokens(trained.checkpoint), atol=1e-5, rtol=1e-5)


def test_a_decoder_s_lora_on_a_float32_base_is_rounded_once(trained, tmp_path):
    decoder = trained.checkpoint.decoder
    stir(add_lora(decoder, DECODER_LORA), seed=5)
    directory = trained.save(tmp_path / "c", decoder="lora", decoder_lora=DECODER_LORA)
    merge_lora(decoder)
    loaded = load_checkpoint(directory, dtype=torch.bfloat16)
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(loaded.decoder.state_dict()[name], tensor.bfloat16()), name


def test_the_fingerprint_does_not_depend_on_dtypes_or_on_saving_again(train, tmp_path):
    trained = train(dtype=torch.bfloat16)
    first = read_config(trained.save(tmp_path / "a")).fingerprint
    trained.checkpoint.decoder.bfloat16()  # the encoder reads the same table
    assert read_config(trained.save(tmp_path / "b")).fingerprint == first == verify_fingerprint(tmp_path / "b")
    for dtype in ("bfloat16", "float32"):
        assert GMSA.from_pretrained(tmp_path / "a", dtype=dtype).fingerprint == first


def edit(path, name, by=1.0):
    weights = load_file(path)
    weights[name].view(-1)[0] += by
    save_file(weights, path, metadata={"format": "pt"})


def set_config(directory, **values):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    "change",
    [
        lambda c, base: edit(c / "compressor.safetensors", "encoder.layers.0.mlp.up_proj.lora_A"),
        lambda c, base: edit(c / "compressor.safetensors", "alignment.block.layers.0.mlp.up_proj.weight"),
        lambda c, base: edit(base / "model.safetensors", "model.embed_tokens.weight"),
        lambda c, base: edit(base / "model.safetensors", "model.layers.1.mlp.up_proj.weight"),
        lambda c, base: edit(base / "model.safetensors", "model.norm.weight"),
        lambda c, base: set_config(c, lora_alpha=7.0),
        lambda c, base: set_config(c, window=17),
    ],
)
def test_a_change_of_what_makes_soft_tokens_does_not_verify(trained, tmp_path, change):
    directory = trained.save(tmp_path / "c")
    verify_fingerprint(directory)
    change(directory, trained.base)
    with pytest.raises(CheckpointError, match="changed after saving"):
        verify_fingerprint(directory)


def test_layers_that_the_compressor_does_not_copy_are_not_its_fingerprint(trained, tmp_path):
    directory = trained.save(tmp_path / "c")
    edit(trained.base / "model.safetensors", "model.layers.2.mlp.up_proj.weight")
    assert verify_fingerprint(directory) == read_config(directory).fingerprint


def test_a_moved_base_is_named_and_found_again(trained, tmp_path):
    directory = trained.save(tmp_path / "c")
    trained.base.rename(tmp_path / "elsewhere")
    for read in (load_checkpoint, verify_fingerprint, GMSA.from_pretrained):
        with pytest.raises(CheckpointError, match=rf"base {trained.base}.*`base` of the checkpoint's config.json"):
            read(directory)
    set_config(directory, base=str(tmp_path / "elsewhere"))
    assert verify_fingerprint(directory) == read_config(directory).fingerprint


def test_a_base_of_the_hub_is_recorded_by_its_commit(trained, tmp_path, monkeypatch):
    cache, commit = tmp_path / "hub", "0123456789abcdef0123456789abcdef01234567"
    folder = cache / "models--someone--base"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    shutil.copytree(trained.base, folder / "snapshots" / commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    directory = trained.save(tmp_path / "c", base="someone/base")
    assert (read_config(directory).base, read_config(directory).base_revision) == ("someone/base", commit)
    (folder / "refs" / "main").write_text("f" * 40)
    shutil.rmtree(trained.base)
    assert verify_fingerprint(directory, local_files_only=True) == read_config(directory).fingerprint
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match=f"base someone/base at {commit}"):
        load_checkpoint(directory, local_files_only=True)


def change_weights(file, change):
    def spoil(directory, _base):
        weights = load_file(directory / file)
        change(weights)
        save_file(weights, directory / file)

    return spoil


def cut_base(_directory, base):
    weights = load_file(base / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})


LORA_NAME = "encoder.layers.0.mlp.up_proj.lora_A"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change_weights("compressor.safetensors", lambda w: w.pop(LORA_NAME)), "missing layers.0.mlp.up_proj.lora_A"),
        (change_weights("compressor.safetensors", lambda w: w.update(extra=torch.zeros(1))), "unexpected extra"),
        (
            change_weights("compressor.safetensors", lambda w: w.update({LORA_NAME: torch.zeros(4, 3)})),
            r"compressor.safetensors.*lora_A of shape \(4, 3\)",
        ),
        (
            change_weights("compressor.safetensors", lambda w: w.pop("alignment.block.norm.weight")),
            "missing block.norm.weight",
        ),
        (
            change_weights("decoder_lora.safetensors", lambda w: w.pop("layers.2.mlp.up_proj.lora_B")),
            "decoder_lora.safetensors.*missing layers.2.mlp.up_proj.lora_B",
        ),
        (lambda c, _: (c / "decoder_lora.safetensors").unlink(), "decoder_lora.safetensors"),
        (lambda c, _: (c / "compressor.safetensors").unlink(), "compressor.safetensors"),
        (lambda c, _: set_config(c, decoder_weights="half"), "decoder_weights 'half'"),
        (lambda c, _: set_config(c, lora_rank=0), r"ranks \[0, 2\]"),
        (cut_base, "one without model.layers.0.mlp.up_proj.weight"),
    ],
)
def test_damage_is_a_typed_error_that_names_it(trained, tmp_path, spoil, message):
    add_lora(trained.checkpoint.decoder, DECODER_LORA)
    directory = trained.save(tmp_path / "c", decoder="lora", decoder_lora=DECODER_LORA)
    load_checkpoint(directory)
    spoil(directory, trained.base)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(directory)


def test_a_missing_decoder_in_full_is_a_typed_error(trained, tmp_path):
    directory = trained.save(tmp_path / "c", decoder="full")
    shutil.rmtree(directory / "decoder")
    with pytest.raises(CheckpointError, match=r"no config\.json there"):
        load_checkpoint(directory)


@pytest.mark.parametrize(
    ("of", "name", "message"),
    [
        ("encoder", "layers.0.mlp.up_proj.base_layer.weight", "encoder to save.*another layers.0.mlp.up_proj.weight"),
        ("encoder", "norm.weight", "encoder to save.*another norm.weight"),
        ("decoder", "model.layers.2.mlp.up_proj.weight", "decoder to save.*another model.layers.2.mlp.up_proj.weight"),
        ("decoder", "lm_head.weight", "decoder to save.*another lm_head.weight"),
    ],
)
def test_weights_that_are_not_the_base_s_are_never_left_out(trained, tmp_path, of, name, message):
    models = {"encoder": trained.checkpoint.compressor.encoder, "decoder": trained.checkpoint.decoder}
    models[of].get_parameter(name).data += 1.0
    with pytest.raises(CheckpointError, match=message):
        trained.save(tmp_path / "c")
    assert files(tmp_path) == ["base-llama"]


def test_a_tokenizer_of_its_own_needs_a_decoder_in_full(trained, tmp_path):
    tokenizer = type(trained.checkpoint.tokenizer).from_pretrained(trained.base)
    tokenizer.add_tokens(["<another>"])
    own = Checkpoint(trained.checkpoint.config, trained.checkpoint.compressor, trained.checkpoint.decoder, tokenizer)
    with pytest.raises(CheckpointError, match="another vocabulary"):
        Trained(own, trained.base).save(tmp_path / "c")
    directory = Trained(own, trained.base).save(tmp_path / "c", decoder="full")
    assert "<another>" in load_checkpoint(directory).tokenizer.get_vocab()
    assert verify_fingerprint(directory) != read_config(trained.save(tmp_path / "d")).fingerprint


def test_lora_and_its_settings_belong_together(trained, tmp_path):
    with pytest.raises(ConfigError, match="encoder to save"):
        trained.save(tmp_path / "c", lora=LoraSettings(rank=4, alpha=12.0))
    with pytest.raises(ConfigError, match="decoder to save"):
        trained.save(tmp_path / "c", decoder="lora", decoder_lora=DECODER_LORA)
    with pytest.raises(ConfigError, match="decoder_lora"):
        trained.save(tmp_path / "c", decoder="lora")
    with pytest.raises(ConfigError, match="merge_lora"):
        save_checkpoint(trained.checkpoint, tmp_path / "c")
    add_lora(trained.checkpoint.decoder, DECODER_LORA)
    with pytest.raises(ConfigError, match="decoder to save"):
        trained.save(tmp_path / "c")
    merge_lora(trained.checkpoint.compressor.encoder)
    with pytest.raises(ConfigError, match="encoder to save"):
        trained.save(tmp_path / "c", decoder="lora", decoder_lora=DECODER_LORA)


def test_an_export_is_a_checkpoint_in_full(trained, tmp_path):
    adapted = GMSA.from_pretrained(trained.save(tmp_path / "c"))
    adapted.save_pretrained(tmp_path / "full")
    shutil.rmtree(trained.base)
    exported = GMSA.from_pretrained(tmp_path / "full")
    assert exported.config.base == "" and exported.config.decoder_weights == "full" and exported.config.lora_rank == 0
    assert exported.fingerprint == verify_fingerprint(tmp_path / "full") != adapted.fingerprint
    before, after = adapted.compress(PASSAGE, rate=4), exported.compress(PASSAGE, rate=4)
    assert torch.equal(before.soft_tokens, after.soft_tokens)
    exported.save_pretrained(tmp_path / "again")
    assert read_config(tmp_path / "again").fingerprint == exported.fingerprint


def test_the_doctor_names_the_base_and_verifies(trained, tmp_path):
    directory = trained.save(tmp_path / "c")
    found = CliRunner().invoke(app, ["doctor", "--model", str(directory), "--verify"])
    assert found.exit_code == 0, found.output
    assert f" {trained.base.resolve()}" in found.output
    assert f"{read_config(directory).fingerprint} verified" in found.output
    shutil.rmtree(trained.base)
    found = CliRunner().invoke(app, ["doctor", "--model", str(directory), "--verify"])
    assert found.exit_code == 1 and "the causal LM that these adapters were trained on" in found.output
