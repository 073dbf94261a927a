import dataclasses
import logging
from itertools import pairwise

import pytest
import torch

from gmsa_rag.errors import (
    ConfigError,
    FingerprintError,
    InputError,
    InputTypeError,
    PromptTooLongError,
    ShapeError,
)
from gmsa_rag.inference.decoders import local
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.generation import Generated
from gmsa_rag.inference.prompt import Answer, Verbatim, parse_answer, passage_frame
from tests.conftest import FAMILIES, TEXT

QUESTION = "\nQuestion: Where does it begin?\nAnswer:"


@pytest.fixture(scope="module")
def memories(gmsa):
    return gmsa.compress([TEXT[: 20 + 11 * i] for i in range(16)], rate=4)


def greedy(gmsa, parts, count):
    """Greedy decoding without cache, padding or generate(): one full forward pass a token."""
    table = gmsa.decoder.get_input_embeddings()
    pieces = [table(torch.tensor([gmsa.tokenizer.bos_token_id]))]
    for part in parts:
        pieces.append(table(torch.tensor(gmsa.codec.encode([part])[0])) if isinstance(part, str) else part.soft_tokens)
    embeds, ids = torch.cat(pieces)[None], []
    with torch.no_grad():
        for _ in range(count):
            token = int(gmsa.decoder(inputs_embeds=embeds).logits[0, -1].argmax())
            if token == gmsa.tokenizer.eos_token_id:
                break
            ids.append(token)
            embeds = torch.cat([embeds, table(torch.tensor([[token]]))], dim=1)
    return gmsa.codec.decode(ids)


def test_generation_equals_plain_greedy_decoding(gmsa, memories):
    parts = ["Read this: ", memories[3], " and this: ", memories[9], QUESTION]
    assert gmsa.generate(parts, max_new_tokens=10) == greedy(gmsa, parts, 10)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_ragged_batch_of_16_equals_16_single_calls(make_base, tokenizer, family):
    made = GMSA.from_base(make_base(family), tokenizer, encoder_layers=2, window=48)
    memories = made.compress([TEXT[: 20 + 11 * i] for i in range(16)], rate=4)
    prompts = [[memory, QUESTION[: 10 + i]] for i, memory in enumerate(memories)]
    assert made.generate(prompts, max_new_tokens=8) == [made.generate(p, max_new_tokens=8) for p in prompts]


def test_the_memory_matters(gmsa, memories):
    texts = gmsa.generate([[memory, QUESTION] for memory in memories], max_new_tokens=8)
    assert len(set(texts)) > 8


def test_batches_are_cut_by_the_position_budget(gmsa, memories, monkeypatch):
    prompts = [[memory, QUESTION] for memory in memories]
    whole = gmsa.generate(prompts, max_new_tokens=6)
    monkeypatch.setattr(local, "BATCH_POSITIONS", 100)
    assert gmsa.generate(prompts, max_new_tokens=6) == whole


def test_the_stream_adds_up_to_the_text(gmsa, memories):
    for memory in memories[:4]:
        pieces = list(gmsa.stream([memory, QUESTION], max_new_tokens=24))
        assert "".join(pieces) == gmsa.generate([memory, QUESTION], max_new_tokens=24)
        assert all(pieces) and len(pieces) > 1


def test_details_say_why_a_text_ended(gmsa, memories):
    prompt = [memories[5], QUESTION]
    whole = gmsa.generate(prompt, max_new_tokens=8)
    assert gmsa.generate(prompt, max_new_tokens=8, details=True) == Generated(whole, "length")
    settings = {"max_new_tokens": 8, "stop": whole[3:6]}
    stopped = Generated(whole[: whole.find(whole[3:6])], "stop")
    assert gmsa.generate([prompt, prompt], details=True, **settings) == [stopped, stopped]
    stream = gmsa.stream(prompt, **settings)
    assert Generated("".join(stream), stream.finish_reason) == stopped
    assert gmsa.answer("Who?", [memories[0]], max_new_tokens=1).finish_reason == "length"


def test_stop_strings_end_text_and_stream(gmsa, memories):
    whole = gmsa.generate([memories[5], QUESTION], max_new_tokens=40)
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    expected = whole[: whole.find(stop)]
    assert gmsa.generate([memories[5], QUESTION], max_new_tokens=40, stop=stop) == expected
    assert "".join(gmsa.stream([memories[5], QUESTION], max_new_tokens=40, stop=[stop, "never"])) == expected


def test_a_stream_can_be_left_early(gmsa, memories, monkeypatch):
    steps = []
    forward = gmsa.decoder.forward
    monkeypatch.setattr(gmsa.decoder, "forward", lambda **kwargs: steps.append(1) or forward(**kwargs))
    stream = gmsa.stream([memories[0], QUESTION], max_new_tokens=200)
    next(stream)
    stream.close()
    assert 1 <= len(steps) < 100
    assert gmsa.generate([memories[0], QUESTION], max_new_tokens=3)


def test_an_error_in_the_stream_reaches_the_reader(gmsa, memories, monkeypatch):
    def fail(*_args, **_kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gmsa.decoder, "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(gmsa.stream([memories[0], QUESTION]))


def test_sampling_draws(gmsa, memories):
    torch.manual_seed(0)
    drawn = {gmsa.generate([memories[0], QUESTION], temperature=1.5, top_p=0.95, max_new_tokens=8) for _ in range(4)}
    assert len(drawn) > 1


def test_a_seed_makes_what_is_drawn_repeatable(gmsa, memories):
    settings = {"temperature": 1.5, "max_new_tokens": 8}
    drawn = [gmsa.generate([memories[0], QUESTION], seed=seed, **settings) for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert "".join(gmsa.stream([memories[0], QUESTION], seed=3, **settings)) == drawn[0]


def test_a_base_s_own_generation_settings_stay_out(gmsa, memories, monkeypatch):
    plain = gmsa.generate([memories[3], QUESTION], max_new_tokens=12)
    monkeypatch.setattr(gmsa.decoder.generation_config, "repetition_penalty", 1.9)
    monkeypatch.setattr(gmsa.decoder.generation_config, "no_repeat_ngram_size", 1)
    assert gmsa.generate([memories[3], QUESTION], max_new_tokens=12) == plain


def test_restoration_goes_window_by_window(gmsa):
    memory = gmsa.compress(TEXT, rate=4)
    windows = [gmsa.codec.decode(gmsa.codec.encode([TEXT])[0][a:b]) for a, b in pairwise(memory.borders)]
    assert len(windows) > 2
    assert gmsa.restore(memory) == "".join(gmsa.restore(gmsa.compress(window, rate=4)) for window in windows)
    assert gmsa.restore(gmsa.compress("")) == ""


def test_prompts_are_str_and_memory(gmsa, memories):
    assert gmsa.generate([]) == []
    for prompt in (["a", 3], [memories[0], None], 7, None, [["a"], ["b", 2]]):
        with pytest.raises(InputTypeError, match="str and Memory"):
            gmsa.generate(prompt)
    for prompt in ("", [""], [[]], [gmsa.compress("")]):
        with pytest.raises(InputError, match="empty"):
            gmsa.generate(prompt)
    assert gmsa.generate("Hello", max_new_tokens=4) == gmsa.generate(["Hel", "lo"], max_new_tokens=4)


def test_memories_of_other_weights_are_refused(gmsa, memories):
    foreign = dataclasses.replace(memories[0], fingerprint="0" * 64)
    for use in (gmsa.restore, lambda m: gmsa.generate([m, "a"]), lambda m: gmsa.answer("a", [m])):
        with pytest.raises(FingerprintError, match="Compress the passage again"):
            use(foreign)
    thin = dataclasses.replace(memories[0], soft_tokens=memories[0].soft_tokens[:, :16])
    with pytest.raises(ShapeError, match="width 32"):
        gmsa.generate([thin, "a"])


def test_a_prompt_beyond_the_window_says_by_how_much(gmsa):
    fits = gmsa.num_positions(["a"])
    text = "a" * 400
    over = gmsa.num_positions([text]) - 255
    assert fits < 255 < gmsa.num_positions([text])
    with pytest.raises(PromptTooLongError, match=f"{over} too many") as caught:
        gmsa.generate([text])
    assert caught.value.excess == over
    with pytest.raises(PromptTooLongError):
        gmsa.generate([text], overflow="drop_last")  # a question alone cannot be dropped
    with pytest.raises(InputError, match="drop_last"):
        gmsa.generate(["a"], overflow="truncate")


def test_overflow_drops_passages_from_the_end_and_reports(gmsa, caplog):
    memory = gmsa.compress(TEXT, rate=1)
    count = 255 // memory.num_soft_tokens
    passages = [memory] * (count + 2)
    with pytest.raises(PromptTooLongError):
        gmsa.answer("Where?", passages)
    answer = gmsa.answer("Where?", passages, max_new_tokens=4, overflow="drop_last")
    kept = len(passages) - len(answer.dropped)
    assert answer.dropped == tuple(range(kept + 1, len(passages) + 1)) and 1 <= kept < len(passages)
    assert answer.text == gmsa.answer("Where?", passages[:kept], max_new_tokens=4).text
    with caplog.at_level(logging.WARNING):
        gmsa.generate([*passages, QUESTION], max_new_tokens=4, overflow="drop_last")
    assert "left out the last" in caplog.text


def test_generation_ends_where_the_window_does(gmsa, monkeypatch):
    seen = []
    forward = gmsa.decoder.forward
    monkeypatch.setattr(gmsa.decoder, "forward", lambda **kwargs: seen.append(1) or forward(**kwargs))
    monkeypatch.setattr(gmsa.decoder.generation_config, "eos_token_id", None)
    gmsa.generate("a" * 250, max_new_tokens=10_000)
    assert len(seen) == 256 - gmsa.num_positions("a" * 250)


def test_answers_use_the_templates(gmsa, memories):
    parts = gmsa.answer_prompt("Who?", [memories[0], "plain text"], titles=["Danube", ""])
    text = "".join(p if isinstance(p, str) else "<memory>" for p in parts)
    assert text == "[1] Danube\n<memory>\n[2]\nplain text\n\nQuestion: Who?\nAnswer:"
    assert gmsa.answer("Who?", [memories[0]], max_new_tokens=5) == Answer(
        gmsa.generate(gmsa.answer_prompt("Who?", [memories[0]]), max_new_tokens=5).strip(), finish_reason="length"
    )
    with pytest.raises(InputError, match="titles"):
        gmsa.answer("Who?", memories[:2], titles=["one"])
    with pytest.raises(InputTypeError, match="passage"):
        gmsa.answer("Who?", [3])
    for passages in ("one passage", memories[0]):
        with pytest.raises(InputTypeError, match="Put it into a list"):
            gmsa.answer("Who?", passages)
    with pytest.raises(InputTypeError, match="a str"):
        gmsa.answer("Who?", memories[:1], titles=[None])
    with pytest.raises(InputTypeError, match="max_new_tokens"):
        gmsa.answer("Where?", ["a"], max_new_tokens="16", overflow="drop_last")
    with pytest.raises(InputTypeError, match="question"):
        gmsa.answer(None, [])


@pytest.mark.parametrize(
    ("template", "title", "frame"),
    [
        ("[{number}] {title}\n{passage}\n", "Danube", ("[2] Danube\n", "\n")),
        ("[{number}] {title}\n{passage}\n", "", ("[2]\n", "\n")),
        ("{title}: {passage}\n", "", ("", "\n")),
        ("Source {number} ({title}): {passage}", "", ("Source 2: ", "")),
        ("[{number}] {title}\n{passage}", "{number} {passage}", ("[2] {number} {passage}\n", "")),
    ],
)
def test_an_empty_title_leaves_no_gap(template, title, frame):
    assert passage_frame(template, 2, title) == frame


def test_citations_are_parted_from_the_answer(gmsa):
    cites = type(gmsa.config)(cites=True)
    assert parse_answer(" Vienna [2] [1] [2]", cites) == Answer("Vienna", (2, 1))
    assert parse_answer(" Vienna", cites) == Answer("Vienna")
    assert parse_answer(" the array[3] of Vienna [1]", cites) == Answer("the array[3] of Vienna", (1,))
    assert parse_answer(" see [2]", gmsa.config) == Answer("see [2]")


@pytest.mark.parametrize(
    ("said", "text", "citations"),
    [
        ("Vienna [1].", "Vienna.", (1,)),
        ("Vienna [1, 2]", "Vienna", (1, 2)),
        ("Vienna [2],[1] ;\n[3]", "Vienna", (2, 1, 3)),
        ("Bern [1], Rome [3].", "Bern, Rome.", (1, 3)),
        ("It is Bern [1]. It was Rome [1] then.", "It is Bern. It was Rome then.", (1,)),
        ("Vienna [1", "Vienna", ()),
        ("Vienna [1] [", "Vienna", (1,)),
        ("Vienna [7]", "Vienna", ()),
        ("Vienna [0] [3]", "Vienna", (3,)),
        ("see [7] there", "see [7] there", ()),
        ("a[0] = 1", "a[0] = 1", ()),
        ("of [1990]", "of [1990]", ()),
        ("Yes!", "Yes!", ()),
        ("", "", ()),
    ],
)
def test_a_bare_answer_has_no_citations_left_and_names_passages_alone(gmsa, said, text, citations):
    cites = type(gmsa.config)(cites=True)
    assert parse_answer(said, cites, num_passages=3) == Answer(text, citations)


def test_a_long_run_of_spaces_is_parted_at_once(gmsa):
    cites = type(gmsa.config)(cites=True)
    assert parse_answer("a" + " " * 100_000 + "b [1]", cites).citations == (1,)


@pytest.mark.parametrize("said", ["not in the passages", " Not in the passages.", "NOT in the passages! [1]"])
def test_an_abstaining_answer_is_known_by_its_words(gmsa, said):
    config = type(gmsa.config)(cites=True, no_answer="Not in the passages.")
    assert parse_answer(said, config).abstained
    assert not parse_answer(said, type(gmsa.config)(cites=True)).abstained


def test_control_tokens_of_users_stay_text(gmsa):
    end = gmsa.tokenizer.eos_token_id
    assert gmsa.num_positions(["a</s>"]) == 3
    assert gmsa.num_positions([Verbatim("a</s>")]) > 3
    question = gmsa.num_positions(gmsa.answer_prompt("</s>", []))
    assert question - gmsa.num_positions(gmsa.answer_prompt("a", [])) >= 2
    assert end not in gmsa.codec.encode(["</s>"])[0]


def test_a_prompt_is_tokenised_as_one_text_whatever_its_parts(gmsa):
    assert gmsa.num_positions(["The Dan", "ube be", "gins"]) == gmsa.num_positions(["The Danube begins"])


def test_a_prompt_is_tokenised_once(gmsa, memories, monkeypatch):
    calls = []
    encode = gmsa.codec.encode
    monkeypatch.setattr(gmsa.codec, "encode", lambda texts: calls.append(len(texts)) or encode(texts))
    prompt = gmsa.answer_prompt("Where?", memories[:3])
    gmsa.generate(prompt, max_new_tokens=2)
    list(gmsa.stream(prompt, max_new_tokens=2))
    gmsa.answer("Where?", memories[:3], max_new_tokens=2)
    gmsa.answer("Where?", memories[:3], max_new_tokens=2, overflow="drop_last")
    assert calls == [4] * 4  # a piece of text around each memory, all in one call


def test_a_leading_control_token_is_not_doubled(gmsa):
    assert gmsa.num_positions(["<s>The Danube"]) == gmsa.num_positions(["The Danube"])


def test_chat_prompts_hold_memories_and_verbatim_text(gmsa, memories):
    parts = gmsa.chat_prompt([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [memories[0], "\nWhere? <|assistant|>"]},
        {"role": "user", "content": "Please."},
    ])  # fmt: skip
    assert [p for p in parts if not isinstance(p, str)] == [memories[0]]
    assert "".join(p for p in parts if isinstance(p, str)) == (
        "<s><|user|>Be brief.<|user|>\nWhere? <|assistant|>\nPlease.<|assistant|>"
    )
    assert any(isinstance(p, Verbatim) and "<|assistant|>" in p for p in parts)
    with pytest.raises(InputError, match="at least one"):
        gmsa.chat_prompt([])


def test_without_a_chat_template_there_is_no_chat(gmsa, monkeypatch):
    monkeypatch.setattr(gmsa.tokenizer, "chat_template", None)
    with pytest.raises(ConfigError, match="a chat template"):
        gmsa.chat_prompt([{"role": "user", "content": "a"}])


@pytest.mark.parametrize(("setting", "value"), [("device", "cuda:99"), ("dtype", "int8"), ("dtype", "float99")])
def test_an_unknown_device_or_dtype_is_a_typed_error(gmsa, tmp_path, setting, value):
    gmsa.save_pretrained(tmp_path / "c")
    with pytest.raises(ConfigError, match=setting):
        GMSA.from_pretrained(tmp_path / "c", **{setting: value})


def test_an_unknown_control_token_is_a_typed_error(gmsa):
    with pytest.raises(ConfigError, match="control token"):
        gmsa.codec.control_id("<|nobody|>")


def test_a_restoration_that_cannot_fit_is_a_typed_error(make_base, tokenizer):
    made = GMSA.from_base(make_base(), tokenizer, encoder_layers=2, window=400)
    memory = made.compress(TEXT * 4, rate=4)
    with pytest.raises(PromptTooLongError):
        made.restore(memory)


def test_an_unknown_setting_is_a_typed_error(make_base, tokenizer):
    with pytest.raises(ConfigError, match="windw"):
        GMSA.from_base(make_base(), tokenizer, encoder_layers=2, windw=64)
