"""Options, parametrisation by mode, and the ``compare`` fixture that every benchmark reports through."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from benchmarks import metadata
from benchmarks.comparison import Comparison

COLUMNS = ["median", "iqr", "rounds"]
LOAD = pytest.StashKey[float | None]()
JOURNAL = pytest.StashKey[Path | None]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("ffmef benchmarks")
    group.addoption("--full", action="store_true", help="every combination and all 100 sizes of MEFB (hours)")
    group.addoption("--smoke", action="store_true", help="tiny sizes, one round: shows that the benchmarks run")
    group.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where the tensors live (default: cpu)")
    group.addoption("--tf32", action="store_true", help="let cuDNN round to TF32 (default: all of float32)")
    group.addoption(
        "--records",
        type=Path,
        metavar="FILE.jsonl",
        help="write each record there as soon as it is measured (default: beside --benchmark-json, as .jsonl)",
    )
    group.addoption("--mefb", type=Path, help="folder NAME/NAME_A.ext, NAME/NAME_B.ext: time the real pictures")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cases(of): parametrise by of(mode), one case a test")
    if config.getoption("--full") and config.getoption("--smoke"):
        raise pytest.UsageError("--full and --smoke exclude each other")
    if config.getoption("--device") == "cuda" and not torch.cuda.is_available():
        pytest.exit("--device cuda: torch finds no CUDA device", returncode=2)
    if config.getoption("--mefb") and not config.getoption("--mefb").is_dir():
        raise pytest.UsageError(f"--mefb: {config.getoption('--mefb')} is not a folder")
    # By default torch lets cuDNN use TF32: ten bits of mantissa, fewer than the checks of results need.
    torch.backends.cudnn.allow_tf32 = config.getoption("--tf32")
    torch.backends.cuda.matmul.allow_tf32 = config.getoption("--tf32")
    given = [str(argument) for argument in config.invocation_params.args]
    if not any(argument.startswith("--benchmark-columns") for argument in given):
        config.option.benchmark_columns = COLUMNS
    config.stash[LOAD] = metadata.load_average()
    config.stash[JOURNAL] = journal_path(config)


def journal_path(config: pytest.Config) -> Path | None:
    if path := config.getoption("--records"):
        return path
    report = config.getoption("--benchmark-json", None)  # a path, or an open file in older releases
    return report and Path(report.name if hasattr(report, "write") else report).with_suffix(".jsonl")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Begin the journal with what is the same for all of its records."""
    config = session.config
    if path := config.stash[JOURNAL]:
        facts = {
            "machine_info": metadata.machine(config.getoption("--device")) | {"load_at_start": config.stash[LOAD]},
            "commit_info": metadata.commit(),
            "mode": mode_of(config),
            "datetime": datetime.now(UTC).isoformat(),
        }
        path.write_text(json.dumps(facts) + "\n")


def mode_of(config: pytest.Config) -> str:
    return "full" if config.getoption("--full") else "smoke" if config.getoption("--smoke") else "quick"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("cases")
    if marker:
        cases = marker.kwargs["of"](mode_of(metafunc.config))
        metafunc.parametrize("case", cases, ids=str)


def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict:
    facts = metadata.machine(config.getoption("--device"))
    return facts | {"load_at_start": config.stash[LOAD], "load_at_end": metadata.load_average()}


def pytest_benchmark_generate_commit_info(config: pytest.Config) -> dict:
    return metadata.commit()


def pytest_benchmark_update_json(config: pytest.Config, benchmarks, output_json: dict) -> None:
    output_json["mode"] = mode_of(config)
    for record in output_json["benchmarks"]:
        record["stats"].pop("data", None)  # the rounds of both sides, by every clock, are in extra_info


@pytest.fixture(scope="session")
def mode(pytestconfig: pytest.Config) -> str:
    return mode_of(pytestconfig)


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> str:
    return pytestconfig.getoption("--device")


@pytest.fixture(autouse=True)
def without_gradients():
    """Keep no graph by accident; a benchmark of a backward pass turns gradients on."""
    with torch.no_grad():
        yield


@pytest.fixture
def compare(benchmark, mode: str, device: str, request: pytest.FixtureRequest) -> Iterator[Comparison]:
    yield Comparison(benchmark, mode, device)
    path = request.config.stash[JOURNAL]
    if path and benchmark.extra_info:  # measurements are kept, whatever ends the run
        with path.open("a") as journal:
            record = {"fullname": request.node.nodeid, "extra_info": benchmark.extra_info}
            journal.write(json.dumps(record) + "\n")
