"""A handle survives every way of carrying it to the model; a cut or unknown one raises in each."""

import json

import pytest
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.load import dumpd
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.tools import create_retriever_tool

from gmsa_rag.errors import MalformedHandleError, UnknownMemoryError
from langchain_gmsa import ChatGMSA, GMSAContextCompressor

QUESTION = "Where does it begin?"


class Fixed(BaseRetriever):
    """Finds always the same documents."""

    documents: list

    def _get_relevant_documents(self, query, *, run_manager):
        return self.documents


def by_a_stuff_documents_chain(documents, load):
    prompt = ChatPromptTemplate.from_messages([("system", "Know:\n{context}"), ("human", "{question}")])
    return lambda chat, config: create_stuff_documents_chain(chat, prompt).invoke(
        {"context": documents, "question": QUESTION}, config
    )


def by_a_prompt(template, template_format):
    def carry(documents, load):
        prompt = ChatPromptTemplate.from_messages([("human", template)], template_format=template_format)
        context = "\n\n".join(document.page_content for document in documents)
        return prompt.invoke({"context": context, "question": QUESTION})

    return carry


def by_str(documents, load):
    return f"{documents}\n{QUESTION}"


def by_json(documents, load):
    return json.dumps([document.model_dump() for document in documents]) + QUESTION


def by_loaded_documents(documents, load):
    return "\n".join(document.page_content for document in load(json.loads(json.dumps(dumpd(documents))))) + QUESTION


def by_loaded_messages(documents, load):
    messages = [HumanMessage(document.page_content) for document in documents]
    return load(json.loads(json.dumps(dumpd([*messages, HumanMessage(QUESTION)]))))


def by_a_retriever_tool(documents, load):
    tool = create_retriever_tool(Fixed(documents=documents), "search", "Finds passages.")
    call = {"type": "tool_call", "name": "search", "args": {"query": QUESTION}, "id": "1"}
    return [HumanMessage(QUESTION), AIMessage("", tool_calls=[call]), tool.invoke(call)]


CARRIERS = {
    "stuff": by_a_stuff_documents_chain,
    "f-string": by_a_prompt("{context}\n{question}", "f-string"),
    "mustache": by_a_prompt("{{context}}\n{{question}}", "mustache"),
    "jinja2": by_a_prompt("{{ context }}\n{{ question }}", "jinja2"),
    "str": by_str,
    "json": by_json,
    "documents": by_loaded_documents,
    "messages": by_loaded_messages,
    "tool": by_a_retriever_tool,
}


@pytest.fixture
def compressor(store):
    return GMSAContextCompressor(model="gmsa-mini", store=store, rate=4)  # whose window holds all that str() says


@pytest.fixture
def chat(store):
    return ChatGMSA(model="gmsa-mini", store=store, max_tokens=1)


@pytest.fixture(params=CARRIERS.values(), ids=CARRIERS)
def soft_tokens_of(request, chat, load_again):
    """How many soft tokens the model reads of documents that are carried to it."""

    class Recorder(BaseCallbackHandler):
        def on_llm_end(self, response, **kwargs):
            self.read = response.generations[0][0].message.response_metadata["gmsa"]["soft_tokens"]

    def ask(documents):
        recorder = Recorder()
        carried = request.param(documents, load_again)
        run = carried if callable(carried) else lambda chat, config: chat.invoke(carried, config)
        run(chat, {"callbacks": [recorder]})
        return recorder.read

    return ask


def test_a_handle_survives(soft_tokens_of, compressor, documents):
    compressed = compressor.invoke(documents[:2])
    assert soft_tokens_of(compressed) == sum(document.metadata["gmsa_num_soft_tokens"] for document in compressed) > 0


@pytest.mark.parametrize("cut", [slice(0, 30), slice(2, None), slice(0, -1)])
def test_a_cut_handle_raises(soft_tokens_of, compressor, documents, cut):
    whole, compressed = compressor.invoke(documents[:2])
    compressed.page_content = compressed.page_content[cut]
    with pytest.raises(MalformedHandleError):
        soft_tokens_of([whole, compressed])


def test_an_unknown_handle_raises(soft_tokens_of, compressor, documents):
    whole, compressed = compressor.invoke(documents[:2])
    compressed.page_content = f"[[gmsa:{'0' * 32}:3]]"
    with pytest.raises(UnknownMemoryError):
        soft_tokens_of([whole, compressed])
