import sys

import pytest
import torch

from gmsa_rag.benchmark import memory_use
from gmsa_rag.benchmark.memory_use import peak_memory

MIB = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts the peak")
def test_memory_that_is_freed_again_counts_and_memory_held_before_does_not():
    held = torch.ones(16 * MIB // 4)

    def run():
        twice = torch.ones(32 * MIB // 4)
        del twice
        return held.sum()

    assert 30 * MIB < (peak_memory(run, "cpu") or 0) < 48 * MIB
    assert (peak_memory(held.sum, "cpu") or 0) < 8 * MIB


def test_where_nothing_counts_the_peak_is_unknown(monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(memory_use, "_RESET", tmp_path / "missing" / "clear_refs")
    assert peak_memory(lambda: ran.append(1), "cpu") is None
    assert peak_memory(lambda: ran.append(1), "meta") is None
    assert len(ran) == 2


def test_on_cuda_the_allocator_is_asked(monkeypatch):
    calls = []
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda device, name=name: calls.append(name))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 350)
    assert peak_memory(lambda: calls.append("run"), "cuda") == 250
    assert calls == ["synchronize", "reset_peak_memory_stats", "run", "synchronize"]
