import pytest
from typer.testing import CliRunner

from gmsa_rag.errors import InputError
from gmsa_rag.evaluation import latency
from gmsa_rag.evaluation.latency import WAYS, measure_latency, sample_questions
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.training.data import Question

QUESTION = Question("Where?", ("sea",), ("A", "B"), ("The sea is wide.", "The river is long."), (0,))


def test_rows_compare_three_ways_within_one_run(gmsa: GMSA) -> None:
    rows = measure_latency(gmsa, [QUESTION], 4, repeats=3, max_new_tokens=2)
    assert [row.way for row in rows] == list(WAYS)
    assert [row.rate for row in rows] == [4, 4, None]
    assert rows[0].mean_positions == rows[1].mean_positions < rows[2].mean_positions
    for row in rows:
        assert row.num_runs == 3
        assert 0 < row.first_token_ms_quartiles[0] <= row.first_token_ms <= row.first_token_ms_quartiles[1]
        assert 0 < row.total_ms_quartiles[0] <= row.total_ms <= row.total_ms_quartiles[1]
        assert row.total_speedup == pytest.approx(rows[2].total_ms / row.total_ms)
    assert rows[2].first_token_speedup == rows[2].total_speedup == 1.0


def test_ways_take_turns(gmsa: GMSA, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(
        latency, "_timed", lambda gmsa, question, passages, size: float(asked.append(size) or len(asked))
    )
    rows = measure_latency(gmsa, [QUESTION], 4, repeats=2, max_new_tokens=9)
    assert asked == [1, 9] * 3 * 3
    # The first turn, 1 to 6, is not counted; stored memories are timed 7th and 13th, full text 11th and 17th.
    assert rows[0].first_token_ms == 10.0
    assert rows[2].first_token_ms == 14.0
    assert rows[0].first_token_speedup == pytest.approx(1.4)


def test_built_in_passages_differ() -> None:
    questions = sample_questions(9)
    assert all(len(set(question.passages)) == 9 == len(question.titles) for question in questions)
    assert all(80 < len(text.split()) < 140 for text in questions[0].passages)


def test_nothing_to_measure_is_an_error(gmsa: GMSA) -> None:
    with pytest.raises(InputError, match="latency"):
        measure_latency(gmsa, [])
    with pytest.raises(InputError, match="latency"):
        measure_latency(gmsa, [QUESTION], repeats=0)


def test_command_prints_a_table(gmsa: GMSA, monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    app = typer.Typer()
    app.command()(latency.main)
    monkeypatch.setattr(GMSA, "from_pretrained", classmethod(lambda cls, name: gmsa))
    monkeypatch.setattr(latency, "sample_questions", lambda number: [QUESTION] * number)
    result = CliRunner().invoke(app, ["--passages", "1", "--repeats", "1", "--rate", "4"])
    assert result.exit_code == 0, result.output
    assert "| stored_memories | 4 | 1 |" in result.output
    assert "threads" in result.output
