import pytest
import torch

from gmsa_rag.benchmark import kernel as module
from gmsa_rag.benchmark.kernel import measure_kernel, plot_kernel
from gmsa_rag.errors import GMSAError


def test_on_a_cpu_the_plain_path_is_measured_under_its_name(tmp_path):
    rows = measure_kernel(32, 600, 4, device="cpu", dtype=torch.bfloat16, repeats=2)
    assert [(row.operation, row.way) for row in rows] == [
        ("copy", "torch"), ("mean", "reference"), ("forward", "eager"), ("forward", "reference"),
        ("backward", "eager"), ("backward", "reference"),
    ]  # fmt: skip
    assert [row.speedup for row in rows if row.way == "eager"] == [1.0, 1.0]
    assert rows[0].speedup is None and rows[1].speedup is None
    assert plot_kernel(rows, tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_shares_are_of_the_bytes_needed():
    rows = {
        (row.operation, row.way): row
        for row in measure_kernel(16, 400, 400, device="cpu", dtype=torch.float32, repeats=1)
    }
    row_bytes, groups = 16 * 4, len(module._make_case(16, 400, 400, torch.device("cpu"), torch.float32, 0).bounds) - 1
    needed = {"copy": 800, "mean": 400 + groups, "forward": 400 + 2 * groups, "backward": 800 + 3 * groups}
    copy = rows["copy", "torch"]
    for (operation, _), row in rows.items():
        assert row.megabytes == pytest.approx(needed[operation] * row_bytes / 1e6)
        assert row.gigabytes_per_second == pytest.approx(row.megabytes * 1e6 / row.runs[0] / 1e9)
        assert row.share_of_copy == pytest.approx(row.gigabytes_per_second / copy.gigabytes_per_second)


def test_the_passages_of_a_case_are_ragged_and_complete():
    case = module._make_case(8, 1_000, 16, torch.device("cpu"), torch.float32, 0)
    groups = case.bounds.diff()
    assert case.bounds[-1] == 1_000 == len(case.states)
    assert groups.max() == 16 and (groups < 16).sum() >= 1
    assert case.bounds.device.type == "cpu"


def test_a_wrong_kernel_is_not_timed(monkeypatch):
    right = module.normed_group_merge

    def wrong(*args):
        merged, normed = right(*args)
        return merged, normed * 1.01

    monkeypatch.setattr(module, "normed_group_merge", wrong)
    with pytest.raises(GMSAError, match="group merging, normed"):
        measure_kernel(16, 100, 4, device="cpu", dtype=torch.float32, repeats=1)
