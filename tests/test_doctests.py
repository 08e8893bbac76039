"""The examples in docstrings run and print what they say; every public function has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch

import ffmef
import ffmef.faults
import ffmef.losses
import ffmef.metrics.functional
import ffmef.models
import ffmef.nn
import ffmef.ops

MODULES = [
    "ffmef",
    *sorted(
        m.name for m in pkgutil.walk_packages(ffmef.__path__, "ffmef.") if not m.name.rsplit(".")[-1].startswith("_")
    ),
]


def _import(name: str):
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] != "ffmef":
            pytest.skip(f"{name} needs {error.name}, which is not installed")
        raise


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = _import(name)
    torch.manual_seed(0)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    report: list[str] = []
    for example in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        runner.run(example, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


PUBLIC = [ffmef.ops, ffmef.nn, ffmef.models, ffmef.losses, ffmef.faults, ffmef.metrics, ffmef.metrics.functional]
WITHOUT_EXAMPLE = {
    "HierarchicalRepresentationExtractor", "SpatialAdaptiveFilterPredictor",  # parts of FFMEF
    "Fault", "Metric",  # tuples of what a function returns
    "brisque", "niqe",  # need further packages
}  # fmt: skip


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_public_functions_have_examples(module):
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isfunction(value) or inspect.isclass(value):
            assert inspect.getdoc(value), f"{module.__name__}.{name} has no documentation"
            if name not in WITHOUT_EXAMPLE:
                assert doctest.DocTestFinder(recurse=False).find(value)[0].examples, (
                    f"{module.__name__}.{name} has no example"
                )
