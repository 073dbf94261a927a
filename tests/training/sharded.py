"""Autoencodes with weights that accelerate shards over the processes of `torchrun`, on CPUs.

Accelerate sets sharding up on accelerators alone. Here its `prepare` is replaced by what it calls there, with the
bundled configuration, and the optimiser is given the shards by their names, as accelerate does it.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

import gmsa_rag.training
from gmsa_rag.training.autoencoding import autoencode
from gmsa_rag.training.recipe import AutoencodeRecipe
from gmsa_rag.training.recipe_file import load_recipe

BUNDLED = Path(gmsa_rag.training.__file__).parent / "launch" / "fsdp.yaml"


def prepare(accelerator: Accelerator, objective: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[Any, Any]:
    """Shard a model and hand its shards to its optimiser."""
    settings = yaml.safe_load(BUNDLED.read_text())["fsdp_config"]
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=settings["fsdp_version"],
        auto_wrap_policy=settings["fsdp_auto_wrap_policy"].lower(),
        reshard_after_forward=settings["fsdp_reshard_after_forward"],
        state_dict_type=settings["fsdp_state_dict_type"],
        cpu_ram_efficient_loading=True,  # what `accelerate launch` sets unless it is told otherwise
    )
    whole = {id(parameter): name for name, parameter in objective.named_parameters()}
    stand_in = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin), device=torch.device("cpu"), mixed_precision="no",
        torch_device_mesh=init_device_mesh("cpu", (accelerator.num_processes,), mesh_dim_names=("dp",)),
        parallelism_config=SimpleNamespace(fsdp_dim_names=["dp"]), is_main_process=accelerator.is_main_process,
        process_index=accelerator.process_index, num_processes=accelerator.num_processes,
    )  # fmt: skip
    objective = fsdp2_prepare_model(stand_in, objective)
    shards = dict(objective.named_parameters())
    assert all(isinstance(shard, DTensor) for shard in shards.values())
    assert shards.keys() == set(whole.values()), "sharding has parted shared weights"
    for group in optimiser.param_groups:
        group["params"] = [shards[whole[id(parameter)]] for parameter in group["params"]]
    return objective, optimiser


def main(recipe: str, base: str, data: str, out: str) -> None:
    """Train, and leave a note of where."""
    torch.set_num_threads(1)
    Accelerator.prepare = prepare  # type: ignore[method-assign, assignment]
    autoencode(load_recipe(Path(recipe), AutoencodeRecipe), base, Path(data), Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
