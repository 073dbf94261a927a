"""Prompts that wait at the same time share a batch; who leaves or fails harms nobody."""

import asyncio
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from gmsa_rag.errors import ConfigError, GenerationTimeoutError, GMSAError, InputError, InputTypeError
from gmsa_rag.inference import microbatching
from gmsa_rag.inference.generation import Generated, TextStream
from gmsa_rag.inference.microbatching import LONGEST_TIMEOUT, Batching, stream, submit
from gmsa_rag.inference.stopping import is_stopped

NO_WINDOW = Batching(window=0)
# Longer than any answer here may take: who waits for the window is late.
LONG_WINDOW, IN_TIME = 60, 30
AT_ONCE = 1e-9


class Engine:
    """Answers in capitals, and remembers its batches; while `go` is clear it waits before each."""

    def __init__(self):
        self.batches, self.sampling = [], []
        self.go, self.started = threading.Event(), threading.Event()
        self.closed = 0
        self.go.set()

    def generate(self, prompts, *, details, **sampling):
        assert details
        self._begin([prompt[0] for prompt in prompts], sampling)
        return [Generated(prompt[0].upper(), "stop") for prompt in prompts]

    def stream(self, prompt, **sampling):
        return TextStream(self._letters(prompt, sampling))

    def _letters(self, prompt, sampling):
        try:
            self._begin([prompt[0]], sampling)
            yield from prompt[0].upper()
            return "length"
        finally:
            self.closed += 1

    def _begin(self, batch, sampling):
        self.started.set()
        assert self.go.wait(60)
        self.batches.append(batch)
        self.sampling.append(sampling)
        if "bad" in batch:
            raise InputError("prompt", expected="a good one", got="bad", remedy="Mend it.")


@pytest.fixture
def engine():
    engine = Engine()
    yield engine
    engine.go.set()


def ask(engine, *texts, **settings):
    return submit(engine, [[text] for text in texts], **settings)


@pytest.fixture
def busy(engine):
    """The engine works on "first" until `go` is set."""
    engine.go.clear()
    [request] = ask(engine, "first")
    assert engine.started.wait(60)
    return request


def test_a_lone_prompt_starts_at_once_whatever_the_window(engine):
    [request] = ask(engine, "one", batching=Batching(window=LONG_WINDOW), timeout=IN_TIME)
    assert request.result().text == "ONE"
    assert engine.batches == [["one"]]


def test_what_comes_in_while_a_batch_runs_is_the_next_batch(engine, busy):
    requests = [ask(engine, text)[0] for text in "abcd"]
    engine.go.set()
    assert [request.result().text for request in requests] == ["A", "B", "C", "D"]
    assert busy.result().text == "FIRST"
    assert engine.batches == [["first"], ["a", "b", "c", "d"]]


def test_prompts_of_one_call_are_one_batch(engine):
    assert [request.result().text for request in ask(engine, "a", "b", "c")] == ["A", "B", "C"]
    assert engine.batches == [["a", "b", "c"]]
    assert ask(engine) == []


def test_a_batch_has_at_most_its_size(engine):
    requests = ask(engine, *"abcde", batching=Batching(window=0, max_size=2))
    assert [request.result().text for request in requests] == ["A", "B", "C", "D", "E"]
    assert engine.batches == [["a", "b"], ["c", "d"], ["e"]]


def test_a_full_batch_does_not_wait_for_the_window(engine, busy):
    window = Batching(window=LONG_WINDOW, max_size=2)
    requests = [ask(engine, text, batching=window, timeout=IN_TIME)[0] for text in "abcd"]
    engine.go.set()
    assert [request.result().text for request in requests] == ["A", "B", "C", "D"]


def test_waiting_prompts_wait_for_company_after_a_batch(engine, busy):
    window = Batching(window=LONG_WINDOW, max_size=2)
    [request] = ask(engine, "a", batching=window)
    engine.go.set()
    busy.result()
    [company] = ask(engine, "b", batching=window)
    assert [request.result().text, company.result().text] == ["A", "B"]
    assert engine.batches == [["first"], ["a", "b"]]


def test_only_equal_settings_share_a_batch(engine, busy):
    settings = [{}, {"temperature": 0.5}, {"stop": ["x"]}, {"max_new_tokens": 7}, {}, {"top_p": 0.5}, {"stop": ("x",)}]
    requests = [
        ask(engine, text, batching=NO_WINDOW, **setting)[0] for text, setting in zip("abcdefg", settings, strict=True)
    ]
    engine.go.set()
    assert [request.result().text for request in requests] == list("ABCDEFG")
    assert engine.batches[1:] == [["a", "e"], ["b"], ["c", "g"], ["d"], ["f"]]
    plain = {
        "max_new_tokens": 128, "temperature": 0.0, "top_p": 1.0, "stop": (), "seed": None, "min_new_tokens": 0,
    }  # fmt: skip
    assert engine.sampling[1:4] == [plain, {**plain, "temperature": 0.5}, {**plain, "stop": ("x",)}]


def test_a_prompt_with_a_seed_is_alone(engine, busy):
    requests = ask(engine, "a", "b", seed=1, batching=NO_WINDOW) + ask(engine, "c", "d", batching=NO_WINDOW)
    engine.go.set()
    assert [request.result().text for request in requests] == list("ABCD")
    assert engine.batches == [["first"], ["a"], ["b"], ["c", "d"]]
    assert [sampling["seed"] for sampling in engine.sampling] == [None, 1, 1, None]


def test_an_error_stays_with_its_prompt(engine):
    requests = ask(engine, "a", "b", "bad", "c", "d")
    assert [request.result().text for request in requests if request.prompt != ["bad"]] == ["A", "B", "C", "D"]
    with pytest.raises(InputError):
        requests[2].result()
    assert engine.batches == [["a", "b", "bad", "c", "d"], ["a", "b"], ["bad", "c", "d"], ["bad"], ["c", "d"]]
    assert ask(engine, "e")[0].result().text == "E"


def test_too_few_texts_are_an_error_and_not_a_hang(engine):
    engine.generate = lambda prompts, **sampling: []
    for request in ask(engine, "a", "b", timeout=IN_TIME):
        with pytest.raises(ValueError, match="shorter"):
            request.result()


def test_who_left_before_the_start_is_dropped(engine, busy):
    kept, left = ask(engine, "kept", "left")
    left.leave()
    engine.go.set()
    assert kept.result().text == "KEPT"
    assert engine.batches == [["first"], ["kept"]]


def test_a_timeout_is_a_typed_error_and_the_prompt_is_dropped(engine, busy):
    late, patient = ask(engine, "late", timeout=AT_ONCE)[0], ask(engine, "patient", timeout=3600)[0]
    with pytest.raises(GenerationTimeoutError, match="1e-09 seconds") as error:
        late.result()
    assert isinstance(error.value, TimeoutError)
    assert isinstance(error.value, GMSAError)
    engine.go.set()
    assert patient.result().text == "PATIENT"
    assert engine.batches == [["first"], ["patient"]]


def test_what_is_late_before_it_starts_is_dropped_and_makes_no_company(engine, busy):
    window = Batching(window=LONG_WINDOW, max_size=2)
    [late] = ask(engine, "a", timeout=AT_ONCE, batching=window)
    kept = ask(engine, "b", "c", timeout=IN_TIME, batching=window)
    engine.go.set()
    assert [request.result().text for request in kept] == ["B", "C"]
    assert engine.batches == [["first"], ["b", "c"]]
    with pytest.raises(GenerationTimeoutError):
        late.result()


async def test_a_timeout_of_a_task_is_the_same_error(engine, busy):
    with pytest.raises(GenerationTimeoutError):
        await ask(engine, "late", timeout=AT_ONCE)[0].aresult()
    engine.go.set()
    assert (await busy.aresult()).text == "FIRST"
    assert engine.batches == [["first"]]


def test_an_engines_own_timeout_error_comes_through(engine):
    def fail(prompt, **sampling):
        raise TimeoutError("of the engine")

    engine.generate = fail
    with pytest.raises(TimeoutError, match="of the engine"):
        ask(engine, "a", timeout=3600)[0].result()


async def test_an_engines_own_timeout_error_comes_through_to_a_task(engine):
    def fail(prompt, **sampling):
        raise TimeoutError("of the engine")

    engine.generate = fail
    with pytest.raises(TimeoutError, match="of the engine"):
        await ask(engine, "a", timeout=3600)[0].aresult()


def test_leaving_a_lone_generation_ends_it(engine):
    reached, read = threading.Event(), []

    generate = engine.generate

    def endless(prompts, **sampling):
        if prompts != [["endless"]]:
            return generate(prompts, **sampling)
        while not is_stopped():
            read.append("x")
            reached.set()
        return [Generated("".join(read), "length")]

    engine.generate = endless
    [request] = ask(engine, "endless")
    assert reached.wait(60)
    request.leave()
    assert ask(engine, "a", "b", batching=NO_WINDOW)[1].result().text == "B"  # the queue goes on, so it has ended


def test_a_batch_ends_when_all_of_it_has_left(engine):
    begun, turn, noted, seen = threading.Event(), threading.Semaphore(0), threading.Semaphore(0), []

    def endless(prompts, **sampling):
        begun.set()
        while True not in seen:
            assert turn.acquire(timeout=60)
            seen.append(is_stopped())
            noted.release()
        return [Generated("", "length")] * len(prompts)

    generate, engine.generate = engine.generate, endless
    requests = ask(engine, "a", "b")
    assert begun.wait(60)
    for request, expected in zip(requests, ([False], [False, True]), strict=True):
        request.leave()
        turn.release()
        assert noted.acquire(timeout=60)
        assert seen == expected
    engine.generate = generate
    assert ask(engine, "c", timeout=IN_TIME)[0].result().text == "C"


def test_a_single_stop_string_is_not_its_letters(engine):
    assert ask(engine, "a", stop="END")[0].result().text == "A"
    assert [sampling["stop"] for sampling in engine.sampling] == [("END",)]


def test_an_error_of_the_thread_reaches_who_waits_and_the_next_prompt_starts_another(engine, busy, monkeypatch):
    broken, raised = [OverflowError("timeout value is too large")], []

    def fail(queue):
        raise broken.pop()

    monkeypatch.setattr(microbatching._Queue, "_full", fail)
    monkeypatch.setattr(threading, "excepthook", lambda args: raised.append(args.exc_type))
    requests = ask(engine, "a", timeout=IN_TIME) + ask(engine, "b", temperature=0.5, timeout=IN_TIME)
    left = ask(engine, "left")[0]
    left.leave()
    engine.go.set()
    for request in requests:
        with pytest.raises(OverflowError):
            request.result()
    assert busy.result().text == "FIRST"
    join_threads()
    assert raised == [OverflowError]
    assert ask(engine, "c", timeout=IN_TIME)[0].result().text == "C"
    join_threads()


def test_a_thread_that_cannot_start_leaves_nothing_waiting(engine, monkeypatch):
    def fail(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="new thread"):
            ask(engine, "a")
    assert ask(engine, "b", timeout=IN_TIME)[0].result().text == "B"
    assert engine.batches == [["b"]]


def test_a_stream_ends_when_it_is_closed_or_out_of_time(engine):
    whole = stream(engine, ["whole"], timeout=3600)
    assert (whole.finish_reason, "".join(whole), whole.finish_reason) == (None, "WHOLE", "length")
    assert list(whole) == [] and whole.finish_reason == "length"
    pieces = stream(engine, ["closed"])
    assert next(pieces) == "C"
    pieces.close()
    assert list(pieces) == [] and pieces.finish_reason is None
    assert engine.closed == 2
    with pytest.raises(GenerationTimeoutError):
        next(stream(engine, ["late"], timeout=AT_ONCE))
    assert engine.closed == 3


async def test_a_cancelled_task_leaves_and_the_others_stay(engine, busy):
    tasks = [asyncio.ensure_future(request.aresult()) for request in ask(engine, "a", "b", "c")]
    await asyncio.sleep(0)
    tasks[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[1]
    engine.go.set()
    assert [(await tasks[at]).text for at in (0, 2)] == ["A", "C"]
    assert engine.batches == [["first"], ["a", "c"]]


def test_threads_and_event_loops_share_batches(engine, busy):
    def in_a_loop(texts):
        async def run():
            return [one.text for one in await asyncio.gather(*(ask(engine, text)[0].aresult() for text in texts))]

        return asyncio.run(run())

    waiting = threading.Barrier(4)
    inside = []

    def wait_for_all(answer):
        waiting.wait(60)
        inside.append(answer)
        return answer()

    with ThreadPoolExecutor(3) as pool:
        looped = [pool.submit(wait_for_all, lambda texts=texts: in_a_loop(texts)) for texts in ("ab", "cd")]
        blocked = pool.submit(wait_for_all, lambda: ask(engine, "e")[0].result())
        waiting.wait(60)
        engine.go.set()
        assert [future.result() for future in looped] == [["A", "B"], ["C", "D"]]
        assert blocked.result().text == "E"
    assert sorted(text for batch in engine.batches for text in batch) == ["a", "b", "c", "d", "e", "first"]


def test_engines_do_not_wait_for_each_other(engine, busy):
    assert ask(Engine(), "other")[0].result().text == "OTHER"
    engine.go.set()


def join_threads():
    for thread in threading.enumerate():
        if thread.name == "gmsa-microbatching":
            thread.join(60)


def test_nothing_stays_behind(engine):
    ask(engine, "a")[0].result()
    join_threads()
    assert "gmsa-microbatching" not in [thread.name for thread in threading.enumerate()]
    other = Engine()
    [request] = ask(other, "a")
    request.result()
    gone = weakref.ref(other)
    join_threads()
    del other, request
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    "settings",
    [*({"window": wrong} for wrong in (-1, 60.5, float("inf"), float("nan"))), {"max_size": 0}, {"max_size": -1}],
    ids=str,
)
def test_a_setting_out_of_range_is_a_typed_error(settings):
    with pytest.raises(ConfigError):
        Batching(**settings)


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), 2 * LONGEST_TIMEOUT])
def test_a_timeout_out_of_range_is_a_typed_error_and_nothing_starts(engine, timeout):
    with pytest.raises(ConfigError, match="timeout"):
        ask(engine, "a", timeout=timeout)
    with pytest.raises(ConfigError, match="timeout"):
        next(stream(engine, ["a"], timeout=timeout))
    assert ask(engine, "b", timeout=LONGEST_TIMEOUT)[0].result().text == "B"
    assert engine.batches == [["b"]]


@pytest.mark.parametrize(
    "setting", [{"timeout": "1"}, {"stop": 5}, {"temperature": "hot"}, {"max_new_tokens": None}, {"seed": 1.5}], ids=str
)
def test_a_setting_of_a_wrong_type_is_a_typed_error_and_nothing_starts(engine, setting):
    with pytest.raises(InputTypeError, match=next(iter(setting))):
        ask(engine, "a", **setting)
    assert ask(engine, "b", stop=None, temperature=None)[0].result().text == "B"
    assert engine.batches == [["b"]] and engine.sampling[0]["stop"] == ()
