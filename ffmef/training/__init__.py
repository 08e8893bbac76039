"""Training: settings, the loop, and the files of a run."""

from ffmef.training.config import Config, resolve

__all__ = ["Config", "resolve"]
