import json

import pytest

from gmsa_rag.errors import DataError
from gmsa_rag.training.logs import read_log
from gmsa_rag.training.pretraining import pretrain
from tests.training.stages import PRETRAIN, changed


def test_losses_fall(data, tmp_path):
    pretrain(changed(PRETRAIN, steps=60), data, tmp_path / "run")
    rows = read_log(tmp_path / "run" / "log.jsonl")
    assert [row["step"] for row in rows] == [20, 40, 60]
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5


def test_time_ends_a_run(data, tmp_path):
    pretrain(changed(PRETRAIN, steps=10**6, max_minutes=0.002), data, tmp_path / "run")
    assert 1 <= json.loads((tmp_path / "run" / "resume" / "state.json").read_text())["step"] < 1000


def test_too_little_text_is_a_typed_error(tmp_path):
    (tmp_path / "rivers.txt").write_text("The Oder is long.")
    with pytest.raises(DataError, match="more than 32 tokens"):
        pretrain(PRETRAIN, tmp_path, tmp_path / "run")


def test_a_recipe_may_be_mended_after_missing_data(data, tmp_path):
    with pytest.raises(DataError, match="lakes"):
        pretrain(changed(PRETRAIN, text=("lakes",)), data, tmp_path / "run")
    pretrain(changed(PRETRAIN, steps=1), data, tmp_path / "run")
