import pytest

from gmsa_rag.errors import InputError, PromptTooLongError
from gmsa_rag.evaluation.asking import ask, find_wording, fit_prompt, truncate_prompt, word_prompt
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.prompt import Part
from gmsa_rag.memory.memory import Memory
from gmsa_rag.training.data import Question
from gmsa_rag.training.templates import FRAMEWORK_WORDINGS, Wording

PASSAGES = ("The Danube begins in the Black Forest of Germany and ends in the Black Sea.", "Vienna stands on it.")
QUESTION = Question("Where does {passages} begin?", ("Black Forest",), ("Danube", "Vienna"), PASSAGES, (0,))


def text_of(parts: list[Part]) -> str:
    return "".join("#" if isinstance(part, Memory) else part for part in parts)


def test_chat_wordings_go_through_the_chat_template_with_memories_in_place(gmsa: GMSA) -> None:
    memories = gmsa.compress(PASSAGES, 4)
    parts = word_prompt(gmsa, QUESTION, memories, FRAMEWORK_WORDINGS["langchain_chat"])
    assert [part for part in parts if isinstance(part, Memory)] == memories
    assert text_of(parts) == (
        f"{gmsa.tokenizer.bos_token}<|user|>Use the following pieces of context to answer the user's question.\n"
        "If you don't know the answer, just say that you don't know, don't try to make up an answer.\n"
        "----------------\n#\n\n#<|user|>Where does {passages} begin?<|assistant|>"
    )


def test_plain_wordings_are_one_turn_of_a_user(gmsa: GMSA) -> None:
    parts = word_prompt(gmsa, QUESTION, PASSAGES, FRAMEWORK_WORDINGS["llama_index"])
    assert text_of(parts) == (
        f"{gmsa.tokenizer.bos_token}<|user|>Context information is below.\n---------------------\n"
        f"{PASSAGES[0]}\n\n{PASSAGES[1]}\n---------------------\n"
        "Given the context information and not prior knowledge, answer the query.\n"
        "Query: Where does {passages} begin?\nAnswer: <|assistant|>"
    )


def test_bare_wordings_have_no_frame_and_titles_where_they_name_them(gmsa: GMSA) -> None:
    bare = Wording("{number} {title}\n{passage}\n", "{passages}Q: {question}", chat=False)
    parts = word_prompt(gmsa, QUESTION, ["one </s>"], bare)
    assert text_of(parts) == "1 Danube\none </s>\nQ: Where does {passages} begin?"
    assert gmsa.num_positions(parts) == 1 + len(gmsa.codec.encode([text_of(parts)])[0])


def test_the_own_wording_is_the_answer_prompt(gmsa: GMSA) -> None:
    assert word_prompt(gmsa, QUESTION, PASSAGES[:1], None) == gmsa.answer_prompt(
        QUESTION.question, PASSAGES[:1], ["Danube"]
    )


@pytest.mark.parametrize("name", ["own", "langchain_chat"])
def test_passages_are_dropped_from_the_end_in_any_wording(gmsa: GMSA, name: str) -> None:
    long = Question("Where?", ("sea",), ("A", "B"), ("The sea.", "The sea is wide and blue. " * 60), (0,))
    prompt = fit_prompt(gmsa, long, long.passages, 8, find_wording(name))
    assert prompt.num_dropped == 1
    assert prompt.positions == gmsa.num_positions(prompt.parts) <= gmsa.decoder_window - 8
    assert long.passages[0] in text_of(list(prompt.parts))
    with pytest.raises(PromptTooLongError):
        fit_prompt(gmsa, Question("Where? " * 300, ("sea",), (), (), ()), (), 8, find_wording(name))


@pytest.mark.parametrize("name", ["own", "langchain_chat", "llama_index"])
@pytest.mark.parametrize("rate", [1, 2, 4, 8, 100])
def test_truncated_text_takes_no_more_positions_than_memories(gmsa: GMSA, name: str, rate: int) -> None:
    wording = find_wording(name)
    like = fit_prompt(gmsa, QUESTION, gmsa.compress(PASSAGES, rate), 8, wording)
    prompt = truncate_prompt(gmsa, QUESTION, like, wording)
    assert like.positions - 3 <= prompt.positions <= like.positions
    assert prompt.positions == gmsa.num_positions(prompt.parts)
    assert prompt.num_dropped == 0


def test_truncated_text_is_the_beginning_of_each_passage(gmsa: GMSA) -> None:
    bare = Wording("#{passage}#\n", "{passages}{question}", chat=False)
    like = fit_prompt(gmsa, QUESTION, gmsa.compress(PASSAGES, 4), 8, bare)
    _, first, _, second, _ = text_of(list(truncate_prompt(gmsa, QUESTION, like, bare).parts)).split("#")
    for cut, whole in zip((first, second), PASSAGES, strict=True):
        assert whole.startswith(cut)
        share = len(gmsa.codec.encode([whole])[0]) / 4
        assert share - 3 <= len(gmsa.codec.encode([cut])[0]) <= share + 1


def test_truncated_text_of_cut_characters_holds_no_replacements(gmsa: GMSA) -> None:
    question = Question("Where?", ("a",), ("A",), ("\U0001f30a" * 9,), (0,))  # several tokens a character
    for rate in range(2, 9):
        like = fit_prompt(gmsa, question, gmsa.compress(question.passages, rate), 8)
        assert "\ufffd" not in text_of(list(truncate_prompt(gmsa, question, like).parts))


def test_passages_whose_memories_were_dropped_are_not_in_truncated_text(gmsa: GMSA) -> None:
    long = Question("Where?", ("a",), ("A", "B"), ("The sea.", "The sea is wide and blue. " * 90), (0,))
    like = fit_prompt(gmsa, long, gmsa.compress(long.passages, 1), 8)
    assert like.num_dropped == 1
    prompt = truncate_prompt(gmsa, long, like)
    assert prompt.num_dropped == 1
    assert "blue" not in text_of(list(prompt.parts))


def test_cells_say_what_came_of_each_question_in_order(gmsa: GMSA) -> None:
    short = Question("Where?", ("a",), ("A",), ("The sea.",), (0,))
    cells = ask(gmsa, [QUESTION, short], ["full_text", "memories"], [2], max_new_tokens=2)
    assert [(cell.condition, cell.rate) for cell in cells] == [("full_text", None), ("memories", 2)]
    for cell, passages in zip(cells, (PASSAGES, gmsa.compress(PASSAGES, 2)), strict=True):
        prompt = gmsa.answer_prompt(QUESTION.question, passages, QUESTION.titles)
        assert cell.positions[0] == gmsa.num_positions(prompt) > cell.positions[1]
        assert cell.answers[0].text == gmsa.generate(prompt, max_new_tokens=2).strip()
        assert cell.dropped == [0, 0]


def test_unknown_wording_is_an_error() -> None:
    assert find_wording("own") is None
    assert find_wording("langchain") is FRAMEWORK_WORDINGS["langchain"]
    with pytest.raises(InputError, match="langchain_chat"):
        find_wording("haystack")
