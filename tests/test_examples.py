"""Each example runs as it is, on the bundled checkpoint or the one that GMSA_MODEL names."""

import os
import runpy
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fakeredis import TcpFakeServer

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
PRINTED = {
    "cached_store": ("found 0 memories, computed 3", "found 3 memories, computed 0"),
    "citations": ("Question:", "Answer:", "(expected: Lancang)", "[1] Mekong: The Mekong is a river"),
    "contextual_compression": (
        "Lise Meitner: 163 tokens as 21 soft tokens, [[gmsa:",
        "->",
        "Original text: Lise Meitner",
    ),
    "demo": ("Indexed 48 passages", "Passage 'Danube'", "Passage 'Lise Meitner'", "Summary over 12 questions", "EM"),
    "from_llmlingua": ("kept: ids, metadata, and the text", "->", "'soft_tokens': "),
    "langchain_chain": ("invoke:", "stream:", "ainvoke:", "batch:"),
    "langgraph_answer": ("In the state: [[gmsa:", "Resumed: By what name is the Mekong known inside China? ->"),
    "llama_index_from_longllmlingua": ("lise-meitner 0.79: 163 tokens -> 21", "restored: True", "answer:"),
    "llama_index_ingestion": ("6 nodes, 6 memories computed", "6 nodes, 0 memories computed", "[[gmsa:"),
    "llama_index_query_engine": ("query:", "mekong Mekong score", "[[gmsa:", "aquery:", "chat:", "stream:"),
    "quickstart": ("soft tokens; stored: 1", "Answer:", "Restored:"),
    "redis_store": ("found 0 memories, computed 3", "->", "'soft_tokens': ", "forgot 1 memory, 2 are left"),
}


def start(example, folder, **settings):
    """The finished process of an example. It runs elsewhere, so that it finds its own data, and asks no hub."""
    path = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", **settings}
    return subprocess.run([sys.executable, str(example)], cwd=folder, env=environment, capture_output=True, text=True)


def run(example, folder, **settings):
    """What an example prints."""
    done = start(example, folder, **settings)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def redis_url():
    """A Redis server of this process, empty at first."""
    server = TcpFakeServer(("127.0.0.1", 0))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"redis://127.0.0.1:{server.server_address[1]}/0"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(example, tmp_path, redis_url):
    printed = run(example, tmp_path, REDIS_URL=redis_url)
    for words in PRINTED[example.stem]:
        assert words in printed
    assert list(tmp_path.iterdir()) == []
    if example.stem == "demo":
        for label in ("Question:", "Reference:", "From memories:", "From full text:", "Prompt tokens:", "First token:"):
            assert printed.count(label) >= 12


def test_all_but_the_demo_are_short():
    for example in EXAMPLES:
        assert example.stem == "demo" or len(example.read_text(encoding="utf-8").splitlines()) < 80


def test_an_example_that_finds_no_redis_says_what_to_start(monkeypatch):
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    with pytest.raises(SystemExit, match=r"No Redis at .* Start one with `redis-server`, or set REDIS_URL\."):
        runpy.run_path(str(EXAMPLES[0].parent / "redis_store.py"), run_name="__main__")
