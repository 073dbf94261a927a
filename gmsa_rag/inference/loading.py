"""Where a checkpoint's name, a device and a dtype lead."""

import json
import logging
from functools import cache
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from gmsa_rag.errors import CheckpointError, ConfigError, first_line

logger = logging.getLogger(__name__)

BUNDLED = Path(__file__).parents[1] / "checkpoints"


def resolve_checkpoint(
    name: str | Path, *, revision: str | None = None, token: str | None = None, local_files_only: bool = False
) -> Path:
    """Directory of a checkpoint: a bundled name, a directory, or a hub id, in this order.

    Raises:
        CheckpointError: If there is none.
    """
    bundled = BUNDLED / str(name)
    if isinstance(name, str) and "/" not in name and (bundled / "config.json").is_file():
        return bundled
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(str(name), revision=revision, token=token, local_files_only=local_files_only))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        known = sorted(path.name for path in BUNDLED.iterdir() if (path / "config.json").is_file())
        raise CheckpointError(
            f"checkpoint {name}",
            expected=f"a bundled name ({', '.join(known) or 'none here'}), a directory or a reachable hub id",
            got=first_line(error),
            remedy="Check the name, or download it and give its directory.",
        ) from error


def recorded_fingerprint(name: str) -> str | None:
    """What the config.json of a bundled name or a directory says; None for a hub id, or where it says nothing."""
    for folder in (BUNDLED / name, Path(name)):
        if (folder / "config.json").is_file():
            try:
                config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            except ValueError:  # loading the checkpoint says what is wrong with it
                return None
            fingerprint = config.get("fingerprint") if isinstance(config, dict) else None
            return fingerprint if fingerprint and isinstance(fingerprint, str) else None
    return None


def resolve_device(device: str) -> str:
    """Resolve "auto" to cuda, mps or cpu, the first there is; anything else if torch knows it, or ConfigError."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            "device",
            expected="auto, cpu, or one this machine has",
            got=f"{device} ({str(error).splitlines()[0]})",
            remedy="Use device='auto'.",
        ) from error
    return device


def resolve_dtype(dtype: str | torch.dtype, device: str) -> torch.dtype | None:
    """A torch dtype; None, the files' own, for "auto" on a GPU; float32 for "auto" on a CPU."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float32 if device == "cpu" else None
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError(
            "dtype", expected="auto, float32, bfloat16 or float16", got=repr(dtype), remedy="Choose one of these."
        )
    return found


@cache
def warn_of_slow_dtype(device: str, dtype: torch.dtype) -> None:
    """Say once where a CPU computes bfloat16 in software: float32 is up to a hundred times as fast there."""
    if device != "cpu" or dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available():
        return
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        logger.warning(
            "this CPU has no instructions for bfloat16 and computes in it many times slower than in float32; "
            "use float32 (in a recipe bf16: false)"
        )
