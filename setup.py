"""Builds the native library by CMake and ninja when a compiler and torch are at hand; installs pure Python otherwise."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
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
    try:
        import torch  # noqa: F401
    except ImportError:
        return "torch is not installed in the build environment"
    return None


class CMakeBuild(build_ext):
    """Hands the whole native build to CMakeLists.txt."""

    def build_extension(self, ext: Extension) -> None:
        reason = missing_for_native_build()
        if reason:
            print(f"ffmef: native library not built ({reason}); the plain torch reference will serve", file=sys.stderr)
            return
        import torch
        from torch.utils.cpp_extension import include_paths, library_paths

        target = Path(self.build_lib).resolve() / "ffmef"
        build_dir = Path(self.build_temp).resolve() / f"py{sys.version_info[0]}{sys.version_info[1]}"
        options = [
            f"-DFFMEF_TORCH_INCLUDE_DIRS={';'.join(include_paths())}",
            f"-DFFMEF_TORCH_LIBRARY_DIR={library_paths()[0]}",
            f"-DFFMEF_TORCH_VERSION={torch.__version__}",
            f"-DCMAKE_INSTALL_PREFIX={target}",
            f"-DPython_EXECUTABLE={sys.executable}",
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
            shutil.copy2(library, ROOT / "ffmef" / library.name)


setup(ext_modules=[Extension("ffmef._native", sources=[])], cmdclass={"build_ext": CMakeBuild})
