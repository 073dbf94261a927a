"""One fused generation behind a batch of runs that LangChain drives one by one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from langchain_core.outputs import ChatResult

from gmsa_rag.errors import GMSAError
from langchain_gmsa.messages import Turn

Outcome = ChatResult | GMSAError


class FusedBatch:
    """The prompts of a batch. The first run that needs its answer has all of them generated; the others take theirs.

    LangChain's own batch() stays in charge of threads, callbacks, caches and errors; this only joins the work.

    Args:
        owner: The chat model whose batch it is.
        prompts: The turns of each prompt.
        size: Most prompts to generate at once; None for all.
    """

    def __init__(self, owner: object, prompts: Sequence[list[Turn]], size: int | None) -> None:
        self.owner, self._prompts, self._size = owner, prompts, size
        self._waiting = list(range(len(prompts)))
        self._outcomes: dict[int, Outcome] = {}
        self._lock = threading.Lock()

    def take(self, turns: list[Turn], answer: Callable[[list[list[Turn]]], list[Outcome]]) -> Outcome | None:
        """The outcome for a prompt, waiting for it if it is under way.

        Args:
            turns: The prompt.
            answer: Generates for several prompts.
        Returns:
            Its outcome; None if the prompt is not, or no longer, of this batch.
        """
        with self._lock:
            index = next((index for index in self._waiting if self._prompts[index] == turns), None)
            if index is None:
                return None
            self._waiting.remove(index)
            if index not in self._outcomes:
                self._answer([index, *(other for other in self._waiting if other not in self._outcomes)], answer)
            return self._outcomes.pop(index)

    def _answer(self, indexes: list[int], answer: Callable[[list[list[Turn]]], list[Outcome]]) -> None:
        size, self._size = self._size, 1  # what fails as a whole goes on one by one
        indexes = indexes[:size]
        outcomes = answer([self._prompts[index] for index in indexes])
        self._outcomes.update(zip(indexes, outcomes, strict=True))
        self._size = size
