"""A whole training on text that every Python carries, in minutes: memories come to hold what their passages say.

The measure is how often the decoder ranks the next token of a passage first when it reads the passage's memory and all
tokens before, above how often with the memory of another passage. Passages are of documents that nobody trained on.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from gmsa_rag.evaluation.metrics import mean
from gmsa_rag.evaluation.passages import cut_passages, of_others
from gmsa_rag.evaluation.restoration import token_accuracies
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.training.autoencoding import autoencode
from gmsa_rag.training.files import write_rows
from gmsa_rag.training.keft import keft
from gmsa_rag.training.made import make_rows
from gmsa_rag.training.pretraining import pretrain
from gmsa_rag.training.recipe import AutoencodeRecipe, KeftRecipe, Phase, PretrainRecipe
from gmsa_rag.training.recipe_file import load_recipe
from tests.training.stages import changed

RECIPE = Path("gmsa-tiny-cpu")
DOCUMENTS = [text for _, text in sorted(topics.items())]
HELD_BACK = DOCUMENTS[::8]
PASSAGE_TOKENS, PASSAGES, QUESTIONS = 16, 60, 400


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data directory with text/text.txt and qa/questions.jsonl, without the documents held back."""
    folder = tmp_path_factory.mktemp("topics")
    (folder / "text").mkdir()
    (folder / "qa").mkdir()
    texts = [text for text in DOCUMENTS if text not in HELD_BACK]
    (folder / "text" / "text.txt").write_text("\n<|doc|>\n".join(texts), encoding="utf-8")
    rows = itertools.islice(make_rows(texts, passages=3, words=30), QUESTIONS)
    assert write_rows(folder / "qa" / "questions.jsonl", rows) == QUESTIONS
    return folder


def restored(checkpoint: Path, rates: Sequence[int]) -> dict[int, tuple[float, float]]:
    """Token accuracy by rate, from the passages' own memories and from those of others."""
    gmsa = GMSA.from_pretrained(checkpoint)
    passages = cut_passages(gmsa.codec, HELD_BACK, PASSAGE_TOKENS, PASSAGES, seed=0)
    found = {}
    for rate in rates:
        memories = gmsa.compress([gmsa.codec.decode(ids) for ids in passages], rate)
        own, other = (token_accuracies(gmsa, read, passages) for read in (memories, of_others(memories)))
        found[rate] = mean(own), mean(other)
    return found


def test_memories_come_to_hold_what_passages_say(data, tmp_path):
    """Each rate starts where the one before ended; both together take half a minute of a core."""
    start = pretrain(changed(load_recipe(RECIPE, PretrainRecipe), steps=10), data, tmp_path / "pretrain")
    recipe = changed(load_recipe(RECIPE, AutoencodeRecipe), steps=110, batch_tokens=1536, tasks={"restore": 1.0})
    for rate, least in ((1, 0.5), (2, 0.3)):
        phases = (Phase((rate,), (PASSAGE_TOKENS, PASSAGE_TOKENS)),)
        start = autoencode(changed(recipe, phases=phases), start, data, tmp_path / f"rate-{rate}")
        own, other = restored(start, [rate])[rate]
        assert own > other + least


@pytest.mark.slow
def test_the_tiny_recipe_restores_documents_it_was_not_trained_on(data, tmp_path, capsys):
    base = pretrain(load_recipe(RECIPE, PretrainRecipe), data, tmp_path / "pretrain")
    compressed = autoencode(load_recipe(RECIPE, AutoencodeRecipe), base, data, tmp_path / "ae")
    final = keft(load_recipe(RECIPE, KeftRecipe), compressed, data, tmp_path / "keft")
    for name, checkpoint in (("autoencoded", compressed), ("fine-tuned", final)):
        found = restored(checkpoint, rates=(1, 2, 4))
        with capsys.disabled():
            for rate, (own, other) in found.items():
                print(f"\n{name}, rate {rate}: token accuracy {own:.3f}, from others' memories {other:.3f}", end="")
        assert found[4][0] > found[4][1] + 0.3
    gmsa = GMSA.from_pretrained(final)
    memories = gmsa.compress([HELD_BACK[0][:200], HELD_BACK[1][:200]], rate=4)
    assert set(gmsa.answer("What is it?", memories).citations) <= {1, 2}
