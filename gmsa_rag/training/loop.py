"""The training loop all stages share, on accelerate: steps, schedule, curriculum, checkpoints and exact resume."""

import dataclasses
import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from transformers import PreTrainedModel

from gmsa_rag.errors import CheckpointError
from gmsa_rag.inference.loading import warn_of_slow_dtype
from gmsa_rag.modeling.alignment import backbone_of
from gmsa_rag.training.logs import RunLog, progress
from gmsa_rag.training.objective import Loss, Objective, embedding_weights
from gmsa_rag.training.optimisers import check_whole, make_optimiser
from gmsa_rag.training.pools import Draw, Make, Pair, Place, Pools, stream
from gmsa_rag.training.recipe import Optimisation, Phase
from gmsa_rag.training.resuming import digest_weights, diverged, load_state, save_state, unshard

logger = logging.getLogger(__name__)
# Sums stay on the device for so many steps: reading them waits for a GPU.
LOG_EVERY = 20
RECOMPILE_LIMIT = 64
ONE_PHASE = (Phase((1,), (1, 1)),)


@dataclass
class Position:
    """Where a run stands; saved, so that a resumed run draws the same batches.

    Attributes:
        step: Steps done.
        phase: Phase of the curriculum.
        phase_step: Steps done in it.
        places: Where each process stands among its pools.
        seconds: Time trained.
        accuracy: Token accuracy over the last steps that were logged.
        loss: Loss over them, nats a token.
        tokens: Learned tokens so far.
        sums: Loss, correct tokens, learned tokens and batches since the last log.
        start: Digest of the weights that the run began with.
    """

    step: int = 0
    phase: int = 0
    phase_step: int = 0
    places: list[dict[str, int]] = field(default_factory=list)
    seconds: float = 0.0
    accuracy: float = 0.0
    loss: float = 0.0
    tokens: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0] * 4)
    start: str = ""


class Run:
    """One stage of training in a directory, in one process or in several started by `accelerate launch`.

    Args:
        out: Directory of the run: `log.jsonl` and what `RunLog` adds, and `resume/` with what a resumed run needs.
        settings: How it steps.
        objective: What is trained; its backbones are compiled where the settings say so.
        trainable: Parameters that learn; all others are frozen.
        window: The compressor's window.
        phases: Curriculum, at least one phase.
        device: "cpu", or "cuda" for the GPU that accelerate gives this process.
    """

    def __init__(
        self,
        out: Path,
        settings: Optimisation,
        objective: Objective,
        trainable: Iterable[Tensor],
        *,
        window: int,
        phases: tuple[Phase, ...] = ONE_PHASE,
        device: str = "cpu",
    ) -> None:
        self.out, self.settings, self.window, self.phases = out, settings, window, phases
        self.place = Place()
        self.taught = objective.teacher is not None
        warn_of_slow_dtype(device, torch.bfloat16 if settings.bf16 else torch.float32)
        # A mixture of experts may leave some of its weights without a gradient.
        unused = DistributedDataParallelKwargs(find_unused_parameters=True)
        self.accelerator = Accelerator(cpu=device == "cpu", kwargs_handlers=[unused])
        self.position = Position(start=self._of_the_first(digest_weights(objective)))
        _freeze_others(objective, trainable)
        _prepare_backbones(objective, settings)
        optimiser = make_optimiser(_learning(objective), settings, embeddings=embedding_weights(objective.decoder))
        self.objective, self.optimiser = self.accelerator.prepare(objective, optimiser)
        self.parameters = _learning(self.objective)  # sharding replaces them
        check_whole(self.parameters, settings)
        self._sums = torch.zeros(2, device=self.accelerator.device)  # loss, correct tokens
        self._counts = [0.0, 0.0]  # learned tokens, batches

    def train(self, make: Make) -> Position:
        """Train to the end, from where an earlier run in the same directory stopped.

        Args:
            make: For a phase, the function that draws its examples.

        Returns:
            Where the run ended.

        Raises:
            CheckpointError: If the run in the directory began with other weights or has other processes, or the loss or
                a weight is not finite.
            ConfigError: If a phase, a later one included, cannot be drawn.
            DataError: Likewise, for want of text.
        """
        draws = [
            make(phase) for phase in range(len(self.phases))
        ]  # a last phase that cannot be is found before the first
        self.out.mkdir(parents=True, exist_ok=True)
        self._resume()
        if self._done() < 1.0:
            self._train(draws)
        self.accelerator.unwrap_model(self.objective).eval()
        return self.position

    def gather(self) -> bool:
        """Make sharded weights whole again, in every process, and say whether this one is to save them."""
        unshard(self.accelerator.unwrap_model(self.objective))
        return bool(self.accelerator.is_main_process)

    def _train(self, draws: Sequence[Draw]) -> None:
        started = time.monotonic() - self.position.seconds
        self.objective.train()
        log = RunLog(self.out, self.position.step, writes=self.accelerator.is_main_process)
        with progress(self.accelerator.is_main_process) as (bar, task):
            batches = self._batches(draws)
            while self._done() < 1.0:
                self._step(batches)
                self.position.seconds = self._agreed(time.monotonic() - started)
                if self.position.step % LOG_EVERY == 0:
                    log.write(self._row())
                    bar.update(task, completed=self._done(), info=self._info())
                self._end_phase()
                if self.position.step % self.settings.save_every == 0:
                    self._save()
        if self.position.step % self.settings.save_every:  # else it is saved, and the only copy is not written over
            self._save()
        log.close()

    def _batches(self, draws: Sequence[Draw]) -> Iterator[Pair]:
        while True:
            phase, rank = self.position.phase, self.accelerator.process_index
            pools = Pools(draws[phase], self.settings, self.window, phase, rank, self.taught)
            for pair in stream(pools, self.place, pin=self.accelerator.device.type == "cuda"):
                yield pair
                if self.position.phase != phase:
                    break

    def _step(self, batches: Iterator[Pair]) -> None:
        # Dropout draws from a seed of the step's own, so that a resumed run draws the same.
        seed = f"{self.settings.seed:04d}{self.position.step:08d}{self.accelerator.process_index:04d}"
        torch.manual_seed(int(seed) % 2**64)
        for left in reversed(range(self.settings.accumulate)):
            batch, texts = next(batches)
            device = self.accelerator.device
            with self.accelerator.no_sync(self.objective) if left else nullcontext():
                loss = self.objective(batch.to(device), texts.to(device) if texts else None)
                self.accelerator.backward(loss.mean / self.settings.accumulate)
            self._count(loss)
        self.accelerator.clip_grad_norm_(self.parameters, self.settings.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = self._learning_rate()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.position.step, self.position.phase_step = self.position.step + 1, self.position.phase_step + 1

    def _count(self, loss: Loss) -> None:
        self._sums += torch.stack([loss.mean.detach().float(), loss.num_correct.float()])
        self._counts = [self._counts[0] + loss.num_learned, self._counts[1] + 1]

    def _summed(self) -> list[float]:
        """Sums and counts since the last log, of all processes."""
        own = torch.cat([self._sums, torch.tensor(self._counts, device=self._sums.device)])
        summed: list[float] = self.accelerator.reduce(own, reduction="sum").tolist()
        return summed

    def _agreed(self, seconds: float) -> float:
        """The first process's time, so that all end at the same step; asked now and then, since asking is slow."""
        if self.accelerator.num_processes == 1:
            return seconds
        if self.position.step % LOG_EVERY:
            return self.position.seconds
        return float(self._of_the_first(seconds))

    def _of_the_first(self, value: Any) -> Any:
        """The first process's value, in all."""
        return broadcast_object_list([value])[0]

    def _row(self) -> dict[str, Any]:
        at = self.position
        sums = self._summed()
        self._sums.zero_()
        self._counts = [0.0, 0.0]
        at.loss, at.accuracy, at.tokens = sums[0] / sums[3], sums[1] / max(sums[2], 1), at.tokens + int(sums[2])
        if not math.isfinite(at.loss):
            raise diverged(f"loss of the steps before {at.step}", str(at.loss))
        names = ("step", "phase", "phase_step", "loss", "accuracy", "tokens", "seconds")
        return {name: getattr(at, name) for name in names} | {"learning_rate": self._learning_rate()}

    def _end_phase(self) -> None:
        at, phase = self.position, self.phases[self.position.phase]
        logged = at.step % LOG_EVERY == 0 and at.phase_step >= LOG_EVERY
        reached = logged and at.accuracy >= phase.until
        if at.phase < len(self.phases) - 1 and (reached or at.phase_step >= phase.max_steps):
            logger.info("phase %d done at step %d, accuracy %.3f", at.phase, at.step, at.accuracy)
            at.phase, at.phase_step = at.phase + 1, 0
            self.place.pool, self.place.used = self.place.pool + 1, 0

    def _done(self) -> float:
        """Share of the run that is done, by steps or by time, whichever is further."""
        by_time = self.position.seconds / 60 / self.settings.max_minutes if self.settings.max_minutes else 0.0
        return max(self.position.step / self.settings.steps, by_time)

    def _learning_rate(self) -> float:
        warmup = min(1.0, (self.position.step + 1) / max(self.settings.warmup, 1))
        falling = 0.1 + 0.45 * (1 + math.cos(math.pi * min(self._done(), 1.0)))
        return self.settings.learning_rate * warmup * falling

    def _info(self) -> str:
        at = self.position
        return (
            f"step {at.step} phase {at.phase + 1}/{len(self.phases)} loss {at.loss:.3f} accuracy {at.accuracy:.3f} "
            f"{at.tokens / max(at.seconds, 1e-9):,.0f} tokens/s"
        )

    def _save(self) -> None:
        self.position.places = gather_object([dataclasses.asdict(self.place)])
        self.position.sums = self._summed()
        writes = self.accelerator.is_main_process
        where = self.out / "resume"
        save_state(where, dataclasses.asdict(self.position), self.parameters, self.optimiser, writes=writes)

    def _resume(self) -> None:
        values = load_state(self.out / "resume", self.parameters, self.optimiser, start=self.position.start)
        if values is None:
            return
        self.position = Position(**values)
        if len(self.position.places) != self.accelerator.num_processes:
            raise CheckpointError(
                f"run in {self.out}", expected=f"{len(self.position.places)} processes, as it was started with",
                got=str(self.accelerator.num_processes), remedy="Launch as many, or choose another --out.",
            )  # fmt: skip
        self.place = Place(**self.position.places[self.accelerator.process_index])
        if self.accelerator.is_main_process:  # the others' sums are in the first one's
            self._sums += torch.tensor(self.position.sums[:2], device=self._sums.device)
            self._counts = self.position.sums[2:]


def _freeze_others(objective: nn.Module, trainable: Iterable[Tensor]) -> None:
    wanted = {id(parameter) for parameter in trainable}
    for parameter in objective.parameters():
        parameter.requires_grad_(id(parameter) in wanted)
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()


def _learning(objective: nn.Module) -> list[nn.Parameter]:
    """Parameters that learn, each shared one once."""
    return [parameter for parameter in objective.parameters() if parameter.requires_grad]


def _prepare_backbones(objective: Objective, settings: Optimisation) -> None:
    if settings.compile:
        # All backbones share one compiled function of transformers, and each has a graph for lone rows, too.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    models: list[Any] = [module for module in objective.modules() if isinstance(module, PreTrainedModel)]
    for backbone in [model for model in models if backbone_of(model) is model]:
        if settings.attention:
            backbone.set_attn_implementation(settings.attention)
        if settings.gradient_checkpointing:
            _recompute_activations(backbone)
        if settings.compile:
            backbone.compile(dynamic=True)


def _recompute_activations(backbone: Any) -> None:
    if hasattr(backbone, "activation_checkpointing_enable"):
        backbone.activation_checkpointing_enable()
    else:  # transformers before 5.23 knows it by the older name alone
        backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
