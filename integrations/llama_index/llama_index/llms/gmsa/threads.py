"""A generator that blocks, read from an event loop that must not be."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Generator
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")


async def in_thread(items: Generator[Item, None, None]) -> AsyncGenerator[Item, None]:
    """The items of a generator, each computed in a thread; the generator is closed when nobody reads on."""
    lock = threading.Lock()  # a reader that was cancelled leaves its thread behind, in the middle of an item

    def step() -> list[Item]:
        with lock:
            return list(islice(items, 1))

    def close() -> None:
        with lock:
            items.close()

    try:
        while found := await asyncio.to_thread(step):
            yield found[0]
    finally:
        await asyncio.to_thread(close)
