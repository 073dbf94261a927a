"""Autoencodes with weights that torch shards over the processes of `torchrun`, on CPUs.

Accelerate sets sharding up on accelerators alone. Here its `prepare` is replaced by the same steps: each decoder layer
is a group of its own, the rest another one, and the optimiser steps on the shards.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from gmsa_rag.training.autoencoding import autoencode
from gmsa_rag.training.recipe import AutoencodeRecipe
from gmsa_rag.training.recipe_file import load_recipe


def prepare(accelerator: Accelerator, objective: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[Any, Any]:
    """Shard a model and hand its shards to its optimiser."""
    mesh = init_device_mesh("cpu", (accelerator.num_processes,))
    whole = dict(objective.named_parameters())
    for module in objective.modules():
        if type(module).__name__ in objective._no_split_modules:
            fully_shard(module, mesh=mesh)
    fully_shard(objective, mesh=mesh)
    shards = {id(whole[name]): shard for name, shard in objective.named_parameters()}
    assert all(isinstance(shard, DTensor) for shard in shards.values())
    for group in optimiser.param_groups:
        group["params"] = [shards[id(parameter)] for parameter in group["params"]]
    return objective, optimiser


def main(recipe: str, base: str, data: str, out: str) -> None:
    """Train, and leave a note of where."""
    torch.set_num_threads(1)
    Accelerator.prepare = prepare  # type: ignore[method-assign, assignment]
    autoencode(load_recipe(Path(recipe), AutoencodeRecipe), base, Path(data), Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
