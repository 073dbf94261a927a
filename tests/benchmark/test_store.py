import json

import pytest
from typer.testing import CliRunner

from gmsa_rag.benchmark.store import kv_bytes_per_token, measure_store, plot_store
from gmsa_rag.benchmark.texts import make_passages
from gmsa_rag.cli import app
from gmsa_rag.errors import InputError


def test_operations_and_bytes_are_those_of_the_memories(gmsa):
    rows = measure_store(gmsa, [1, 3], 40, [4, 8], repeats=1)
    operations = ["put_many", "get_many", "resolve each", "compress again"]
    assert [(row.operation, row.memories, row.rate) for row in rows] == [
        (operation, count, rate) for rate in (4, 8) for count in (1, 3) for operation in operations
    ]
    passages = make_passages(gmsa.codec, 3, 40)
    memories = gmsa.compress(passages, 8)
    last = rows[-1]
    assert last.speedup == 1.0 and last.ms_per_memory == pytest.approx(last.ms / 3)
    assert last.memory_bytes == sum(len(memory.to_bytes()) for memory in memories)
    assert last.source_tokens == sum(memory.num_tokens for memory in memories)
    assert last.bytes_per_token == last.memory_bytes / last.source_tokens
    assert last.text_bytes == len("".join(passages))
    assert last.soft_kv_cache_bytes == kv_bytes_per_token(gmsa) * sum(memory.num_soft_tokens for memory in memories)
    assert last.kv_cache_bytes == kv_bytes_per_token(gmsa) * last.source_tokens
    assert rows[0].file_bytes <= last.file_bytes


def test_keys_and_values_of_a_token(gmsa):
    with_keys, layers, heads, width, float32 = 2, 3, 2, 8, 4
    assert kv_bytes_per_token(gmsa) == with_keys * layers * heads * width * float32


def test_nothing_to_measure_is_a_typed_error(gmsa):
    for counts, rates in (([], [4]), ([1], [])):
        with pytest.raises(InputError, match="store"):
            measure_store(gmsa, counts, 40, rates)


def test_the_plot_draws_every_row(gmsa, tmp_path):
    rows = measure_store(gmsa, [1], 20, [4], repeats=1)
    assert plot_store(rows, tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_prints_a_table_and_writes_json_and_a_plot(gmsa, monkeypatch, tmp_path):
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "")
    gmsa.save_pretrained(tmp_path / "tiny")
    result = CliRunner().invoke(app, [
        "bench", "store", "--model", str(tmp_path / "tiny"), "--device", "cpu", "--tokens", "20", "--memories", "2",
        "--rates", "4", "--repeats", "1", "--out", str(tmp_path / "out"),
    ])  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "kv cache bytes" in result.output
    report = json.loads((tmp_path / "out" / "store-tiny.json").read_text(encoding="utf-8"))
    assert [row["operation"] for row in report["rows"]][:2] == ["put_many", "get_many"]
