"""A published state dict: read from its files, then emptied tensor by tensor, so that nothing is left unseen."""

import json
import pickle
import re
import struct
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gmsa_rag.errors import CheckpointError

SAFETENSORS, TORCH, INDEX = ".safetensors", (".bin", ".pt", ".pth"), ".index.json"
FILES = tuple(f"{name}{end}" for name in ("model.safetensors", "pytorch_model.bin") for end in ("", INDEX))
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# What a model wrapped for training on several devices puts in front of every name.
WRAPPER = "module."
MOST_NAMED = 8
# torch's unpickler does not check what it reads: these are what damaged bytes make it raise.
DAMAGE = (
    OSError, ValueError, RuntimeError, EOFError, LookupError, TypeError, AttributeError, AssertionError,
    ArithmeticError, MemoryError, struct.error, pickle.UnpicklingError, SafetensorError,
)  # fmt: skip


class StateDict:
    """The tensors of a state dict. Taking one removes it; what is wrong is gathered and raised by `finish`.

    Args:
        tensors: Name to tensor.
        where: File or directory they are from, for errors.
    """

    def __init__(self, tensors: dict[str, Tensor], where: Path) -> None:
        self.where = where
        self._tensors = dict(tensors)
        self._missing: list[str] = []
        self._unfit: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def named(self, pattern: str) -> dict[str, Tensor]:
        """The tensors not taken yet whose names begin with a regular expression's match."""
        return {name: tensor for name, tensor in self._tensors.items() if re.match(pattern, name)}

    def num_layers(self, prefix: str, limit: int) -> int:
        """Layers below a prefix, by the highest number in a name; at least 1 and at most the limit."""
        numbers = (name.removeprefix(f"{prefix}layers.").split(".")[0] for name in self.named(re.escape(prefix)))
        return min(max((int(number) + 1 for number in numbers if number.isdecimal()), default=1), limit)

    def take(self, name: str, shape: torch.Size) -> Tensor:
        """Remove a tensor and return it; zeros in its place where it is missing or does not fit."""
        tensor = self._tensors.pop(name, None)
        if tensor is None:
            self._missing.append(name)
        elif tensor.shape != shape:
            self._unfit.append(f"{name} of shape {tuple(tensor.shape)} in the place of {tuple(shape)}")
        elif tensor.dtype not in DTYPES:
            self._unfit.append(f"{name} of dtype {tensor.dtype}")
        else:
            return tensor
        return torch.zeros(shape)

    def take_equal(self, name: str, other: Tensor) -> None:
        """Remove a tensor, if it is there, that has to equal another."""
        tensor = self._tensors.pop(name, other)
        if tensor.dtype != other.dtype or not torch.equal(tensor, other):
            self._unfit.append(f"{name} that differs from the embeddings, to which the base ties it")

    def finish(self, unused: re.Pattern[str]) -> None:
        """Raise CheckpointError if tensors were missing or unfit, or are left and their names are not of the unused."""
        left = [name for name in self._tensors if not unused.fullmatch(name)]
        wrong = [*_listed("unexpected", left), *_listed("missing", self._missing), *_listed("unfit", self._unfit)]
        if wrong:
            remedy = "Check that the base is the model it was trained on, and that the checkpoint is whole."
            raise _unreadable(self.where, "; ".join(wrong), remedy)


def read_state_dict(checkpoint: Path) -> StateDict:
    """Read a state dict without running any code it may hold.

    Args:
        checkpoint: A .safetensors file, a torch file (.bin, .pt, .pth), an index of shards, or a directory with one of
            these under its usual name; safetensors come first.

    Returns:
        Its tensors on the CPU, in the files' dtypes, without a leading `module.` that all names have.

    Raises:
        CheckpointError: If there is none, it is damaged, or it holds anything but tensors by name.
    """
    file = _find(checkpoint)
    tensors = _read_shards(file) if file.name.endswith(INDEX) else _read_file(file)
    if all(name.startswith(WRAPPER) for name in tensors):
        tensors = {name.removeprefix(WRAPPER): tensor for name, tensor in tensors.items()}
    return StateDict(tensors, checkpoint)


def _find(checkpoint: Path) -> Path:
    files = [checkpoint / name for name in FILES] if checkpoint.is_dir() else [checkpoint]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        got = f"none of {', '.join(FILES)} there" if checkpoint.is_dir() else "nothing there"
        raise _unreadable(checkpoint, got, "Give the file that holds the weights.")
    if not found.name.endswith((SAFETENSORS, *TORCH, INDEX)):
        raise _unreadable(found, "a file of another name", f"Give a file that ends in {SAFETENSORS} or {TORCH[0]}.")
    return found


def _read_shards(index: Path) -> dict[str, Tensor]:
    try:
        places: dict[str, str] = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        if outside := [file for file in places.values() if Path(file).name != file]:
            raise _unreadable(index, f"a path outside the checkpoint, {outside[0]!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(index, f"{type(error).__name__}: {error}") from error
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(places.values())):
        shard = _read_file(index.with_name(file))
        if differing := shard.keys() ^ {name for name, place in places.items() if place == file}:
            raise _unreadable(index, f"a shard {file} that it describes wrongly: {min(differing)}")
        tensors |= shard
    return tensors


def _read_file(file: Path) -> dict[str, Tensor]:
    try:
        if file.name.endswith(SAFETENSORS):
            return load_file(file)
        # Only tensors and plain containers are unpickled: anything else that a file holds is refused unrun.
        content = torch.load(file, map_location="cpu", weights_only=True)
    except DAMAGE as error:
        first_line = str(error).partition("\n")[0]
        raise _unreadable(file, f"{type(error).__name__}: {first_line}") from error
    if not isinstance(content, dict):
        raise _unreadable(file, f"a {type(content).__name__}")
    if other := [name for name, tensor in content.items() if not (isinstance(name, str) and torch.is_tensor(tensor))]:
        raise _unreadable(file, f"{other[0]!r}, which is no tensor", "Save the model's state dict alone.")
    return content


def _listed(what: str, names: list[str]) -> list[str]:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return [f"{what} {', '.join(names[:MOST_NAMED])}{more}"] if names else []


def _unreadable(path: Path, got: str, remedy: str = "Fetch or save the checkpoint again.") -> CheckpointError:
    return CheckpointError(
        f"published checkpoint {path}", expected="a whole state dict of the GMSA model", got=got, remedy=remedy
    )
