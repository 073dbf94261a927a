import gzip
import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from gmsa_rag.cli import app
from gmsa_rag.training.data import read_questions

SQUAD = {
    "id": "56be", "title": "Saint_Helena", "context": "Longwood House stands on Saint Helena.",
    "question": "Where does it stand?", "answers": {"text": ["Saint Helena"], "answer_start": [25]},
}  # fmt: skip
TWO_WIKI = {
    "_id": "8813", "type": "bridge", "question": "Which river?", "answer": "Elbe",
    "supporting_facts": [["Fort", 0], ["River", 1]],
    "context": [["Fort", ["A fort."]], ["Other", ["Nothing."]], ["River", ["A river.", "It is the Elbe."]]],
}  # fmt: skip


@pytest.fixture
def gmsa_data():
    def run(*arguments):
        return CliRunner().invoke(app, ["data", *map(str, arguments)])

    return run


def lines(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def test_convert_squad(gmsa_data, tmp_path):
    source = lines(tmp_path / "squad.jsonl", [SQUAD, SQUAD | {"id": "2", "answers": {"text": [], "answer_start": []}}])
    out = tmp_path / "out" / "squad.jsonl.gz"
    done = gmsa_data("convert", "squad", "--input", source, "--out", out)
    assert done.exit_code == 0, done.output
    assert f"{out}: 1 rows written, 1 left out" in done.stdout
    assert "left out: squad.jsonl, row 2: no answer" in done.stderr
    (question,) = read_questions(out)
    assert question.titles == ("Saint Helena",) and question.answers == ("Saint Helena",)
    with gzip.open(out, "rt") as file:
        assert json.loads(file.read())["source"] == "squad"


def test_convert_strict_writes_nothing_and_names_the_row(gmsa_data, tmp_path):
    source = lines(tmp_path / "squad.jsonl", [SQUAD, SQUAD | {"answers": {"text": [], "answer_start": []}}])
    done = gmsa_data("convert", "squad", "--input", source, "--out", tmp_path / "out.jsonl", "--strict")
    assert done.exit_code == 1 and "gmsa: squad.jsonl, row 2: " in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["squad.jsonl"]


@pytest.mark.parametrize("name", ["two.json", "two.jsonl", "two.jsonl.gz"])
def test_convert_two_wiki_as_it_was_released(gmsa_data, tmp_path, name):
    if name == "two.json":
        (tmp_path / name).write_text(json.dumps([TWO_WIKI, TWO_WIKI]))
    else:
        lines(tmp_path / name, [TWO_WIKI, TWO_WIKI])
    out = tmp_path / "out.jsonl"
    done = gmsa_data("convert", "2wikimultihopqa", "--input", tmp_path / name, "--out", out, "--limit", 1)
    assert done.exit_code == 0, done.output
    (question,) = read_questions(out)
    assert question.passages == ("A fort.", "Nothing.", "A river. It is the Elbe.")
    assert question.titles == ("Fort", "Other", "River") and question.gold == (2, 0)


def test_convert_reads_a_split_of_a_directory(gmsa_data, tmp_path):
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    (tmp_path / "data").mkdir()
    for split, answer in ("train", "Longwood"), ("validation", "Saint Helena"):
        row = SQUAD | {"answers": {"text": [answer], "answer_start": [0]}}
        Dataset.from_list([row]).to_parquet(str(tmp_path / "data" / f"{split}-00000-of-00001.parquet"))
    out = tmp_path / "out.jsonl"
    done = gmsa_data("convert", "squad", "--input", tmp_path / "data", "--split", "validation", "--out", out)
    assert done.exit_code == 0, done.output
    assert [question.answers for question in read_questions(out)] == [("Saint Helena",)]
    done = gmsa_data("convert", "squad", "--input", tmp_path / "data", "--split", "test", "--out", out)
    assert done.exit_code == 1 and "a split test" in done.stderr


def test_convert_refuses_what_it_does_not_know(gmsa_data, tmp_path):
    done = gmsa_data("convert", "trivia", "--out", tmp_path / "out.jsonl")
    assert done.exit_code == 1 and "expected one of 2wikimultihopqa, hotpotqa" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_convert_leaves_broken_lines_out_unless_strict(gmsa_data, tmp_path):
    broken, out = tmp_path / "broken.jsonl", tmp_path / "out.jsonl"
    broken.write_text(f"{json.dumps(SQUAD)}\n\n{{no json\n{json.dumps(SQUAD)}\n\n")
    arguments = ["convert", "squad", "--input", broken, "--out", out]
    done = gmsa_data(*arguments, "--strict")
    assert done.exit_code == 1 and "gmsa: broken.jsonl, row 3: " in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["broken.jsonl"]
    done = gmsa_data(*arguments)
    assert done.exit_code == 0 and f"{out}: 2 rows written, 1 left out" in done.stdout
    assert "left out: broken.jsonl, row 3: Expecting property name" in done.stderr
    assert len(list(read_questions(out))) == 2


def test_convert_writes_nothing_of_an_empty_file(gmsa_data, tmp_path):
    empty, out = tmp_path / "empty.jsonl", tmp_path / "out.jsonl"
    empty.write_text("")
    done = gmsa_data("convert", "squad", "--input", empty, "--out", out)
    assert done.exit_code == 1 and "expected at least one row" in done.stderr and not out.exists()


def test_make_and_check(gmsa_data, data, tmp_path):
    text, out = data / "text" / "rivers.txt.gz", tmp_path / "made.jsonl"
    made = gmsa_data("make", text, "--out", out, "--questions", 20, "--passages", 3, "--words", 30, "--seed", 1)
    assert made.exit_code == 0 and made.stdout == f"{out}: 20 rows written\n", made.output
    first = out.read_bytes()
    gmsa_data("make", text, "--out", out, "--questions", 20, "--passages", 3, "--words", 30, "--seed", 1)
    assert out.read_bytes() == first
    checked = gmsa_data("check", out, "--strict")
    assert checked.exit_code == 0
    assert checked.stdout == "20 rows: 20 questions of 60 passages, 0 malformed\n"


def test_make_says_when_the_texts_give_no_more(gmsa_data, tmp_path):
    (tmp_path / "a.txt").write_text("The Rhine was measured by 4500 men.")
    out = tmp_path / "made.jsonl"
    done = gmsa_data("make", tmp_path / "a.txt", "--out", out, "--questions", 5)
    assert done.exit_code == 0 and done.stdout == f"{out}: 0 rows written (the texts give no more)\n"


@pytest.mark.parametrize("command", [("convert", "squad", "--input"), ("make", "--questions", 5)])
def test_nothing_is_written_over_its_source(gmsa_data, tmp_path, command):
    source = tmp_path / "source.jsonl"
    source.write_text("{}\n")
    done = gmsa_data(*command, source, "--out", tmp_path / "." / "source.jsonl")
    assert done.exit_code == 1 and "expected another file than" in done.stderr
    assert source.read_text() == "{}\n"


def test_check_names_malformed_rows_and_strict_fails(gmsa_data, tmp_path):
    good = {"input": "x", "prompt": "q", "answer": "a"}
    one = lines(tmp_path / "one.jsonl", [good, {}, good])
    two = lines(tmp_path / "two.jsonl.gz", [good, [1]])
    for options, code in ((), 0), (("--strict",), 1):
        done = gmsa_data("check", one, two, *options)
        assert done.exit_code == code
        assert done.stdout == "5 rows: 3 questions of 3 passages, 2 malformed\n"
        assert done.stderr == (
            "left out: one.jsonl, row 2: `contexts` is missing\nleft out: two.jsonl.gz, row 2: no JSON object: list\n"
        )


def test_check_counts_what_it_does_not_name(gmsa_data, tmp_path):
    path = lines(tmp_path / "bad.jsonl", [{}] * 1003)
    done = gmsa_data("check", path)
    assert done.stdout == "1003 rows: 0 questions of 0 passages, 1003 malformed\n"
    assert done.stderr.count("left out: ") == 1000 and done.stderr.endswith("and 3 more\n")


def test_help_loads_nothing_heavy():
    code = (
        "import sys, gmsa_rag.training.data_commands, gmsa_rag.training.conversion; "
        "sys.exit(bool({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
