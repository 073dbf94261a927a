"""The SQLite file: whose it is, damage to it, migrations, and several processes and kills."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing

import pytest

from gmsa_rag.errors import CorruptStoreError, InputError, StoreError
from gmsa_rag.memory import MemoryStore, VectorIndex
from gmsa_rag.memory.migrations import APPLICATION_ID, MIGRATIONS, migrate, version_of
from tests.memory.stores import build, fill, raw

CHILD = """
import os, signal, sys, torch
from gmsa_rag.memory import Memory, MemoryStore, memory_key
def build(text):
    return Memory(torch.ones(2, 64), memory_key("f" * 64, 8, text), 8, 12, "f" * 64, (0, 12))
store = MemoryStore(sys.argv[1])
"""


def run_child(path, code):
    return subprocess.Popen([sys.executable, "-W", "error", "-c", CHILD + code, str(path)], stdout=subprocess.PIPE)


def test_check_sees_damage_between_records(path):
    with MemoryStore(path) as store:
        fill(store, *(f"text {number}" for number in range(40)))
        assert store.delete([]) == 0
    data = bytearray(path.read_bytes())
    position = len(data) // 2 // 4096 * 4096
    data[position : position + 4096] = os.urandom(4096)
    path.write_bytes(data)
    with pytest.raises(CorruptStoreError), MemoryStore(path) as store:
        store.check()


@pytest.mark.parametrize("size", [60, 100, 4096, 20_000, -1, -4096])
def test_truncated_files_are_refused_and_left_alone(path, size):
    with MemoryStore(path) as store:
        fill(store, *(f"text {number}" for number in range(20)))
    path.write_bytes(path.read_bytes()[:size])
    before = path.read_bytes()
    with pytest.raises(CorruptStoreError):
        MemoryStore(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("data", [b"\x00", b"not a database" * 1000, bytes(range(256)) * 64])
def test_other_files_are_refused_and_left_alone(path, data):
    path.write_bytes(data)
    with pytest.raises(StoreError, match="untouched"):
        MemoryStore(path)
    assert path.read_bytes() == data and os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_databases_of_other_programs_are_refused_and_left_alone(path, mode):
    raw(path, f"PRAGMA journal_mode = {mode}", "CREATE TABLE notes (text)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program"):
        MemoryStore(path)
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_newer_stores_are_refused_and_left_alone(path):
    with MemoryStore(path) as store:
        raw(path, "PRAGMA user_version = 99")
        with pytest.raises(StoreError, match="Upgrade"):
            MemoryStore(path)
        store.check()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="Upgrade"):
        MemoryStore(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("version", range(len(MIGRATIONS)))
def test_stores_of_every_earlier_version_are_migrated(path, version, monkeypatch):
    with monkeypatch.context() as patch, closing(sqlite3.connect(path, isolation_level=None)) as connection:
        patch.setattr("gmsa_rag.memory.migrations.MIGRATIONS", MIGRATIONS[:version])
        migrate(connection)
    with MemoryStore(path) as store:
        fill(store, "one")
        store.check()
        recorded = store._database._connection.execute("SELECT number, name FROM migrations").fetchall()
    assert recorded == [(number, name) for number, (name, _) in enumerate(MIGRATIONS, 1)]


def test_a_migration_that_fails_leaves_the_last_whole_step(path, monkeypatch):
    broken = (*MIGRATIONS[:1], ("broken", ("CREATE TABLE half (a)", "CREATE TABLE namespaces (a)")))
    with monkeypatch.context() as patch:
        patch.setattr("gmsa_rag.memory.migrations.MIGRATIONS", broken)
        with pytest.raises(StoreError, match="namespaces already exists"):
            MemoryStore(path)
    with MemoryStore(path) as store:
        fill(store, "one")
        store.check()


def test_the_file_says_whose_it_is_and_only_its_owner_reads_it(path, store):
    fill(store, "one")
    assert int.from_bytes(path.read_bytes()[68:72], "big") == APPLICATION_ID
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}


def test_paths_that_cannot_be_opened_are_store_errors(tmp_path):
    for wrong in (tmp_path, tmp_path / "missing" / "memories.db"):
        with pytest.raises(StoreError):
            MemoryStore(wrong)
    for wrong in ("", "a\x00b", b"bytes", 3):
        with pytest.raises(InputError):
            MemoryStore(wrong)
    with pytest.raises(InputError, match="namespace"):
        MemoryStore(tmp_path / "a", "")


def test_closed_stores_say_so(path):
    store = MemoryStore(path)
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.keys()
    assert sorted(os.listdir(path.parent)) == [path.name]


def test_processes_share_a_file(path, store):
    code = "for n in range(25): store.put(build(f'{sys.argv[2]} {n}'), f'{sys.argv[2]} {n}')\nstore.check()"
    command = [sys.executable, "-W", "error", "-c", CHILD + code, str(path)]
    children = [subprocess.Popen([*command, name]) for name in ("child a", "child b")]
    fill(store, *(f"parent {number}" for number in range(25)))
    assert [child.wait(timeout=60) for child in children] == [0, 0]
    assert len(store) == 75 and store.text(build("child a 24").key) == "child a 24"


def test_a_kill_inside_a_write_loses_nothing_stored(path):
    code = """
store.put(build("stored"), "stored")
inserts = []
def trace(statement):
    if "INSERT INTO memories" in statement:
        inserts.append(statement)
    if len(inserts) == 150:
        print("inside", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
store._database._connection.execute("PRAGMA cache_size = 5")
store._database._connection.set_trace_callback(trace)
store.put_many([build(f"lost {n}") for n in range(200)])
"""
    child = run_child(path, code)
    output, _ = child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL and output == b"inside\n"
    assert path.with_name("memories.db-wal").stat().st_size > 100_000
    with MemoryStore(path) as store:
        assert store.keys() == [build("stored").key] and store.text(store.keys()[0]) == "stored"
        fill(store, "more")
        store.check()


def test_a_new_file_is_made_once_by_many(path):
    errors = []

    def work(number):
        try:
            with MemoryStore(path, f"namespace {number % 2}") as store:
                fill(store, f"text {number}")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with MemoryStore(path, "namespace 0") as store:
        assert len(store) == 4 and store.namespaces() == ["namespace 0", "namespace 1"]
        store.check()


def test_opening_a_file_again_keeps_the_locks_of_this_process(path, store):
    code = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('PRAGMA journal_mode = DELETE')"
    fill(store, "one")
    VectorIndex(path).close()
    MemoryStore(path).close()
    child = subprocess.run([sys.executable, "-c", code, str(path)], stderr=subprocess.PIPE, text=True)
    assert "database is locked" in child.stderr


def test_a_checkpoint_cut_short_by_a_crash_is_taken_up(path, tmp_path):
    copy = tmp_path / "copy.db"
    with MemoryStore(path) as store:
        fill(store, *(f"text {number}" for number in range(40)))
        before = path.read_bytes()
        copy.with_name("copy.db-wal").write_bytes(path.with_name("memories.db-wal").read_bytes())
    after = path.read_bytes()
    copy.write_bytes(after[:4096] + before[4096:])
    assert len(after) > len(before)
    with MemoryStore(copy) as store:
        assert len(store) == 40 and store.text(build("text 39").key) == "text 39"
        store.check()


def test_another_process_cannot_make_the_file_while_its_header_is_read(path):
    """Read piecemeal, a file that is being made looks like another program's."""
    locked = []

    def make(statement):
        if statement == "PRAGMA user_version":
            with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
                try:
                    migrate(other)
                except sqlite3.OperationalError as error:
                    locked.append(str(error))

    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.set_trace_callback(make)
        assert version_of(connection) == 0
        connection.set_trace_callback(None)
        assert locked == ["database is locked"]
        migrate(connection)
        assert version_of(connection) == len(MIGRATIONS)
