"""Options and fixtures that several test files share, and what is collected here at all."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
import torch

import interpreter

DTYPES = ("float64", "float32", "float16", "bfloat16")
ARCHITECTURES = (75, 90)  # of GPUs, unless --exhaustive is given: the oldest and a recent one
BACKENDS = {"backend": ("reference", "cpu", "triton", "cuda"), "kernel_backend": ("cpu", "triton", "cuda")}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device of the tensors in operator and model tests, such as cuda")
    parser.addoption(
        "--dtype", action="append", choices=DTYPES, help="only this dtype where a test runs in several; repeatable"
    )
    parser.addoption(
        "--exhaustive",
        action="store_true",
        help="all faults planted in GPU kernels, all GPU architectures, and a wheel compiled anew",
    )


def pytest_configure(config: pytest.Config) -> None:
    # Tests are small and xdist runs several at once; those that are about threads set their number themselves.
    torch.set_num_threads(1)


def pytest_report_header(config: pytest.Config) -> list[str]:
    device = config.getoption("device")
    reasons = {name: _missing(name, device) for name in BACKENDS["backend"]}
    return [f"backend {name}: not tested: {reason}" for name, reason in reasons.items() if reason is not None]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test each ``dtype`` and each ``backend`` that runs here (``kernel_backend``: all but the reference)."""
    if "dtype" in metafunc.fixturenames and "dtype" not in _own_parameters(metafunc):
        names = metafunc.config.getoption("dtype") or DTYPES
        metafunc.parametrize("dtype", [getattr(torch, name) for name in names], ids=names)
    device = metafunc.config.getoption("device")
    for fixture, names in BACKENDS.items():
        if fixture in metafunc.fixturenames and fixture not in _own_parameters(metafunc):
            reasons = {name: _missing(name, device) for name in names}
            here = [name for name, reason in reasons.items() if reason is None]
            none = pytest.param(names[0], marks=pytest.mark.skip(reason=str(reasons[names[0]])))
            metafunc.parametrize(fixture, here or [none])


def _own_parameters(metafunc: pytest.Metafunc) -> set[str]:
    """Names that the test's own marks give values."""
    names: set[str] = set()
    for mark in metafunc.definition.iter_markers("parametrize"):
        names.update(mark.args[0].replace(" ", "").split(",") if isinstance(mark.args[0], str) else mark.args[0])
    return names


def _missing(backend: str, device: str) -> str | None:
    from ffmef.ops._backends import check_device

    try:
        check_device(backend, torch.device(device))
    except RuntimeError as error:
        return str(error)
    return None


@pytest.hookimpl(trylast=True)  # after -k and -m have chosen
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out all but one test per file and reason to skip; without --exhaustive also two planted faults of three and
    most architectures."""
    kept, left_out = [], []
    planted: Counter[Path] = Counter()
    skipped: dict[tuple[Path, str], list[pytest.Item]] = {}
    exhaustive = config.getoption("exhaustive")
    for item in items:
        reason = next(
            (m.kwargs["reason"] for m in item.iter_markers("skipif") if m.args and m.args[0] is True),
            next((m.kwargs["reason"] for m in item.iter_markers("skip") if "reason" in m.kwargs), None),
        )
        if reason is not None:
            skipped.setdefault((item.path, reason), []).append(item)
            (kept if len(skipped[item.path, reason]) == 1 else left_out).append(item)
            continue
        # Each planted fault of a kernel is a compilation, or a run of the interpreter; each architecture a compilation.
        parameters = {} if exhaustive else (getattr(item, "callspec", None) and item.callspec.params) or {}
        if type(parameters.get("mutant")).__module__ in ("cuda_emulation", "triton_guard"):
            planted[item.path] += 1
            if planted[item.path] % 3 != 1:
                left_out.append(item)
                continue
        if parameters.get("architecture", ARCHITECTURES[0]) not in ARCHITECTURES:
            left_out.append(item)
            continue
        kept.append(item)
    for (_, reason), same in skipped.items():
        if len(same) > 1:
            same[0].add_marker(pytest.mark.skip(reason=f"{reason} ({len(same)} tests)"), append=False)
            same[0].own_markers = [mark for mark in same[0].own_markers if mark.name != "skipif"]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object | None:
    if config.getoption("dist") != "load":  # somebody asked for another order
        return None
    from schedule import ByFile

    return ByFile(config, log)


# Triton's interpreter, in a process of its own


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    if interpreter.INTERPRETED or not interpreter.is_interpreted(item):
        return None
    interpreter.run_in_the_interpreter(item, nextitem)
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    if not interpreter.serves():
        return None
    interpreter.serve(session)
    return True


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session, "interpreter"):
        session.interpreter.close()


# Fixtures


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
