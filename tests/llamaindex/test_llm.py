"""GMSALLM: the chat template, handles, settings, numbers, and an event loop that keeps ticking."""

import asyncio
import copy
import pickle
import threading

import pytest
from llama_index.core import PromptHelper, PromptTemplate
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock, ThinkingBlock
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.schema import NodeWithScore, TextNode
from pydantic import ValidationError

from gmsa_rag.errors import (
    FingerprintError,
    GenerationTimeoutError,
    HandleNotAllowedError,
    InputError,
    InputTypeError,
    MalformedHandleError,
    PromptTooLongError,
    UnknownMemoryError,
)
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.generation import TextStream
from gmsa_rag.memory.store import MemoryStore
from llama_index.llms.gmsa import GMSALLM, GMSATokenizer, base
from llama_index.llms.gmsa.threads import in_thread
from llama_index.postprocessor.gmsa import GMSANodePostprocessor


@pytest.fixture
def handle(post):
    [found] = post.postprocess_nodes([NodeWithScore(node=TextNode(text="The Danube begins in the Black Forest."))])
    return found.text


@pytest.fixture
def chat(handle):
    return [
        ChatMessage(role="system", content="Answer briefly."),
        ChatMessage(role="user", content=f"{handle}\nWhere does it begin?"),
    ]


def every_call(llm, messages, **settings):
    """What the eight ways to ask give for a chat, and for its last message as a prompt."""
    prompt = messages[-1].content

    async def later():
        return (
            (await llm.achat(messages, **settings)).message.content,
            "".join([r.delta async for r in await llm.astream_chat(messages, **settings)]),
            (await llm.acomplete(prompt, **settings)).text,
            "".join([r.delta async for r in await llm.astream_complete(prompt, **settings)]),
        )

    now = (
        llm.chat(messages, **settings).message.content,
        "".join(response.delta for response in llm.stream_chat(messages, **settings)),
        llm.complete(prompt, **settings).text,
        "".join(response.delta for response in llm.stream_complete(prompt, **settings)),
    )
    return *now, *asyncio.run(later())


def test_all_ways_to_ask_agree_and_read_the_memory(llm, wide, chat, handle, store, prompts):
    llm = llm.model_copy(update={"max_tokens": 6})
    answers = every_call(llm, chat)
    memory = store.resolve(handle)
    assert prompts == [[memory.key]] * 8
    parts = [memory, "\nWhere does it begin?"]
    messages = [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": parts}]
    chatted = wide.generate(wide.chat_prompt(messages), max_new_tokens=6).removeprefix(" ")
    completed = wide.generate(wide.chat_prompt(messages[1:]), max_new_tokens=6).removeprefix(" ")
    assert answers == (chatted, chatted, completed, completed) * 2
    assert chatted


def test_a_formatted_prompt_has_its_template_already(llm, wide, store, handle, prompts):
    text = f"<|user|>{handle} Where?<|assistant|>"
    parts = ["<|user|>", store.resolve(handle), " Where?<|assistant|>"]
    assert llm.complete(text, formatted=True).text == wide.generate(parts, max_new_tokens=2).removeprefix(" ")
    own = GMSALLM(gmsa=wide, store=store, max_tokens=2, completion_to_prompt=lambda prompt: prompt.upper())
    assert own.complete("ab").text == wide.generate("AB", max_new_tokens=2).removeprefix(" ")
    assert [len(keys) for keys in prompts] == [1, 0]


def test_a_checkpoint_without_a_template_completes_text(make_base, tokenizer, store):
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    gmsa = GMSA.from_base(make_base(), plain, encoder_layers=2, lsa_layers=1, window=48)
    llm = GMSALLM(gmsa=gmsa, store=store, max_tokens=2)
    assert not llm.metadata.is_chat_model
    assert llm.metadata.context_window == 256
    assert llm.complete("The Danube</s>").raw["usage"]["prompt_tokens"] > gmsa.num_positions("The Danube</s>")
    with pytest.raises(ValueError, match="chat template"):
        llm.chat([ChatMessage(content="a")])


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda handle: handle[:-3], MalformedHandleError),
        (lambda handle: handle[5:], MalformedHandleError),
        (lambda handle: handle[:20] + handle[21:], MalformedHandleError),
        (lambda handle: f"[[gmsa:{'0' * 32}:3]]", UnknownMemoryError),
    ],
)
def test_a_cut_or_unknown_handle_raises_in_every_way_to_ask(llm, handle, spoil, error, prompts):
    messages = [ChatMessage(content=f"Read {spoil(handle)} now.")]
    prompt = messages[0].content

    async def drained(responses):
        return [response async for response in await responses]

    for ask in (
        lambda: llm.chat(messages),
        lambda: list(llm.stream_chat(messages)),
        lambda: llm.complete(prompt),
        lambda: list(llm.stream_complete(prompt)),
        lambda: asyncio.run(llm.achat(messages)),
        lambda: asyncio.run(drained(llm.astream_chat(messages))),
        lambda: asyncio.run(llm.acomplete(prompt)),
        lambda: asyncio.run(drained(llm.astream_complete(prompt))),
    ):
        with pytest.raises(error):
            ask()
    assert prompts == []


def test_settings_of_a_handle(llm, chat, handle, store, wide, prompts):
    assert llm.chat(chat, allowed_handles=[handle]).raw["gmsa"]["soft_tokens"] > 0
    with pytest.raises(HandleNotAllowedError):
        llm.chat(chat, allowed_handles=[])
    with pytest.raises(HandleNotAllowedError):
        GMSALLM(gmsa=wide, store=store, allowed_handles=[]).chat(chat)
    memory = store.resolve(handle)
    store.delete([memory.key])
    with pytest.raises(UnknownMemoryError):
        llm.chat(chat)
    assert llm.chat(chat, on_missing="drop").raw["gmsa"] == {"soft_tokens": 0, "original_tokens": 0}
    assert prompts == [[memory.key], []]


def test_a_memory_of_another_checkpoint_is_refused(llm, chat, make_base, tokenizer):
    other = GMSA.from_base(make_base(layers=4), tokenizer, encoder_layers=2, lsa_layers=1, window=48)
    with pytest.raises(FingerprintError):
        llm.model_copy(update={"gmsa": other}).chat(chat)
    with pytest.raises(FingerprintError):
        llm.model_copy(update={"fingerprint": other.fingerprint}).chat(chat)


def test_a_prompt_that_does_not_fit(wide, store, post):
    long = [NodeWithScore(node=TextNode(text=f"{number} " + "The Danube begins. " * 900)) for number in range(4)]
    handles = [node.text for node in post.postprocess_nodes(long)]
    prompt = "\n".join(handles) + "\nWhere?"
    llm = GMSALLM(gmsa=wide, store=store, max_tokens=2)
    with pytest.raises(PromptTooLongError):
        llm.complete(prompt)
    raw = llm.complete(prompt, overflow="drop_last").raw
    assert raw["gmsa"]["dropped_memories"] >= 1
    assert raw["usage"]["prompt_tokens"] < 4096


def test_memories_are_left_out_until_the_answer_has_room(make_base, tokenizer, store):
    small = GMSA.from_base(make_base(), tokenizer, encoder_layers=2, lsa_layers=1, window=48)
    post = GMSANodePostprocessor(gmsa=small, store=store, rate=1)
    [found] = post.postprocess_nodes([NodeWithScore(node=TextNode(text="The Danube begins in the Black Forest."))])
    llm = GMSALLM(gmsa=small, store=store, max_tokens=8, overflow="drop_last")
    alone = llm.complete(found.text).raw["usage"]["prompt_tokens"]
    prompt = found.text + "\ue000" * ((253 - alone) // 3)  # three tokens each
    kept = llm.complete(prompt, max_tokens=2).raw
    assert 248 < kept["usage"]["prompt_tokens"] < 254
    assert "dropped_memories" not in kept["gmsa"]
    for settings in ({}, {"max_tokens": 12}):
        assert llm.complete(prompt, **settings).raw["gmsa"]["dropped_memories"] == 1
    for unbounded in (None, 256, 1000):
        assert "dropped_memories" not in llm.complete(prompt, max_tokens=unbounded).raw["gmsa"]


def test_sampling_settings(llm, wide, chat):
    whole = llm.chat(chat, max_tokens=12).message.content
    stop = whole[3:5]
    assert llm.chat(chat, max_tokens=12, stop=stop).message.content == whole[: whole.index(stop)]
    assert "".join(r.delta for r in llm.stream_chat(chat, max_tokens=12, stop=[stop])) == whole[: whole.index(stop)]
    drawn = {llm.chat(chat, max_tokens=12, temperature=5.0).message.content for _ in range(4)}
    assert len(drawn) > 1
    assert llm.chat(chat, max_tokens=12, temperature=5.0, top_p=1e-6).message.content == whole
    seeded = {"max_tokens": 12, "temperature": 5.0, "seed": 3}
    assert len(set(every_call(llm, chat[-1:], **seeded))) == 1
    with pytest.raises(GenerationTimeoutError):
        llm.chat(chat, max_tokens=500, timeout=1e-6)
    with pytest.raises(GenerationTimeoutError):
        list(llm.stream_chat(chat, max_tokens=500, timeout=1e-6))
    with pytest.raises(InputError, match="tools"):
        llm.chat(chat, tools=[])
    for wrong in ({"temperature": -1}, {"top_p": 0}, {"max_tokens": 0}, {"on_missing": "other"}, {"stops": []}):
        with pytest.raises(ValidationError):
            GMSALLM(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [{"max_tokens": "16"}, {"max_tokens": 2.5}, {"temperature": "hot"}, {"seed": "x"}, {"timeout": "1"}, {"stop": [5]}],
    ids=str,
)
def test_a_setting_of_a_wrong_type_is_refused_before_anything_is_asked(llm, chat, wrong, prompts):
    with pytest.raises(InputTypeError):
        every_call(llm, chat, **wrong)
    assert prompts == []


def test_none_leaves_temperature_and_stop_strings_unset(llm, wide, store, chat):
    expected = every_call(llm, chat)
    assert every_call(llm, chat, temperature=None, stop=None) == expected
    assert every_call(GMSALLM(gmsa=wide, store=store, max_tokens=2, temperature=None), chat) == expected


def test_the_numbers_are_those_of_the_decoder(llm, wide, chat, handle, store, own_tokenizer):
    counter = TokenCountingHandler()
    llm = llm.model_copy(update={"callback_manager": CallbackManager([counter])})
    memory = store.resolve(handle)
    response = llm.chat(chat)
    last = list(llm.stream_chat(chat))[-1]
    messages = [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": [memory, "\nWhere does it begin?"]},
    ]
    positions = wide.num_positions(wide.chat_prompt(messages))
    answered = len(wide.codec.encode([response.message.content])[0])
    usage = {"prompt_tokens": positions, "completion_tokens": answered, "total_tokens": positions + answered}
    numbers = {"soft_tokens": memory.num_soft_tokens, "original_tokens": memory.num_tokens}
    said = {"model": llm._name, "usage": usage, "finish_reason": "length", "gmsa": numbers}
    assert (response.raw, last.raw, response.additional_kwargs) == (said, said, usage)
    assert (last.delta, last.message.content) == ("", response.message.content)
    assert counter.total_llm_token_count == 2 * (positions + answered)


def test_metadata(llm, wide):
    metadata = llm.metadata
    messages = [{"role": role, "content": " "} for role in ("system", "user")]
    assert metadata.context_window == 4096 - wide.num_positions(wide.chat_prompt(messages))
    assert (metadata.num_output, metadata.is_chat_model) == (2, True)
    assert metadata.model_name == f"gmsa:{wide.fingerprint[:16]}"
    assert not metadata.is_function_calling_model
    assert llm.model_copy(update={"max_tokens": None}).metadata.num_output == -1


@pytest.mark.parametrize(
    "refusal", ["", "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"]
)
def test_packed_prompts_fit_with_a_long_template_around_them(make_base, tokenizer, store, refusal):
    own = copy.deepcopy(tokenizer)
    own.chat_template = f"{refusal}{'Answer from the passages alone. ' * 4}{tokenizer.chat_template}"
    gmsa = GMSA.from_base(make_base(), own, encoder_layers=2, lsa_layers=1, window=48)
    llm = GMSALLM(gmsa=gmsa, store=store, max_tokens=8)
    metadata = llm.metadata
    assert 0 < metadata.context_window < 256 - 4 * len("Answer from")
    helper = PromptHelper.from_llm_metadata(metadata, chunk_overlap_ratio=0)
    helper._token_counter.tokenizer = GMSATokenizer(gmsa=gmsa)
    template = PromptTemplate("{context_str}\nWhere?")
    packed = helper.repack(template, ["The Danube begins in the Black Forest."] * 20)
    assert len(packed) > 1
    for text in packed:
        assert llm.complete(template.format(context_str=text)).raw["usage"]["prompt_tokens"] <= 256 - 8


def test_a_template_that_refuses_everything_says_so(make_base, tokenizer):
    own = copy.deepcopy(tokenizer)
    own.chat_template = "{{ raise_exception('nothing') }}"
    gmsa = GMSA.from_base(make_base(), own, encoder_layers=2, lsa_layers=1, window=48)
    with pytest.raises(InputError, match="nothing"):
        _ = GMSALLM(gmsa=gmsa).metadata


def test_roles_and_blocks(llm, chat, prompts):
    messages = [
        ChatMessage(role="developer", content="Answer briefly."),
        ChatMessage(role="user", blocks=[TextBlock(text="a"), TextBlock(text="b")]),
        ChatMessage(role="assistant", blocks=[ThinkingBlock(content="hm"), TextBlock(text="c")]),
        ChatMessage(role="tool", content=chat[-1].content),
        ChatMessage(role="user", content="d"),
    ]
    llm.chat(messages)
    assert len(prompts[0]) == 1
    with pytest.raises(InputTypeError, match="image"):
        llm.chat([ChatMessage(role="user", blocks=[ImageBlock(image=b"aW1hZ2U=")])])
    with pytest.raises(InputError):
        llm.chat([])


def test_an_answer_without_a_bound_fills_the_window(make_base, tokenizer, store):
    gmsa = GMSA.from_base(make_base(), tokenizer, encoder_layers=2, lsa_layers=1, window=48)
    llm = GMSALLM(gmsa=gmsa, store=store, max_tokens=None)
    raw = llm.complete("a " * 100).raw
    assert raw["usage"]["prompt_tokens"] < 256


def test_nothing_is_loaded_before_its_first_use(monkeypatch):
    def load(*args, **kwargs):
        raise AssertionError("loaded")

    monkeypatch.setattr(GMSA, "from_pretrained", load)
    llm = GMSALLM(model="an-unloaded-model")
    assert llm.to_payload()["model_name"] == "an-unloaded-model"
    assert GMSALLM.from_dict(llm.to_dict()).model == "an-unloaded-model"
    tokenizer = GMSATokenizer("an-unloaded-model")
    for use in (lambda: llm.metadata, lambda: tokenizer("a")):
        with pytest.raises(AssertionError, match="loaded"):
            use()


def test_it_survives_dicts_and_pickles_without_the_engine(wide, tmp_path, chat):
    path = str(tmp_path / "memories.db")
    settings = {"max_tokens": 3, "stop": ["."], "store": path, "allowed_handles": ["b", "a"], "temperature": 0.5}
    llm = GMSALLM(gmsa=wide, **settings)
    data = llm.to_dict()
    assert "gmsa" not in data
    assert data["allowed_handles"] == ["a", "b"]
    for again in (GMSALLM.from_dict(data), pickle.loads(pickle.dumps(llm)), GMSALLM.from_json(llm.to_json())):
        assert again.gmsa is None
        assert again.fingerprint == wide.fingerprint
        assert {name: getattr(again, name) for name in settings} == settings | {"allowed_handles": frozenset("ab")}
        with pytest.raises(FingerprintError):
            again.chat([ChatMessage(content="a")])
    assert llm.gmsa is copy.deepcopy(llm).gmsa is wide
    with MemoryStore(":memory:") as store, pytest.raises(ValueError, match="path"):
        pickle.dumps(GMSALLM(store=store))


@pytest.mark.parametrize("ask", ["achat", "acomplete", "astream_chat", "astream_complete"])
async def test_the_event_loop_keeps_ticking(llm, chat, ask, monkeypatch):
    """Generation waits for the loop: it can only end if the loop goes on meanwhile."""
    ticked, asked = threading.Event(), threading.Event()
    name = "stream" if ask.startswith("astream") else "generate"
    generate = getattr(GMSA, name)

    def wait(self, prompt, **settings):
        asked.set()
        assert ticked.wait(30)
        return generate(self, prompt, **settings)

    monkeypatch.setattr(GMSA, name, wait)

    async def tick():
        while not asked.is_set():
            await asyncio.sleep(0)
        ticked.set()

    async def answer():
        found = await getattr(llm, ask)(chat if ask.endswith("chat") else "Where?")
        return [response async for response in found][-1] if ask.startswith("astream") else found

    found = (await asyncio.gather(answer(), tick()))[0]
    assert found.raw["usage"]["completion_tokens"] > 0


async def test_concurrent_answers_are_those_of_single_calls_in_fewer_steps(llm, wide, monkeypatch):
    steps = []
    forward = type(wide.decoder).forward
    monkeypatch.setattr(
        type(wide.decoder), "forward", lambda self, *args, **kw: steps.append(1) or forward(self, *args, **kw)
    )
    questions = [f"What is {number}?" for number in range(12)]
    alone = [llm.complete(question).text for question in questions]
    apart, steps[:] = len(steps), []
    together = [response.text for response in await asyncio.gather(*map(llm.acomplete, questions))]
    assert together == alone
    assert len(steps) < apart


@pytest.mark.parametrize("ask", ["astream_chat", "astream_complete"])
async def test_a_reader_that_goes_away_ends_the_generation(llm, wide, chat, ask, monkeypatch):
    steps, kept, ended = [], [], threading.Event()
    forward, stream = type(wide.decoder).forward, GMSA.stream

    def watched(pieces):
        try:
            yield from pieces
        finally:
            ended.set()

    monkeypatch.setattr(GMSA, "stream", lambda *args, **settings: TextStream(watched(stream(*args, **settings))))
    # Kept, so that no garbage collection closes it.
    monkeypatch.setattr(base, "in_thread", lambda responses: kept.append(responses) or in_thread(responses))
    monkeypatch.setattr(
        type(wide.decoder), "forward", lambda self, *args, **kw: steps.append(1) or forward(self, *args, **kw)
    )
    responses = await getattr(llm, ask)(chat if ask.endswith("chat") else "Where?", max_tokens=64)
    await anext(aiter(responses))
    taken = len(steps)
    assert 0 < taken < 64
    assert not ended.is_set()
    await responses.aclose()
    async with asyncio.timeout(30):  # LlamaIndex's wrapper leaves the closing to the loop
        while not ended.is_set():
            await asyncio.sleep(0)
    assert len(steps) == taken
