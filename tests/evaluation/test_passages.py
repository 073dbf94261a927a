import pytest

from gmsa_rag.errors import InputError
from gmsa_rag.evaluation.passages import cut_passages, of_others
from gmsa_rag.inference.engine import GMSA

TEXTS = [
    f"Station {number} lies on the coast. Its tower, built in 18{number:02d}, is {number + 9} metres high and "
    f"stands on a rock of granite.\nKeepers lived there for {number + 20} years — until the lamp became electric; "
    f"since then “number {number}” has run by itself."
    for number in range(10, 18)
]


def test_passages_have_the_exact_size_and_survive_a_round_trip(gmsa: GMSA) -> None:
    passages = cut_passages(gmsa.codec, TEXTS, 24, 16, seed=0)
    assert [len(ids) for ids in passages] == [24] * 16
    assert gmsa.codec.encode([gmsa.codec.decode(ids) for ids in passages]) == passages
    assert len({tuple(ids) for ids in passages}) == 16


def test_passages_come_from_all_documents_first(gmsa: GMSA) -> None:
    texts = [" ".join(f"{letter}{number}" for number in range(90)) for letter in "bcdfg"]
    passages = cut_passages(gmsa.codec, texts, 24, 8, seed=0)
    sources = [next(text[0] for text in texts if gmsa.codec.decode(ids) in text) for ids in passages]
    assert sorted(sources[:5]) == list("bcdfg")
    assert sources[5:] == sources[:3]


def test_equal_passages_are_cut_once(gmsa: GMSA) -> None:
    with pytest.raises(InputError, match=r"got [12]\."):
        cut_passages(gmsa.codec, ["Danube " * 20] * 5, 20, 5, seed=0)


def test_seed_decides_which_passages_are_cut(gmsa: GMSA) -> None:
    assert cut_passages(gmsa.codec, TEXTS, 24, 9, seed=4) == cut_passages(gmsa.codec, TEXTS, 24, 9, seed=4)
    assert cut_passages(gmsa.codec, TEXTS, 24, 9, seed=4) != cut_passages(gmsa.codec, TEXTS, 24, 9, seed=5)


def test_too_little_text_is_an_error(gmsa: GMSA) -> None:
    with pytest.raises(InputError, match="20 passages of 5000 tokens"):
        cut_passages(gmsa.codec, [*TEXTS, ""], 5000, 20, seed=0)


def test_others_are_never_the_same_item() -> None:
    assert of_others([1, 2, 3]) == [3, 1, 2]
    assert of_others([1, 2]) == [2, 1]
