import gzip
import json
import logging

import numpy as np
import pytest

from gmsa_rag.errors import DataError
from gmsa_rag.inference.tokens import TokenCodec
from gmsa_rag.training import data as module
from gmsa_rag.training.data import Question, Skipped, find_files, read_documents, read_questions, token_stream


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
PUBLISHED = {"input": "the text", "prompt": " Why? ", "answer": "so"}
BAD = [
    {"answers": "Paris"},
    {"answers": []},
    {"answers": [None]},
    {"gold": []},
    {"gold": [1]},
    {"gold": [-1]},
    {"gold": [0.0]},
    {"gold": [False]},
    {"contexts": [{"title": "t"}]},
    {"contexts": [{"title": 3, "text": "x"}]},
    {"contexts": ["x"]},
    {"contexts": [{"text": "lone \ud800"}]},
    {"contexts": [{"title": "t", "text": " \n"}]},
    {"question": ""},
    {"answers": ["a", "  "]},
]


@pytest.fixture
def write(tmp_path):
    """Writes a file of rows, each a text or an object."""

    def write(*rows):
        path = tmp_path / "q.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
        return path

    return write


@pytest.mark.parametrize("row", ["{", "[]", "{}", "null", '{"question": 3}', "[" * 100000, *(GOOD | b for b in BAD)])
def test_a_malformed_row_is_named(write, row):
    path = write(GOOD, row)
    with pytest.raises(DataError, match=r"q\.jsonl, row 2"):
        list(read_questions(path))
    skipped = Skipped()
    assert len(list(read_questions(path, strict=False, skipped=skipped))) == 1
    assert skipped.count == 1 and skipped.rows[0].startswith("q.jsonl, row 2: ")


PUBLISHED_BAD = [
    *({"answer": []}, {"answer": None}, {"answer": 3}, {"answer": " "}, {"answer": ["so", ""]}),
    *({"prompt": None}, {"prompt": "\t"}, {"input": ["x"]}, {"input": ""}),
]


@pytest.mark.parametrize("bad", PUBLISHED_BAD)
def test_a_malformed_published_row_is_named(write, bad):
    with pytest.raises(DataError, match=r"q\.jsonl, row 1"):
        list(read_questions(write(PUBLISHED | bad)))


def test_what_is_blank_is_named(write):
    skipped = Skipped()
    blank = [PUBLISHED | {"prompt": ""}, GOOD | {"answers": [""]}, GOOD | {"contexts": [{"text": " "}]}]
    assert list(read_questions(write(*blank), strict=False, skipped=skipped)) == []
    assert [row.split(": ")[1] for row in skipped.rows] == [f"`{n}` is blank" for n in ("prompt", "answers", "text")]


def test_other_passages_may_be_blank(write):
    (question,) = read_questions(write(GOOD | {"contexts": [{"text": "x"}, {"text": ""}]}))
    assert question.passages == ("x", "")


def test_blank_lines_are_no_rows_and_are_counted_in_numbers(write):
    path = write("", GOOD, "  \r", "{", GOOD, "")
    skipped = Skipped()
    assert len(list(read_questions(path, strict=False, skipped=skipped))) == 2
    assert skipped.count == 1 and skipped.rows[0].startswith("q.jsonl, row 4: ")
    assert len(list(read_questions(write(GOOD, "", GOOD, "")))) == 2


def test_both_forms_are_read_row_by_row(write):
    path = write(PUBLISHED, GOOD, PUBLISHED | {"answer": ["so", "thus"]})
    one, two, three = read_questions(path)
    assert one == Question("Why?", ("so",), ("",), ("the text",), (0,))
    assert two == Question("q", ("a",), ("t",), ("x",), (0,))
    assert three.answers == ("so", "thus")


def test_a_row_that_is_not_utf8_is_one_malformed_row(tmp_path):
    (tmp_path / "q.jsonl").write_bytes(b'{"question": "\xff"}\n' + json.dumps(GOOD).encode())
    skipped = Skipped()
    assert len(list(read_questions(tmp_path / "q.jsonl", strict=False, skipped=skipped))) == 1
    assert "row 1: 'utf-8' codec" in skipped.rows[0]


def test_skipped_rows_are_counted_and_the_first_of_them_named(write, caplog, monkeypatch):
    monkeypatch.setattr(module, "NAMED", 4)
    skipped = Skipped(["earlier.jsonl, row 7: no"], 1)
    with caplog.at_level(logging.WARNING):
        assert len(list(read_questions(write(*["{}"] * 5, GOOD), strict=False, skipped=skipped))) == 1
    assert skipped.count == 6
    assert skipped.rows == [
        "earlier.jsonl, row 7: no",
        *(f"q.jsonl, row {n}: `contexts` is missing" for n in (1, 2, 3)),
    ]
    assert [record.getMessage() for record in caplog.records] == [
        *(f"left out: q.jsonl, row {n}: `contexts` is missing" for n in (1, 2, 3)),
        "q.jsonl: 5 malformed rows were left out",
    ]


def test_files_that_cannot_be_read_are_typed_errors(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xfa")
    whole = gzip.compress(b"hello, there" * 100)
    (tmp_path / "cut.txt.gz").write_bytes(whole[:20])
    (tmp_path / "torn.txt.gz").write_bytes(whole[:12] + b"\xff" * 8 + whole[20:])
    for name in ("bad.txt", "cut.txt.gz", "torn.txt.gz", "none.txt"):
        with pytest.raises(DataError, match="readable UTF-8"):
            list(read_documents(tmp_path / name))
    with pytest.raises(DataError, match="readable UTF-8"):
        list(read_questions(tmp_path / "none.jsonl", strict=False))
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


class Recorder:
    """A codec of one id a character, which notes what it was given at once."""

    def __init__(self, largest=100):
        self.identity, self.tokenizer, self.batches = f"recorder {largest}", self, []
        self.get_vocab = lambda: {"a": 97, "z": largest}

    def encode(self, texts):
        self.batches.append(list(texts))
        return [[ord(character) for character in text] for text in texts]


@pytest.fixture
def words(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("\n<|doc|>\n".join(["ab", "c", "abcabc", "b", "a"]), encoding="utf-8")
    return path


def test_documents_are_tokenised_in_batches(words, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BATCH_DOCUMENTS", 2)
    monkeypatch.setattr(module, "BATCH_CHARACTERS", 6)
    codec = Recorder()
    stream = token_stream([words], codec, 0, tmp_path / "cache")
    assert codec.batches == [["ab", "c"], ["abcabc"], ["b", "a"]]
    assert bytes(stream.astype(np.uint8)) == b"ab\0c\0abcabc\0b\0a\0"
    assert isinstance(stream, np.memmap) and not stream.flags.writeable
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [stream.filename.name]


@pytest.mark.parametrize(("largest", "dtype"), [(65535, np.uint16), (65536, np.uint32)])
def test_the_vocabulary_decides_the_type_of_tokens(words, tmp_path, largest, dtype):
    stream = token_stream([words], Recorder(largest), 0, tmp_path / "cache")
    assert stream.dtype == dtype and stream[:3].tolist() == [97, 98, 0]


def test_an_interrupted_token_stream_leaves_nothing(words, tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="readable UTF-8"):
        token_stream([words, tmp_path / "bad.txt"], Recorder(), 0, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
    with pytest.raises(DataError, match="readable file"):
        token_stream([tmp_path / "none.txt"], Recorder(), 0, tmp_path / "cache")


def test_an_empty_corpus_is_an_empty_stream(tmp_path):
    (tmp_path / "empty.txt").write_text("", encoding="utf-8")
    assert len(token_stream([tmp_path / "empty.txt"], Recorder(), 0, tmp_path)) == 0
