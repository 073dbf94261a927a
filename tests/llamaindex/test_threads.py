"""An iterator read in a thread of its own is closed whatever becomes of its reader."""

import asyncio
import threading

import pytest

from llama_index.llms.gmsa.threads import in_thread


async def test_in_thread_closes_what_a_cancelled_reader_leaves():
    closed, started, go = threading.Event(), threading.Event(), threading.Event()

    def items():
        try:
            yield 1
            started.set()
            assert go.wait(30)
            yield 2
        finally:
            closed.set()

    async def read():
        return [item async for item in in_thread(items())]

    task = asyncio.create_task(read())
    while not started.is_set():
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closed.is_set()
