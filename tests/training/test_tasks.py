import dataclasses
import random

import pytest

from gmsa_rag.config import GMSAConfig
from gmsa_rag.errors import ConfigError, DataError
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.prompt import num_positions as prompt_positions
from gmsa_rag.inference.prompt import tokenise
from gmsa_rag.inference.tokens import TokenCodec
from gmsa_rag.training.cloze import BLANK, Cloze, as_question, make_cloze, sentences, shorten, thin
from gmsa_rag.training.data import find_files, read_questions, token_stream
from gmsa_rag.training.examples import Passage, Segment
from gmsa_rag.training.prompts import AskedPassage
from gmsa_rag.training.tasks import Tasks, group_questions

TEMPLATES = {
    "restore_template": "{memory}<|restore|>",
    "answer_template": "<|user|>{passages}Question: {question}<|assistant|>",
    "cites": True,
}


@pytest.fixture(scope="module")
def tasks(data, tokenizer, tmp_path_factory):
    codec, config = TokenCodec(tokenizer), GMSAConfig(hidden_size=32, **TEMPLATES)
    files = find_files(data, ["rivers"], "text", [".txt.gz"])
    stream = token_stream(files, codec, codec.end, tmp_path_factory.mktemp("cache"))
    questions = list(read_questions(data / "qa" / "rivers.train.jsonl"))
    return Tasks(codec, config, stream, (1, 4, 8), (24, 200), group_questions(questions), 0.2)


def learned(tasks, example):
    return [tasks.codec.decode(part.ids) for part in example if isinstance(part, Segment) and part.learn]


@pytest.mark.parametrize("name", ["restore", "continue", "quote", "cloze", "question"])
def test_every_task_draws_reproducibly_and_learns_something(tasks, name):
    make = tasks.draw({name: 1.0})
    for seed in range(40):
        example = make(random.Random(seed))
        assert example == make(random.Random(seed))
        assert all(text for text in learned(tasks, example))
        assert any(isinstance(part, Passage) for part in example) or name == "question"
        assert list(example[0].ids[:1]) == tasks.codec.prefix


def test_answers_stand_in_the_memory(tasks):
    for seed in range(60):
        example = tasks.draw({"cloze": 0.5, "quote": 0.5})(random.Random(seed))
        memory = tasks.codec.decode(next(part.ids for part in example if isinstance(part, Passage)))
        assert all(answer.strip() in memory for answer in learned(tasks, example))


def test_restoration_is_prompted_as_inference_does(tasks, make_base, tokenizer):
    gmsa = GMSA.from_base(make_base(), tokenizer, encoder_layers=2, window=256, **TEMPLATES)
    before, passage, after, target = tasks.draw({"restore": 1.0})(random.Random(1))
    memory = gmsa.compress(gmsa.codec.decode(passage.ids), rate=passage.rate)
    assert list(target.ids) == [*passage.ids, gmsa.tokenizer.eos_token_id]
    tokens = tokenise(["", memory, "<|restore|>"], gmsa.codec)
    assert [*before.ids] == tokens[0] and [*after.ids] == tokens[2]


def test_the_own_wording_equals_the_answer_prompt(tasks, data, make_base, tokenizer):
    gmsa = GMSA.from_base(make_base(), tokenizer, encoder_layers=2, window=256, **TEMPLATES)
    question = next(iter(read_questions(data / "qa" / "rivers.train.jsonl")))
    passages = [AskedPassage(*pair) for pair in zip(question.titles, question.passages, strict=True)]
    rng, prompts = random.Random(2), dataclasses.replace(tasks.prompts, full_text=0.0)
    answer = f"{question.answers[0]} [2]"
    while True:  # until every title is kept
        example = prompts.first_turn(prompts.own(), question.question, answer, passages, lambda: 4, rng)
        text = tasks.codec.decode([i for part in example if isinstance(part, Segment) for i in part.ids])
        if all(title in text for title in question.titles):
            break
    memories = gmsa.compress(list(question.passages), rate=4)
    parts = gmsa.answer_prompt(question.question, memories, question.titles)
    expected = tokenise(parts, gmsa.codec)
    prompt = [i for part in example[:-1] if isinstance(part, Segment) for i in part.ids]
    assert prompt == [i for part in expected if isinstance(part, list) for i in part]
    assert learned(tasks, example) == [f" {question.answers[0]} [2]"]
    assert prompt_positions(expected) == gmsa.num_positions(parts)


def test_an_unknown_task_is_a_typed_error(tasks):
    with pytest.raises(ConfigError, match="sing"):
        tasks.draw({"sing": 1.0})


def test_what_cannot_be_drawn_is_a_typed_error(tasks):
    with pytest.raises(DataError, match="more than 232 tokens"):
        dataclasses.replace(tasks, stream=tasks.stream[:200])
    with pytest.raises(ConfigError, match="question files"):
        dataclasses.replace(tasks, questions=()).draw({"question": 1.0})


def test_questions_of_the_same_passages_are_grouped(data):
    questions = list(read_questions(data / "qa" / "rivers.train.jsonl"))
    groups = group_questions([*questions, questions[0]])
    assert len(groups) == 40 and len(groups[0]) == 2


def test_sentences_and_blanks():
    text = "The Danube rises in the Black Forest. It is 2,850 km long (about). Vienna lies there."
    assert len(sentences(text)) == 3
    rng = random.Random(0)
    drawn = {make_cloze(sentences(text)[1], rng).answer for _ in range(9)}
    assert drawn == {"2,850"}
    assert make_cloze("It is there.", rng) is None
    cloze = Cloze("The Danube rises in the ", "Black Forest", ".")
    assert cloze.text == f"The Danube rises in the {BLANK}."
    assert BLANK in thin(cloze.text, 0.99, rng)
    for _ in range(20):
        question = as_question(cloze, rng)
        assert question.endswith("?") and "Black Forest" not in question


def test_a_text_is_shortened_around_its_answer():
    text = "One is first. Two has gold here. Three is third. Four ends it."
    for seed in range(20):
        rng = random.Random(seed)
        assert shorten(text, "gold", 1, rng) == "Two has gold here."
        around = shorten(text, "gold", 7, rng)
        assert "gold" in around and around in text and len(around.split()) >= 7
        assert shorten(text, "gold", 99, rng) == text
        assert shorten(text, "silver", 3, rng) == text
