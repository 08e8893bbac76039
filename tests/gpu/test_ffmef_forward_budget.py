"""What the network's CUDA kernels need of the architecture that they were made for, compiled without a GPU."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from budgets import cuda

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(cuda.missing() is not None, reason=str(cuda.missing()))
def test_kernels_keep_everything_in_registers(tmp_path: Path) -> None:
    cubin, source = tmp_path / "kernels.cubin", ROOT / "csrc/cuda/ffmef_forward.cu"
    command = [cuda.find_nvcc(), "-cubin", "-std=c++17", "-O3", "-arch=sm_90", "-Xptxas", "-v", source, "-o", cubin]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    found = re.findall(
        r"entry function '(\w+)' for.*?(\d+) bytes stack frame.*?Used (\d+) registers", report, re.DOTALL
    )
    assert len(found) == 17
    for name, stack, registers in found:
        assert int(stack) == 0, name
        # The register file holds 10 blocks of the convolutions, 8 of the heads, 6 of the two that need most.
        widest = "heads_kernelILi7" in name or "residual_kernelILi1ELb1" in name
        wide = "heads" in name or "point" in name or "ILi2ELb0" in name or "ELi2ELj2" in name
        assert int(registers) <= (168 if widest else 128 if wide else 102), name
    code = subprocess.run([cuda.find_nvdisasm(), "-c", cubin], check=True, capture_output=True, text=True).stdout
    assert not re.search(r"\b(?:LDL|STL)\b", code)
    bodies = re.split(r"^\.text\.", code, flags=re.MULTILINE)[1:]
    residual = next(body for body in bodies if "residual_kernelILi1ELb0" in body.splitlines()[0])
    # A pixel is one access: the loads of five pixels of the tile are under way at once, and the strip is stored so.
    assert len(re.findall(r"\bLDG\.E\.128", residual)) >= 5 + 8 and len(re.findall(r"\bSTG\.E\.128", residual)) >= 8
    # 36 weights of four outputs, at 8 pixels.
    assert len(re.findall(r"\bFFMA\b", residual)) >= 3 * 4 * 4 * 8
