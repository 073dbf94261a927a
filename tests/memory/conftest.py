"""A file to keep things in, and a store in it."""

import pytest

from gmsa_rag.memory import MemoryStore


@pytest.fixture
def path(tmp_path):
    return tmp_path / "memories.db"


@pytest.fixture
def store(path):
    with MemoryStore(path) as store:
        yield store
        store.check()
