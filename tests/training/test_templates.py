import random
from collections.abc import Sequence

import pytest
from langchain_classic.chains.combine_documents.stuff import create_stuff_documents_chain
from langchain_classic.chains.question_answering import refine_prompts, stuff_prompt
from langchain_core.documents import Document
from langchain_core.language_models import FakeListLLM
from langchain_core.messages import AIMessage, SystemMessage
from langchain_core.prompt_values import PromptValue
from langchain_core.prompts import BasePromptTemplate
from langchain_core.runnables import RunnableLambda
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.indices.prompt_helper import PromptHelper
from llama_index.core.prompts import chat_prompts, default_prompts
from llama_index.core.prompts.base import BasePromptTemplate as LlamaPrompt

from gmsa_rag.training.templates import (
    FRAMEWORK_WORDINGS,
    QUESTION_WORDINGS,
    REFINE_WORDINGS,
    RefineWording,
    Turns,
    Wording,
    draw_wording,
)

PASSAGES = ("The Danube is long.", "The Rhine is {short}.", "The Elbe is cold.")
QUESTION, EARLIER = "Which river is {cold}?", "The Rhine"


def turns_of(wording: Wording | RefineWording) -> Turns:
    return wording.turns or (("user", wording.prompt),)


def filled(wording: Wording | RefineWording, passages: Sequence[str]) -> list[tuple[str, str]]:
    """The turns of a wording, by plain replacement."""
    if isinstance(wording, Wording):
        frames = wording.frames([""] * len(passages))
        passages = [before + text + after for (before, after), text in zip(frames, passages, strict=True)]

    def fill(template: str) -> str:
        known = template.replace("{question}", QUESTION).replace("{existing_answer}", EARLIER)
        return known.replace("{passages}", "".join(passages)).replace("{context}", "".join(passages))

    return [(role, fill(template)) for role, template in turns_of(wording)]


def langchain_turns(value: PromptValue) -> list[tuple[str, str]]:
    kinds = {SystemMessage: "system", AIMessage: "assistant"}
    return [(kinds.get(type(message), "user"), str(message.content)) for message in value.to_messages()]


def llama_turns(prompt: LlamaPrompt, **values: str) -> list[tuple[str, str]]:
    messages: list[ChatMessage] = prompt.format_messages(**values)
    return [(message.role.value, str(message.content)) for message in messages]


@pytest.mark.parametrize(
    ("name", "prompt", "variable"),
    [
        ("langchain", stuff_prompt.PROMPT, "context"),
        ("langchain_chat", stuff_prompt.CHAT_PROMPT, "context"),
        ("langchain_refine", refine_prompts.DEFAULT_TEXT_QA_PROMPT, "context_str"),
        ("langchain_refine_chat", refine_prompts.CHAT_QUESTION_PROMPT, "context_str"),
    ],
)
def test_langchain_wordings_are_those_its_chains_send(name: str, prompt: BasePromptTemplate, variable: str) -> None:  # type: ignore[type-arg]
    sent: list[PromptValue] = []

    def model(value: PromptValue) -> str:
        sent.append(value)
        return FakeListLLM(responses=["none"]).invoke(value)

    chain = create_stuff_documents_chain(RunnableLambda(model), prompt, document_variable_name=variable)
    chain.invoke({variable: [Document(text) for text in PASSAGES], "question": QUESTION})
    assert filled(FRAMEWORK_WORDINGS[name], PASSAGES) == langchain_turns(sent[0])


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("llama_index", default_prompts.DEFAULT_TEXT_QA_PROMPT),
        ("llama_index_chat", chat_prompts.CHAT_TEXT_QA_PROMPT),
    ],
)
def test_llama_index_wordings_are_those_its_synthesizers_send(name: str, prompt: LlamaPrompt) -> None:
    (context,) = PromptHelper(tokenizer=str.split).repack(prompt, list(PASSAGES))
    expected = llama_turns(prompt, context_str=context, query_str=QUESTION)
    assert filled(FRAMEWORK_WORDINGS[name], PASSAGES) == expected


def test_refine_wordings_are_the_frameworks_own() -> None:
    values = {"question": QUESTION, "existing_answer": EARLIER, "context_str": PASSAGES[1]}
    of_llama_index = {"query_str": QUESTION, "existing_answer": EARLIER, "context_msg": PASSAGES[1]}
    assert [filled(wording, PASSAGES[1:2]) for wording in REFINE_WORDINGS] == [
        langchain_turns(refine_prompts.DEFAULT_REFINE_PROMPT.format_prompt(**values)),
        langchain_turns(refine_prompts.CHAT_REFINE_PROMPT.format_prompt(**values)),
        llama_turns(default_prompts.DEFAULT_REFINE_PROMPT, **of_llama_index),
        llama_turns(chat_prompts.CHAT_REFINE_PROMPT, **of_llama_index),
    ]


def test_turns_joined_are_the_prompt() -> None:
    several = [wording for wording in (*QUESTION_WORDINGS, *REFINE_WORDINGS) if wording.turns]
    assert len(several) == 4
    assert all("\n".join(template for _, template in wording.turns) == wording.prompt for wording in several)


@pytest.mark.parametrize("wording", QUESTION_WORDINGS)
def test_wordings_have_a_place_for_all_that_is_said(wording: Wording) -> None:
    assert wording.prompt.count("{passages}") == wording.prompt.count("{question}") == 1
    assert wording.passage.count("{passage}") == 1
    assert wording.passage.endswith(wording.joint)


@pytest.mark.parametrize("wording", REFINE_WORDINGS)
def test_refine_wordings_have_a_place_for_all_that_is_said(wording: RefineWording) -> None:
    for place in ("{question}", "{existing_answer}", "{context}"):
        assert wording.prompt.count(place) == 1


def test_a_joint_stands_between_passages_only() -> None:
    wording = Wording("{number} {title}\n{passage}--\n", "{passages}{question}", joint="--\n")
    assert wording.frames(["A", "", "B"]) == [("1 A\n", "--\n"), ("2\n", "--\n"), ("3 B\n", "")]
    assert wording.frames(["A"]) == [("1 A\n", "")]
    assert wording.frames([]) == []
    assert Wording("{passage}\n", "{passages}{question}").frames(["", ""]) == [("", "\n"), ("", "\n")]


def test_every_wording_is_drawn() -> None:
    rng = random.Random(0)
    assert {draw_wording(rng) for _ in range(500)} == set(QUESTION_WORDINGS)
    assert set(FRAMEWORK_WORDINGS.values()) <= set(QUESTION_WORDINGS)
