import gzip
import json
import os

import pytest

from gmsa_rag.errors import InputError
from gmsa_rag.training.files import check_apart, write_rows

ROWS = [{"text": "é"}, {"text": "two\nlines"}]
LINES = '{"text": "é"}\n{"text": "two\\nlines"}\n'


def test_rows_are_written_plain_or_packed(tmp_path):
    assert write_rows(tmp_path / "new" / "a.jsonl", iter(ROWS)) == 2
    assert (tmp_path / "new" / "a.jsonl").read_text("utf-8") == LINES
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_rows(tmp_path / name, ROWS)
    packed = (tmp_path / "a.jsonl.gz").read_bytes()
    assert gzip.decompress(packed).decode() == LINES
    assert packed == (tmp_path / "b.jsonl.gz").read_bytes()


def test_a_lone_surrogate_is_written_as_json_escapes_it(tmp_path):
    rows = [{"title": "\ud800é", "\udfff": "\\ud800 \\"}]
    write_rows(tmp_path / "a.jsonl", rows)
    text = (tmp_path / "a.jsonl").read_text("utf-8")
    assert text.startswith('{"title": "\\ud800é"') and json.loads(text) == rows[0]


def test_one_file_under_two_names_is_refused(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    (tmp_path / "soft.jsonl").symlink_to(file)
    os.link(file, tmp_path / "hard.jsonl")
    check_apart({"one": file, "two": tmp_path / "b.jsonl", "three": tmp_path / "folder" / "a.jsonl"})
    for one, other in [
        (file, tmp_path / "folder" / ".." / "a.jsonl"),
        (file, tmp_path / "soft.jsonl"),
        (tmp_path / "hard.jsonl", file),
        (tmp_path / "link" / "new.jsonl", tmp_path / "folder" / "new.jsonl"),
    ]:
        with pytest.raises(InputError, match="two: expected another file than one"):
            check_apart({"one": one, "two": other})


def test_what_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("old")

    def rows():
        yield ROWS[0]
        raise KeyError("in the middle")

    with pytest.raises(KeyError):
        write_rows(path, rows())
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_path_that_cannot_be_written_is_a_typed_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="a file to write"):
        write_rows(tmp_path / "file" / "a.jsonl", ROWS)
