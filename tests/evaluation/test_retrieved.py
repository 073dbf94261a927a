import numpy as np
import pytest

from gmsa_rag.evaluation import retrieved
from gmsa_rag.evaluation.retrieved import retrieve


class Compass:
    """Embeds a text that holds two numbers as that vector, (2,)."""

    def encode_document(self, inputs: list[str], /, *, show_progress_bar: bool) -> np.ndarray:
        return np.array([[float(number) for number in text.split()] for text in inputs])

    encode_query = encode_document


def test_the_closest_by_angle_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["1 0", "0 9", "5 5", "-1 0"]
    monkeypatch.setattr(retrieved, "QUERIES_AT_ONCE", 2)
    # Cosines of (2, 1): 2/√5, 1/√5, 3/√10 and -2/√5. Length does not count.
    assert retrieve(texts, ["2 1", "-3 0.1", "0 1"], 3, Compass()) == [[2, 0, 1], [3, 1, 2], [1, 2, 0]]


def test_of_equals_the_earlier_comes_first() -> None:
    assert retrieve(["0 1", "1 0", "2 0", "0 0"], ["1 0"], 4, Compass()) == [[1, 2, 0, 3]]
