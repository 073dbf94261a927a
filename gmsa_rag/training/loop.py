"""The training loop all stages share: steps, schedule, log, progress, checkpoints and exact resume."""

import dataclasses
import json
import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from gmsa_rag.errors import CheckpointError
from gmsa_rag.modeling.alignment import backbone_of
from gmsa_rag.modeling.compressor import Compressor
from gmsa_rag.training.examples import Batch, Example, batches, collate
from gmsa_rag.training.objective import compute_loss
from gmsa_rag.training.recipe import Optimisation, Phase

logger = logging.getLogger(__name__)
# A phase lasts at least so long that its running accuracy says something.
POOL, SMOOTHING, LEAST_STEPS = 512, 0.95, 20
STATE, WEIGHTS, MOMENTS = "state.json", "weights.safetensors", "optimiser.safetensors"


class Make(Protocol):
    """Draws an example of a phase."""

    def __call__(self, phase: int) -> Callable[[random.Random], Example]:
        """The function that draws one."""


@dataclass
class Position:
    """Where a run stands; saved, so that a resumed run draws the same batches.

    Attributes:
        step: Steps done.
        phase: Phase of the curriculum.
        phase_step: Steps done in it.
        pool: Pools of examples used up.
        used: Batches used of the current pool.
        seconds: Time trained.
        accuracy: Running token accuracy.
        loss: Running loss, nats a token.
        tokens: Learned tokens so far.
    """

    step: int = 0
    phase: int = 0
    phase_step: int = 0
    pool: int = 0
    used: int = 0
    seconds: float = 0.0
    accuracy: float = 0.0
    loss: float = 0.0
    tokens: int = 0


class Run:
    """One stage of training in a directory.

    Args:
        out: Directory of the run: `log.jsonl`, and `resume/` with what a resumed run needs.
        settings: How it steps.
        decoder: The causal LM.
        compressor: The compressor, or None for language modelling.
        trainable: Parameters that learn; all others are frozen.
        window: The compressor's window.
        phases: Curriculum, at least one phase.
    """

    def __init__(
        self,
        out: Path,
        settings: Optimisation,
        decoder: PreTrainedModel,
        compressor: Compressor | None,
        trainable: Iterable[Tensor],
        *,
        window: int,
        phases: tuple[Phase, ...] = (Phase((1,), (1, 1)),),
    ) -> None:
        self.out, self.settings, self.decoder, self.compressor = out, settings, decoder, compressor
        self.window, self.phases, self.position = window, phases, Position()
        self.modules = nn.ModuleDict({"decoder": decoder} | ({"compressor": compressor} if compressor else {}))
        self.parameters = _freeze_others(self.modules, trainable)
        self.optimiser = _optimiser(self.parameters, settings)
        self.device = decoder.device
        if settings.compile:
            _compile(decoder, compressor)

    def train(self, make: Make) -> Position:
        """Train to the end, from where an earlier run in the same directory stopped.

        Args:
            make: For a phase, the function that draws its examples.

        Returns:
            Where the run ended.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        if (self.out / "resume" / STATE).exists():
            self._resume()
        if self._done() < 1.0:
            self._train(make)
        self.modules.eval()
        return self.position

    def _train(self, make: Make) -> None:
        started = time.monotonic() - self.position.seconds
        self.modules.train()
        with _progress() as bar, (self.out / "log.jsonl").open("a", encoding="utf-8") as log:
            task = bar.add_task("", total=1.0, info="")
            for examples in self._stream(make):
                self._step(collate(examples, self.window))
                self.position.seconds = time.monotonic() - started
                bar.update(task, completed=self._done(), info=self._info())
                self._after_step(log)
                if self._done() >= 1.0:
                    break
        if self.position.step % self.settings.save_every:  # else it is saved, and the only copy is not written over
            self._save()

    def _stream(self, make: Make) -> Iterator[list[Example]]:
        """Batches by phase and pool; each pool is drawn from a seed of its own, so that a run can go on anywhere."""
        at = self.position
        while True:
            phase, tokens = at.phase, self.settings.batch_tokens
            rng = random.Random(f"{self.settings.seed} {phase} {at.pool}")
            for index, examples in enumerate(batches(make(phase), rng, tokens, POOL)):
                if index >= at.used:
                    at.used = index + 1
                    yield examples
                    if at.phase != phase:
                        break
            else:
                at.pool, at.used = at.pool + 1, 0

    def _step(self, batch: Batch) -> None:
        batch = _to(batch, self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bf16):
            loss = compute_loss(self.decoder, self.compressor, batch)
        loss.mean.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        rate = self.settings.learning_rate * self._schedule()
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self._count(loss.mean.item(), loss.num_correct / max(loss.num_learned, 1), loss.num_learned)

    def _count(self, loss: float, accuracy: float, learned: int) -> None:
        at = self.position
        if not math.isfinite(loss):
            raise CheckpointError(
                f"loss at step {at.step}", expected="a finite number", got=str(loss),
                remedy="Lower the learning rate and resume.",
            )  # fmt: skip
        weight = SMOOTHING if at.phase_step else 0.0
        at.loss = weight * at.loss + (1 - weight) * loss
        at.accuracy = weight * at.accuracy + (1 - weight) * accuracy
        at.step, at.phase_step, at.tokens = at.step + 1, at.phase_step + 1, at.tokens + learned

    def _after_step(self, log: Any) -> None:
        at = self.position
        if at.step % 20 == 0:
            log.write(json.dumps(dataclasses.asdict(at)) + "\n")
            log.flush()
        phase = self.phases[at.phase]
        last = at.phase == len(self.phases) - 1
        reached = at.phase_step >= LEAST_STEPS and at.accuracy >= phase.until
        if not last and (reached or at.phase_step >= phase.max_steps):
            logger.info("phase %d done at step %d, accuracy %.3f", at.phase, at.step, at.accuracy)
            at.phase, at.phase_step, at.pool, at.used = at.phase + 1, 0, at.pool + 1, 0
        if at.step % self.settings.save_every == 0:
            self._save()

    def _done(self) -> float:
        """Share of the run that is done, by steps or by time, whichever is further."""
        by_time = self.position.seconds / 60 / self.settings.max_minutes if self.settings.max_minutes else 0.0
        return max(self.position.step / self.settings.steps, by_time)

    def _schedule(self) -> float:
        warmup = min(1.0, (self.position.step + 1) / self.settings.warmup)
        return warmup * (0.1 + 0.45 * (1 + math.cos(math.pi * min(self._done(), 1.0))))

    def _info(self) -> str:
        at = self.position
        return (
            f"step {at.step} phase {at.phase + 1}/{len(self.phases)} loss {at.loss:.3f} accuracy {at.accuracy:.3f} "
            f"{at.tokens / max(at.seconds, 1e-9):,.0f} tokens/s"
        )

    def _save(self) -> None:
        """Write weights, moments and position beside the old ones, the position last."""
        folder = self.out / "resume"
        folder.mkdir(exist_ok=True)
        tag = f"{self.position.step}-"
        save_file({f"{i}": p.detach().contiguous() for i, p in enumerate(self.parameters)}, folder / (tag + WEIGHTS))
        save_file(_moments(self.optimiser, self.parameters), folder / (tag + MOMENTS))
        beside = folder / (STATE + ".part")
        beside.write_text(json.dumps(dataclasses.asdict(self.position)), encoding="utf-8")
        beside.replace(folder / STATE)
        for old in folder.glob("*.safetensors"):
            if not old.name.startswith(tag):
                old.unlink()

    def _resume(self) -> None:
        folder = self.out / "resume"
        self.position = Position(**json.loads((folder / STATE).read_text(encoding="utf-8")))
        weights = load_file(folder / f"{self.position.step}-{WEIGHTS}")
        if len(weights) != len(self.parameters):
            raise CheckpointError(
                f"run in {self.out}", expected=f"{len(self.parameters)} trained weights", got=str(len(weights)),
                remedy="It was made by another recipe: choose another --out.",
            )  # fmt: skip
        moments = load_file(folder / f"{self.position.step}-{MOMENTS}")
        with torch.no_grad():
            for index, parameter in enumerate(self.parameters):
                parameter.copy_(weights[f"{index}"])
                state = {name: moments[f"{index}.{name}"] for name in ("exp_avg", "exp_avg_sq", "step")}
                self.optimiser.state[parameter] = {name: moment.to(self.device) for name, moment in state.items()}
        logger.info("resumed at step %d", self.position.step)


def _freeze_others(modules: nn.Module, trainable: Iterable[Tensor]) -> list[nn.Parameter]:
    wanted = {id(parameter) for parameter in trainable}
    chosen = []
    for parameter in modules.parameters():  # each shared parameter once
        parameter.requires_grad_(id(parameter) in wanted)
        if parameter.requires_grad:
            chosen.append(parameter)
    return chosen


def _optimiser(parameters: list[nn.Parameter], settings: Optimisation) -> torch.optim.AdamW:
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)


def _compile(decoder: PreTrainedModel, compressor: Compressor | None) -> None:
    backbones = [backbone_of(decoder)]
    if compressor is not None:
        backbones += [compressor.encoder, compressor.alignment.block]
    for backbone in backbones:
        backbone.compile(dynamic=True)


def _moments(optimiser: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> dict[str, Tensor]:
    return {
        f"{index}.{name}": tensor.contiguous()
        for index, parameter in enumerate(parameters)
        for name, tensor in optimiser.state[parameter].items()
    }


def _to(batch: Batch, device: torch.device) -> Batch:
    moved = {name: getattr(batch, name).to(device) for name in ("input_ids", "labels", "soft_positions", "window_ids")}
    return dataclasses.replace(batch, **moved)


def _progress() -> Progress:
    return Progress(BarColumn(20), TextColumn("{task.percentage:.1f} % {task.fields[info]}"), TimeRemainingColumn())
