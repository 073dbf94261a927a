"""Ablation: variants of one base trained alike and evaluated alike, each kept as soon as it is done."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gmsa_rag.errors import DataError
from gmsa_rag.evaluation.ablation_training import Plan, autoencode_variant, fine_tune_variant
from gmsa_rag.evaluation.qa import QARow, evaluate_questions
from gmsa_rag.evaluation.restoration import RestorationRow, evaluate_restoration
from gmsa_rag.evaluation.variants import COMPRESSING, check_variants
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.plotting import Line, Panel, plot_panels
from gmsa_rag.training.data import Question
from gmsa_rag.writing import beside

KEPT = "rows.json"
MAX_NEW_TOKENS = 12
# What a reader of text is asked from; its rows have no rate but where text is cut to one.
CONDITIONS = {"full_text": "full_text", "truncated_text": "truncated_text", "closed_book": "full_text"}
PANELS = {"f1": "F1", "cover_em": "cover-EM", "token_accuracy": "token accuracy of the restoration"}


@dataclass(frozen=True)
class AblationRow:
    """One variant at one rate. Shares are 0 to 1, higher is better; intervals are 95 % bootstrap intervals.

    The fields `other_*` are the same figures from the memories of other passages. What a variant does not have is None:
    readers of text restore nothing, and full text has no rate.

    Attributes:
        variant: Its name.
        rate: Tokens per soft token, or per token of text that is kept.
        num_passages: Passages restored after autoencoding, by the frozen decoder.
        token_accuracy: Share of tokens ranked first, teacher-forced.
        token_accuracy_interval: Its interval.
        other_token_accuracy: From another passage's memory.
        bleu: Corpus BLEU of the greedy restorations.
        bleu_interval: Its interval.
        other_bleu: From another passage's memory.
        num_questions: Questions asked after KEFT.
        em: Share of answers that are a right one after normalisation.
        em_interval: Its interval.
        other_em: From other passages' memories.
        cover_em: Share of answers that contain a right one.
        cover_em_interval: Its interval.
        other_cover_em: From other passages' memories.
        f1: Mean word overlap with the best right answer.
        f1_interval: Its interval.
        other_f1: From other passages' memories.
        mean_positions: Mean positions of a question prompt in the decoder.
    """

    variant: str
    rate: int | None
    num_passages: int | None
    token_accuracy: float | None
    token_accuracy_interval: tuple[float, float] | None
    other_token_accuracy: float | None
    bleu: float | None
    bleu_interval: tuple[float, float] | None
    other_bleu: float | None
    num_questions: int
    em: float
    em_interval: tuple[float, float]
    other_em: float | None
    cover_em: float
    cover_em_interval: tuple[float, float]
    other_cover_em: float | None
    f1: float
    f1_interval: tuple[float, float]
    other_f1: float | None
    mean_positions: float


@dataclass(frozen=True)
class Probe:
    """What all variants are evaluated on.

    Attributes:
        texts: Documents to restore passages of, which nobody trained on.
        questions: Questions nobody trained on, their passages short.
        rates: Rates to compress at.
        window: Tokens of a passage to restore.
        samples: Passages to restore, >= 2.
        limit: Ask this many, drawn at random; None asks all.
        seed: Of everything drawn, and of the bootstrap.
        files: Names of the data files.
        digests: Of their contents. By both, kept rows are known again.
    """

    texts: Sequence[str]
    questions: Sequence[Question]
    rates: tuple[int, ...]
    window: int
    samples: int
    limit: int | None
    seed: int
    files: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()


def run_ablation(plan: Plan, probe: Probe, variants: Sequence[str]) -> list[AblationRow]:
    """Train and evaluate variants one after the other.

    Args:
        plan: How they are trained.
        probe: What they are evaluated on.
        variants: Some of `VARIANTS`.

    Returns:
        Rows by variant and rate, in order. A variant that was finished with the same plan and probe is neither trained
        nor evaluated again.

    Raises:
        InputError: If a variant is unknown, or there is too little text or too few questions.
        ConfigError: If the recipe trains in a way that an ablation does not.
        CheckpointError: If the directory holds a run of another base or recipe.
    """
    check_variants(tuple(variants))
    plan.check()
    rows: list[AblationRow] = []
    for variant in dict.fromkeys(variants):
        kept, identity = plan.out / variant / KEPT, _identity(plan, probe)
        found = _read(kept, identity)
        if found is None:
            found = evaluate_variant(plan, probe, variant)
            _keep(kept, identity, found)
        rows += found
    return rows


def evaluate_variant(plan: Plan, probe: Probe, variant: str) -> list[AblationRow]:
    """Train a variant, or go on with it; restore after autoencoding, ask after KEFT."""
    checkpoint = autoencode_variant(plan, variant)
    restored = []
    if variant in COMPRESSING:
        restored = evaluate_restoration(
            GMSA(checkpoint), probe.texts, windows=(probe.window,), rates=probe.rates, samples=probe.samples,
            seed=probe.seed,
        )  # fmt: skip
    fine_tune_variant(plan, variant, checkpoint)
    return join_rows(variant, restored, _ask(GMSA(checkpoint), probe, variant))


def join_rows(variant: str, restored: Sequence[RestorationRow], asked: Sequence[QARow]) -> list[AblationRow]:
    """Rows of a variant from those of its restoration and of its questions.

    Args:
        variant: Its name.
        restored: Rows of its restoration, one a rate; none for a reader of text.
        asked: Rows of its questions; those of other passages' memories stand beside the row of their rate.
    """
    others = {row.rate: row for row in asked if row.condition == "other_memories"}
    by_rate: dict[int | None, RestorationRow] = {row.rate: row for row in restored}
    return [
        _join(variant, row, others.get(row.rate), by_rate.get(row.rate))
        for row in asked
        if row.condition != "other_memories"
    ]


def plot_ablation(rows: Sequence[AblationRow], path: Path) -> Path:
    """Draw answers and restoration by rate, a line a variant; a variant without a rate is a horizontal line.

    Args:
        rows: Of `run_ablation`.
        path: The PNG file.
    """
    return plot_panels([_panel(rows, *panel) for panel in PANELS.items()], path, x_label="rate", rates=True)


def _panel(rows: Sequence[AblationRow], name: str, title: str) -> Panel:
    drawn = [row for row in rows if getattr(row, name) is not None]
    rated = list(dict.fromkeys(row.variant for row in drawn if row.rate is not None))
    lines = []
    for index, variant in enumerate(rated):
        own = sorted((row for row in drawn if row.variant == variant), key=lambda row: row.rate or 0)
        ys, intervals = ([getattr(row, f"{name}{end}") for row in own] for end in ("", "_interval"))
        lines.append(Line(variant, [row.rate or 0 for row in own], ys, f"C{index}", intervals=intervals))
    levels = {row.variant: getattr(row, name) for row in drawn if row.rate is None}
    return Panel(title, lines, levels, y_range=None)


def _ask(gmsa: GMSA, probe: Probe, variant: str) -> list[QARow]:
    conditions = ("memories", "other_memories") if variant in COMPRESSING else (CONDITIONS[variant],)
    questions = [_emptied(q) for q in probe.questions] if variant == "closed_book" else probe.questions
    return evaluate_questions(
        gmsa, questions, conditions=conditions, rates=probe.rates, max_new_tokens=MAX_NEW_TOKENS, limit=probe.limit,
        seed=probe.seed,
    )  # fmt: skip


def _emptied(question: Question) -> Question:
    """The question with nothing in its passages, their titles left, as a closed-book reader is trained."""
    return replace(question, passages=("",) * len(question.passages))


def _join(variant: str, row: QARow, other: QARow | None, restored: RestorationRow | None) -> AblationRow:
    return AblationRow(
        variant=variant,
        rate=row.rate,
        num_passages=restored.num_samples if restored else None,
        token_accuracy=restored.token_accuracy if restored else None,
        token_accuracy_interval=restored.token_accuracy_interval if restored else None,
        other_token_accuracy=restored.other_token_accuracy if restored else None,
        bleu=restored.bleu if restored else None,
        bleu_interval=restored.bleu_interval if restored else None,
        other_bleu=restored.other_bleu if restored else None,
        num_questions=row.num_questions,
        em=row.em,
        em_interval=row.em_interval,
        other_em=other.em if other else None,
        cover_em=row.cover_em,
        cover_em_interval=row.cover_em_interval,
        other_cover_em=other.cover_em if other else None,
        f1=row.f1,
        f1_interval=row.f1_interval,
        other_f1=other.f1 if other else None,
        mean_positions=row.mean_positions,
    )


def _identity(plan: Plan, probe: Probe) -> dict[str, Any]:
    """What kept rows depend on, as JSON gives it back."""
    names = ("rates", "window", "samples", "limit", "seed", "files", "digests")
    values = json.loads(json.dumps({name: getattr(probe, name) for name in names}))
    return {"plan": plan.describe(), **values}


def _read(path: Path, identity: dict[str, Any]) -> list[AblationRow] | None:
    """Kept rows; None where there are none, or they are of another plan or probe.

    Raises:
        DataError: If the file is damaged.
    """
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["of"] != identity:
            return None
        return [AblationRow(**{k: _tuple(v) for k, v in row.items()}) for row in values["rows"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path.parent.name}/{path.name}", expected="rows of an ablation", got=f"{type(error).__name__}: {error}",
            remedy="Remove the file: the variant is then evaluated again, not trained again.",
        ) from error  # fmt: skip


def _keep(path: Path, identity: dict[str, Any], rows: Sequence[AblationRow]) -> None:
    values = {"of": identity, "rows": [asdict(row) for row in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    with beside(path) as part:
        part.write_text(json.dumps(values, indent=1), encoding="utf-8")


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
