"""Compress once in one process; answer from the store in a second one, which computes nothing."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from gmsa_rag import GMSA, MemoryStore

DATA = Path(__file__).parent / "data"
QUESTION = "By what name is the Mekong known inside China?"


def run(path: str) -> None:
    """What both processes do: only the first finds an empty store."""
    lines = (DATA / "passages.jsonl").read_text(encoding="utf-8").splitlines()[:3]
    passages = [json.loads(line) for line in lines]
    gmsa = GMSA.from_pretrained(os.environ.get("GMSA_MODEL", "gmsa-mini"))
    with MemoryStore(path) as store:
        before = len(store)
        memories = gmsa.compress([passage["text"] for passage in passages], rate=8, store=store)
        print(f"process {os.getpid()}: found {before} memories, computed {len(store) - before}")
    answer = gmsa.answer(QUESTION, memories, titles=[passage["title"] for passage in passages])
    print(f"  {QUESTION} -> {answer.text!r}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(2):
                subprocess.run([sys.executable, __file__, f"{folder}/memories.db"], check=True)
