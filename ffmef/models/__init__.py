"""The fusion networks and their weights."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ffmef.models.extractor import HierarchicalRepresentationExtractor
    from ffmef.models.ffmef import FFMEF
    from ffmef.models.focus import FocusNet
    from ffmef.models.predictor import SpatialAdaptiveFilterPredictor
    from ffmef.models.pyramid import PyramidFFMEF, merge_chroma
    from ffmef.models.weights import available, load, save

# Imported at first use, so that the registry can be asked without torch.
_MODULES = {
    "FFMEF": "ffmef",
    "FocusNet": "focus",
    "HierarchicalRepresentationExtractor": "extractor",
    "PyramidFFMEF": "pyramid",
    "SpatialAdaptiveFilterPredictor": "predictor",
    "available": "weights",
    "load": "weights",
    "merge_chroma": "pyramid",
    "save": "weights",
}

__all__ = [
    "FFMEF",
    "FocusNet",
    "HierarchicalRepresentationExtractor",
    "PyramidFFMEF",
    "SpatialAdaptiveFilterPredictor",
    "available",
    "load",
    "merge_chroma",
    "save",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = getattr(importlib.import_module(f"ffmef.models.{_MODULES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'ffmef.models' has no attribute {name!r}")
