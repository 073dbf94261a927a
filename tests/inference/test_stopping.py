"""A generation ends where it is told to, and nowhere else."""

import threading

from gmsa_rag.inference.stopping import is_stopped, stopped_when


def test_only_what_runs_inside_is_stopped():
    elsewhere = []
    assert not is_stopped()
    with stopped_when(lambda: True):
        with stopped_when(lambda: False):
            assert not is_stopped()
        thread = threading.Thread(target=lambda: elsewhere.append(is_stopped()))
        thread.start()
        thread.join()
        assert is_stopped()
    assert not is_stopped() and elsewhere == [False]
