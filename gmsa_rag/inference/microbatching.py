"""Micro-batching: prompts that wait at the same time, whoever asks, share the decoder's steps.

Each engine has one queue. A thread of the queue takes the prompt that has waited longest and those of the same
settings, has them generated as one batch, hands the texts out, and goes on until nothing waits; then it ends. A prompt
that finds nothing waiting or running starts at once. What comes in meanwhile makes up the next batch.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from gmsa_rag.checks import check_number
from gmsa_rag.errors import ConfigError, GenerationTimeoutError
from gmsa_rag.inference.generation import FinishReason, Generated, Sampling, TextStream
from gmsa_rag.inference.stopping import stopped_when

if TYPE_CHECKING:
    from gmsa_rag.inference.engine import GMSA
    from gmsa_rag.inference.prompt import Part

logger = logging.getLogger(__name__)
LONGEST_WINDOW = 60.0
LONGEST_TIMEOUT = threading.TIMEOUT_MAX  # more than that no lock can wait


@dataclass(frozen=True)
class Batching:
    """How prompts are joined.

    Attributes:
        window: Seconds that waiting prompts wait for company once the batch before them has ended, 0 to 60. A prompt
            that finds nothing waiting or running never waits.
        max_size: Most prompts in a batch, >= 1.
    Raises:
        ConfigError: If one of them is out of range.
    """

    window: float = 0.004
    max_size: int = 64

    def __post_init__(self) -> None:
        if not 0 <= self.window <= LONGEST_WINDOW or self.max_size < 1:
            raise ConfigError(
                "batching",
                expected=f"a window of 0 to {LONGEST_WINDOW:g} seconds and max_size >= 1",
                got=f"{self.window} and {self.max_size}",
                remedy="Change the setting.",
            )


@dataclass(frozen=True)
class Settings:
    """What prompts of one batch have in common."""

    sampling: Sampling
    batching: Batching

    @property
    def max_size(self) -> int:
        """Most prompts in a batch; with a seed one, so that what is drawn depends on nothing else."""
        return self.batching.max_size if self.sampling.seed is None else 1


class Request:
    """A prompt in the queue; made by submit(). Wait for its text in one place only: who stops waiting has left.

    Attributes:
        engine: What generates.
        prompt: Its parts.
        settings: What it shares with its batch.
        left: Whether nobody waits any more. It is dropped if it has not started; a batch that has ends at the next
            token once all of it has left, and else goes on for the others.
    """

    def __init__(self, engine: GMSA, prompt: Sequence[Part], settings: Settings, timeout: float | None) -> None:
        self.engine, self.prompt, self.settings = engine, prompt, settings
        self.left = False
        self.future: Future[Generated] = Future()
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout

    @property
    def wanted(self) -> bool:
        """Whether there is a point in starting: somebody may wait and there is time left."""
        return not self.left and self._remaining() != 0

    def result(self) -> Generated:
        """Block until the text is there.

        Returns:
            The text and why it ended, as GMSA.generate gives them.
        Raises:
            GenerationTimeoutError: If it is not there in time.
            GMSAError: What GMSA.generate raises for this prompt.
        """
        try:
            return self.future.result(self._remaining())
        except TimeoutError:
            if not self.future.done():
                raise _late(self._timeout) from None
            return self.future.result()  # it came at the last moment, or failed with a TimeoutError of its own
        finally:
            self.leave()

    async def aresult(self) -> Generated:
        """Wait for the text without blocking the event loop; a cancelled task leaves. See result()."""
        try:
            async with asyncio.timeout(self._remaining()) as limit:
                return await asyncio.wrap_future(self.future)
        except TimeoutError:
            if not limit.expired():
                raise
            raise _late(self._timeout) from None
        finally:
            self.leave()

    def leave(self) -> None:
        """Say that nobody waits any more."""
        self.left = True
        self.future.cancel()

    def fail(self, error: BaseException) -> None:
        """Raise an error where the text is waited for, unless it is there or nobody waits."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)

    def _remaining(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())


def submit(
    engine: GMSA,
    prompts: Sequence[Sequence[Part]],
    *,
    max_new_tokens: int = 128,
    temperature: float | None = 0.0,
    top_p: float = 1.0,
    stop: str | Sequence[str] | None = (),
    seed: int | None = None,
    min_new_tokens: int = 0,
    timeout: float | None = None,
    batching: Batching | None = None,
) -> list[Request]:
    """Put prompts into an engine's queue, from any thread or event loop.

    Prompts of one call are there at the same time: if nothing waits, they are one batch. A batch that fails is halved
    until the prompt it fails for is alone, so that no prompt harms another.

    Args:
        engine: The engine.
        prompts: Parts of each prompt.
        max_new_tokens: As for GMSA.generate.
        temperature: As for GMSA.generate.
        top_p: As for GMSA.generate.
        stop: As for GMSA.generate.
        seed: As for GMSA.generate; a prompt with a seed is generated by itself.
        min_new_tokens: As for GMSA.generate.
        timeout: Seconds until an answer has to be there, waiting included, > 0; None for no bound.
        batching: How prompts are joined; those of different settings are not. None for Batching().
    Returns:
        One request per prompt, in order.
    Raises:
        InputTypeError: If a setting is of a wrong type.
        ConfigError: If one is out of range: the timeout if it is not a finite number of seconds > 0, or more than a
            lock can wait.
    Example:
        `[request] = submit(gmsa, [["Where does the Danube begin?"]], max_new_tokens=16)`, then `request.result().text`,
        or `(await request.aresult()).text`.
    """
    _check_timeout(timeout)
    sampling = Sampling.of(max_new_tokens, temperature, top_p, stop, seed, min_new_tokens)
    settings = Settings(sampling, batching or Batching())
    requests = [Request(engine, prompt, settings, timeout) for prompt in prompts]
    with _queues_lock:
        queue = _queues.setdefault(engine, _Queue())
    queue.put(requests)
    return requests


def stream(
    engine: GMSA,
    prompt: Sequence[Part],
    *,
    timeout: float | None = None,
    **sampling: Any,
) -> TextStream:
    """GMSA.stream with a bound on its time; it is not batched.

    Args:
        engine: The engine.
        prompt: Its parts.
        timeout: Seconds until the answer has to be complete, > 0, looked at after each piece; None for no bound.
        **sampling: As for GMSA.stream.
    Returns:
        The pieces. Closing the stream ends the generation.
    Raises:
        GenerationTimeoutError: If the answer is not complete in time; the generation has ended then.
        ConfigError: If the timeout is out of range, as for submit().
    """
    _check_timeout(timeout)
    return TextStream(_timed(engine, prompt, timeout, sampling))


def _timed(
    engine: GMSA, prompt: Sequence[Part], timeout: float | None, sampling: dict[str, Any]
) -> Generator[str, None, FinishReason]:
    end = None if timeout is None else time.monotonic() + timeout
    with closing(engine.stream(prompt, **sampling)) as pieces:
        for piece in pieces:
            if end is not None and time.monotonic() > end:
                raise _late(timeout)
            yield piece
    return cast("FinishReason", pieces.finish_reason)  # there is one: it has ended


class _Queue:
    """The requests of an engine that wait, and the thread that works while there are any."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[Request] = []
        self._working = False

    def put(self, requests: Sequence[Request]) -> None:
        with self._changed:
            if not self._working:
                # Before anything waits, for this may fail; the thread can take nothing until the lock is free.
                # No daemon: the interpreter does not exit in the middle of a batch, and the thread ends by itself.
                threading.Thread(target=self._work, name="gmsa-microbatching").start()
                self._working = True
            self._waiting += requests
            self._changed.notify()

    def _work(self) -> None:
        batch: list[Request] = []
        try:
            batch = self._take(wait=False)
            while batch:
                _answer(batch)
                batch = self._take(wait=True)
        except BaseException as error:  # whatever it is, nobody may wait for a thread that has ended
            self._give_up(batch, error)
            raise

    def _give_up(self, batch: list[Request], error: BaseException) -> None:
        """Let whoever waits have the error; the next prompt starts another thread."""
        with self._changed:
            self._working, waiting, self._waiting = False, self._waiting, []
        for request in [*batch, *waiting]:
            request.fail(error)

    def _take(self, wait: bool) -> list[Request]:
        """The next batch, marked as running; empty, and the thread has to end, if nothing waits."""
        with self._changed:
            while self._waiting:
                if wait:
                    self._changed.wait_for(self._full, self._waiting[0].settings.batching.window)
                alike = self._alike()
                batch = [request for request in alike if request.future.set_running_or_notify_cancel()]
                taken = set(map(id, alike))
                self._waiting = [request for request in self._waiting if id(request) not in taken]
                if batch:
                    return batch
            self._working = False
            return []

    def _full(self) -> bool:
        """Whether there is nothing to wait for."""
        alike = self._alike()
        return not alike or len(alike) == alike[0].settings.max_size

    def _alike(self) -> list[Request]:
        """Those of the oldest request's settings, at most one batch; who has left or is late makes no company."""
        self._waiting = [request for request in self._waiting if request.wanted]
        settings = self._waiting[0].settings if self._waiting else None
        alike = [request for request in self._waiting if request.settings == settings]
        return alike[: settings.max_size] if settings else []


def _answer(batch: list[Request]) -> None:
    """Give each request its text or its error."""
    try:
        texts = dict(zip(batch, _generate(batch), strict=True))
    except BaseException as error:  # whatever it is, somebody waits for it
        if len(batch) == 1:
            batch[0].future.set_exception(error)
            return
        logger.warning("a batch of %d prompts failed, it is halved: %s", len(batch), error)
        middle = len(batch) // 2
        _answer(batch[:middle])
        _answer(batch[middle:])
    else:
        for request, text in texts.items():
            request.future.set_result(text)


def _generate(batch: list[Request]) -> list[Generated]:
    engine, sampling = batch[0].engine, batch[0].settings.sampling
    with stopped_when(lambda: all(request.left for request in batch)):
        prompts = [request.prompt for request in batch]
        return cast("list[Generated]", engine.generate(prompts, **vars(sampling), details=True))


def _check_timeout(timeout: float | None) -> None:
    if timeout is not None and not 0 < check_number(timeout, "timeout") <= LONGEST_TIMEOUT:
        raise ConfigError(
            "timeout",
            expected=f"more than 0 and at most {LONGEST_TIMEOUT:g} seconds, or None",
            got=str(timeout),
            remedy="Pass None for no bound.",
        )


def _late(timeout: float | None) -> GenerationTimeoutError:
    return GenerationTimeoutError(
        "answer",
        expected=f"one within {timeout:g} seconds",
        got="none yet",
        remedy="Allow more time, or fewer tokens.",
    )


_queues: WeakKeyDictionary[GMSA, _Queue] = WeakKeyDictionary()
_queues_lock = threading.Lock()


def _begin_anew() -> None:
    """A forked child has none of its parent's threads; what waits is the parent's."""
    global _queues, _queues_lock
    _queues, _queues_lock = WeakKeyDictionary(), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
