import re

import pytest

from gmsa_rag.errors import InputError, RateError
from gmsa_rag.evaluation.needle import digit_accuracy, evaluate_needle
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.memory.memory import Memory
from gmsa_rag.modeling.checkpoint import Checkpoint

TEXTS = [" ".join(f"The {name} of {number} is long." for number in range(60)) for name in ("Elbe", "Oder", "Ruhr")]
KEY = re.compile(r"archive is (\d{5})\.")
PLACE = re.compile(r"keeps the [a-z ]+ in (\w+)\.")


class Finder(GMSA):
    """Answers with what stands in the passages it is given; a memory's text is known by its key."""

    def __init__(self, gmsa: GMSA, *, digits: int = 5) -> None:
        super().__init__(Checkpoint(gmsa.config, gmsa.compressor, gmsa.decoder, gmsa.tokenizer))
        self.digits = digits
        self.known: dict[str, str] = {}
        self.passages: list[int] = []
        self.compressed: list[list[str]] = []

    def compress(self, passages, rate=8, *, store=None):  # type: ignore[no-untyped-def,override]
        memories = super().compress(passages, rate, store=store)
        self.compressed.append(list(passages))
        self.known |= {memory.key: text for memory, text in zip(memories, passages, strict=True)}
        return memories

    def generate(self, prompt, **settings):  # type: ignore[no-untyped-def,override]
        return [self._answer(parts) for parts in prompt]

    def _answer(self, parts: list[object]) -> str:
        self.passages.append(sum(isinstance(part, Memory) for part in parts))
        text = "".join(self.known[part.key] if isinstance(part, Memory) else str(part) for part in parts)
        key, place = KEY.search(text), PLACE.search(text)
        return f" {key.group(1)[: self.digits]}" if key else f" in {place.group(1)}" if place else " nowhere"


def test_a_reader_that_finds_everything_scores_one_and_nothing_from_others(gmsa: GMSA) -> None:
    rows = evaluate_needle(Finder(gmsa), TEXTS, lengths=[90], depths=[0, 100], rates=[4], samples=3, max_new_tokens=2)
    assert [(row.kind, row.rate, row.depth) for row in rows] == [
        (kind, rate, depth) for kind in ("passkey", "needle") for rate in (4, None) for depth in (0, 100)
    ]
    for row in rows:
        assert (row.length, row.num_samples, row.num_too_long) == (90, 3, 0)
        assert row.accuracy == 1.0
        assert row.accuracy_interval == (1.0, 1.0)
        assert row.digit_accuracy == (1.0 if row.kind == "passkey" else None)
        assert row.other_accuracy == (0.0 if row.rate else None)
        assert row.other_accuracy_interval == ((0.0, 0.0) if row.rate else None)


def test_each_passage_is_compressed_once_and_each_memory_read(gmsa: GMSA) -> None:
    finder = Finder(gmsa)
    evaluate_needle(
        finder, TEXTS, kinds=["passkey"], lengths=[90], depths=[0, 100], rates=[2, 4], samples=3, max_new_tokens=2
    )
    # Two passages a haystack: each without the sentence, and with it.
    assert [len(texts) for texts in finder.compressed] == [12, 12]
    assert [len(set(texts)) for texts in finder.compressed] == [12, 12]
    # A rate asks 3 questions of 2 memories at 2 depths, and as many of the others'; full text has no memory.
    assert finder.passages == [2] * 24 + [0] * 6


def test_right_digits_count_without_the_rest(gmsa: GMSA) -> None:
    settings = {"kinds": ["passkey"], "lengths": [60], "depths": [50], "rates": [4], "samples": 2, "max_new_tokens": 2}
    for row in evaluate_needle(Finder(gmsa, digits=3), TEXTS, **settings):  # type: ignore[arg-type]
        assert row.accuracy == 0.0
        assert row.digit_accuracy == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("answer", "share"), [("48213", 1.0), ("It is 48,213.", 1.0), ("48913", 0.4), ("none", 0.0), ("4821", 0.8)]
)
def test_digit_accuracy_ends_at_the_first_wrong_digit(answer: str, share: float) -> None:
    assert digit_accuracy(answer, "48213") == pytest.approx(share)


def test_prompts_that_do_not_fit_are_counted_and_not_asked(gmsa: GMSA) -> None:
    finder = Finder(gmsa)  # the decoder holds 256 positions
    rows = evaluate_needle(finder, TEXTS, kinds=["needle"], lengths=[300], depths=[50], rates=[4], samples=2)
    memories, text = rows
    assert memories.accuracy == 1.0
    assert (text.rate, text.num_too_long, text.accuracy, text.accuracy_interval) == (None, 2, None, None)
    assert text.mean_positions > 256 > memories.mean_positions
    assert len(finder.passages) == 4


def test_untrained_checkpoint_finds_nothing_and_the_same_again(gmsa: GMSA) -> None:
    settings = {"lengths": [90], "depths": [50], "rates": [4], "samples": 2, "max_new_tokens": 3, "seed": 4}
    rows = evaluate_needle(gmsa, TEXTS, **settings)  # type: ignore[arg-type]
    assert rows == evaluate_needle(gmsa, TEXTS, **settings)  # type: ignore[arg-type]
    assert [row.accuracy for row in rows] == [0.0] * 4


@pytest.mark.parametrize(
    "wrong",
    [{"kinds": ["hay"]}, {"kinds": []}, {"lengths": [0]}, {"depths": [101]}, {"depths": [-1]}, {"depths": []},
     {"samples": 1}, {"samples": 401}],
)  # fmt: skip
def test_senseless_arguments_are_errors(gmsa: GMSA, wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"^needle"):
        evaluate_needle(gmsa, TEXTS, **wrong)  # type: ignore[arg-type]


def test_wrong_rate_is_an_error(gmsa: GMSA) -> None:
    with pytest.raises(RateError):
        evaluate_needle(gmsa, TEXTS, rates=[0])
