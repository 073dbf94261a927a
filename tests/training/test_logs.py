import json
import logging
import struct

import pytest

from gmsa_rag.training import logs
from gmsa_rag.training.logs import RunLog, plot_loss, progress, read_log


def row(step, loss=2.0):
    return {"step": step, "loss": loss, "accuracy": 0.5}


def write(out, steps, from_step=0, **options):
    log = RunLog(out, from_step, **options)
    for step in steps:
        log.write(row(step, loss=float(from_step)))
    return log


def test_rows_beyond_the_resumed_step_are_made_again(tmp_path):
    write(tmp_path, [20, 40, 60])
    write(tmp_path, [60, 80], from_step=40).close()
    assert read_log(tmp_path / "log.jsonl") == [row(20, 0.0), row(40, 0.0), row(60, 40.0), row(80, 40.0)]


def test_a_line_that_was_not_finished_is_left_out(tmp_path):
    write(tmp_path, [20, 40])
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write(json.dumps(row(60))[:-7])
    assert [row["step"] for row in read_log(tmp_path / "log.jsonl")] == [20, 40]
    write(tmp_path, [60], from_step=50)
    assert [row["step"] for row in read_log(tmp_path / "log.jsonl")] == [20, 40, 60]


def test_a_run_killed_while_it_starts_keeps_its_log(tmp_path, monkeypatch):
    write(tmp_path, [20, 40])

    def killed(self, *args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        RunLog(tmp_path, 40)
    assert [row["step"] for row in read_log(tmp_path / "log.jsonl")] == [20, 40]


def test_a_whole_row_without_its_line_end_counts_as_unfinished(tmp_path):
    (tmp_path / "log.jsonl").write_text(json.dumps(row(20)) + "\n" + json.dumps(row(40)))
    assert [row["step"] for row in read_log(tmp_path / "log.jsonl")] == [20]


def test_there_are_no_rows_where_there_is_no_log(tmp_path):
    assert read_log(tmp_path / "log.jsonl") == []


def events(folder):
    """Names and steps of the scalars in TensorBoard's event files, read as its format is documented."""
    from tensorboard.compat.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])  # a length, its checksum, the event, its own
            found += [(value.tag, event.step) for value in event.summary.value]
            at += length + 16
    return found


def test_numbers_go_to_tensorboard(tmp_path):
    write(tmp_path, [20, 40]).close()
    assert {("loss", 20), ("loss", 40), ("accuracy", 20), ("accuracy", 40)} <= set(events(tmp_path / "tensorboard"))


def test_losses_are_drawn_at_the_end(tmp_path):
    log = write(tmp_path, [20, 40])
    assert not (tmp_path / "loss.png").exists()
    log.close()
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_rows_without_an_accuracy_are_drawn_too(tmp_path):
    assert plot_loss(
        [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0, "accuracy": None}], tmp_path / "a.png"
    ).exists()


def test_a_run_that_ended_before_its_first_row_draws_nothing(tmp_path):
    RunLog(tmp_path, 0).close()
    assert not (tmp_path / "loss.png").exists()


def test_another_process_writes_nothing(tmp_path):
    write(tmp_path, [20], writes=False).close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["tensorboard", "matplotlib"])
def test_what_is_not_installed_is_named_and_done_without(tmp_path, monkeypatch, caplog, missing):
    monkeypatch.setattr(logs.importlib.util, "find_spec", lambda name: None if name == missing else object())
    with caplog.at_level(logging.WARNING):
        write(tmp_path, [20]).close()
    assert f"{missing} is not installed" in caplog.text
    assert (tmp_path / "tensorboard").exists() == (missing != "tensorboard")
    assert (tmp_path / "loss.png").exists() == (missing != "matplotlib")


def test_no_bar_is_shown_where_there_is_no_terminal(capsys):
    with progress(True) as (bar, task):
        bar.update(task, completed=0.5, info="halfway")
    assert capsys.readouterr() == ("", "")
