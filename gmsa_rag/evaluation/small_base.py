"""The base of an ablation: a small language model that can look up what it has read, as large ones can."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gmsa_rag.config import GMSAConfig
from gmsa_rag.evaluation.baselines import EmbeddedText
from gmsa_rag.inference.tokens import TokenCodec
from gmsa_rag.modeling.files import load_decoder
from gmsa_rag.modeling.group_merging import group_bounds, group_merge
from gmsa_rag.training.data import find_files, token_stream
from gmsa_rag.training.examples import Example, Segment, as_text
from gmsa_rag.training.loop import Run
from gmsa_rag.training.objective import Objective
from gmsa_rag.training.pretraining import TEXT_SUFFIXES, pretrain
from gmsa_rag.training.recipe import AutoencodeRecipe, Phase, PretrainRecipe
from gmsa_rag.training.recipe_file import keep_recipe
from gmsa_rag.training.tasks import Tasks

# Steps of reading for each step of plain language modelling, of sharp and of blurred text.
SHARP_SHARE, BLURRED_SHARE = 8, 4
# From short passages to long ones looking up is learned within minutes, from long ones alone it is not.
GROWING, UNTIL = ((3, 6), (3, 12), (4, 24)), 0.5
LONGEST_SHARP, LONGEST_BLURRED = (8, 64), (8, 32)
BLURS, PATIENCE_SHARP, PATIENCE_BLURRED = (1, 2, 4), 600, 150
RESTORE = {"restore": 1.0}
TASKS = {"restore": 0.6, "quote": 0.15, "cloze": 0.15, "continue": 0.1}
SCRAMBLED = 1_000_000
Draw = Callable[[random.Random], Example]


def make_base(
    pretraining: PretrainRecipe, autoencoding: AutoencodeRecipe, data: Path, out: Path, device: str = "cpu"
) -> Path:
    """Pretrain a base, then let it read and restate; resumes where an earlier run stopped.

    A model this small does not learn from plain text alone to look up what it has read, and a frozen decoder that
    cannot look up restores nothing from any soft tokens. So it restates passages that it reads as text, and then such
    of which it sees only averaged embeddings: before a frozen decoder that had only copied sharp text, compressors
    learned nothing at rates above 1 in as many steps as an ablation has.

    Args:
        pretraining: Its model and text; the reading takes `SHARP_SHARE` and `BLURRED_SHARE` times its steps.
        autoencoding: The stage that follows, for its templates and window.
        data: Directory of the training data.
        out: Directory of the run; token streams are kept in its parent.
        device: Where to train.

    Returns:
        Directory of the base, a plain transformers checkpoint.

    Raises:
        DataError: If a data file is missing or unreadable.
    """
    decoder, tokenizer = load_decoder(pretrain(pretraining, data, out, device), torch.float32)
    codec = TokenCodec(tokenizer)
    stream = token_stream(find_files(data, pretraining.text, "text", TEXT_SUFFIXES), codec, codec.end, out.parent)
    reading = Reading(codec, GMSAConfig(window=autoencoding.window, **autoencoding.templates), stream)
    for name, share, phases, make, blur in (
        ("sharp", SHARP_SHARE, reading.sharp_phases, reading.sharp, None),
        ("blurred", BLURRED_SHARE, reading.blurred_phases, reading.blurred, BlurredText(decoder)),
    ):
        first = pretraining.optimisation
        settings = replace(first, steps=first.steps * share, seed=first.seed + share)
        objective = Objective(decoder, blur, bf16=settings.bf16)
        keep_recipe(replace(pretraining, optimisation=settings), out / name)
        learned = list(decoder.parameters())
        run = Run(
            out / name, settings, objective, learned, window=reading.config.window, phases=phases, device=device
        )  # fmt: skip
        run.train(make)
    decoder.save_pretrained(out / "reader")
    tokenizer.save_pretrained(out / "reader")
    return out / "reader"


@dataclass(frozen=True)
class Reading:
    """What the base reads.

    Attributes:
        codec: The tokenizer.
        config: The templates and the window.
        stream: Token stream of the corpus.
    """

    codec: TokenCodec
    config: GMSAConfig
    stream: np.ndarray
    sharp_phases = (*(Phase((1,), sizes, UNTIL, PATIENCE_SHARP) for sizes in GROWING), Phase((1,), LONGEST_SHARP))
    blurred_phases = (
        *(Phase(BLURS, sizes, UNTIL, PATIENCE_BLURRED) for sizes in GROWING),
        Phase(BLURS, LONGEST_BLURRED),
    )

    def sharp(self, phase: int) -> Draw:
        """Passages as text, half of them of tokens in random order, which nothing but looking up can predict."""
        at, last = self.sharp_phases[phase], phase == len(GROWING)
        scrambled = np.random.default_rng(0).permutation(self.stream[:SCRAMBLED])
        draws = self._draw(at, self.stream, TASKS if last else RESTORE), self._draw(at, scrambled, RESTORE)
        return lambda rng: as_text(_end(rng.choice(draws)(rng), learn=last))

    def blurred(self, phase: int) -> Draw:
        """Passages as averaged embeddings."""
        draw = self._draw(self.blurred_phases[phase], self.stream, RESTORE)
        return lambda rng: _end(draw(rng), learn=phase == len(GROWING))

    def _draw(self, phase: Phase, tokens: np.ndarray, weights: dict[str, float]) -> Draw:
        return Tasks(self.codec, self.config, tokens, phase.rates, phase.windows).draw(weights)


class BlurredText(EmbeddedText):
    """The embeddings of each `rate` tokens, averaged."""

    def forward(self, input_ids: Tensor, lengths: Sequence[int], rates: Sequence[int]) -> Tensor:
        """Blur a batch of windows; arguments and result are those of the compressor."""
        embedded = self.embed(input_ids, lengths)
        return group_merge(embedded, group_bounds(lengths, rates).to(embedded.device))


def _end(example: Example, *, learn: bool) -> Example:
    """The example with or without its end token, so frequent in short ones that little else is learned at first."""
    *parts, last = example
    return [*parts, last if learn else Segment(last.ids[:-1], learn=True)]
