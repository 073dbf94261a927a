"""Prompts with handles, read as the decoder reads them."""

import pytest

from gmsa_rag.errors import (
    FingerprintError,
    HandleNotAllowedError,
    MalformedHandleError,
    PromptTooLongError,
    UnknownMemoryError,
)
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.prompt import Verbatim
from gmsa_rag.inference.reading import Reading, read_text, read_turns, without_leading_space
from gmsa_rag.memory.store import MemoryStore


@pytest.fixture
def store():
    with MemoryStore(":memory:") as store:
        yield store


@pytest.fixture
def memory(gmsa, store):
    return gmsa.compress("The Danube begins in the Black Forest of Germany.", 4, store=store)


@pytest.fixture
def handle(store, memory):
    return store.handle(memory)


def test_turns_become_the_chat_prompt(gmsa, store, memory, handle):
    prompt = read_turns(
        [("user", f"{handle}\nWhere?"), ("assistant", "There."), ("user", "</s>")], gmsa, store, Reading()
    )
    messages = [
        {"role": "user", "content": [memory, "\nWhere?"]},
        {"role": "assistant", "content": "There."},
        {"role": "user", "content": [Verbatim("</s>")]},
    ]
    assert prompt.parts == gmsa.chat_prompt(messages)
    assert prompt.positions == gmsa.num_positions(prompt.parts)
    numbers = prompt.soft_tokens, prompt.original_tokens, prompt.dropped
    assert numbers == (memory.num_soft_tokens, memory.num_tokens, 0)


def test_a_text_is_complete_or_verbatim(gmsa, store, memory, handle):
    formatted = read_text(f"<|user|>{handle}", gmsa, store, Reading())
    assert formatted.parts == ["<|user|>", memory]
    verbatim = read_text(f"<|user|>{handle}", gmsa, store, Reading(), verbatim=True)
    assert verbatim.parts == formatted.parts
    assert isinstance(verbatim.parts[0], Verbatim)
    assert verbatim.positions > formatted.positions


@pytest.mark.parametrize("read", [lambda text, *rest: read_turns([("user", text)], *rest), read_text])
def test_wrong_handles_are_errors(read, gmsa, store, memory, handle, make_base, tokenizer):
    with pytest.raises(MalformedHandleError):
        read(handle[:-1], gmsa, store, Reading())
    with pytest.raises(HandleNotAllowedError):
        read(handle, gmsa, store, Reading(allowed=frozenset()))
    other = GMSA.from_base(make_base(layers=4), tokenizer, encoder_layers=2, lsa_layers=1)
    with pytest.raises(FingerprintError):
        read(handle, other, store, Reading())
    store.delete([memory.key])
    with pytest.raises(UnknownMemoryError):
        read(handle, gmsa, store, Reading())
    assert read(f"{handle} a", gmsa, store, Reading("drop")).soft_tokens == 0


def test_text_takes_the_place_of_a_memory_that_is_gone(gmsa):
    with MemoryStore(":memory:", max_memories=1) as store:
        handle = store.handle(gmsa.compress("Rome", 4, store=store))
        gmsa.compress("Oslo", 4, store=store)
        prompt = read_text(handle, gmsa, store, Reading("text"))
        assert (prompt.parts, prompt.soft_tokens) == (["Rome"], 0)


def test_memories_are_left_out_from_the_end(gmsa, store, handle):
    text = " ".join([handle] * 60)
    with pytest.raises(PromptTooLongError):
        read_text(text, gmsa, store, Reading())
    prompt = read_text(text, gmsa, store, Reading(overflow="drop_last"))
    assert prompt.dropped > 0
    assert prompt.positions < gmsa.decoder_window
    roomy = read_text(text, gmsa, store, Reading(overflow="drop_last", room=32))
    assert roomy.dropped > prompt.dropped and roomy.positions + 32 <= gmsa.decoder_window
    # An answer as long as the window leaves no room for a prompt: it gets what is left.
    assert read_text(text, gmsa, store, Reading(overflow="drop_last", room=gmsa.decoder_window)) == prompt


def test_the_space_in_front_of_an_answer():
    assert list(without_leading_space([" ", " a", " b"])) == [" a", " b"]
    assert list(without_leading_space(["", " a", "b"])) == ["a", "b"]
    assert list(without_leading_space([])) == []
