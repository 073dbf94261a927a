import pytest

from gmsa_rag.errors import DataError, DependencyError, InputError
from gmsa_rag.training.conversion import convert, find_dataset, load_rows
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


@pytest.mark.parametrize("names", [["a.csv"], ["a.json", "a.parquet"], [".", "a.json"]])
def test_files_of_no_or_several_kinds_are_refused(tmp_path, names):
    with pytest.raises(InputError, match="files of one kind"):
        next(load_rows(SQUAD, "train", [tmp_path / name for name in names]))
