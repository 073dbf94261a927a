import json

import pytest
from typer.testing import CliRunner

from gmsa_rag.cli import app
from gmsa_rag.errors import DataError, InputError
from gmsa_rag.training.data import Skipped
from gmsa_rag.training.splitting import split_rows


def row(article, number, title=None):
    title = f"Article {article}" if title is None else title
    context = {"title": title, "text": f"Text {article}."}
    return {"contexts": [context], "gold": [0], "question": f"Which {number}?", "answers": ["Text"], "id": number}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "all.jsonl"
    rows = [row(article, number) for number in range(3) for article in range(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def part(path, validation, **settings):
    settings = {"share": 0.2, "strict": True, "skipped": Skipped(), **settings}
    return list(split_rows(path, validation=validation, **settings))


def titles(rows):
    return {row["contexts"][0]["title"] for row in rows}


def test_the_parts_are_all_rows_and_share_no_article(file):
    train, validation = part(file, False), part(file, True)
    assert len(train) + len(validation) == 600
    assert not titles(train) & titles(validation)
    assert 20 <= len(titles(validation)) <= 60  # of 200 articles a fifth: five deviations around 40
    assert json.loads(file.read_text().splitlines()[0]) in train + validation


def test_a_seed_chooses_the_articles(file):
    assert titles(part(file, True)) == titles(part(file, True))
    assert titles(part(file, True)) != titles(part(file, True, seed=1))
    assert titles(part(file, True)) < titles(part(file, True, share=0.5))


def test_without_titles_the_passages_keep_questions_together(tmp_path):
    path = tmp_path / "untitled.jsonl"
    path.write_text("".join(json.dumps(row(a, n, title="")) + "\n" for n in range(2) for a in range(100)))
    train, validation = part(path, False), part(path, True)
    texts = [{row["contexts"][0]["text"] for row in rows} for rows in (train, validation)]
    assert not texts[0] & texts[1] and len(texts[1]) > 1


@pytest.mark.parametrize("share", [0, 1, -0.1, float("nan")])
def test_a_share_out_of_range(file, share):
    with pytest.raises(InputError, match="share"):
        part(file, True, share=share)


def test_the_command_writes_both_parts_and_names_malformed_rows(file, tmp_path):
    file.write_text(file.read_text() + "[]\n")
    train, validation = tmp_path / "t.jsonl", tmp_path / "v.jsonl.gz"
    arguments = ["data", "split", str(file), "--train", str(train), "--validation", str(validation), "--share", "0.2"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert len(train.read_text().splitlines()) == len(part(file, False, strict=False))
    assert part(validation, True) == part(file, True, strict=False)
    assert done.stderr.count("left out: ") == 1
    assert CliRunner().invoke(app, [*arguments, "--strict"]).exit_code == 1
    with pytest.raises(DataError):
        part(file, True)
