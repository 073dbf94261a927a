"""Wordings of question prompts to train on, since users' chains and frameworks each word theirs differently."""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Wording:
    """One way to put passages and a question into a prompt.

    Attributes:
        passage: One passage: `{number}`, `{title}`, `{passage}`.
        prompt: The whole: `{passages}` and `{question}`.
        chat: Whether it is framed as a user's turn, or is bare text.
    """

    passage: str
    prompt: str
    chat: bool = True


QUESTION_WORDINGS = (
    Wording("{passage}\n\n", "Use the context below to answer the question at its end.\n\n{passages}"
            "Question: {question}"),
    Wording("{passage}\n\n", "Use these pieces of context to answer the question at the end. If you do not know the "
            "answer, say that you do not know.\n\n{passages}Question: {question}\nHelpful Answer:"),
    Wording("{passage}\n\n", "Context information is below.\n---------------------\n{passages}---------------------\n"
            "Using the context and no prior knowledge, answer the query.\nQuery: {question}\nAnswer: "),
    Wording("{passage}\n\n", "You answer questions from retrieved context. Be concise.\nQuestion: {question}\n"
            "Context: {passages}Answer:"),
    Wording("{title}: {passage}\n", "Passages:\n{passages}\n{question}"),
    Wording("Source {number} ({title}): {passage}\n", "{passages}\nQ: {question}\nA:"),
    Wording("{passage}\n", "{passages}Question: {question}\nAnswer:", chat=False),
    Wording("{passage}\n\n", "{passages}\nQuestion: {question}\nAnswer:", chat=False),
    Wording("{title}\n{passage}\n", "Context:\n{passages}\nQuestion: {question}\nAnswer:", chat=False),
)  # fmt: skip

QUOTE_PROMPTS = ("Continue: {text}", "What follows after these words? {text}", "Go on from here: {text} ...")
CLOZE_PROMPTS = ("Fill in the blank: {text}", "Complete the sentence: {text}", "What is missing? {text}")


def draw_wording(rng: random.Random) -> Wording:
    """A wording other than the checkpoint's own."""
    return rng.choice(QUESTION_WORDINGS)
