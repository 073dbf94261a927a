"""Questions: how well they are answered from memories, beside answers from none, from full and from cut text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gmsa_rag.evaluation.asking import OWN, Cell, ask, find_wording
from gmsa_rag.evaluation.conditions import CITING, CONDITIONS, check_conditions
from gmsa_rag.evaluation.metrics import (
    bootstrap_interval,
    cover_match,
    exact_match,
    f1_score,
    mean,
    ratio_interval,
)
from gmsa_rag.evaluation.selection import Selection, select_passages
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.prompt import Answer
from gmsa_rag.memory.embedding import MINILM, Embedder
from gmsa_rag.training.data import Question


@dataclass(frozen=True)
class QARow:
    """How questions were answered in one condition. All shares are 0 to 1, higher is better.

    Attributes:
        condition: "memories"; "other_memories", those of other questions' passages under the right titles;
            "truncated_text", of each passage the first tokens, in no more positions than memories take;
            "closed_book", no passages; "full_text", passages as text.
        rate: Tokens per soft token; None where there are no memories to take or to measure by.
        passages: Which passages the questions were asked of, in words.
        wording: Whose words the prompts were in: "own" of the checkpoint, or a framework's.
        num_questions: Questions asked.
        em: Strict exact match after SQuAD normalisation.
        em_interval: Its 95 % bootstrap interval.
        cover_em: Share of answers that contain a right one.
        cover_em_interval: Its 95 % bootstrap interval.
        f1: Mean word overlap with the best right answer.
        f1_interval: Its 95 % bootstrap interval.
        relative_f1: F1 divided by that of full text in the same evaluation, may exceed 1; None where full text was not
            read, or its F1 is 0.
        citation_accuracy: Share of answers that cite a passage that holds the answer; None where there is nothing
            right to cite, the checkpoint does not cite, or the wording gives passages no numbers.
        gold_recall: Share of the gold passages that were retrieved; None where none were.
        mean_positions: Mean positions of a prompt in the decoder.
        num_too_long: Prompts that left no room for an answer and lost passages from the end.
        abstained: Share of answers that say the checkpoint's `no_answer`, neither good nor bad by itself; None where
            the checkpoint has none.
        relative_f1_interval: 95 % bootstrap interval of relative_f1, the same questions drawn in both conditions; None
            with it.
    """

    condition: str
    rate: int | None
    passages: str
    wording: str
    num_questions: int
    em: float
    em_interval: tuple[float, float]
    cover_em: float
    cover_em_interval: tuple[float, float]
    f1: float
    f1_interval: tuple[float, float]
    relative_f1: float | None
    citation_accuracy: float | None
    gold_recall: float | None
    mean_positions: float
    num_too_long: int
    abstained: float | None = None
    relative_f1_interval: tuple[float, float] | None = None


def evaluate_questions(
    gmsa: GMSA, questions: Sequence[Question], *, conditions: Sequence[str] = CONDITIONS,
    rates: Sequence[int] = (4, 8), max_new_tokens: int = 16, limit: int | None = None, seed: int = 0,
    passages: str = "given", k: int = 4, embedder: Embedder | str = MINILM, wording: str = OWN,
) -> list[QARow]:  # fmt: skip
    """Answer questions in several conditions.

    Args:
        gmsa: The checkpoint.
        questions: What is asked, of which passages.
        conditions: Some of `CONDITIONS`.
        rates: Rates to compress at, for the conditions with memories or text in their positions.
        max_new_tokens: Most tokens of an answer.
        limit: Ask this many, drawn at random; None asks all.
        seed: Of everything drawn, and of the bootstrap.
        passages: Which passages to ask of: "given", "gold", "distractors" or "retrieved"; see `select_passages`.
        k: Distractors to add, or passages to retrieve, >= 1.
        embedder: The embedding model to retrieve with, or its name as `load_embedder` takes it.
        wording: "own" for the checkpoint's prompt, or a name in `FRAMEWORK_WORDINGS`.

    Returns:
        A row per condition, for those with a rate per condition and rate; in order.

    Raises:
        InputError: If there are no questions, an argument is unknown, or there are no other passages where needed.
        RateError: If a rate is not an int >= 1.
        PromptTooLongError: If a question alone does not fit into the decoder.
        ConfigError: If the wording is for a chat and the tokenizer has no chat template.
    """
    check_conditions(conditions, CONDITIONS, rates)
    words = find_wording(wording)
    selection = select_passages(questions, passages, k=k, embedder=embedder, limit=limit, seed=seed)
    cells = ask(
        gmsa, selection.questions, conditions, rates, wording=words, max_new_tokens=max_new_tokens, seed=seed,
        pool=selection.pool,
    )  # fmt: skip
    numbered, abstains = gmsa.config.cites and words is None, bool(gmsa.config.no_answer)
    scores = [_f1_scores(cell, selection.questions) for cell in cells]
    rows = [
        _row(cell, selection, f1, wording, numbered and cell.condition in CITING, abstains, seed)
        for cell, f1 in zip(cells, scores, strict=True)
    ]
    return _relate(rows, scores, seed)


def _row(
    cell: Cell, selection: Selection, f1: Sequence[float], wording: str, cites: bool, abstains: bool, seed: int
) -> QARow:
    questions = selection.questions
    pairs = [(answer.text, question.answers) for answer, question in zip(cell.answers, questions, strict=True)]
    em = [exact_match(text, accepted) for text, accepted in pairs]
    cover = [cover_match(text, accepted) for text, accepted in pairs]
    return QARow(
        condition=cell.condition,
        rate=cell.rate,
        passages=selection.label,
        wording=wording,
        num_questions=len(questions),
        em=mean(em),
        em_interval=bootstrap_interval(em, seed),
        cover_em=mean(cover),
        cover_em_interval=bootstrap_interval(cover, seed),
        f1=mean(f1),
        f1_interval=bootstrap_interval(f1, seed),
        relative_f1=None,
        citation_accuracy=_citation_accuracy(questions, cell.answers) if cites else None,
        gold_recall=selection.gold_recall,
        mean_positions=mean(cell.positions),
        num_too_long=sum(dropped > 0 for dropped in cell.dropped),
        abstained=mean([float(answer.abstained) for answer in cell.answers]) if abstains else None,
    )


def _relate(rows: Sequence[QARow], scores: Sequence[Sequence[float]], seed: int) -> list[QARow]:
    """The rows with their F1 relative to full text's, if it has any, given the F1 of each question in each row."""
    full = next((at for at, row in enumerate(rows) if row.condition == "full_text"), None)
    if full is None or not rows[full].f1:
        return list(rows)
    return [
        replace(
            row,
            relative_f1=row.f1 / rows[full].f1,
            relative_f1_interval=ratio_interval(own, scores[full], seed),
        )
        for row, own in zip(rows, scores, strict=True)
    ]


def _f1_scores(cell: Cell, questions: Sequence[Question]) -> list[float]:
    pairs = zip(cell.answers, questions, strict=True)
    return [f1_score(answer.text, question.answers) for answer, question in pairs]


def _citation_accuracy(questions: Sequence[Question], answers: Sequence[Answer]) -> float | None:
    right = [
        float(any(index + 1 in answer.citations for index in question.gold))
        for question, answer in zip(questions, answers, strict=True)
        if question.gold
    ]
    return mean(right) if right else None
