"""Tells torch's ONNX exporter of the operators when it is imported, at no cost before."""

from __future__ import annotations

import importlib.util
import logging
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

EXPORTER = "torch.onnx._internal.exporter._registration"


class _ExporterFinder(MetaPathFinder):
    """Finds the exporter as anybody would, once, and registers the translations after it."""

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        if name != EXPORTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def _register() -> None:
    try:
        from ffmef import onnx

        onnx.register()
    except Exception as error:  # the exporter's insides may change; it works without us
        logging.getLogger(__name__).warning(
            "torch.onnx does not know ffmef's operators (%s): "
            "give it custom_translation_table=ffmef.onnx.translation_table()",
            error,
        )


def install() -> None:
    """Register the translations as soon as the exporter exists."""
    if EXPORTER in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _ExporterFinder())
