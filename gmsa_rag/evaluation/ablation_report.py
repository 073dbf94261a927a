"""An ablation from a recipe file to its report."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gmsa_rag.evaluation.ablation import MAX_NEW_TOKENS, AblationRow, Probe, plot_ablation, run_ablation
from gmsa_rag.evaluation.ablation_training import Plan, seeded
from gmsa_rag.evaluation.report import Report, describe_setting, digest_file, write_report
from gmsa_rag.evaluation.small_base import make_base
from gmsa_rag.evaluation.variants import start_variant
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.training.cloze import shorten
from gmsa_rag.training.data import Question, find_files, read_documents, read_questions
from gmsa_rag.training.keft import QUESTION_SUFFIXES
from gmsa_rag.training.pretraining import TEXT_SUFFIXES
from gmsa_rag.training.recipe import AutoencodeRecipe, KeftRecipe, PretrainRecipe
from gmsa_rag.training.recipe_file import load_recipe
from gmsa_rag.training.tasks import TOKENS_A_WORD

OPTIONS = ("rates", "window", "samples", "limit")


def make_plan(
    recipe: Path, data: Path, out: Path, *, base: Path | None = None, rates: Sequence[int] | None = None, seed: int = 0,
    device: str = "cpu",
) -> Plan:  # fmt: skip
    """Read a recipe and pretrain its base, unless there is one.

    Args:
        recipe: File, or name of a bundled one, with sections `pretrain`, `autoencode` and `keft`.
        data: Directory of the training data.
        out: Directory of the ablation; the base goes into `base` there.
        base: Directory of a causal LM to take instead.
        rates: Rates that will be evaluated; None for those that the last phase of KEFT trains.
        seed: Of everything drawn.
        device: Where to train.

    Raises:
        ConfigError: If a section is missing or wrong, or trains in a way that an ablation does not.
        DataError: If a data file is missing.
        CheckpointError: If `out` holds a base of another recipe.
    """
    autoencoding = seeded(load_recipe(recipe, AutoencodeRecipe), seed)
    fine_tuning = seeded(load_recipe(recipe, KeftRecipe), seed)
    evaluated = tuple(fine_tuning.phases[-1].rates if rates is None else rates)
    plan = Plan(autoencoding, fine_tuning, base or out / "base", data, out, evaluated, seed, device)
    plan.check()
    if base is not None:
        return plan
    pretraining = seeded(load_recipe(recipe, PretrainRecipe), seed)
    return replace(plan, base=make_base(pretraining, autoencoding, data, out / "base", device))


def make_probe(
    plan: Plan, text_file: str, question_file: str, *, samples: int = 100, limit: int | None = None
) -> Probe:  # fmt: skip
    """Read what all variants are evaluated on; questions are asked of passages as short as KEFT's.

    Args:
        plan: Its data directory, rates and seed, and the longest passages of its stages.
        text_file: Text nobody trained on, by its name without suffix.
        question_file: Questions nobody trained on, by the name of their file without suffix.
        samples: Passages to restore.
        limit: Ask this many questions, drawn at random; None asks all.

    Raises:
        DataError: If a file is missing or malformed.
    """
    texts, questions = (
        find_files(plan.data, [name], folder, suffixes)[0]
        for name, folder, suffixes in ((text_file, "text", TEXT_SUFFIXES), (question_file, "qa", QUESTION_SUFFIXES))
    )
    words = plan.fine_tuning.phases[-1].windows[1] / TOKENS_A_WORD
    return Probe(
        list(read_documents(texts)), shorten_passages(list(read_questions(questions)), words, plan.seed), plan.rates,
        plan.autoencoding.phases[-1].windows[1], samples, limit, plan.seed, (texts.name, questions.name),
        (digest_file(texts), digest_file(questions)),
    )  # fmt: skip


def shorten_passages(questions: Sequence[Question], words: float, seed: int) -> list[Question]:
    """Questions of their first gold passage alone, cut to the sentence with the answer and neighbours, as in KEFT.

    Args:
        questions: Each with an answer; those without a gold passage are left out.
        words: About so many of a passage are kept.
        seed: Of which neighbours.
    """
    rng = random.Random(seed)
    return [
        replace(
            question, titles=(question.titles[at],), gold=(0,),
            passages=(shorten(question.passages[at], question.answers[0], words, rng),),
        )
        for question in questions
        for at in question.gold[:1]
    ]  # fmt: skip


def report_ablation(
    plan: Plan, probe: Probe, variants: Sequence[str], model: str
) -> tuple[Sequence[AblationRow], Path]:  # fmt: skip
    """Run an ablation and write `ablation-<text file>-<question file>` into its directory.

    Args:
        plan: How variants are trained.
        probe: What they are evaluated on.
        variants: Some of `VARIANTS`.
        model: What the report is headed with, the recipe's or the base's name.

    Returns:
        The rows and the report's path as JSON.

    Raises:
        InputError: As `run_ablation`.
        CheckpointError: As `run_ablation`.
    """
    rows = run_ablation(plan, probe, variants)
    start = GMSA(start_variant("default", plan.base, plan.autoencoding, plan.all_rates, plan.seed))
    setting = describe_setting(
        start, model, seed=plan.seed, files=probe.files, num_samples=rows[0].num_questions,
        max_new_tokens=MAX_NEW_TOKENS, digests=probe.digests, options={name: getattr(probe, name) for name in OPTIONS},
    )  # fmt: skip
    name = "-".join(["ablation", *(file.removesuffix(".gz").rsplit(".", 1)[0] for file in probe.files)])
    path, _ = write_report(Report("ablation", setting, tuple(rows)), plan.out, name, plot_ablation)
    return rows, path
