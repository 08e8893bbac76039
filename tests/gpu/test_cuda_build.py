"""setup.py's decision whether to build the CUDA library, and for which architectures."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import setuptools

SETUP = Path(__file__).resolve().parents[2] / "setup.py"
pytestmark = pytest.mark.skipif(not SETUP.is_file(), reason="setup.py is not beside the tests")


@pytest.fixture
def setup_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(setuptools, "setup", lambda **options: None)
    for name in ("FFMEF_BUILD_CUDA", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("ffmef_setup", SETUP)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def nvcc(setup_module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an nvcc of CUDA 13.0 that answers questions, and make CUDA_HOME point to it."""
    program = tmp_path / "bin/nvcc"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "Cuda compilation tools, release 13.0, V13.0.88"\n'
        '[ "$1" = --list-gpu-arch ] && echo "compute_75 compute_80 compute_90 compute_120"\nexit 0\n'
    )
    program.chmod(0o755)
    header = tmp_path / "include/cuda_runtime.h"
    header.parent.mkdir()
    header.touch()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    return program


def test_built_for_what_nvcc_supports(
    setup_module: ModuleType, nvcc: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = setup_module.cuda_options("13.0")
    assert "-DFFMEF_BUILD_CUDA=ON" in options and f"-DCMAKE_CUDA_COMPILER={nvcc}" in options
    assert "-DCMAKE_CUDA_ARCHITECTURES=75-real;80-real;90-real;120" in options
    assert capsys.readouterr().err.count("\n") == 1


def test_architectures_of_the_environment(
    setup_module: ModuleType, nvcc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.6; 9.0a+PTX")
    assert setup_module.cuda_options("13.0")[-1] == "-DCMAKE_CUDA_ARCHITECTURES=86-real;90a"
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Ampere")
    with pytest.raises(SystemExit, match="TORCH_CUDA_ARCH_LIST must list numbers .* got 'Ampere'"):
        setup_module.cuda_options("13.0")


@pytest.mark.parametrize(
    ("torch_cuda", "reason"),
    [(None, "this torch is built without CUDA"), ("12.8", "is of CUDA 13, torch of CUDA 12.8")],
)
def test_not_built_says_why_and_1_insists(
    setup_module: ModuleType,
    nvcc: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    torch_cuda: str | None,
    reason: str,
) -> None:
    assert setup_module.cuda_options(torch_cuda) == ["-DFFMEF_BUILD_CUDA=OFF"]
    assert reason in capsys.readouterr().err
    monkeypatch.setenv("FFMEF_BUILD_CUDA", "1")
    with pytest.raises(SystemExit, match="FFMEF_BUILD_CUDA=1, but"):
        setup_module.cuda_options(torch_cuda)


def test_0_leaves_it_out_and_other_words_are_refused(
    setup_module: ModuleType, nvcc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FFMEF_BUILD_CUDA", "0")
    assert setup_module.cuda_options("13.0") == ["-DFFMEF_BUILD_CUDA=OFF"]
    monkeypatch.setenv("FFMEF_BUILD_CUDA", "yes")
    with pytest.raises(SystemExit, match="FFMEF_BUILD_CUDA must be auto, 0 or 1, got 'yes'"):
        setup_module.cuda_options("13.0")
