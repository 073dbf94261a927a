import copy

import pytest

from gmsa_rag.errors import ConfigError, InputError
from gmsa_rag.evaluation.abstaining import evaluate_abstaining
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.modeling.checkpoint import Checkpoint
from gmsa_rag.training.data import Question

NO_ANSWER = "It is not there."
RIVERS = ("Danube", "Rhine", "Elbe", "Loire")
QUESTIONS = [
    Question(
        f"Where does the {river} flow?", (f"sea of {river}",), (river, "Ob"),
        (f"To the sea of {river}.", f"The Ob is not the {river}."), (0,),
    )
    for river in RIVERS
]  # fmt: skip


class Abstainer(GMSA):
    """Says what it is told to for a river, with gold passage and without; reads text."""

    def __init__(self, gmsa: GMSA, says: dict[tuple[str, bool], str]) -> None:
        config = copy.deepcopy(gmsa.config)
        config.no_answer, config.fingerprint = NO_ANSWER, gmsa.fingerprint
        super().__init__(Checkpoint(config, gmsa.compressor, gmsa.decoder, gmsa.tokenizer))
        self.says = says
        self.prompts: list[str] = []

    def generate(self, prompt, **settings):  # type: ignore[no-untyped-def,override]
        texts = ["".join(str(part) for part in parts) for parts in prompt]
        self.prompts += texts
        return [self._say(text) for text in texts]

    def _say(self, text: str) -> str:
        (river,) = [river for river in RIVERS if f"does the {river}" in text]
        return self.says.get((river, f"sea of {river}" in text), f" sea of {river}")


def test_precision_and_recall_are_those_counted_by_hand(gmsa: GMSA) -> None:
    says = {
        ("Danube", False): f" {NO_ANSWER}",
        ("Rhine", False): " it is NOT there",
        ("Elbe", False): " somewhere",
        ("Loire", True): NO_ANSWER,
        ("Elbe", True): " a lake",
    }
    reader = Abstainer(gmsa, says)
    (row,) = evaluate_abstaining(reader, QUESTIONS, conditions=["full_text"])
    assert (row.num_questions, row.num_without_gold, row.num_abstained) == (8, 4, 3)
    assert row.precision == pytest.approx(2 / 3)  # Danube and Rhine, but not Loire
    assert row.recall == 2 / 4
    assert row.em == 2 / 4  # Danube and Rhine
    assert row.precision_interval is not None
    assert row.precision_interval[0] < row.precision < row.precision_interval[1]
    assert row.recall_interval[0] < row.recall < row.recall_interval[1]
    assert (row.condition, row.rate, row.passages, row.wording) == ("full_text", None, "given", "own")
    assert sum("sea of" in text for text in reader.prompts) == 4
    assert all("The Ob" in text for text in reader.prompts)


def test_no_precision_where_nothing_is_abstained_from(gmsa: GMSA) -> None:
    (row,) = evaluate_abstaining(Abstainer(gmsa, {}), QUESTIONS, conditions=["full_text"])
    assert (row.precision, row.precision_interval, row.num_abstained, row.recall) == (None, None, 0, 0.0)
    assert row.em == 1.0


class Letters:
    """Embeds a text as counts of letters."""

    def encode_document(self, inputs: list[str], /, *, show_progress_bar: bool) -> list[list[int]]:
        return [[text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in inputs]

    encode_query = encode_document


def test_questions_whose_gold_passage_was_not_retrieved_are_asked_once(gmsa: GMSA) -> None:
    questions = [
        Question("zz Danube", ("sea",), ("A",), ("zz zz sea",), (0,)),
        Question("qq Rhine", ("bay",), ("B",), ("xx bay",), (0,)),
    ]
    reader = Abstainer(gmsa, {})
    reader._say = lambda text: " bay"  # type: ignore[method-assign]
    (row,) = evaluate_abstaining(
        reader, questions, conditions=["full_text"], passages="retrieved", k=1, embedder=Letters()
    )
    assert (row.num_questions, row.num_without_gold, row.passages) == (3, 2, "retrieved 1 by Letters")
    assert row.em == 0.0


def test_an_untrained_checkpoint_runs_every_condition_and_the_same_again(gmsa: GMSA) -> None:
    config = copy.deepcopy(gmsa.config)
    config.no_answer, config.fingerprint = NO_ANSWER, gmsa.fingerprint
    able = GMSA(Checkpoint(config, gmsa.compressor, gmsa.decoder, gmsa.tokenizer))
    rows = evaluate_abstaining(able, QUESTIONS, rates=(2, 4), max_new_tokens=3, limit=3)
    assert [(row.condition, row.rate) for row in rows] == [("memories", 2), ("memories", 4), ("full_text", None)]
    assert rows[1].mean_positions < rows[0].mean_positions < rows[2].mean_positions
    assert rows == evaluate_abstaining(able, QUESTIONS, rates=(2, 4), max_new_tokens=3, limit=3)


def test_a_checkpoint_that_cannot_abstain_is_an_error(gmsa: GMSA) -> None:
    with pytest.raises(ConfigError, match="no_answer"):
        evaluate_abstaining(gmsa, QUESTIONS)


def test_conditions_without_passages_to_abstain_from_are_errors(gmsa: GMSA) -> None:
    with pytest.raises(InputError, match="closed_book"):
        evaluate_abstaining(Abstainer(gmsa, {}), QUESTIONS, conditions=["closed_book"])


def test_questions_without_any_gold_are_an_error(gmsa: GMSA) -> None:
    without = Question("Where does the Danube flow?", ("sea",), ("A",), ("text",), ())
    with pytest.raises(InputError, match="gold"):
        evaluate_abstaining(Abstainer(gmsa, {}), [without], conditions=["full_text"])
