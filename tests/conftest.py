"""Options and fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

DTYPES = ("float64", "float32", "float16", "bfloat16")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device of the tensors in operator and model tests, such as cuda")
    parser.addoption(
        "--dtype", action="append", choices=DTYPES, help="only this dtype where a test runs in several; repeatable"
    )
    parser.addoption(
        "--exhaustive", action="store_true", help="all faults planted in CUDA kernels, not a third of them"
    )


@pytest.hookimpl(trylast=True)  # after -k and -m have chosen
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Plant one fault in three of each file's CUDA kernels unless all are asked for: each is a compilation."""
    from cuda_emulation import Mutant

    if config.getoption("exhaustive"):
        return
    skip = pytest.mark.skip(reason="one planted fault in three unless --exhaustive is given")
    planted: dict[Path, int] = {}
    for item in items:
        if isinstance(getattr(item, "callspec", None) and item.callspec.params.get("mutant"), Mutant):
            planted[item.path] = planted.get(item.path, 0) + 1
            if planted[item.path] % 3 != 1:
                item.add_marker(skip)


def pytest_configure(config: pytest.Config) -> None:
    # Tests are small and xdist runs several at once; those that are about threads set their number themselves.
    torch.set_num_threads(1)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test each ``dtype`` and each ``backend`` (``kernel_backend``: all but the reference), or why one cannot run."""
    if "dtype" in metafunc.fixturenames and "dtype" not in _own_parameters(metafunc):
        names = metafunc.config.getoption("dtype") or DTYPES
        metafunc.parametrize("dtype", [getattr(torch, name) for name in names], ids=names)
    device = metafunc.config.getoption("device")
    for fixture, names in (
        ("backend", ("reference", "cpu", "triton", "cuda")),
        ("kernel_backend", ("cpu", "triton", "cuda")),
    ):
        if fixture in metafunc.fixturenames and fixture not in _own_parameters(metafunc):
            metafunc.parametrize(fixture, [_backend(name, device) for name in names])


def _own_parameters(metafunc: pytest.Metafunc) -> set[str]:
    """Names that the test's own marks give values."""
    names: set[str] = set()
    for mark in metafunc.definition.iter_markers("parametrize"):
        names.update(mark.args[0].replace(" ", "").split(",") if isinstance(mark.args[0], str) else mark.args[0])
    return names


def _backend(name: str, device: str):
    from ffmef.ops.selection import check_backend

    try:
        check_backend(name, torch.device(device))
    except RuntimeError as error:
        return pytest.param(name, marks=pytest.mark.skip(reason=str(error)))
    return name


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device of ``--device``."""
    return torch.device(request.config.getoption("device"))


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """The folder of golden values, weights and pictures that FFMEF_REFERENCE_DIR names."""
    return _folder("FFMEF_REFERENCE_DIR", "golden values and the authors' weights")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of development pairs that FFMEF_DATA_DIR names."""
    return _folder("FFMEF_DATA_DIR", "development pairs")


def _folder(variable: str, content: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} does not name a folder with {content}")
    if not Path(value).is_dir():
        pytest.skip(f"{variable}={value} is not a folder")
    return Path(value)
