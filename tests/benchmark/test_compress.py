from dataclasses import replace

import pytest
import torch

from gmsa_rag.benchmark import compress as module
from gmsa_rag.benchmark.compress import Workload, draw_passages, in_dtype, measure_compress, plot_compress
from gmsa_rag.benchmark.flops import attention_flops, counted_flops, known_peak, matmul_rate, model_flops
from gmsa_rag.benchmark.growth import (
    GrowthRow,
    deviation_from_linear,
    measure_all_growth,
    plot_growth,
    ragged_workloads,
    whole_workloads,
)
from gmsa_rag.benchmark.published import PublishedWay
from gmsa_rag.benchmark.shapes import build_compressor
from gmsa_rag.errors import GMSAError, InputError
from gmsa_rag.inference.compression import compress_passages
from gmsa_rag.modeling.compressor import Compressor

PASSAGES = draw_passages(19, 1, 40, vocabulary=400, seed=1)


@pytest.fixture
def compressor(tiny_shape):
    return build_compressor(tiny_shape, device="cpu", dtype=torch.float32)


@pytest.fixture
def workload():
    return Workload(draw_passages(6, 3, 20, vocabulary=64, seed=0), 4, 32)


def test_the_published_way_leaves_the_modules_as_they_are(compressor):
    PublishedWay(compressor).compress(draw_passages(2, 3, 20, vocabulary=64, seed=0), 4)
    assert not any(module._forward_hooks for module in compressor.modules())


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma"])
@pytest.mark.parametrize("rate", [1, 4, 7])
def test_the_published_way_gives_the_same_soft_tokens(make_base, gmsa, family, rate):
    compressor = Compressor.from_base(make_base(family), gmsa.config).eval()
    published = PublishedWay(compressor).compress(PASSAGES, rate)
    ours = compress_passages(compressor, PASSAGES, rate, 48)
    assert len(published) == len(ours) == 19
    for theirs, (soft_tokens, _) in zip(published, ours, strict=True):
        torch.testing.assert_close(soft_tokens, theirs, atol=1e-5, rtol=0)


def test_the_published_way_goes_in_batches_of_eight_in_input_order_and_computes_logits(gmsa):
    way, seen, logits = PublishedWay(gmsa.compressor), [], []
    for model in (way._encoder, way._alignment):
        model.register_forward_pre_hook(
            lambda model, args, kwargs: seen.append(kwargs["attention_mask"].sum(1).tolist()), with_kwargs=True
        )
        model.lm_head.register_forward_hook(lambda head, args, output: logits.append(output.shape))
    way.compress(PASSAGES, 4)
    lengths, vocabulary = [len(ids) for ids in PASSAGES], gmsa.compressor.encoder.config.vocab_size
    groups = [-(-length // 4) for length in lengths]
    assert seen[::2] == [lengths[:8], lengths[8:16], lengths[16:]]
    assert seen[1::2] == [groups[:8], groups[8:16], groups[16:]]
    assert logits[0] == (8, max(lengths[:8]), vocabulary) and logits[1] == (8, max(groups[:8]), vocabulary)


def test_both_use_the_same_weights(gmsa):
    way = PublishedWay(gmsa.compressor)
    for model, ours in ((way._encoder, gmsa.compressor.encoder), (way._alignment, gmsa.compressor.alignment.block)):
        pairs = zip(model.base_model.parameters(), ours.parameters(), strict=True)
        assert all(theirs is own for theirs, own in pairs)
    table = gmsa.compressor.encoder.get_input_embeddings().weight
    assert way._encoder.lm_head.weight.data_ptr() == table.data_ptr()


def test_rows_compare_ways_and_dtypes(compressor, workload, tmp_path):
    rows, notes = measure_compress(compressor, workload, [torch.float32, torch.bfloat16], repeats=2)
    assert [(row.way, row.dtype) for row in rows] == [
        ("published", "float32"), ("ours", "float32"), ("ours", "bfloat16")
    ]  # fmt: skip
    for row in rows:
        assert len(row.runs) == 2 and row.tokens_per_second == pytest.approx(notes["tokens"] / row.seconds)
        assert row.utilisation == pytest.approx(notes["model_tflop"] / row.seconds / notes[f"peak_tflops_{row.dtype}"])
    assert (rows[0].speedup, rows[0].max_difference, rows[0].relative_difference) == (1.0, 0.0, 0.0)
    assert rows[1].max_difference < 1e-5 < rows[2].max_difference
    assert rows[0].tflop > rows[1].tflop  # the vocabulary, and padding
    assert notes["peak"] == "matrix product measured in this run"
    assert plot_compress(rows, tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_given_peak_is_used(compressor, workload):
    rows, notes = measure_compress(compressor, workload, [torch.float32], repeats=1, memory=False, peak_tflops=2.0)
    assert notes["peak_tflops_float32"] == 2.0 and "as given" in notes["peak"]
    assert rows[1].utilisation == pytest.approx(notes["model_tflop"] / rows[1].seconds / 2.0)
    assert rows[1].peak_mib is None


@pytest.mark.parametrize("wrong", [1.001, float("nan")])
def test_other_soft_tokens_are_refused(compressor, workload, monkeypatch, wrong):
    monkeypatch.setattr(
        module, "_compress", lambda compressor, workload: [
            wrong * soft_tokens for soft_tokens, _ in compress_passages(
                compressor, workload.passages, workload.rate, workload.window
            )
        ],
    )  # fmt: skip
    with pytest.raises(GMSAError, match="soft tokens"):
        measure_compress(compressor, workload, [torch.float32], repeats=1)


def test_operations_are_those_of_weights_and_attention(compressor):
    # A layer of the tiny shape: queries 16 x 32, keys and values 16 x 16 each, output 32 x 16, three of 16 x 24.
    layer = 16 * 32 + 2 * 16 * 16 + 32 * 16 + 3 * 16 * 24
    pairs = 9 * 10 // 2 + 5 * 6 // 2
    encoder = 2 * (2 * layer * (9 + 5) + 4 * 4 * 8 * pairs)
    groups, group_pairs = 3 + 2, 3 * 4 // 2 + 2 * 3 // 2
    assert model_flops(compressor, [9, 5], 4) == encoder + 2 * layer * groups + 4 * 4 * 8 * group_pairs


def test_operations_are_counted():
    assert counted_flops(lambda: torch.ones(3, 5) @ torch.ones(5, 7)) == 2 * 3 * 5 * 7


def test_attention_counts_by_the_heads_of_the_queries():
    assert attention_flops((2, 8, 16, 4), (2, 2, 32, 4), (2, 2, 32, 4), 0.0, is_causal=True) == 4 * 2 * 8 * 16 * 32 * 4


def test_peaks_are_of_the_data_sheet_or_measured(compressor, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert known_peak(torch.device("cuda"), torch.bfloat16) == 989e12
    assert known_peak(torch.device("cuda"), torch.float32) == 67e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "another")
    assert known_peak(torch.device("cuda"), torch.bfloat16) is None
    assert known_peak(torch.device("cpu"), torch.float32) is None

    class Second:
        def start(self):
            pass

        def stop(self):
            return 1.0

    assert matmul_rate(compressor, repeats=1, clock=Second()) == 2 * 2_048 * 16 * 32


def test_the_same_seed_draws_the_same_passages():
    few, many = (draw_passages(count, 3, 9, vocabulary=50, seed=5) for count in (4, 8))
    assert many[:4] == few
    assert all(3 <= len(ids) <= 9 and max(ids) < 50 for ids in many)
    assert draw_passages(4, 3, 9, vocabulary=50, seed=6) != few
    for count, least, most in ((0, 1, 1), (1, 0, 1), (1, 3, 2)):
        with pytest.raises(InputError, match="passages"):
            draw_passages(count, least, most, vocabulary=50, seed=0)


def test_another_dtype_is_a_copy_with_exact_frequencies(compressor):
    cast = in_dtype(compressor, torch.bfloat16)
    assert compressor.encoder.dtype == torch.float32 and in_dtype(compressor, torch.float32) is compressor
    assert cast.encoder.dtype == cast.alignment.block.dtype == torch.bfloat16
    assert cast.encoder.rotary_emb.inv_freq.dtype == torch.float32


def test_growth_is_measured_in_both_series(compressor, tmp_path):
    workload = Workload(draw_passages(8, 3, 20, vocabulary=64, seed=0), 4, 32)
    rows, notes = measure_all_growth(
        compressor, workload, [torch.float32], [1, 8], [64, 100], vocabulary=64, seed=0, repeats=2
    )
    assert [(row.series, row.passages) for row in rows] == [("ragged", 1), ("ragged", 8), ("whole", 2), ("whole", 4)]
    assert [row.tokens for row in rows] == [len(workload.passages[0]), sum(workload.lengths), 64, 128]
    assert all(row.microseconds_per_token == pytest.approx(1e6 * row.seconds / row.tokens) for row in rows)
    assert notes == {}  # neither 16 nor 256 passages
    assert plot_growth(rows, tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_deviation_is_of_the_time_for_a_token_within_a_round():
    few = GrowthRow("ragged", "float32", 16, 1_000, 0.0, (0.0, 0.0), 0.0, None, (1.0, 2.0, 4.0))
    many = replace(few, passages=256, tokens=10_000, runs=(11.0, 24.0, 36.0))
    assert deviation_from_linear([few, many]) == pytest.approx(0.1)  # of 0.1, 0.2 and -0.1
    assert deviation_from_linear([few]) is None


def test_workloads_of_growth_are_beginnings_of_one_another(workload):
    assert [len(work.passages) for work in ragged_workloads([4, 1, 4], workload)] == [1, 4]
    assert ragged_workloads([4], workload)[0].passages == workload.passages[:4]
    assert [work.lengths for work in whole_workloads([32, 33], workload, vocabulary=64, seed=0)] == [[32], [32, 32]]
    for counts in ([], [7]):
        with pytest.raises(InputError, match="growth"):
            ragged_workloads(counts, workload)
