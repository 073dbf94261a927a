"""VectorIndex: exact cosine search whose rows are the truth and whose FAISS structure follows them."""

import sqlite3
import subprocess
import sys
import threading
from contextlib import closing

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gmsa_rag.errors import CorruptStoreError, DependencyError, InputError, InputTypeError, ShapeError, StoreError
from gmsa_rag.memory import Entry, Memory, MemoryStore, VectorIndex, faiss_distributions, flat, memory_key

TEXTS = ["north", "east", "south", "north-east"]
VECTORS = [[0.0, 3.0], [1.0, 0.0], [0.0, -0.5], [2.0, 2.0]]
IDS = ["n", "e", "s", "ne"]


@pytest.fixture
def index(path):
    with VectorIndex(path) as index:
        index.add(TEXTS, VECTORS, [{"angle": angle} for angle in (90, 0, 270, 45)], IDS)
        yield index
        index.check()


def ids_of(hits):
    return [hit.entry.id for hit in hits]


def raw(path, statement, *values):
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement, values)


def contents(path):
    return b"".join(file.read_bytes() for file in sorted(path.parent.iterdir()) if file.name.startswith(path.name))


def test_the_nearest_come_first_with_their_cosine(index):
    hits = index.search([0.0, 10.0])
    assert ids_of(hits) == ["n", "ne", "e", "s"]
    assert [hit.score for hit in hits] == pytest.approx([1.0, 0.5**0.5, 0.0, -1.0])
    assert hits[0].entry == Entry("n", "north", {"angle": 90}, np.zeros(2, np.float32))
    assert hits[0].entry.vector.tolist() == [0.0, 3.0]
    assert ids_of(index.search(np.float64([1, 0]), k=2)) == ["e", "ne"]
    assert index.search_many([[0, 10], [1, 0]], 4) == [hits, index.search([1, 0])]


def test_a_predicate_keeps_what_it_is_true_for(index):
    assert ids_of(index.search([0, 1], k=2, predicate=lambda entry: entry.metadata["angle"] < 90)) == ["ne", "e"]
    assert index.search([0, 1], predicate=lambda entry: False) == []
    assert ids_of(index.search([0, 1], k=1, predicate=lambda entry: index.get(["n"])[0] != entry)) == ["ne"]


def test_a_rare_row_is_found_behind_many_nearer_ones(index):
    index.add([f"text {number}" for number in range(500)], np.tile([1.0, 0.01], (500, 1)))
    assert ids_of(index.search([1, 0.01], k=1, predicate=lambda entry: entry.id == "s")) == ["s"]


def test_a_search_reads_each_row_once_at_most(index, monkeypatch):
    index.add(["x"] * 1100, [[1, i / 1000] for i in range(1100)], ids=[str(i) for i in range(1100)])
    read, decode = [], VectorIndex._decode
    monkeypatch.setattr(
        VectorIndex, "_decode", lambda self, row, width: read.append(row[0]) or decode(self, row, width)
    )
    assert index.search([1, 0], predicate=lambda entry: False) == []
    assert len(read) == len(set(read)) == len(index)
    rows = index.search([1, 0], k=3, predicate=lambda entry: int(entry.id) >= 700 if entry.id.isdigit() else False)
    assert ids_of(rows) == ["700", "701", "702"]
    read.clear()
    index.search([1, 0], k=1)
    assert len(read) <= 10


def test_equal_scores_come_in_the_order_of_insertion(index):
    names = [f"{number:03}" for number in range(200)]
    index.add(names, np.tile([-3.0, 4.0], (200, 1)) * np.arange(1, 201)[:, None], ids=names)
    index.add(["replaced"], [[-30.0, 40.0]], ids=["001"])
    assert ids_of(index.search([-3, 4], k=5)) == names[:5]
    assert ids_of(index.search([-3, 4], k=150)) == names[:150]


def test_adding_an_id_again_replaces_its_row(index):
    assert index.add(["up", "new"], [[0, 1], [1, 1]], [{"angle": None}, {}], ["n", "new"]) == ["n", "new"]
    assert len(index) == 5 and index.get(["n"])[0].text == "up" and [e.id for e in index.entries()] == [*IDS, "new"]
    index.add(["first", "last"], [[1, 0], [0, 1]], ids=["twice", "twice"])
    assert index.get(["twice"])[0].text == "last" and ids_of(index.search([0, 1], 3)) == ["n", "twice", "ne"]


def test_ids_are_made_where_none_are_given(index):
    made = index.add(["a", "b"], torch.eye(2))
    assert len(set(made)) == 2 and all(len(name) == 32 for name in made)
    assert index.add([], []) == []


def test_deleted_rows_and_their_bytes_are_gone(path, index):
    index.add(["a text to be deleted"], [[0, 1]], [{"note": "private note"}], ["x"])
    assert b"to be deleted" in contents(path)
    assert index.delete(["x", "unknown", "n"]) == 2 and index.delete(["x"]) == 0
    assert b"to be deleted" not in contents(path) and b"private note" not in contents(path)
    assert index.get(["n", "e", "e"])[0] is None and ids_of(index.search([0, 1])) == ["ne", "e", "s"]


def test_an_empty_index_takes_any_width_and_finds_nothing(path):
    with VectorIndex(path) as index:
        assert index.search([1, 2, 3]) == [] and len(index) == 0 and index and index.dimension is None
        index.add(["a"], [[1, 2, 3]], ids=["a"])
        assert index.dimension == 3 and ids_of(index.search([1, 2, 3])) == ["a"]
        index.delete(["a"])
        index.add(["b"], [[1, 2]], ids=["b"])
        assert ids_of(index.search([1, 2])) == ["b"]
        index.check()
    with VectorIndex(path, "other", dimension=3) as other:
        with pytest.raises(ShapeError):
            other.search([1, 2])
        assert other.search([1, 2, 3]) == []


def test_indexes_survive_closing_and_namespaces_are_apart(path, index):
    with VectorIndex(path) as again, VectorIndex(path, "other", 3) as other:
        assert ids_of(again.search([0, 1])) == ["n", "ne", "e", "s"]
        other.add(["other"], [[1, 2, 3]], ids=["n"])
        assert len(other) == 1 and len(again) == 4 and other.delete(["e"]) == 0
        assert again.get(["n"])[0].text == "north"
        other.check()
    with pytest.raises(ShapeError, match="dimension 3"):
        VectorIndex(path, dimension=3)


def test_memories_and_vectors_share_a_file(path, index):
    key = memory_key("f", 8, "north")
    with MemoryStore(path) as store:
        store.put(Memory(torch.ones(1, 4), key, 8, 1, "f", (0, 1)), "north")
        assert store.forget("north") == 1 and index.get(["n"])[0].text == "north"
        store.check()


def test_changes_of_another_connection_are_seen(path, index):
    with VectorIndex(path) as other:
        for step in range(3):
            other.add(["more"], [[step + 1, 50]], ids=[f"more {step}"])
            index.add(["mine"], [[step + 1, -50]], ids=[f"mine {step}"])
            assert ids_of(index.search([step + 1, 50], 1)) == [f"more {step}"]
            assert ids_of(other.search([step + 1, -50], 1)) == [f"mine {step}"]
        other.delete(["more 1"])
        assert "more 1" not in ids_of(index.search([2, 50], 20))
        other.check()


def test_own_changes_are_followed_without_rebuilding(index, monkeypatch):
    index.search([0, 1])
    monkeypatch.setattr(index, "rebuild", lambda: pytest.fail("rebuilt"))
    index.add(["a", "b"], [[0, 9], [9, 0]], ids=["a", "n"])
    index.delete(["e"])
    assert ids_of(index.search([0, 1])) == ["a", "ne", "n", "s"]


def test_processes_share_a_file(path, index):
    code = (
        "import sys\nfrom gmsa_rag.memory import VectorIndex\nindex = VectorIndex(sys.argv[1])\n"
        "for n in range(30): index.add([f'{sys.argv[2]} {n}'], [[n + 1, 7]], ids=[f'{sys.argv[2]} {n}'])\n"
        "index.check(); assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(path)]
    children = [subprocess.Popen([*command, name]) for name in ("a", "b")]
    assert [child.wait(timeout=60) for child in children] == [0, 0]
    assert len(index) == 64 and ids_of(index.search([30, 7], 2)) in (["a 29", "b 29"], ["b 29", "a 29"])


def test_threads_share_an_index(index):
    errors = []

    def work(number):
        try:
            for step in range(15):
                index.add(["text"], [[number + 1.0, step + 1.0]], ids=[f"{number} {step % 4}"])
                assert index.search([number + 1.0, step + 1.0], 1)[0].score > 0.999
                index.delete([f"{number} 3"])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and len(index) == 4 + 4 * 3


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_search_agrees_with_numpy(count, k, seed):
    random = np.random.default_rng(seed)
    vectors = random.integers(-2, 3, (count, 3)).astype(np.float32)
    vectors[~vectors.any(axis=1)] = 1
    query = vectors[random.integers(count)]
    scores = (vectors @ query) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    with VectorIndex(":memory:") as index:
        index.add(["text"] * count, vectors, ids=[str(number) for number in range(count)])
        hits = index.search(query, k)
    wanted = np.lexsort((np.arange(count), -scores.round(5)))[:k]
    assert ids_of(hits) == [str(number) for number in wanted]
    assert [hit.score for hit in hits] == pytest.approx(scores[wanted], abs=1e-6)


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e30])
def test_any_length_of_vector_has_a_direction(scale):
    with VectorIndex(":memory:") as index:
        index.add(["a", "b"], np.array([[1, 0], [1, 1]]) * scale, ids=["a", "b"])
        assert [hit.score for hit in index.search([1 / scale if scale > 1 else scale, 0])] == [
            1.0,
            pytest.approx(0.5**0.5),
        ]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((["a"], [[1, 2, 3]]), ShapeError),
        ((["a", "b"], [[1, 2], [1, 2, 3]]), ShapeError),
        ((["a"], [1, 2]), ShapeError),
        ((["a"], [["x", "y"]]), ShapeError),
        ((["a"], [[0, 0]]), InputError),
        ((["a"], [[1, float("nan")]]), InputError),
        ((["a"], [[1, float("inf")]]), InputError),
        ((["a"], [[1, 1e300]]), InputError),
        ((["a"], [[1, 2], [3, 4]]), InputError),
        ((["a", "b"], [[1, 2]]), InputError),
        ((["a"], [[1, 2]], []), InputError),
        ((["a"], [[1, 2]], None, ["a", "b"]), InputError),
        ((["a"], [[1, 2]], None, [""]), InputError),
        ((["a"], [[1, 2]], None, [3]), InputTypeError),
        (([3], [[1, 2]]), InputTypeError),
        ((["\ud800"], [[1, 2]]), InputError),
        ((["a"], [[1, 2]], [{"a": (1, 2)}]), InputError),
        ((["a"], [[1, 2]], [{"a": {1: 2}}]), InputError),
        ((["a"], [[1, 2]], [{"a": float("nan")}]), InputError),
        ((["a"], [[1, 2]], [{"a": object()}]), InputError),
        ((["a"], [[1, 2]], ["text"]), InputError),
    ],
)
def test_rows_are_checked_and_nothing_is_written(index, arguments, error):
    with pytest.raises(error):
        index.add(*arguments)
    assert len(index) == 4


@pytest.mark.parametrize("vector", [[1, 2, 3], [0, 0], [[1, 2]], 3, [1, float("nan")], []])
def test_questions_are_checked(index, vector):
    with pytest.raises(InputError):
        index.search(vector)


@pytest.mark.parametrize("value", [0, -1, True, 1.5])
def test_counts_are_checked(index, value):
    with pytest.raises(InputError, match="k: "):
        index.search([1, 2], value)
    with pytest.raises(InputError, match="dimension"):
        VectorIndex(":memory:", dimension=value)


@pytest.mark.parametrize(
    "change",
    ["vector = x'0000803f'", "vector = x'0000c07f0000c07f'", "metadata = '{'", "metadata = '3'", "text = x'ff'"],
)
def test_damage_is_named(path, change):
    with VectorIndex(path) as index:
        index.add(TEXTS, VECTORS, ids=IDS)
        raw(path, f"UPDATE vectors SET {change} WHERE id = 'e'")
        with pytest.raises(CorruptStoreError, match="'e'"):
            index.check()
        assert index.get(["n"])[0].text == "north"
        index.add(["east"], [[1, 0]], ids=["e"])
        index.check()


def test_check_sees_rows_that_faiss_lacks(path):
    with VectorIndex(path) as index:
        index.add(TEXTS, VECTORS, ids=IDS)
        index.search([1, 0])
        raw(path, "DELETE FROM vectors WHERE id = 'e'")
        with pytest.raises(CorruptStoreError, match="FAISS"):
            index.check()
        index.rebuild()
        index.check()


def test_closed_indexes_say_so(path):
    index = VectorIndex(path)
    index.close()
    with pytest.raises(StoreError, match="closed"):
        index.search([1, 2])
    path.write_bytes(b"garbage" * 100)
    with pytest.raises(StoreError, match="untouched"):
        VectorIndex(path)


@pytest.fixture
def fresh_import():
    flat.load_faiss.cache_clear()
    yield
    flat.load_faiss.cache_clear()


def test_faiss_missing_names_the_extra(fresh_import, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(DependencyError, match=r'pip install "gmsa-rag\[cpu\]"'):
        VectorIndex(":memory:")


def test_faiss_installed_twice_is_refused(fresh_import, monkeypatch):
    class Distribution:
        def __init__(self, name):
            self.metadata = {"Name": name}

    names = ["faiss_cpu", "faiss-gpu-cu12", "faiss-cpu", "langchain-faiss", "faiss-gpu", "numpy", None]
    monkeypatch.setattr(flat, "distributions", lambda: map(Distribution, names))
    assert faiss_distributions() == ["faiss-cpu", "faiss-gpu", "faiss-gpu-cu12"]
    with pytest.raises(DependencyError, match="faiss-cpu and faiss-gpu and faiss-gpu-cu12"):
        VectorIndex(":memory:")


def test_faiss_is_installed_once():
    assert len(faiss_distributions()) == 1


def test_rows_are_replaced_in_one_transaction(tmp_path):
    with VectorIndex(tmp_path / "i.db") as index:
        index.add(["a", "b"], [[1.0, 0.0], [0.0, 1.0]], ids=["a", "b"])
        with pytest.raises(InputError):
            index.add(["c"], [[0.0, 0.0]], ids=["c"], remove=["a"])
        assert len(index) == 2
        index.add(["c"], [[0.6, 0.8]], ids=["c"], remove=["a", "nobody"])
        assert [entry.id for entry in index.entries()] == ["b", "c"]
        assert [hit.entry.id for hit in index.search([0.0, 1.0], k=3)] == ["b", "c"]
        index.check()


def test_it_says_which_texts_other_rows_hold(index):
    index.add(["north", "ünï\n"], [[1, 1], [1, 2]], ids=["again", "u"])
    asked = ["north", "east", "nowhere", "ünï\n"]
    assert index.held(asked) == {"north", "east", "ünï\n"}
    assert index.held(asked, without=["n", "e"]) == {"north", "ünï\n"}
    assert index.held(asked, without=["n", "again", "e", "u"]) == set()
    assert index.held([]) == set()


def test_an_index_in_memory_is_saved_in_the_place_of_what_was_there(tmp_path, index, path):
    with VectorIndex(":memory:") as other:
        other.add(["up", "down"], [[0, 1], [1, 0]], [{"z": 1}, {}], ["u", "d"])
        other.save(tmp_path / "saved.db")
        other.save(tmp_path / "saved.db")
        other.save(path)
        with VectorIndex(tmp_path / "saved.db") as saved:
            assert saved.entries() == index.entries() == other.entries()
            assert [entry.vector.tolist() for entry in saved.entries()] == [[0, 1], [1, 0]]
            assert ids_of(saved.search([0, 1])) == ids_of(index.search([0, 1])) == ["u", "d"]
            saved.check()
        other.delete(["u", "d"])
        other.save(path)
    assert len(index) == 0
    assert b"north" not in contents(path)


def test_saving_keeps_memories_and_other_namespaces_and_its_own_file_as_it_is(index, path):
    with MemoryStore(path) as store, VectorIndex(path, "other") as other:
        memory = Memory(torch.ones(1, 2), memory_key("f", 8, "x"), 8, 3, "f", (0, 3))
        store.put(memory, "x")
        other.add(["x"], [[1, 2, 3]], ids=["x"])
        with VectorIndex(":memory:") as unsaved:
            unsaved.add(["up"], [[0, 1]], ids=["u"])
            unsaved.save(path)
        index.save(path)
        assert ids_of(index.search([0, 1])) == ["u"]
        assert store.get(memory.key) == memory
        assert len(other) == 1
    with pytest.raises(InputError, match="memory"):
        index.save(":memory:")


def test_vectors_of_another_width_are_not_replaced(index, path):
    with VectorIndex(":memory:") as other:
        other.add(["up"], [[1, 2, 3]])
        with pytest.raises(ShapeError):
            other.save(path)
    assert len(index) == 4
