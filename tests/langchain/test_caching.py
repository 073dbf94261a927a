"""LangChain's cache of answers tells namespaces, checkpoints and settings of ChatGMSA apart."""

import threading

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache

from gmsa_rag.errors import CheckpointError, UnknownMemoryError
from gmsa_rag.inference import microbatching, sharing
from gmsa_rag.memory import MemoryStore
from langchain_gmsa import ChatGMSA


@pytest.fixture
def global_cache():
    set_llm_cache(InMemoryCache())
    yield
    set_llm_cache(None)


@pytest.mark.usefixtures("global_cache")
async def test_a_cache_keeps_namespaces_apart(gmsa, tmp_path, count_calls):
    path = tmp_path / "memories.db"
    with MemoryStore(path, "a") as store:
        handle = store.handle(gmsa.compress("The Danube begins in Germany.", rate=4, store=store))
    prompt = f"{handle}Where?"
    ours, theirs, again = (ChatGMSA(gmsa=gmsa, store=path, namespace=name, max_tokens=4) for name in "aba")
    assert theirs.invoke(prompt, on_missing="drop").response_metadata["gmsa"]["soft_tokens"] == 0
    answer = ours.invoke(prompt, on_missing="drop")
    assert answer.response_metadata["gmsa"]["soft_tokens"] > 0
    assert ours.invoke(prompt).text == answer.text
    with pytest.raises(UnknownMemoryError):
        theirs.invoke(prompt)
    with pytest.raises(UnknownMemoryError):
        await theirs.ainvoke(prompt)
    calls = count_calls(microbatching, "submit")
    assert again.invoke(prompt).text == (await again.ainvoke(prompt)).text == answer.text
    assert calls == []
    assert str(path) not in again._get_llm_string()


@pytest.mark.parametrize(
    "setting",
    [
        {"allowed_handles": ["a handle"]},
        {"max_tokens": 2},
        {"min_tokens": 2},
        {"on_missing": "drop"},
        {"overflow": "drop_last"},
        {"seed": 1},
        {"stop": ["x"]},
        {"temperature": 0.5},
        {"top_p": 0.5},
    ],
)
def test_a_cache_keeps_what_changes_an_answer_apart(chat, setting):
    assert chat._get_llm_string(**setting) != chat._get_llm_string()
    assert chat.model_copy(update=setting)._get_llm_string() != chat._get_llm_string()


def test_a_cache_keeps_checkpoints_apart_without_loading_local_ones(gmsa, checkpoint, monkeypatch):
    monkeypatch.setattr(sharing, "load_engine", None)
    assert ChatGMSA(model=checkpoint)._identifying_params["fingerprint"] == gmsa.fingerprint
    assert ChatGMSA(gmsa=gmsa)._identifying_params["fingerprint"] == gmsa.fingerprint
    assert ChatGMSA()._identifying_params["fingerprint"] not in (None, gmsa.fingerprint)


async def test_a_hub_id_is_loaded_for_the_cache_aside_from_the_event_loop(gmsa, monkeypatch):
    loading = []

    def load(model, **settings):
        loading.append(threading.current_thread())
        return gmsa

    monkeypatch.setattr(sharing, "load_engine", load)
    chat = ChatGMSA(model="someone/on-a-hub", max_tokens=2)
    assert chat._identifying_params["fingerprint"] == gmsa.fingerprint
    for call in (chat.ainvoke("Where?"), anext(chat.astream("Where?"))):
        loading.clear()
        await call
        assert loading[0] is not threading.main_thread()


@pytest.mark.parametrize("config", ["no JSON", "[]", "{}"])
def test_a_damaged_checkpoint_is_an_error_of_loading_it(tmp_path, config):
    (tmp_path / "config.json").write_text(config, encoding="utf-8")
    with pytest.raises(CheckpointError):
        ChatGMSA(model=tmp_path).invoke("Where?")
