"""Questions made from plain text: a sentence's blank or question, its passage, and others that lack the answer."""

import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from gmsa_rag.training.cloze import Cloze, as_question, make_cloze, sentences
from gmsa_rag.training.files import Row
from gmsa_rag.training.templates import CLOZE_PROMPTS

POOL, CANDIDATES = 1024, 64  # passages kept of earlier documents; passages of one kind to choose distractors from
QUESTIONS_A_PASSAGE, SHORTEST, LONGEST, BLANKED = 3, 5, 45, 0.25


class Piece(NamedTuple):
    """A passage and the title of its document."""

    title: str
    text: str


def make_rows(documents: Iterable[str], *, passages: int = 5, words: int = 120, seed: int = 0) -> Iterator[Row]:
    """Questions about documents, in the form of question files, one document in memory at a time.

    Each passage of a document is asked up to three questions, all among the same distractors: about half of them from
    the same document, the others from the latest 1024 passages of earlier ones. None holds an answer. A passage that
    finds too few distractors is left out.

    Args:
        documents: Texts; the first line of one with several lines is its title.
        passages: Passages of a question, >= 1, the gold one included.
        words: Words of a passage, about: it ends with a sentence.
        seed: The same seed and documents give the same rows.
    Returns:
        Rows, as many as the documents give.
    """
    rng = random.Random(seed)
    earlier: deque[Piece] = deque(maxlen=POOL)
    number = 0
    for document in documents:
        title, text = split_title(document)
        own = [Piece(title, passage) for passage in cut_passages(text, words)]
        for index, gold in enumerate(own):
            for row in _ask(gold, _near(own, index, rng), _draw(earlier, rng), passages - 1, rng):
                yield {"id": f"made-{number}", "title": title, "source": "made", **row}
                number += 1
        earlier.extend(own)


def split_title(document: str) -> tuple[str, str]:
    """Title and text of a document; the title of a single line is empty."""
    title, line_end, text = document.partition("\n")
    return (title.strip(), text.strip()) if line_end else ("", document)


def cut_passages(text: str, words: int) -> list[str]:
    """Passages of whole sentences.

    Args:
        text: Any text.
        words: Most words of a passage, unless a sentence alone has more; a last one of under a quarter joins the one
            before.
    Returns:
        The passages, in order.
    """
    passages: list[list[str]] = []
    count = 0
    for sentence in sentences(text):
        size = len(sentence.split())
        if not passages or count + size > words:
            passages.append([])
            count = 0
        passages[-1].append(sentence)
        count += size
    if len(passages) > 1 and count < words / 4:
        last = passages.pop()
        passages[-1] += last
    return [" ".join(passage) for passage in passages]


def _ask(gold: Piece, near: list[Piece], far: list[Piece], count: int, rng: random.Random) -> list[Row]:
    """Rows of one passage; none where nothing can be asked, or too few others lack the answers."""
    clozes = _clozes(gold.text, rng)
    answers = [cloze.answer for cloze in clozes]
    near, far = _without(near, answers), _without(far, answers)
    half = max((count + 1) // 2, count - len(far))
    others = list(dict.fromkeys([*near[:half], *far]))[:count]
    if not clozes or len(others) < count:
        return []
    at = rng.randint(0, count)
    contexts = [piece._asdict() for piece in (*others[:at], gold, *others[at:])]
    asked = [(cloze.answer, _word(cloze, rng)) for cloze in clozes]
    return [
        {"contexts": contexts, "gold": [at], "question": question, "answers": [answer]}
        for answer, question in asked
        if answer.lower() not in question.lower() and len(question.split()) >= SHORTEST
    ]


def _clozes(text: str, rng: random.Random) -> list[Cloze]:
    """Blanks in different sentences of a passage, each with an answer of its own."""
    asked = [s for s in sentences(text) if SHORTEST <= len(s.split()) <= LONGEST]
    rng.shuffle(asked)
    found: dict[str, Cloze] = {}
    for sentence in asked:
        cloze = make_cloze(sentence, rng)
        if cloze is not None and len(cloze.answer) > 1:  # nearly every other passage holds a single digit
            found.setdefault(cloze.answer.lower(), cloze)
    return list(found.values())[:QUESTIONS_A_PASSAGE]


def _word(cloze: Cloze, rng: random.Random) -> str:
    if rng.random() < BLANKED:
        return rng.choice(CLOZE_PROMPTS).format(text=cloze.text)
    return as_question(cloze, rng)


def _near(own: Sequence[Piece], index: int, rng: random.Random) -> list[Piece]:
    """Other passages of the same document, drawn."""
    chosen = rng.sample(range(len(own) - 1), min(len(own) - 1, CANDIDATES))
    return [own[i + (i >= index)] for i in chosen]


def _draw(pieces: Sequence[Piece], rng: random.Random) -> list[Piece]:
    return rng.sample(pieces, min(len(pieces), CANDIDATES))


def _without(pieces: Iterable[Piece], answers: Sequence[str]) -> list[Piece]:
    """Passages that hold none of the answers, in any case of letters."""
    lowered = [answer.lower() for answer in answers]
    return [piece for piece in pieces if not any(answer in piece.text.lower() for answer in lowered)]
