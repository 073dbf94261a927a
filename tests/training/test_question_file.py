import gzip
import json
import logging
import multiprocessing
import pickle

import pytest

from gmsa_rag.errors import DataError
from gmsa_rag.training import question_file
from gmsa_rag.training.data import read_questions
from gmsa_rag.training.question_file import QuestionGroups
from gmsa_rag.training.tasks import group_questions


def row(question, *texts, gold=(0,)):
    contexts = [{"title": f"of {question}", "text": text} for text in texts]
    return {"question": question, "answers": ["a"], "contexts": contexts, "gold": list(gold)}


# Groups by hand: {1, 4, 7}, {2, 6}, {3, 5}, {8}; 3 and 5 share their gold passage, among others in other orders.
ONE = [row("1", "x", "y"), row("2", "é\nz"), row("3", "y", "x"), row("4", "x", "y")]
TWO = [
    row("5", "x", "y", gold=(1,)), {"input": "é\nz", "prompt": "6", "answer": "a"}, row("7", "x"),
    row("8", "x", "y", gold=(0, 1)),
]  # fmt: skip


@pytest.fixture
def files(tmp_path):
    plain, packed = tmp_path / "one.jsonl", tmp_path / "two.jsonl.gz"
    plain.write_text("\r\n".join(json.dumps(r, ensure_ascii=False) for r in ONE), "utf-8")  # no line end at the end
    packed.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in TWO).encode()))
    return [plain, packed]


def asked(groups):
    return [[question.question for question in group] for group in groups]


def test_groups_are_those_in_memory(files, tmp_path):
    groups = QuestionGroups.build(files, tmp_path / "cache")
    assert len(groups) == 4
    assert asked(groups) == [["1", "4", "7"], ["2", "6"], ["3", "5"], ["8"]]
    assert list(groups) == group_questions([q for path in files for q in read_questions(path)])
    assert groups.skipped.count == 0


def test_groups_of_a_larger_file_are_those_in_memory(data, tmp_path):
    rows = (data / "qa" / "rivers.train.jsonl").read_text().splitlines()
    shuffled = [rows[(7 * i) % 40].replace("When did", f"When ({i}) did") for i in range(120)]
    (tmp_path / "many.jsonl").write_text("\n".join(shuffled) + "\n")
    groups = QuestionGroups.build([tmp_path / "many.jsonl"], tmp_path / "cache")
    assert len(groups) == 40
    assert list(groups) == group_questions(list(read_questions(tmp_path / "many.jsonl")))


def test_groups_are_a_sequence(files, tmp_path):
    groups = QuestionGroups.build(files, tmp_path / "cache")
    assert asked([groups[-1]]) == [["8"]] and asked(groups[1:3]) == [["2", "6"], ["3", "5"]]
    assert groups[1][0].passages == ("é\nz",) and groups[1][1].titles == ("",)
    for index in (4, -5):
        with pytest.raises(IndexError):
            groups[index]


def test_the_cache_is_read_again_and_follows_the_files(files, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = QuestionGroups.build(files, cache)
    with monkeypatch.context() as patch:
        patch.setattr(question_file, "read_rows", None)
        assert asked(QuestionGroups.build(files, cache)) == asked(first)
    assert [path.name for path in cache.iterdir()] == [first.folder.name]
    QuestionGroups.build(files, cache, strict=False)
    assert len(list(cache.iterdir())) == 2
    files[0].write_text(json.dumps(row("new", "w")) + "\n")
    assert asked(QuestionGroups.build(files, cache))[0] == ["new"]
    assert asked(first)[0] == ["1", "4", "7"]


def test_malformed_rows_are_errors_or_counted(files, tmp_path, caplog):
    with files[0].open("a", encoding="utf-8") as file:
        file.write('\n{"question": 1}\nno json\n')
    with pytest.raises(DataError, match=r"one\.jsonl, row 5"):
        QuestionGroups.build(files, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
    for _ in range(2):  # once built, once found
        with caplog.at_level(logging.WARNING):
            groups = QuestionGroups.build(files, tmp_path / "cache", strict=False)
        assert groups.skipped.count == 2 and groups.skipped.rows[0].startswith("one.jsonl, row 5: ")
        assert caplog.records[-1].getMessage() == "one.jsonl, two.jsonl.gz: 2 malformed rows were left out"
        assert len(groups) == 4
    (tmp_path / "none.jsonl").write_text("")
    assert list(QuestionGroups.build([tmp_path / "none.jsonl"], tmp_path / "cache")) == []


# Python 3.12 and later warn of any fork beside threads, which other tests' libraries may have started.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_read_groups(files, tmp_path, method):
    groups = QuestionGroups.build(files, tmp_path / "cache")
    expected = list(groups)  # opened here before it goes there
    assert list(pickle.loads(pickle.dumps(groups))) == expected
    assert len(pickle.dumps(groups)) < 500
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip("no such start method here")
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.map(list, [groups, groups]) == [expected, expected]


def test_a_build_that_comes_second_keeps_the_first(files, tmp_path):
    folder = QuestionGroups.build(files, tmp_path / "cache").folder
    part = tmp_path / "cache" / "part"
    part.mkdir()
    question_file._move(part, folder)
    assert asked(QuestionGroups(folder))[2] == ["3", "5"]
    with pytest.raises(OSError):
        question_file._move(tmp_path / "missing", tmp_path / "nowhere")
