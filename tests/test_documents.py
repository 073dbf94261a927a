"""Reading documents: what is sound is read whole, what is not is refused with its file and line or byte."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmsa_rag.documents import Document, decode_utf8, read_bytes, read_documents, root_of, split_text
from gmsa_rag.errors import DataError, InputError


def write_lines(path, *records):
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return path


def test_a_directory_is_read_sorted_and_recursively_without_hidden_files(tmp_path):
    for name in ("b.txt", "a/z.md", "a/B.TXT", ".git/x.txt", "a/.y.md", "c.pdf"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"text of {name}", encoding="utf-8")
    documents = read_documents(tmp_path)
    assert [document.id for document in documents] == ["a/B.TXT", "a/z.md", "b.txt"]
    assert documents[1] == Document("a/z.md", "text of a/z.md", "z", "a/z.md")


def test_one_file_is_read_without_its_byte_order_mark(tmp_path):
    path = tmp_path / "rivers.md"
    path.write_bytes(b"\xef\xbb\xbf# Donau\n\nFlie\xc3\x9ft.")
    assert read_documents(str(path)) == [Document("rivers.md", "# Donau\n\nFließt.", "rivers", "rivers.md")]


def test_jsonl_gives_id_title_text_and_metadata(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"id": "x", "title": "T", "text": "One\xe2\x80\xa8two.", "page": 3, "tags": ["a"]}\r\n'
        b'\n{"id": 7, "text": "Two.", "title": null}\n'
    )
    assert read_documents(path) == [
        Document("x", "One\u2028two.", "T", "x", {"page": 3, "tags": ["a"]}),
        Document("7", "Two.", "", "7"),
    ]


def test_records_without_an_id_are_named_by_title_and_text_and_equal_ones_come_once(tmp_path):
    records = {"text": "Rome."}, {"text": "Oslo."}, {"text": "Rome."}, {"text": "Rome.", "title": "Rome"}
    documents = read_documents(write_lines(tmp_path / "d.jsonl", *records))
    assert [(document.text, document.title) for document in documents] == [
        ("Rome.", ""),
        ("Oslo.", ""),
        ("Rome.", "Rome"),
    ]
    assert all(len(document.id) == 32 for document in documents)
    assert documents == read_documents(tmp_path / "d.jsonl")


@pytest.mark.parametrize(
    ("line", "got"),
    [
        (b"{", "line 2.*JSON object"),
        (b"[1]", "line 2.*JSON object, got list"),
        (b'{"title": "x"}', "line 2.*`text`.*got none"),
        (b'{"text": " "}', "line 2.*`text`"),
        (b'{"text": 3}', "line 2.*`text`.*got 3"),
        (b'{"text": "x", "title": 3}', "line 2.*`title`"),
        (b'{"text": "x", "id": true}', "line 2.*`id`"),
        (b'{"text": "x", "id": ""}', "line 2.*`id`"),
        (b'{"text": "x", "id": 1.5}', "line 2.*`id`"),
        (b'{"text": "x", "id": "first"}', "line 2.*'first', also in line 1"),
        (b'{"text": "x", "n": NaN}', "line 2.*NaN"),
        (b'{"text": "\\ud800"}', "line 2.*lone surrogate"),
        (b'{"text": "x", "n": "\\udfff"}', "line 2.*lone surrogate"),
        (b'{"text": "\xff"}', "line 2.*UTF-8.*0xff at offset 45"),
        (b"[" * 100_000, "line 2.*JSON object"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, got):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"text": "Rome.", "id": "first"}  \n' + line + b"\n")
    with pytest.raises(DataError, match=got) as caught:
        read_documents(path)
    assert "d.jsonl" in str(caught.value)
    assert caught.value.remedy


def test_text_that_is_not_utf8_is_named_with_its_byte(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9 au lait")
    (tmp_path / "good.txt").write_text("Rome.", encoding="utf-8")
    with pytest.raises(DataError, match=r"bad\.txt: expected UTF-8 text, got byte 0xe9 at offset 3"):
        read_documents(tmp_path)
    with pytest.raises(DataError, match="at offset 12"):
        decode_utf8(b"ab\xff", "x", 10)


def test_empty_and_missing_input_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "report.pdf").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.jsonl").mkdir()
    for name, got in [
        ("empty.txt", "an empty file"),
        ("empty.jsonl", "an empty file"),
        ("report.pdf", r"a \.pdf file"),
        ("folder", "got none"),
        ("folder.jsonl", "got none"),
        ("nowhere", "nothing there"),
        ("nowhere.jsonl", "nothing there"),
    ]:
        with pytest.raises(DataError, match=got) as caught:
            read_documents(tmp_path / name)
        assert name in str(caught.value)
    with pytest.raises(DataError, match="a file to read"):
        read_bytes(tmp_path / "folder")
    with pytest.raises(InputError, match="words"):
        read_documents(tmp_path, words=-1)


def test_an_empty_directory_says_how_its_passages_leave_a_store(tmp_path):
    with pytest.raises(DataError, match="gmsa forget"):
        read_documents(tmp_path)


def test_a_root_is_the_directory_or_the_jsonl_file_and_a_text_file_is_a_part(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for name in ("a/x.txt", "a/d.jsonl"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    folder, file, lines = root_of("a"), root_of("a/x.txt"), root_of("a/d.jsonl")
    assert (folder.whole, file.whole, lines.whole) == (True, False, True)
    assert folder.digest == file.digest == root_of(tmp_path / "a").digest == root_of("b").digest != lines.digest
    assert str(tmp_path) not in repr(folder)


def test_long_texts_are_split_and_numbered(tmp_path):
    (tmp_path / "long.txt").write_text("One two three.\n\nFour five six.\n\nSeven eight nine.")
    documents = read_documents(tmp_path / "long.txt", words=6)
    assert [(document.id, document.source) for document in documents] == [
        ("long.txt#1", "long.txt"),
        ("long.txt#2", "long.txt"),
    ]
    assert [document.text for document in documents] == ["One two three.\n\nFour five six.", "Seven eight nine."]
    assert (
        len(read_documents(tmp_path / "long.txt", words=0)) == len(read_documents(tmp_path / "long.txt", words=9)) == 1
    )


def test_an_id_that_splitting_makes_twice_is_refused(tmp_path):
    path = write_lines(tmp_path / "d.jsonl", {"id": "a", "text": "one two three four"}, {"id": "a#1", "text": "x"})
    with pytest.raises(DataError, match="'a#1' twice"):
        read_documents(path, words=2)


def test_a_text_is_cut_between_paragraphs_then_sentences_then_words():
    assert split_text("a b. c d.\r\n\r\ne f.", words=4) == ["a b. c d.", "e f."]
    assert split_text('a b c. "d e f!" g h i? j k l.', words=3) == ["a b c.", '"d e f!"', "g h i?", "j k l."]
    assert split_text("a b c d e f g", words=3) == ["a b c", "d e f", "g"]
    assert split_text("a b c d e f g h. i.", words=8) == ["a b c d e f g h. i."]
    assert split_text("alone", words=1) == ["alone"]


@given(st.text("ab .!\n\r\t\u2028", max_size=80), st.integers(1, 9))
def test_splitting_keeps_every_word_and_the_bound(text, words):
    passages = split_text(text, words=words)
    assert [word for passage in passages for word in passage.split()] == text.split()
    assert all(len(passage.split()) <= words + words // 4 for passage in passages)
    assert all(passages) or not text.strip()
