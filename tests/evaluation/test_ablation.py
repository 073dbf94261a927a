import dataclasses
import gzip
import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from gmsa_rag.config import GMSAConfig
from gmsa_rag.errors import CheckpointError, ConfigError, DataError, InputError
from gmsa_rag.evaluation import ablation, metrics, small_base
from gmsa_rag.evaluation.ablation import AblationRow, join_rows, plot_ablation, run_ablation
from gmsa_rag.evaluation.ablation_report import make_plan, make_probe, shorten_passages
from gmsa_rag.evaluation.ablation_training import Plan, autoencode_variant, fine_tune_variant, seeded
from gmsa_rag.evaluation.commands import app
from gmsa_rag.evaluation.qa import QARow
from gmsa_rag.evaluation.report import read_report
from gmsa_rag.evaluation.variants import VARIANTS, make_compressor, start_variant
from gmsa_rag.training import loop
from gmsa_rag.training.autoencoding import compressor_parameters
from gmsa_rag.training.data import Question
from gmsa_rag.training.examples import Segment
from gmsa_rag.training.pools import Pools
from gmsa_rag.training.recipe import AutoencodeRecipe, KeftRecipe, Optimisation, Phase
from gmsa_rag.training.tasks import Tasks

STEPS = Optimisation(steps=2, batch_tokens=300, warmup=1, save_every=1, bf16=False, pool=16, learning_rate=3e-3)
AUTOENCODING = AutoencodeRecipe(
    STEPS, ("rivers",), (Phase((2, 4), (8, 24)),), encoder_layers=2, window=32,
    templates={"restore_template": "{memory}<|restore|>"},
)  # fmt: skip
TUNING = KeftRecipe(
    STEPS, ("rivers",), ("rivers.train",), (Phase((4,), (8, 24)),), {"restore": 0.3, "question": 0.7},
    full_text=0.0, mixed=0.0, whole_passages=0.0,
)  # fmt: skip
NAMES = ["Danube", "Rhine", "Volga", "Loire", "Elbe", "Meuse", "Weser", "Oder"]


def sentence(rng: random.Random) -> str:
    return f"The river {rng.choice(NAMES)} joined the {rng.choice(NAMES)} in {rng.randint(1500, 1999)}."


def question_row(number: int, rng: random.Random) -> dict[str, object]:
    text = sentence(rng)
    return {
        "id": str(number), "question": f"When did they join, {number}?", "answers": [text[-5:-1]], "gold": [0],
        "contexts": [{"title": f"River {number}", "text": text}],
    }  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    rng, folder = random.Random(5), tmp_path_factory.mktemp("data")
    (folder / "text").mkdir()
    (folder / "qa").mkdir()
    for name in ("rivers", "rivers.heldout"):
        text = "\n<|doc|>\n".join(" ".join(sentence(rng) for _ in range(8)) for _ in range(20))
        (folder / "text" / f"{name}.txt.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("rivers.train", "rivers.dev"):
        rows = [json.dumps(question_row(number, rng)) for number in range(8)]
        (folder / "qa" / f"{name}.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def base(make_base, tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_base().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """Intervals are not what is tested here, and a thousand draws for each take their time."""
    monkeypatch.setattr(metrics, "RESAMPLES", 10)


@pytest.fixture
def plan(base, data, tmp_path) -> Plan:
    return Plan(AUTOENCODING, TUNING, base, data, tmp_path, (4, 8))


@pytest.fixture
def probe(plan):
    return make_probe(plan, "rivers.heldout", "rivers.dev", samples=2, limit=3)


@pytest.fixture(scope="module")
def decoder(make_base):
    return make_base()


def test_every_variant_gets_a_row_a_rate_and_the_same_again(plan, probe, tmp_path):
    rows = run_ablation(plan, probe, VARIANTS)
    rated = [name for name in VARIANTS if name not in ("full_text", "closed_book")]
    assert {(row.variant, row.rate) for row in rows} == {
        *((name, rate) for name in rated for rate in (4, 8)), ("full_text", None), ("closed_book", None)
    }  # fmt: skip
    for row in rows:
        compresses = row.variant in VARIANTS[:5]
        assert (row.token_accuracy is not None) == (row.other_f1 is not None) == compresses
        assert row.num_passages == (2 if compresses else None) and row.num_questions == 3
    by_rate = {row.variant: row.mean_positions for row in rows if row.rate in (4, None)}
    assert by_rate["icae"] == by_rate["default"] == by_rate["without_lsa"]
    assert by_rate["closed_book"] < by_rate["truncated_text"] <= by_rate["default"] < by_rate["full_text"]
    again = run_ablation(dataclasses.replace(plan, out=tmp_path / "again"), probe, ["random_lsa", "icae"])
    assert again == [row for row in rows if row.variant in ("random_lsa", "icae")]
    assert plot_ablation(rows, tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_variant_is_neither_trained_nor_evaluated_again(plan, probe, monkeypatch):
    before = run_ablation(plan, probe, ["default"])
    monkeypatch.setattr(loop.Run, "_step", lambda *_: pytest.fail("trained again"))
    with monkeypatch.context() as patch:
        patch.setattr(ablation, "evaluate_variant", lambda *_: pytest.fail("evaluated again"))
        assert run_ablation(plan, probe, ["default"]) == before
    (plan.out / "default" / ablation.KEPT).unlink()
    assert run_ablation(plan, probe, ["default"]) == before
    other = dataclasses.replace(probe, limit=2)
    assert run_ablation(plan, other, ["default"])[0].num_questions == 2


def test_rows_of_a_replaced_file_are_evaluated_again(plan, probe, data, tmp_path, monkeypatch):
    shutil.copytree(data, tmp_path / "data")
    file = tmp_path / "data" / "qa" / "rivers.dev.jsonl"
    evaluated = []
    monkeypatch.setattr(ablation, "evaluate_variant", lambda plan, probe, variant: evaluated.append(probe) or [])
    moved = dataclasses.replace(plan, data=tmp_path / "data")
    for _ in range(2):
        run_ablation(plan, make_probe(moved, "rivers.heldout", "rivers.dev", samples=2, limit=3), ["default"])
    assert [found.digests for found in evaluated] == [probe.digests]
    file.write_text(file.read_text() + "\n")
    run_ablation(plan, make_probe(moved, "rivers.heldout", "rivers.dev", samples=2, limit=3), ["default"])
    assert len(evaluated) == 2


def test_an_interrupted_variant_goes_on_where_it_stopped(plan, probe, tmp_path, monkeypatch):
    expected = run_ablation(dataclasses.replace(plan, out=tmp_path / "whole"), probe, ["icae"])
    step, steps = loop.Run._step, []

    class Stopped(Exception):
        pass

    def stop(self, batches):
        if len(steps) == 3:
            raise Stopped
        steps.append(self.out.name)
        step(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "_step", stop)
        with pytest.raises(Stopped):
            run_ablation(plan, probe, ["icae"])
    assert steps == ["ae", "ae", "keft"]
    left = []
    monkeypatch.setattr(loop.Run, "_step", lambda run, batches: (left.append(run.out.name), step(run, batches)))
    assert run_ablation(plan, probe, ["icae"]) == expected
    assert left == ["keft"]


def test_all_variants_learn_from_the_same_batches(plan, probe, monkeypatch):
    seen: dict[str, list[list[int]]] = {}
    pairs = Pools.__getitem__

    def note(self, pool):
        found = pairs(self, pool)
        seen.setdefault(current, []).append([batch.targets.tolist() for batch, _ in found])
        return found

    monkeypatch.setattr(Pools, "__getitem__", note)
    for current in VARIANTS:
        fine_tune_variant(plan, current, start_variant(current, plan.base, AUTOENCODING, plan.all_rates, 0))
    assert all(batches == seen["default"] for batches in seen.values()) and len(seen["default"][0]) > 1


def test_the_settings_of_both_stages_reach_what_is_drawn(plan, monkeypatch):
    drawn: list[Tasks] = []
    monkeypatch.setattr(
        Tasks, "draw", lambda self, weights: drawn.append(self) or (lambda rng: [Segment([5], learn=True)])
    )
    monkeypatch.setattr(loop.Run, "train", lambda self, make: make(0))
    plan = dataclasses.replace(
        plan,
        autoencoding=dataclasses.replace(AUTOENCODING, noise=0.2),
        fine_tuning=dataclasses.replace(TUNING, noise=0.3, own_wording=0.9, distractors=0.4),
    )
    fine_tune_variant(plan, "default", autoencode_variant(plan, "default"))
    restoring, asking = drawn
    assert restoring.noise == 0.2
    assert (asking.noise, asking.own_wording, asking.distractors) == (0.3, 0.9, 0.4)


def test_autoencoding_leaves_the_decoder_alone_and_keft_the_compressor(plan):
    start = start_variant("default", plan.base, AUTOENCODING, plan.all_rates, 0)
    trained = autoencode_variant(plan, "default")
    for name, weight in start.decoder.state_dict().items():
        assert torch.equal(weight, trained.decoder.state_dict()[name]), name
    changed = [
        n for n, w in start.compressor.state_dict().items() if not torch.equal(w, trained.compressor.state_dict()[n])
    ]
    assert any(name.startswith("encoder.layers.0") for name in changed)
    assert any(name.startswith("alignment") for name in changed)
    assert not any("embed_tokens" in name for name in changed)
    compressor = {name: weight.clone() for name, weight in trained.compressor.state_dict().items()}
    fine_tune_variant(plan, "default", trained)
    assert all(torch.equal(weight, trained.compressor.state_dict()[name]) for name, weight in compressor.items())
    old, new = (c.decoder.model.layers[0].mlp.up_proj.weight for c in (start, trained))
    assert not torch.equal(old, new)


@torch.no_grad()
def test_variants_differ_where_their_names_say(decoder):
    config = GMSAConfig(encoder_layers=2, lsa_layers=1, window=32, rates=[2, 4])
    ids, lengths, rates = torch.arange(20, 36).view(2, 8), [8, 5], [4, 2]
    default = make_compressor("default", decoder, config)
    torch.manual_seed(1)
    drawn = make_compressor("random_lsa", decoder, config)
    untrained, plain = (make_compressor(name, decoder, config) for name in ("without_ae", "without_lsa"))
    torch.testing.assert_close(untrained(ids, lengths, rates), default(ids, lengths, rates))
    assert not torch.allclose(drawn(ids, lengths, rates), default(ids, lengths, rates), atol=1e-2)
    assert torch.equal(drawn.encoder.layers[0].mlp.up_proj.weight, default.encoder.layers[0].mlp.up_proj.weight)
    hidden = default.encoder(input_ids=ids).last_hidden_state
    groups = [hidden[0, :4], hidden[0, 4:], hidden[1, :2], hidden[1, 2:4], hidden[1, 4:5]]
    merged = torch.stack([group.mean(dim=0) for group in groups])
    torch.testing.assert_close(plain(ids, lengths, rates), merged, rtol=1e-5, atol=1e-5)
    assert len(make_compressor("icae", decoder, config).memory_tokens) == 16


def test_random_parts_come_from_the_seed(base):
    def lsa(seed: int) -> torch.Tensor:
        start = start_variant("random_lsa", base, AUTOENCODING, (4,), seed)
        return start.compressor.alignment.block.layers[0].self_attn.q_proj.weight

    assert torch.equal(lsa(1), lsa(1)) and not torch.equal(lsa(1), lsa(2))


def test_what_learns_in_autoencoding(base):
    def num_learned(variant: str) -> int:
        found = compressor_parameters(start_variant(variant, base, AUTOENCODING, (4,), 0))
        return sum(parameter.numel() for parameter in found)

    layer = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48 + 2 * 32
    assert num_learned("without_lsa") == 2 * layer + 32
    assert num_learned("default") == num_learned("random_lsa") == 3 * layer + 2 * 32
    assert num_learned("icae") == 2 * layer + 32 + 8 * 32 + 2 * (32 * 32 + 32)
    assert num_learned("truncated_text") == 0


def asked(condition: str, rate: int | None, f1: float) -> QARow:
    return QARow(
        condition, rate, "given", "own", 9, 0.1, (0.0, 0.2), 0.3, (0.2, 0.4), f1, (0.1, 0.9), *[None] * 3, 20.0, 0
    )


def test_rows_stand_beside_those_of_other_memories():
    rows = join_rows(
        "icae", [], [asked("memories", r, f) for r, f in ((4, 0.6), (8, 0.5))]
        + [asked("other_memories", r, f) for r, f in ((4, 0.2), (8, 0.1))],
    )  # fmt: skip
    assert [(row.rate, row.f1, row.other_f1, row.bleu) for row in rows] == [(4, 0.6, 0.2, None), (8, 0.5, 0.1, None)]
    (full,) = join_rows("full_text", [], [asked("full_text", None, 0.7)])
    assert (full.rate, full.f1, full.other_f1, full.mean_positions) == (None, 0.7, None, 20.0)


def test_passages_are_cut_to_the_sentence_with_the_answer():
    text = "One is here now. Two was made in 1939. Three is far away. Four is lost at sea."
    row = Question("When?", ("1939",), ("A", "B"), ("No.", text), (1,))
    (short,) = shorten_passages([row], 4, 0)
    assert short.passages == ("Two was made in 1939.",)
    assert (short.titles, short.gold) == (("B",), (0,))
    assert shorten_passages([dataclasses.replace(row, gold=())], 4, 0) == []


def test_another_seed_draws_other_examples():
    assert seeded(AUTOENCODING, 0) == AUTOENCODING
    assert seeded(AUTOENCODING, 2).optimisation.seed == STEPS.seed + 200


def test_runs_of_another_plan_are_refused(plan, probe):
    run_ablation(plan, probe, ["without_ae"])
    longer = dataclasses.replace(TUNING, optimisation=dataclasses.replace(STEPS, steps=3))
    with pytest.raises(CheckpointError, match="without_ae"):
        run_ablation(dataclasses.replace(plan, fine_tuning=longer), probe, ["without_ae"])


def test_damaged_rows_are_named(plan, probe):
    (plan.out / "default").mkdir()
    (plan.out / "default" / ablation.KEPT).write_text("{}")
    with pytest.raises(DataError, match=r"default/rows\.json"):
        run_ablation(plan, probe, ["default"])


@pytest.mark.parametrize(
    ("autoencoding", "tuning", "named"),
    [
        ({"train_decoder": True}, {}, "train_decoder"),
        ({}, {"mixed": 0.1}, "mixed"),
        ({}, {"whole_passages": 0.5}, "whole_passages"),
        ({"optimisation": dataclasses.replace(STEPS, max_minutes=1.0)}, {}, "max_minutes"),
    ],
)
def test_recipes_that_treat_variants_differently_are_refused(plan, autoencoding, tuning, named):
    changed = dataclasses.replace(
        plan,
        autoencoding=dataclasses.replace(AUTOENCODING, **autoencoding),
        fine_tuning=dataclasses.replace(TUNING, **tuning),
    )
    with pytest.raises(ConfigError, match=named):
        changed.check()


@pytest.mark.parametrize("variants", [[], ["default", "gist"]])
def test_unknown_variants_are_refused(plan, probe, variants):
    with pytest.raises(InputError, match="variants"):
        run_ablation(plan, probe, variants)


RECIPE = """
pretrain:
  optimisation: {steps: 2, batch_tokens: 200, save_every: 1, bf16: false, pool: 8}
  text: [rivers]
  vocab_size: 400
  window: 16
  architecture: {model_type: llama, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2,
    num_attention_heads: 4, num_key_value_heads: 2, max_position_embeddings: 256}
autoencode:
  optimisation: {steps: 1, batch_tokens: 200, bf16: false, pool: 8}
  text: [rivers]
  encoder_layers: 1
  window: 24
  phases: [{rates: [4], windows: [8, 24]}]
keft:
  optimisation: {steps: 1, batch_tokens: 200, bf16: false, pool: 8}
  text: [rivers]
  questions: [rivers.train]
  phases: [{rates: [4], windows: [8, 24]}]
  tasks: {question: 1.0}
  full_text: 0.0
  mixed: 0.0
  whole_passages: 0.0
"""


def test_the_rates_are_those_of_the_last_phase_of_keft_where_none_are_named(base, data, tmp_path):
    recipe = tmp_path / "tiny.yaml"
    phases = "phases: [{rates: [1], windows: [8, 24]}, {rates: [2, 6], windows: [8, 24]}]\n  tasks"
    recipe.write_text(RECIPE.replace("phases: [{rates: [4], windows: [8, 24]}]\n  tasks", phases))
    assert make_plan(recipe, data, tmp_path / "out", base=base).rates == (2, 6)
    assert make_plan(recipe, data, tmp_path / "out", base=base, rates=(3,)).rates == (3,)


def test_the_command_pretrains_a_base_once_and_writes_a_report(data, tmp_path, monkeypatch):
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    options = ["--recipe", str(tmp_path / "tiny.yaml"), "--data", str(data), "--out", str(tmp_path / "out")]
    options += ["--text-file", "rivers.heldout", "--questions", "rivers.dev", "--samples", "2"]
    for variants in ("default", "default, closed_book"):
        result = CliRunner().invoke(
            app, ["ablation", *options, "--variants", variants, "--limit", "2"], catch_exceptions=False
        )
        assert result.exit_code == 0, result.output
        monkeypatch.setattr(small_base.Run, "_step", count_variants(tmp_path / "out", small_base.Run._step))
    report = read_report(tmp_path / "out" / "ablation-rivers.heldout-rivers.dev.json", AblationRow)
    assert [(row.variant, row.rate) for row in report.rows] == [("default", 4), ("closed_book", None)]
    assert report.setting.files == ("rivers.heldout.txt.gz", "rivers.dev.jsonl")
    assert (report.setting.model, report.setting.num_samples) == ("tiny", 2)
    assert report.setting.options == {"rates": (4,), "window": 24, "samples": 2, "limit": 2}
    assert (len(report.setting.digests), report.setting.max_new_tokens) == (2, ablation.MAX_NEW_TOKENS)


def count_variants(out: Path, step):
    """Steps that fail where a finished run would take them."""

    def stepping(run, batches):
        assert run.out == out / "closed_book" / "keft"
        return step(run, batches)

    return stepping
