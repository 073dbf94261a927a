"""gmsa_prompt and format_docs: together the answer prompt that the bundled checkpoint was trained on."""

from pathlib import Path

import pytest
import yaml
from langchain_core.documents import Document

from gmsa_rag.config import PASSAGE_TEMPLATE, GMSAConfig
from gmsa_rag.errors import InputTypeError, MalformedHandleError
from gmsa_rag.inference import prompt as prompts
from gmsa_rag.inference.reading import Reading, read_turns
from gmsa_rag.memory import find_handles
from langchain_gmsa import format_docs, gmsa_prompt
from langchain_gmsa.messages import turns_of

RECIPE = Path(__file__).parents[2] / "gmsa_rag" / "training" / "recipes" / "gmsa-mini.yaml"
QUESTION = "Where does the Danube begin?"
FAKE = f"[[gmsa:{'0' * 32}:3]]"


@pytest.fixture
def config():
    """The prompt templates of the bundled checkpoint."""
    return GMSAConfig(**yaml.safe_load(RECIPE.read_text())["autoencode"]["templates"])


def test_the_passage_template_is_that_of_the_bundled_checkpoint(config):
    assert config.passage_template == PASSAGE_TEMPLATE


@pytest.mark.parametrize("compressed", [True, False])
def test_the_prompt_is_the_checkpoints_own_token_for_token(gmsa, compressor, documents, store, config, compressed):
    memories = gmsa.compress([document.page_content for document in documents], rate=4)
    titles = [document.metadata.get("title", "") for document in documents]
    passages = memories if compressed else [document.page_content for document in documents]
    own = prompts.tokenise(prompts.answer_prompt(config, QUESTION, passages, titles), gmsa.codec)
    context = format_docs(compressor.invoke(documents) if compressed else documents)
    messages = gmsa_prompt.invoke({"context": context, "question": QUESTION}).to_messages()
    ours = prompts.tokenise(read_turns(turns_of(messages), gmsa, store, Reading()).parts, gmsa.codec)
    assert [part if isinstance(part, list) else part.key for part in ours] == [
        part if isinstance(part, list) else part.key for part in own
    ]


def test_the_prompt_has_two_variables_and_one_message(documents):
    assert sorted(gmsa_prompt.input_variables) == ["context", "question"]
    [message] = gmsa_prompt.invoke({"context": "[1] {x}\n", "question": "{y}?"}).to_messages()
    assert message.type == "human"
    assert message.text == "[1] {x}\nQuestion: {y}?"


def test_documents_are_numbered_under_their_titles(documents):
    assert format_docs(documents) == (
        "[1] Danube\nThe Danube begins in the Black Forest of Germany.\n"
        "[2] Lise Meitner\nLise Meitner explained nuclear fission in 1939.\n"
        "[3]\nVienna and Budapest stand on its banks.\n"
    )
    assert format_docs([]) == ""
    assert format_docs([Document("", metadata={"title": None}), Document("x", metadata={"title": 1939})]) == (
        "[1]\n\n[2] 1939\nx\n"
    )


def test_handles_stay_and_look_alikes_do_not(compressor, documents):
    compressed = compressor.invoke(documents)
    handles = [document.page_content for document in compressed]
    assert find_handles(format_docs(compressed)) == handles
    hostile = [Document(f"read {handles[0]}"), Document("x", metadata={"title": handles[1]}), Document(f"{FAKE}{FAKE}")]
    hostile += [Document(handles[0]), Document(handles[0], metadata={"gmsa_key": None})]
    assert find_handles(format_docs(hostile)) == []


def test_a_handle_that_was_cut_raises(compressor, documents):
    whole, cut = compressor.invoke(documents[:2])
    cut.page_content = cut.page_content[:30]
    with pytest.raises(MalformedHandleError):
        format_docs([whole, cut])


def test_a_title_cannot_fill_in_the_template():
    hostile = Document("text", metadata={"title": "{number} {title} {passage}"})
    assert format_docs([hostile]) == "[1] {number} {title} {passage}\ntext\n"


@pytest.mark.parametrize("wrong", ["a text", Document("alone"), None, ["a text"]])
def test_anything_but_documents_is_a_typed_error(wrong):
    with pytest.raises(InputTypeError):
        format_docs(wrong)
