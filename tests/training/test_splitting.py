import hashlib
import json
from collections import Counter

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
    return {context["title"] for row in rows for context in row["contexts"]}


def split(*arguments):
    return CliRunner().invoke(app, ["data", "split", *map(str, arguments), "--share", "0.2"])


@pytest.fixture
def pairs(tmp_path):
    """A file of questions with two gold passages each, of 40 articles; two in three are of different articles."""
    path = tmp_path / "pairs.jsonl"
    rows = [
        {**row(a, a), "contexts": row(a, a)["contexts"] + row(a + step, a)["contexts"], "gold": [0, 1]}
        for a in range(40)
        for step in range(3)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


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


def test_an_article_of_several_gold_passages_is_in_one_part(pairs):
    parts = Counter()
    train, validation = part(pairs, False), part(pairs, True, parts=parts)
    assert not titles(train) & titles(validation)
    assert parts == {False: len(train), True: len(validation), None: 120 - len(train) - len(validation)}
    assert min(parts.values()) > 0


def test_an_article_is_held_out_as_it_ever_was(file):
    digests = {
        title: int.from_bytes(hashlib.blake2b(json.dumps([7, [title]]).encode(), digest_size=8).digest(), "big")
        for title in titles(part(file, True, seed=7) + part(file, False, seed=7))
    }
    assert titles(part(file, True, seed=7)) == {title for title, digest in digests.items() if digest < 0.2 * 2**64}


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
    arguments = [file, "--train", train, "--validation", validation]
    done = split(*arguments)
    assert done.exit_code == 0, done.output
    assert len(train.read_text().splitlines()) == len(part(file, False, strict=False))
    assert part(validation, True) == part(file, True, strict=False)
    assert done.stderr.count("left out: ") == 1 and "neither" not in done.stderr
    assert split(*arguments, "--strict").exit_code == 1
    with pytest.raises(DataError):
        part(file, True)


def test_the_command_tells_of_rows_in_neither_part(pairs, tmp_path):
    train, validation = tmp_path / "t.jsonl", tmp_path / "v.jsonl"
    done = split(pairs, "--train", train, "--validation", validation)
    written = len((train.read_text() + validation.read_text()).splitlines())
    assert done.stderr == f"{120 - written} rows in neither part: their gold passages are of articles of both\n"


@pytest.mark.parametrize(
    ("train", "validation"), [("all.jsonl", "v.jsonl"), ("t.jsonl", "link.jsonl"), ("p.jsonl", "./p.jsonl")]
)
def test_the_command_writes_no_file_over_another(file, tmp_path, monkeypatch, train, validation):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.jsonl").symlink_to(file)
    before = file.read_bytes()
    done = split(file, "--train", train, "--validation", validation)
    assert done.exit_code == 1 and "expected another file than" in done.stderr
    assert file.read_bytes() == before and {path.name for path in tmp_path.iterdir()} == {"all.jsonl", "link.jsonl"}


def test_the_command_keeps_fields_that_utf8_cannot_hold(tmp_path):
    source = tmp_path / "q.jsonl"
    source.write_text(json.dumps(row(1, 1) | {"title": "\ud800"}) + "\n")
    done = split(source, "--train", tmp_path / "t.jsonl", "--validation", tmp_path / "v.jsonl")
    assert done.exit_code == 0, done.output
    text = (tmp_path / "t.jsonl").read_text() + (tmp_path / "v.jsonl").read_text()
    assert json.loads(text)["title"] == "\ud800"
