import logging
import threading

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import GenerationConfig

from gmsa_rag.errors import ConfigError
from gmsa_rag.inference.decoders import sessions, static
from gmsa_rag.inference.decoders.local import LocalDecoder
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.generation import Sampling
from gmsa_rag.inference.stopping import stopped_when
from tests.conftest import FAMILIES

LENGTHS = (9, 23, 1, 40)
STATIC = {family: {"sliding_window": None} if family == "mistral" else {} for family in FAMILIES if family != "gemma2"}


@pytest.fixture(scope="module")
def embedded():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn((length, 32), generator=generator) for length in LENGTHS]


@pytest.fixture
def decoder(make_base, tokenizer):
    """Builds a decoder of a family; window 256."""
    codec = GMSA.from_base(make_base(), tokenizer, encoder_layers=2, window=48).codec

    def build(family="llama", cache="auto", **settings):
        return LocalDecoder(make_base(family, **settings), codec, 256, cache)

    return build


def by_transformers(model, prompts, **settings):
    """Token ids that transformers' own generate gives for left-padded prompts."""
    width = max(map(len, prompts))
    embeds = torch.stack([torch.nn.functional.pad(p, (0, 0, width - len(p), 0)) for p in prompts])
    mask = torch.stack([torch.arange(width) >= width - len(p) for p in prompts]).long()
    end, pad = model.generation_config.eos_token_id, model.config.pad_token_id
    config = GenerationConfig(eos_token_id=end, pad_token_id=pad, num_beams=1, top_k=0, **settings)
    with torch.inference_mode():
        rows = model.generate(inputs_embeds=embeds, attention_mask=mask, generation_config=config).tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_transformers(decoder, embedded, family):
    made = decoder(family)
    for prompts in (embedded, embedded[1:2]):
        expected = by_transformers(made.model, prompts, max_new_tokens=20, do_sample=False)
        assert made.generate_ids(prompts, Sampling(20)) == expected


@pytest.mark.parametrize("settings", [{"temperature": 0.8}, {"temperature": 1.0, "top_p": 0.7}])
def test_drawn_tokens_are_those_of_transformers(decoder, embedded, settings):
    made = decoder()
    torch.manual_seed(5)
    expected = by_transformers(made.model, embedded[1:2], max_new_tokens=20, do_sample=True, **settings)
    torch.manual_seed(5)
    assert made.generate_ids(embedded[1:2], Sampling(20, **settings)) == expected
    assert made.generate_ids(embedded[1:2], Sampling(20, seed=5, **settings)) == expected


@pytest.mark.parametrize("family", STATIC)
@pytest.mark.parametrize("longest_recorded", [1_024, 16])
def test_a_static_cache_gives_the_tokens_of_a_growing_one(decoder, embedded, family, longest_recorded, monkeypatch):
    monkeypatch.setattr(static, "LONGEST_RECORDED", longest_recorded)
    growing, fixed = (decoder(family, cache, **STATIC[family]) for cache in ("dynamic", "static"))
    for prompts in (embedded, embedded[:3], embedded[3:], embedded[1:2]):
        assert fixed.generate_ids(prompts, Sampling(20)) == growing.generate_ids(prompts, Sampling(20))


class Imitation(TorchDispatchMode):
    """What a CUDA graph does, on a CPU: the same operations on the same tensors again, and nothing that waits."""

    def __init__(self, function, *_where):
        super().__init__()
        function()
        self.operations = []
        with self:
            self.output = function()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "a graph cannot wait for a value"
        outputs = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, outputs))
        return outputs

    def __call__(self):
        for func, args, kwargs, outputs in self.operations:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(outputs), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)
        return self.output.clone()


@pytest.mark.parametrize("family", STATIC)
def test_steps_can_be_recorded_and_replayed(decoder, embedded, family, monkeypatch):
    monkeypatch.setattr(static, "Recorded", Imitation)
    growing, fixed = (decoder(family, cache, **STATIC[family]) for cache in ("dynamic", "static"))
    monkeypatch.setattr(static, "new_pool", lambda: (0, 0))
    monkeypatch.setattr(fixed._sessions, "_records", lambda: True)
    for prompts in (embedded[:1], embedded[1:2], embedded, embedded[:1]):
        assert fixed.generate_ids(prompts, Sampling(12)) == growing.generate_ids(prompts, Sampling(12))


def test_a_static_cache_is_used_again_and_makes_room(decoder, embedded, monkeypatch):
    made = decoder(cache="static")
    built = []
    steps = sessions.StaticSteps
    monkeypatch.setattr(sessions, "StaticSteps", lambda *args: built.append(args[1:3]) or steps(*args))
    for prompts in (embedded[:1], embedded[1:2], embedded[:3], embedded):
        made.generate_ids(prompts, Sampling(2))
    assert built == [(1, 256), (4, 256)]
    monkeypatch.setattr(sessions, "MAX_POSITIONS", 1_100)
    made.generate_ids(embedded[:2], Sampling(2))  # both others have to go
    made.generate_ids(embedded[:1], Sampling(2))
    assert built[2:] == [(2, 256), (1, 256)]
    monkeypatch.setattr(sessions, "MAX_POSITIONS", 100)
    before = len(built)
    expected = decoder().generate_ids(embedded[:2], Sampling(9))
    assert made.generate_ids(embedded[:2], Sampling(9)) == expected and len(built) == before


def test_generations_at_the_same_time_have_caches_of_their_own(decoder, embedded):
    made = decoder(cache="static")
    expected = [made.generate_ids([prompt], Sampling(16))[0] for prompt in embedded]
    found = {}
    threads = [
        threading.Thread(target=lambda at=at: found.update({at: made.generate_ids([embedded[at]], Sampling(16))[0]}))
        for at in range(len(embedded))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[at] for at in range(len(embedded))] == expected


def test_a_model_that_changed_its_weights_place_gets_new_caches(decoder, embedded):
    made = decoder(cache="static")
    made.generate_ids(embedded, Sampling(4))
    made.model.double()
    growing = LocalDecoder(made.model, made.codec, 256, "dynamic")
    assert made.generate_ids(embedded, Sampling(12)) == growing.generate_ids(embedded, Sampling(12))


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("gemma2", {}, "family gemma2"),
        ("mistral", {"sliding_window": 64}, "sliding window"),
        ("llama", {"attn_implementation": "eager"}, "not sdpa"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "rotary"),
    ],
)
def test_who_cannot_have_a_static_cache_is_told_why(decoder, family, settings, reason):
    with pytest.raises(ConfigError, match=reason):
        decoder(family, "static", **settings)
    made = decoder(family, **settings)
    with pytest.raises(ConfigError, match=reason):
        made.cache = "static"
    with pytest.raises(ConfigError, match="auto"):
        made.cache = "frozen"
    assert made.cache == "auto"


def test_what_was_chosen_is_logged_once(decoder, embedded, caplog):
    made = decoder()
    with caplog.at_level(logging.INFO, "gmsa_rag"):
        for _ in range(2):
            made.generate_ids(embedded[:1], Sampling(1))
    assert [record.message for record in caplog.records] == ["decoding with a growing cache: not on CUDA"]


def test_there_may_be_several_end_tokens_and_none_before_its_time(decoder, embedded, monkeypatch):
    made = decoder()
    monkeypatch.setattr(made.model.generation_config, "eos_token_id", None)
    ids = made.generate_ids(embedded[:1], Sampling(12))[0]
    monkeypatch.setattr(made.model.generation_config, "eos_token_id", [ids[4], 399])
    assert len(ids) == 12
    assert made.generate_ids(embedded[:1], Sampling(12))[0] == ids[: ids.index(ids[4])]
    longer = made.generate_ids(embedded[:1], Sampling(12, min_new_tokens=12))[0]
    assert len(longer) == 12 and not {ids[4], 399} & set(longer)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_text_says_whether_it_ended_or_was_cut_off(decoder, embedded, monkeypatch, cache):
    made = decoder(cache=cache)
    monkeypatch.setattr(made.model.generation_config, "eos_token_id", None)
    rows = made.generate_ids(embedded, Sampling(12))
    end = rows[0][4]
    monkeypatch.setattr(made.model.generation_config, "eos_token_id", end)
    ends = [row.index(end) if end in row else None for row in rows]
    assert len(set(ends)) > 1  # one row at least ends, and another does not
    for limit in (ends[0], ends[0] + 1, 12):
        sampling = Sampling(limit)
        expected = ["length" if at is None or at >= limit else "stop" for at in ends]
        assert [text.finish_reason for text in made.generate(embedded, sampling)] == expected
        streams = [made.stream(prompt, sampling) for prompt in embedded]
        assert [("".join(s), s.finish_reason) for s in streams] == [
            (text.text, text.finish_reason) for text in made.generate(embedded, sampling)
        ]


def test_a_stop_string_ends_a_text_and_the_window_cuts_it_off(decoder, embedded, monkeypatch):
    made = decoder()
    monkeypatch.setattr(made.model.generation_config, "eos_token_id", None)
    [text] = made.generate(embedded[:1], Sampling(12))
    [stopped] = made.generate(embedded[:1], Sampling(12, stop=(text.text[-3:],)))
    assert (text.finish_reason, stopped.finish_reason) == ("length", "stop")
    made.window = len(embedded[0]) + 3
    [cut] = made.generate(embedded[:1], Sampling(12))
    assert cut.finish_reason == "length" and text.text.startswith(cut.text)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_who_stops_a_generation_gets_what_there_is_of_it(decoder, embedded, cache):
    made = decoder(cache=cache)
    whole, text = made.generate_ids(embedded, Sampling(20)), "".join(made.stream(embedded[0], Sampling(20)))
    asked = iter([False, False, False, True])
    with stopped_when(lambda: next(asked)):
        assert made.generate_ids(embedded, Sampling(20)) == [ids[:3] for ids in whole]
    asked = iter([False, False, True])
    with stopped_when(lambda: next(asked)):
        assert "".join(made.stream(embedded[0], Sampling(20))) == made.codec.decode(whole[0][:2]) != text
    with stopped_when(lambda: True):
        assert made.generate_ids(embedded, Sampling(20)) == [[], [], [], []]
    assert made.generate_ids(embedded, Sampling(20)) == whole


def test_prompt_near_the_end_of_the_window_does_not_cut_its_batch_short(gmsa: GMSA) -> None:
    long = "Danube "
    while gmsa.num_positions(long) < gmsa.decoder_window - 8:
        long += "x"
    prompts = [[long], ["Lise"], ["Vienna"]]
    assert gmsa.generate(prompts, max_new_tokens=20) == [gmsa.generate(p, max_new_tokens=20) for p in prompts]


@pytest.mark.parametrize(("positions", "slots"), [(1, 256), (256, 256), (257, 384), (385, 512), (3_000, 3_072)])
def test_slots_come_in_few_sizes(positions, slots):
    assert sessions.slots_of(positions) == slots


@pytest.mark.parametrize(("rows", "padded"), [(1, 1), (2, 2), (3, 4), (8, 8), (9, 16)])
def test_rows_come_in_powers_of_two(rows, padded):
    assert sessions.rows_of(rows) == padded
