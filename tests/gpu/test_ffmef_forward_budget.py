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
        # The register file holds 14 blocks of most kernels, 12 of a few; 7 of the heads, 5 with k = 7.
        few = re.search(r"features|ELi2ELj2|ELb1EEEvNS1_9EntryPass|residual_kernelILi1ELb1|point_kernelILi2", name)
        assert int(registers) <= (96 if "heads_kernelILi7" in name else 80 if few else 72), name
    code = subprocess.run([cuda.find_nvdisasm(), "-c", cubin], check=True, capture_output=True, text=True).stdout
    assert not re.search(r"\b(?:LDL|STL)\b", code)
    bodies = re.split(r"^\.text\.", code, flags=re.MULTILINE)[1:]
    for body in bodies:
        # Blocks may start early. Before they wait for the launch before, they read single parameters alone, and no norms
        # (8 bytes) or pixels (16 bytes).
        before, wait, _ = body.partition("ACQBULK")
        assert wait, body.splitlines()[0]
        assert not re.search(r"\bLDG\.E\.[\w.]*(?:64|128)|\b(?:LDGSTS|STG|ATOM|RED|ATOMG|REDG)\b", before), (
            body.splitlines()[0]
        )
    residual = next(body for body in bodies if "residual_kernelILi1ELb0" in body.splitlines()[0])
    # A pixel is one access: the loads of all pixels that a thread stages are under way at once.
    assert len(re.findall(r"\bLDG\.E\.128", residual)) >= 10 + 4 and len(re.findall(r"\bSTG\.E\.128", residual)) >= 4
    # Three rows of taps of two channels, four outputs, at 8 pixels.
    assert len(re.findall(r"\bFFMA\b", residual)) >= 3 * 2 * 4 * 8
