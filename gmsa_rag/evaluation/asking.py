"""Asking: prompts in the checkpoint's own or a framework's words, made to fit, and what the decoder answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.progress import Progress, TaskID

from gmsa_rag.errors import InputError
from gmsa_rag.evaluation.conditions import RATED, choose_passages, compress_distinct, other_passages
from gmsa_rag.evaluation.progress import progress_bar
from gmsa_rag.evaluation.selection import Pool
from gmsa_rag.inference.batching import token_budget_batches
from gmsa_rag.inference.decoders.local import BATCH_POSITIONS
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.prompt import Answer, Part, Verbatim, parse_answer
from gmsa_rag.memory.memory import Memory
from gmsa_rag.training.data import Question
from gmsa_rag.training.templates import FRAMEWORK_WORDINGS, Wording

OWN = "own"
CHUNK_POSITIONS = 8 * BATCH_POSITIONS


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


@dataclass(frozen=True)
class Cell:
    """What came of all questions in one condition at one rate, in their order.

    Attributes:
        condition: Its name.
        rate: Tokens per soft token; None where there are none.
        answers: What the decoder answered.
        positions: What each prompt took in the decoder.
        dropped: Passages left out of each prompt.
    """

    condition: str
    rate: int | None
    answers: Sequence[Answer]
    positions: Sequence[int]
    dropped: Sequence[int]


def find_wording(name: str) -> Wording | None:
    """A framework's wording by its name; None for "own", the checkpoint's.

    Raises:
        InputError: If there is none of that name.
    """
    if name != OWN and name not in FRAMEWORK_WORDINGS:
        raise InputError(
            "wording", expected=f"one of {', '.join([OWN, *FRAMEWORK_WORDINGS])}", got=name, remedy="Choose one."
        )
    return FRAMEWORK_WORDINGS.get(name)


def ask(
    gmsa: GMSA, questions: Sequence[Question], conditions: Sequence[str], rates: Sequence[int], *,
    wording: Wording | None = None, max_new_tokens: int = 16, seed: int = 0, pool: Pool | None = None,
) -> list[Cell]:  # fmt: skip
    """Ask questions in several conditions, in those with a rate at each of the rates.

    Args:
        gmsa: The checkpoint.
        questions: What is asked, of which passages.
        conditions: Some of `CONDITIONS`.
        rates: Rates to compress at.
        wording: Of the prompts; None for the checkpoint's own.
        max_new_tokens: Most tokens of an answer.
        seed: Decides whose memories stand in for the right ones.
        pool: Passages that stand in where no other question has any that can; None for none.

    Returns:
        A cell per condition and rate, in order.

    Raises:
        InputError: If no other passages can stand in.
        RateError: If a rate is not an int >= 1.
        PromptTooLongError: If a question alone does not fit into the decoder.
    """
    keys = [(condition, rate) for condition in conditions for rate in (rates if condition in RATED else (None,))]
    others = other_passages(questions, seed, pool) if "other_memories" in conditions else [()] * len(questions)
    texts = [text for passages in (*(q.passages for q in questions), *others) for text in passages]
    cells: dict[tuple[str, int | None], Cell] = {}
    with progress_bar() as bar:
        task = bar.add_task("questions", total=len(keys) * len(questions))
        for rate in dict.fromkeys(rate for _, rate in keys):  # a rate at a time: its memories are then let go
            memories = compress_distinct(gmsa, texts, rate) if rate else {}
            for condition in [condition for condition, at in keys if at == rate]:
                prompts = [
                    _prompt(gmsa, condition, question, other, memories, max_new_tokens, wording)
                    for question, other in zip(questions, others, strict=True)
                ]
                answers = answer_all(gmsa, prompts, max_new_tokens, bar, task)
                positions, dropped = [p.positions for p in prompts], [p.num_dropped for p in prompts]
                cells[condition, rate] = Cell(condition, rate, answers, positions, dropped)
    return [cells[key] for key in keys]


def fit_prompt(
    gmsa: GMSA, question: Question, passages: Sequence[Part], room: int, wording: Wording | None = None
) -> Prompt:
    """A prompt; passages are left out from the end until it leaves room for an answer.

    Args:
        gmsa: The checkpoint.
        question: The question and the titles.
        passages: Memories or texts, at most one a title.
        room: Positions the answer needs.
        wording: Of the prompt; None for the checkpoint's own.

    Raises:
        PromptTooLongError: If the question alone does not fit into the decoder.
    """
    kept = len(passages)
    parts = word_prompt(gmsa, question, passages, wording)
    while kept and gmsa.num_positions(parts) + room > gmsa.decoder_window:
        kept -= 1
        parts = word_prompt(gmsa, question, passages[:kept], wording)
    gmsa.fit(parts)
    return Prompt(parts, gmsa.num_positions(parts), len(passages) - kept)


def truncate_prompt(gmsa: GMSA, question: Question, like: Prompt, wording: Wording | None = None) -> Prompt:
    """A prompt with the beginnings of the passages, in the positions that their memories would take.

    Args:
        gmsa: The checkpoint.
        question: The question, its passages and their titles.
        like: The prompt with memories, in the passages' order; as many positions are taken, or fewer.
        wording: Of the prompt; None for the checkpoint's own.
    """
    shares = [part.num_soft_tokens for part in like.parts if isinstance(part, Memory)]
    ids = gmsa.codec.encode(question.passages[: len(shares)])
    while True:
        cut = [gmsa.codec.decode(tokens[:share]) for tokens, share in zip(ids, shares, strict=False)]
        # Where a cut goes through a character, its first bytes decode to a replacement character.
        parts = word_prompt(gmsa, question, [text.rstrip("\ufffd") for text in cut], wording)
        positions = gmsa.num_positions(parts)
        if positions <= like.positions or not shares:
            return Prompt(parts, positions, len(question.passages) - len(shares))
        if any(shares):
            shares[shares.index(max(shares))] -= 1
        else:
            shares.pop()


def word_prompt(gmsa: GMSA, question: Question, passages: Sequence[Part], wording: Wording | None) -> list[Part]:
    """A prompt in some wording, whether it fits or not; the arguments are those of `fit_prompt`."""
    titles = question.titles[: len(passages)]
    if wording is None:
        return gmsa.answer_prompt(question.question, passages, titles)
    framed: list[Part] = []
    for (before, after), passage in zip(wording.frames(titles), passages, strict=True):
        framed += [before, passage, after]
    turns = wording.turns or (("user", wording.prompt),)
    contents = [_fill(template, framed, question.question) for _, template in turns]
    if not wording.chat:
        return contents[0]
    return gmsa.chat_prompt(
        [{"role": role, "content": content} for (role, _), content in zip(turns, contents, strict=True)]
    )


def answer_all(gmsa: GMSA, prompts: Sequence[Prompt], max_new_tokens: int, bar: Progress, task: TaskID) -> list[Answer]:
    """Answers in order, generated in chunks of prompts of similar length."""
    answers = [Answer("")] * len(prompts)
    for chunk in token_budget_batches([prompt.positions for prompt in prompts], CHUNK_POSITIONS):
        texts = gmsa.generate([prompts[index].parts for index in chunk], max_new_tokens=max_new_tokens)
        for index, text in zip(chunk, texts, strict=True):
            answers[index] = parse_answer(text, gmsa.config)
        bar.advance(task, len(chunk))
    return answers


def _prompt(
    gmsa: GMSA, condition: str, question: Question, other: Sequence[str], memories: Mapping[str, Memory], room: int,
    wording: Wording | None,
) -> Prompt:  # fmt: skip
    prompt = fit_prompt(gmsa, question, choose_passages(condition, question, other, memories), room, wording)
    return truncate_prompt(gmsa, question, prompt, wording) if condition == "truncated_text" else prompt


def _fill(template: str, framed: Sequence[Part], question: str) -> list[Part]:
    """A template's parts; what others wrote is verbatim."""
    head, found, tail = template.partition("{passages}")
    pieces = [head.replace("{question}", question), *(framed if found else ()), tail.replace("{question}", question)]
    return [piece if isinstance(piece, Memory) else Verbatim(piece) for piece in pieces if piece]
