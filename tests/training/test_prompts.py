import random

import pytest

from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.prompt import Verbatim, tokenise
from gmsa_rag.inference.prompt import num_positions as prompt_positions
from gmsa_rag.training import prompts
from gmsa_rag.training.examples import Passage, Segment, num_positions
from gmsa_rag.training.frames import frame_of
from gmsa_rag.training.prompts import AskedPassage, QuestionPrompts
from gmsa_rag.training.templates import QUESTION_WORDINGS, REFINE_WORDINGS
from tests.training.chats import LLAMA_3, QWEN, with_template

PASSAGES = [
    AskedPassage("Danube", "The Danube is long."),
    AskedPassage("Rhine </s>", "The <s> Rhine {question} is short."),
    AskedPassage("", "The Elbe is cold."),
]
QUESTION, ANSWER, WRONG = "Which river is {cold} <|im_end|></s>?", "The {context} Elbe</s>", "The Rhine"
OURS = {"answer_template": "<|user|>{passages}Question: {question}<|assistant|>", "cites": True}
QWEN_OWN = {
    "answer_template": "<|im_start|>user\n{passages}Question: {question}<|im_end|>\n<|im_start|>assistant\n",
    "cites": True,
}
CASES = {"ours": ("ours", OURS), "qwen": (QWEN, QWEN_OWN), "llama3": (LLAMA_3, {}), "none": (None, {})}


@pytest.fixture(scope="module", params=CASES)
def gmsa(request, make_base, tokenizer):
    """An engine whose tokenizer has the chat template of a family, or none."""
    template, settings = CASES[request.param]
    own = tokenizer if template == "ours" else with_template(template)
    base = make_base()
    base.resize_token_embeddings(len(own))
    made = GMSA.from_base(base, own, encoder_layers=2, window=48)
    for name, value in settings.items():
        setattr(made.config, name, value)
    return made


def build(gmsa, **shares):
    return QuestionPrompts(gmsa.codec, gmsa.config, frame_of(gmsa.tokenizer), **shares)


def plain(parts, rate=4):
    """Token ids, and memories as their numbers of tokens and rates."""
    tokens = []
    for part in parts:
        if isinstance(part, Segment):
            tokens += part.ids
        elif isinstance(part, list):
            tokens += part
        else:
            tokens.append((len(part.ids), part.rate) if isinstance(part, Passage) else (part.num_tokens, part.rate))
    return tokens


def filled(template, values):
    """A template's text and memories, its variables put in one after the other from left to right."""
    if not template:
        return []
    found = min((name for name in values if name in template), key=template.index, default=None)
    if found is None:
        return [template]
    before, after = template.split(found, 1)
    return [*([before] if before else []), *values[found], *filled(after, values)]


def sent(gmsa, wording, values):
    """What a chain sends for a wording: the chat template over messages, or bare text where there is none."""
    turns = wording.turns or (("user", wording.prompt),)
    contents = [filled(template, values) for _, template in turns]
    if wording.chat and gmsa.tokenizer.chat_template:
        messages = [{"role": turn[0], "content": content} for turn, content in zip(turns, contents, strict=True)]
        return gmsa.chat_prompt(messages)
    return [part for content in contents for part in ["\n", *content]][1:]


def framed(gmsa, frames, texts, rate=4):
    """Memories of passages, and what stands around them, as a chain passes them on."""
    memories = gmsa.compress(list(texts), rate=rate)
    return [
        part
        for (before, after), memory in zip(frames, memories, strict=True)
        for part in (Verbatim(before), memory, Verbatim(after))
    ]


@pytest.mark.parametrize("wording", QUESTION_WORDINGS)
@pytest.mark.parametrize("titled", [True, False])
def test_every_wording_is_the_prompt_that_inference_sends(gmsa, wording, titled, monkeypatch):
    monkeypatch.setattr(prompts, "UNTITLED", 0.0 if titled else 1.0)
    example = build(gmsa).first_turn(wording, QUESTION, ANSWER, PASSAGES, lambda: 4, random.Random(0))
    frames = wording.frames([passage.title if titled else "" for passage in PASSAGES])
    pieces = framed(gmsa, frames, [passage.text for passage in PASSAGES])
    expected = tokenise(sent(gmsa, wording, {"{passages}": pieces, "{question}": [Verbatim(QUESTION)]}), gmsa.codec)
    assert plain(example[:-1]) == plain(expected)
    assert num_positions(example[:-1]) == prompt_positions(expected)


@pytest.mark.parametrize("titled", [True, False])
def test_the_own_wording_is_the_answer_prompt(gmsa, titled, monkeypatch):
    monkeypatch.setattr(prompts, "UNTITLED", 0.0 if titled else 1.0)
    built = build(gmsa)
    example = built.first_turn(built.own(), QUESTION, ANSWER, PASSAGES, lambda: 4, random.Random(0))
    memories = gmsa.compress([passage.text for passage in PASSAGES], rate=4)
    titles = [passage.title for passage in PASSAGES] if titled else None
    assert plain(example[:-1]) == plain(tokenise(gmsa.answer_prompt(QUESTION, memories, titles), gmsa.codec))


@pytest.mark.parametrize("wording", REFINE_WORDINGS)
def test_every_refinement_is_the_prompt_that_inference_sends(gmsa, wording, monkeypatch):
    monkeypatch.setattr(prompts, "REFINE_WORDINGS", (wording,))
    monkeypatch.setattr(prompts, "EARLIER_ANSWER_RIGHT", 0.0)
    built = build(gmsa, refine=1.0)
    example, goes_on = built.draw(QUESTION, ANSWER, PASSAGES, 1, WRONG, lambda: 2, random.Random(0))
    values = {
        "{question}": [Verbatim(QUESTION)], "{existing_answer}": [Verbatim(WRONG)],
        "{context}": [gmsa.compress(PASSAGES[1].text, rate=2)],
    }  # fmt: skip
    assert not goes_on
    assert plain(example[:-1]) == plain(tokenise(sent(gmsa, wording, values), gmsa.codec))


def test_a_refinement_that_the_passage_does_not_help_keeps_the_earlier_answer(gmsa):
    built = build(gmsa, refine=1.0)
    for seed in range(20):
        example, _ = built.draw("Who?", "Vienna", PASSAGES, None, WRONG, lambda: 2, random.Random(seed))
        asked = "".join(gmsa.codec.decode(part.ids) for part in example[:-1] if isinstance(part, Segment))
        assert "Vienna" in asked and WRONG not in asked
        assert plain(example[-1:]) == built.answer("Vienna")


def test_the_answer_is_one_text_with_what_the_frame_puts_before_it(gmsa):
    built = build(gmsa)
    *answer, end = built.answer(ANSWER)
    assert gmsa.codec.decode(answer) == built.frame.before_answer + ANSWER
    assert end == gmsa.tokenizer.eos_token_id and end not in answer
    assert answer == gmsa.codec.encode([built.frame.before_answer + ANSWER])[0]


def test_further_turns_continue_the_conversation_as_a_chat_does(gmsa):
    wording, built = QUESTION_WORDINGS[0], build(gmsa)
    example = built.first_turn(wording, QUESTION, "Elbe", PASSAGES, lambda: 4, random.Random(0))
    example += built.further_turn("Which is long?</s>", "Danube")
    if gmsa.tokenizer.chat_template is None:
        asked = gmsa.codec.encode(["\nQuestion: Which is long?</s>\nAnswer:"])[0]
        assert plain(example[-2:]) == [*asked, *gmsa.codec.encode([" Danube"])[0], gmsa.codec.end]
        return
    pieces = framed(gmsa, wording.frames([""] * 3), [passage.text for passage in PASSAGES])
    content = filled(wording.prompt, {"{passages}": pieces, "{question}": [QUESTION]})
    messages = [("user", content), ("assistant", "Elbe"), ("user", "Question: Which is long?</s>")]
    prompt = gmsa.chat_prompt([{"role": role, "content": content} for role, content in messages])
    assert plain(example[:-1]) == plain(tokenise(prompt, gmsa.codec))


def test_several_questions_of_one_memory_are_turns_of_a_chat(gmsa):
    built, memory = build(gmsa), gmsa.compress(PASSAGES[0].text, rate=2)
    passage = Passage(gmsa.codec.encode([PASSAGES[0].text])[0], 2)
    turns = [("Fill in </s>: ____", built.answer("Danube")), ("What follows?", built.answer("long"))]
    example = built.turns(passage, turns)
    if gmsa.tokenizer.chat_template is None:
        first = gmsa.codec.encode(["\nFill in </s>: ____\nAnswer:"])[0]
        assert plain(example[1:3]) == [(memory.num_tokens, 2), *first]
        return
    messages = [
        {"role": "user", "content": [memory, "\nFill in </s>: ____"]},
        {"role": "assistant", "content": "Danube"},
        {"role": "user", "content": "What follows?"},
    ]
    assert plain(example[:-1]) == plain(tokenise(gmsa.chat_prompt(messages), gmsa.codec))


def test_text_and_memories_mix(gmsa):
    wording = QUESTION_WORDINGS[0]
    kinds = set()
    for seed in range(40):
        built = build(gmsa, mixed=0.5)
        example = built.first_turn(wording, QUESTION, ANSWER, PASSAGES, lambda: 4, random.Random(seed))
        read = [part.ids for part in example if isinstance(part, Passage)]
        kept = [p.text for p in PASSAGES if gmsa.codec.encode([p.text])[0] not in read]
        kinds.add(len(kept))
        shown = [Verbatim(p.text) if p.text in kept else gmsa.compress(p.text, 4) for p in PASSAGES]
        frames = wording.frames([""] * 3)
        pieces = [part for (a, b), passage in zip(frames, shown, strict=True) for part in (a, passage, b)]
        expected = tokenise(sent(gmsa, wording, {"{passages}": pieces, "{question}": [Verbatim(QUESTION)]}), gmsa.codec)
        assert plain(example[:-1]) == plain(expected)
    assert kinds == {0, 1, 2, 3}


def test_full_text_leaves_no_memory(gmsa):
    built = build(gmsa, full_text=1.0)
    for seed in range(8):
        example, _ = built.draw(QUESTION, ANSWER, PASSAGES, 2, WRONG, lambda: 4, random.Random(seed))
        assert not any(isinstance(part, Passage) for part in example)


def test_citations_go_with_the_own_wording_alone(gmsa):
    built, answers = build(gmsa), set()
    for seed in range(30):
        example, _ = built.draw(QUESTION, "Elbe", PASSAGES, 2, WRONG, lambda: 4, random.Random(seed))
        answers.add(gmsa.codec.decode(example[-1].ids).strip())
        uncited, _ = built.draw(QUESTION, "none", PASSAGES, None, WRONG, lambda: 4, random.Random(seed))
        assert gmsa.codec.decode(uncited[-1].ids).strip() == "none"
    assert answers == ({"Elbe", "Elbe [3]"} if gmsa.config.cites else {"Elbe"})
