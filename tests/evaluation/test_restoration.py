import pytest
import torch

from gmsa_rag.errors import InputError, PromptTooLongError, RateError
from gmsa_rag.evaluation import restoration
from gmsa_rag.evaluation.metrics import bleu
from gmsa_rag.evaluation.passages import cut_passages
from gmsa_rag.evaluation.restoration import evaluate_restoration, forced_tokens, restore_all, token_accuracies
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.prompt import restore_prompt
from gmsa_rag.memory.memory import Memory
from gmsa_rag.modeling.checkpoint import Checkpoint

TEXTS = [
    f"Station {number} lies on the coast. Its tower, built in 18{number:02d}, is {number + 9} metres high and "
    f"stands on a rock of granite.\nKeepers lived there for {number + 20} years — until the lamp became electric; "
    f"since then “number {number}” has run by itself."
    for number in range(10, 18)
]


class PerfectRestorer(GMSA):
    """Restores the passages it has compressed, from the keys of their memories."""

    def __init__(self, gmsa: GMSA) -> None:
        super().__init__(Checkpoint(gmsa.config, gmsa.compressor, gmsa.decoder, gmsa.tokenizer))
        self.known: dict[str, str] = {}

    def compress(self, passages, rate=8, *, store=None):  # type: ignore[no-untyped-def,override]
        memories = super().compress(passages, rate, store=store)
        self.known |= {memory.key: text for memory, text in zip(memories, passages, strict=True)}
        return memories

    def generate(self, prompt, **settings):  # type: ignore[no-untyped-def,override]
        return [self.known[part.key] for parts in prompt for part in parts if isinstance(part, Memory)]


def plain_prediction(gmsa: GMSA, memory: Memory, ids: list[int]) -> list[int]:
    """One row, one window, no batch: the whole forward pass of the decoder."""
    table = gmsa.decoder.get_input_embeddings()
    before, after = gmsa.config.restore_template.split("{memory}")
    head = gmsa.codec.prefix + gmsa.codec.encode([before])[0]
    pieces = [table(torch.tensor(head)), memory.soft_tokens, table(torch.tensor(gmsa.codec.encode([after])[0] + ids))]
    with torch.inference_mode():
        logits = gmsa.decoder(inputs_embeds=torch.cat(pieces)[None]).logits[0]
    return logits[-len(ids) - 1 : -1].argmax(dim=-1).tolist()


def passages_and_memories(gmsa: GMSA, size: int, rate: int) -> tuple[list[list[int]], list[Memory]]:
    passages = cut_passages(gmsa.codec, TEXTS, size, 7, seed=1)
    return passages, gmsa.compress([gmsa.codec.decode(ids) for ids in passages], rate)


@pytest.mark.parametrize("rate", [1, 4, 7])
def test_forced_tokens_equal_a_plain_single_row(gmsa: GMSA, rate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restoration, "FORCED_POSITIONS", 200)  # several batches
    passages, memories = passages_and_memories(gmsa, 40, rate)
    ragged = [ids[: 40 - 5 * row] for row, ids in enumerate(passages)]
    prompts = [restore_prompt(gmsa.config, memory) for memory in memories]
    expected = [plain_prediction(gmsa, memory, ids) for memory, ids in zip(memories, ragged, strict=True)]
    assert forced_tokens(gmsa, prompts, ragged) == expected
    assert len({token for row in expected for token in row}) > 5


def test_token_accuracies_are_the_shares_of_right_tokens_in_all_windows(gmsa: GMSA) -> None:
    passages, memories = passages_and_memories(gmsa, 60, 8)  # the fixture's window is 48
    assert memories[0].borders == (0, 48, 60)
    expected = []
    for memory, ids in zip(memories, passages, strict=True):
        windows = zip(memory.windows(), (ids[:48], ids[48:]), strict=True)
        found = [token for window, part in windows for token in plain_prediction(gmsa, window, part)]
        expected.append(sum(a == b for a, b in zip(found, ids, strict=True)) / 60)
    assert token_accuracies(gmsa, memories, passages) == pytest.approx(expected)
    assert sum(expected) > 0


def test_forced_tokens_that_do_not_fit_are_an_error(gmsa: GMSA) -> None:
    with pytest.raises(PromptTooLongError):
        forced_tokens(gmsa, [["text"]], [[5] * 300])


@pytest.mark.parametrize("size", [30, 60])
def test_batched_restorations_equal_single_ones(gmsa: GMSA, size: int) -> None:
    _, memories = passages_and_memories(gmsa, size, 4)
    assert restore_all(gmsa, memories) == [gmsa.restore(memory) for memory in memories]


def test_other_figures_are_from_the_memories_of_other_passages(gmsa: GMSA, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[list[str]] = []

    def record(gmsa: GMSA, memories: list[Memory], passages: list[list[int]]) -> list[float]:
        read.append([memory.key for memory in memories])
        return [0.25, 0.75, 1.0, 0.0, 0.5] if len(read) == 1 else [0.1] * 5

    monkeypatch.setattr(restoration, "token_accuracies", record)
    (row,) = evaluate_restoration(PerfectRestorer(gmsa), TEXTS, windows=[40], rates=[4], samples=5)
    own, other = read
    assert other == [own[4], *own[:4]]
    assert len(set(own)) == 5
    assert row.token_accuracy == 0.5
    assert row.token_accuracy_interval[0] < 0.5 < row.token_accuracy_interval[1]
    assert row.other_token_accuracy == pytest.approx(0.1)
    assert row.other_token_accuracy_interval == pytest.approx((0.1, 0.1))
    assert row.other_bleu_interval is not None
    assert row.other_bleu_interval[0] <= row.other_bleu <= row.other_bleu_interval[1]
    texts = [gmsa.codec.decode(ids) for ids in cut_passages(gmsa.codec, TEXTS, 40, 5, seed=0)]
    assert row.other_bleu == pytest.approx(bleu([texts[4], *texts[:4]], texts))
    assert row.other_exact_match == 0.0
    assert row.other_prefix_match < 0.5
    assert row.other_names_exact is None or row.other_names_exact <= 1.0


def test_greedy_restorations_are_scored_by_hand_counted_figures(gmsa: GMSA) -> None:
    restored = ["In 1939 the Danube rose by 3.5 m.", "She met Otto Frisch."]
    texts = ["In 1939 the Danube rose by 3.6 m.", "She met Otto Frisch."]
    passages = gmsa.codec.encode(texts)
    scores = restoration._score_texts(gmsa, restored, texts, passages, 0)
    assert scores.exact_match == 0.5
    assert scores.numbers_exact == 0.5  # 1939, not 3.6
    assert scores.names_exact == 1.0  # Danube, Otto, Frisch
    length = len(passages[0])
    start = next(
        at for at, (a, b) in enumerate(zip(gmsa.codec.encode(restored)[0], passages[0], strict=True)) if a != b
    )
    assert scores.prefix_match == pytest.approx((start / length + 1) / 2)
    assert scores.prefix_match_interval == pytest.approx((start / length, 1.0))
    assert scores.exact_match_interval == (0.0, 1.0)
    assert scores.rouge_l_interval[0] < scores.rouge_l < scores.rouge_l_interval[1] == 1.0
    assert scores.numbers_exact_interval == (0.5, 0.5)  # both are in the same text, however often it is drawn
    assert scores.names_exact_interval == (1.0, 1.0)


def test_right_memory_changes_what_is_predicted(gmsa: GMSA) -> None:
    passages, memories = passages_and_memories(gmsa, 40, 1)
    prompts = [restore_prompt(gmsa.config, memory) for memory in memories]
    rolled = [prompts[-1], *prompts[:-1]]
    assert forced_tokens(gmsa, prompts, passages) != forced_tokens(gmsa, rolled, passages)


def test_perfect_restorer_scores_one(gmsa: GMSA) -> None:
    rows = evaluate_restoration(PerfectRestorer(gmsa), TEXTS, windows=[24, 40], rates=[2, 8], samples=6)
    assert [(row.window, row.rate, row.num_samples) for row in rows] == [(24, 2, 6), (24, 8, 6), (40, 2, 6), (40, 8, 6)]
    for row in rows:
        assert row.bleu == pytest.approx(1.0)
        assert row.rouge_l == pytest.approx(1.0)
        assert row.bleu_interval == pytest.approx((1.0, 1.0))
        assert row.prefix_match == row.exact_match == row.numbers_exact == 1.0
        assert row.other_bleu < 1.0


def test_untrained_checkpoint_scores_little_and_the_same_again(gmsa: GMSA) -> None:
    rows = evaluate_restoration(gmsa, TEXTS, windows=[24, 60], rates=[4], samples=3, seed=2)
    assert rows == evaluate_restoration(gmsa, TEXTS, windows=[24, 60], rates=[4], samples=3, seed=2)
    for row in rows:
        assert 0 <= row.token_accuracy < 0.2
        assert 0 <= row.other_token_accuracy < 0.2
        assert row.exact_match == 0.0
        assert row.bleu < 0.2


@pytest.mark.parametrize("wrong", [{"windows": []}, {"windows": [0]}, {"rates": []}, {"samples": 1}])
def test_senseless_arguments_are_errors(gmsa: GMSA, wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match="restoration"):
        evaluate_restoration(gmsa, TEXTS, **wrong)  # type: ignore[arg-type]


def test_wrong_rate_is_an_error(gmsa: GMSA) -> None:
    with pytest.raises(RateError):
        evaluate_restoration(gmsa, TEXTS, rates=[0])
