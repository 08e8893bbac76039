"""The settings of a training run: defaults of the paper, a TOML file over them, the command line over both."""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ffmef import files
from ffmef.errors import InputError
from ffmef.models import registry

LOSSES = ("gif", "picture", "mef-ssim", "pmgi", "truth")

# Least and most of every setting that counts something. The upper limits only keep out absurd numbers: a typing error
# must not exhaust the machine's memory.
_RANGES = {
    "epochs": (1, 10**9),
    "until": (0, 10**9),
    "batch_size": (1, 10**6),
    "size": (1, 2**14),
    "count": (2, 100),
    "largest_count": (0, 100),
    "longest_side": (1, 2**20),
    "samples_per_epoch": (0, 10**8),
    "step_epochs": (1, 10**9),
    "sample_every": (1, 10**9),
    "checkpoint_every": (0, 10**9),
    "warmup": (0, 10**9),
    "overlap": (0, 2**14),
    "mirror": (0, 2**14),
    "threads": (0, 4096),
    "workers": (0, 256),
    "seed": (0, 2**63 - 1),
}


@dataclass
class Config:
    """All settings of a run. The defaults are those of the FFMEF paper, section 4.1."""

    task: str = field(default="mef", metadata={"help": "mef, mff (multi-focus) or vif (A visible, B infrared)"})
    data: list[str] = field(default_factory=list, metadata={"help": "folders of pairs or brackets, or CSV tables"})
    photographs: list[str] = field(
        default_factory=list,
        metadata={"help": "folders of photographs and radiance maps for synthetic brackets or stacks"},
    )
    exclude: list[str] = field(default_factory=list, metadata={"help": "names of scenes to leave out"})
    validation: float = field(default=0.0, metadata={"help": "share of the scenes kept for validation"})

    model: str = field(default="ffmef", metadata={"help": ", ".join(sorted(registry.MODELS))})
    model_options: dict[str, Any] = field(default_factory=dict, metadata={"help": "arguments of the model as JSON"})
    initial: str = field(default="", metadata={"help": "weights to start from; none: random"})

    loss: str = field(default="gif", metadata={"help": "gif, picture, mef-ssim, pmgi or truth (mff from photographs)"})
    loss_options: dict[str, Any] = field(default_factory=dict, metadata={"help": "arguments of the loss as JSON"})

    count: int = field(default=2, metadata={"help": "pictures per sample"})
    largest_count: int = field(
        default=0, metadata={"help": "if not 0, half of the samples have up to this many pictures"}
    )
    size: int = field(default=128, metadata={"help": "side of the samples in pixels"})
    overlap: int = field(default=0, metadata={"help": "cut each sample twice, shifted by up to this many pixels"})
    mirror: int = field(
        default=0, metadata={"help": "fuse each sample again inside a mirrored border of this many pixels"}
    )
    consistency: float = field(
        default=0.0, metadata={"help": "weight of the difference that the second cut or the border makes"}
    )
    on_device: bool = field(
        default=False, metadata={"help": "make the samples from photographs on the training device"}
    )
    recipe: str = field(default="whole", metadata={"help": "whole (paper), release or mixed crops"})
    turns: bool = field(default=False, metadata={"help": "quarter turns in addition to flips"})
    order: str = field(default="", metadata={"help": "luminance, given, reversed or random; empty: the task's"})
    jitter: float = field(default=0.0, metadata={"help": "share of the samples exposed further than the bracket"})
    glare: float = field(
        default=0.0, metadata={"help": "share of vif samples in which a lamp dazzles the visible picture"}
    )
    windows: float = field(default=0.3, metadata={"help": "share of synthetic brackets with a second, brighter scene"})
    longest_side: int = field(default=640, metadata={"help": "longest side of the pictures kept in memory, in pixels"})

    epochs: int = field(default=30, metadata={"help": "length of the run in epochs"})
    minutes: float = field(
        default=0.0, metadata={"help": "length of the run in minutes instead of epochs; 0: by epochs"}
    )
    until: int = field(default=0, metadata={"help": "stop after this many epochs of the schedule; 0: run to its end"})
    samples_per_epoch: int = field(default=0, metadata={"help": "samples per epoch; 0: one per scene"})
    batch_size: int = field(default=2, metadata={"help": "samples per step, over all processes"})
    learning_rate: float = field(default=1e-3, metadata={"help": "highest learning rate of AdamW"})
    weight_decay: float = field(default=1e-2, metadata={"help": "weight decay of AdamW"})
    schedule: str = field(default="constant", metadata={"help": "constant, cosine or step"})
    warmup: int = field(default=0, metadata={"help": "steps of linear warm-up"})
    step_epochs: int = field(default=30, metadata={"help": "epochs after which the step schedule halves the rate"})
    clip_norm: float = field(default=0.0, metadata={"help": "largest norm of the gradient; 0: no limit"})
    ema: float = field(default=0.0, metadata={"help": "decay of the moving average of the weights; 0: none"})
    precision: str = field(default="32-true", metadata={"help": "32-true, bf16-mixed or 16-mixed"})

    graphs: bool = field(
        default=True, metadata={"help": "on a GPU, repeat the steps of a shape as a CUDA graph: one launch each"}
    )
    tune: bool = field(
        default=False,
        metadata={"help": "let cuDNN time its algorithms; on a GPU, equal runs may then differ in their last digits"},
    )
    compile: bool = field(
        default=False, metadata={"help": "compile the network by torch.compile, which takes minutes at the start"}
    )

    seed: int = field(default=0, metadata={"help": "seed of all random numbers"})
    deterministic: bool = field(
        default=False, metadata={"help": "reject operations whose results differ from run to run"}
    )
    accelerator: str = field(default="auto", metadata={"help": "auto, cpu or cuda"})
    threads: int = field(default=0, metadata={"help": "CPU threads; 0: PyTorch's choice"})
    workers: int = field(default=0, metadata={"help": "processes that prepare samples"})
    checkpoint_every: int = field(default=0, metadata={"help": "steps between checkpoints; 0: once per epoch"})
    sample_every: int = field(default=1, metadata={"help": "epochs between sample pictures and validations"})

    def __post_init__(self):
        _one_of("task", self.task, registry.TASKS)
        _one_of("loss", self.loss, LOSSES)
        _one_of("schedule", self.schedule, ("constant", "cosine", "step"))
        _one_of("recipe", self.recipe, ("whole", "release", "mixed"))
        _one_of("order", self.order, ("", "luminance", "given", "reversed", "random"))
        _one_of("accelerator", self.accelerator, ("auto", "cpu", "cuda"))
        _one_of("precision", self.precision, ("32-true", "bf16-mixed", "16-mixed"))
        for name, (least, most) in _RANGES.items():
            _at_least(name, getattr(self, name), least)
            _at_most(name, getattr(self, name), most)
        if self.loss == "truth" and (self.task != "mff" or self.data or not self.photographs):
            raise InputError(
                "loss truth can only be used for task mff with photographs alone, got task "
                f"{self.task}, data {self.data} and photographs {self.photographs}"
            )
        if self.largest_count:
            _at_least("largest_count", self.largest_count, self.count)
            if self.batch_size != 1 and not self.on_device:
                raise InputError(
                    f"batch_size must be 1 where largest_count lets samples differ, got {self.batch_size}; on_device "
                    "makes batches of one number of pictures"
                )
        # Comparisons in this form are false for NaN.
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"learning_rate must be positive and finite, got {self.learning_rate}")
        for name in ("weight_decay", "clip_norm", "minutes"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} must be at least 0 and finite, got {getattr(self, name)}")
        if not (0 <= self.consistency < math.inf and max(self.overlap, self.mirror) < self.size):
            raise InputError(
                "consistency must be at least 0 and finite, and overlap and mirror below size, "
                f"got {self.consistency}, {self.overlap} and {self.mirror}"
            )
        if self.consistency and not self.overlap:
            raise InputError(f"overlap must be positive where consistency has a weight, got {self.overlap}")
        if self.on_device and self.data:
            raise InputError("on_device makes samples of photographs only, but data names folders")
        for name in ("validation", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        if self.glare and self.task != "vif":
            raise InputError(f"glare can only be used for task vif, got task {self.task}")
        for name in ("jitter", "windows", "glare"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        for name in ("data", "photographs", "exclude"):
            _check_names(name, getattr(self, name))
        for name in ("model_options", "loss_options"):
            _check_options(name, getattr(self, name))
        if not self.order:
            # The infrared picture goes first, as in the published weights; of exposures, the darker one.
            self.order = {"mef": "luminance", "mff": "given", "vif": "reversed"}[self.task]

    def write(self, path: Path) -> None:
        """Write the settings as TOML, which ``--config`` reads back."""
        lines = ["# All settings of this run; ffmef train --config reads them back."]
        lines += [f"{name} = {_toml(value)}" for name, value in dataclasses.asdict(self).items()]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def resolve(path: str | Path | None, overrides: dict[str, Any]) -> Config:
    """Return the settings of a file, with ``overrides`` over them.

    Args:
        path: a ``.toml`` file, or None.
        overrides: settings by name.

    Raises:
        InputError: the file cannot be read, names an unknown setting, or a value has the wrong type or range.
    """
    settings = {**(_read(Path(path)) if path else {}), **overrides}
    fields = {f.name: f for f in dataclasses.fields(Config)}
    values = {}
    for name, value in settings.items():
        if name not in fields:
            raise InputError(f"{path}: unknown setting {name!r}")
        values[name] = _typed(name, value, fields[name])
    return Config(**values)


def _read(path: Path) -> dict[str, Any]:
    if path.suffix.lower() != ".toml":
        raise InputError(f"{path}: the extension must be .toml, got {path.suffix!r}")
    try:
        return tomllib.loads(files.read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from None


def default_of(field: dataclasses.Field) -> Any:
    """Return the default of a setting."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _typed(name: str, value: Any, described: dataclasses.Field) -> Any:
    default = default_of(described)
    wanted = type(default)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if wanted is list and isinstance(value, str):
        value = [value]
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise InputError(f"{name} must be of type {wanted.__name__}, got {value!r}")
    return value


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    text = json.dumps(value, ensure_ascii=False)  # TOML has no surrogate pairs
    return text.replace("\x7f", "\\u007f")


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(filter(None, choices))}, got {value!r}")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise InputError(f"{name} must be at least {least}, got {value}")


def _at_most(name: str, value: int, most: int) -> None:
    if value > most:
        raise InputError(f"{name} must be at most {most}, got {value}")


def _check_names(name: str, value: list) -> None:
    for item in value:
        if not isinstance(item, str) or not item.strip():
            # An empty name would mean the working folder.
            raise InputError(f"{name} must be a list of names, got {item!r} among them")


def _check_options(name: str, value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _check_options(f"{name}: {key}", item)
    elif isinstance(value, list):
        for item in value:
            _check_options(name, item)
    elif value is None or (isinstance(value, float) and not math.isfinite(value)):
        shown = "null" if value is None else value
        raise InputError(f"{name} must be a finite number, a text, true or false, got {shown}")
