"""Questions: how well they are answered from memories, beside answers from none and from full text."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

from rich.progress import Progress, TaskID

from gmsa_rag.errors import InputError
from gmsa_rag.evaluation.metrics import bootstrap_interval, cover_match, exact_match, f1_score, mean
from gmsa_rag.evaluation.progress import progress_bar
from gmsa_rag.inference.batching import token_budget_batches
from gmsa_rag.inference.decoders.local import BATCH_POSITIONS
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.prompt import Answer, Part, parse_answer
from gmsa_rag.memory.memory import Memory
from gmsa_rag.training.data import Question

CONDITIONS = ("memories", "other_memories", "closed_book", "full_text")
RATED = ("memories", "other_memories")
CITING = ("memories", "full_text")
COMPRESS_CHUNK = 512
CHUNK_POSITIONS = 8 * BATCH_POSITIONS


@dataclass(frozen=True)
class QARow:
    """How questions were answered in one condition. All shares are 0 to 1, higher is better.

    Attributes:
        condition: "memories"; "other_memories", those of other questions' passages under the right titles;
            "closed_book", no passages; "full_text", passages as text.
        rate: Tokens per soft token; None where there are no memories.
        num_questions: Questions asked.
        em: Strict exact match after SQuAD normalisation.
        em_interval: Its 95 % bootstrap interval.
        cover_em: Share of answers that contain a right one.
        f1: Mean word overlap with the best right answer.
        f1_interval: Its 95 % bootstrap interval.
        citation_accuracy: Share of answers that cite a passage that holds the answer; None where there is nothing
            right to cite, or the checkpoint does not cite.
        mean_positions: Mean positions of a prompt in the decoder.
        num_too_long: Prompts that left no room for an answer and lost passages from the end.
    """

    condition: str
    rate: int | None
    num_questions: int
    em: float
    em_interval: tuple[float, float]
    cover_em: float
    f1: float
    f1_interval: tuple[float, float]
    citation_accuracy: float | None
    mean_positions: float
    num_too_long: int


@dataclass(frozen=True)
class Prompt:
    """A prompt that fits.

    Attributes:
        parts: For `GMSA.generate`.
        positions: What it takes in the decoder.
        num_dropped: Passages left out from the end to make it fit.
    """

    parts: Sequence[Part]
    positions: int
    num_dropped: int


def evaluate_questions(
    gmsa: GMSA,
    questions: Sequence[Question],
    *,
    conditions: Sequence[str] = CONDITIONS,
    rates: Sequence[int] = (4, 8),
    max_new_tokens: int = 16,
    limit: int | None = None,
    seed: int = 0,
) -> list[QARow]:
    """Answer questions with the checkpoint's own prompt, in several conditions.

    Args:
        gmsa: The checkpoint.
        questions: What is asked, of which passages.
        conditions: Some of `CONDITIONS`.
        rates: Rates to compress at, for the conditions with memories.
        max_new_tokens: Most tokens of an answer.
        limit: Ask this many, drawn at random; None asks all.
        seed: Decides what is drawn, whose memories stand in for the right ones, and the bootstrap.

    Returns:
        A row per condition, for those with memories per condition and rate; in order.

    Raises:
        InputError: If there are no questions, a condition is unknown, or no other passages can stand in.
        RateError: If a rate is not an int >= 1.
        PromptTooLongError: If a question alone does not fit into the decoder.
    """
    _check_arguments(questions, conditions, rates, limit)
    asked = (
        list(questions) if limit is None else random.Random(seed).sample(list(questions), min(limit, len(questions)))
    )
    cells = [(condition, rate) for condition in conditions for rate in (rates if condition in RATED else (None,))]
    others = other_passages(asked, seed) if "other_memories" in conditions else [()] * len(asked)
    rows: dict[tuple[str, int | None], QARow] = {}
    with progress_bar() as bar:
        task = bar.add_task("questions", total=len(cells) * len(asked))
        for rate in dict.fromkeys(rate for _, rate in cells):  # a rate at a time: its memories are then let go
            memories = compress_distinct(gmsa, [text for q in asked for text in q.passages], rate) if rate else {}
            for condition in [condition for condition, at in cells if at == rate]:
                passages = [
                    choose_passages(condition, q, other, memories) for q, other in zip(asked, others, strict=True)
                ]
                prompts = [fit_prompt(gmsa, q, p, max_new_tokens) for q, p in zip(asked, passages, strict=True)]
                answers = answer_all(gmsa, prompts, max_new_tokens, bar, task)
                cites = gmsa.config.cites and condition in CITING
                rows[condition, rate] = _row(condition, rate, asked, prompts, answers, cites, seed)
    return [rows[cell] for cell in cells]


def compress_distinct(gmsa: GMSA, texts: Sequence[str], rate: int) -> dict[str, Memory]:
    """A memory for each distinct text, computed once."""
    distinct = list(dict.fromkeys(texts))
    memories: dict[str, Memory] = {}
    for start in range(0, len(distinct), COMPRESS_CHUNK):
        chunk = distinct[start : start + COMPRESS_CHUNK]
        memories.update(zip(chunk, gmsa.compress(chunk, rate), strict=True))
    return memories


def choose_passages(
    condition: str, question: Question, other: Sequence[str], memories: Mapping[str, Memory]
) -> list[Part]:
    """What stands for a question's passages in a condition."""
    if condition == "closed_book":
        return []
    if condition == "full_text":
        return list(question.passages)
    return [memories[text] for text in (other if condition == "other_memories" else question.passages)]


def fit_prompt(gmsa: GMSA, question: Question, passages: Sequence[Part], room: int) -> Prompt:
    """The checkpoint's prompt; passages are left out from the end until it leaves room for an answer.

    Args:
        gmsa: The checkpoint.
        question: The question and the titles.
        passages: Memories or texts, at most one a title.
        room: Positions the answer needs.
    """
    titles = question.titles[: len(passages)]
    parts, kept = gmsa.fit_answer_prompt(question.question, passages, titles, room=room)
    return Prompt(parts, gmsa.num_positions(parts), len(passages) - kept)


def answer_all(gmsa: GMSA, prompts: Sequence[Prompt], max_new_tokens: int, bar: Progress, task: TaskID) -> list[Answer]:
    """Answers in order, generated in chunks of prompts of similar length."""
    answers = [Answer("")] * len(prompts)
    for chunk in token_budget_batches([prompt.positions for prompt in prompts], CHUNK_POSITIONS):
        texts = gmsa.generate([prompts[index].parts for index in chunk], max_new_tokens=max_new_tokens)
        for index, text in zip(chunk, texts, strict=True):
            answers[index] = parse_answer(text, gmsa.config)
        bar.advance(task, len(chunk))
    return answers


def other_passages(questions: Sequence[Question], seed: int) -> list[tuple[str, ...]]:
    """For each question as many passages of another one, none of them its own, and of other titles where there are.

    Raises:
        InputError: If all questions share passages.
    """
    groups = list(dict.fromkeys((q.passages, q.titles) for q in questions))
    random.Random(seed).shuffle(groups)
    chosen = {group: _other_group(groups, at) for at, group in enumerate(groups)}
    return [tuple(islice(cycle(chosen[q.passages, q.titles]), len(q.passages))) for q in questions]


def _other_group(groups: Sequence[tuple[tuple[str, ...], tuple[str, ...]]], at: int) -> tuple[str, ...]:
    """Passages of the next group that shares none; one that shares no title first."""
    passages, titles = map(set, groups[at])
    foreign: tuple[str, ...] | None = None
    for other, named in [*groups[at + 1 :], *groups[:at]]:
        if other and passages.isdisjoint(other):
            if titles.isdisjoint(named):
                return other
            foreign = foreign or other
    if foreign is None:
        raise InputError(
            "questions",
            expected="some of other passages, for the condition other_memories",
            got="all of the same ones",
            remedy="Ask more questions, or leave the condition out.",
        )
    return foreign


def _row(
    condition: str, rate: int | None, questions: Sequence[Question], prompts: Sequence[Prompt],
    answers: Sequence[Answer], cites: bool, seed: int,
) -> QARow:  # fmt: skip
    pairs = [(answer.text, question.answers) for answer, question in zip(answers, questions, strict=True)]
    em = [exact_match(text, accepted) for text, accepted in pairs]
    f1 = [f1_score(text, accepted) for text, accepted in pairs]
    return QARow(
        condition=condition,
        rate=rate,
        num_questions=len(questions),
        em=mean(em),
        em_interval=bootstrap_interval(em, seed),
        cover_em=mean([cover_match(text, accepted) for text, accepted in pairs]),
        f1=mean(f1),
        f1_interval=bootstrap_interval(f1, seed),
        citation_accuracy=_citation_accuracy(questions, answers) if cites else None,
        mean_positions=mean([prompt.positions for prompt in prompts]),
        num_too_long=sum(prompt.num_dropped > 0 for prompt in prompts),
    )


def _citation_accuracy(questions: Sequence[Question], answers: Sequence[Answer]) -> float | None:
    right = [
        float(any(index + 1 in answer.citations for index in question.gold))
        for question, answer in zip(questions, answers, strict=True)
        if question.gold
    ]
    return mean(right) if right else None


def _check_arguments(
    questions: Sequence[Question], conditions: Sequence[str], rates: Sequence[int], limit: int | None
) -> None:
    if not questions or (limit is not None and limit < 1):
        raise InputError(
            "questions", expected="at least one", got=f"{len(questions)}, limit {limit}", remedy="Ask some."
        )
    if not conditions or (unknown := sorted(set(conditions) - set(CONDITIONS))):
        raise InputError(
            "conditions", expected=f"some of {', '.join(CONDITIONS)}", got=str(unknown if conditions else []),
            remedy="Choose among them.",
        )  # fmt: skip
    if not rates and set(conditions) & set(RATED):
        raise InputError("rates", expected="at least one", got="none", remedy="Name the rates to compress at.")
