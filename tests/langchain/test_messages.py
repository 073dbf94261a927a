"""Messages to turns: roles, blocks that hold text, and blocks that name a memory."""

import json

import pytest
from langchain_core.load import dumpd
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

from gmsa_rag.errors import InputTypeError, MalformedHandleError, UnknownMemoryError
from langchain_gmsa.messages import turns_of

NOBODYS = f"[[gmsa:{'0' * 32}:3]]"


def non_standard(handle):
    return {"type": "non_standard", "value": {"gmsa": {"handle": handle}}}


def text_plain(handle):
    return {"type": "text-plain", "mime_type": "text/plain", "file_id": handle.strip("[]"), "text": "the original"}


@pytest.fixture
def handle(gmsa, store):
    return store.handle(gmsa.compress("The Danube begins in Germany.", rate=4, store=store))


@pytest.mark.parametrize("block", [non_standard, text_plain])
@pytest.mark.parametrize(
    "message", [SystemMessage, HumanMessage, AIMessage, lambda c: ToolMessage(c, tool_call_id="1")]
)
def test_a_block_may_name_a_memory_in_any_message(block, message, handle, chat, load_again):
    blocks = message([{"type": "text", "text": "Read "}, block(handle), {"type": "text", "text": " now."}])
    text = message(f"Read {handle} now.")
    assert turns_of([blocks]) == turns_of([text])
    question = HumanMessage("Where?")
    answer = chat.invoke([text, question])
    assert answer.response_metadata["gmsa"]["soft_tokens"] > 0
    assert chat.invoke([blocks, question]).text == answer.text
    assert chat.invoke(load_again(dumpd([blocks, question]))).text == answer.text
    assert json.loads(json.dumps(blocks.content)) == blocks.content


@pytest.mark.parametrize("block", [non_standard, text_plain])
def test_a_block_that_names_no_memory_is_a_typed_error(block, handle, chat):
    with pytest.raises(UnknownMemoryError):
        chat.invoke([HumanMessage([block(NOBODYS)])])
    with pytest.raises(MalformedHandleError):
        chat.invoke([HumanMessage([block(handle.replace(":", "", 2).replace("gmsa", "gmsa:"))])])
    cut = [HumanMessage([block(f"{handle[:20]}]]")])]
    results = chat.batch([cut, "Where?"], return_exceptions=True)
    assert [type(result) for result in results] == [MalformedHandleError, AIMessage]


@pytest.mark.parametrize("value", [None, "text", {}, {"handle": 7}, {"key": "0" * 32}])
def test_a_block_without_a_handle_is_a_typed_error(value):
    with pytest.raises(InputTypeError, match="handle"):
        turns_of([HumanMessage([{"type": "non_standard", "value": {"gmsa": value}}])])


def test_other_blocks_are_text_or_passed_over():
    blocks = [
        "a ",
        {"type": "text", "text": "b "},
        {"type": "text-plain", "mime_type": "text/plain", "text": "c", "file_id": "other:1"},
        {"type": "reasoning", "reasoning": "hm"},
        {"type": "non_standard", "value": {"other": 1}},
    ]
    assert turns_of([AIMessage(blocks)]) == [("assistant", "a b c")]


def test_neighbours_of_one_role_are_one_turn_of_the_template(gmsa, chat, handle, monkeypatch):
    strict = (
        "{% for m in messages %}"
        "{% if loop.index0 and m.role == messages[loop.index0 - 1].role %}{{ raise_exception('repeated') }}{% endif %}"
        "{{ m.role }}:{{ m.content }};{% endfor %}"
    )
    monkeypatch.setattr(gmsa.tokenizer, "chat_template", strict)
    messages = [
        SystemMessage("s"),
        SystemMessage("t"),
        HumanMessage(f"{handle}"),
        HumanMessage("Where?"),
        AIMessage("x"),
    ]
    joined = [SystemMessage("s\nt"), HumanMessage(f"{handle}\nWhere?"), AIMessage("x")]
    assert chat.invoke(messages).usage_metadata == chat.invoke(joined).usage_metadata
    assert chat.invoke(messages).text == chat.invoke(joined).text
