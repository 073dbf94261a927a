"""The chain of the README in all its forms, and LangChain's own compressing retrievers."""

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import DocumentCompressorPipeline
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnablePassthrough
from langchain_text_splitters import CharacterTextSplitter

from gmsa_rag.errors import MalformedHandleError
from gmsa_rag.inference import prompt as prompts
from gmsa_rag.memory import find_handles
from langchain_gmsa import ChatGMSA, GMSAContextCompressor, format_docs, gmsa_prompt, neutralise

QUESTIONS = ["Where does the Danube begin?", "Who explained nuclear fission?"]


@pytest.fixture
def retriever(vectors):
    return vectors.as_retriever(search_kwargs={"k": 2})


def build(retriever, compressor, chat):
    return (
        {
            "context": retriever | compressor | format_docs,
            "question": RunnablePassthrough() | neutralise,
        }
        | gmsa_prompt
        | chat
        | StrOutputParser()
    )


@pytest.fixture
def chain(retriever, compressor, chat):
    return build(retriever, compressor, chat)


def test_it_answers_from_the_memories_of_what_was_retrieved(chain, retriever, gmsa):
    documents = retriever.invoke(QUESTIONS[0])
    config = gmsa.config.__class__(answer_template="<|user|>{passages}Question: {question}<|assistant|>")
    memories = gmsa.compress([document.page_content for document in documents], rate=4)
    titles = [document.metadata.get("title", "") for document in documents]
    prompt = prompts.answer_prompt(config, QUESTIONS[0], memories, titles)
    assert chain.invoke(QUESTIONS[0]) == gmsa.generate(prompt, max_new_tokens=8).removeprefix(" ")


async def test_all_forms_give_the_same(chain):
    expected = [chain.invoke(question) for question in QUESTIONS]
    assert expected[0] != expected[1]
    assert [await chain.ainvoke(question) for question in QUESTIONS] == expected
    assert chain.batch(QUESTIONS) == expected
    assert await chain.abatch(QUESTIONS) == expected
    assert ["".join(chain.stream(question)) for question in QUESTIONS] == expected
    assert ["".join([piece async for piece in chain.astream(question)]) for question in QUESTIONS] == expected
    assert len([piece for piece in chain.stream(QUESTIONS[0]) if piece]) > 1


def test_a_batch_generates_once(chain, gmsa, count_calls):
    calls = count_calls(gmsa, "generate")
    chain.batch(QUESTIONS * 3)
    assert [len(prompts) for prompts, *_ in calls] == [6]


def test_both_sides_find_each_other_without_naming_a_store(retriever, gmsa):
    chain = build(retriever, GMSAContextCompressor(gmsa=gmsa, rate=8), ChatGMSA(gmsa=gmsa, max_tokens=4))
    assert isinstance(chain.invoke(QUESTIONS[0]), str)


def test_both_sides_find_each_other_by_path(retriever, gmsa, tmp_path):
    path = tmp_path / "memories.db"
    named = build(
        retriever, GMSAContextCompressor(gmsa=gmsa, store=path), ChatGMSA(gmsa=gmsa, store=path, max_tokens=4)
    )
    assert named.invoke(QUESTIONS[0]) == named.batch(QUESTIONS)[0]


def test_a_user_cannot_bring_in_a_handle(chain, compressor, documents):
    handle = compressor.invoke(documents)[0].page_content
    assert isinstance(chain.invoke(f"What does {handle} say?"), str)
    assert find_handles(neutralise(handle)) == []


async def test_a_contextual_compression_retriever_takes_it(retriever, compressor):
    compressing = ContextualCompressionRetriever(base_compressor=compressor, base_retriever=retriever)
    expected = compressor.invoke(retriever.invoke(QUESTIONS[0]))
    assert compressing.invoke(QUESTIONS[0]) == expected
    assert await compressing.ainvoke(QUESTIONS[0]) == expected
    assert (compressing | format_docs).invoke(QUESTIONS[0]) == format_docs(expected)


async def test_a_document_compressor_pipeline_takes_it_as_its_last_step(compressor):
    splitter = CharacterTextSplitter(separator=". ", chunk_size=40, chunk_overlap=0)
    pipeline = DocumentCompressorPipeline(transformers=[splitter, compressor])
    document = Document("The Danube begins in Germany. It ends in the Black Sea. Vienna lies on it.")
    expected = compressor.invoke(splitter.transform_documents([document]))
    assert len(expected) == 3
    assert pipeline.compress_documents([document], QUESTIONS[0]) == expected
    assert await pipeline.acompress_documents([document], QUESTIONS[0]) == expected


def test_a_splitter_after_it_cuts_handles_which_is_seen(compressor, chat, documents):
    splitter = CharacterTextSplitter(separator="", chunk_size=20, chunk_overlap=0)
    pieces = splitter.split_documents(compressor.invoke(documents[:1]))
    with pytest.raises(MalformedHandleError):
        chat.invoke(pieces[0].page_content)
