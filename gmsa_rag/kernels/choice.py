"""Which implementation computes: the Triton kernels or their plain reference."""

import logging
import os
from functools import cache
from importlib.util import find_spec
from typing import Literal, cast

import torch

from gmsa_rag.errors import ConfigError

logger = logging.getLogger(__name__)

SETTING = "GMSA_KERNELS"
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
Kernels = Literal["triton", "reference"]


def choose_kernels(device: torch.device, dtype: torch.dtype, kernels: str | None = None) -> Kernels:
    """Choose for tensors of a device and dtype; each choice is logged once.

    Args:
        device: Where the states are.
        dtype: Of the states.
        kernels: "auto" takes Triton for float32, float16 and bfloat16 on a GPU where it is installed, and the
            reference elsewhere; "triton" and "reference" insist. None reads the environment variable GMSA_KERNELS,
            "auto" where that is not set.

    Raises:
        ConfigError: If Triton is asked for where it cannot run, or the setting is unknown.
    """
    setting, obstacle = _setting(kernels), _triton_obstacle(device.type, dtype)
    if setting == "triton" and obstacle:
        raise ConfigError(
            "kernels", expected="tensors and an installation that Triton can compute with", got=obstacle,
            remedy=f"Set {SETTING} to auto or reference.",
        )  # fmt: skip
    # Asked for on a CPU, Triton interprets; that is for tests alone.
    automatic: Kernels = "triton" if device.type == "cuda" and not obstacle else "reference"
    chosen = automatic if setting == "auto" else cast(Kernels, setting)
    _log_once(chosen, setting, str(device.type), obstacle)
    return chosen


def fuses_norms(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether group merging takes the norms around it over from the layers that hold them.

    It does with Triton, where that saves passes over memory, and with "reference", which computes the same thing for
    comparison. Where "auto" finds no GPU, the layers' own norms stay in use.

    Raises:
        ConfigError: As `choose_kernels`.
    """
    return choose_kernels(device, dtype) == "triton" or _setting(None) == "reference"


def _setting(kernels: str | None) -> str:
    setting = kernels or os.environ.get(SETTING) or "auto"
    if setting not in ("auto", "triton", "reference"):
        raise ConfigError(SETTING, expected="auto, triton or reference", got=repr(setting), remedy="Set one of these.")
    return setting


def _triton_obstacle(device: str, dtype: torch.dtype) -> str:
    """Why Triton cannot compute, "" if it can."""
    if not _has_triton():
        return "no package triton"
    if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"tensors on {device}"
    return "" if dtype in KERNEL_DTYPES else f"tensors of {dtype}"


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _log_once(chosen: str, setting: str, device: str, obstacle: str) -> None:
    why = f" ({obstacle})" if obstacle and setting == "auto" else ""
    logger.info("group merging on %s: %s, as %s=%s says%s", device, chosen, SETTING, setting, why)
