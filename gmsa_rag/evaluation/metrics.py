"""How close a text is to the truth: EM, cover-EM and F1 of answers; BLEU, ROUGE-L and prefixes of restorations."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np

from gmsa_rag.errors import DependencyError, InputError

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
RESAMPLES = 1_000


def normalise_answer(text: str) -> str:
    """Lower-case text without punctuation, articles and extra white space.

    Example:
        >>> normalise_answer("The  Black-Sea, a sea.")
        'blacksea sea'

    Source: the SQuAD 1.1 evaluation script.
    """
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if the normalised prediction is one of the normalised answers, else 0.0 (strict EM)."""
    return float(normalise_answer(prediction) in {normalise_answer(answer) for answer in answers})


def cover_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if the normalised prediction contains a normalised answer, in whole words, else 0.0 (cover-EM).

    An answer that normalises to nothing is contained in nothing but an empty prediction.
    """
    found = normalise_answer(prediction)
    wanted = [normalise_answer(answer) for answer in answers]
    return float(any(f" {answer} " in f" {found} " if answer else not found for answer in wanted))


def f1_score(prediction: str, answers: Sequence[str]) -> float:
    """Word overlap of prediction and answer, 0 to 1, the best over the answers.

    Example:
        >>> round(f1_score("the Black Sea in Europe", ["Black Sea"]), 3)
        0.667

    Source: the SQuAD evaluation script; its version 2 says what an empty text scores.
    """
    return max((_f1(normalise_answer(prediction), normalise_answer(answer)) for answer in answers), default=0.0)


def bleu(restored: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU by sacrebleu, 0 to 1.

    Raises:
        DependencyError: If sacrebleu is missing.
    """
    score = _load("sacrebleu").corpus_bleu(list(restored), [list(references)], force=True).score
    return float(score) / 100


def rouge_l(restored: Sequence[str], references: Sequence[str]) -> float:
    """Mean ROUGE-L F by rouge-score, 0 to 1.

    Raises:
        DependencyError: If rouge-score is missing.
    """
    scorer = _load("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    pairs = zip(references, restored, strict=True)
    return mean([scorer.score(reference, text)["rougeL"].fmeasure for reference, text in pairs])


def check_text_metrics() -> None:
    """Raise DependencyError if BLEU or ROUGE-L cannot be computed, before time is spent on restorations."""
    _load("sacrebleu")
    _load("rouge_score.rouge_scorer")


def prefix_share(found: Sequence[int], truth: Sequence[int]) -> float:
    """Share of the true tokens that are right before the first error, 0 to 1.

    Example:
        >>> prefix_share([5, 6, 9, 8], [5, 6, 7, 8])
        0.5
    """
    right = 0
    for token, true in zip(found, truth, strict=False):
        if token != true:
            break
        right += 1
    return right / len(truth) if truth else 1.0


def mean(values: Sequence[float]) -> float:
    """Mean of some values.

    Raises:
        InputError: If there are none.
    """
    if not values:
        raise InputError("values", expected="at least one", got="none", remedy="Evaluate on some samples.")
    return sum(values) / len(values)


def bootstrap_interval(values: Sequence[float], seed: int) -> tuple[float, float]:
    """95 % interval of the mean of some values, by drawing them anew 1,000 times.

    Args:
        values: One per sample, at least one.
        seed: Of the draws.

    Returns:
        Lower and upper end: the 2.5th and 97.5th percentile of the means.
    """
    array, rng = np.asarray(values, dtype=np.float64), np.random.default_rng(seed)
    means = [array[rng.integers(0, len(array), len(array))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _f1(prediction: str, answer: str) -> float:
    found, wanted = prediction.split(), answer.split()
    if not found or not wanted:
        return float(found == wanted)
    shared = sum((Counter(found) & Counter(wanted)).values())
    return 2 * shared / (len(found) + len(wanted))


def _load(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise DependencyError(
            name.partition(".")[0].replace("_", "-"),
            expected="the package to be installed",
            got=str(error),
            remedy='Run: pip install "gmsa-rag[eval]"',
        ) from error
