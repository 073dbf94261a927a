import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from gmsa_rag.benchmark import answer as module
from gmsa_rag.benchmark.answer import AnswerRow, break_even, ceiling, measure_answers, plot_answers
from gmsa_rag.benchmark.engines import engine_name, pick_engine
from gmsa_rag.benchmark.shapes import SHAPES, Shape
from gmsa_rag.benchmark.texts import make_passages
from gmsa_rag.cli import app
from gmsa_rag.errors import ConfigError, InputError
from gmsa_rag.inference.engine import GMSA


@pytest.fixture
def engine(make_base, tokenizer):
    """One of its own: a benchmark widens the window."""
    return GMSA.from_base(make_base(), tokenizer, encoder_layers=2, window=48)


@pytest.fixture
def small_shape(monkeypatch):
    """A shape whose vocabulary is the bundled tokenizer's, under the name "small"."""
    settings = {
        **SHAPES["gmsa-mini"].settings, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
    }  # fmt: skip
    monkeypatch.setitem(SHAPES, "small", Shape(settings, SHAPES["gmsa-mini"].rope, encoder_layers=2, window=32))


def row(way, rate, context, total_speedup=1.0):
    return AnswerRow(way, context, rate, 1, 1.0, (1.0, 1.0), 1.0, 1.0, (1.0, 1.0), total_speedup, None)


def test_every_way_is_measured_with_the_same_number_of_tokens(engine, monkeypatch):
    generated = []
    choose = module.GMSA.generate
    monkeypatch.setattr(
        module.GMSA, "generate", lambda self, *a, **kw: generated.append(tuple(kw.values())) or choose(self, *a, **kw)
    )
    rows, notes = measure_answers(engine, [2, 4], 60, [4], new_tokens=5, repeats=2)
    ways = [("full text", None), ("full text, transformers", None)]
    ways += [(name, 4) for name in ("memories at hand", "stored memories", "compressed now")]
    assert [(row.way, row.rate) for row in rows] == ways * 2
    assert set(generated) == {(1, 1), (5, 5)}
    assert rows[0].positions == rows[1].positions > rows[0].context > 100
    assert rows[2].positions == rows[3].positions == rows[4].positions < rows[0].positions - rows[0].context / 2
    assert rows[0].total_speedup == rows[0].first_token_speedup == 1.0 and rows[0].ceiling is None
    assert rows[5].context > 200
    assert [value for name, value in notes.items() if "as transformers" in name] == ["5 of 5", "5 of 5"]


def test_stored_memories_are_not_made_again(engine, monkeypatch):
    passages = make_passages(engine.codec, 2, 40)
    made = []
    make = engine._compress
    monkeypatch.setattr(engine, "_compress", lambda texts, *args: made.extend(texts) or make(texts, *args))
    with module.MemoryStore(":memory:") as store:
        ways = {way.name: way for way in module._ways(engine, passages, [4], store)}
        assert made == passages
        assert [memory.key for memory in ways["stored memories"].passages()] == store.keys() and made == passages
        assert len(ways["compressed now"].passages()) == 2 and made == passages * 2


def test_the_window_is_widened_for_full_text(engine):
    rows, _ = measure_answers(engine, [6], 60, [8], new_tokens=2, repeats=1)
    assert engine.decoder_window == engine.decoding.window == rows[0].positions + 2


@pytest.mark.parametrize(("rate", "expected"), [(4, 1.84), (8, 2.41), (16, 2.85)])
def test_the_ceiling_counts_operations(engine, monkeypatch, rate, expected):
    monkeypatch.setattr(engine.decoder.config, "num_hidden_layers", 28)
    monkeypatch.setattr(engine.config, "encoder_layers", 8)
    assert ceiling(engine, rate, compressing=True) == pytest.approx(expected, abs=0.005)
    assert ceiling(engine, rate, compressing=False) == rate


def test_break_even_counts_uses_and_context():
    rows = [
        row(way, rate, context, speedup)
        for context, stored, compressed in [(100, 1.25, 10 / 13), (900, 4.5, 1.5)]
        for way, rate, speedup in [
            ("full text", None, 1.0), ("full text, transformers", None, 2.0), ("stored memories", 8, stored),
            ("compressed now", 8, compressed),
        ]
    ]  # fmt: skip
    assert break_even(rows) == {
        "rate 8, 100 tokens, compressing pays from use": "3",
        "rate 8, 900 tokens, compressing pays from use": "1",
        "rate 8, one use, compressing pays from tokens": "900",
    }
    slow = [replace(row, total_speedup=0.5) if row.rate else row for row in rows]
    assert set(break_even(slow).values()) == {"never", "more than measured"}


def test_nothing_to_measure_is_a_typed_error(engine):
    for counts, rates, new_tokens in (([], [4], 2), ([1], [], 2), ([1], [4], 1)):
        with pytest.raises(InputError, match="answer"):
            measure_answers(engine, counts, 40, rates, new_tokens=new_tokens)
    for count, tokens in ((0, 40), (1, 7)):
        with pytest.raises(InputError, match="passages"):
            make_passages(engine.codec, count, tokens)


def test_passages_are_of_the_length_asked_for_and_all_different(gmsa):
    passages = make_passages(gmsa.codec, 30, 300)
    assert len(set(passages)) == 30
    assert all(abs(len(ids) - 300) <= 4 for ids in gmsa.codec.encode(passages))


def test_an_engine_is_a_checkpoint_s_or_a_shape_s(engine, small_shape, tmp_path):
    engine.save_pretrained(tmp_path / "saved")
    loaded = pick_engine(str(tmp_path / "saved"), None, device="cpu", dtype=torch.float32)
    assert loaded.fingerprint == engine.fingerprint and engine_name(str(tmp_path / "saved"), None) == "saved"
    made = pick_engine(None, "small", device="cpu", dtype=torch.float32, layers=1)
    assert made.config.encoder_layers == 1 and made.config.window == 32 and engine_name(None, "small") == "small"
    assert made.generate([made.compress("Vienna lies on the Danube.", 4), "Where?"], max_new_tokens=2) is not None
    with pytest.raises(ConfigError, match="both"):
        pick_engine("gmsa-mini", "small", device="cpu", dtype=torch.float32)


def test_the_plot_draws_every_row(tmp_path):
    rows = [row("full text", None, 100), row("stored memories", 8, 100, 2.0)]
    assert plot_answers(rows, tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_prints_a_table_and_writes_json_and_a_plot(small_shape, monkeypatch, tmp_path):
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "")
    result = CliRunner().invoke(app, [
        "bench", "answer", "--shape", "small", "--device", "cpu", "--tokens", "20", "--context", "40,80", "--rates",
        "4", "--new-tokens", "2", "--repeats", "1", "--cache", "static", "--no-numbered", "--out", str(tmp_path),
    ])  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "stored memories" in result.output and "compressing pays from use" in result.output
    report = json.loads((tmp_path / "answer-small.json").read_text(encoding="utf-8"))
    assert report["setting"]["options"]["passages"] == [2, 4] and len(report["rows"]) == 10
    frames = [row["positions"] - row["context"] for row in report["rows"][::5]]
    assert frames[0] == frames[1]  # nothing stands between the passages
    assert (tmp_path / "answer-small.png").exists()
