"""Calls of ChatGMSA at the same time share the decoder's steps, and harm neither each other nor the event loop."""

import asyncio
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from pydantic import ValidationError

from gmsa_rag.errors import GenerationTimeoutError, InputTypeError, PromptTooLongError, UnknownMemoryError
from gmsa_rag.inference import microbatching
from gmsa_rag.memory import MemoryStore
from langchain_gmsa import ChatGMSA
from langchain_gmsa.fusing import FusedBatch

NOBODYS = f"[[gmsa:{'0' * 32}:3]]"


@pytest.fixture
def handle(gmsa, store):
    return store.handle(gmsa.compress("The Danube begins in Germany.", rate=4, store=store))


@pytest.fixture
def prompts(handle):
    return [f"{handle if n % 2 else ''}Where is {n}?" for n in range(64)]


@pytest.fixture
def steps(gmsa):
    """One entry for each forward call of the decoder."""
    counted = []
    hook = gmsa.decoder.model.layers[0].register_forward_hook(lambda *args: counted.append(1))
    yield counted
    hook.remove()


@pytest.fixture
def held(gmsa, monkeypatch):
    """Generations wait for `held.go`; `held.begun` says that one has begun."""

    class Held:
        go, begun = threading.Event(), threading.Event()

        @classmethod
        def stop(cls):
            cls.go.clear()
            cls.begun.clear()

    def holding(method):
        def hold(*args, **settings):
            Held.begun.set()
            assert Held.go.wait(60)
            return method(*args, **settings)

        return hold

    for name in ("generate", "stream"):
        monkeypatch.setattr(gmsa, name, holding(getattr(gmsa, name)))
    yield Held
    Held.go.set()


async def waiting(gmsa, count):
    while gmsa not in microbatching._queues or len(microbatching._queues[gmsa]._waiting) < count:
        await asyncio.sleep(0)


async def begun(held):
    while not held.begun.is_set():
        await asyncio.sleep(0)


async def test_64_concurrent_calls_give_the_answers_of_single_calls_in_fewer_steps(chat, prompts, steps, held):
    held.go.set()
    single = [chat.invoke(prompt) for prompt in prompts]
    one_by_one = len(steps)
    steps.clear()
    held.stop()
    asked = [asyncio.ensure_future(chat.ainvoke(prompts[0]))]
    await begun(held)
    asked += [asyncio.ensure_future(chat.ainvoke(prompt)) for prompt in prompts[1:]]
    await waiting(chat.gmsa, 63)
    held.go.set()
    together = await asyncio.gather(*asked)
    assert [message.text for message in together] == [message.text for message in single]
    assert [message.usage_metadata for message in together] == [message.usage_metadata for message in single]
    assert len({message.text for message in together}) > 8
    assert len(steps) <= 2 * 8 < one_by_one  # of the first call, and of the 63 that came in meanwhile


async def test_threads_share_steps_too(chat, prompts, steps, held):
    held.go.set()
    single = [chat.invoke(prompt).text for prompt in prompts[:16]]
    steps.clear()
    held.stop()
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(chat.invoke, prompts[0])]
        await begun(held)
        asked += [pool.submit(chat.invoke, prompt) for prompt in prompts[1:16]]
        await waiting(chat.gmsa, 15)
        held.go.set()
        assert [future.result().text for future in asked] == single
    assert len(steps) <= 2 * 8


async def test_the_event_loop_goes_on_while_answers_are_generated(chat, held):
    asked = [asyncio.ensure_future(chat.ainvoke("Where?")) for _ in range(4)]
    await begun(held)
    for _ in range(100):  # the generation is held until the loop has come round this often
        await asyncio.sleep(0)
    assert not any(task.done() for task in asked)
    held.go.set()
    assert len({message.text for message in await asyncio.gather(*asked)}) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_the_event_loop_goes_on_while_a_store_is_opened(gmsa, tmp_path, stream):
    path = tmp_path / "memories.db"
    MemoryStore(path).close()
    chat = ChatGMSA(gmsa=gmsa, store=path, namespace=f"new-{stream}", max_tokens=2)

    async def ask():
        return [chunk async for chunk in chat.astream("Where?")] if stream else [await chat.ainvoke("Where?")]

    other = sqlite3.connect(path)
    other.execute("BEGIN IMMEDIATE")  # busy until the loop has come round this often
    asked = asyncio.ensure_future(ask())
    for _ in range(100):
        await asyncio.sleep(0.001)
    assert not asked.done()
    other.rollback()
    other.close()
    assert await asked


async def test_a_cancelled_call_that_has_not_begun_is_never_generated(chat, gmsa, held, monkeypatch, count_calls):
    batches = count_calls(microbatching, "_generate")
    first = asyncio.ensure_future(chat.ainvoke("first"))
    await begun(held)
    kept, cancelled = (asyncio.ensure_future(chat.ainvoke(text)) for text in ("kept", "cancelled"))
    await waiting(gmsa, 2)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    held.go.set()
    await asyncio.gather(first, kept)
    assert [len(batch) for [batch] in batches] == [1, 1]
    assert (await kept).text == chat.invoke("kept").text


async def test_a_call_that_fails_fails_alone(chat, handle):
    prompts = [f"{handle}Where?", f"{NOBODYS}Where?", "Where? " * 200, "Who?"]
    results = await asyncio.gather(*(chat.ainvoke(prompt) for prompt in prompts), return_exceptions=True)
    assert [type(result) for result in results[1:3]] == [UnknownMemoryError, PromptTooLongError]
    assert [results[0].text, results[3].text] == [chat.invoke(prompts[0]).text, chat.invoke(prompts[3]).text]


async def test_a_cancelled_batch_is_given_up(chat, gmsa, held):
    batch = asyncio.ensure_future(chat.abatch(["a", "b", "c"]))
    await begun(held)
    batch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await batch
    held.go.set()
    assert chat.invoke("d").text


async def test_a_cancelled_batch_that_runs_ends_at_the_next_step(chat, gmsa, steps):
    def hold(*args):
        if len(steps) == 2:
            begin.set()
            assert go.wait(60)

    begin, go = threading.Event(), threading.Event()
    hook = gmsa.decoder.model.layers[0].register_forward_hook(hold)
    batch = asyncio.ensure_future(chat.abatch(["a", "b", "c"]))
    while not begin.is_set():
        await asyncio.sleep(0)
    batch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await batch
    go.set()
    chat.invoke("d")
    hook.remove()
    both = len(steps)
    chat.invoke("d")
    assert both == 2 + (len(steps) - both)


def test_giving_up_a_batch_does_not_wait_for_its_prompts_to_be_read(gmsa):
    reading, go, asked = threading.Event(), threading.Event(), []

    def ask(prompts):
        reading.set()
        assert go.wait(60)
        asked.extend(microbatching.Request(gmsa, [], None, None) for _ in prompts)
        return [(None, request) for request in asked]

    batch = FusedBatch(None, [["a"], ["b"]], None)
    with ThreadPoolExecutor(2) as pool:
        taken = pool.submit(batch.take, ["a"], ask)
        assert reading.wait(60)
        leaving = pool.submit(batch.leave)
        try:
            leaving.result(30)
        finally:
            go.set()
        assert taken.result(60) == (None, asked[0])
    assert [request.left for request in asked] == [True, True]
    assert batch.take(["b"], ask) is None


def test_a_batch_that_was_given_up_asks_for_nothing():
    batch = FusedBatch(None, [["a"]], None)
    batch.leave()
    assert batch.take(["a"], lambda prompts: pytest.fail("asked")) is None


def test_event_loops_of_several_threads_share_an_engine(chat, prompts):
    async def ask(some):
        return await asyncio.gather(*(chat.ainvoke(prompt) for prompt in some))

    with ThreadPoolExecutor(2) as pool:
        halves = list(pool.map(lambda some: asyncio.run(ask(some)), (prompts[:8], prompts[8:16])))
    assert [message.text for half in halves for message in half] == [
        message.text for message in chat.batch(prompts[:16])
    ]


async def test_an_answer_that_takes_too_long_is_a_typed_error(chat, held):
    late = chat.model_copy(update={"timeout": 1e-9})
    with pytest.raises(GenerationTimeoutError):
        late.invoke("Where?")
    with pytest.raises(GenerationTimeoutError):
        await late.ainvoke("Where?")
    with pytest.raises(TimeoutError):
        await chat.ainvoke("Where?", timeout=1e-9)
    results = late.batch(["Where?", "Who?"], return_exceptions=True)
    assert [type(result) for result in results] == [GenerationTimeoutError] * 2
    held.go.set()
    assert late.bind(timeout=3600).invoke("Where?").text == chat.invoke("Where?").text


async def test_a_seed_makes_what_is_drawn_repeatable(chat):
    drawing = chat.bind(temperature=2.0, seed=7)
    drawn = drawing.invoke("Where?").text
    assert drawn == drawing.invoke("Where?").text
    together = await asyncio.gather(
        drawing.ainvoke("Where?"), chat.ainvoke("Where?", temperature=2.0), drawing.ainvoke("Who?")
    )
    assert together[0].text == drawn
    assert [message.text for message in drawing.batch(["Who?", "Where?"])] == [together[2].text, drawn]
    assert "".join(chunk.text for chunk in drawing.stream("Where?")) == drawn
    assert chat.model_copy(update={"temperature": 2.0, "seed": 7}).invoke("Where?").text == drawn
    assert len({chat.invoke("Where?", temperature=2.0, seed=seed).text for seed in range(8)}) > 1


def test_a_stream_that_takes_too_long_ends(chat):
    with pytest.raises(GenerationTimeoutError):
        list(chat.stream("Where?", timeout=1e-9))
    assert [chunk.text for chunk in chat.stream("Where?", timeout=3600)]


async def test_an_asynchronous_stream_that_takes_too_long_ends(chat):
    with pytest.raises(GenerationTimeoutError):
        [chunk async for chunk in chat.astream("Where?", timeout=1e-9)]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("max_tokens", "16"),
        ("max_tokens", 2.5),
        ("min_tokens", "a"),
        ("temperature", "hot"),
        ("seed", "x"),
        ("timeout", "1"),
        ("stop", [5]),
    ],
)
async def test_a_setting_of_a_wrong_type_is_refused_before_anything_is_queued(chat, setting, value, count_calls):
    queued = count_calls(microbatching._Queue, "put")
    named = setting.replace("_tokens", "_new_tokens")
    for ask in (
        chat.invoke,
        lambda prompt, **call: list(chat.stream(prompt, **call)),
        lambda prompt, **call: chat.batch([prompt, prompt], **call),
    ):
        with pytest.raises(InputTypeError, match=named):
            ask("Where?", **{setting: value})
    with pytest.raises(InputTypeError, match=named):
        await chat.ainvoke("Where?", **{setting: value})
    assert not queued


@pytest.mark.parametrize(
    "settings",
    [
        {"timeout": 0},
        {"timeout": float("inf")},
        {"timeout": float("nan")},
        {"batch_window": -1},
        {"batch_window": 61},
        {"batch_window": float("inf")},
        {"batch_window": float("nan")},
        {"max_batch_size": 0},
    ],
    ids=str,
)
def test_a_setting_out_of_range_is_refused(settings):
    with pytest.raises(ValidationError):
        ChatGMSA(**settings)
