"""What is installed: a wheel made here, in a new environment without compilers, and what importing it costs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import ffmef
from ffmef import _loader

ROOT = Path(ffmef.__file__).resolve().parents[1]
SOURCES = (
    "setup.py",
    "pyproject.toml",
    "CMakeLists.txt",
    "README.md",
    "LICENSE",
    "MANIFEST.in",
    "CHANGELOG.md",
    "constraints.txt",
)
# Programs that pip installed lie beside the interpreter, whose folder need not be on the path.
BUILD_PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
needs_sources = pytest.mark.skipif(
    not all((ROOT / name).is_file() for name in SOURCES) or not (ROOT / "csrc").is_dir(),
    reason="the sources are not beside the package",
)
FUSE = """
import sys
import numpy as np
import ffmef
from ffmef.models import FFMEF
images = [np.random.default_rng(0).integers(0, top, (24, 32, 3), np.uint8) for top in (90, 255)]
fused = ffmef.fuse(images)
assert fused.shape == (24, 32, 3) and fused.dtype == np.uint8 and fused.std() > 1
print(ffmef.__file__)
print({name: reason for name, reason in ffmef.ops.backends().items() if name in ("cpu", "reference")})
"""


def _run(*command: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "FFMEF_ISA")}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env={**env, **environment}, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done


def _sources(target: Path) -> Path:
    """A copy of what a clone holds, without anything that was built."""
    target.mkdir()
    for name in SOURCES:
        shutil.copy(ROOT / name, target)
    for folder in ("ffmef", "csrc", "examples", "tests"):
        shutil.copytree(ROOT / folder, target / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.pyc"))
    return target


def _environment(folder: Path) -> tuple[Path, dict[str, str]]:
    """A new environment that sees this one's packages but not its programs, and variables that keep compilers away."""
    _run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    site = Path(_run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
    # A .pth file inside these folders, such as that of an editable installation, is not followed from here.
    (site / "outer.pth").write_text(
        "\n".join(path for path in sys.path if path.endswith(("site-packages", "dist-packages")))
    )
    return python, {"PATH": str(folder / "bin"), "CXX": "", "HOME": str(folder), "OMP_NUM_THREADS": "1"}


def _install(python: Path, wheel: Path, variables: dict[str, str]) -> None:
    _run(
        python,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--disable-pip-version-check",
        "--ignore-installed",
        wheel,
        **variables,
    )


def _fuses(python: Path, folder: Path, variables: dict[str, str]) -> dict[str, str | None]:
    """Fuse a picture by function and by command with the installed package; return the backends' reasons."""
    done = _run(python, "-c", FUSE, cwd=folder, **variables)
    place, backends = done.stdout.splitlines()
    assert str(python.parents[1]) in place, "the package under test is not the installed one"
    under, over = (ROOT / "examples" / f"courtyard_{name}.jpg" for name in ("under", "over"))
    _run(python.parent / "ffmef", "fuse", under, over, "-o", folder / "fused.png", cwd=folder, **variables)
    assert (folder / "fused.png").stat().st_size > 10_000
    info = _run(python.parent / "ffmef", "info", cwd=folder, **variables).stdout
    assert "backends:" in info and "mef-pyramid" in info
    return eval(backends)


@needs_sources
@pytest.mark.slow
@pytest.mark.skipif(_loader.cpu_missing is not None, reason=f"no native build here: {_loader.cpu_missing}")
@pytest.mark.skipif(
    not all(shutil.which(name, path=BUILD_PATH) for name in ("cmake", "c++")),
    reason="cmake and a C++ compiler are needed",
)
def test_wheel_with_native_code_runs_without_compilers(tmp_path, request):
    """Built from a source distribution, so that this too is complete; compiled again if --exhaustive is given."""
    sources = _sources(tmp_path / "sources")
    _run(sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path, cwd=sources)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        # Python before 3.11.4 has no filters.
        tar.extractall(tmp_path / "unpacked", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert not [*unpacked.rglob("*.so")]
    native = {file.relative_to(sources) for file in (sources / "csrc").rglob("*") if file.is_file()}
    assert native <= {file.relative_to(unpacked) for file in unpacked.rglob("*")}
    exhaustive = request.config.getoption("exhaustive")
    if not exhaustive:  # compiling takes minutes, and these libraries are of the same sources
        for library in (ROOT / "ffmef").glob("*.so"):
            shutil.copy(library, unpacked / "ffmef")
    build = {"PATH": BUILD_PATH, "FFMEF_BUILD_NATIVE": str(int(exhaustive))}
    _run(sys.executable, "setup.py", "-q", "bdist_wheel", "-d", tmp_path, cwd=unpacked, **build)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "ffmef/_cpu.so" in names and "ffmef/weights/mef.safetensors" in names and "ffmef/weights/mef.md" in names
    assert not [name for name in names if name.startswith(("tests/", "csrc/", "benchmarks/", "examples/"))]

    python, variables = _environment(tmp_path / "environment")
    _install(python, wheel, variables)
    assert _fuses(python, tmp_path, variables) == {"reference": None, "cpu": None}


@needs_sources
@pytest.mark.slow
def test_install_without_compilers_serves_by_the_reference(tmp_path):
    sources = _sources(tmp_path / "sources")
    python, variables = _environment(tmp_path / "environment")
    done = _run(python, "setup.py", "bdist_wheel", "-d", tmp_path, cwd=sources, **variables)
    said = [line for line in (done.stdout + done.stderr).splitlines() if "native library not built" in line]
    assert said == ["ffmef: native library not built (no C++ compiler was found); ffmef falls back to plain PyTorch"]
    (wheel,) = tmp_path.glob("*.whl")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]
    _install(python, wheel, variables)
    reasons = _fuses(python, tmp_path, variables)
    assert reasons == {"reference": None, "cpu": "the native library was not built (no C++ compiler at install time?)"}
    warned = _run(
        python,
        "-c",
        "import torch, ffmef\nx = torch.ones(1, 1, 4, 5)\n"
        "for _ in range(3): print(ffmef.ops.adaptive_fuse(x, [x[:, :, None]]).sum().item())",
        cwd=tmp_path,
        **variables,
    )
    assert warned.stdout.split() == ["20.0"] * 3
    assert warned.stderr.count("ffmef runs its plain torch reference, which is slow") == 1


IMPORT = """
import sys, time
import torch
before, started = set(sys.modules), time.process_time()
import ffmef
seconds = time.process_time() - started
heavy = sorted({name.partition(".")[0] for name in set(sys.modules) - before} & {"triton", "scipy", "cv2",
"matplotlib", "PIL", "tifffile", "pandas"})
assert not torch.cuda.is_initialized()
sys.stderr.write(f"{seconds} {' '.join(heavy)}")
"""


def test_import_is_quick_and_silent(tmp_path):
    best = float("inf")
    for _ in range(3):
        done = _run(sys.executable, "-c", IMPORT, cwd=tmp_path, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
        seconds, _, heavy = done.stderr.partition(" ")
        assert done.stdout == "" and heavy == ""
        best = min(best, float(seconds))
    assert best < 0.3


def test_a_native_library_that_does_not_load_is_said_and_replaced(tmp_path):
    """A library of another torch, or a damaged one: the reason is listed, and ffmef falls back to the reference."""
    shutil.copytree(ROOT / "ffmef", tmp_path / "ffmef", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (tmp_path / "ffmef" / "_cpu.so").write_bytes(b"no library")
    script = (
        "import torch, ffmef, warnings\nwarnings.simplefilter('ignore')\nprint(ffmef.ops.backends()['cpu'])\n"
        "x = torch.ones(1, 1, 2, 2)\nprint(ffmef.ops.adaptive_fuse(x, [x[:, :, None]]).sum().item())"
    )
    lines = _run(sys.executable, "-c", script, cwd=tmp_path, PYTHONPATH=str(tmp_path)).stdout.splitlines()
    assert lines[0].startswith("_cpu.so does not load under torch ") and "\n" not in lines[0] and lines[1:] == ["4.0"]


@needs_sources
@pytest.mark.parametrize("name", ["_cpu.so", "_cuda.so"])
def test_native_libraries_do_not_name_folders_of_the_build(name):
    """Messages of failed checks name their source file, which must not tell where the wheel was made."""
    library = ROOT / "ffmef" / name
    if not library.is_file():
        pytest.skip(f"{name} was not built here")
    import torch

    content = library.read_bytes()
    assert b"torch/csrc/stable/" in content, "the check looks for what is no longer there"
    for folder in (ROOT, Path(torch.__file__).resolve().parent):
        assert str(folder).encode() not in content


@needs_sources
def test_cmake_names_every_native_source():
    """CMakeLists.txt is the one list of what is compiled: no source lies beside it unbuilt."""
    text = (ROOT / "CMakeLists.txt").read_text()
    for source in sorted((ROOT / "csrc").rglob("*")):
        if source.suffix in (".cpp", ".cu"):
            assert str(source.relative_to(ROOT)) in text, f"CMakeLists.txt does not name {source.relative_to(ROOT)}"
