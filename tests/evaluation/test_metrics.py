import sys

import numpy as np
import pytest

from gmsa_rag.errors import DependencyError, InputError
from gmsa_rag.evaluation.metrics import (
    bleu,
    bleu_interval,
    bootstrap_interval,
    check_text_metrics,
    cover_match,
    exact_match,
    f1_score,
    mean,
    normalise_answer,
    prefix_share,
    ratio_interval,
    rouge,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Eiffel Tower!", "eiffel tower"),
        ("  a  cat,\nan owl and THE dog ", "cat owl and dog"),
        ("U.S.", "us"),
        ("theatre another", "theatre another"),
        ("1,000 km²", "1000 km²"),
        ("the", ""),
    ],
)
def test_normalisation_is_that_of_the_squad_script(text: str, expected: str) -> None:
    assert normalise_answer(text) == expected


def test_exact_match_is_strict_and_takes_any_answer() -> None:
    assert exact_match("the Denver Broncos.", ["Carolina Panthers", "Denver Broncos"]) == 1.0
    assert exact_match("Denver Broncos won", ["Denver Broncos"]) == 0.0
    assert exact_match("", ["Denver Broncos"]) == 0.0


def test_cover_match_looks_inside_the_prediction_alone() -> None:
    assert cover_match("It was the Denver Broncos, who won.", ["Denver Broncos"]) == 1.0
    assert cover_match("Denver", ["Denver Broncos"]) == 0.0
    assert cover_match("anything", ["the"]) == 0.0


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("Denver Broncos", ["the Denver Broncos"], 1.0),
        ("the Black Sea in Europe", ["Black Sea"], 2 * (2 / 4) * 1 / (2 / 4 + 1)),
        ("gold", ["gold and silver", "silver"], 2 * 1 * (1 / 3) / (1 + 1 / 3)),
        ("to be to be", ["to be"], 2 * (2 / 4) * 1 / (2 / 4 + 1)),
        ("blue", ["red"], 0.0),
        ("", ["red"], 0.0),
        ("a", ["the"], 1.0),
        ("x", [], 0.0),
    ],
)
def test_f1_is_the_best_over_the_answers(prediction: str, answers: list[str], expected: float) -> None:
    assert f1_score(prediction, answers) == pytest.approx(expected)


def test_f1_is_never_below_exact_match() -> None:
    for prediction, answer in [("the", "a"), ("x", "x"), ("", ""), ("one two", "two one")]:
        assert f1_score(prediction, [answer]) >= exact_match(prediction, [answer])


def test_bleu_is_between_nothing_and_one() -> None:
    reference = "the quick brown fox jumps over the lazy dog"
    assert bleu([reference], [reference]) == pytest.approx(1.0)
    assert bleu(["entirely other words"], [reference]) == pytest.approx(0.0)
    # n-gram precisions 7/8, 5/7, 3/6 and 1/5 of a hypothesis of 8 words for 9: brevity exp(1 - 9 / 8)
    expected = 0.8824969025845955 * (7 / 8 * 5 / 7 * 3 / 6 * 1 / 5) ** 0.25
    assert bleu(["the quick brown cat jumps over the lazy"], [reference]) == pytest.approx(expected)


def test_bleu_interval_is_that_of_corpus_bleu_over_drawn_texts() -> None:
    references = [f"the {name} is a river of {number} miles in the north" for number, name in enumerate("abcdefgh")]
    restored = [text if at % 3 else "the lake is a river" for at, text in enumerate(references)]
    rng = np.random.default_rng(5)
    draws = [rng.integers(0, 8, 8) for _ in range(1_000)]
    scores = [bleu([restored[i] for i in draw], [references[i] for i in draw]) for draw in draws]
    assert bleu_interval(restored, references, 5) == pytest.approx(tuple(np.percentile(scores, [2.5, 97.5])))
    assert bleu_interval(references, references, 5) == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize("restored", [["", ""], ["a", "x y z w"], ["one two three four five", ""]])
def test_bleu_interval_of_one_draw_alone_is_bleu(restored: list[str]) -> None:
    references = ["one two three four five"] * 2
    for text in restored:
        expected = bleu([text] * 3, references[:1] * 3)
        assert bleu_interval([text] * 3, references[:1] * 3, 0) == pytest.approx((expected, expected))


def test_rouge_counts_words_pairs_and_the_longest_common_subsequence() -> None:
    assert rouge(["a b c d"], ["a b c d"]) == ([1.0], [1.0], [1.0])
    # Shared of 3 and 4 words: a, b and c; of 2 and 3 pairs: b c; in order: b c, or a c is no longer than that.
    (unigram,), (bigram,), (longest,) = rouge(["b c a"], ["a b c d"])
    assert unigram == pytest.approx(2 * 3 / (3 + 4))
    assert bigram == pytest.approx(2 * 1 / (2 + 3))
    assert longest == pytest.approx(2 * 2 / (3 + 4))
    assert rouge(["", "a"], ["a", "a"])[2] == [0.0, 1.0]


def test_prefix_share_ends_at_the_first_error() -> None:
    assert prefix_share([1, 2, 9, 4], [1, 2, 3, 4]) == 0.5
    assert prefix_share([1, 2], [1, 2, 3, 4]) == 0.5
    assert prefix_share([1, 2, 3, 4, 5], [1, 2, 3, 4]) == 1.0
    assert prefix_share([], [1]) == 0.0


def test_bootstrap_interval_holds_the_mean_and_is_the_same_under_a_seed() -> None:
    values = [0.0] * 700 + [1.0] * 300
    low, high = bootstrap_interval(values, 3)
    assert bootstrap_interval(values, 3) == (low, high)
    # Normal approximation: 0.3 +- 1.96 * sqrt(0.3 * 0.7 / 1000)
    assert low == pytest.approx(0.3 - 0.0284, abs=0.005)
    assert high == pytest.approx(0.3 + 0.0284, abs=0.005)
    assert bootstrap_interval([0.5], 0) == (0.5, 0.5)


def test_ratio_interval_draws_both_sides_together() -> None:
    wholes = [0.0, 1.0] * 50
    # Twice the whole in every sample is twice it in every draw; drawn apart, the ratio would vary.
    assert ratio_interval([2 * whole for whole in wholes], wholes, 0) == (2.0, 2.0)
    low, high = ratio_interval([1.0] * 30 + [0.0] * 70, [1.0] * 100, 3) or (1.0, 0.0)
    assert (low, high) == bootstrap_interval([1.0] * 30 + [0.0] * 70, 3)


def test_ratio_interval_leaves_out_draws_without_a_whole() -> None:
    assert ratio_interval([1.0, 0.0], [1.0, 0.0], 0) == (1.0, 1.0)
    assert ratio_interval([1.0, 0.0], [0.0, 0.0], 0) is None
    assert ratio_interval([], [], 0) is None


def test_mean_of_nothing_is_an_error() -> None:
    with pytest.raises(InputError, match="at least one"):
        mean([])


@pytest.mark.parametrize(("module", "name"), [("sacrebleu", "sacrebleu"), ("rouge_score", "rouge-score")])
def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, module: str, name: str) -> None:
    for loaded in [key for key in sys.modules if key.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DependencyError, match=rf'^{name}: .*pip install "gmsa-rag\[eval\]"'):
        check_text_metrics()
