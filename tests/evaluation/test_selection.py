import random

import pytest

from gmsa_rag.errors import InputError
from gmsa_rag.evaluation.selection import Pool, select_passages, without_answer
from gmsa_rag.training.data import Question

FIRST = Question("Where?", ("Rome",), ("A", "B", "C"), ("It is Rome.", "Some text.", "Of Rome, too."), (0,))
OTHERS = [
    Question("When?", ("1900",), ("A",), (f"Year {year}.",), (0,)) if year < 1903 else
    Question("When?", ("1900",), ("Z",), (f"Year {year}, in Rome." if year == 1905 else f"Year {year}.",), (0,))
    for year in range(1900, 1910)
]  # fmt: skip
QUESTIONS = [FIRST, *OTHERS]


class Letters:
    """Embeds a text as counts of letters and digits."""

    def encode_document(self, inputs: list[str], /, *, show_progress_bar: bool) -> list[list[int]]:
        return [[text.lower().count(sign) for sign in "abcdefghijklmnopqrstuvwxyz0123456789"] for text in inputs]

    encode_query = encode_document


def test_given_passages_stay_and_a_limit_draws_by_the_seed() -> None:
    assert select_passages(QUESTIONS).questions == QUESTIONS
    drawn = select_passages(QUESTIONS, limit=3, seed=4)
    assert drawn.questions == random.Random(4).sample(QUESTIONS, 3)
    assert len(drawn.pool.texts) == 13
    assert (drawn.label, drawn.gold_recall) == ("given", None)
    assert len(select_passages(QUESTIONS, limit=99).questions) == len(QUESTIONS)


def test_gold_passages_alone() -> None:
    two = Question("Who?", ("X",), ("A", "B", "C"), ("a", "b", "c"), (2, 0))
    assert select_passages([two], "gold").questions == [Question("Who?", ("X",), ("C", "A"), ("c", "a"), (0, 1))]


def test_distractors_are_the_rows_own_then_of_its_title_then_any_and_never_hold_the_answer() -> None:
    for seed in range(8):
        pool = Pool(QUESTIONS, seed)
        found = pool.distractors(FIRST, 10, random.Random(seed))
        assert found[0] == ("B", "Some text.")
        assert {text for _, text in found[1:4]} == {"Year 1900.", "Year 1901.", "Year 1902."}
        assert {title for title, _ in found[1:4]} == {"A"}
        assert {title for title, _ in found[4:]} == {"Z"}
        assert not any("Rome" in text for _, text in found)
        assert len(set(found)) == 10


def test_too_few_distractors_are_an_error() -> None:
    with pytest.raises(InputError, match=r"expected 11 passages .* got 10"):
        Pool(QUESTIONS, 0).distractors(FIRST, 11, random.Random(0))


def test_gold_passages_among_distractors_keep_their_titles_and_are_found_again() -> None:
    places = set()
    for seed in range(20):
        (asked,) = [
            q for q in select_passages(QUESTIONS, "distractors", k=3, seed=seed).questions if q.question == "Where?"
        ]
        assert len(asked.passages) == len(asked.titles) == 4
        (at,) = asked.gold
        assert (asked.titles[at], asked.passages[at]) == ("A", "It is Rome.")
        assert "Of Rome, too." not in asked.passages
        places.add(at)
    assert places == {0, 1, 2, 3}


def test_selection_is_the_same_for_the_same_seed_however_many_are_asked() -> None:
    whole = select_passages(QUESTIONS, "distractors", k=3, seed=1).questions
    assert whole == select_passages(QUESTIONS, "distractors", k=3, seed=1).questions
    assert whole != select_passages(QUESTIONS, "distractors", k=3, seed=2).questions
    some = select_passages(QUESTIONS, "distractors", k=3, seed=1, limit=4).questions
    assert all(question in whole for question in some)


def test_retrieved_passages_come_from_all_questions_and_recall_counts_the_gold_ones() -> None:
    questions = [
        Question("aab", ("1",), ("A", "B"), ("aab", "zz"), (0,)),
        Question("zzy", ("2",), ("C", "D"), ("qq", "rrz"), (0, 1)),
    ]
    found = select_passages(questions, "retrieved", k=2, embedder=Letters())
    # "aab": itself, then "qq" and so on score 0, of which "zz" is the earliest; "zzy": "zz", then "rrz".
    assert [q.passages for q in found.questions] == [("aab", "zz"), ("zz", "rrz")]
    assert [q.titles for q in found.questions] == [("A", "B"), ("B", "D")]
    assert [q.gold for q in found.questions] == [(0,), (1,)]
    assert found.gold_recall == (1 + 1 / 2) / 2
    assert found.label == "retrieved 2 by Letters"


def test_retrieving_more_than_there_are_is_an_error() -> None:
    with pytest.raises(InputError, match="at most 3"):
        select_passages([FIRST], "retrieved", k=4, embedder=Letters())


def test_equal_passages_are_retrieved_once_under_the_title_that_came_first() -> None:
    same = [Question("aa", ("1",), (title,), ("aa",), (0,)) for title in "AB"]
    assert [q.titles for q in select_passages(same, "retrieved", k=1, embedder=Letters()).questions] == [("A",)] * 2


def test_without_answer_leaves_what_neither_is_gold_nor_holds_it() -> None:
    pool = Pool(QUESTIONS, 0)
    assert without_answer(FIRST, pool, 0) == Question("Where?", ("Rome",), ("B",), ("Some text.",), ())


def test_without_answer_puts_another_passage_where_none_is_left() -> None:
    alone = Question("Where?", ("Rome",), ("A", "C"), ("It is Rome.", "Of Rome, too."), (0,))
    left = without_answer(alone, Pool(QUESTIONS, 0), 0)
    assert (left.titles, left.gold) == (("A",), ())
    assert left.passages[0] in ("Year 1900.", "Year 1901.", "Year 1902.")


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"kind": "best"}, "best"),
        ({"k": 0}, "k: "),
        ({"limit": 0}, "limit 0"),
        ({"questions": []}, "questions"),
    ],
)
def test_senseless_arguments_are_errors(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named):
        select_passages(**{"questions": QUESTIONS, **wrong})  # type: ignore[arg-type]
