"""What a run needs to go on exactly: weights, moments and place, as safetensors and JSON."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from gmsa_rag.errors import CheckpointError
from gmsa_rag.writing import beside

logger = logging.getLogger(__name__)
STATE, WEIGHTS, MOMENTS = "state.json", "weights.safetensors", "optimiser.safetensors"
# Numbers of a weight by which it is known.
SAMPLED = 64


def save_state(
    folder: Path, place: dict[str, Any], parameters: Sequence[nn.Parameter], optimiser: torch.optim.Optimizer, *,
    writes: bool = True,
) -> None:  # fmt: skip
    """Write weights, moments and place beside the old ones, the place last; then remove the old ones.

    Args:
        folder: Where to.
        place: Plain values with at least `step`.
        parameters: What learns; sharded ones are gathered.
        optimiser: Of these, after at least one step; its state of each is tensors.
        writes: Whether this process writes; all that train together call this, since gathering needs all of them.

    Raises:
        CheckpointError: If a weight is not finite. The old ones are left as they are then.
    """
    weights = {f"{index}": _whole(parameter) for index, parameter in enumerate(parameters)}
    if broken := [name for name, weight in weights.items() if not weight.isfinite().all()]:
        raise diverged(
            f"weights at step {place['step']}", f"NaN or infinity in {len(broken)} of {len(weights)} tensors"
        )
    moments = {
        f"{index}.{name}": _whole(value)
        for index, parameter in enumerate(parameters)
        for name, value in optimiser.state[parameter].items()
    }
    if not writes:
        return
    folder.mkdir(parents=True, exist_ok=True)
    tag = f"{place['step']}-"
    save_file(weights, folder / (tag + WEIGHTS))
    save_file(moments, folder / (tag + MOMENTS))
    with beside(folder / STATE) as part:
        part.write_text(json.dumps(place), encoding="utf-8")
    for old in folder.glob("*.safetensors"):
        if not old.name.startswith(tag):
            old.unlink()


def diverged(what: str, got: str) -> CheckpointError:
    """The error of a run that no longer computes numbers; what it saved last still does."""
    return CheckpointError(
        what, expected="finite numbers", got=got,
        remedy="Lower the recipe's learning_rate or clip and start the run again: it goes on from what it saved last.",
    )  # fmt: skip


def load_state(
    folder: Path, parameters: Sequence[nn.Parameter], optimiser: torch.optim.Optimizer, *, start: str = ""
) -> dict[str, Any] | None:
    """Put weights and moments back.

    Args:
        folder: Where from.
        parameters: What learns.
        optimiser: Of these.
        start: Digest of the weights that this run begins with; the saved place names those of its own.

    Returns:
        The place that was saved, or None where nothing was.

    Raises:
        CheckpointError: If the run began with other weights than these. Nothing is changed then.
    """
    if not (folder / STATE).exists():
        return None
    place: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
    weights = load_file(folder / f"{place['step']}-{WEIGHTS}")
    shapes = [tuple(weights[f"{index}"].shape) for index in range(len(weights))]
    if shapes != [tuple(parameter.shape) for parameter in parameters]:
        raise CheckpointError(
            f"run in {folder.parent}", expected=f"{len(parameters)} trained weights of this model's shapes",
            got=f"{len(weights)}, or other shapes", remedy="It was made by another recipe: choose another --out.",
        )  # fmt: skip
    if place.get("start", "") != start:
        raise CheckpointError(
            f"run in {folder.parent}", expected="the base or checkpoint that it was started with", got="another one",
            remedy="Give it the first one again, or choose another --out.",
        )  # fmt: skip
    moments = load_file(folder / f"{place['step']}-{MOMENTS}")
    with torch.no_grad():
        for index, parameter in enumerate(parameters):
            parameter.copy_(_placed(weights[f"{index}"], parameter))
    for key, moment in moments.items():
        number, _, name = key.partition(".")
        parameter = parameters[int(number)]
        # A count of steps is one number, in whatever way the parameter is sharded.
        placed = _placed(moment, parameter) if moment.dim() else moment.to(parameter.device)
        optimiser.state[parameter][name] = placed
    logger.info("resumed at step %d", place["step"])
    return place


def digest_weights(model: nn.Module) -> str:
    """A digest that tells a model's weights from another's, made of their names, shapes and some of their numbers."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(flat[:: max(1, flat.numel() // SAMPLED)].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def unshard(model: nn.Module) -> None:
    """Put whole parameters in the place of sharded ones; shared ones stay shared. All processes call it together."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if isinstance(parameter, DTensor):
                whole = made.setdefault(id(parameter), nn.Parameter(_whole(parameter), parameter.requires_grad))
                setattr(module, name, whole)


def _whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu().contiguous()


def _placed(whole: Tensor, like: Tensor) -> Tensor:
    """A tensor on another's device, sharded as it is."""
    if isinstance(like, DTensor):
        return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements)
    return whole.to(like.device)
