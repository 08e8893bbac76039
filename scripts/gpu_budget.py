"""Compiles the CUDA kernels for every architecture and prints what each needs: registers, spills, loads, occupancy.

    python scripts/gpu_budget.py [ARCHITECTURE ...]   # float32
    python scripts/gpu_budget.py --all                # all dtypes: minutes
    python scripts/gpu_budget.py --all --update       # rewrite tests/gpu/gpu_budget.json except pyramid_fuse
    python scripts/gpu_budget.py --operator pyramid_fuse --update   # its rows there, in float32

No GPU is needed: the numbers come from nvcc, nvdisasm and cuda_occupancy.h of the CUDA toolkit.
tests/gpu/test_gpu_budget.py holds the kernels to the numbers in tests/gpu/gpu_budget.json, and
tests/gpu/test_pyramid_fuse_budget.py those of pyramid_fuse.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUDGET = ROOT / "tests/gpu/gpu_budget.json"
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
OPERATORS = ("adaptive_fuse", "predict_and_fuse")  # csrc/cuda/OPERATOR.cu
HALO, LARGEST_RADIUS = 4, 2  # of a tile, for the filter sizes 1, 3 and 5
HEAD_WEIGHTS = 8192  # bytes of shared memory in which predict_and_fuse keeps weights
FLOAT32_ONLY = "-DFFMEF_CUDA_ONLY_FLOAT32"
ELEMENT = {"float": 4, "double": 8, "__half": 2, "__nv_bfloat16": 2}


@dataclass(frozen=True)
class Usage:
    """What one kernel needs on one architecture."""

    registers: int
    stack: int
    spills: int
    local: int  # instructions that touch local memory
    wide_loads: int  # 16-byte loads from device memory
    wide_stores: int
    shared: int  # bytes for the filter sizes 1, 3, 5 and three levels
    occupancy: float  # resident threads of a multiprocessor, as a share of those possible


def find_nvcc() -> Path | None:
    for home in filter(None, (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")):
        if Path(home, "bin/nvcc").is_file() and Path(home, "include/cuda_occupancy.h").is_file():
            return Path(home, "bin/nvcc")
    return None


def find_nvdisasm() -> Path | None:
    """Return nvdisasm from the toolkit or the PATH, or the one that comes with triton."""
    nvcc, triton = find_nvcc(), find_spec("triton")
    places = [nvcc.parent / "nvdisasm"] if nvcc else []
    places += [Path(shutil.which("nvdisasm") or "nowhere")]
    places += [Path(triton.submodule_search_locations[0], "backends/nvidia/bin/nvdisasm")] if triton else []
    return next((place for place in places if place.is_file()), None)


def missing() -> str | None:
    """Return what this script lacks here, or None."""
    if find_nvcc() is None:
        return "no CUDA toolkit was found (set CUDA_HOME)"
    if find_nvdisasm() is None:
        return "no nvdisasm was found"
    if not shutil.which("c++filt") or not shutil.which("g++"):
        return "no g++ with c++filt was found"
    return None


def _run(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {done.stderr[-2000:]}")
    return done.stdout + done.stderr


def readable_names(mangled: list[str]) -> dict[str, str]:
    """Return fuse_tiled<float, 4, 1> for the symbol of fuse_tiled_kernel<float, 4, 1>."""
    lines = _run("c++filt", *mangled).splitlines()
    names = {}
    for symbol, line in zip(mangled, lines, strict=True):
        short = re.sub(r"\(ffmef::cuda::.*\)$|ffmef::cuda::|\(anonymous namespace\)::|^void ", "", line)
        names[symbol] = re.sub(r"\(.*$", "", short).replace("_kernel", "").replace("pyramid::Tile", "Tile")
    return names


def pyramid_block_shape(name: str) -> tuple[int, int]:
    """Return a block's threads and its bytes of dynamic shared memory for three bands and cells of 8 x 8 pixels."""
    found = re.search(r"Tile<(\d+), (\d+)>", name)
    if found is None or name.startswith("pyramid::sum_tiles"):
        return 256, 0
    rows, columns = map(int, found.groups())
    sizes = [((rows + 16) >> level) * ((columns + 16) >> level) for level in range(4)]  # with a margin of 8 pixels
    elements = 2 * sum(sizes[1:])
    if name.startswith("pyramid::fuse_three_bands"):
        levels = (rows // 2 + 4) * (columns // 2 + 8) + (rows // 4 + 4) * (columns // 4 + 4)
        levels += (rows // 8 + 2) * (columns // 8 + 2)
        cells, ring = (rows // 8 + 3) * (columns // 8 + 3), (rows + columns) // 2 + 4
        elements = 2 * levels + 8 * cells + 5 * ring
    if name.startswith("pyramid::weights_gradient"):
        elements = sizes[0] + 2 * sum(sizes[1:]) + rows * (columns // 8 + 2)
    if name.startswith("pyramid::images_gradient"):
        around = [1, 1, 1, 0]
        products = [((rows >> level) + 2 * a) * ((columns >> level) + 2 * a) for level, a in enumerate(around)]
        elements = sum(sizes) + sum(products)
    return rows * columns // 16, elements * (8 if "double" in name else 4)


def block_shape(name: str) -> tuple[int, int]:
    """Return a block's threads and its bytes of dynamic shared memory for three levels of sizes 1, 3 and 5."""
    if name.startswith("pyramid::"):
        return pyramid_block_shape(name)
    arguments = name[name.find("<") + 1 : name.rfind(">")].split(", ") if "<" in name else ["float"]
    wide = 8 if arguments[0] == "double" else 4
    if name.startswith("predict_and_fuse"):
        vector = int(arguments[1]) if "tiled" in name else 0
        down = {4: 4, 2: 3, 8: 1}[ELEMENT[arguments[0]]]  # rows of a thread without vectors
        rows, width = (16, 64) if vector == 4 else (8 * down, 32)
        tile = (rows + 2 * LARGEST_RADIUS) * (width + 2 * HALO) * wide
        load = max(vector, 1) * ELEMENT[arguments[0]]  # of a thread's row, at once: in shared memory from 4 bytes on
        ahead = 4 * 256 * (1 if vector == 4 else down) * load if load >= 4 else 0
        return 256, tile + HEAD_WEIGHTS + ahead if vector else 0
    if name.startswith("filters_gradient_shifted"):
        shift = 32 // ELEMENT[arguments[0]]  # columns, to the left of the halo's
        image, gradient = (8 + 2 * LARGEST_RADIUS) * (32 + 2 * HALO + shift), 8 * (32 + shift)
        return 256, (2 * image + gradient + 3 * 8) * wide
    if not name.startswith(("fuse_tiled", "filters_gradient_tiled")):
        if name.startswith("filters_gradient_wide"):
            return 256, (2 * (4 + 2 * LARGEST_RADIUS) * (256 + 2 * HALO) + 3 * 8) * wide
        if name.startswith("cells_gradient"):
            return 256, 8 * wide
        if name.startswith("fuse_coarse_tiled"):
            rows = (8 if wide == 8 else 32) + 2 * LARGEST_RADIUS  # four of a thread, but one in float64
            return 256, 2 * rows * (32 + 2 * HALO) * wide
        if name.startswith("images_gradient_coarse_tiled"):
            rows, pitch = 8 + 2 * HALO, 32 + 2 * HALO
            return 256, rows * pitch * wide + (rows + pitch) * (8 + wide)  # with two offsets and a share of each
        without = ("fuse_direct", "fuse_coarse", "images_gradient_coarse")
        sums = 0 if name.startswith(without) else 8 * 8 if name.startswith("sum_level") else 3 * 8 * wide
        return 256, sums
    vector, channels = int(arguments[1]), int(arguments[2])
    threads, width = (128 if vector == 8 else 256), (32 if vector == 1 else 64)
    rows = threads * vector // width
    if name.startswith("fuse_tiled") and vector == channels == 1:
        rows *= 8 // ELEMENT[arguments[0]]  # of one thread
    rows += 2 * LARGEST_RADIUS
    tile = (2 if channels == 1 else 1) * channels * rows * (width + 2 * HALO) * wide
    return threads, tile + (3 * threads // 32 * wide if name.startswith("filters") else 0)


def measure(
    architecture: int, flags: tuple[str, ...] = (FLOAT32_ONLY,), operators: tuple[str, ...] = OPERATORS
) -> dict[str, Usage]:
    """Compile the operators' kernels for one architecture and return their usage by name."""
    usage: dict[str, Usage] = {}
    with tempfile.TemporaryDirectory() as folder:
        occupancy_program = Path(folder, "occupancy")
        include = find_nvcc().parents[1] / "include"
        _run("g++", "-w", "-I", include, ROOT / "tests/support/cuda_emulator/occupancy.cpp", "-o", occupancy_program)
        for operator in operators:
            cubin = Path(folder, f"{operator}.cubin")
            options = ["-std=c++17", "-O3", f"-arch=sm_{architecture}", "-Xptxas", "-v", *flags]
            report = _run(find_nvcc(), "-cubin", *options, ROOT / f"csrc/cuda/{operator}.cu", "-o", cubin)
            code = _run(find_nvdisasm(), "-c", cubin)
            usage |= _usage(architecture, report, code, occupancy_program)
    return usage


def _usage(architecture: int, report: str, code: str, occupancy_program: Path) -> dict[str, Usage]:
    found = re.findall(
        r"entry function '(\w+)' for.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers(?:.*?(\d+) bytes smem)?",
        report,
        re.DOTALL,
    )
    bodies = dict(re.findall(r"\.text\.(\w+):(.*?)(?=\n\.text\.|\n//-+ \.|\Z)", code, re.DOTALL))
    names = readable_names([entry[0] for entry in found])
    usage = {}
    for symbol, stack, stores, loads, registers, _ in found:
        name, body = names[symbol], bodies[symbol]
        threads, shared = block_shape(name)
        usage[name] = Usage(
            registers=int(registers),
            stack=int(stack),
            spills=int(stores) + int(loads),
            local=len(re.findall(r"\b(?:LDL|STL)\b", body)),
            wide_loads=len(re.findall(r"\bLDG?(?:STS)?\.E\.[\w.]*128", body)),
            wide_stores=len(re.findall(r"\bSTG?\.E\.[\w.]*128", body)),
            shared=shared,
            occupancy=float(_run(occupancy_program, architecture, registers, shared, threads)),
        )
    return usage


def is_pyramid(name: str) -> bool:
    """Return whether a row of the budget belongs to pyramid_fuse, which is measured separately, in float32 only."""
    return name.startswith("pyramid::")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("architectures", nargs="*", type=int, default=ARCHITECTURES, metavar="ARCHITECTURE")
    parser.add_argument("--all", action="store_true", help="all dtypes")
    parser.add_argument("--operator", help="one operator (default: adaptive_fuse and predict_and_fuse)")
    parser.add_argument("--update", action="store_true", help="rewrite the budget")
    args = parser.parse_args()
    if missing():
        print(f"gpu_budget: {missing()}", file=sys.stderr)
        return 2
    apart = args.operator == "pyramid_fuse"
    if args.update and set(args.architectures) != set(ARCHITECTURES):
        parser.error("--update needs every architecture")
    if args.update and (args.all or not apart) and (args.operator or not args.all):
        parser.error("--update needs --all and every operator, or --operator pyramid_fuse alone")
    flags = () if args.all else (FLOAT32_ONLY,)
    operators = (args.operator,) if args.operator else OPERATORS
    table: dict[str, dict[str, dict[str, float]]] = {}
    for architecture in args.architectures:
        for name, usage in sorted(measure(architecture, flags, operators).items()):
            table.setdefault(name, {})[str(architecture)] = asdict(usage)
            print(f"sm_{architecture:<4} {name:<44} " + "  ".join(f"{k} {v:g}" for k, v in asdict(usage).items()))
    if args.update:
        rows = {
            name: {
                "registers": max(u["registers"] for u in by.values()),
                "wide_loads": min(u["wide_loads"] for u in by.values()),
                "wide_stores": min(u["wide_stores"] for u in by.values()),
                "shared": max(u["shared"] for u in by.values()),
                "occupancy": min(u["occupancy"] for u in by.values()),
            }
            for name, by in table.items()
        }
        kept = {name: row for name, row in json.loads(BUDGET.read_text()).items() if is_pyramid(name) != apart}
        BUDGET.write_text(json.dumps(dict(sorted({**kept, **rows}.items())), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
