import json
import shutil

import pytest
import yaml
from typer.testing import CliRunner

from gmsa_rag.cli import app
from gmsa_rag.inference.engine import GMSA

RECIPE = {
    "prune": {
        "text": ["rivers"], "num_hidden_layers": 1, "intermediate_size": 32, "vocab_size": 300, "calibration_rows": 1,
        "max_position_embeddings": 256,
    },
    "pretrain": {
        "optimisation": {"steps": 3, "batch_tokens": 200, "bf16": False}, "text": ["rivers"],
        "vocab_size": 400, "window": 24,
        "architecture": {
            "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        },
    },
    "autoencode": {
        "optimisation": {"steps": 3, "batch_tokens": 200}, "text": ["rivers"], "encoder_layers": 1, "window": 48,
        "train_decoder": True, "phases": [{"rates": [1, 4], "windows": [16, 16]}],
    },
    "keft": {
        "optimisation": {"steps": 3, "batch_tokens": 200}, "text": ["rivers"], "questions": ["rivers.train"],
        "phases": [{"rates": [1, 4], "windows": [16, 48]}], "tasks": {"question": 1.0},
    },
}  # fmt: skip


@pytest.fixture
def train(tmp_path, data):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    runner = CliRunner()

    def run(stage, *options):
        common = ["--recipe", str(tmp_path / "recipe.yaml"), "--data", str(data), "--out", str(tmp_path / stage)]
        return runner.invoke(app, ["train", stage, *common, *map(str, options)])

    return run


def test_the_three_stages_and_the_export(train, tmp_path):
    assert train("pretrain").exit_code == 0
    assert train("autoencode", "--base", tmp_path / "pretrain" / "base").exit_code == 0
    assert train("keft", "--checkpoint", tmp_path / "autoencode" / "checkpoint", "--threads", 1).exit_code == 0
    options = ["--checkpoint", str(tmp_path / "keft" / "checkpoint"), "--out", str(tmp_path / "small")]
    done = CliRunner().invoke(app, ["train", "export", *options])
    assert done.exit_code == 0
    assert GMSA.from_pretrained(tmp_path / "small").fingerprint == done.stdout.split()[-1]
    settings = json.loads((tmp_path / "small" / "decoder" / "config.json").read_text())
    assert settings["dtype"] == "bfloat16"


def test_a_base_is_pruned_and_trained_on(train, tmp_path):
    assert train("pretrain").exit_code == 0
    done = train("prune", "--base", tmp_path / "pretrain" / "base")
    assert done.stdout.split()[-1] == str(tmp_path / "prune" / "base")
    shutil.rmtree(tmp_path / "pretrain")
    done = train("pretrain", "--base", tmp_path / "prune" / "base")
    assert done.exit_code == 0
    settings = json.loads((tmp_path / "pretrain" / "base" / "config.json").read_text())
    assert (settings["num_hidden_layers"], settings["vocab_size"]) == (1, 300)


def test_missing_data_is_a_clear_error(train, tmp_path, data):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE).replace("rivers", "lakes"))
    done = train("pretrain")
    assert done.exit_code != 0
    assert "lakes" in done.output + str(done.exception)
