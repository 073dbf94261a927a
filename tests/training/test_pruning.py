import copy
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from gmsa_rag.errors import CheckpointError, ConfigError, DataError
from gmsa_rag.inference.tokens import TokenCodec
from gmsa_rag.modeling.alignment import backbone_of
from gmsa_rag.training.autoencoding import autoencode
from gmsa_rag.training.logs import read_log
from gmsa_rag.training.pretraining import pretrain, save_base
from gmsa_rag.training.pruning import (
    WINDOW,
    calibration_loss,
    calibration_rows,
    choose_layers,
    keep_layers,
    narrow_mlps,
    prune,
    take_tokens,
)
from gmsa_rag.training.recipe import PruneRecipe
from gmsa_rag.training.tokenizer import CONTROL, prune_tokenizer, train_tokenizer
from tests.conftest import TEXT
from tests.training.chats import QWEN, with_template
from tests.training.gguf import write_gguf
from tests.training.stages import AUTOENCODE, PRETRAIN, changed

TEXTS = ["The river Oder joined the Elbe near Fort Meuse in 1813.", "The river Volga joined the Rhine in 1900."] * 20
RECIPE = PruneRecipe(
    ("rivers",), num_hidden_layers=1, intermediate_size=24, vocab_size=300, max_position_embeddings=256,
    calibration_rows=1,
)  # fmt: skip
LARGE = train_tokenizer(TEXTS, 400)
SMALL, KEPT = prune_tokenizer(LARGE, TEXTS, 300)


@pytest.fixture
def base(runs):
    """A base whose layers weigh enough to be missed."""
    base = AutoModelForCausalLM.from_pretrained(runs[1], dtype=torch.float32).eval()
    torch.manual_seed(3)
    for parameter in base.parameters():
        if parameter.dim() == 2:
            parameter.data.normal_(0, 0.3)
    return base


@pytest.fixture
def rows(base):
    """Rows as the base itself writes them: each of its layers has its part in how likely they are."""
    starts = torch.arange(8, 12)[:, None]
    return base.generate(starts, max_new_tokens=WINDOW - 1, min_new_tokens=WINDOW - 1, do_sample=True, top_k=0)


@given(st.text())
def test_a_pruned_tokenizer_loses_no_text(text):
    ids = SMALL(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert SMALL.decode(ids, clean_up_tokenization_spaces=False) == text


def test_kept_tokens_are_the_old_ones_by_name():
    assert len(SMALL) == len(KEPT) == 300
    names = SMALL.convert_ids_to_tokens(range(300))
    assert names[: len(CONTROL)] == list(CONTROL)
    old = LARGE.get_vocab()
    assert [KEPT[i] for i in (0, 1)] == [LARGE.bos_token_id, LARGE.eos_token_id]
    assert all(KEPT[i] == old[names[i]] for i in range(len(CONTROL), 300))


def test_what_texts_need_most_is_kept():
    rare = prune_tokenizer(LARGE, ["Volga " * 50], 270)[0]
    assert "Volga" in rare.tokenize("The Volga")[-1]
    assert len(SMALL.tokenize(TEXTS[0])) <= len(rare.tokenize(TEXTS[0]))


def test_bytes_that_the_base_lacks_are_new_tokens():
    layout = LARGE.backend_tokenizer.to_str().replace('"Ā":', '"no byte":')
    lacking = copy.deepcopy(LARGE)
    lacking._tokenizer = Tokenizer.from_str(layout)
    smaller, kept = prune_tokenizer(lacking, TEXTS, 300)
    assert kept[smaller.convert_tokens_to_ids("Ā")] is None
    assert smaller.decode(smaller("\x00", add_special_tokens=False)["input_ids"]) == "\x00"


def test_what_the_base_changes_before_it_reads_is_left_out():
    base = with_template(QWEN)
    base._tokenizer.normalizer = normalizers.NFC()
    base._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    base._tokenizer.enable_truncation(4)
    smaller, kept = prune_tokenizer(base, TEXTS, 300)
    for text in ("e\u0301", "Oder", TEXTS[0]):
        assert smaller.decode(smaller(text, add_special_tokens=False)["input_ids"]) == text
    assert kept[: len(CONTROL)] == [None, base.convert_tokens_to_ids("<|im_end|>"), None, None, None, None]


def test_a_base_may_list_every_way_to_make_a_token():
    every = with_template(None)
    layout = json.loads(every.backend_tokenizer.to_str())
    old, once = layout["model"]["vocab"], layout["model"]["merges"]
    splits = [(token[:i], token[i:]) for token in sorted(old, key=old.__getitem__) for i in range(1, len(token))]
    layout["model"]["merges"] = [[left, right] for left, right in splits if left in old and right in old]
    assert len(layout["model"]["merges"]) > len(once)
    every._tokenizer = Tokenizer.from_str(json.dumps(layout))
    smaller, kept = prune_tokenizer(every, [TEXT], 300)
    assert sorted(smaller.get_vocab().values()) == list(range(300)) and len(kept) == 300
    assert smaller.decode(smaller(TEXT, add_special_tokens=False)["input_ids"]) == TEXT


@pytest.mark.parametrize("vocab_size", [0, 261, 314])
def test_fewer_tokens_than_bytes_and_more_than_there_are_is_a_typed_error(vocab_size):
    with pytest.raises(ConfigError, match="vocab_size: expected 262 to 313"):
        prune_tokenizer(LARGE, TEXTS, vocab_size)


@pytest.mark.parametrize("model", [models.WordLevel({"the": 0}, "the"), models.BPE()])
def test_another_kind_of_tokenizer_is_a_typed_error(model):
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model))
    with pytest.raises(ConfigError, match="byte-level BPE"):
        prune_tokenizer(words, TEXTS, 300)


def test_rows_of_the_embedding_table_follow_their_tokens(base):
    base.config.bos_token_id, base.config.eos_token_id, base.generation_config.eos_token_id = 5, [7, 9], [7, 9]
    old = base.get_input_embeddings().weight.detach().clone()
    take_tokens(base, KEPT, SMALL)
    table = base.get_input_embeddings().weight
    assert table.shape[0] == base.config.vocab_size == 300
    assert table is base.get_output_embeddings().weight
    for row, source in enumerate(KEPT):
        torch.testing.assert_close(table[row], old.mean(0) if source is None else old[source])
    for config in (base.config, base.generation_config):
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, 1, 2)


def test_the_layer_that_does_nothing_is_left_out(base, rows):
    backbone = backbone_of(base)
    idle = copy.deepcopy(backbone.layers[0])
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        idle.get_submodule(name).weight.data.zero_()
    backbone.layers.insert(1, idle)
    base.config.num_hidden_layers = 3
    expected = calibration_loss(base, rows)
    assert choose_layers(base, 2, rows) == [0, 2]
    assert len(backbone.layers) == 3  # measured on a copy
    keep_layers(base, [0, 2])
    assert base.config.num_hidden_layers == 2
    assert calibration_loss(base, rows) == pytest.approx(expected, abs=1e-6)


def test_rows_that_are_never_active_or_never_read_are_cut_without_a_difference(base, rows):
    expected = calibration_loss(base, rows)
    for layer in backbone_of(base).layers:
        mlp = layer.mlp
        idle, unread = torch.zeros(5, 32), torch.ones(5, 32)
        for projection in (mlp.gate_proj, mlp.up_proj):
            weight = projection.weight.data
            projection.weight.data = torch.cat([weight[:3], idle, unread, weight[3:]])
        weight = mlp.down_proj.weight.data
        mlp.down_proj.weight.data = torch.cat([weight[:, :3], unread.T, idle.T, weight[:, 3:]], 1)
    narrow_mlps(base, 48, rows)
    assert backbone_of(base).layers[0].mlp.up_proj.weight.shape == (48, 32)
    assert calibration_loss(base, rows) == pytest.approx(expected, abs=1e-6)


def test_rows_to_measure_on_hold_text_and_text_said_twice():
    texts = [" ".join(f"{word} {i}" for i in range(200)) for word in ("Oder",) * 20 + ("Elbe",) * 20] + ["Rhine"] * 99
    rows = calibration_rows(TokenCodec(SMALL), texts, 8)
    assert rows.shape == (16, 1 + WINDOW)
    assert (rows[:, 0] == SMALL.bos_token_id).all()
    half = WINDOW // 2
    assert torch.equal(rows[8:, 1 : 1 + half], rows[8:, 1 + half :])
    assert torch.equal(rows[:8, : 1 + half], rows[8:, : 1 + half])
    assert {SMALL.decode(row[1:5])[:4] for row in rows} == {"Oder", "Elbe"}
    with pytest.raises(DataError, match="41 documents of 256 tokens and more, got 40"):
        calibration_rows(TokenCodec(SMALL), texts, 41)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {}),
        ("qwen3", {}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
        ("smollm3", {"no_rope_layers": [1, 1, 0], "use_sliding_window": False}),
    ],
)
def test_what_is_left_is_the_same_model_when_it_is_loaded_again(make_base, tokenizer, tmp_path, family, settings):
    base = make_base(family, tie_word_embeddings=True, **settings)
    rows = torch.randint(len(CONTROL), 200, (2, 64), generator=torch.Generator().manual_seed(1))
    keep_layers(base, [0, 2])
    narrow_mlps(base, 24, rows)
    save_base(base, tokenizer, tmp_path / "base")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(rows).logits, base(rows, use_cache=False).logits)


def test_a_pruned_base_is_trained_on(runs, data, tmp_path):
    base = prune(RECIPE, runs[1], data, tmp_path / "prune")
    config = AutoModelForCausalLM.from_pretrained(base).config
    assert (config.num_hidden_layers, config.intermediate_size, config.vocab_size) == (1, 24, 300)
    assert config.max_position_embeddings == 256
    trained = pretrain(changed(PRETRAIN, steps=1, learning_rate=0.0), data, tmp_path / "still", base=base)
    start, still = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (base, trained))
    assert all(torch.equal(weight, still[name]) for name, weight in start.items())
    trained = pretrain(changed(PRETRAIN, steps=40), data, tmp_path / "pretrain", base=base)
    losses = [row["loss"] for row in read_log(tmp_path / "pretrain" / "log.jsonl")]
    assert losses[-1] < losses[0]
    assert len(AutoTokenizer.from_pretrained(trained)) == 300
    assert autoencode(AUTOENCODE, trained, data, tmp_path / "autoencode").is_dir()


def test_a_gguf_file_is_a_base_as_the_directory_it_was_made_of(runs, data, tmp_path):
    write_gguf(runs[1], tmp_path / "tiny.gguf")
    expected = AutoModelForCausalLM.from_pretrained(prune(RECIPE, runs[1], data, tmp_path / "plain"))
    got = AutoModelForCausalLM.from_pretrained(prune(RECIPE, tmp_path / "tiny.gguf", data, tmp_path / "gguf"))
    assert {n: p.shape for n, p in got.named_parameters()} == {n: p.shape for n, p in expected.named_parameters()}
    for name, parameter in expected.named_parameters():
        rounded = {"atol": 2e-3, "rtol": 0.0} if "up_proj" in name else {}  # these are quantised in the file
        torch.testing.assert_close(got.get_parameter(name), parameter, **rounded)


@pytest.mark.parametrize("setting", ["num_hidden_layers", "intermediate_size", "max_position_embeddings"])
def test_more_than_the_base_has_is_a_typed_error(runs, data, tmp_path, setting):
    with pytest.raises(ConfigError, match=f"{setting}: expected 1 to"):
        prune(changed_recipe(**{setting: 5000}), runs[1], data, tmp_path)
    assert prune(RECIPE, runs[1], data, tmp_path).is_dir()  # in the same place, once the recipe is corrected


def changed_recipe(**settings):
    return PruneRecipe(**{**RECIPE.__dict__, **settings})


def test_untied_embeddings_are_a_typed_error(runs, data, tmp_path):
    untied = AutoModelForCausalLM.from_pretrained(runs[1], tie_word_embeddings=False)
    untied.save_pretrained(tmp_path / "untied")
    AutoTokenizer.from_pretrained(runs[1]).save_pretrained(tmp_path / "untied")
    with pytest.raises(ConfigError, match="tied embeddings"):
        prune(RECIPE, tmp_path / "untied", data, tmp_path / "out")


def test_another_recipe_in_the_same_place_is_refused(runs, data, tmp_path):
    prune(RECIPE, runs[1], data, tmp_path)
    with pytest.raises(CheckpointError, match="another recipe"):
        prune(changed_recipe(vocab_size=310), runs[1], data, tmp_path)


def test_a_pruned_base_is_kept_and_never_replaced_by_that_of_another_model(runs, data, tmp_path):
    made = prune(RECIPE, runs[1], data, tmp_path)
    before = (made / "config.json").stat().st_mtime_ns
    assert prune(RECIPE, runs[1], tmp_path / "no data", tmp_path) == made
    with pytest.raises(CheckpointError, match="another recipe"):
        prune(RECIPE, "another/base", data, tmp_path)
    assert (made / "config.json").stat().st_mtime_ns == before


def test_a_run_does_not_go_on_with_another_base(runs, data, tmp_path):
    base = prune(RECIPE, runs[1], data, tmp_path / "prune")
    recipe = changed(PRETRAIN, vocab_size=300, architecture={**PRETRAIN.architecture, "num_hidden_layers": 1,
                     "intermediate_size": 24})  # fmt: skip
    pretrain(changed(recipe, steps=2), data, tmp_path / "pretrain", base=base)
    with pytest.raises(CheckpointError, match="that it was started with"):
        pretrain(recipe, data, tmp_path / "pretrain")  # of the same shape, from random weights


def test_a_base_that_cannot_be_read_is_a_typed_error(data, tmp_path):
    with pytest.raises(CheckpointError, match=r"none.gguf: expected"):
        prune(RECIPE, tmp_path / "none.gguf", data, tmp_path / "out")


@pytest.mark.parametrize("settings", [{"text": ()}, {"calibration_rows": 0}])
def test_nothing_to_measure_on_is_a_typed_error(settings):
    with pytest.raises(ConfigError, match="at least one row"):
        changed_recipe(**settings)


def test_neither_a_base_nor_an_architecture_is_a_typed_error(data, tmp_path):
    with pytest.raises(ConfigError, match="an architecture, or a base"):
        pretrain(changed(PRETRAIN, architecture={}), data, tmp_path)
