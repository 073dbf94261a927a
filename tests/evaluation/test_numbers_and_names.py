import pytest

from gmsa_rag.evaluation.numbers_and_names import names, names_restored, numbers, numbers_restored


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("In 1939 and 1939.", {"1939": 2}),
        ("1,000 or 3.5 at 12:30, then 7.", {"1,000": 1, "3.5": 1, "12:30": 1, "7": 1}),
        ("the 18th of B52s", {"18": 1, "52": 1}),
        ("none", {}),
    ],
)
def test_numbers_are_runs_of_digits(text: str, expected: dict[str, int]) -> None:
    assert numbers(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Rivers such as the Danube.", {"Danube": 1}),
        ("Vienna is old. Vienna, not Graz! (Linz) is: Wels", {"Graz": 1}),
        ("he said “Vienna” and\nGraz", {"Vienna": 1}),
        ("Lise met Jean-Paul O'Neill and I.", {"Jean-Paul": 1, "O'Neill": 1}),
        ("He left.” Then “Otto” came to Élise", {"Otto": 1, "Élise": 1}),
        ("of Danube and Danube", {"Danube": 2}),
        ("the iPhone of 2007A", {}),
    ],
)
def test_names_are_capitalised_words_within_a_sentence(text: str, expected: dict[str, int]) -> None:
    assert names(text) == expected


def test_shares_count_each_occurrence_over_all_texts() -> None:
    texts = ["from 1939 to 1939 and 7", "of 12"]
    assert numbers_restored(["1939 and 17", "12 12"], texts).share == pytest.approx(2 / 4)
    assert numbers_restored(texts, texts).share == 1.0
    assert numbers_restored(["12", "1939"], texts).share == 0.0


def test_names_may_stand_anywhere_in_the_restoration_but_as_whole_words() -> None:
    texts = ["by the Danube, near Vienna"]
    assert names_restored(["Vienna lies here. Danubes"], texts).share == 0.5
    assert names_restored(["danube vienna"], texts).share == 0.0


def test_share_of_nothing_is_none() -> None:
    assert numbers_restored(["1"], ["no number"]).share is None
    assert names_restored(["Danube"], ["no name"]).share is None


def test_intervals_draw_texts_with_all_that_is_in_them() -> None:
    texts = ["1 2 3 4", "none", "5"] * 20
    low, high = numbers_restored(["1 2", "", "5"] * 20, texts).interval(0) or (1.0, 0.0)
    assert 0.5 < low < numbers_restored(["1 2", "", "5"] * 20, texts).share < high < 1.0  # type: ignore[operator]
    assert numbers_restored(["1 2", "", ""] * 20, ["1 2 3 4", "none", "none"] * 20).interval(0) == (0.5, 0.5)
    assert names_restored(["Danube"], ["no name"]).interval(0) is None
