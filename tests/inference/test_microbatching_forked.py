"""Micro-batching in a forked child, and when an interpreter ends with a prompt unread."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import os, sys, threading
from gmsa_rag.inference.generation import Generated
from gmsa_rag.inference.microbatching import submit

class Engine:
    def __init__(self):
        self.go, self.started = threading.Event(), threading.Event()
    def generate(self, prompts, **sampling):
        self.started.set()
        self.go.wait()
        return [Generated(prompt[0].upper(), "stop") for prompt in prompts]

engine = Engine()
[request] = submit(engine, [["parent"]])
engine.started.wait()
waiting = submit(engine, [["waiting"]])
child = os.fork()
if child == 0:
    engine.go, engine.started = threading.Event(), threading.Event()  # a thread may have held the old ones' locks
    engine.go.set()
    print(submit(engine, [["child"]])[0].result().text, flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
engine.go.set()
print(request.result().text, waiting[0].result().text, flush=True)
last = submit(engine, [["unread"]])
print("torch" in sys.modules)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_begins_anew_and_an_interpreter_ends():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["CHILD", "PARENT", "WAITING", "False"]
