import copy

import pytest

from gmsa_rag.errors import InputError, PromptTooLongError
from gmsa_rag.evaluation import asking, conditions, qa, selection
from gmsa_rag.evaluation.asking import fit_prompt
from gmsa_rag.evaluation.conditions import CONDITIONS
from gmsa_rag.evaluation.qa import evaluate_questions
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.prompt import Answer
from gmsa_rag.memory.keys import memory_key
from gmsa_rag.memory.memory import Memory
from gmsa_rag.modeling.checkpoint import Checkpoint
from gmsa_rag.training.data import Question

RIVERS = ("Danube", "Rhine", "Elbe", "Loire")


def ask(river: str, kind: str = "sea", *, far: str = "Volga") -> Question:
    passages = (f"The {far} is far away.", f"The {river} flows to the {kind} of {river}.")
    return Question(f"Where does the {river} flow?", (f"{kind} of {river}",), (far, river), passages, (1,))


QUESTIONS = [ask(river) for river in RIVERS] + [ask(river, "lake", far="Ob") for river in RIVERS]


class Reader(GMSA):
    """Answers rightly where it sees the right passage, as a memory or as text; records what it was given."""

    def __init__(self, gmsa: GMSA, questions: list[Question], *, cites: bool = True) -> None:
        config = copy.deepcopy(gmsa.config)
        config.cites = cites
        config.fingerprint = gmsa.fingerprint
        super().__init__(Checkpoint(config, gmsa.compressor, gmsa.decoder, gmsa.tokenizer))
        self.questions = questions
        self.prompts: list[list[object]] = []
        self.compressed: list[tuple[int, str]] = []

    def compress(self, passages, rate=8, *, store=None):  # type: ignore[no-untyped-def,override]
        self.compressed += [(rate, text) for text in passages]
        return super().compress(passages, rate, store=store)

    def generate(self, prompt, **settings):  # type: ignore[no-untyped-def,override]
        self.prompts += [list(parts) for parts in prompt]
        return [self._answer(list(parts)) for parts in prompt]

    def _answer(self, parts: list[object]) -> str:
        seen = {part.key if isinstance(part, Memory) else str(part) for part in parts}
        for question in self.questions:
            for index in question.gold:
                text = question.passages[index]
                keys = {memory_key(self.fingerprint, rate, text) for rate in (2, 4)}
                if question.question in seen and (text in seen or keys & seen):
                    return f" {question.answers[0]} [{index + 1}]"
        return " no idea [7]"


def test_every_condition_gets_what_its_name_says(gmsa: GMSA) -> None:
    rows = evaluate_questions(Reader(gmsa, QUESTIONS), QUESTIONS, rates=(2, 4))
    assert [(row.condition, row.rate) for row in rows] == [
        ("memories", 2), ("memories", 4), ("other_memories", 2), ("other_memories", 4),
        ("truncated_text", 2), ("truncated_text", 4), ("closed_book", None), ("full_text", None),
    ]  # fmt: skip
    right = [1, 1, 0, 0, 0, 0, 0, 1]
    assert [row.em for row in rows] == right
    assert [row.f1 for row in rows] == [row.relative_f1 for row in rows] == right
    assert [row.cover_em for row in rows] == right
    assert [row.citation_accuracy for row in rows] == [1, 1, None, None, 0, 0, None, 1]
    assert all(row.num_questions == 8 and row.num_too_long == 0 for row in rows)
    assert rows[0].em_interval == rows[0].cover_em_interval == rows[0].f1_interval == (1.0, 1.0)
    assert {(row.passages, row.wording, row.gold_recall) for row in rows} == {("given", "own", None)}


def test_f1_is_put_in_relation_to_full_text(gmsa: GMSA, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"memories": "sea", "full_text": "sea of Danube"}  # F1 of "sea of Danube": 1/2 and 1

    def ask(*args: object, **settings: object) -> list[asking.Cell]:
        return [asking.Cell(name, None, [Answer(text)], [3], [0]) for name, text in said.items()]

    monkeypatch.setattr(qa, "ask", ask)
    rows = evaluate_questions(gmsa, QUESTIONS[:1])
    assert [row.f1 for row in rows] == [0.5, 1.0]
    assert [row.relative_f1 for row in rows] == [0.5, 1.0]
    said["full_text"] = "the Volga"
    assert [row.relative_f1 for row in evaluate_questions(gmsa, QUESTIONS[:1])] == [None, None]
    del said["full_text"]
    assert evaluate_questions(gmsa, QUESTIONS[:1])[0].relative_f1 is None


def test_the_ratio_to_full_text_has_an_interval_over_paired_questions(
    gmsa: GMSA, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = [question.answers[0] for question in QUESTIONS]
    said = {"memories": [*right[:4], *["no"] * 4], "full_text": [*right[:4], *["no"] * 4], "closed_book": right}

    def ask(*args: object, **settings: object) -> list[asking.Cell]:
        return [asking.Cell(name, None, [Answer(t) for t in texts], [3] * 8, [0] * 8) for name, texts in said.items()]

    monkeypatch.setattr(qa, "ask", ask)
    same, full, closed = evaluate_questions(gmsa, QUESTIONS)
    assert same.relative_f1_interval == full.relative_f1_interval == (1.0, 1.0)
    assert closed.relative_f1_interval is not None and closed.relative_f1 == 2.0
    assert closed.relative_f1_interval[0] < 2.0 < closed.relative_f1_interval[1]
    assert closed == evaluate_questions(gmsa, QUESTIONS)[2]
    assert closed != evaluate_questions(gmsa, QUESTIONS, seed=1)[2]
    said["full_text"] = ["no"] * 8
    assert [row.relative_f1_interval for row in evaluate_questions(gmsa, QUESTIONS)] == [None] * 3


def test_abstaining_is_counted_in_every_condition(gmsa: GMSA) -> None:
    reader = Reader(gmsa, QUESTIONS)
    assert {row.abstained for row in evaluate_questions(reader, QUESTIONS, rates=(4,))} == {None}
    reader.config.no_answer = "No idea."
    rows = evaluate_questions(reader, QUESTIONS, rates=(4,))
    assert [row.condition for row in rows] == list(CONDITIONS)
    assert [row.abstained for row in rows] == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_selected_passages_are_asked_of_and_named(gmsa: GMSA) -> None:
    reader = Reader(gmsa, [])
    gold = evaluate_questions(reader, QUESTIONS, conditions=["full_text"], passages="gold")[0]
    texts = [{str(part) for part in parts} for parts in reader.prompts]
    assert all(len(seen & {text for q in QUESTIONS for text in q.passages}) == 1 for seen in texts)
    assert gold.passages == "gold"
    assert gold.mean_positions < evaluate_questions(reader, QUESTIONS, conditions=["full_text"])[0].mean_positions


class Letters:
    """Embeds a text as counts of letters."""

    def encode_document(self, inputs: list[str], /, *, show_progress_bar: bool) -> list[list[int]]:
        return [[text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in inputs]

    encode_query = encode_document


def test_recall_of_what_was_retrieved_is_reported(gmsa: GMSA) -> None:
    reader = Reader(gmsa, [])
    rows = evaluate_questions(
        reader, QUESTIONS, conditions=["full_text"], passages="retrieved", k=10, embedder=Letters()
    )
    assert (rows[0].gold_recall, rows[0].passages) == (1.0, "retrieved 10 by Letters")


def test_wordings_of_frameworks_are_asked_in_and_not_expected_to_cite(gmsa: GMSA) -> None:
    reader = Reader(gmsa, [])
    rows = evaluate_questions(reader, QUESTIONS[:1], conditions=["full_text"], wording="llama_index")
    text = "".join(map(str, reader.prompts[0]))
    first, second = QUESTIONS[0].passages
    assert f"information is below.\n---------------------\n{first}\n\n{second}\n---------------------\n" in text
    assert (rows[0].wording, rows[0].citation_accuracy) == ("llama_index", None)


def test_fewer_positions_the_higher_the_rate(gmsa: GMSA) -> None:
    reader = Reader(gmsa, QUESTIONS)
    rows = {
        (row.condition, row.rate): row.mean_positions for row in evaluate_questions(reader, QUESTIONS, rates=(2, 4))
    }
    assert rows["closed_book", None] < rows["memories", 4] < rows["memories", 2] < rows["full_text", None]
    assert rows["memories", 4] == rows["other_memories", 4] or abs(rows["memories", 4] - rows["other_memories", 4]) < 3


def test_closed_book_prompts_hold_no_passage(gmsa: GMSA) -> None:
    reader = Reader(gmsa, QUESTIONS)
    evaluate_questions(reader, QUESTIONS, conditions=["closed_book"], rates=())
    expected = [reader.answer_prompt(question.question, []) for question in QUESTIONS]
    assert sorted(map(str, reader.prompts)) == sorted(map(str, expected))
    assert reader.compressed == []


def test_titles_stay_the_questions_own_beside_other_memories(gmsa: GMSA) -> None:
    reader = Reader(gmsa, QUESTIONS)
    evaluate_questions(reader, QUESTIONS, conditions=["other_memories"], rates=(4,))
    own = {q.question + q.titles[0]: q for q in QUESTIONS}
    assert len(reader.prompts) == len(own) == 8
    for parts in reader.prompts:
        text = "".join(str(part) for part in parts if isinstance(part, str))
        question = next(q for q in QUESTIONS if q.question in text and f"[1] {q.titles[0]}" in text)
        keys = {memory_key(reader.fingerprint, 4, passage) for passage in question.passages}
        assert keys.isdisjoint(part.key for part in parts if isinstance(part, Memory))
        assert f"[2] {question.titles[1]}" in text


def test_distinct_passages_are_compressed_once_a_rate(gmsa: GMSA, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "COMPRESS_CHUNK", 3)
    reader = Reader(gmsa, QUESTIONS)
    evaluate_questions(reader, QUESTIONS, rates=(2, 4))
    assert len(reader.compressed) == len(set(reader.compressed)) == 2 * 10


def test_no_other_passages_is_an_error(gmsa: GMSA) -> None:
    with pytest.raises(InputError, match="other_memories"):
        evaluate_questions(gmsa, [ask("Danube")] * 3)


def test_one_question_of_many_reads_the_memories_of_those_not_asked(gmsa: GMSA) -> None:
    reader = Reader(gmsa, [])
    evaluate_questions(reader, QUESTIONS, conditions=["other_memories"], rates=(4,), limit=1, max_new_tokens=2)
    (asked,) = selection.select_passages(QUESTIONS, limit=1).questions
    (parts,) = reader.prompts
    keys = {memory_key(reader.fingerprint, 4, text): text for q in QUESTIONS for text in q.passages}
    read = {keys[part.key] for part in parts if isinstance(part, Memory)}
    assert len(read) == 2 and read.isdisjoint(asked.passages)


@pytest.mark.parametrize(("passages", "k"), [("retrieved", 3), ("distractors", 2)])
def test_two_questions_that_share_passages_read_the_memories_of_those_left(gmsa: GMSA, passages: str, k: int) -> None:
    settings = {"passages": passages, "k": k, "embedder": Letters()}
    pair = [QUESTIONS[0], ask("Rhine", "lake", far="Ob")]
    first, second = selection.select_passages(pair, passages, k=k, embedder=Letters()).questions
    assert set(first.passages) & set(second.passages)  # so neither stands in for the other
    reader = Reader(gmsa, [])
    evaluate_questions(reader, pair, conditions=["other_memories"], rates=(4,), max_new_tokens=2, **settings)
    assert [sum(isinstance(part, Memory) for part in parts) for parts in reader.prompts] == [3, 3]
    with pytest.raises(InputError, match="got one that has all 4 there are"):
        evaluate_questions(reader, pair, rates=(4,), **{**settings, "k": k + 1})


def test_prompts_too_long_lose_passages_from_the_end_and_are_counted(gmsa: GMSA) -> None:
    long = Question("Where?", ("sea",), ("A", "B"), ("The sea. " * 8, "The sea is wide and blue. " * 40), (0,))
    reader = Reader(gmsa, [long])
    rows = evaluate_questions(reader, [long], conditions=["full_text"], rates=(), max_new_tokens=8)
    assert rows[0].num_too_long == 1
    assert rows[0].em == rows[0].citation_accuracy == 1.0
    assert [str(part) for part in reader.prompts[0]] == [
        str(part) for part in reader.answer_prompt(long.question, long.passages[:1], long.titles[:1])
    ]
    prompt = fit_prompt(gmsa, long, list(long.passages), 8)
    assert prompt.num_dropped == 1
    assert prompt.positions == gmsa.num_positions(prompt.parts) <= gmsa.decoder_window - 8


def test_question_that_alone_is_too_long_is_an_error(gmsa: GMSA) -> None:
    long = Question("Where? " * 300, ("sea",), ("A",), ("The sea.",), (0,))
    with pytest.raises(PromptTooLongError):
        evaluate_questions(gmsa, [long], conditions=["full_text"])


def test_no_citation_accuracy_where_the_checkpoint_does_not_cite(gmsa: GMSA) -> None:
    rows = evaluate_questions(Reader(gmsa, QUESTIONS, cites=False), QUESTIONS, rates=(4,))
    assert [row.citation_accuracy for row in rows] == [None] * 5


def test_questions_without_gold_do_not_count_in_citation_accuracy(gmsa: GMSA) -> None:
    without = Question("Where?", ("sea",), ("A",), ("The sea.",), ())
    rows = evaluate_questions(Reader(gmsa, QUESTIONS), [without], conditions=["full_text"])
    assert rows[0].citation_accuracy is None
    rows = evaluate_questions(Reader(gmsa, QUESTIONS), [without, *QUESTIONS], conditions=["full_text"])
    assert rows[0].citation_accuracy == 1.0


def test_answers_return_in_the_order_of_their_questions(gmsa: GMSA, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "CHUNK_POSITIONS", 60)  # several chunks, longest first
    padded = [
        Question(f"{'Well, ' * (index % 4)}{q.question}", q.answers, q.titles, q.passages, q.gold)
        for index, q in enumerate(QUESTIONS)
    ]
    assert evaluate_questions(Reader(gmsa, padded), padded, conditions=["full_text"])[0].em == 1.0


def test_limit_draws_by_the_seed(gmsa: GMSA) -> None:
    def asked(seed: int) -> set[str]:
        reader = Reader(gmsa, QUESTIONS)
        rows = evaluate_questions(reader, QUESTIONS, conditions=["full_text"], limit=3, seed=seed)
        assert rows[0].num_questions == 3
        return {str(parts) for parts in reader.prompts}

    assert asked(1) == asked(1)
    assert len({frozenset(asked(seed)) for seed in range(6)}) > 1


def test_untrained_checkpoint_runs_all_conditions_and_the_same_again(gmsa: GMSA) -> None:
    rows = evaluate_questions(gmsa, QUESTIONS, rates=(4,), max_new_tokens=4)
    assert [row.condition for row in rows] == list(CONDITIONS)
    assert rows == evaluate_questions(gmsa, QUESTIONS, rates=(4,), max_new_tokens=4)
    assert all(row.em == 0.0 and 0.0 <= row.f1 < 0.5 for row in rows)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"conditions": ["guessing"]}, "guessing"),
        ({"conditions": []}, "conditions"),
        ({"rates": ()}, "rates"),
        ({"limit": 0}, "limit 0"),
        ({"questions": []}, "questions"),
        ({"passages": "best"}, "best"),
        ({"passages": "retrieved", "k": 0}, "k: "),
        ({"wording": "haystack"}, "haystack"),
    ],
)
def test_senseless_arguments_are_errors(gmsa: GMSA, wrong: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named):
        evaluate_questions(gmsa, **{"questions": QUESTIONS, **wrong})  # type: ignore[arg-type]
