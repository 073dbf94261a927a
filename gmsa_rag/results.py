"""What indexing and asking give back."""

from __future__ import annotations

from dataclasses import dataclass

from gmsa_rag.inference.prompt import Answer


@dataclass(frozen=True)
class Indexed:
    """What indexing did.

    Attributes:
        passages: Passages given, >= 0.
        computed: Memories computed; the others were in the store already, or are of an equal passage.
        num_tokens: Tokens of the passages together.
        num_soft_tokens: Soft tokens of their memories together.
        removed: Passages of the same sources or root that are there no more and left the index.
        seconds: Wall-clock time.
    """

    passages: int
    computed: int
    num_tokens: int
    num_soft_tokens: int
    removed: int
    seconds: float


@dataclass(frozen=True)
class Source:
    """A passage that was retrieved for a question.

    Attributes:
        number: Its number in the prompt, from 1; citations name it.
        id: Its name in the index.
        title: "" for none.
        score: Cosine similarity to the question in [-1, 1]; higher is closer.
        text: The passage as it was indexed.
    """

    number: int
    id: str
    title: str
    score: float
    text: str


@dataclass(frozen=True)
class Seconds:
    """Wall-clock times of an answer.

    Attributes:
        retrieval: Embedding the question and searching the index.
        fetch: Reading the memories from the store; 0 from full text, which retrieval gives.
        first_token: From the retrieved passages to the first piece of the answer: fetch, prompt, prefill, one step.
        total: From the question to the whole answer.
    """

    retrieval: float
    fetch: float
    first_token: float
    total: float


@dataclass(frozen=True)
class Reply:
    """An answer and where it comes from.

    Attributes:
        question: As it was asked.
        answer: Text, citations, and the numbers of passages that did not fit.
        sources: The retrieved passages, best first.
        from_text: Whether the decoder read the passages' full text instead of their memories.
        positions: Positions that the prompt takes in the decoder with the memories of all sources.
        positions_text: Positions that it takes with their full text.
        seconds: How long it took.
    """

    question: str
    answer: Answer
    sources: tuple[Source, ...]
    from_text: bool
    positions: int
    positions_text: int
    seconds: Seconds

    @property
    def cited(self) -> tuple[Source, ...]:
        """The passages that the answer names; a number that no passage has is passed over."""
        by_number = {source.number: source for source in self.sources}
        return tuple(by_number[number] for number in self.answer.citations if number in by_number)
