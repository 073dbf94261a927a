import json

import pytest
import torch
from typer.testing import CliRunner

from gmsa_rag.cli import app


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """Runs `gmsa bench` with a place to write to; gives what it printed and the one JSON file."""
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "")

    def run(*arguments):
        result = CliRunner().invoke(app, ["bench", *arguments, "--device", "cpu", "--out", str(tmp_path / "out")])
        assert result.exit_code == 0, result.output
        (path,) = (tmp_path / "out").glob("*.json")
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        return result.output, json.loads(path.read_text(encoding="utf-8"))

    return run


def test_compress_prints_a_table_and_writes_json_and_a_plot(bench, tiny_shape):
    printed, report = bench(
        "compress", "--shape", "tiny", "--passages", "5", "--min-tokens", "2", "--max-tokens", "20", "--rate", "4",
        "--dtype", "float32,bfloat16", "--encoder-layers", "1", "--repeats", "1", "--peak-tflops", "1",
    )  # fmt: skip
    assert "published" in printed and "tokens per second" in printed and "seed 0" in printed
    assert [(row["way"], row["dtype"]) for row in report["rows"]] == [
        ("published", "float32"), ("ours", "float32"), ("ours", "bfloat16")
    ]  # fmt: skip
    assert report["setting"]["options"]["encoder_layers"] == 1
    assert report["setting"]["model"] == "tiny" and report["notes"]["peak_tflops_float32"] == 1.0


def test_compress_measures_growth(bench, tiny_shape):
    printed, report = bench(
        "compress", "--shape", "tiny", "--growth", "--passages", "4", "--min-tokens", "2", "--max-tokens", "9",
        "--growth-passages", "1,4", "--growth-tokens", "64", "--repeats", "1", "--no-memory",
    )  # fmt: skip
    assert "microseconds per token" in printed
    assert [row["passages"] for row in report["rows"]] == [1, 4, 2]
    assert report["rows"][0]["peak_mib"] is None


def test_compress_takes_a_checkpoint(bench, gmsa, tmp_path):
    gmsa.save_pretrained(tmp_path / "tiny-checkpoint")
    _, report = bench(
        "compress", "--model", str(tmp_path / "tiny-checkpoint"), "--passages", "3", "--repeats", "1", "--seed", "5"
    )
    assert (report["setting"]["model"], report["setting"]["seed"]) == ("tiny-checkpoint", 5)
    assert report["setting"]["options"]["max_tokens"] == 48  # its window
    assert len(report["rows"]) == 2


def test_kernel_says_what_was_measured(bench):
    printed, report = bench("kernel", "--widths", "16,24", "--tokens", "300", "--repeats", "1", "--dtype", "float32")
    assert "Triton does not run on cpu" in printed and report["notes"]["note"] in printed
    assert {row["way"] for row in report["rows"]} == {"torch", "eager", "reference"}
    assert [row["width"] for row in report["rows"][::6]] == [16, 24]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compress", "--shape", "huge"], "qwen3-0.6b"),
        (["compress", "--shape", "tiny", "--dtype", "int8"], "float32, bfloat16 or float16"),
        (["compress", "--shape", "tiny", "--growth", "--growth-passages", "no"], "whole|numbers"),
        (["kernel", "--widths", "0"], "numbers"),
    ],
)
def test_what_makes_no_sense_is_one_message(tiny_shape, monkeypatch, arguments, message):
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "")
    monkeypatch.setenv("COLUMNS", "300")
    threads = torch.get_num_threads()
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert result.exit_code in (1, 2) and "Traceback" not in result.output
    assert any(part in result.output for part in message.split("|"))
    assert torch.get_num_threads() == threads
