"""Builds the native library with CMake and ninja where a compiler and torch exist; otherwise installs pure Python."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def missing_for_native_build() -> str | None:
    """Return why the native library cannot be built here, or None."""
    if os.environ.get("FFMEF_BUILD_NATIVE") == "0":
        return "FFMEF_BUILD_NATIVE=0"
    compiler = os.environ.get("CXX", "").split() or [name for name in ("c++", "g++", "clang++") if shutil.which(name)]
    if not compiler or not shutil.which(compiler[0]):
        return "no C++ compiler was found"
    if not shutil.which("cmake"):
        return "cmake was not found"
    if find_spec("torch") is None and find_spec("pybind11") is None:
        return "neither torch nor pybind11 is installed in the build environment"
    return None


def torch_options() -> list[str]:
    """Return CMake's options for the libraries of operators, which are left out where torch is not installed."""
    try:
        import torch
        from torch.utils.cpp_extension import include_paths, library_paths
    except ImportError:
        print("ffmef: operators for torch not built: torch is not installed in the build environment", file=sys.stderr)
        return ["-DFFMEF_BUILD_TORCH=OFF"]
    return [
        f"-DFFMEF_TORCH_INCLUDE_DIRS={';'.join(include_paths())}",
        f"-DFFMEF_TORCH_LIBRARY_DIR={library_paths()[0]}",
        f"-DFFMEF_TORCH_VERSION={torch.__version__}",
        *cuda_options(torch.version.cuda),
    ]


CUDA_ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0+PTX")


def find_nvcc() -> Path | None:
    """Return nvcc from CUDA_HOME or CUDA_PATH, from the PATH, or from the usual folder, if its headers are there."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    found = [Path(home, "bin", "nvcc") for home in homes if home]
    if shutil.which("nvcc"):
        found.insert(2, Path(shutil.which("nvcc")).resolve())
    for nvcc in found:
        if nvcc.is_file() and (nvcc.parent.parent / "include" / "cuda_runtime.h").is_file():
            return nvcc
    return None


def nvcc_answer(nvcc: Path, option: str) -> str:
    """Return what nvcc prints for an option such as --version."""
    return subprocess.run([nvcc, option], capture_output=True, text=True, check=True).stdout


def missing_for_cuda(torch_cuda: str | None, nvcc: Path | None) -> str | None:
    """Return why CUDA kernels cannot be built, or None. No GPU is needed to build them, so none is looked for."""
    if torch_cuda is None:
        return "this torch is built without CUDA"
    if nvcc is None:
        return "no nvcc with its headers was found (set CUDA_HOME); ffmef falls back to Triton"
    release = re.search(r"release (\d+)", nvcc_answer(nvcc, "--version"))
    if release is None or release[1] != torch_cuda.split(".")[0]:
        version = release[1] if release else "unknown"
        return f"{nvcc} is of CUDA {version}, torch of CUDA {torch_cuda}; ffmef falls back to Triton"
    return None


def cuda_architectures(wanted: str, supported: str) -> list[str]:
    """Return CMake's names for TORCH_CUDA_ARCH_LIST or, if that is not set, for what nvcc supports.

    >>> cuda_architectures("8.0;9.0a+PTX", "")
    ['80-real', '90a']
    >>> cuda_architectures("", "compute_75 compute_80")
    ['75-real', '80']
    """
    names = re.split(r"[;,\s]+", wanted.strip()) if wanted.strip() else []
    if not names:
        names = [name for name in CUDA_ARCHITECTURES if f"compute_{name.split('+')[0].replace('.', '')}" in supported]
        names[-1:] = [f"{name.removesuffix('+PTX')}+PTX" for name in names[-1:]]
    for name in names:
        if not re.fullmatch(r"\d+\.\d[a-z]?(\+PTX)?", name):
            raise SystemExit(f"ffmef: TORCH_CUDA_ARCH_LIST must list numbers such as 8.0 or 9.0+PTX, got {name!r}")
    return [name.removesuffix("+PTX").replace(".", "") + ("" if name.endswith("+PTX") else "-real") for name in names]


def cuda_options(torch_cuda: str | None) -> list[str]:
    """Return CMake's options for the CUDA library as FFMEF_BUILD_CUDA (auto, 0 or 1) asks, and print the decision."""
    wish = os.environ.get("FFMEF_BUILD_CUDA", "auto")
    if wish not in ("auto", "0", "1"):
        raise SystemExit(f"ffmef: FFMEF_BUILD_CUDA must be auto, 0 or 1, got {wish!r}")
    nvcc = find_nvcc()
    reason = "FFMEF_BUILD_CUDA=0" if wish == "0" else missing_for_cuda(torch_cuda, nvcc)
    if reason is not None:
        if wish == "1":
            raise SystemExit(f"ffmef: FFMEF_BUILD_CUDA=1, but {reason}")
        print(f"ffmef: CUDA kernels not built: {reason}", file=sys.stderr)
        return ["-DFFMEF_BUILD_CUDA=OFF"]
    names = cuda_architectures(os.environ.get("TORCH_CUDA_ARCH_LIST", ""), nvcc_answer(nvcc, "--list-gpu-arch"))
    print(f"ffmef: CUDA kernels built by {nvcc} for {' '.join(names)}", file=sys.stderr)
    architectures = ";".join(names)
    return ["-DFFMEF_BUILD_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={nvcc}", f"-DCMAKE_CUDA_ARCHITECTURES={architectures}"]


class CMakeBuild(build_ext):
    """Hands the whole native build to CMakeLists.txt."""

    def build_extension(self, ext: Extension) -> None:
        reason = missing_for_native_build()
        if reason:
            print(f"ffmef: native library not built ({reason}); ffmef falls back to plain PyTorch", file=sys.stderr)
            return
        target = Path(self.build_lib).resolve() / "ffmef"
        build_dir = Path(self.build_temp).resolve() / f"py{sys.version_info[0]}{sys.version_info[1]}"
        options = [
            f"-DCMAKE_INSTALL_PREFIX={target}",
            f"-DPython_EXECUTABLE={sys.executable}",
            *torch_options(),
        ]
        try:
            import pybind11

            options.append(f"-Dpybind11_DIR={pybind11.get_cmake_dir()}")
        except ImportError:
            options.append("-DFFMEF_BUILD_INFO=OFF")
        if shutil.which("ninja"):
            options.append("-GNinja")
        subprocess.check_call(["cmake", "-S", str(ROOT), "-B", str(build_dir), "-DCMAKE_BUILD_TYPE=Release", *options])
        subprocess.check_call(["cmake", "--build", str(build_dir), "--parallel"])
        subprocess.check_call(["cmake", "--install", str(build_dir)])

    def get_outputs(self) -> list[str]:
        return []

    def copy_extensions_to_source(self) -> None:
        """Copy what CMake installed beside the sources, for editable installs."""
        for library in (Path(self.build_lib) / "ffmef").glob("*.so"):
            # Renamed into place: overwriting the old library would crash a process that has it loaded.
            copy = ROOT / "ffmef" / f"{library.name}.new"
            shutil.copy2(library, copy)
            copy.replace(ROOT / "ffmef" / library.name)


setup(ext_modules=[Extension("ffmef._native", sources=[])], cmdclass={"build_ext": CMakeBuild})
