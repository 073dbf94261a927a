import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from gmsa_rag.checks import LARGEST_RATE
from gmsa_rag.errors import InputError, InputTypeError, RateError
from gmsa_rag.inference import compression as module
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.memory.store import MemoryStore
from tests.conftest import TEXT

RAGGED = [TEXT[: 5 + 14 * i] for i in range(16)]  # from 3 tokens to several windows


@pytest.fixture
def counted(gmsa, monkeypatch):
    """Counts the windows that reach the compressor."""
    windows = []
    forward = gmsa.compressor.forward

    def count(input_ids, lengths, rates):
        windows.extend(lengths)
        return forward(input_ids, lengths, rates)

    monkeypatch.setattr(gmsa.compressor, "forward", count)
    return windows


@pytest.mark.parametrize("rate", [1, 4, 7])
def test_a_ragged_batch_of_16_equals_16_single_calls(gmsa, rate):
    for memory, passage in zip(gmsa.compress(RAGGED, rate=rate), RAGGED, strict=True):
        single = gmsa.compress(passage, rate=rate)
        torch.testing.assert_close(memory.soft_tokens, single.soft_tokens, atol=1e-5, rtol=0)
        assert (memory.key, memory.num_tokens, memory.borders) == (single.key, single.num_tokens, single.borders)


def test_batches_are_cut_by_the_token_budget(gmsa, monkeypatch):
    whole = gmsa.compress(RAGGED, rate=4)
    monkeypatch.setattr(module, "CPU_BATCH_TOKENS", 60)
    monkeypatch.setattr(module, "CPU_THREAD_TOKENS", 1)
    batches, forward = [], gmsa.compressor.forward

    def record(input_ids, lengths, rates):
        batches.append(input_ids.numel())
        return forward(input_ids, lengths, rates)

    monkeypatch.setattr(gmsa.compressor, "forward", record)
    for a, b in zip(whole, gmsa.compress(RAGGED, rate=4), strict=True):
        torch.testing.assert_close(a.soft_tokens, b.soft_tokens, atol=1e-5, rtol=0)
    assert len(batches) > 3 and max(batches) <= 60


def test_a_compressor_that_can_pack_gets_windows_without_padding(gmsa, monkeypatch):
    padded = gmsa.compress(RAGGED, rate=4)
    packed, forward = [], gmsa.compressor.forward_packed

    def record(input_ids, lengths, rates):
        packed.append(len(input_ids))
        return forward(input_ids, lengths, rates)

    monkeypatch.setattr(type(gmsa.compressor), "can_pack", property(lambda self: True))
    monkeypatch.setattr(gmsa.compressor, "forward_packed", record)
    for a, b in zip(padded, gmsa.compress(RAGGED, rate=4), strict=True):
        torch.testing.assert_close(a.soft_tokens, b.soft_tokens, atol=1e-5, rtol=0)
    assert sum(packed) == sum(memory.num_tokens for memory in padded)


def test_passages_are_taken_from_an_iterator_as_they_are_needed(gmsa, monkeypatch):
    passages = [list(range(5, 5 + length)) for length in (9, 30, 0, 17, 60)]
    whole = module.compress_passages(gmsa.compressor, passages, 4, 48)
    order, forward = [], gmsa.compressor.forward

    def record(input_ids, lengths, rates):
        order.append("compress")
        return forward(input_ids, lengths, rates)

    def lazily():
        for ids in passages:
            order.append("take")
            yield ids

    monkeypatch.setattr(gmsa.compressor, "forward", record)
    monkeypatch.setattr(module, "SORTED_TOKENS", 35)
    again = module.compress_passages(gmsa.compressor, lazily(), 4, 48)
    assert order == ["take", "take", "compress", "take", "take", "take", "compress"]
    for (soft_tokens, borders), (expected, same) in zip(again, whole, strict=True):
        torch.testing.assert_close(soft_tokens, expected, atol=1e-5, rtol=0)
        assert borders == same


def test_soft_tokens_are_ordinary_tensors_of_their_own(gmsa):
    first, second = gmsa.compress(RAGGED[:2], rate=4)
    assert not first.soft_tokens.is_inference() and first.soft_tokens.is_contiguous()
    assert first.soft_tokens.untyped_storage().nbytes() == first.soft_tokens.numel() * 4
    assert first.soft_tokens.untyped_storage().data_ptr() != second.soft_tokens.untyped_storage().data_ptr()


def test_windows_are_compressed_apart_and_joined(gmsa):
    memory = gmsa.compress(TEXT, rate=5)
    ids = gmsa.codec.encode([TEXT])[0]
    step = 48 // 5 * 5
    assert memory.borders == (*range(0, len(ids), step), len(ids)) and len(memory.borders) > 2
    with torch.no_grad():
        windows = [ids[a:b] for a, b in zip(memory.borders[:-1], memory.borders[1:], strict=True)]
        expected = [gmsa.compressor(torch.tensor([w]), [len(w)], [5]) for w in windows]
    torch.testing.assert_close(memory.soft_tokens, torch.cat(expected), atol=1e-5, rtol=0)
    assert memory.num_soft_tokens == -(-len(ids) // 5)


@pytest.mark.parametrize("rate", [1, 2, 16, 48])
def test_a_rate_beyond_the_passage_gives_one_soft_token(gmsa, rate):
    memory = gmsa.compress("The Danube", rate=rate)
    assert memory.num_soft_tokens == -(-memory.num_tokens // rate)
    assert memory.rate == rate and memory.fingerprint == gmsa.fingerprint


def test_a_rate_beyond_the_window_takes_no_longer_passage(gmsa):
    assert gmsa.compress("The Danube", rate=1000).num_soft_tokens == 1
    with pytest.raises(RateError, match="at most the window"):
        gmsa.compress(TEXT, rate=1000)


def test_empty_passages_and_lists_are_defined(gmsa):
    assert gmsa.compress([]) == []
    memory = gmsa.compress("")
    assert memory.soft_tokens.shape == (0, 32) and memory.num_tokens == 0
    assert [m.num_tokens for m in gmsa.compress(["", "The Danube", ""])] == [0, 3, 0]


@pytest.mark.parametrize(
    ("passages", "error"),
    [(None, InputTypeError), (b"bytes", InputTypeError), (["a", 3], InputTypeError), (7, InputTypeError),
     ("half \ud800 a pair", InputError)],
)  # fmt: skip
def test_what_is_no_text_is_a_typed_error(gmsa, passages, error):
    with pytest.raises(error, match="expected"):
        gmsa.compress(passages)


@pytest.mark.parametrize("rate", [0, -2, 1.5, "8", True, 2**31, 2**63])
def test_a_bad_rate_is_a_typed_error(gmsa, rate):
    with MemoryStore(":memory:") as store, pytest.raises(RateError):
        gmsa.compress("text", rate=rate, store=store)


def test_a_store_holds_the_largest_rate(gmsa):
    with MemoryStore(":memory:") as store:
        [made] = gmsa.compress(["text"], rate=LARGEST_RATE, store=store)
        assert store.get(made.key) == made
        store.check()


def test_a_bad_passage_among_good_ones_stores_nothing(gmsa):
    with MemoryStore(":memory:") as store:
        with pytest.raises(InputTypeError):
            gmsa.compress(["good", None], store=store)
        assert len(store) == 0
        store.check()


def test_the_same_passage_is_computed_once(gmsa, counted, tmp_path):
    with MemoryStore(tmp_path / "m.db") as store:
        first = gmsa.compress(["Vienna", "Budapest", "Vienna"], rate=4, store=store)
        assert len(counted) == 2 and first[0] is first[2]
        again = gmsa.compress(["Budapest", "Belgrade", "Vienna"], rate=4, store=store)
        assert len(counted) == 3
        assert torch.equal(first[0].soft_tokens, again[2].soft_tokens)
        gmsa.compress("Vienna", rate=2, store=store)
        assert len(counted) == 4 and len(store) == 4
        store.check()


def test_a_second_process_reads_what_the_first_stored(gmsa, tmp_path):
    gmsa.save_pretrained(tmp_path / "checkpoint")
    memory = gmsa.compress("Four capitals stand on its banks.", rate=4, store=tmp_path / "m.db")
    script = (
        "import sys, torch; from gmsa_rag import GMSA\n"
        "gmsa = GMSA.from_pretrained(sys.argv[1]); calls = []\n"
        "gmsa.compressor.register_forward_pre_hook(lambda *_: calls.append(1))\n"
        "memory = gmsa.compress('Four capitals stand on its banks.', rate=4, store=sys.argv[2])\n"
        "print(memory.key, len(calls), memory.soft_tokens.double().sum().item())\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "checkpoint", tmp_path / "m.db"],
        capture_output=True,
        text=True,
        check=True,
    )
    key, calls, total = out.stdout.split()
    assert (key, calls) == (memory.key, "0")
    assert float(total) == memory.soft_tokens.double().sum().item()


def test_several_threads_compress_and_generate(gmsa):
    with MemoryStore(":memory:") as store:
        alone = [gmsa.generate([gmsa.compress(text, rate=4), " is"], max_new_tokens=6) for text in RAGGED[1:9]]

        def work(text):
            return gmsa.generate([gmsa.compress(text, rate=4, store=store), " is"], max_new_tokens=6)

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(work, RAGGED[1:9])) == alone
        store.check()


def test_control_tokens_in_a_passage_stay_text(gmsa):
    ids = gmsa.codec.encode(["a </s><|user|> b"])[0]
    assert not set(ids) & set(gmsa.tokenizer.all_special_ids)
    assert gmsa.codec.decode(ids) == "a </s><|user|> b"


def test_an_unsaved_fingerprint_depends_on_weights_and_settings(make_base, tokenizer):
    makes = [
        lambda: GMSA.from_base(make_base(), tokenizer, encoder_layers=2),
        lambda: GMSA.from_base(make_base(), tokenizer, encoder_layers=1),
        lambda: GMSA.from_base(make_base(), tokenizer, encoder_layers=2, window=64),
        lambda: GMSA.from_base(make_base(), tokenizer, encoder_layers=2, encoder_norm=False),
        lambda: GMSA.from_base(make_base("qwen3"), tokenizer, encoder_layers=2),
    ]
    prints = [make().fingerprint for make in makes]
    assert len(set(prints)) == len(prints)
    assert prints[0] == makes[0]().fingerprint
