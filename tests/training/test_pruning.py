import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from gmsa_rag.errors import CheckpointError, ConfigError, DataError
from gmsa_rag.inference.tokens import TokenCodec
from gmsa_rag.modeling.alignment import backbone_of
from gmsa_rag.training.autoencoding import autoencode
from gmsa_rag.training.logs import read_log
from gmsa_rag.training.pretraining import pretrain
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


def test_another_kind_of_tokenizer_is_a_typed_error():
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"the": 0}, "the")))
    with pytest.raises(ConfigError, match="byte-level BPE"):
        prune_tokenizer(words, TEXTS, 300)


def test_rows_of_the_embedding_table_follow_their_tokens(base):
    old = base.get_input_embeddings().weight.detach().clone()
    take_tokens(base, KEPT, SMALL)
    table = base.get_input_embeddings().weight
    assert table.shape[0] == base.config.vocab_size == 300
    assert table is base.get_output_embeddings().weight
    for row, source in enumerate(KEPT):
        torch.testing.assert_close(table[row], old.mean(0) if source is None else old[source])
    assert (base.config.bos_token_id, base.config.pad_token_id) == (SMALL.bos_token_id, SMALL.pad_token_id)


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


def test_rows_that_are_never_active_are_cut_without_a_difference(base, rows):
    expected = calibration_loss(base, rows)
    for layer in backbone_of(base).layers:
        mlp = layer.mlp
        for projection, dead in ((mlp.gate_proj, 5), (mlp.up_proj, 5)):
            weight = projection.weight.data
            projection.weight.data = torch.cat([weight[:3], torch.zeros(dead, weight.shape[1]), weight[3:]])
        weight = mlp.down_proj.weight.data
        mlp.down_proj.weight.data = torch.cat([weight[:, :3], torch.ones(len(weight), 5), weight[:, 3:]], 1)
    narrow_mlps(base, 48, rows)
    assert backbone_of(base).layers[0].mlp.up_proj.weight.shape == (48, 32)
    assert calibration_loss(base, rows) == pytest.approx(expected, abs=1e-6)


def test_rows_to_measure_on_hold_text_and_text_said_twice():
    codec = TokenCodec(SMALL)
    texts = [" ".join(f"{word} {i}" for i in range(200)) for word in ("Oder", "Elbe", "Rhine")]
    rows = calibration_rows(codec, texts, 2)
    assert rows.shape == (4, WINDOW)
    half = WINDOW // 2
    assert torch.equal(rows[2:, :half], rows[2:, half:])
    assert torch.equal(rows[:2, :half], rows[2:, :half])
    with pytest.raises(DataError, match="4 documents of 256 tokens"):
        calibration_rows(codec, texts, 4)


def test_a_pruned_base_is_trained_on(runs, data, tmp_path):
    base = prune(RECIPE, runs[1], data, tmp_path / "prune")
    config = AutoModelForCausalLM.from_pretrained(base).config
    assert (config.num_hidden_layers, config.intermediate_size, config.vocab_size) == (1, 24, 300)
    assert config.max_position_embeddings == 256
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
        torch.testing.assert_close(got.get_parameter(name), parameter)


@pytest.mark.parametrize("setting", ["num_hidden_layers", "intermediate_size", "vocab_size"])
def test_more_than_the_base_has_is_a_typed_error(runs, data, tmp_path, setting):
    with pytest.raises(ConfigError, match=f"{setting}: expected 1 to"):
        prune(changed_recipe(**{setting: 5000}), runs[1], data, tmp_path)


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


def test_neither_a_base_nor_an_architecture_is_a_typed_error(data, tmp_path):
    with pytest.raises(ConfigError, match="an architecture, or a base"):
        pretrain(changed(PRETRAIN, architecture={}), data, tmp_path)
