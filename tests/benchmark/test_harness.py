import pytest
import torch

from gmsa_rag.benchmark import harness
from gmsa_rag.benchmark.harness import Alternative, EventClock, WallClock, measure, quartiles
from gmsa_rag.errors import InputError


class FakeClock:
    """Advances by what the runs ask for."""

    def __init__(self):
        self.now = self.begun = 0.0

    def start(self):
        self.begun = self.now

    def stop(self):
        return self.now - self.begun


def taking(clock, log, name, seconds):
    """An alternative that takes these seconds, one after the other, and writes down when it ran."""
    left = iter(seconds)

    def run():
        log.append(name)
        clock.now += next(left)

    return run


def test_rounds_alternate_and_begin_with_another_one_each_time():
    clock, log = FakeClock(), []
    alternatives = [Alternative(name, taking(clock, log, name, [1.0] * 9)) for name in "abc"]
    measure(alternatives, baseline="a", repeats=4, warmup=1, memory=False, clock=clock)
    assert "".join(log) == "abc" + "abc" + "bca" + "cab" + "abc"


def test_warm_up_does_not_count_and_ratios_are_taken_within_a_round():
    clock, log = FakeClock(), []
    slow = Alternative("slow", taking(clock, log, "slow", [99.0, 8.0, 4.0, 6.0]))
    fast = Alternative("fast", taking(clock, log, "fast", [99.0, 2.0, 2.0, 1.0]))
    rows = measure([slow, fast], baseline="slow", repeats=3, warmup=1, memory=False, clock=clock)
    assert [row.name for row in rows] == ["slow", "fast"]
    assert rows[0].runs == (8.0, 4.0, 6.0) and rows[1].runs == (2.0, 2.0, 1.0)
    assert (rows[0].seconds, rows[1].seconds) == (6.0, 2.0)
    assert rows[1].seconds_quartiles == (1.5, 2.0)
    assert rows[1].speedup == 4.0  # of 4, 2 and 6; the ratio of the medians would be 3
    assert rows[1].speedup_quartiles == (3.0, 5.0)
    assert rows[0].speedup == 1.0 and rows[0].peak_bytes is None


def test_what_is_prepared_is_not_timed_and_several_calls_are_one_time():
    clock, log = FakeClock(), []
    run = Alternative(
        "a", taking(clock, log, "a", [1.0, 2.0, 3.0, 4.0]), prepare=taking(clock, log, "p", [50.0, 50.0]), calls=2
    )
    (row,) = measure([run], baseline="a", repeats=2, warmup=0, memory=False, clock=clock)
    assert log == ["p", "a", "a", "p", "a", "a"]
    assert row.runs == (1.5, 3.5)


def test_memory_is_measured_in_the_last_round_before_the_timed_ones(monkeypatch):
    clock, log, asked = FakeClock(), [], []

    def peak(run, device):
        asked.append(device)
        run()
        return 7

    monkeypatch.setattr(harness, "peak_memory", peak)
    for warmup, runs in ((0, 2), (1, 2), (2, 3)):
        log.clear()
        run = Alternative("a", taking(clock, log, "a", [1.0] * 5))
        (row,) = measure([run], baseline="a", repeats=1, warmup=warmup, clock=clock)
        assert (len(log), row.peak_bytes) == (runs, 7)
    assert asked == ["cpu"] * 3


def test_the_device_is_waited_for_before_and_after(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    clock = WallClock("cuda:0")
    clock.start()
    assert waited == [torch.device("cuda:0")]
    assert clock.stop() >= 0 and len(waited) == 2
    WallClock("cpu").start()
    assert len(waited) == 2


def test_a_device_is_busy_with_other_work_while_what_is_timed_is_queued(monkeypatch):
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            log.append("event")

        def synchronize(self):
            log.append("wait")

        def elapsed_time(self, other):
            return 2.5

    monkeypatch.setattr(harness, "LEAD_SIZE", 2)
    monkeypatch.setattr(harness, "synchronise", lambda device: log.append("idle"))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch, "mm", lambda a, b, out: log.append("work"))
    clock = EventClock("cpu")
    clock.start()
    log.append("run")
    assert clock.stop() == 0.0025
    assert log == ["idle", *["work"] * harness.LEAD_PRODUCTS, "event", "run", "event", "wait"]


def test_quartiles_of_one_value_are_that_value():
    assert quartiles([3.0]) == (3.0, 3.0)
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 4.0)


@pytest.mark.parametrize(
    ("names", "baseline", "repeats"), [("", "a", 1), ("aa", "a", 1), ("ab", "c", 1), ("ab", "a", 0)]
)
def test_nothing_to_compare_is_an_error(names, baseline, repeats):
    alternatives = [Alternative(name, lambda: None) for name in names]
    with pytest.raises(InputError, match="benchmark"):
        measure(alternatives, baseline=baseline, repeats=repeats)
