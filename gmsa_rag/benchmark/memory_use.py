"""Peak memory of one call."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


def peak_memory(run: Callable[[], object], device: str | torch.device) -> int | None:
    """Most memory that a call held beyond what was held before it.

    On CUDA it is what torch's allocator counts, exact to its blocks of 512 bytes. On a CPU it is the process's
    resident memory as the kernel counts it, freed memory given back to the system before: exact to a page, but with
    all that the process does meanwhile.

    Args:
        run: The call.
        device: Where it does its work.

    Returns:
        Bytes, >= 0; None where nothing counts them, as on a CPU without Linux.
    """
    if torch.device(device).type == "cuda":
        return _peak_on_cuda(run, torch.device(device))
    if torch.device(device).type == "cpu" and _reset_peak():
        return _peak_resident(run)
    run()
    return None


def _peak_on_cuda(run: Callable[[], object], device: torch.device) -> int:
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_resident(run: Callable[[], object]) -> int:
    before = _resident("VmRSS")
    run()
    return max(_resident("VmHWM") - before, 0)


def _reset_peak() -> bool:
    """Give freed memory back and let the kernel count the peak anew; False where it cannot."""
    gc.collect()
    try:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        _RESET.write_text("5", encoding="ascii")  # proc(5): resets the peak of the resident set
    except OSError:
        return False
    return True


def _resident(name: str) -> int:
    """A line of the process's status, in bytes; the kernel writes kB."""
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1_024
    return 0
