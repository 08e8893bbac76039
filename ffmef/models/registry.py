"""What the rest of the package knows about each model: one list for the command line, pipeline and trainer.

A new model is a class that fits :class:`FusionModel` and one entry of :data:`MODELS`. Importing this module does not
import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ffmef.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

TASKS = ("mef", "mff", "vif")
ROLES = ("infrared", "visible")  # of the pictures for vif, in the order of the arguments


class FusionModel(Protocol):
    """What a model's class must have.

    A model that fuses colour pictures itself, in one pass, also has ``fuse_rgb(pictures)``; see
    :class:`ffmef.models.PyramidFFMEF`.
    """

    backend: str | None
    """How to compute: None chooses; otherwise a name of :attr:`Spec.backends`. May be changed at any time."""

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as weight files keep them; ``backend`` is not among them."""

    def __call__(self, luminance: Tensor) -> Tensor:
        """Fuse luminance (B, N, H, W) in [0, 1] to (B, 1, H, W), unclamped."""


@dataclass(frozen=True)
class Spec:
    """What is known about one model.

    Attributes:
        name: its name for ``--model`` and the training settings.
        architecture: the class in :mod:`ffmef.models`; weight files name it.
        summary: one line for ``--help``.
        weights: the bundled weights by task.
        fewest, most: number of pictures; ``most`` is None where there is no limit.
        ordered: whether the result depends on the order of the pictures.
        backends: the values of ``backend`` besides None.
    """

    name: str
    architecture: str
    summary: str
    weights: Mapping[str, str]
    backends: tuple[str, ...]
    fewest: int = 2
    most: int | None = None
    ordered: bool = False

    def build(self, **options: Any) -> nn.Module:
        """Return the model with random weights.

        >>> MODELS["ffmef"].build(channels=2).channels
        2
        """
        from ffmef import models

        return getattr(models, self.architecture)(**options)

    def weights_for(self, task: str) -> str:
        """Return the name of the bundled weights for a task.

        Raises:
            InputError: the model has no weights for the task.
        """
        if task not in self.weights:
            raise InputError(f"model {self.name!r} can only be used for task {', '.join(self.weights)}, got {task}")
        return self.weights[task]

    def check_count(self, count: int) -> None:
        """Raise InputError unless the model takes this many pictures."""
        if self.most is not None and self.most == self.fewest and count != self.most:
            raise InputError(f"images must be {self.most} pictures for the model {self.architecture}, got {count}")
        if count < self.fewest or (self.most is not None and count > self.most):
            most = "" if self.most is None else f" and at most {self.most}"
            raise InputError(
                f"images must be at least {self.fewest}{most} pictures for the model {self.architecture}, got {count}"
            )

    def check_backend(self, backend: str | None) -> None:
        """Raise InputError unless the model knows the backend."""
        if backend is not None and backend not in self.backends:
            if not self.backends:
                raise InputError(f"backend cannot be used with the model {self.architecture}, got {backend!r}")
            known = ", ".join(self.backends)
            raise InputError(f"backend must be one of {known} for the model {self.architecture}, got {backend!r}")


_OPERATOR_BACKENDS = ("reference", "cpu", "triton", "cuda")

# The default for a task is the first model that can do what is asked for.
MODELS: dict[str, Spec] = {
    spec.name: spec
    for spec in (
        Spec(
            name="pyramid",
            architecture="PyramidFFMEF",
            summary="any number of exposures, in any order",
            weights={"mef": "mef-pyramid"},
            backends=_OPERATOR_BACKENDS,
        ),
        Spec(
            name="focus",
            architecture="FocusNet",
            summary="focus stacks of any number of frames, in any order",
            weights={"mff": "focus"},
            backends=(),
        ),
        Spec(
            name="ffmef",
            architecture="FFMEF",
            summary="the paper's network for two pictures",
            weights={"mef": "mef", "mff": "mff", "vif": "vif"},
            most=2,
            ordered=True,
            backends=("fused", "native", "recompute", "eager", *_OPERATOR_BACKENDS),
        ),
    )
}

# Of PyramidFFMEF, written to weight files. The first design had no octaves, the second one plane for all of them, and
# the third shrank them all.
PYRAMID_DESIGN = 4

# Weights that were renamed: the old name still works, with a DeprecationWarning, where the new file is bundled.
RENAMED_WEIGHTS = {"pyramid": "mef-pyramid", "pyramid-brackets": "mef-pyramid"}


def find(name: str) -> Spec:
    """Return the model with this name.

    >>> find("ffmef").most
    2
    """
    if name not in MODELS:
        raise InputError(f"model must be one of {', '.join(sorted(MODELS))}, got {name!r}")
    return MODELS[name]


def of(model: object) -> Spec | None:
    """Return the spec of a model object, or None for a class that is not ours."""
    return by_architecture().get(type(model).__name__)


def by_architecture() -> dict[str, Spec]:
    """Return the models by the class that weight files name."""
    return {spec.architecture: spec for spec in MODELS.values()}


def default(task: str, backend: str | None = None) -> Spec:
    """Return the default model for a task: the first that has weights for it and the backend.

    >>> default("mef").name, default("mef", backend="fused").name, default("mff").name
    ('pyramid', 'ffmef', 'focus')
    """
    specs = [spec for spec in MODELS.values() if task in spec.weights]
    if not specs:
        raise InputError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    return next((spec for spec in specs if backend is None or backend in spec.backends), specs[0])
