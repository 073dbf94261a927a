"""How close a text is to the truth: EM, cover-EM and F1 of answers; BLEU, ROUGE and prefixes of restorations."""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

from gmsa_rag.errors import InputError
from gmsa_rag.optional import load_optional

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
RESAMPLES = 1_000
ROUGE = ("rouge1", "rouge2", "rougeL")


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
    score = load_optional("sacrebleu").corpus_bleu(list(restored), [list(references)], force=True).score
    return float(score) / 100


def bleu_interval(restored: Sequence[str], references: Sequence[str], seed: int) -> tuple[float, float]:
    """95 % interval of corpus BLEU, by drawing the texts anew 1,000 times.

    Args:
        restored: Texts, at least one.
        references: What each should be.
        seed: Of the draws.

    Returns:
        Lower and upper end, 0 to 1: the 2.5th and 97.5th percentile.

    Raises:
        DependencyError: If sacrebleu is missing.
    """
    # A single text's score matters little here, its counts do: without the effective order sacrebleu would warn.
    metric = load_optional("sacrebleu").BLEU(force=True, effective_order=True)
    scores = [metric.sentence_score(text, [truth]) for text, truth in zip(restored, references, strict=True)]
    counts = np.array([[*score.counts, *score.totals, score.sys_len, score.ref_len] for score in scores])
    rng = np.random.default_rng(seed)
    sums = [counts[rng.integers(0, len(counts), len(counts))].sum(axis=0).tolist() for _ in range(RESAMPLES)]
    drawn = [metric.compute_bleu(row[:4], row[4:8], *row[8:], smooth_method="exp").score / 100 for row in sums]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def rouge(restored: Sequence[str], references: Sequence[str]) -> tuple[list[float], list[float], list[float]]:
    """ROUGE-1, ROUGE-2 and ROUGE-L F of each text by rouge-score, each 0 to 1.

    Raises:
        DependencyError: If rouge-score is missing.
    """
    scorer = load_optional("rouge_score.rouge_scorer").RougeScorer(list(ROUGE))
    scores = [scorer.score(reference, text) for reference, text in zip(references, restored, strict=True)]
    first, second, longest = ([score[name].fmeasure for score in scores] for name in ROUGE)
    return first, second, longest


def check_text_metrics() -> None:
    """Raise DependencyError if BLEU or ROUGE cannot be computed, before time is spent on restorations."""
    load_optional("sacrebleu")
    load_optional("rouge_score.rouge_scorer")


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


def ratio_interval(parts: Sequence[float], wholes: Sequence[float], seed: int) -> tuple[float, float] | None:
    """95 % interval of the sum of some values by the sum of others, by drawing both together anew 1,000 times.

    Args:
        parts: One per sample.
        wholes: One per sample, each >= 0.
        seed: Of the draws.

    Returns:
        Lower and upper end: the 2.5th and 97.5th percentile of the ratios, draws without a whole left out; None if
        that leaves none.
    """
    pairs, rng = np.array([parts, wholes], dtype=np.float64), np.random.default_rng(seed)
    count = pairs.shape[1]
    sums = [pairs[:, rng.integers(0, count, count)].sum(axis=1) for _ in range(RESAMPLES if count else 0)]
    ratios = [part / whole for part, whole in sums if whole > 0]
    if not ratios:
        return None
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)


def _f1(prediction: str, answer: str) -> float:
    found, wanted = prediction.split(), answer.split()
    if not found or not wanted:
        return float(found == wanted)
    shared = sum((Counter(found) & Counter(wanted)).values())
    return 2 * shared / (len(found) + len(wanted))
