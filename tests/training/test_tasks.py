import dataclasses
import random
import re

import numpy as np
import pytest

from gmsa_rag.config import GMSAConfig
from gmsa_rag.errors import ConfigError, DataError
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.prompt import num_positions as prompt_positions
from gmsa_rag.inference.prompt import tokenise
from gmsa_rag.inference.tokens import TokenCodec
from gmsa_rag.training.cloze import BLANK, Cloze, as_question, make_cloze, sentences, shorten, thin
from gmsa_rag.training.data import Question, find_files, read_questions, token_stream
from gmsa_rag.training.examples import Passage, Segment, collate, num_positions
from gmsa_rag.training.prompts import AskedPassage
from gmsa_rag.training.tasks import COUNTED, Tasks, group_questions

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


def test_noise_changes_what_is_read_and_neither_the_passage_nor_what_is_learned(tasks):
    plain, noisy = (dataclasses.replace(tasks, noise=noise).draw({"restore": 1.0}) for noise in (0.0, 0.3))
    assert plain(random.Random(3))[-1].read is None
    changed, read = 0, 0
    for seed in range(40):
        _, passage, _, target = noisy(random.Random(seed))
        assert list(target.ids) == [*passage.ids, tasks.codec.end]
        assert set(target.read) <= set(target.ids)
        batch = collate([[Segment([0]), target]], window=256)
        assert batch.input_ids[0, 1:].tolist() == list(target.read) and batch.targets.tolist() == list(target.ids)
        changed += sum(a != b for a, b in zip(target.ids, target.read, strict=True))
        read += len(target.ids)
    assert 0.2 < changed / read < 0.3  # a token drawn in its own place stays as it is


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


@pytest.mark.parametrize("length", [1, 2, 10, 30, 60])
def test_short_documents_are_never_joined(tasks, length):
    codec = tasks.codec
    documents = [[200 + d % 40] * length for d in range(200)]
    stream = np.array([i for ids in documents for i in (*ids, codec.end)])
    short = dataclasses.replace(tasks, stream=stream)
    for name in ("restore", "continue", "quote"):
        for seed in range(30):
            example = short.draw({name: 1.0})(random.Random(seed))
            (passage,) = (part for part in example if isinstance(part, Passage))
            read = [i for part in example if isinstance(part, Segment) and part.learn for i in part.ids]
            body = {*passage.ids, *read} - {codec.end}
            assert len(body) == 1 and codec.end not in passage.ids and read
            assert len(passage.ids) <= length


def test_questions_too_long_for_the_prompt_are_told_of_once(tasks, caplog):
    cut = dataclasses.replace(tasks, max_positions=10)
    make = cut.draw({"question": 1.0})
    for seed in range(COUNTED * 2):
        make(random.Random(seed))
    assert [record.message for record in caplog.records] == [
        f"{COUNTED} of {COUNTED} question prompts were longer than max_positions 10, and clozes took their place: "
        "raise max_positions or the rates"
    ]


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
    alone, among = capital_question("Rome", []), capital_question("Rome", ["Paris", "Berlin"], gold=1)
    assert group_questions([alone, capital_question("Paris", ["Rome"]), among])[0] == [alone, among]


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


CAPITALS = {"Vienna": "Austria", "Berlin": "Germany", "Paris": "France", "Rome": "Italy", "Madrid": "Spain"}


def capital_question(city, others, gold=0):
    passages = [f"{other} is the capital of {CAPITALS[other]}." for other in others]
    passages.insert(gold, f"The capital of {CAPITALS[city]} is {city}.")
    titles = tuple(f"Page {number}" for number in range(len(passages)))
    return Question(f"What is the capital of {CAPITALS[city]}?", (city,), titles, tuple(passages), (gold,))


def asking(tasks, questions, **settings):
    """Tasks that ask these questions, of memories alone, with all their passages."""
    defaults = {"questions": group_questions(questions), "full_text": 0.0, "windows": (24, tasks.config.window)}
    stream = np.full(tasks.config.window * 2, 300, np.uint16)
    return dataclasses.replace(tasks, **(defaults | {"stream": stream, "max_positions": 2000} | settings))


def read(tasks, example):
    """Passages of an example, as texts."""
    return [tasks.codec.decode(part.ids) for part in example if isinstance(part, Passage)]


def test_a_citation_names_the_passage_that_holds_the_answer(tasks):
    asked = asking(tasks, [capital_question("Rome", ["Paris", "Berlin", "Vienna"], gold=2)], own_wording=1.0)
    numbers = set()
    for seed in range(60):
        example = asked.draw({"question": 1.0})(random.Random(seed))
        answer, number = re.fullmatch(r" (Rome) \[(\d)\]", learned(asked, example)[0]).groups()
        assert answer in read(asked, example)[int(number) - 1]
        numbers.add(number)
    assert numbers == {"1", "2", "3", "4"}


def test_further_turns_cite_as_the_first_one_does(tasks):
    city = capital_question("Rome", ["Paris"])
    land = dataclasses.replace(city, question="Of which country?", answers=("Italy",))
    brackets = dataclasses.replace(city, question="How is it written?", answers=("Rome.",))
    seen = set()
    for seed in range(80):
        asked = asking(tasks, [city, land, brackets], own_wording=float(seed % 2))
        first, *others = learned(asked, asked.draw({"question": 1.0})(random.Random(seed)))
        cited = first.rsplit(" ", 1)[-1]
        assert all(other.endswith(f" {cited}") == bool(seed % 2) for other in others)
        seen.add((seed % 2, len(others)))
    assert (0, 2) in seen and [count for own, count in seen if own] == [2]


def test_further_turns_end_where_the_prompt_is_full(tasks):
    question = capital_question("Rome", [])
    others = [dataclasses.replace(question, question=f"And {number}?") for number in range(6)]
    lengths = set()
    for seed in range(60):
        asked = asking(tasks, [question, *others], own_wording=1.0, max_positions=150)
        example = asked.draw({"question": 1.0})(random.Random(seed))
        assert num_positions(example) <= 150
        lengths.add(len(learned(asked, example)))
    assert 1 < max(lengths) < 7


def test_an_answer_in_brackets_is_no_citation(tasks):
    one = Question("Which type?", ("list[int]",), ("",), ("It returns list[int] or None.",), (0,))
    asked = asking(tasks, [one, dataclasses.replace(one, question="Or?", answers=("None",))], own_wording=0.0)
    found = [learned(asked, asked.draw({"question": 1.0})(random.Random(seed))) for seed in range(60)]
    assert any(answers[1:] for answers in found)
    assert all(answer in (" list[int]", " None") for answers in found for answer in answers)


def test_several_gold_passages_are_all_there_and_the_one_with_the_answer_is_cited(tasks):
    passages = ("Mozart lived in Vienna.", "Berlin lies on the Spree.", "Vienna lies on the Danube.")
    asked = asking(
        tasks, [Question("On what did Mozart live?", ("Danube",), ("", "", ""), passages, (0, 2))], own_wording=1.0
    )
    counts = set()
    for seed in range(40):
        example = asked.draw({"question": 1.0})(random.Random(seed))
        texts = read(asked, example)
        assert set(texts) >= {passages[0], passages[2]}
        assert learned(asked, example) == [f" Danube [{texts.index(passages[2]) + 1}]"]
        counts.add(len(texts))
    assert counts == {2, 3}


def test_short_windows_hold_the_answer_alone(tasks):
    passages = ("Mozart lived in Vienna.", "It is old. Vienna lies on the Danube. It is big.")
    question = Question("On what did Mozart live?", ("Danube",), ("", ""), passages, (0, 1))
    asked = asking(tasks, [question], windows=(1, 2), whole_passages=0.0)
    for seed in range(20):
        assert read(asked, asked.draw({"question": 1.0})(random.Random(seed))) == ["Vienna lies on the Danube."]


def test_borrowed_distractors_hold_no_answer_and_stand_beside_the_passage_that_does(tasks):
    questions = [capital_question("Rome", []), capital_question("Madrid", []), capital_question("Paris", ["Berlin"])]
    asked = asking(tasks, questions, distractors=1.0, own_wording=1.0)
    counts = set()
    for seed in range(60):
        example = asked.draw({"question": 1.0})(random.Random(seed))
        texts, answer = read(asked, example), learned(asked, example)[0]
        capital = answer.split()[0]
        holding = [index for index, text in enumerate(texts) if capital in text]
        assert [f"[{index + 1}]" for index in holding] == answer.split()[-1:]
        counts.add(len(texts))
    assert counts >= {2, 3, 4}


@pytest.mark.parametrize("refine", [0.0, 1.0])
def test_unanswerable_questions_have_no_passage_with_an_answer(tasks, refine):
    config = GMSAConfig(hidden_size=32, **TEMPLATES, no_answer="not in the passages")
    question = capital_question("Rome", ["Paris", "Berlin"])
    held = (*question.passages, "ROME was not built in a day.", "Roma has seven hills.")
    question = dataclasses.replace(
        question, answers=("Rome", "Roma"), passages=held, titles=("Italy", "", "", "", "")
    )  # fmt: skip
    asked = asking(tasks, [question], config=config, unanswerable=1.0, refine=refine)
    drawn = [asked.draw({"question": 1.0})(random.Random(seed)) for seed in range(60)]
    # Where all passages that were drawn hold an answer, the question stays as it is.
    emptied = [e for e in drawn if not learned(asked, e)[0].startswith(" Rome")]
    assert len(emptied) >= 30
    for example in emptied:
        assert [text.strip() for text in learned(asked, example)] == ["not in the passages"]
        assert set(read(asked, example)) <= set(question.passages[1:3])
        shown = asked.codec.decode([i for part in example if isinstance(part, Segment) for i in part.ids])
        assert "Rome" not in shown and "Roma" not in shown


def test_without_passages_of_its_own_an_unanswerable_question_gets_one_of_another(tasks):
    config = GMSAConfig(hidden_size=32, **TEMPLATES, no_answer="not in the passages")
    questions = [capital_question("Rome", []), capital_question("Madrid", [])]
    asked = asking(tasks, questions, config=config, unanswerable=1.0)
    for seed in range(20):
        example = asked.draw({"question": 1.0})(random.Random(seed))
        assert [text.strip() for text in learned(asked, example)] == ["not in the passages"]
        shown = asked.codec.decode([i for part in example if isinstance(part, Segment) for i in part.ids])
        assert ("Italy" in shown) == ("Spain" in read(asked, example)[0])


@pytest.mark.parametrize("no_answer", ["not in the passages", ""])
def test_a_question_whose_answer_is_everywhere_stays_answerable(tasks, no_answer):
    config = GMSAConfig(hidden_size=32, **TEMPLATES, no_answer=no_answer)
    asked = asking(tasks, [capital_question("Rome", [])], config=config, unanswerable=1.0)
    example = asked.draw({"question": 1.0})(random.Random(0))
    assert learned(asked, example)[0].startswith(" Rome")
