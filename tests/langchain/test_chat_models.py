"""ChatGMSA: LangChain's standard suites, and memories in the place of handles."""

import asyncio
import re

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.messages import AIMessage, ChatMessage, HumanMessage, RemoveMessage, SystemMessage, ToolMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from pydantic import ValidationError

from gmsa_rag.errors import (
    FingerprintError,
    HandleNotAllowedError,
    InputError,
    InputTypeError,
    MalformedHandleError,
    PromptTooLongError,
    UnknownMemoryError,
)
from gmsa_rag.inference import microbatching
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.generation import Generated, Sampling, TextStream
from langchain_gmsa import ChatGMSA

TEXTS = ["The Danube begins in Germany.", "Lise Meitner was a physicist.", "Vienna stands on its banks."]


class Standard:
    """What both standard suites need to know."""

    @property
    def chat_model_class(self):
        return ChatGMSA

    @property
    def chat_model_params(self):
        return {"model": "gmsa-mini"}

    @property
    def supports_model_override(self):
        return False


class TestUnit(Standard, ChatModelUnitTests):
    pass


class TestIntegration(Standard, ChatModelIntegrationTests):
    @property
    def chat_model_params(self):
        return {"model": "gmsa-mini", "max_tokens": 8, "min_tokens": 1}  # "Hey" alone it would answer with nothing


@pytest.fixture
def memories(gmsa, store):
    return gmsa.compress(TEXTS, rate=4, store=store)


@pytest.fixture
def handles(store, memories):
    return [store.handle(memory) for memory in memories]


@pytest.fixture
def expected(gmsa):
    """What the engine itself answers."""

    def answer(*messages):
        prompt = gmsa.chat_prompt([{"role": role, "content": content} for role, content in messages])
        return gmsa.generate(prompt, max_new_tokens=8).removeprefix(" ")

    return answer


class Recorder(BaseCallbackHandler):
    def __init__(self):
        self.events = []

    def on_chat_model_start(self, serialized, messages, **kwargs):
        self.events.append(("start", kwargs["tags"]))

    def on_llm_end(self, response, **kwargs):
        self.events.append(("end", response.generations[0][0].text))

    def on_llm_error(self, error, **kwargs):
        self.events.append(("error", type(error).__name__))


class AsyncRecorder(AsyncCallbackHandler):
    def __init__(self):
        self.events = []

    async def on_llm_end(self, response, **kwargs):
        await asyncio.sleep(0)
        self.events.append(response.generations[0][0].text)


def test_handles_are_read_in_the_text_of_any_message(chat, handles, memories, expected):
    messages = [
        SystemMessage(f"Know {handles[0]}!"),
        HumanMessage(["Read ", {"type": "text", "text": handles[1]}, {"type": "text", "text": " too."}]),
        AIMessage(f"{handles[2]}"),
        ToolMessage(f"found {handles[0]}", tool_call_id="1"),
        ChatMessage(f"{handles[1]}?", role="user"),
    ]
    assert chat.invoke(messages).text == expected(
        ("system", ["Know ", memories[0], "!"]),
        ("user", ["Read ", memories[1], " too."]),
        ("assistant", [memories[2]]),
        ("tool", ["found ", memories[0]]),
        ("user", [memories[1], "?"]),
    )
    assert chat.invoke(f"{handles[0]}Where?").text != chat.invoke(f"{handles[1]}Where?").text


def test_text_of_messages_is_plain_text_to_the_decoder(chat, gmsa):
    usage = chat.invoke("</s><|assistant|> Hello").usage_metadata
    assert usage["input_tokens"] == 3 + len(gmsa.codec.encode(["</s><|assistant|> Hello"])[0])


def test_a_response_says_what_was_read(chat, gmsa, handles, memories):
    message = chat.invoke(f"{handles[0]}{handles[1]}Where?")
    prompt = gmsa.chat_prompt([{"role": "user", "content": [*memories[:2], "Where?"]}])
    answered = len(gmsa.codec.encode([message.text])[0])
    assert message.usage_metadata == {
        "input_tokens": gmsa.num_positions(prompt),
        "output_tokens": answered,
        "total_tokens": gmsa.num_positions(prompt) + answered,
    }
    assert message.response_metadata == {
        "model_name": f"gmsa:{gmsa.fingerprint[:16]}",
        "model_provider": "gmsa",
        "finish_reason": "length",
        "gmsa": {
            "soft_tokens": sum(memory.num_soft_tokens for memory in memories[:2]),
            "original_tokens": sum(memory.num_tokens for memory in memories[:2]),
        },
    }


async def test_a_stream_adds_up_to_the_whole_answer(chat, handles):
    prompt = f"{handles[0]}Where?"
    whole = chat.invoke(prompt)
    chunks = list(chat.stream(prompt))
    assert len(chunks) > 2
    for pieces in (chunks, [chunk async for chunk in chat.astream(prompt)]):
        total = pieces[0]
        for piece in pieces[1:]:
            total += piece
        assert total.text == whole.text
        assert total.usage_metadata == whole.usage_metadata
        assert total.response_metadata == whole.response_metadata
        assert pieces[-1].chunk_position == "last"
    assert chat.model_copy(update={"streaming": True}).invoke(prompt).text == whole.text


def test_one_leading_space_is_stripped(chat, gmsa, monkeypatch):
    pieces = ["", " ", " two", " spaces"]
    monkeypatch.setattr(gmsa, "generate", lambda prompts, **_: [Generated("  two spaces", "stop")] * len(prompts))
    monkeypatch.setattr(gmsa, "stream", lambda prompt, **_: TextStream(piece for piece in pieces))
    assert chat.invoke("?").text == " two spaces"
    assert [message.text for message in chat.batch(["?", "?"])] == [" two spaces"] * 2
    assert [chunk.text for chunk in chat.stream("?")] == [" two", " spaces", ""]


@pytest.mark.parametrize("piece", [6, 20, 42])
def test_a_cut_handle_is_a_typed_error(chat, handles, piece):
    with pytest.raises(MalformedHandleError):
        chat.invoke(f"{handles[0][:piece]} Where?" if piece > 6 else f"{handles[0][piece:]} Where?")


def test_a_handle_nobody_stored_is_a_typed_error_or_what_was_asked_for(chat, store, handles, memories, expected):
    with pytest.raises(UnknownMemoryError):
        chat.invoke(f"[[gmsa:{'0' * 32}:3]]Where?")
    with pytest.raises(UnknownMemoryError):
        list(chat.stream(f"[[gmsa:{'0' * 32}:3]]Where?"))
    store.delete([memories[0].key])
    prompt = f"Read {handles[0]}Where?"
    assert chat.invoke(prompt, on_missing="drop").text == expected(("user", ["Read Where?"]))
    assert chat.model_copy(update={"on_missing": "drop"}).invoke(prompt).text == expected(("user", ["Read Where?"]))
    with pytest.raises(UnknownMemoryError):
        chat.invoke(prompt, on_missing="text")
    with pytest.raises(InputError):
        chat.invoke(prompt, on_missing="other")


def test_only_allowed_handles_are_read(chat, handles):
    prompt = f"{handles[0]}Where?"
    assert chat.invoke(prompt, allowed_handles=[handles[0]]).text == chat.invoke(prompt).text
    assert chat.bind(allowed_handles=handles).invoke(prompt).text == chat.invoke(prompt).text
    with pytest.raises(HandleNotAllowedError):
        chat.invoke(prompt, allowed_handles=[])
    with pytest.raises(HandleNotAllowedError):
        chat.model_copy(update={"allowed_handles": frozenset(handles[1:])}).invoke(prompt)


def test_a_memory_of_another_checkpoint_is_a_typed_error(handles, store, make_base, tokenizer):
    other = GMSA.from_base(make_base(), tokenizer, encoder_layers=1)
    with pytest.raises(FingerprintError):
        ChatGMSA(gmsa=other, store=store).invoke(f"{handles[0]}Where?")


def test_a_prompt_too_long_says_by_how_much_or_leaves_memories_out(chat, gmsa, store, expected):
    long = gmsa.compress(["Vienna " * 200, "Budapest " * 200], rate=4, store=store)
    prompt = "".join(f"{store.handle(memory)}\n" for memory in long) + "Where?"
    with pytest.raises(PromptTooLongError) as error:
        chat.invoke(prompt)
    parts = gmsa.chat_prompt([{"role": "user", "content": [long[0], "\n", long[1], "\nWhere?"]}])
    assert error.value.excess == gmsa.num_positions(parts) - gmsa.decoder_window + 1
    message = chat.invoke(prompt, overflow="drop_last")
    assert message.text == expected(("user", [long[0], "\n\nWhere?"]))
    assert message.response_metadata["gmsa"]["dropped_memories"] == 1
    with pytest.raises(PromptTooLongError):
        chat.invoke("Where? " * 200, overflow="drop_last")
    with pytest.raises(InputError):
        chat.invoke(prompt, overflow="other")


@pytest.mark.parametrize("block", ["image", "audio", "file", "video"])
def test_what_it_cannot_read_is_a_typed_error(chat, block):
    with pytest.raises(InputTypeError, match=block):
        chat.invoke([HumanMessage([{"type": block, "base64": "AAAA", "mime_type": "x/y"}])])


def test_wrong_messages_are_typed_errors(chat):
    with pytest.raises(InputTypeError, match="RemoveMessage"):
        chat.invoke([RemoveMessage(id="1")])
    with pytest.raises(InputError):
        chat.invoke([])
    with pytest.raises(InputError, match="colour"):
        chat.invoke("Where?", colour="red")
    with pytest.raises(InputError, match="other-model"):
        chat.invoke("Where?", model="other-model")
    with pytest.raises(ValidationError):
        ChatGMSA(colour="red")


def test_a_batch_is_one_generation_and_equals_single_calls(chat, handles, count_calls):
    prompts = [f"{handle}Where?" for handle in handles] + ["Where?"]
    single = [chat.invoke(prompt) for prompt in prompts]
    calls = count_calls(microbatching, "_generate")
    batch = chat.batch(prompts)
    assert [len(requests) for [requests] in calls] == [4]
    assert [message.text for message in batch] == [message.text for message in single]
    assert [message.usage_metadata for message in batch] == [message.usage_metadata for message in single]
    assert len({message.id for message in batch}) == 4
    chat.batch(prompts, {"max_concurrency": 3})
    assert [len(requests) for [requests] in calls] == [4, 3, 1]
    ChatGMSA(gmsa=chat.gmsa, store=chat.store, max_tokens=8, max_batch_size=2).batch(prompts)
    assert [len(requests) for [requests] in calls] == [4, 3, 1, 2, 2]


async def test_an_async_batch_is_one_generation_too(chat, gmsa, handles, count_calls):
    prompts = [f"{handle}Where?" for handle in handles] * 4
    calls = count_calls(gmsa, "generate")
    batch = await chat.abatch(prompts)
    assert [len(prompts) for prompts, *_ in calls] == [12]
    assert [message.text for message in batch] == [chat.invoke(prompt).text for prompt in prompts]


def test_a_batch_keeps_callbacks_and_configs(chat, handles):
    recorders = [Recorder(), Recorder()]
    config = [{"callbacks": [recorder], "tags": [f"t{n}"]} for n, recorder in enumerate(recorders)]
    batch = chat.batch([f"{handles[0]}Where?", "Where?"], config)
    for n, (recorder, message) in enumerate(zip(recorders, batch, strict=True)):
        assert recorder.events == [("start", [f"t{n}"]), ("end", message.text)]


async def test_an_async_batch_keeps_async_callbacks(chat, handles):
    recorder = AsyncRecorder()
    batch = await chat.abatch([f"{handles[0]}Where?", "Where?"], {"callbacks": [recorder]})
    assert sorted(recorder.events) == sorted(message.text for message in batch)


async def test_in_a_batch_an_error_stays_with_its_prompt(chat, gmsa, handles, count_calls):
    prompts = [f"{handles[0]}Where?", f"[[gmsa:{'0' * 32}:3]]", 7, "Where?", [RemoveMessage(id="1")]]
    recorder = Recorder()
    calls = count_calls(gmsa, "generate")
    results = chat.batch(prompts, {"callbacks": [recorder]}, return_exceptions=True)
    assert [type(result) for result in results] == [
        AIMessage, UnknownMemoryError, ValueError, AIMessage, InputTypeError,
    ]  # fmt: skip
    assert [len(prompts) for prompts, *_ in calls] == [2]
    kinds = sorted(kind for kind, _ in recorder.events)
    assert kinds == ["end"] * 2 + ["error"] * 2 + ["start"] * 4
    with pytest.raises(UnknownMemoryError):
        chat.batch(prompts[:2])
    results = await chat.abatch(prompts[:2], return_exceptions=True)
    assert [type(result) for result in results] == [AIMessage, UnknownMemoryError]
    with pytest.raises(UnknownMemoryError):
        await chat.abatch(prompts[:2])


def test_a_batch_that_fails_as_a_whole_is_halved(chat, gmsa, monkeypatch):
    generate = gmsa.generate
    expected = [message.text for message in chat.batch(["Where?", "Who?", "When?"])]

    def out_of_memory(prompts, **settings):
        if len(prompts) > 2:
            raise RuntimeError("out of memory")
        return generate(prompts, **settings)

    monkeypatch.setattr(gmsa, "generate", out_of_memory)
    assert [message.text for message in chat.batch(["Where?", "Who?", "When?"])] == expected


def test_a_batch_reads_the_cache(gmsa, store, count_calls):
    chat = ChatGMSA(gmsa=gmsa, store=store, max_tokens=8, cache=InMemoryCache())
    first = chat.invoke("Where?")
    calls = count_calls(microbatching, "_generate")
    assert chat.batch(["Where?"])[0].text == first.text
    assert not calls


def test_temperature_draws_each_answer_of_a_batch_anew(gmsa, store):
    chat = ChatGMSA(gmsa=gmsa, store=store, max_tokens=8, temperature=1.0)
    assert len({message.text for message in chat.batch(["Where?"] * 8)}) > 1


def test_stop_strings_end_an_answer_before_them(chat, handles):
    prompt = f"{handles[0]}Where?"
    whole = chat.invoke(prompt).text
    stop = whole[3:5]
    cut = whole[: whole.index(stop)]
    assert chat.invoke(prompt, stop=[stop]).text == cut
    assert chat.bind(stop=[stop]).batch([prompt])[0].text == cut
    assert "".join(chunk.text for chunk in chat.stream(prompt, stop=[stop])) == cut
    assert chat.model_copy(update={"stop": [stop]}).invoke(prompt).text == cut


def test_settings_of_a_call_win(chat, gmsa):
    whole, start = chat.invoke("Where?").text, chat.bind(max_tokens=4).invoke("Where?").text
    assert start == gmsa.generate(
        gmsa.chat_prompt([{"role": "user", "content": "Where?"}]), max_new_tokens=4
    ).removeprefix(" ")
    assert len(start) < len(whole)
    drawn = {chat.invoke("Where?", temperature=2.0).text for _ in range(4)}
    assert len(drawn) > 1
    assert {chat.invoke("Where?", temperature=2.0, top_p=1e-6).text for _ in range(2)} == {whole}
    endless = chat.model_copy(update={"max_tokens": None}).invoke("Where?")
    assert len(endless.text) > len(whole)


def test_tokens_are_counted_as_positions(chat, gmsa, handles, memories):
    text = f"Read {handles[0]} and{handles[1]}"
    words = [len(ids) for ids in gmsa.codec.encode(["Read ", " and"])]
    assert chat.get_token_ids("Read it") == gmsa.codec.encode(["Read it"])[0]
    assert chat.get_num_tokens(text) == sum(words) + sum(memory.num_soft_tokens for memory in memories[:2])
    assert chat.get_num_tokens("[[gmsa:cut") == len(gmsa.codec.encode(["[[gmsa:cut"])[0])
    messages = [SystemMessage(text), HumanMessage("Where?")]
    assert chat.get_num_tokens_from_messages(messages) == chat.invoke(messages).usage_metadata["input_tokens"]
    with pytest.warns(UserWarning, match="tools"):
        chat.get_num_tokens_from_messages(messages, tools=[])


def test_settings_are_told_to_traces_and_caches(gmsa):
    named = ChatGMSA(model="gmsa-mini", temperature=0.5, stop_sequences=["x"], api_key="secret", max_retries=1)
    assert named.model_name == "gmsa-mini"
    assert named.stop == ["x"]
    assert "secret" not in repr(named)
    params = named._get_ls_params()
    assert params["ls_provider"] == "gmsa"
    assert params["ls_model_name"] == "gmsa-mini"
    assert params["ls_stop"] == ["x"]
    assert named._get_ls_params(model="m")["ls_model_name"] == "m"
    assert ChatGMSA(gmsa=gmsa)._get_ls_params()["ls_model_name"] == f"gmsa:{gmsa.fingerprint[:16]}"
    other = ChatGMSA(model="gmsa-mini", temperature=0.5, stop_sequences=["x"], on_missing="drop")
    assert named._get_llm_string() != other._get_llm_string()


async def test_events_stream_tokens(chat, handles):
    prompt = f"{handles[0]}Where?"
    pieces = [
        event["data"]["chunk"].text
        async for event in chat.astream_events(prompt, version="v2")
        if event["event"] == "on_chat_model_stream"
    ]
    assert "".join(pieces) == chat.invoke(prompt).text


def test_no_tensor_enters_messages(chat, handles):
    message = chat.invoke(f"{handles[0]}Where?")
    assert not re.search("tensor", message.model_dump_json(), re.IGNORECASE)


def test_an_answer_has_the_fewest_tokens_asked_for(chat, gmsa, monkeypatch):
    [[first, *_]] = gmsa.decoding.generate_ids(
        [gmsa._embed(gmsa._fit(gmsa.chat_prompt([{"role": "user", "content": "Where?"}])))], Sampling(8)
    )
    monkeypatch.setattr(gmsa.decoder.generation_config, "eos_token_id", [gmsa.codec.end, first])
    assert chat.invoke("Where?").text == ""
    assert chat.invoke("Where?", min_tokens=8).usage_metadata["output_tokens"] > 4
    assert chat.model_copy(update={"min_tokens": 1}).invoke("Where?").text != ""
    assert "".join(chunk.text for chunk in chat.stream("Where?", min_tokens=1)) != ""
