"""Abstaining: whether a decoder says that its passages do not hold the answer, where they do not and only there."""

from collections.abc import Sequence
from dataclasses import dataclass

from gmsa_rag.errors import ConfigError, InputError
from gmsa_rag.evaluation.asking import OWN, Cell, ask, find_wording
from gmsa_rag.evaluation.conditions import check_conditions
from gmsa_rag.evaluation.metrics import bootstrap_interval, exact_match, mean
from gmsa_rag.evaluation.selection import select_passages, without_answer
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.memory.embedding import MINILM, Embedder
from gmsa_rag.training.data import Question

ABSTAIN_CONDITIONS = ("memories", "full_text")


@dataclass(frozen=True)
class AbstainRow:
    """How a decoder abstained in one condition. All shares are 0 to 1, higher is better.

    Attributes:
        condition: "memories", or "full_text", passages as text.
        rate: Tokens per soft token; None where there are no memories.
        passages: Which passages the questions were asked of, before those with the answer were taken out; in words.
        wording: Whose words the prompts were in: "own" of the checkpoint, or a framework's.
        num_questions: Questions asked, with and without the passages that hold the answer.
        num_without_gold: Those asked without: where abstaining is right.
        num_abstained: Answers that abstained.
        precision: Share of the abstentions that were right; None if there was none.
        precision_interval: Its 95 % bootstrap interval over the abstentions.
        recall: Share of the questions without gold passages that the decoder abstained from.
        recall_interval: Its 95 % bootstrap interval.
        em: Strict exact match of the questions with gold passages; to abstain from one is wrong.
        em_interval: Its 95 % bootstrap interval.
        mean_positions: Mean positions of a prompt in the decoder.
        num_too_long: Prompts that left no room for an answer and lost passages from the end.
    """

    condition: str
    rate: int | None
    passages: str
    wording: str
    num_questions: int
    num_without_gold: int
    num_abstained: int
    precision: float | None
    precision_interval: tuple[float, float] | None
    recall: float
    recall_interval: tuple[float, float]
    em: float
    em_interval: tuple[float, float]
    mean_positions: float
    num_too_long: int


def evaluate_abstaining(
    gmsa: GMSA, questions: Sequence[Question], *, conditions: Sequence[str] = ABSTAIN_CONDITIONS,
    rates: Sequence[int] = (4, 8), max_new_tokens: int = 16, limit: int | None = None, seed: int = 0,
    passages: str = "given", k: int = 4, embedder: Embedder | str = MINILM, wording: str = OWN,
) -> list[AbstainRow]:  # fmt: skip
    """Ask questions with the passages that hold the answer, and the same ones without.

    A question whose passages hold no gold one to begin with, as retrieved ones may, is asked only once.

    Args:
        gmsa: The checkpoint; it says in `config.no_answer` how it abstains.
        questions: What is asked, of which passages.
        conditions: Some of `ABSTAIN_CONDITIONS`.
        rates: Rates to compress at.
        max_new_tokens: Most tokens of an answer.
        limit: Take this many questions, drawn at random; None takes all.
        seed: Of everything drawn, and of the bootstrap.
        passages: Which passages to ask of: "given", "gold", "distractors" or "retrieved"; see `select_passages`.
        k: Distractors to add, or passages to retrieve, >= 1.
        embedder: The embedding model to retrieve with, or its name as `load_embedder` takes it.
        wording: "own" for the checkpoint's prompt, or a name in `FRAMEWORK_WORDINGS`.

    Returns:
        A row per condition, for memories per rate; in order.

    Raises:
        ConfigError: If the checkpoint was not trained to abstain.
        InputError: If there are no questions, none with a gold passage, or an argument is unknown.
        RateError: If a rate is not an int >= 1.
        PromptTooLongError: If a question alone does not fit into the decoder.
    """
    check_conditions(conditions, ABSTAIN_CONDITIONS, rates)
    _check_no_answer(gmsa)
    words = find_wording(wording)
    selection = select_passages(questions, passages, k=k, embedder=embedder, limit=limit, seed=seed)
    with_gold = [question for question in selection.questions if question.gold]
    if not with_gold:
        raise InputError(
            "questions", expected="some with a gold passage", got="none", remedy="Retrieve more passages, or ask more."
        )
    without = [without_answer(question, selection.pool, seed) for question in selection.questions]
    asked = [*with_gold, *without]
    cells = ask(gmsa, asked, conditions, rates, wording=words, max_new_tokens=max_new_tokens, seed=seed)
    return [_row(cell, with_gold, len(without), selection.label, wording, seed) for cell in cells]


def _row(
    cell: Cell, with_gold: Sequence[Question], num_without: int, passages: str, wording: str, seed: int
) -> AbstainRow:
    abstained = [float(answer.abstained) for answer in cell.answers]
    answered, recalled = abstained[: len(with_gold)], abstained[len(with_gold) :]
    precise = [0.0] * int(sum(answered)) + [1.0] * int(sum(recalled))
    pairs = zip(cell.answers, with_gold, strict=False)
    em = [0.0 if answer.abstained else exact_match(answer.text, question.answers) for answer, question in pairs]
    return AbstainRow(
        condition=cell.condition,
        rate=cell.rate,
        passages=passages,
        wording=wording,
        num_questions=len(abstained),
        num_without_gold=num_without,
        num_abstained=len(precise),
        precision=mean(precise) if precise else None,
        precision_interval=bootstrap_interval(precise, seed) if precise else None,
        recall=mean(recalled),
        recall_interval=bootstrap_interval(recalled, seed),
        em=mean(em),
        em_interval=bootstrap_interval(em, seed),
        mean_positions=mean(cell.positions),
        num_too_long=sum(dropped > 0 for dropped in cell.dropped),
    )


def _check_no_answer(gmsa: GMSA) -> None:
    if not gmsa.config.no_answer:
        raise ConfigError(
            "no_answer",
            expected="the words in which the checkpoint says that there is no answer",
            got="none in its config.json",
            remedy="Take a checkpoint that was trained to abstain, with no_answer in the recipe's templates.",
        )
