"""Training data: scenes of several exposures or foci, real or made from photographs, as seeded samples."""

from ffmef.data.dataset import EpochBatches, Mixture, Scenes, TrainingSet
from ffmef.data.device import DeviceBatches
from ffmef.data.pictures import PictureScenes
from ffmef.data.scenes import find_brackets, find_pairs, find_photographs, find_scenes, read_table
from ffmef.data.stacks import SyntheticStacks
from ffmef.data.synthetic import SyntheticBrackets

__all__ = [
    "DeviceBatches",
    "EpochBatches",
    "Mixture",
    "PictureScenes",
    "Scenes",
    "SyntheticBrackets",
    "SyntheticStacks",
    "TrainingSet",
    "find_brackets",
    "find_pairs",
    "find_photographs",
    "find_scenes",
    "read_table",
]
