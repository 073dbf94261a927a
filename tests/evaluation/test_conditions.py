import pytest

from gmsa_rag.errors import InputError
from gmsa_rag.evaluation import conditions
from gmsa_rag.evaluation.conditions import compress_distinct, other_passages
from gmsa_rag.evaluation.selection import Pool
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.memory.keys import memory_key
from gmsa_rag.training.data import Question


def ask(river: str, kind: str, far: str) -> Question:
    passages = (f"The {far} is far away.", f"The {river} flows to the {kind} of {river}.")
    return Question(f"Where does the {river} flow?", (f"{kind} of {river}",), (far, river), passages, (1,))


RIVERS = ("Danube", "Rhine", "Elbe", "Loire")
QUESTIONS = [ask(river, kind, far) for kind, far in (("sea", "Volga"), ("lake", "Ob")) for river in RIVERS]


def test_chunked_memories_are_those_of_their_texts(gmsa: GMSA, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "COMPRESS_CHUNK", 2)
    texts = ["one", "two", "one", "three"]
    memories = compress_distinct(gmsa, texts, 4)
    assert {text: memory.key for text, memory in memories.items()} == {
        text: memory_key(gmsa.fingerprint, 4, text) for text in texts
    }


def test_other_passages_are_of_other_passages_and_titles(gmsa: GMSA) -> None:
    for seed in range(5):
        for question, other in zip(QUESTIONS, other_passages(QUESTIONS, seed), strict=True):
            assert len(other) == 2
            assert set(other).isdisjoint(question.passages)
            assert question.titles[1] not in other[1]
    assert other_passages(QUESTIONS, 1) == other_passages(QUESTIONS, 1)


def test_other_passages_of_the_same_title_serve_where_there_are_no_others() -> None:
    same = [Question("q", ("a",), ("T",), (text,), (0,)) for text in ("first", "second")]
    assert other_passages(same, 0) == [("second",), ("first",)]


def test_a_pool_serves_where_no_question_asked_can_and_only_there() -> None:
    pool = Pool(QUESTIONS, 0)
    assert other_passages(QUESTIONS, 3, pool) == other_passages(QUESTIONS, 3)
    for seed in range(8):
        (other,) = other_passages(QUESTIONS[:1], seed, pool)
        assert len(set(other)) == 2
        assert set(other) <= {text for q in QUESTIONS[1:] for text in q.passages} - set(QUESTIONS[0].passages)
        assert not any("Danube" in text for text in other)
    assert len({other_passages(QUESTIONS[:1], seed, pool)[0] for seed in range(8)}) > 1


def test_a_pool_of_the_same_passages_is_an_error() -> None:
    one = Question("q", ("a",), ("U", "V"), ("left", "right"), (0,))
    two = Question("r", ("a",), ("V", "U"), ("right", "left"), (0,))
    with pytest.raises(InputError, match=r"got one that has all 2 there are.*leave other_memories out"):
        other_passages([one, two], 0, Pool([one, two], 0))


def test_other_passages_are_repeated_to_the_number_needed() -> None:
    one = Question("q", ("a",), ("T",), ("single",), (0,))
    two = Question("q", ("a",), ("U", "V"), ("left", "right"), (0,))
    assert other_passages([one, two], 0) == [("left",), ("single", "single")]
