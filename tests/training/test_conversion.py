import gzip
import json

import pytest

from gmsa_rag.errors import DataError, DependencyError, InputError
from gmsa_rag.training.conversion import Line, convert, find_dataset, load_rows
from gmsa_rag.training.data import Skipped

SQUAD = find_dataset("squad")
ROW = {"id": "1", "title": "T", "context": "A b.", "question": "What?", "answers": {"text": ["b"], "answer_start": [2]}}


def test_rows_are_converted_and_what_cannot_be_is_named():
    skipped = Skipped()
    bad = [ROW | {"answers": {"text": []}}, {"id": "3"}, ROW | {"context": None}, ROW | {"title": None}]
    (row,) = convert("squad", [*bad, ROW], skipped=skipped)
    assert row == {
        "id": "1", "title": "T", "source": "squad", "contexts": [{"title": "T", "text": "A b."}], "gold": [0],
        "question": "What?", "answers": ["b"],
    }  # fmt: skip
    assert skipped.count == 4
    assert skipped.rows[:3] == [
        "squad, row 1: no answer",
        "squad, row 2: KeyError: 'title'",
        "squad, row 3: `text` is no text: NoneType",
    ]
    assert skipped.rows[3].startswith("squad, row 4: AttributeError: ")


def test_strict_stops_at_the_first_row_that_cannot_be_used():
    rows = convert("squad", [ROW, ROW | {"answers": {"text": []}}], strict=True, skipped=Skipped())
    assert next(rows)["id"] == "1"
    with pytest.raises(DataError, match=r"squad, row 2: .*no answer"):
        next(rows)


def test_a_row_without_an_id_is_numbered():
    rows = [{"document": "x ||||| y", "summary": "z"}] * 2
    assert [row["id"] for row in convert("multinews", rows, skipped=Skipped())] == ["multinews-1", "multinews-2"]


def test_a_text_nested_too_deeply_is_one_row_that_cannot_be_converted():
    skipped = Skipped()
    deep = {"question": "q", "answer": "a", "supporting_facts": [], "context": "[" * 100_000}
    assert list(convert("hotpotqa", [deep], skipped=skipped)) == []
    assert skipped.rows[0].startswith("hotpotqa, row 1: RecursionError")


def test_lines_are_parsed_and_broken_ones_named_by_their_place():
    contents = [b"{no json", b"[1]", b'{"id": "\xff"}', b"[" * 100_000, json.dumps(ROW).encode()]
    lines = [Line(f"a.jsonl, row {number}", content) for number, content in enumerate(contents, 3)]
    skipped = Skipped()
    (row,) = convert("squad", lines, skipped=skipped)
    assert row["id"] == "1" and skipped.count == 4
    for named, reason in zip(
        skipped.rows,
        ["row 3: Expecting", "row 4: no JSON object: list", "row 5: 'utf-8'", "row 6: nested"],
        strict=True,
    ):
        assert named.startswith(f"a.jsonl, {reason}")
    with pytest.raises(DataError, match=r"a\.jsonl, row 3: "):
        next(convert("squad", lines, strict=True, skipped=Skipped()))


def test_an_unknown_dataset_is_a_typed_error():
    with pytest.raises(InputError, match="one of 2wikimultihopqa, hotpotqa"):
        find_dataset("trivia")


class Library:
    """Stands for the package datasets, and notes what it is asked for."""

    class exceptions:
        class DatasetsError(Exception):
            pass

    def __init__(self, error=None):
        self.error, self.asked = error, None

    def load_dataset(self, **asked):
        self.asked = asked
        yield {"row": 1}
        if self.error:
            raise self.error


def use(monkeypatch, library):
    monkeypatch.setattr("gmsa_rag.training.conversion._library", lambda: library)
    return library


def test_the_hub_is_asked_for_a_stream(monkeypatch):
    library = use(monkeypatch, Library())
    assert list(load_rows(find_dataset("hotpotqa"), "validation", revision="main")) == [{"row": 1}]
    assert library.asked == {
        "path": "hotpotqa/hotpot_qa", "name": "distractor", "revision": "main", "split": "validation",
        "streaming": True,
    }  # fmt: skip


@pytest.mark.parametrize("error", [ConnectionError("no way"), ValueError(""), Library.exceptions.DatasetsError("x")])
def test_what_cannot_be_reached_is_a_typed_error(monkeypatch, error):
    use(monkeypatch, Library(error))
    rows = load_rows(SQUAD, "train")
    assert next(rows) == {"row": 1}
    with pytest.raises(DataError, match=rf"rajpurkar/squad: .* split train .*{error or 'ValueError'}"):
        next(rows)


def test_a_missing_package_is_a_typed_error(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DependencyError, match=r'pip install "gmsa-rag\[train\]"'):
        next(load_rows(SQUAD, "train"))


def test_json_lines_need_no_package_and_keep_their_numbers(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{no json\n  \n')
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"b": NaN}\r\n'))
    assert list(load_rows(SQUAD, "train", [tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"])) == [
        Line("a.jsonl, row 1", b'{"a": 1}\n'),
        Line("a.jsonl, row 3", b"{no json\n"),
        Line("b.jsonl.gz, row 1", b'{"b": NaN}\r\n'),
    ]


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", ""), ("a.jsonl", "\n \n"), ("a.json", ""), ("a.json", "[]")])
def test_no_rows_are_a_typed_error(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=rf"{name}: expected at least one row"):
        next(load_rows(SQUAD, "train", [tmp_path / name]))


def test_a_directory_may_be_named_like_a_file(monkeypatch, tmp_path):
    library = use(monkeypatch, Library())
    (tmp_path / "a.jsonl").mkdir()
    assert list(load_rows(SQUAD, "train", [tmp_path / "a.jsonl"])) == [{"row": 1}]
    assert library.asked["path"] == str(tmp_path / "a.jsonl")


@pytest.mark.parametrize("names", [["a.csv"], ["a.json", "a.parquet"], ["a.jsonl", "a.json"], [".", "a.json"]])
def test_files_of_no_or_several_kinds_are_refused(tmp_path, names):
    with pytest.raises(InputError, match="files of one kind"):
        next(load_rows(SQUAD, "train", [tmp_path / name for name in names]))
