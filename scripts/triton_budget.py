"""Compiles the Triton kernels for every architecture without a GPU and prints registers, spills and wide loads.

    python scripts/triton_budget.py [ARCHITECTURE ...]
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
# Contiguous float32 tensors, 16-byte aligned, of a width that 16 divides, as the JIT would specialise them.
TILE = {"ROWS": 8, "COLUMNS": 64}
SHARED = {"PADDING": 2, "WIDE": False, **TILE}
KERNELS = {
    "forward_kernel": {"SIZE_0": 1, "SIZE_1": 3, "SIZE_2": 5, "SIZE_3": 0, "ADD": False, "GROUP": 1},
    "filters_gradient_kernel": {"SIZE": 5, "NEED_FILTERS": True, "NEED_ALPHA": True},
    "images_gradient_kernel": {"SIZE": 5, "ADD": False, "GROUP": 1},
}
POINTERS = re.compile(r"images|filters(_\d)?|alphas?|output|gradient|target|partials")
LAST_STRIDES = re.compile(r"(image|filter|gradient)_column|column_\d")


def compile_kernel(name: str, architecture: int) -> dict[str, int]:
    """Compile one kernel for one architecture; return registers, stack bytes, and 16-byte loads and stores."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ffmef.kernels import adaptive_fuse as kernels

    kernel = getattr(kernels, name)
    constants = {**SHARED, **KERNELS[name], "DTYPE": tl.float32}
    signature, values, attributes = {}, {}, {}
    for place, argument in enumerate(kernel.arg_names):
        if argument in constants or LAST_STRIDES.fullmatch(argument):
            signature[argument], values[(place,)] = "constexpr", constants.get(argument, 1)
            continue
        signature[argument] = "*fp32" if POINTERS.fullmatch(argument) else "i32"
        if argument not in kernels.UNSPECIALISED:
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
    for architecture in map(int, sys.argv[1:] or ARCHITECTURES):
        for name in KERNELS:
            usage = compile_kernel(name, architecture)
            print(f"sm_{architecture:<4} {name:<26} " + "  ".join(f"{key} {value}" for key, value in usage.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
