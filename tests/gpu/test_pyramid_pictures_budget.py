"""What the kernels of the pyramid's pictures need of each architecture, compiled without a GPU."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from budgets import cuda

ROOT = Path(__file__).resolve().parents[2]
MOST = {"finish": 128, "enter": 64, "spread": 64}  # registers; 80 hold three blocks


@pytest.mark.slow
@pytest.mark.skipif(cuda.missing() is not None, reason=str(cuda.missing()))
@pytest.mark.parametrize("architecture", cuda.ARCHITECTURES)
def test_kernels_keep_everything_in_registers(tmp_path: Path, architecture: int) -> None:
    source, cubin = ROOT / "csrc/cuda/pyramid_pictures.cu", tmp_path / "kernels.cubin"
    command = [cuda.find_nvcc(), "-cubin", "-std=c++17", "-O3", f"-arch=sm_{architecture}", "-Xptxas", "-v", source]
    report = subprocess.run([*command, "-o", cubin], check=True, capture_output=True, text=True).stderr
    found = re.findall(
        r"entry function '(\w+)' for.*?(\d+) bytes stack frame.*?Used (\d+) registers", report, re.DOTALL
    )
    assert len(found) == 36
    for name, stack, registers in found:
        kernel = re.search(r"(enter|arrange|meet|refine|coarsest|share|descend|spread|blend|finish)_kernel", name)[1]
        assert int(stack) == 0 and int(registers) <= MOST.get(kernel, 80), name
    if architecture < 90:
        return
    code = subprocess.run([cuda.find_nvdisasm(), "-c", cubin], check=True, capture_output=True, text=True).stdout
    for body in re.split(r"^\.text\.", code, flags=re.MULTILINE)[1:]:
        # Blocks may start early. Before they wait for the launch before, they copy weights to shared memory alone: a map's
        # loads, moved here by the compiler, would be more than those stores.
        name, (before, wait, _) = body.splitlines()[0], body.partition("ACQBULK")
        if "enter_kernel" in name:
            assert not wait
            continue
        assert wait and not re.search(r"\b(?:LDGSTS|STG|ATOM|RED|ATOMG|REDG)\b", before), name
        copies = bool(re.search(r"(?:meet|refine|coarsest)_kernel", name))
        loads = [len(re.findall(rf"\b{access}\b", before)) for access in ("LDG", r"LDG\.E\.128", r"STS\.128")]
        assert len(set(loads)) == 1 and (loads[0] > 0) == copies, name
