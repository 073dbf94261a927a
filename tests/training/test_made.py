import re

import pytest

from gmsa_rag.training import made
from gmsa_rag.training.cloze import BLANK
from gmsa_rag.training.made import cut_passages, make_rows, split_title
from gmsa_rag.training.question_rows import parse_row

NAMES = ["Danube", "Rhine", "Volga", "Loire", "Elbe", "Meuse", "Weser", "Oder", "Tagus", "Ebro", "Seine", "Thames"]


def document(number):
    """A titled document of six sentences, each with a name and a number of its own."""
    sentences = [f"The water of {name} was measured by {1000 + 20 * number + at} men." for at, name in
                 enumerate((NAMES * 2)[number : number + 6])]  # fmt: skip
    return f"Title {number}\n" + " ".join(sentences)


DOCUMENTS = [document(number) for number in range(12)]


def test_passages_end_with_sentences():
    text = "One two three. Four five. Six seven eight nine. Ten."
    assert cut_passages(text, 5) == ["One two three. Four five.", "Six seven eight nine. Ten."]
    assert cut_passages(text, 4) == ["One two three.", "Four five.", "Six seven eight nine.", "Ten."]
    assert cut_passages("Six seven eight nine ten. Ten.", 5) == ["Six seven eight nine ten. Ten."]  # 1 < 5 / 4
    assert cut_passages("", 5) == []


def test_the_first_of_several_lines_is_the_title():
    assert split_title("Rome\n\nA city.") == ("Rome", "A city.")
    assert split_title("Only a line.") == ("", "Only a line.")


@pytest.fixture(scope="module")
def rows():
    return list(make_rows(DOCUMENTS, passages=4, words=20, seed=3))


def test_only_the_gold_passage_holds_the_answer(rows):
    assert len(rows) > 30
    for row in rows:
        question = parse_row(row)
        assert len(question.passages) == 4 and len(set(question.passages)) == 4
        holding = [i for i, text in enumerate(question.passages) if question.answers[0] in text]
        assert tuple(holding) == question.gold
        assert question.answers[0].lower() not in question.question.lower()
        assert row["title"] == question.titles[question.gold[0]] and row["source"] == "made"
    assert [row["id"] for row in rows] == [f"made-{n}" for n in range(len(rows))]
    assert {row["gold"][0] for row in rows} == {0, 1, 2, 3}


def test_distractors_come_from_the_same_and_from_earlier_documents(rows):
    own = [sum(c["title"] == row["title"] for c in row["contexts"]) - 1 for row in rows]
    assert rows[0]["title"] == "Title 1"  # the first document has two distractors at most
    assert {2} <= set(own) <= {1, 2}
    for row in rows:
        at = int(row["title"].split()[1])
        assert all(int(c["title"].split()[1]) <= at for c in row["contexts"])


def test_questions_of_a_passage_share_their_passages(rows):
    groups = {}
    for row in rows:
        groups.setdefault(row["contexts"][row["gold"][0]]["text"], []).append(row)
    assert max(map(len, groups.values())) == 2  # a passage of two sentences
    for group in groups.values():
        assert all(row["contexts"] == group[0]["contexts"] for row in group)
        assert len({row["answers"][0] for row in group}) == len(group)


def test_blanks_and_questions_are_mixed(rows):
    blanks = [row["question"] for row in rows if BLANK in row["question"]]
    assert 0 < len(blanks) < len(rows) / 2
    row = next(row for row in rows if BLANK in row["question"])
    sentence = re.sub(r"^.*?[:?] ", "", row["question"]).replace(BLANK, row["answers"][0])
    assert sentence in row["contexts"][row["gold"][0]]["text"]


def test_the_seed_decides(rows):
    assert list(make_rows(DOCUMENTS, passages=4, words=20, seed=3)) == rows
    assert list(make_rows(DOCUMENTS, passages=4, words=20, seed=4)) != rows


def test_documents_are_read_as_they_are_needed():
    read = []

    def documents():
        for number, text in enumerate(DOCUMENTS):
            read.append(number)
            yield text

    rows = make_rows(documents(), passages=4, words=20)
    next(rows)
    assert read == [0, 1]


def test_the_pool_is_bounded(monkeypatch):
    monkeypatch.setattr(made, "POOL", 3)
    for row in make_rows(DOCUMENTS, passages=4, words=20):
        at = int(row["title"].split()[1])
        assert all(int(c["title"].split()[1]) >= at - 1 for c in row["contexts"])


def test_one_passage_needs_no_other():
    (row, *_) = make_rows(["The Rhine was measured by 4500 men."], passages=1)
    assert row["contexts"] == [{"title": "", "text": "The Rhine was measured by 4500 men."}] and row["gold"] == [0]
