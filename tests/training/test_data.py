import gzip
import json

import numpy as np
import pytest

from gmsa_rag.errors import DataError
from gmsa_rag.inference.tokens import TokenCodec
from gmsa_rag.training.data import find_files, read_documents, read_questions, token_stream


def test_documents_are_separated_by_their_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("Title\nfirst\n<|doc|>\nsecond <|doc|> inside\n", encoding="utf-8")
    assert list(read_documents(path)) == ["Title\nfirst", "second <|doc|> inside"]


def test_questions_are_read(data):
    questions = list(read_questions(data / "qa" / "rivers.train.jsonl"))
    assert len(questions) == 40
    assert questions[0].gold == (1,) and len(questions[0].passages) == 3
    assert questions[0].answers[0] in questions[0].passages[1]


GOOD = {"question": "q", "answers": ["a"], "contexts": [{"title": "t", "text": "x"}], "gold": [0]}
BAD = [
    {"answers": "Paris"},
    {"answers": []},
    {"gold": []},
    {"gold": [1]},
    {"gold": [-1]},
    {"contexts": [{"title": "t"}]},
]


@pytest.mark.parametrize("row", ["{", "[]", "{}", '{"question": 3}', "null", *(json.dumps(GOOD | bad) for bad in BAD)])
def test_a_malformed_row_is_named(tmp_path, row):
    (tmp_path / "q.jsonl").write_text(json.dumps(GOOD) + "\n" + row + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"q\.jsonl, row 2"):
        list(read_questions(tmp_path / "q.jsonl"))


def test_files_that_cannot_be_read_are_typed_errors(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xfa")
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"hello" * 100)[:20])
    for name in ("bad.txt", "cut.txt.gz", "none.txt"):
        with pytest.raises(DataError, match="readable UTF-8"):
            list(read_documents(tmp_path / name))
    with pytest.raises(DataError, match="data file rivers"):
        find_files(tmp_path, ["rivers"], "text", [".txt"])


def test_the_token_stream_is_kept_by_tokenizer_and_files(data, tokenizer, tmp_path):
    files = find_files(data, ["rivers"], "text", [".txt.gz", ".txt"])
    codec = TokenCodec(tokenizer)
    stream = token_stream(files, codec, 1, tmp_path)
    assert stream.dtype == np.uint16 and int((stream == 1).sum()) == 60
    first = next(iter(read_documents(files[0])))
    assert stream[: list(stream).index(1)].tolist() == codec.encode([first])[0]
    assert np.array_equal(token_stream(files, codec, 1, tmp_path), stream)
    assert len(list(tmp_path.glob("*.npy"))) == 1
    token_stream(files, codec, 2, tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == 2
