"""Library: index, retrieve, answer, on a tiny random model and a hashing embedder."""

import hashlib

import numpy as np
import pytest
import torch

from gmsa_rag import pipeline
from gmsa_rag.documents import Document, Root
from gmsa_rag.errors import (
    FingerprintError,
    InputError,
    PromptTooLongError,
    RateError,
    StoreError,
    UnknownMemoryError,
)
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.generation import TextStream
from gmsa_rag.memory import MemoryStore, VectorIndex, memory_key, neutralise
from gmsa_rag.pipeline import Library, forget, noted_models

DOCUMENTS = [
    Document("danube", "The Danube is a river in Europe.", "Danube", "danube", {"page": 1}),
    Document("meitner", "Lise Meitner was a physicist.", "Lise Meitner", "meitner"),
    Document("vienna", "Vienna stands on the Danube.", "", "vienna"),
]
ROOT_A, ROOT_B = Root("a" * 32, True), Root("b" * 32, True)
LOOK_ALIKE = "[[gmsa:0123456789abcdef0123456789abcdef:3]]"


class HashingEmbedder:
    """Counts words into 64 places; the same everywhere."""

    def __init__(self):
        self.texts = []

    def encode_document(self, inputs, *, show_progress_bar):
        self.texts += inputs
        return np.stack([self._vector(text) for text in inputs])

    encode_query = encode_document

    def _vector(self, text):
        vector = np.zeros(64, np.float32)
        for word in text.lower().split():
            vector[hashlib.sha256(word.strip(".?").encode()).digest()[0] % 64] += 1
        return vector


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.db"


@pytest.fixture
def embedder():
    return HashingEmbedder()


@pytest.fixture
def library(path, gmsa, embedder):
    with Library(path, gmsa, embedder, model="tiny", embedder_name="hash") as library:
        library.add(DOCUMENTS, 4)
        yield library
        library.store.check()
        library.index.check()


@pytest.fixture
def other_gmsa(make_base, tokenizer):
    """Another compressor over the same base."""
    return GMSA.from_base(make_base(), tokenizer, encoder_layers=1, lsa_layers=1, window=48)


def test_indexing_counts_what_it_does(path, gmsa, embedder):
    calls = []
    with Library(path, gmsa, embedder) as library:
        done = library.add(DOCUMENTS, 4, progress=lambda count, total: calls.append((count, total)))
        memories = gmsa.compress([document.text for document in DOCUMENTS], 4)
        assert (done.passages, done.computed, done.removed) == (3, 3, 0)
        assert done.num_tokens == sum(memory.num_tokens for memory in memories)
        assert done.num_soft_tokens == sum(memory.num_soft_tokens for memory in memories)
        assert calls == [(3, 3)]
        assert library.add([], 4).passages == 0


def test_indexing_again_changes_nothing_and_computes_nothing(library, embedder):
    before, texts = library.index.entries(), len(embedder.texts)
    done = library.add(DOCUMENTS, 4)
    assert (done.computed, len(embedder.texts)) == (0, texts)
    assert library.index.entries() == before
    assert all(a.vector.tolist() == b.vector.tolist() for a, b in zip(before, library.index.entries(), strict=True))


def test_the_same_passage_is_computed_once(library):
    done = library.add([Document("a", "Rome.", "A", "a"), Document("b", "Rome.", "B", "b")], 4)
    assert (done.passages, done.computed, len(library.store)) == (2, 1, 4)


def test_batches_add_up(path, gmsa, embedder, monkeypatch):
    monkeypatch.setattr(pipeline, "BATCH", 2)
    calls = []
    with Library(path, gmsa, embedder) as library:
        library.add(DOCUMENTS, 4, progress=lambda count, total: calls.append((count, total)))
        assert calls == [(2, 3), (3, 3)]
        assert [entry.id for entry in library.index.entries()] == ["danube", "meitner", "vienna"]


def test_a_row_says_where_its_memory_comes_from(library, gmsa):
    row = library.index.get(["danube"])[0]
    memory = library.store.get(row.metadata["gmsa_key"])
    alone = gmsa.compress(DOCUMENTS[0].text, 4)  # it was computed in a batch: equal up to rounding
    assert (memory.key, memory.num_tokens, memory.borders) == (alone.key, alone.num_tokens, alone.borders)
    torch.testing.assert_close(memory.soft_tokens, alone.soft_tokens, atol=1e-5, rtol=0)
    assert row.metadata == {
        "page": 1, "title": "Danube", "gmsa_source": "danube", "gmsa_model": "tiny", "gmsa_embedder": "hash",
        "gmsa_key": memory.key, "gmsa_rate": 4, "gmsa_num_tokens": memory.num_tokens,
        "gmsa_num_soft_tokens": memory.num_soft_tokens, "gmsa_fingerprint": gmsa.fingerprint,
    }  # fmt: skip


def test_an_answer_is_that_of_the_engine_from_the_nearest_passages(library, gmsa):
    question = "Where is the Danube?"
    reply = library.ask(question, k=2, max_new_tokens=8)
    assert [source.id for source in reply.sources] == ["danube", "vienna"]
    assert [source.number for source in reply.sources] == [1, 2]
    assert reply.sources[0].score > reply.sources[1].score
    texts, titles = [source.text for source in reply.sources], ["Danube", ""]
    memories = gmsa.compress(texts, 4)
    assert reply.answer == gmsa.answer(question, memories, titles, max_new_tokens=8)
    assert reply.positions == gmsa.num_positions(gmsa.answer_prompt(question, memories, titles))
    assert reply.positions_text == gmsa.num_positions(gmsa.answer_prompt(question, texts, titles)) > reply.positions
    seconds = reply.seconds
    assert 0 < seconds.fetch < seconds.first_token <= seconds.total
    assert seconds.retrieval > 0


def test_the_full_text_can_be_read_instead(library, gmsa):
    reply = library.ask("Where is the Danube?", k=1, from_text=True, max_new_tokens=8)
    assert reply.from_text
    assert reply.seconds.fetch == 0
    assert reply.answer == gmsa.answer("Where is the Danube?", [DOCUMENTS[0].text], ["Danube"], max_new_tokens=8)
    assert reply.positions < reply.positions_text


def test_citations_name_sources(library, monkeypatch):
    monkeypatch.setattr(library.gmsa, "stream", lambda *_, **__: TextStream(p for p in ["Black", " Sea [2] [9]"]))
    monkeypatch.setattr(library.gmsa.config, "cites", True)
    reply = library.ask("Where is the Danube?")
    assert (reply.answer.text, [source.number for source in reply.cited]) == ("Black Sea", [2])
    monkeypatch.setattr(library.gmsa, "stream", lambda *_, **__: TextStream(p for p in []))
    assert library.ask("Where is the Danube?").answer.text == ""


def test_a_second_reader_computes_nothing(library, path, gmsa, embedder, monkeypatch):
    expected = library.ask("Where is the Danube?", max_new_tokens=8)
    monkeypatch.setattr(gmsa, "compress", None)
    with Library(path, gmsa, embedder, embedder_name="hash") as second:
        assert second.ask("Where is the Danube?", max_new_tokens=8).answer == expected.answer


def test_look_alikes_of_handles_are_neutralised_for_the_decoder_and_kept_in_the_index(library, gmsa, embedder):
    text, title = f"Rome {LOOK_ALIKE}.", f"T {LOOK_ALIKE}"
    library.add([Document("rome", text, title, "rome")], 4)
    assert text in embedder.texts
    assert library.index.get(["rome"])[0].text == text
    assert memory_key(gmsa.fingerprint, 4, neutralise(text)) in library.store
    question = f"Rome {LOOK_ALIKE}?"
    for from_text in (False, True):
        reply = library.ask(question, 1, from_text=from_text, max_new_tokens=8)
        part = neutralise(text) if from_text else gmsa.compress(neutralise(text), 4)
        assert reply.answer == gmsa.answer(neutralise(question), [part], [neutralise(title)], max_new_tokens=8)
        assert reply.sources[0].text == text


def test_passages_that_do_not_fit_are_left_out_from_the_end_and_named(path, gmsa, embedder):
    long = [Document(f"d{n}", "Danube " * 45 + f"{n}", "", f"d{n}") for n in range(3)]
    with Library(path, gmsa, embedder) as library:
        library.add(long, 1)
        reply = library.ask("Danube?", 3, max_new_tokens=4)
        assert reply.answer.dropped == (3,)
        assert [source.number for source in reply.sources] == [1, 2, 3]
        two = gmsa.compress([source.text for source in reply.sources[:2]], 1)
        assert reply.answer.text == gmsa.answer("Danube?", two, ["", ""], max_new_tokens=4).text
        with pytest.raises(PromptTooLongError):
            library.ask("Danube? " * 200)


def test_another_checkpoint_is_an_error_until_recomputing_is_asked_for(library, path, other_gmsa, embedder):
    with Library(path, other_gmsa, embedder, model="other", embedder_name="hash") as other:
        with pytest.raises(FingerprintError, match=r"a memory of other .*got one of tiny"):
            other.ask("Where is the Danube?")
        with pytest.raises(FingerprintError):
            other.add([Document("rome", "Rome.", "", "rome")], 4)
        assert len(other.store) == len(other.index) == 3
        reply = other.ask("Where is the Danube?", 1, recompute=True, max_new_tokens=8)
        assert reply.answer == other_gmsa.answer(
            "Where is the Danube?", [other_gmsa.compress(DOCUMENTS[0].text, 4)], ["Danube"], max_new_tokens=8
        )
        assert len(other.store) == 4
        with pytest.raises(FingerprintError, match="index DOCUMENTS --out STORE --recompute"):
            other.add(DOCUMENTS[:2], 4)
        other.add(DOCUMENTS, 4)
        assert other.ask("Where is the Danube?").sources
    with pytest.raises(FingerprintError):
        library.ask("Where is the Danube?")


def test_another_rate_is_an_error_until_recomputing_is_asked_for(library):
    with pytest.raises(RateError, match="the rate 4 it was indexed at, got 2"):
        library.ask("Where is the Danube?", rate=2)
    with pytest.raises(RateError):
        library.ask("Where is the Danube?", rate=0)
    at_4, at_2 = library.ask("Where is the Danube?"), library.ask("Where is the Danube?", rate=2, recompute=True)
    assert at_4.positions < at_2.positions
    assert library.ask("Where is the Danube?", rate=4).answer == at_4.answer


def test_a_memory_that_is_gone_is_an_error_until_recomputing_is_asked_for(library):
    expected = library.ask("Where is the Danube?")
    library.store.delete(library.store.keys())
    with pytest.raises(UnknownMemoryError, match="danube"):
        library.ask("Where is the Danube?")
    assert library.ask("Where is the Danube?", recompute=True).answer == expected.answer
    assert library.ask("Where is the Danube?").answer == expected.answer


def test_vectors_of_two_models_do_not_mix(library, path, gmsa, embedder):
    with Library(path, gmsa, embedder, embedder_name="another") as other:
        with pytest.raises(StoreError, match="embedding model another, got one of hash"):
            other.ask("Where is the Danube?")
        with pytest.raises(StoreError, match="another"):
            other.add([Document("rome", "Rome.", "", "rome")], 4)
        assert len(other.index) == 3


def test_a_row_of_another_program_is_refused(path, gmsa, embedder):
    with VectorIndex(path) as index:
        index.add(["Rome."], embedder.encode_document(["Rome."], show_progress_bar=False))
    with Library(path, gmsa, embedder) as library, pytest.raises(StoreError, match="a model that was not noted"):
        library.ask("Rome?")
    with VectorIndex(path) as index:
        index.add(["Rome."], [entry.vector for entry in index.entries()], [{"gmsa_embedder": "minilm"}], ["rome"])
        index.delete([entry.id for entry in index.entries() if entry.id != "rome"])
    with Library(path, gmsa, embedder) as library, pytest.raises(FingerprintError, match="got no memory"):
        library.ask("Rome?")


def test_an_empty_library_says_so(path, gmsa, embedder):
    with Library(path, gmsa, embedder) as library:
        with pytest.raises(StoreError, match="gmsa index"):
            library.ask("Rome?")
        with pytest.raises(RateError):
            library.add(DOCUMENTS, 0)
        assert len(library.index) == len(library.store) == 0


def test_bad_questions_are_refused(library):
    with pytest.raises(InputError, match="k"):
        library.ask("Rome?", 0)
    with pytest.raises(InputError, match="surrogate"):
        library.ask("\ud800")
    with pytest.raises(TypeError):
        library.ask(None)


def test_passages_that_left_their_source_leave_the_index(library):
    parts = [Document(f"a.txt#{n}", f"Part {n} of Oslo.", "a", "a.txt") for n in (1, 2, 3)]
    library.add(parts, 4)
    assert library.add(parts[:1], 4).removed == 2
    assert [entry.id for entry in library.index.entries()] == ["danube", "meitner", "vienna", "a.txt#1"]


def test_what_left_its_root_leaves_the_index_with_its_memory_and_nothing_else_does(library):
    oslo, rome, bern = (Document(name, f"{name} is a city.", name, name) for name in ("oslo", "rome", "bern"))
    library.add([oslo, rome], 4, root=ROOT_A)
    library.add([bern], 4, root=ROOT_B)
    assert library.add([rome], 4, root=Root(ROOT_A.digest, False)).removed == 0
    assert library.add([rome], 4, root=ROOT_A).removed == 1
    assert [entry.id for entry in library.index.entries()] == ["danube", "meitner", "vienna", "rome", "bern"]
    assert memory_key(library.gmsa.fingerprint, 4, oslo.text) not in library.store
    assert len(library.store) == 5


def test_rows_without_a_root_are_taken_over_by_the_first_that_brings_them(library):
    library.add([DOCUMENTS[0]], 4, root=ROOT_A)
    assert library.add(DOCUMENTS[1:2], 4, root=ROOT_A).removed == 1
    assert [entry.id for entry in library.index.entries()] == ["meitner", "vienna"]


def test_an_id_of_another_root_is_refused_before_anything_is_written(library):
    notes = Document("notes.txt", "Oslo is a city.", "notes", "notes.txt")
    other = Document("notes.txt", "Rome is a city.", "notes", "notes.txt")
    library.add([notes], 4, root=ROOT_A)
    before, memories = library.index.entries(), library.store.keys()
    with pytest.raises(StoreError, match=r"'notes\.txt'.*no other folder or file.*gmsa forget"):
        library.add([Document("new", "New.", "", "new"), other], 4, root=ROOT_B)
    with pytest.raises(StoreError, match=r"root=root_of\(path\)"):
        library.add([notes], 4)
    assert (library.index.entries(), library.store.keys()) == (before, memories)
    parts = [Document(f"notes.txt#{n}", f"Part {n} of Bern.", "notes", "notes.txt") for n in (1, 2)]
    assert library.add(parts, 4, root=ROOT_B).removed == 0
    library.add([*parts, notes], 4, root=ROOT_B)
    assert library.index.get(["notes.txt"])[0].metadata["gmsa_root"] == ROOT_B.digest


def test_the_memory_of_a_text_goes_when_its_last_row_changes(library):
    library.add([Document("copy", DOCUMENTS[0].text, "", "copy")], 4)
    key = memory_key(library.gmsa.fingerprint, 4, DOCUMENTS[0].text)
    library.add([Document("danube", "Rome.", "Danube", "danube")], 4)
    assert key in library.store
    library.add([Document("copy", "Rome.", "", "copy")], 4)
    assert key not in library.store


def test_recomputing_compresses_every_row_at_its_own_rate_with_the_checkpoint_in_use(
    library, path, other_gmsa, embedder, monkeypatch
):
    monkeypatch.setattr(pipeline, "BATCH", 1)
    library.add([Document("rome", "Rome is a city in Italy.", "", "rome")], 2, root=ROOT_A)
    before, texts, calls = library.index.entries(), len(embedder.texts), []
    with Library(path, other_gmsa, embedder, model="other", embedder_name="hash") as other:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(other, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            other.add(DOCUMENTS[:1], 4, recompute=True)
        assert other.index.entries() == before
        done = other.add(DOCUMENTS[:1], 4, recompute=True, progress=lambda *counts: calls.append(counts))
        assert (done.passages, done.computed, done.removed, calls[-1], len(embedder.texts)) == (1, 0, 0, (4, 4), texts)
        rows = {entry.id: entry.metadata for entry in other.index.entries()}
        assert {row["gmsa_fingerprint"] for row in rows.values()} == {other_gmsa.fingerprint}
        assert [row["gmsa_rate"] for row in rows.values()] == [4, 4, 4, 2]
        assert (rows["danube"]["page"], rows["rome"]["gmsa_root"]) == (1, ROOT_A.digest)
        assert len(other.ask("Where is the Danube?", 4).sources) == 4
    assert noted_models(path) == ("other", "hash")


def test_forgetting_takes_rows_and_memories_or_nothing(library, path):
    library.add([Document("copy", DOCUMENTS[0].text, "", "copy")], 4)
    with pytest.raises(InputError, match="'nowhere', 'rome'"):
        forget(path, ["danube", "nowhere", "rome"])
    assert (len(library.index), len(library.store)) == (4, 3)
    assert forget(path, ["danube", "meitner", "danube"]) == 2
    assert [entry.id for entry in library.index.entries()] == ["vienna", "copy"]
    assert len(library.store) == 2
    assert forget(path, ["copy"]) == 1
    assert library.store.keys() == [memory_key(library.gmsa.fingerprint, 4, DOCUMENTS[2].text)]
    assert b"Lise Meitner" not in path.read_bytes()


def test_an_interruption_leaves_the_index_as_it_was_and_keeps_what_was_computed(library, embedder, monkeypatch):
    monkeypatch.setattr(pipeline, "BATCH", 1)
    rows = library.index.entries()
    new = [Document("rome", "Rome.", "", "rome"), Document("bad", "stop", "", "bad")]

    def fail(inputs, **_):
        if "stop" in inputs:
            raise KeyboardInterrupt
        return HashingEmbedder.encode_document(embedder, inputs, show_progress_bar=False)

    monkeypatch.setattr(embedder, "encode_document", fail)
    with pytest.raises(KeyboardInterrupt):
        library.add(new, 4)
    assert library.index.entries() == rows
    monkeypatch.undo()
    assert library.add(new, 4).computed == 0


def test_opening_takes_the_models_that_a_file_notes(path, gmsa, tmp_path, monkeypatch):
    gmsa.save_pretrained(tmp_path / "models" / "tiny")
    loaded = []
    monkeypatch.setattr(
        pipeline, "load_embedder", lambda name, device: loaded.append((name, device)) or HashingEmbedder()
    )
    monkeypatch.chdir(tmp_path / "models")
    with Library.open(path, model="./tiny", embedder="hash", device="cpu") as library:
        library.add(DOCUMENTS, 8)
        expected = library.ask("Where is the Danube?", max_new_tokens=8)
    monkeypatch.chdir(tmp_path)
    assert noted_models(path) == (str(tmp_path / "models" / "tiny"), "hash")
    with Library.open(path, device="cpu") as library:
        assert library.ask("Where is the Danube?", max_new_tokens=8).answer == expected.answer
    assert loaded == [("hash", "cpu")] * 2


def test_a_file_without_notes_has_no_models(path, tmp_path):
    assert noted_models(tmp_path / "nowhere.db") == ("", "")
    assert not (tmp_path / "nowhere.db").exists()
    MemoryStore(path).close()
    assert noted_models(path) == ("", "")


def test_a_broken_index_closes_the_store(path, gmsa, embedder, monkeypatch):
    def fail(*_):
        raise StoreError("index", expected="a", got="b", remedy="c")

    monkeypatch.setattr(pipeline, "VectorIndex", fail)
    with pytest.raises(StoreError):
        Library(path, gmsa, embedder)
