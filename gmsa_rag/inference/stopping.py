"""What ends a generation before its time: that nobody waits for it any more. Loads nothing heavy."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_stopped: ContextVar[Callable[[], bool] | None] = ContextVar("gmsa_stopped", default=None)


@contextmanager
def stopped_when(stopped: Callable[[], bool]) -> Iterator[None]:
    """Let what this thread generates inside the `with` end early.

    Args:
        stopped: Asked before each step of the decoder; once it is True the texts end with what there is of them.
    """
    token = _stopped.set(stopped)
    try:
        yield
    finally:
        _stopped.reset(token)


def is_stopped() -> bool:
    """Whether the generation that this thread is in has to end before its next step."""
    stopped = _stopped.get()
    return stopped is not None and stopped()
