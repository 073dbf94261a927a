"""Functions of fixed tensors, recorded once as CUDA graphs: a replay costs one launch instead of thousands."""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

WARMUP = 2
# CUDA records one graph at a time in a process, and nothing may wait for the device meanwhile.
_recording = threading.Lock()


class Recorded:
    """A function whose inputs stay where they are, recorded at once and replayed by each call.

    Replays of one pool must not overlap: hold a lock around a call, and around the making of another.

    Args:
        function: Reads and writes tensors of its own; must not wait for the device. It is called before it is
            recorded, and has to bear that.
        pool: Memory that graphs share, from torch.cuda.graph_pool_handle(); it must not be used again once all graphs
            in it are gone.
        device: A CUDA device.
    """

    def __init__(self, function: Callable[[], Tensor], pool: Any, device: torch.device) -> None:
        with _recording, torch.cuda.device(device):
            side = torch.cuda.Stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):  # libraries choose kernels and workspaces on their first calls
                for _ in range(WARMUP):
                    function()
            torch.cuda.current_stream(device).wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            # Other threads may go on using the device meanwhile.
            with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
                self._output = function()

    def __call__(self) -> Tensor:
        """Replay it; the output is a copy, since the next replay of the pool writes over it."""
        self._graph.replay()
        return self._output.clone()
