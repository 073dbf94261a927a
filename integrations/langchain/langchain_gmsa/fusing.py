"""One fused generation behind a batch of runs that LangChain drives one by one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from gmsa_rag.errors import GMSAError
from gmsa_rag.inference.microbatching import Request
from gmsa_rag.inference.reading import Prompt, Turn

Asked = tuple[Prompt, Request] | GMSAError
"""A prompt and its place in the engine's queue, or what is wrong with it."""


class FusedBatch:
    """The prompts of a batch. The first run that needs its answer has all of them queued; each takes its own.

    LangChain's own batch() stays in charge of threads, callbacks, caches and errors; this only joins the work.

    Args:
        owner: The chat model whose batch it is.
        prompts: The turns of each prompt.
        size: Most prompts to generate at once; None for the owner's own bound.
    """

    def __init__(self, owner: object, prompts: Sequence[list[Turn]], size: int | None) -> None:
        self.owner, self.size = owner, size
        self._prompts: list[list[Turn]] = list(prompts)
        self._asked: list[Asked] = []
        self._requests: list[Request] = []  # replaced as a whole, so that it can be read without the lock
        self._left = threading.Event()
        self._lock = threading.Lock()

    def take(self, turns: list[Turn], ask: Callable[[list[list[Turn]]], list[Asked]]) -> Asked | None:
        """The place of a prompt in the queue.

        Args:
            turns: The prompt.
            ask: Queues several prompts.
        Returns:
            Its place, or what is wrong with it; None if the prompt is not, or no longer, of this batch, or the batch
            was given up.
        """
        with self._lock:
            if self._left.is_set() or turns not in self._prompts:
                return None
            if not self._asked:
                self._asked = ask(self._prompts)
                self._requests = [asked[1] for asked in self._asked if not isinstance(asked, GMSAError)]
                if self._left.is_set():  # meanwhile: leave() has not seen these
                    self.leave()
            index = self._prompts.index(turns)
            del self._prompts[index]
            return self._asked.pop(index)

    def leave(self) -> None:
        """Give up what nobody waits for any more: all of a batch that was cancelled, or what was in a cache.

        Never waits: an event loop calls it while a thread may be in take().
        """
        self._left.set()
        for request in self._requests:
            request.leave()
