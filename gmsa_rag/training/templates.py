"""Wordings of question prompts to train on and to evaluate with: users' chains and frameworks each have theirs."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from gmsa_rag.inference.prompt import passage_frame

Turns = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Wording:
    """One way to put passages and a question into a prompt.

    Attributes:
        passage: One passage: `{number}`, `{title}`, `{passage}`.
        prompt: The whole: `{passages}` and `{question}`.
        chat: Whether it is framed as a user's turn, or is bare text.
        joint: End of `passage` that stands between passages only, not after the last one.
        turns: Role and template of each turn, where there are several; joined by line breaks they are `prompt`.
    """

    passage: str
    prompt: str
    chat: bool = True
    joint: str = ""
    turns: Turns = ()

    def frames(self, titles: Sequence[str]) -> list[tuple[str, str]]:
        r"""What stands before and after each passage.

        Args:
            titles: One a passage, "" for none.

        Example:
            >>> FRAMEWORK_WORDINGS["langchain"].frames(["Danube", "Rhine"])
            [('', '\n\n'), ('', '')]

        """
        frames = [passage_frame(self.passage, number, title) for number, title in enumerate(titles, 1)]
        return frames[:-1] + [(before, after.removesuffix(self.joint)) for before, after in frames[-1:]]


@dataclass(frozen=True)
class RefineWording:
    """One way to ask for a better answer in view of one more passage.

    Attributes:
        prompt: The whole: `{question}`, `{existing_answer}` and `{context}`, each once.
        chat: Whether it is framed as a user's turn, or is bare text.
        turns: Role and template of each turn, where there are several; joined by line breaks they are `prompt`.
    """

    prompt: str
    chat: bool = True
    turns: Turns = ()


def _joined(turns: Turns) -> str:
    return "\n".join(template for _, template in turns)


def _of_framework(*turns: tuple[str, str]) -> Wording:
    # Both frameworks put an empty line between documents.
    several = turns if len(turns) > 1 else ()
    return Wording("{passage}\n\n", _joined(turns), joint="\n\n", turns=several)


# The words of the defaults of LangChain (langchain-classic 1.0.8, chains/question_answering: stuff_prompt.py and
# refine_prompts.py) and LlamaIndex (llama-index-core 0.14.25, prompts: default_prompts.py and chat_prompts.py), both
# under the MIT licence, Copyright (c) LangChain, Inc. and Copyright (c) Jerry Liu. They are kept to the letter, the
# variables apart, because a decoder is sent these very words by chains that set no prompt of their own. A plain prompt
# reaches a chat model as one user's turn.
_LANGCHAIN = """\
Use the following pieces of context to answer the question at the end. If you don't know the answer, just say that you \
don't know, don't try to make up an answer.

{passages}

Question: {question}
Helpful Answer:"""
_LANGCHAIN_SYSTEM = """\
Use the following pieces of context to answer the user's question.
If you don't know the answer, just say that you don't know, don't try to make up an answer.
----------------
{passages}"""
_LANGCHAIN_FIRST = """\
Context information is below.\x20
------------
{passages}
------------
Given the context information and not prior knowledge, answer the question: {question}
"""
_LANGCHAIN_FIRST_SYSTEM = """\
Context information is below.
------------
{passages}
------------
Given the context information and not prior knowledge, answer any questions"""
_LANGCHAIN_REFINE_END = """\
We have the opportunity to refine the existing answer (only if needed) with some more context below.
------------
{context}
------------
Given the new context, refine the original answer to better answer the question. If the context isn't useful, return \
the original answer."""
_LANGCHAIN_REFINE = f"""\
The original question is as follows: {{question}}
We have provided an existing answer: {{existing_answer}}
{_LANGCHAIN_REFINE_END}"""
_LLAMA_INDEX = """\
Context information is below.
---------------------
{passages}
---------------------
Given the context information and not prior knowledge, answer the query.
Query: {question}
Answer:\x20"""
_LLAMA_INDEX_SYSTEM = """\
You are an expert Q&A system that is trusted around the world.
Always answer the query using the provided context information, and not prior knowledge.
Some rules to follow:
1. Never directly reference the given context in your answer.
2. Avoid statements like 'Based on the context, ...' or 'The context information ...' or anything along those lines."""
_LLAMA_INDEX_REFINE = """\
The original query is as follows: {question}
We have provided an existing answer: {existing_answer}
We have the opportunity to refine the existing answer (only if needed) with some more context below.
------------
{context}
------------
Given the new context, refine the original answer to better answer the query. If the context isn't useful, return the \
original answer.
Refined Answer:\x20"""
_LLAMA_INDEX_CHAT_REFINE = """\
You are an expert Q&A system that strictly operates in two modes when refining existing answers:
1. **Rewrite** an original answer using the new context.
2. **Repeat** the original answer if the new context isn't useful.
Never reference the original answer or context directly in your answer.
When in doubt, just repeat the original answer.
New Context: {context}
Query: {question}
Original Answer: {existing_answer}
New Answer:\x20"""
_LANGCHAIN_CHAT_REFINE: Turns = (
    ("user", "{question}"), ("assistant", "{existing_answer}"), ("user", _LANGCHAIN_REFINE_END)
)  # fmt: skip

FRAMEWORK_WORDINGS: dict[str, Wording] = {
    "langchain": _of_framework(("user", _LANGCHAIN)),
    "langchain_chat": _of_framework(("system", _LANGCHAIN_SYSTEM), ("user", "{question}")),
    "langchain_refine": _of_framework(("user", _LANGCHAIN_FIRST)),
    "langchain_refine_chat": _of_framework(("system", _LANGCHAIN_FIRST_SYSTEM), ("user", "{question}")),
    "llama_index": _of_framework(("user", _LLAMA_INDEX)),
    "llama_index_chat": _of_framework(("system", _LLAMA_INDEX_SYSTEM), ("user", _LLAMA_INDEX)),
}
"""Defaults of LangChain and LlamaIndex; those of "refine" are what such a chain asks of its first document."""

QUESTION_WORDINGS = (
    *FRAMEWORK_WORDINGS.values(),
    Wording("{passage}\n\n", "Use the context below to answer the question at its end.\n\n{passages}"
            "Question: {question}"),
    Wording("{passage}\n\n", "You answer questions from retrieved context. Be concise.\nQuestion: {question}\n"
            "Context: {passages}Answer:"),
    Wording("{title}: {passage}\n", "Passages:\n{passages}\n{question}"),
    Wording("Source {number} ({title}): {passage}\n", "{passages}\nQ: {question}\nA:"),
    Wording("{passage}\n", "{passages}Question: {question}\nAnswer:", chat=False),
    Wording("{passage}\n\n", "{passages}\nQuestion: {question}\nAnswer:", chat=False),
    Wording("{title}\n{passage}\n", "Context:\n{passages}\nQuestion: {question}\nAnswer:", chat=False),
)  # fmt: skip

REFINE_WORDINGS = (
    RefineWording(_LANGCHAIN_REFINE),
    RefineWording(_joined(_LANGCHAIN_CHAT_REFINE), turns=_LANGCHAIN_CHAT_REFINE),
    RefineWording(_LLAMA_INDEX_REFINE),
    RefineWording(_LLAMA_INDEX_CHAT_REFINE),
)

QUOTE_PROMPTS = ("Continue: {text}", "What follows after these words? {text}", "Go on from here: {text} ...")
CLOZE_PROMPTS = ("Fill in the blank: {text}", "Complete the sentence: {text}", "What is missing? {text}")


def draw_wording(rng: random.Random) -> Wording:
    """A wording other than the checkpoint's own."""
    return rng.choice(QUESTION_WORDINGS)
