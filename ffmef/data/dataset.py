"""Samples and batches whose randomness depends only on seed, epoch and number: any can be redrawn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ffmef.data.crops import RECIPES
from ffmef.errors import InputError, counted


class Scenes(Protocol):
    """Anything that yields samples of scenes: :class:`PictureScenes`, :class:`SyntheticBrackets`, :class:`Mixture`."""

    names: list[str]

    def __len__(self) -> int: ...

    def sample(self, index: int, size: int, recipe: str, rng: np.random.Generator) -> np.ndarray: ...


class Mixture:
    """Several kinds of scenes as one.

    Attributes:
        parts: the kinds.
        names: of all scenes, one part after the other.
    """

    def __init__(self, parts: list[Scenes]):
        self.parts = parts
        self._places = [(part, index) for part in parts for index in range(len(part))]
        self.names = [name for part in parts for name in part.names]

    def __len__(self) -> int:
        return len(self._places)

    def sample(self, index: int, size: int, recipe: str, rng: np.random.Generator) -> np.ndarray:
        """Return uint8 (N, size, size, 3) of scene ``index``, counted through all parts."""
        part, index = self._places[index]
        return part.sample(index, size, recipe, rng)


class TrainingSet(Dataset):
    """Training samples, indexed by (epoch, number): the same index gives the same sample in every process and run.

    Args:
        scenes: where the samples come from.
        size: side of the samples in pixels.
        recipe: which part of a picture is shown, see :func:`ffmef.data.crops.draw_window`.
        samples_per_epoch: an epoch's length; None means one sample per scene.
        flips: whether samples are flipped along either axis, as in the paper.
        turns: whether they are also rotated by quarter turns.
        seed: of all randomness.
    """

    def __init__(
        self,
        scenes: Scenes,
        *,
        size: int = 128,
        recipe: str = "whole",
        samples_per_epoch: int | None = None,
        flips: bool = True,
        turns: bool = False,
        seed: int = 0,
    ):
        if recipe not in RECIPES:
            raise ValueError(f"recipe must be one of {RECIPES}, got {recipe!r}")
        self.scenes, self.size, self.recipe, self.seed = scenes, size, recipe, seed
        self.flips, self.turns = flips, turns
        self._length = len(scenes) if samples_per_epoch is None else samples_per_epoch

    def __len__(self) -> int:
        return self._length

    def name(self, place: tuple[int, int]) -> str:
        """Return the name of the scene of (epoch, number)."""
        return self.scenes.names[place[1] % len(self.scenes)]

    def __getitem__(self, place: tuple[int, int]) -> Tensor:
        """Return uint8 (N, 3, size, size) of (epoch, number)."""
        epoch, number = place
        rng = np.random.default_rng([self.seed, 1, epoch, number])
        sample = self.scenes.sample(number % len(self.scenes), self.size, self.recipe, rng)
        if self.flips:
            for axis in (1, 2):
                if rng.random() < 0.5:
                    sample = np.flip(sample, axis)
        if self.turns and rng.random() < 0.5:
            sample = sample.swapaxes(1, 2)
        # A copy: ascontiguousarray takes a flipped side of one pixel as contiguous, torch does not.
        return torch.from_numpy(sample.transpose(0, 3, 1, 2).copy())


class EpochBatches(Sampler):
    """The batches of one epoch as lists of (epoch, number), a fresh permutation each epoch, whole batches only.

    Each of several processes takes its share of every global batch; their mean gradient equals that of one process with
    the global batch.

    Args:
        dataset: the samples.
        batch_size: the global batch, over all processes.
        rank: of this process.
        world_size: number of processes.

    Raises:
        InputError: there are fewer samples than one batch, or the processes cannot share a batch evenly.
    """

    def __init__(self, dataset: TrainingSet, batch_size: int, *, rank: int = 0, world_size: int = 1):
        if batch_size < 1 or batch_size % world_size:
            processes = counted(world_size, "process")
            raise InputError(f"batch size must be a positive multiple of {processes}, got {batch_size}")
        if len(dataset) < batch_size:
            samples = counted(len(dataset), "sample")
            raise InputError(f"the data give {samples} an epoch, fewer than one batch of {batch_size}")
        self._seed, self._count, self._batch = dataset.seed, len(dataset), batch_size
        self._rank, self._world_size = rank, world_size
        self.epoch, self.start = 0, 0

    def seek(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch and the batch with which the next iteration begins."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return self._count // self._batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = self._order(self.epoch)
        share = self._batch // self._world_size
        for batch in range(self.start, len(self)):
            first = batch * self._batch + self._rank * share
            yield [(self.epoch, int(number)) for number in order[first : first + share]]

    def at(self, epoch: int, batch: int) -> list[tuple[int, int]]:
        """Return the whole global batch with this number."""
        first = batch * self._batch
        return [(epoch, int(number)) for number in self._order(epoch)[first : first + self._batch]]

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, 0, epoch]).permutation(self._count)
