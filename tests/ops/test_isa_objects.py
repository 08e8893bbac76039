"""Object files of one instruction set hold no function that the linker could take for another set's."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OBJECTS = sorted(path for path in ROOT.glob("build/temp*/**/*_kernels*/**/*.o"))
COMPILER = shutil.which("g++") or shutil.which("c++")
pytestmark = pytest.mark.skipif(shutil.which("nm") is None, reason="there is no nm here")


def weak_functions(objects: list[Path]) -> list[str]:
    """Return the weak functions of object files, of which a linker keeps one of all files, whatever set it is for."""
    lines = subprocess.run(["nm", "-A", *objects], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if line.split()[-2] == "W" and ":" in line]


@pytest.mark.skipif(not OBJECTS, reason="no object files of a build lie beside the tests")
def test_kernels_have_no_weak_functions():
    assert weak_functions(OBJECTS) == []


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler was found")
def test_a_shared_inline_function_is_seen(tmp_path):
    (tmp_path / "a.cpp").write_text("inline int twice(int x) { return 2 * x; }\nint (*use)(int) = twice;\n")
    subprocess.run([COMPILER, "-c", tmp_path / "a.cpp", "-o", tmp_path / "a.o"], check=True)
    assert len(weak_functions([tmp_path / "a.o"])) == 1
