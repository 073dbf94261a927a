import gzip

import pytest

from gmsa_rag.errors import InputError
from gmsa_rag.training.files import write_rows

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
