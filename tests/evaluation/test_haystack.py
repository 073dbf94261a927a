import pytest

from gmsa_rag.errors import InputError
from gmsa_rag.evaluation.haystack import KINDS, MOST_NEEDLES, cut_haystacks, draw_needles, hide
from gmsa_rag.inference.engine import GMSA

TEXTS = [" ".join(f"The {name} of {number} is long." for number in range(40)) for name in ("Elbe", "Oder", "Ruhr")]
SENTENCE = "The passkey is 48213."


@pytest.mark.parametrize("kind", KINDS)
def test_needles_answer_their_own_questions_and_no_two_are_the_same(kind: str) -> None:
    needles = draw_needles(kind, MOST_NEEDLES, seed=1)
    assert len({needle.answer for needle in needles}) == MOST_NEEDLES
    assert all(needle.answer in needle.sentence and needle.answer not in needle.question for needle in needles)
    assert draw_needles(kind, 5, seed=1) == draw_needles(kind, 5, seed=1) != draw_needles(kind, 5, seed=2)


def test_passkeys_have_five_digits() -> None:
    assert all(len(needle.answer) == 5 and needle.answer.isdigit() for needle in draw_needles("passkey", 50, seed=0))


@pytest.mark.parametrize(("length", "sizes"), [(48, [48]), (96, [48, 48]), (100, [33, 33, 33])])
def test_haystacks_are_cut_into_as_few_passages_as_the_window_allows(gmsa: GMSA, length: int, sizes: list[int]) -> None:
    haystacks = cut_haystacks(gmsa.codec, TEXTS, length, 48, 3, seed=0)
    assert [[len(ids) for ids in haystack] for haystack in haystacks] == [sizes] * 3


@pytest.mark.parametrize(("depth", "row"), [(0, 0), (49, 0), (50, 1), (75, 1), (100, 1)])
def test_sentence_is_hidden_where_the_depth_says(gmsa: GMSA, depth: int, row: int) -> None:
    (haystack, *_) = cut_haystacks(gmsa.codec, TEXTS, 200, 100, 2, seed=0)
    passages = hide(gmsa.codec, haystack, SENTENCE, depth)
    assert [SENTENCE in text for text in passages] == [row == 0, row == 1]
    assert passages[1 - row] == gmsa.codec.decode(haystack[1 - row])
    before, after = passages[row].split(SENTENCE)
    assert (before == "") == (depth in (0, 50))
    assert (after == "") == (depth in (49, 100))
    # Between sentences: what stands before has ended.
    assert depth in (49, 100) or before == "" or before.rstrip().endswith(".")
    if depth == 75:
        assert 0.25 < len(before) / len(passages[row]) < 0.75


def test_passage_with_the_sentence_is_no_longer_than_it_was(gmsa: GMSA) -> None:
    for haystack in cut_haystacks(gmsa.codec, TEXTS, 96, 48, 4, seed=3):
        for depth in (0, 30, 60, 100):
            lengths = [len(ids) for ids in gmsa.codec.encode(hide(gmsa.codec, haystack, SENTENCE, depth))]
            assert max(lengths) <= 48
            assert sum(lengths) > 80


def test_passage_shorter_than_the_sentence_is_an_error(gmsa: GMSA) -> None:
    (haystack, *_) = cut_haystacks(gmsa.codec, TEXTS, 5, 48, 2, seed=0)
    with pytest.raises(InputError, match=r"haystack: .*passages of 5 tokens"):
        hide(gmsa.codec, haystack, SENTENCE, 50)
