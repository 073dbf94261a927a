import dataclasses
import math

import pytest
import torch

from gmsa_rag.errors import CheckpointError, DataError
from gmsa_rag.training import loop
from gmsa_rag.training.examples import Segment
from gmsa_rag.training.logs import read_log
from gmsa_rag.training.loop import Run
from gmsa_rag.training.objective import Objective
from gmsa_rag.training.recipe import Optimisation, Phase

# Rows of 16 tokens, 8 to a pool: one batch of all of them, or two of half.
STEPS = Optimisation(
    steps=8, batch_tokens=128, pool=8, warmup=2, learning_rate=1e-2, save_every=100, bf16=False, clip=1e9
)
HALVES = dataclasses.replace(STEPS, batch_tokens=64)


@pytest.fixture
def make_run(make_base, tmp_path):
    def build(name, settings=STEPS, phases=loop.ONE_PHASE, trainable=None):
        decoder = make_base()
        learns = decoder.parameters() if trainable is None else trainable(decoder)
        return Run(tmp_path / name, settings, Objective(decoder), learns, window=48, phases=phases)

    return build


def make(phase, length=16):
    return lambda rng: [Segment([rng.randrange(6 + phase, 60) for _ in range(length)], learn=True)]


def logged(run, monkeypatch, make=make, every=1):
    monkeypatch.setattr(loop, "LOG_EVERY", every)
    run.train(make)
    return read_log(run.out / "log.jsonl")


def weights(run):
    return torch.cat([parameter.detach().flatten() for parameter in run.parameters])


def test_accumulated_halves_are_the_whole(make_run, monkeypatch):
    whole, halves, half = (
        make_run("whole"), make_run("halves", dataclasses.replace(HALVES, accumulate=2)), make_run("half", HALVES)
    )  # fmt: skip
    expected, found, other = (logged(run, monkeypatch) for run in (whole, halves, half))
    assert [row["tokens"] for row in found] == [row["tokens"] for row in expected] == [120 * n for n in range(1, 9)]
    for name in ("loss", "accuracy", "learning_rate"):
        assert [row[name] for row in found] == pytest.approx([row[name] for row in expected], rel=1e-4)
    torch.testing.assert_close(weights(halves), weights(whole), atol=1e-3, rtol=0)
    assert (weights(half) - weights(whole)).abs().max() > 2e-2
    assert other[-1]["tokens"] == 60 * 8


def test_the_learning_rate_rises_and_falls_by_the_schedule(make_run):
    settings = dataclasses.replace(STEPS, steps=100, warmup=10, learning_rate=2.0)
    run = make_run("run", settings)
    expected = {
        0: 2.0 * 0.1 * 1.0,  # the first of ten steps of warm-up
        4: 2.0 * 0.5 * (0.1 + 0.45 * (1 + math.cos(math.pi * 0.04))),
        50: 2.0 * 0.55,  # halfway between the peak and a tenth of it
        100: 2.0 * 0.1,
    }
    for step, value in expected.items():
        run.position.step = step
        assert run._learning_rate() == pytest.approx(value)


def test_time_makes_the_learning_rate_fall_too(make_run):
    run = make_run("run", dataclasses.replace(STEPS, steps=1000, warmup=0, max_minutes=2.0, learning_rate=2.0))
    run.position.seconds = 60.0
    assert run._learning_rate() == pytest.approx(2.0 * 0.55)
    assert run._done() == 0.5


def test_the_optimiser_is_given_the_rate_of_each_step(make_run, monkeypatch):
    run, rates = make_run("run"), []
    step = run.optimiser.step
    monkeypatch.setattr(
        run.optimiser, "step", lambda: (rates.append([g["lr"] for g in run.optimiser.param_groups]), step())
    )  # fmt: skip
    run.train(make)
    expected = [1e-2 * min(1, (s + 1) / 2) * (0.1 + 0.45 * (1 + math.cos(math.pi * s / 8))) for s in range(8)]
    assert [rate for pair in rates for rate in pair] == pytest.approx([rate for rate in expected for _ in range(2)])


def test_norms_are_not_decayed(make_run):
    matrices, vectors = make_run("run").optimiser.param_groups
    assert matrices["weight_decay"] == 0.01 and vectors["weight_decay"] == 0.0
    assert all(parameter.dim() == 2 for parameter in matrices["params"])
    assert all(parameter.dim() == 1 for parameter in vectors["params"])


def test_a_phase_ends_after_its_steps_and_the_last_one_goes_on(make_run, monkeypatch):
    phases = (Phase((1,), (1, 1), max_steps=3), Phase((1,), (1, 1), max_steps=2), Phase((1,), (1, 1), max_steps=1))
    drawn = []

    def watched(phase):
        drawn.append(phase)
        return make(phase)

    rows = logged(make_run("run", phases=phases), monkeypatch, watched)
    assert [row["phase"] for row in rows] == [0, 0, 0, 1, 1, 2, 2, 2]
    assert [row["phase_step"] for row in rows] == [1, 2, 3, 1, 2, 1, 2, 3]
    assert drawn == [0, 1, 2]


def test_a_phase_ends_when_its_accuracy_is_reached(make_run, monkeypatch):
    settings = dataclasses.replace(STEPS, steps=60)
    phases = (Phase((1,), (1, 1), until=0.5), Phase((1,), (1, 1)))

    def easy(phase):
        return lambda rng: [Segment([9] * 16, learn=True)]

    rows = logged(make_run("run", settings, phases), monkeypatch, easy, every=5)
    left = next(index for index, row in enumerate(rows) if row["phase"] == 1)
    assert 0 < left < len(rows) - 1
    assert rows[left - 1]["accuracy"] >= 0.5
    assert all(row["accuracy"] < 0.5 for row in rows[: left - 1])
    assert rows[left]["step"] == rows[left - 1]["step"] + 5 and rows[left]["phase_step"] == 5


def test_what_does_not_learn_stays_and_what_learns_is_float32(make_run):
    def heads(decoder):
        decoder.bfloat16()
        return [decoder.model.norm.weight]

    run = make_run("run", trainable=heads)
    decoder = run.objective.decoder
    assert decoder.model.norm.weight.dtype == torch.float32
    assert decoder.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert [id(parameter) for parameter in run.parameters] == [id(decoder.model.norm.weight)]
    assert not decoder.model.layers[0].mlp.up_proj.weight.requires_grad


def test_gradients_are_clipped(make_run, monkeypatch):
    run = make_run("run", dataclasses.replace(STEPS, steps=1, clip=0.25))
    norms = []
    step = run.optimiser.step

    def watched():
        norms.append(float(torch.cat([p.grad.flatten() for p in run.parameters]).norm()))
        step()

    monkeypatch.setattr(run.optimiser, "step", watched)
    run.train(make)
    assert norms == [pytest.approx(0.25, rel=1e-3)]


def test_a_loss_that_is_not_finite_ends_the_run(make_run, monkeypatch):
    run = make_run("run")
    with torch.no_grad():
        run.objective.decoder.model.norm.weight.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="Lower the recipe's learning_rate"):
        logged(run, monkeypatch)


@pytest.mark.parametrize("save_every", [100, 3])
def test_weights_that_are_not_finite_are_never_saved(make_run, monkeypatch, save_every):
    settings = dataclasses.replace(STEPS, steps=4, save_every=save_every)
    make_run("run", dataclasses.replace(settings, steps=2)).train(make)
    before = sorted((path.name, path.read_bytes()) for path in (make_run("run").out / "resume").iterdir())
    run = make_run("run", settings)
    monkeypatch.setattr(run.optimiser, "step", lambda: run.parameters[0].data.fill_(float("nan")))
    with pytest.raises(CheckpointError, match="NaN or infinity in 1 of"):
        run.train(make)
    assert sorted((path.name, path.read_bytes()) for path in (run.out / "resume").iterdir()) == before


def test_a_later_phase_that_cannot_be_drawn_ends_the_run_before_it_trains(make_run):
    def failing(phase):
        if phase:
            raise DataError("corpus", expected="more", got="less", remedy="Name more.")
        return make(phase)

    run = make_run("run", phases=(Phase((1,), (1, 1), max_steps=3), Phase((1,), (1, 1))))
    with pytest.raises(DataError):
        run.train(failing)
    assert run.position.step == 0


def test_a_large_seed_is_a_seed(make_run):
    make_run("run", dataclasses.replace(STEPS, steps=1, seed=2**32 - 1)).train(make)


def test_another_number_of_processes_is_refused(make_run):
    make_run("run").train(make)
    again = make_run("run", dataclasses.replace(STEPS, steps=12))
    state = again.out / "resume" / "state.json"
    state.write_text(state.read_text().replace('"places": [', '"places": [{"pool": 0, "used": 1}, '))
    with pytest.raises(CheckpointError, match="2 processes"):
        again.train(make)


def test_a_longer_run_goes_on_where_a_shorter_one_ended(make_run, monkeypatch):
    logged(make_run("run"), monkeypatch)
    rows = logged(make_run("run", dataclasses.replace(STEPS, steps=12)), monkeypatch)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [row["tokens"] for row in rows] == [120 * n for n in range(1, 13)]
