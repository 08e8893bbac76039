"""Compiles the Triton kernels for every architecture without a GPU and prints registers, spills and wide loads.

python scripts/triton_budget.py [--check] [ARCHITECTURE ...]

With --check it exits with status 1 if a kernel keeps anything on the stack. Triton's versions differ in that, so run it
with the oldest one that torch brings along (scripts/check_oldest_torch.sh does) and with the newest.
"""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
# Contiguous float32 tensors, 16-byte aligned, with a width divisible by 16, as the JIT would specialise them.
TILE = {"ROWS": 8, "COLUMNS": 64}
SHARED = {"PADDING": 2, "WIDE": False, "DTYPE": "float32", **TILE}
NETWORK = {"C": 4, **TILE}
# A kernel's name in the table: its module in ffmef.kernels, the function, and its constants.
KERNELS = {
    "forward_kernel": ("adaptive_fuse", {"COARSE": False, "SIZE_0": 1, "SIZE_1": 3, "SIZE_2": 5, "SIZE_3": 0, "ADD": False, "GROUP": 1, **SHARED}),
    "forward_kernel of zeros": ("adaptive_fuse", {
        "COARSE": False, "SIZE_0": 1, "SIZE_1": 3, "SIZE_2": 5, "SIZE_3": 0, "ADD": False, "GROUP": 1, **SHARED, "PADDING": 0}),
    "filters_gradient_kernel": ("adaptive_fuse", {"SIZE": 5, "NEED_FILTERS": True, "NEED_ALPHA": True, **SHARED}),
    "cells_gradient_kernel": ("adaptive_fuse", {"SIZE": 5, "NEED_FILTERS": True, "NEED_ALPHA": True, **SHARED}),
    "forward_kernel of cells": ("adaptive_fuse", {
        "COARSE": True, "SIZE_0": 5, "SIZE_1": 0, "SIZE_2": 0, "SIZE_3": 0, "ADD": False, "GROUP": 1, **SHARED}),
    "images_gradient_kernel": ("adaptive_fuse", {"COARSE": False, "SIZE": 5, "ADD": False, "GROUP": 1, **SHARED}),
    "level_kernel": ("predict_and_fuse", {"SIZE": 5, "ADD": False, "GROUP": 8, **SHARED}),
    # A block's first and second convolutions, the second with the most around it, and a head's first.
    "convolution_kernel": ("ffmef_forward", {
        "KIND": "MAP", "SECOND": True, "TAIL": "RAW", "IDENTITY": "MAP", "MERGE": False, "MOMENTS": True, **NETWORK}),
    "convolution_kernel merge": ("ffmef_forward", {
        "KIND": "LEAKY", "SECOND": False, "TAIL": "RESIDUAL", "IDENTITY": "MAP", "MERGE": True, "MOMENTS": False, **NETWORK}),
    "convolution_kernel gated": ("ffmef_forward", {
        "KIND": "GATED", "SECOND": False, "TAIL": "RECTIFY", "IDENTITY": "GATED", "MERGE": False, "MOMENTS": False, **NETWORK}),
    "convolution_kernel of 16 channels": ("ffmef_forward", {
        "KIND": "LEAKY", "SECOND": False, "TAIL": "RESIDUAL", "IDENTITY": "MAP", "MERGE": True, "MOMENTS": False, **NETWORK,
        "C": 16}),
    "point_kernel moments": ("ffmef_forward", {"BASE": "RECTIFIED", "SKIP": "MAP", "STORE": False, **NETWORK}),
    "point_kernel": ("ffmef_forward", {"BASE": "RECTIFIED", "SKIP": "STEM", "STORE": True, **NETWORK}),
    "norm_kernel": ("ffmef_forward", {"NORMED": 4, "BLOCK": 1024, **NETWORK}),
    "attention_kernel": ("ffmef_forward", {"IMAGES": 2, **NETWORK}),
    "head_kernel": ("ffmef_forward", {"ADD": True, "SIZE": 5, "GROUPS": 4, "GROUP": 8, "IMAGES": 2, **NETWORK}),
    "head_kernel of 7 x 7": ("ffmef_forward", {"ADD": True, "SIZE": 7, "GROUPS": 7, "GROUP": 8, "IMAGES": 2, **NETWORK}),
}  # fmt: skip
# pyramid_fuse: the finest of three bands with cells of 8 x 8 pixels, and a level between.
PYRAMID_KERNELS = {
    "halve_kernel of a pyramid": ("pyramid_fuse", SHARED),
    "fuse_kernel of a pyramid": ("pyramid_fuse", {"FACTOR": 8, "HAS_BELOW": True, **SHARED}),
    "adjoint_kernel of a pyramid": ("pyramid_fuse", SHARED),
    "weights_gradient_kernel of a pyramid": ("pyramid_fuse", {"FACTOR": 8, "HAS_BELOW": True, "CELLS": 8, **SHARED}),
    "images_gradient_kernel of a pyramid": (
        "pyramid_fuse",
        {"FACTOR": 4, "HAS_FINER": True, "HAS_BELOW": True, **SHARED},
    ),
}
INTEGERS = re.compile(
    r"(image|filter|gradient|hidden|cell|fine|fine_cell|output)_(batch|image|channel|tap|map|row|column)|(batch|image|tap|row|column)_\d"
    r"|count|channels|height|width|groups|size_class|maps|(fine|below)_(height|width)|cells_(down|across)|most_rows|most_columns"
)
LAST_STRIDES = re.compile(r"(image|filter|gradient|hidden|cell|fine|fine_cell)_column|column_\d")


def compile_kernel(name: str, architecture: int) -> dict[str, int]:
    """Compile one kernel for one architecture; return registers, stack bytes, and 16-byte loads and stores."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module_name, constants = (KERNELS | PYRAMID_KERNELS)[name]
    kernels = importlib.import_module(f"ffmef.kernels.{module_name}")
    kernel = getattr(kernels, name.split()[0])
    # A constant given by name is the module's own; the type is Triton's.
    for key, value in constants.items():
        if isinstance(value, str):
            value = getattr(tl, value) if key == "DTYPE" else getattr(kernels, value).value
            constants = constants | {key: value}
    unspecialised = getattr(kernels, "UNSPECIALISED", ())
    signature, values, attributes = {}, {}, {}
    for place, argument in enumerate(kernel.arg_names):
        if argument in constants or LAST_STRIDES.fullmatch(argument):
            signature[argument], values[(place,)] = "constexpr", constants.get(argument, 1)
            continue
        integer = INTEGERS.fullmatch(argument) and not (module_name == "ffmef_forward" and argument == "maps")
        signature[argument] = "i32" if integer else "*fp32"
        if argument not in unspecialised:
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes)
    options = {"num_warps": 4, "num_stages": 2, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([tools / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True)
        code = subprocess.run([tools / "nvdisasm", "-c", file.name], capture_output=True, text=True)
    numbers = dict(re.findall(r"(REG|STACK):(\d+)", usage.stdout + usage.stderr))
    return {
        "registers": int(numbers["REG"]),
        "stack": int(numbers["STACK"]),
        "wide_loads": len(re.findall(r"\bLDG?\.E\.[\w.]*128", code.stdout)),
        "wide_stores": len(re.findall(r"\bSTG?\.E\.[\w.]*128", code.stdout)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="end with status 1 if a kernel keeps anything on the stack"
    )
    parser.add_argument("architectures", nargs="*", type=int, metavar="ARCHITECTURE", help="such as 90 (default: all)")
    args = parser.parse_args()
    import triton

    print(f"triton {triton.__version__}")
    stacks = 0
    for architecture in args.architectures or ARCHITECTURES:
        for name in KERNELS | PYRAMID_KERNELS:
            usage = compile_kernel(name, architecture)
            stacks += usage["stack"] > 0
            print(f"sm_{architecture:<4} {name:<37} " + "  ".join(f"{key} {value}" for key, value in usage.items()))
    if stacks:
        print(f"{stacks} kernels use the stack")
    return 1 if stacks and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
