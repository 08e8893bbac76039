"""Runs code when a module of torch is first imported, at no cost before."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Finder(MetaPathFinder):
    """Finds one module the usual way, once, and calls ``run`` after the import."""

    def __init__(self, module: str, run: Callable[[], None]) -> None:
        self.module, self.run = module, run

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_run(module: ModuleType) -> None:
            execute(module)
            self.run()

        spec.loader.exec_module = execute_and_run  # type: ignore[method-assign]
        return spec


def after_import(module: str, run: Callable[[], None]) -> None:
    """Call ``run`` when ``module`` is imported, or at once if it already is."""
    if module in sys.modules:
        run()
    else:
        sys.meta_path.insert(0, _Finder(module, run))
