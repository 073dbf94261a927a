"""Import of published checkpoints: equal soft tokens, logits and prompts, for every family."""

import json
import os
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer
from typer.testing import CliRunner

from gmsa_rag.cli import app
from gmsa_rag.errors import CheckpointError, ConfigError, InputError
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.prompt import answer_prompt, restore_prompt, tokenise
from gmsa_rag.modeling.checkpoint import read_config, save_checkpoint, verify_fingerprint
from gmsa_rag.modeling.published import import_published
from tests.modeling.published import (
    ALPHA,
    BASE,
    FIXTURE,
    LORA_A,
    LORA_B,
    QUERY,
    RANK,
    RATES,
    SETTINGS,
    assert_equal,
    weights,
    written,
)


@pytest.fixture(scope="module")
def expected():
    return load_file(FIXTURE / "expected.safetensors")


@pytest.fixture
def state():
    """The fixture's state dict, to be changed."""
    return load_file(FIXTURE / "model.safetensors")


@pytest.fixture(scope="module")
def imported():
    return import_published(FIXTURE, BASE, lora_alpha=ALPHA)


def compress(checkpoint, ids, rate):
    with torch.no_grad():
        return checkpoint.compressor(ids[None], [len(ids)], [rate])


@pytest.mark.parametrize("rate", RATES)
def test_soft_tokens_are_the_published_ones(imported, expected, rate):
    soft_tokens = compress(imported, expected["context_ids"], rate)
    torch.testing.assert_close(soft_tokens, expected[f"soft_tokens_rate_{rate}"], atol=1e-4, rtol=0)


def test_logits_and_loss_are_the_published_ones(imported, expected):
    table = imported.decoder.get_input_embeddings()
    soft_tokens = compress(imported, expected["context_ids"], 4)
    with torch.no_grad():
        rows = [soft_tokens, table(expected["prompt_ids"]), table(expected["answer_ids"])]
        logits = imported.decoder(inputs_embeds=torch.cat(rows)[None]).logits[0]
    torch.testing.assert_close(logits, expected["logits_rate_4"], atol=1e-4, rtol=0)
    loss = nn.functional.cross_entropy(logits[-6:-1], expected["answer_ids"])
    torch.testing.assert_close(loss[None], expected["loss_rate_4"], atol=1e-4, rtol=0)


def test_settings_come_from_the_state_dict_and_the_base(imported):
    config = imported.config
    assert (config.encoder_layers, config.lsa_layers) == (2, 1)
    assert (config.hidden_size, config.window) == (64, 512)
    assert len(imported.decoder.model.layers) == 4
    assert not list(BASE.glob("*.safetensors"))


def test_the_command_line_the_whole_way(tmp_path, expected, monkeypatch):
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    out = tmp_path / "imported"
    arguments = ["import-published", FIXTURE, "--base", BASE, "--out", out, "--local-files-only"]
    done = CliRunner().invoke(app, [*map(str, arguments), "--lora-alpha", str(ALPHA), "--window", "256"])
    assert done.exit_code == 0, done.output
    fingerprint = verify_fingerprint(out)
    assert done.stdout == (
        f"{out}: encoder of 2 layers, layer semantic alignment of 1, window 256, fingerprint {fingerprint}\n"
    )
    assert f"{fingerprint} verified" in CliRunner().invoke(app, ["doctor", "--model", str(out), "--verify"]).stdout
    gmsa = GMSA.from_pretrained(out, device="cpu")
    for rate in RATES:
        soft_tokens = gmsa.compress(SETTINGS["context"], rate).soft_tokens
        torch.testing.assert_close(soft_tokens, expected[f"soft_tokens_rate_{rate}"], atol=1e-4, rtol=0)


def test_the_command_line_says_what_is_wrong(tmp_path):
    arguments = ["import-published", FIXTURE, "--base", BASE, "--out", tmp_path / "out"]
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == 1
    assert "gmsa: lora_alpha: expected the alpha that the LoRA of rank 4 was trained with" in done.stderr
    assert not (tmp_path / "out").exists()


def test_files_can_be_written_in_bfloat16(tmp_path):
    arguments = ["import-published", FIXTURE, "--base", BASE, "--out", tmp_path / "out", "--lora-alpha", ALPHA]
    done = CliRunner().invoke(app, [*map(str, arguments), "--dtype", "bfloat16"])
    assert done.exit_code == 0, done.output
    assert read_config(tmp_path / "out").compressor_dtype == "bfloat16"
    assert load_file(tmp_path / "out" / "decoder" / "model.safetensors")["lm_head.weight"].dtype == torch.bfloat16


def test_lora_is_merged_in_float32(state, tmp_path):
    half = {name: tensor.bfloat16() for name, tensor in state.items()}
    checkpoint = import_published(written(half, tmp_path), BASE, lora_alpha=ALPHA)
    down, up = half[QUERY + LORA_A].double(), half[QUERY + LORA_B].double()
    by_hand = half[QUERY + "base_layer.weight"].double() + ALPHA / RANK * up @ down
    merged = checkpoint.compressor.encoder.layers[0].self_attn.q_proj.weight
    assert merged.dtype == torch.float32
    torch.testing.assert_close(merged.double(), by_hand, atol=1e-6, rtol=0)
    assert (merged.double() - by_hand.bfloat16().double()).abs().max() > 1e-4


def merged(state, keep_names):
    """The state dict with its LoRA merged by hand."""
    plain = {name: tensor for name, tensor in state.items() if ".lora_" not in name}
    for name in [name for name in plain if name.endswith("base_layer.weight")]:
        module = name.removesuffix("base_layer.weight")
        weight = plain.pop(name) + ALPHA / RANK * state[module + LORA_B] @ state[module + LORA_A]
        plain[name if keep_names else module.replace("base_model.model.", "") + "weight"] = weight
    if keep_names:
        return plain
    return {name.replace("base_model.model.", ""): tensor for name, tensor in plain.items()}


@pytest.mark.parametrize("keep_names", [False, True])
def test_merged_lora_needs_no_alpha(imported, state, tmp_path, keep_names):
    file = written(merged(state, keep_names), tmp_path)
    found, wanted = weights(import_published(file, BASE)), weights(imported)
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name])
    with pytest.raises(InputError, match="holds no LoRA"):
        import_published(file, BASE, lora_alpha=ALPHA)


def test_the_published_rank_has_the_published_alpha(imported, state, tmp_path):
    for name, tensor in state.items():
        if ".lora_A" in name:
            state[name] = torch.cat([tensor, torch.zeros(128 - RANK, tensor.shape[1])])
        if ".lora_B" in name:  # 32 / 128 is an eighth of 8 / 4
            state[name] = torch.cat([8 * tensor, torch.zeros(len(tensor), 128 - RANK)], dim=1)
    found, wanted = weights(import_published(written(state, tmp_path), BASE)), weights(imported)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name])


def test_another_rank_needs_its_alpha():
    with pytest.raises(InputError, match=r"LoRA of rank 4 .*--lora-alpha"):
        import_published(FIXTURE, BASE)
    for alpha in (0, -8, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="alpha > 0"):
            import_published(FIXTURE, BASE, lora_alpha=alpha)


def test_the_encoder_keeps_a_table_of_its_own(imported, state, tmp_path, expected):
    table = state["decoder.model.embed_tokens.weight"]
    state["decoder.model.embed_tokens.weight"] = table + 1
    checkpoint = import_published(written(state, tmp_path), BASE, lora_alpha=ALPHA)
    save_checkpoint(imported, tmp_path / "shared")
    save_checkpoint(checkpoint, tmp_path / "own")
    assert read_config(tmp_path / "shared").shared_embeddings
    assert not read_config(tmp_path / "own").shared_embeddings
    gmsa = GMSA.from_pretrained(tmp_path / "own", device="cpu")
    assert gmsa.fingerprint == verify_fingerprint(tmp_path / "own") == verify_fingerprint(tmp_path / "shared")
    assert torch.equal(gmsa.decoder.get_input_embeddings().weight, table + 1)
    soft_tokens = gmsa.compress(SETTINGS["context"], 4).soft_tokens
    torch.testing.assert_close(soft_tokens, expected["soft_tokens_rate_4"], atol=1e-4, rtol=0)


def test_the_base_and_the_tokenizer_have_to_be_there(tmp_path, tokenizer):
    shutil.copy(BASE / "config.json", tmp_path)
    for base, given, message in [
        (tmp_path / "nowhere", None, "the config of a causal LM"),
        (tmp_path, None, "a tokenizer"),
        (tmp_path, tmp_path / "nowhere", "a tokenizer"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            import_published(FIXTURE, base, lora_alpha=ALPHA, tokenizer=given, local_files_only=True)
    checkpoint = import_published(FIXTURE, BASE, lora_alpha=ALPHA, tokenizer=saved_tokenizer(tokenizer, tmp_path))
    assert checkpoint.tokenizer.get_vocab() == tokenizer.get_vocab()


def test_a_quantised_base_is_refused(tmp_path):
    shutil.copytree(BASE, tmp_path / "base")
    config = json.loads((BASE / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="quantised"):
        import_published(FIXTURE, tmp_path / "base", lora_alpha=ALPHA)


def saved_tokenizer(tokenizer, folder):
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder / "tokenizer"


def test_the_window_is_within_the_base():
    assert import_published(FIXTURE, BASE, lora_alpha=ALPHA, window=100).config.window == 100
    for window in (0, 513, True, 8.0):
        with pytest.raises(InputError, match="1 to 512"):
            import_published(FIXTURE, BASE, lora_alpha=ALPHA, window=window)


def test_prompts_are_soft_tokens_then_text_and_nothing_else(tokenizer, tmp_path):
    assert tokenizer("")["input_ids"] == [tokenizer.bos_token_id]
    checkpoint = import_published(FIXTURE, BASE, lora_alpha=ALPHA, tokenizer=saved_tokenizer(tokenizer, tmp_path))
    save_checkpoint(checkpoint, tmp_path / "c")
    gmsa = GMSA.from_pretrained(tmp_path / "c", device="cpu")
    assert verify_fingerprint(tmp_path / "c") == gmsa.fingerprint
    memory = gmsa.compress("The Danube is a river.", 4)
    [instruction] = gmsa.codec.encode(["Restate the aforementioned Text."])
    assert tokenise(restore_prompt(gmsa.config, memory), gmsa.codec) == [memory, instruction]
    [question] = gmsa.codec.encode([" Which river?"])
    assert tokenise(answer_prompt(gmsa.config, " Which river?", [memory], None), gmsa.codec) == [memory, question]
    assert AutoTokenizer.from_pretrained(tmp_path / "c" / "decoder")("")["input_ids"] == []


class Published(nn.Module):
    """The published model's parts, and its soft tokens computed plainly."""

    def __init__(self, make, encoder_layers, fusion_layers):
        super().__init__()
        config = LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM")
        self.encoder = get_peft_model(make(encoder_layers), config).eval()
        self.memory_fusion_layer = make(fusion_layers)
        self.decoder = make(3)
        self.semantic_alignment_layer = nn.Linear(32, 32)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))

    @torch.no_grad()
    def soft_tokens(self, ids, rate):
        hidden = self.encoder(input_ids=ids[None], output_hidden_states=True).hidden_states[-1][0]
        groups = torch.stack([hidden[start : start + rate].mean(dim=0) for start in range(0, len(hidden), rate)])
        return self.memory_fusion_layer(inputs_embeds=groups[None], output_hidden_states=True).hidden_states[-1][0]


@pytest.fixture(
    params=[("llama", True), ("qwen2", False), ("qwen3", False), ("qwen3", True), ("gemma2", True)], ids=str
)
def family(request, make_base, tokenizer, tmp_path):
    """A published model of another base, and the base's folder without weights."""
    name, tied = request.param

    def make(layers):
        return make_base(name, layers, tie_word_embeddings=tied)

    make(3).config.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return Published(make, encoder_layers=2, fusion_layers=1), tmp_path / "base", tied


def test_other_families_equal_the_plain_computation(family, tmp_path):
    model, base, _ = family
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    checkpoint = import_published(tmp_path, base, lora_alpha=6)
    save_checkpoint(checkpoint, tmp_path / "c")
    gmsa = GMSA.from_pretrained(tmp_path / "c", device="cpu")
    assert verify_fingerprint(tmp_path / "c") == gmsa.fingerprint
    ids = torch.arange(10, 47)
    for rate in (1, 4, 8):
        soft_tokens = model.soft_tokens(ids, rate)
        torch.testing.assert_close(compress(checkpoint, ids, rate), soft_tokens, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(compress(gmsa, ids, rate), soft_tokens, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(gmsa.decoder(ids[None]).logits, model.decoder(ids[None]).logits)


def test_tied_weights_may_be_held_once_and_must_agree(family, tmp_path):
    model, base, tied = family
    state = model.state_dict()
    table, head = "decoder.model.embed_tokens.weight", "decoder.lm_head.weight"
    whole = import_published(written_torch(state, tmp_path), base, lora_alpha=6)
    for left_out in (table, head):
        once = {name: tensor for name, tensor in state.items() if name != left_out}
        if tied:
            found = import_published(written_torch(once, tmp_path), base, lora_alpha=6)
            assert_equal(weights(found), weights(whole))
            assert found.decoder.get_output_embeddings().weight is found.decoder.get_input_embeddings().weight
        else:
            with pytest.raises(CheckpointError, match=f"missing {left_out}"):
                import_published(written_torch(once, tmp_path), base, lora_alpha=6)
    if tied:
        with pytest.raises(CheckpointError, match=f"{head} that differs"):
            import_published(written_torch(state | {head: state[head] + 1}, tmp_path), base, lora_alpha=6)


def written_torch(state, tmp_path):
    return written(state, tmp_path, "state.pt")
