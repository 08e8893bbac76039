"""The networks that predict filters, and their weights."""

from ffmef.models.extractor import HierarchicalRepresentationExtractor
from ffmef.models.ffmef import FFMEF
from ffmef.models.predictor import SpatialAdaptiveFilterPredictor
from ffmef.models.pyramid import PyramidFFMEF, merge_chroma
from ffmef.models.weights import available, load, save

__all__ = [
    "FFMEF",
    "HierarchicalRepresentationExtractor",
    "PyramidFFMEF",
    "SpatialAdaptiveFilterPredictor",
    "available",
    "load",
    "merge_chroma",
    "save",
]
