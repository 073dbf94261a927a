"""Run by test_group_merging.py in a process without TRITON_INTERPRET: compiles the kernels for GPUs that are not there.

Prints a line of JSON for each: registers, bytes spilled, and the instructions that load from global memory.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gmsa_rag.kernels import group_merging as ours

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
FLOATS = {"token_eps", "group_eps"}
COUNTS = {"num_groups", "groups_per_program"}
SCALES = {"token_scales", "group_scales", "token_partials", "group_partials"}
FORWARD = (ours.forward_kernel, ours.FORWARD_ROWS, ours.FORWARD_WARPS)
BACKWARD = (ours.backward_kernel, ours.BACKWARD_ROWS, ours.BACKWARD_WARPS)
NVIDIA = {"sm_80": ("cuda", 80, 32), "sm_90": ("cuda", 90, 32)}
AMD = {"gfx942": ("hip", "gfx942", 64)}


def compile_kernel(kernel: Any, rows: int, warps: int, target: GPUTarget, width: int, dtype: str, offset: float) -> Any:
    """A kernel with everything on: both norms, all gradients."""
    shape = ours.launch_shape(width, rows, warps)
    options = {"num_warps": shape.pop("num_warps")}
    constants = {"stride": width, "width": width, **shape, "token_offset": offset, "group_offset": offset}
    kinds = {"bounds": "*i32"} | dict.fromkeys(SCALES, "*fp32") | dict.fromkeys(FLOATS, "fp32")
    kinds |= dict.fromkeys(COUNTS, "i32") | dict.fromkeys(constants, "constexpr")
    signature = {name: kinds.get(name, f"*{dtype}") for name in kernel.arg_names}
    # What PyTorch allocates lies on 16 bytes or more; told so, loads are wide.
    attributes = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind[0] == "*"}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=target, options=options)


def measure_nvidia(compiled: Any, directory: Path) -> dict[str, int]:
    binary = directory / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    usage = subprocess.run([TOOLS / "cuobjdump", "-res-usage", binary], capture_output=True, text=True, check=True)
    code = subprocess.run([TOOLS / "nvdisasm", "-c", binary], capture_output=True, text=True, check=True).stdout
    found = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage.stdout + usage.stderr)}
    spilled = found["STACK"] + found["LOCAL"] + len(re.findall(r"\b(?:STL|LDL)\b", code))
    loads = re.findall(r"\bLDG\.E\S*", code)
    narrow = [load for load in loads if re.search(r"\.[US](8|16)\b", load)]
    return {"registers": found["REG"], "spilled": spilled, "wide": sum(".128" in load for load in loads),
            "narrow": len(narrow)}  # fmt: skip


def measure_amd(compiled: Any, directory: Path) -> dict[str, int]:
    text = compiled.asm["amdgcn"]
    counts = {name: int(number) for name, number in re.findall(r"\.(vgpr_count|[vs]gpr_spill_count):\s+(\d+)", text)}
    spilled = counts["vgpr_spill_count"] + counts["sgpr_spill_count"]
    return {"registers": counts["vgpr_count"], "spilled": spilled,
            "wide": len(re.findall(r"(?:buffer|global)_load_dwordx4", text)), "narrow": 0}  # fmt: skip


def main(directory: Path) -> None:
    cases = [("sm_90", 1000, "bf16", 0.0), ("sm_90", 2048, "fp32", 0.0), ("sm_90", 2048, "bf16", 0.0)]
    cases += [("sm_90", 3584, "bf16", 1.0), ("sm_90", 4096, "bf16", 0.0), ("sm_80", 2048, "bf16", 0.0)]
    cases += [("gfx942", width, "bf16", 0.0) for width in (1024, 4096)]
    for name, width, dtype, offset in cases:
        for kernel, rows, warps in (FORWARD, BACKWARD):
            target = GPUTarget(*(NVIDIA | AMD)[name])
            compiled = compile_kernel(kernel, rows, warps, target, width, dtype, offset)
            measured = (measure_amd if name in AMD else measure_nvidia)(compiled, directory)
            case = {"kernel": kernel.__name__, "target": name, "width": width, "dtype": dtype, "offset": offset}
            sys.stdout.write(json.dumps(case | measured) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
