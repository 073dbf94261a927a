"""The `gmsa` command: every subcommand, what it prints, its exit codes, and no traceback for a GMSAError."""

import hashlib
import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from gmsa_rag import __version__, pipeline
from gmsa_rag.cli import app
from gmsa_rag.commands import doctor
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.prompt import Answer
from gmsa_rag.memory import Memory, MemoryStore, VectorIndex, flat, memory_key

RECORDS = [
    {"id": "danube", "title": "Danube", "text": "The Danube is a river in Europe."},
    {"id": "meitner", "title": "Lise\x1b[31m Meitner", "text": "Lise Meitner was a physicist."},
]


class HashingEmbedder:
    """Counts words into 64 places; the same everywhere."""

    def encode_document(self, inputs, *, show_progress_bar):
        vectors = np.zeros((len(inputs), 64), np.float32)
        for vector, text in zip(vectors, inputs, strict=True):
            for word in text.lower().split():
                vector[hashlib.sha256(word.strip(".?").encode()).digest()[0] % 64] += 1
        return vectors

    encode_query = encode_document


@pytest.fixture(scope="session")
def checkpoint(gmsa, tmp_path_factory):
    """The tiny model's directory."""
    directory = tmp_path_factory.mktemp("checkpoint") / "tiny"
    gmsa.save_pretrained(directory)
    return directory


@pytest.fixture(autouse=True)
def surroundings(checkpoint, tmp_path, monkeypatch):
    """A working directory of its own, the tiny model, no embedding model, and what the command sets undone."""
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setenv("GMSA_MODEL", str(checkpoint))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "load_embedder", lambda name, device: HashingEmbedder())
    (tmp_path / "docs.jsonl").write_text("\n".join(map(json.dumps, RECORDS)), encoding="utf-8")


@pytest.fixture
def indexed():
    succeed("index", "docs.jsonl", "--out", "store.db", "--rate", "4")


def run(*arguments, data=None):
    return CliRunner().invoke(app, list(map(str, arguments)), input=data)


def succeed(*arguments, data=None):
    result = run(*arguments, data=data)
    assert result.exit_code == 0, result.output
    return result.stdout


def fail(*arguments, code=1, data=None):
    """What the command says on stderr when it fails, and nothing on stdout."""
    result = run(*arguments, data=data)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.split())


def test_the_version_and_the_help():
    assert succeed("--version") == f"gmsa-rag {__version__}\n"
    for command in ("index", "ask", "forget", "compress", "restore", "doctor", "train"):
        assert command in succeed("--help")
        assert "Usage" in succeed(command, "--help")
    assert {"pretrain", "autoencode", "keft"} <= set(succeed("train", "--help").split())


def test_the_help_loads_neither_torch_nor_transformers():
    code = (
        "import sys; from gmsa_rag.cli import app; app(['ask', '--help'], standalone_mode=False); "
        "sys.exit(bool({'torch', 'transformers', 'numpy', 'faiss', 'sentence_transformers'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True).returncode == 0


def test_index_then_ask(indexed):
    printed = succeed("ask", "store.db", "Where is the Danube?", "--k", "2")
    answer, first, second, read, times = printed.rstrip("\n").split("\n")
    assert answer.startswith("answer: ")
    assert first.startswith("  [1] Danube (0.")
    assert second.startswith("  [2] Lise\ufffd[31m Meitner (")
    assert read.startswith("read: memories; prompt positions: ")
    assert "tokens saved" in read
    assert times.startswith("time: retrieval ")


def test_index_counts_and_does_not_compute_again(indexed, gmsa):
    memories = gmsa.compress([record["text"] for record in RECORDS], 4)
    tokens, soft = (sum(getattr(memory, name) for memory in memories) for name in ("num_tokens", "num_soft_tokens"))
    printed = succeed("index", "docs.jsonl", "--out", "store.db", "--rate", "4")
    assert f"2 passages read: {tokens} tokens in {soft} soft tokens (rate 4); 2 passages in store.db, 0 mem" in printed
    with MemoryStore("store.db") as store, VectorIndex("store.db") as index:
        store.check()
        index.check()
        assert (len(store), len(index)) == (2, 2)


def test_index_says_what_left_the_index(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("One two three. Four five six.")
    assert "2 passages" in succeed("index", "docs", "--out", "store.db", "--words", "3")
    (tmp_path / "docs" / "a.txt").write_text("One two three.")
    printed = succeed("index", "docs", "--out", "store.db", "--words", "3")
    assert "1 passages" in printed
    assert "2 passages that are no longer in the documents left the index" in printed


def test_a_deleted_file_leaves_the_index_and_the_answers(tmp_path, indexed):
    folder = tmp_path / "rr"
    folder.mkdir()
    (folder / "falcon.txt").write_text("The launch code of Project Falcon is 7421.")
    (folder / "notes.txt").write_text("The Danube begins in the Black Forest.")
    assert "2 passages read" in succeed("index", folder, "--out", "store.db")
    (folder / "falcon.txt").unlink()
    printed = succeed("index", "rr", "--out", "store.db")
    assert "1 passages read" in printed
    assert "3 passages in store.db" in printed
    assert "1 passages that are no longer in the documents left the index" in printed
    reply = succeed("ask", "store.db", "What is the launch code of Project Falcon?", "--k", "9", "--json")
    assert "7421" not in reply
    assert str(tmp_path) not in reply


def test_a_store_of_two_runs_goes_on_with_another_checkpoint(indexed, make_base, tokenizer, tmp_path):
    other = GMSA.from_base(make_base(), tokenizer, encoder_layers=1, lsa_layers=1, window=48)
    other.save_pretrained(tmp_path / "other")
    (tmp_path / "rome.txt").write_text("Rome is in Italy.")
    succeed("index", "rome.txt", "--out", "store.db")
    again = "index", "rome.txt", "--out", "store.db", "--model", "other"
    assert "--recompute" in fail(*again)
    assert "3 passages in store.db, 3 memories computed" in succeed(*again, "--recompute")
    assert "answer: " in succeed("ask", "store.db", "Where is the Danube?", "--model", "other")


def test_forget_removes_what_ask_names(indexed, tmp_path):
    name = json.loads(succeed("ask", "store.db", "Where is the Danube?", "--k", "1", "--json"))["sources"][0]["id"]
    assert "got 'nowhere'" in fail("forget", "store.db", name, "nowhere")
    assert succeed("forget", "store.db", name) == "1 passages and their memories left store.db\n"
    assert b"Danube" not in (tmp_path / "store.db").read_bytes()
    assert "nothing there" in fail("forget", "nowhere.db", name)


def test_ask_gives_json(indexed, gmsa):
    reply = json.loads(succeed("ask", "store.db", "Where is the Danube?", "--k", "1", "--json"))
    memory = gmsa.compress(RECORDS[0]["text"], 4)
    assert reply["answer"] == gmsa.answer("Where is the Danube?", [memory], ["Danube"]).text
    assert list(reply) == [
        "answer", "citations", "dropped", "abstained", "finish_reason", "question", "sources", "from_text",
        "positions", "positions_text", "seconds",
    ]  # fmt: skip
    assert reply["sources"][0]["text"] == RECORDS[0]["text"]
    assert set(reply["seconds"]) == {"retrieval", "fetch", "first_token", "total"}


def test_ask_says_that_an_answer_abstains(indexed, monkeypatch):
    decode = "gmsa_rag.pipeline.Library._decode"
    monkeypatch.setattr(decode, lambda *args: (Answer("not in the passages", abstained=True), 0.1, 0.2))
    assert "answer: not in the passages (abstained)" in succeed("ask", "store.db", "Where is the Danube?")
    assert json.loads(succeed("ask", "store.db", "Where is the Danube?", "--json"))["abstained"] is True


def test_ask_says_that_an_answer_was_cut_off(indexed):
    asked = "ask", "store.db", "Where is the Danube?"
    assert "(cut off: see --max-tokens)" in succeed(*asked, "--max-tokens", "1")
    reply = json.loads(succeed(*asked, "--max-tokens", "2", "--json"))
    assert reply["finish_reason"] == "length" and len(reply["answer"].split()) <= 2


def test_ask_from_full_text(indexed, gmsa):
    reply = json.loads(succeed("ask", "store.db", "Where is the Danube?", "--k", "1", "--text", "--json"))
    assert reply["answer"] == gmsa.answer("Where is the Danube?", [RECORDS[0]["text"]], ["Danube"]).text
    assert "read: full text" in succeed("ask", "store.db", "Where is the Danube?", "--k", "1", "--text")


def test_ask_takes_the_model_of_the_store(indexed, monkeypatch, checkpoint):
    monkeypatch.delenv("GMSA_MODEL")
    assert "answer: " in succeed("ask", "store.db", "Where is the Danube?")


def test_ask_with_another_checkpoint(indexed, make_base, tokenizer, tmp_path):
    GMSA.from_base(make_base(), tokenizer, encoder_layers=1, lsa_layers=1, window=48).save_pretrained(
        tmp_path / "other"
    )
    wrong = "ask", "store.db", "Where is the Danube?", "--model", "other"
    assert "a memory of other" in fail(*wrong)
    assert "`gmsa index DOCUMENTS --out STORE --recompute` for the whole store" in fail(*wrong)
    assert "answer: " in succeed(*wrong, "--recompute")
    assert "answer: " in succeed("ask", "store.db", "Where is the Danube?")


def test_bad_documents_are_named_and_nothing_stored_is_lost(indexed, tmp_path):
    before = (tmp_path / "store.db").read_bytes()
    (tmp_path / "bad.jsonl").write_bytes(b'{"text": "Rome."}\n{"text": "\xff"}\n')
    assert "bad.jsonl, line 2: expected UTF-8 text, got byte 0xff" in fail("index", "bad.jsonl", "--out", "store.db")
    assert "nothing there" in fail("index", "nowhere", "--out", "new.db")
    assert (tmp_path / "store.db").read_bytes() == before
    assert not (tmp_path / "new.db").exists()


def test_a_store_that_is_none_is_named(tmp_path):
    (tmp_path / "text.db").write_text("This is no database, but some text of more than a hundred characters. " * 3)
    assert "nothing there" in fail("ask", "nowhere.db", "Rome?")
    assert "got a directory" in fail("ask", ".", "Rome?")
    assert "an SQLite file" in fail("ask", "text.db", "Rome?")
    assert "an SQLite file" in fail("index", "docs.jsonl", "--out", "text.db")
    assert "nothing there" in fail("restore", "--store", "nowhere.db", "--key", "0" * 32)
    assert not (tmp_path / "nowhere.db").exists()
    MemoryStore("empty.db").close()
    assert "indexed documents, got none" in fail("ask", "empty.db", "Rome?")


def test_a_missing_model_is_named(indexed, tmp_path):
    (tmp_path / "folder").mkdir()
    assert "checkpoint at folder" in fail("compress", "docs.jsonl", "--model", "folder")
    assert "device: expected auto" in fail("ask", "store.db", "Rome?", "--device", "abacus")


def test_a_question_that_is_too_long_is_refused(indexed):
    assert "too many" in fail("ask", "store.db", "Danube? " * 300)


def test_compress_and_restore_a_file(gmsa, tmp_path):
    (tmp_path / "text.txt").write_text("The Danube begins in Germany.")
    memory = gmsa.compress("The Danube begins in Germany.", 4)
    printed = succeed("compress", "text.txt", "--rate", "4", "--out", "m.safetensors")
    data = (tmp_path / "m.safetensors").read_bytes()
    assert Memory.from_bytes(data) == memory
    assert printed == (
        f"m.safetensors: {memory.num_tokens} tokens in {memory.num_soft_tokens} soft tokens (rate 4), "
        f"{len(data)} bytes, key {memory.key}\n"
    )
    assert (tmp_path / "m.safetensors").stat().st_mode & 0o077 == 0
    assert succeed("restore", "m.safetensors") == gmsa.restore(memory) + "\n"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_compress_reads_standard_input(gmsa):
    succeed("compress", "-", data="Rome, too: ß.")
    with open("memory.safetensors", "rb") as file:
        assert Memory.from_bytes(file.read()) == gmsa.compress("Rome, too: ß.", 8)


def test_compress_does_not_replace_a_file_unless_it_is_told_to(tmp_path):
    (tmp_path / "memory.safetensors").write_text("mine")
    assert "--force" in fail("compress", "-", data="Rome.")
    assert (tmp_path / "memory.safetensors").read_text() == "mine"
    succeed("compress", "-", "--force", data="Rome.")
    Memory.from_bytes((tmp_path / "memory.safetensors").read_bytes())


def test_compress_refuses_what_is_no_text(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    assert "latin.txt: expected UTF-8 text, got byte 0xe9 at offset 3" in fail("compress", "latin.txt")
    assert "standard input: expected UTF-8" in fail("compress", "-", data=b"\xff")
    assert "standard input: expected some text" in fail("compress", "-", data=" \n")
    assert "a file to read, got No such file" in fail("compress", "nowhere.txt")
    assert "a file to write, got No such file" in fail("compress", "-", "--out", "nowhere/m", data="Rome.")
    assert not (tmp_path / "memory.safetensors").exists()


def test_restore_from_a_store(indexed, gmsa):
    memory = gmsa.compress(RECORDS[0]["text"], 4)
    assert succeed("restore", "--store", "store.db", "--key", memory.key) == gmsa.restore(memory) + "\n"
    assert "expected it in store.db, got none" in fail("restore", "--store", "store.db", "--key", "0" * 32)
    assert "32 lower-case hex digits" in fail("restore", "--store", "store.db", "--key", "x")


def test_restore_takes_the_model_of_the_store(indexed, gmsa, monkeypatch):
    monkeypatch.delenv("GMSA_MODEL")
    memory = gmsa.compress(RECORDS[0]["text"], 4)
    assert succeed("restore", "--store", "store.db", "--key", memory.key) == gmsa.restore(memory) + "\n"


def test_restore_refuses_what_is_no_memory(tmp_path):
    (tmp_path / "m").write_bytes(b"nonsense")
    assert "the bytes of a memory" in fail("restore", "m")
    assert "a file to read" in fail("restore", "nowhere")
    key = memory_key("another", 8, "Rome")
    (tmp_path / "m").write_bytes(Memory(torch.zeros(1, 32), key, 8, 2, "another", (0, 2)).to_bytes())
    assert "one made by another" in fail("restore", "m")


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("ask", "store.db"),
        ("ask", "store.db", "Rome?", "--k", "0"),
        ("forget", "store.db"),
        ("index", "docs.jsonl"),
        ("index", "docs.jsonl", "--out", "s.db", "--rate", "0"),
        ("index", "docs.jsonl", "--out", "s.db", "--words", "-1"),
        ("compress",),
        ("restore",),
        ("restore", "--store", "store.db"),
        ("restore", "m", "--key", "0" * 32),
        ("restore", "m", "--store", "store.db", "--key", "0" * 32),
        ("train", "nonsense"),
    ],
)
def test_a_wrong_use_is_exit_code_2(arguments):
    assert "Usage" in fail(*arguments, code=2)


def test_doctor_reports_versions_devices_checkpoint_and_store(indexed, gmsa, checkpoint):
    printed = dict(line.split(maxsplit=1) for line in succeed("doctor", "--store", "store.db").splitlines())
    assert printed["gmsa-rag"] == __version__
    assert printed["torch"] == torch.__version__
    assert {"python", "transformers", "triton", "cpu"} <= set(printed)
    assert printed["faiss"].startswith("faiss-")
    assert printed["checkpoint"] == str(checkpoint)
    assert printed["fingerprint"] == gmsa.fingerprint
    assert printed["store"] == "store.db: 2 passages and 2 memories, sound"


def test_doctor_verifies_the_checkpoint(gmsa, tmp_path):
    gmsa.save_pretrained(tmp_path / "copy")
    assert f"{gmsa.fingerprint} verified" in succeed("doctor", "--verify", "--model", "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(json.dumps({**config, "fingerprint": "0" * 64}))
    result = run("doctor", "--verify", "--model", "copy")
    assert result.exit_code == 1
    assert "changed after saving" in result.stdout
    assert succeed("doctor", "--model", "copy")


def test_doctor_names_every_problem(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(flat, "faiss_distributions", lambda: ["faiss-cpu", "faiss-gpu"])
    result = run("doctor", "--model", "folder", "--store", "nowhere.db")
    assert result.exit_code == 1
    problems = [line.split()[0] for line in result.stdout.splitlines() if line.endswith("<- problem")]
    assert problems == ["faiss", "checkpoint", "store"]
    assert "pip uninstall faiss-cpu faiss-gpu" in result.stdout
    assert not (tmp_path / "nowhere.db").exists()


def test_doctor_finds_a_damaged_store(indexed, tmp_path):
    with MemoryStore("store.db") as store:
        key = store.keys()[0]
        with store._database.write() as connection:
            connection.execute("UPDATE memories SET data = zeroblob(9) WHERE key = ?", (key,))
    result = run("doctor", "--store", "store.db")
    assert result.exit_code == 1
    assert key in result.stdout


def test_doctor_lists_accelerators_and_what_is_not_installed(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    properties = type("Properties", (), {"name": "A GPU", "total_memory": 80 * 2**30})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: properties)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(doctor, "version", missing)
    monkeypatch.setattr(flat, "faiss_distributions", lambda: [])
    printed = dict(line.split(maxsplit=1) for line in succeed("doctor").splitlines())
    assert (printed["cuda:0"], printed["mps"], printed["torch"]) == ("A GPU, 80 GiB", "available", "not installed")
    assert printed["faiss"] == 'not installed: `pip install "gmsa-rag[cpu]"`'


def test_the_command_is_quiet_about_loading(checkpoint, tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS"):
        environment.pop(name)
    command = [sys.executable, "-m", "gmsa_rag.cli", "compress", "docs.jsonl", "--rate", "4"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.startswith("memory.safetensors: ")
