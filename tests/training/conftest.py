"""A little corpus and question file of the shape the training reads."""

import gzip
import json
import random

import pytest

from gmsa_rag.training.autoencoding import autoencode
from gmsa_rag.training.keft import keft
from gmsa_rag.training.pretraining import pretrain
from tests.training.stages import AUTOENCODE, KEFT, PRETRAIN

NAMES = ["Danube", "Rhine", "Volga", "Loire", "Elbe", "Meuse", "Weser", "Oder", "Tagus", "Ebro", "Seine", "Thames"]


def sentence(rng: random.Random) -> str:
    a, b = rng.sample(NAMES, 2)
    return f"The river {a} joined the {b} near Fort {rng.choice(NAMES)} in {rng.randint(1500, 1999)}."


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A data directory with text/rivers.txt.gz and qa/rivers.train.jsonl."""
    rng, folder = random.Random(5), tmp_path_factory.mktemp("data")
    (folder / "text").mkdir()
    (folder / "qa").mkdir()
    documents = [" ".join(sentence(rng) for _ in range(12)) for _ in range(60)]
    with gzip.open(folder / "text" / "rivers.txt.gz", "wt", encoding="utf-8") as file:
        file.write("\n<|doc|>\n".join(documents))
    with (folder / "qa" / "rivers.train.jsonl").open("w", encoding="utf-8") as file:
        for number in range(40):
            texts = [sentence(rng) for _ in range(3)]
            year = texts[1].split()[-1].rstrip(".")
            row = {
                "id": str(number), "question": "When did they join?", "answers": [year], "gold": [1],
                "contexts": [{"title": f"River {i}", "text": text} for i, text in enumerate(texts)],
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")
    return folder


@pytest.fixture(scope="session")
def runs(data, tmp_path_factory):
    """All three stages, eight steps each: the directory of the runs, and what each gave. Leave them as they are."""
    out = tmp_path_factory.mktemp("runs")
    base = pretrain(PRETRAIN, data, out / "pretrain")
    compressed = autoencode(AUTOENCODE, base, data, out / "autoencode")
    return out, base, compressed, keft(KEFT, compressed, data, out / "keft")
