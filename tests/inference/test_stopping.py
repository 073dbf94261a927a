"""A generation ends where it is told to, and nowhere else."""

import threading

import pytest

from gmsa_rag.inference.stopping import is_stopped, stop_strings, stopped_when


@pytest.mark.parametrize(("stop", "strings"), [("END", ("END",)), (["a", "b"], ("a", "b")), ((), ())])
def test_one_stop_string_may_stand_for_itself(stop, strings):
    assert stop_strings(stop) == strings


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
