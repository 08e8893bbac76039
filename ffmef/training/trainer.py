"""The training loop: one process or many, resumable to the bit, of any model and loss of this package."""

from __future__ import annotations

import copy
import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ffmef import files
from ffmef.data import (
    DeviceBatches,
    EpochBatches,
    Mixture,
    PictureScenes,
    Scenes,
    SyntheticBrackets,
    SyntheticStacks,
    TrainingSet,
    find_scenes,
)
from ffmef.errors import InputError, counted
from ffmef.losses import GIFLoss, MEFSSIMLoss, PictureLoss, PMGILoss, Sources, TruthLoss
from ffmef.models import FocusNet, PyramidFFMEF, registry
from ffmef.models.pyramid import into_range
from ffmef.models.shapes import shapes_only
from ffmef.training.checkpoint import load, save
from ffmef.training.config import Config
from ffmef.training.graphs import Graphs
from ffmef.training.native import use_native_operators
from ffmef.training.report import LossTable, contact_sheet
from ffmef.training.schedules import rate_factor

if TYPE_CHECKING:
    from lightning_fabric import Fabric

log = logging.getLogger(__name__)

_LOSSES = {"gif": GIFLoss, "picture": PictureLoss, "mef-ssim": MEFSSIMLoss, "pmgi": PMGILoss, "truth": TruthLoss}
_MOST_PARAMETERS = 10**9
_COMPILER = "inductor"
_CORNER = 24  # pixels, side of what counts as a corner
_WAIT_EVERY = 25  # steps between waits for a GPU


class DivergedError(InputError):
    """The loss is no longer a number."""


def build_model(name: str, options: dict[str, Any]) -> nn.Module:
    """Return a model of :data:`ffmef.models.registry.MODELS` with its options.

    Raises:
        InputError: the name or an option is unknown.
    """
    spec = registry.find(name)
    try:
        # Build on the meta device first: a typing error is then reported before it fills the memory.
        with shapes_only():
            numbers = sum(parameter.numel() for parameter in spec.build(**options).parameters())
        if numbers > _MOST_PARAMETERS:
            raise ValueError(f"the model must have at most {_MOST_PARAMETERS} parameters, got {numbers}")
        return spec.build(**options)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"model_options: {' '.join(str(error).split())[:200]}") from None


def build_loss(name: str, options: dict[str, Any]) -> nn.Module:
    """Return the loss ``"gif"``, ``"picture"``, ``"mef-ssim"``, ``"pmgi"`` or ``"truth"`` with its options.

    Raises:
        InputError: an option is unknown.
    """
    try:
        return _LOSSES[name](**options)
    except (TypeError, ValueError) as error:
        raise InputError(f"loss_options: {error}") from None


def _check_size(loss: nn.Module, config: Config) -> None:
    """Raise before the first step if the loss cannot take samples of the size."""
    try:
        rgb = torch.full((1, config.count, 3, config.size, config.size), 0.5)
        sources = Sources.from_rgb(rgb, truth=rgb[:, 0] if config.loss == "truth" else None)
        with torch.no_grad():
            loss(sources.luminance[:, :1], sources)
    except ValueError as error:
        raise InputError(f"size {config.size} does not suit the loss {config.loss}: {error}") from None
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        raise InputError(f"size {config.size} with {config.count} pictures needs more memory than there is") from None


def build_scenes(config: Config) -> tuple[TrainingSet, list[np.ndarray]]:
    """Return the training samples, and the validation scenes as uint8 (N, h, w, 3), no side above 384.

    The split is by scene, drawn from the seed; synthetic scenes are never used for validation.

    Raises:
        InputError: there is no data, or there are fewer samples than one batch.
    """
    parts: list[Scenes] = []
    held_out: list[np.ndarray] = []
    if not config.data and not config.photographs:
        raise InputError("data or photographs must name at least one folder, got none")
    reverse = config.order == "reversed"
    options: dict[str, Any] = {
        "count": config.count,
        "largest_count": config.largest_count,
        "order": "given" if reverse else config.order,
        "longest_side": config.longest_side,
    }
    unknown = set(config.exclude)
    for place in config.data:
        found = find_scenes(place)
        unknown -= set(found)
        scenes = {name: paths for name, paths in found.items() if name not in config.exclude}
        if reverse:
            scenes = {name: paths[::-1] for name, paths in scenes.items()}
        # By name: a scene that occurs in two folders then stays on one side of the split.
        kept_out = {name for name in scenes if _fraction(name, config.seed) < config.validation}
        parts.append(
            PictureScenes(
                {n: p for n, p in scenes.items() if n not in kept_out},
                jitter=config.jitter,
                glare=config.glare,
                **options,
            )
        )
        chosen = PictureScenes({n: scenes[n] for n in sorted(kept_out)}, **{**options, "longest_side": 384})
        held_out += [chosen.whole(index) for index in range(len(chosen))]
    if unknown:
        log.warning("exclude names no scene of the data: %s", ", ".join(sorted(unknown)))
    order = config.order if config.order in ("luminance", "random") else "luminance"
    for place in config.photographs:
        shared: dict[str, Any] = {
            "count": config.count,
            "largest_count": config.largest_count,
            "longest_side": config.longest_side,
        }
        if config.task == "mff":
            parts.append(SyntheticStacks(place, truth=config.loss == "truth", **shared))
        else:
            light: dict[str, Any] = {"order": order, "windows": config.windows, "jitter": config.jitter}
            parts.append(SyntheticBrackets(place, **light, **shared))
    dataset = TrainingSet(
        Mixture(parts),
        size=config.size + config.overlap,
        recipe=config.recipe,
        samples_per_epoch=config.samples_per_epoch or None,
        turns=config.turns,
        seed=config.seed,
    )
    if not dataset.scenes.names and held_out:
        kept = counted(len(held_out), "scene")
        raise InputError(f"validation {config.validation} keeps all data ({kept}), none is left for training")
    if not dataset.scenes.names:
        raise InputError(f"{', '.join(config.data + config.photographs)}: no scene can be used")
    return dataset, held_out


def _fraction(name: str, seed: int) -> float:
    import zlib

    return zlib.crc32(f"{seed}:{name}".encode()) / 2**32


def _disagreement(one: Tensor, other: Tensor, places: Tensor) -> Tensor:
    """Return the mean absolute difference of two fused parts of one sample where they overlap, mean over samples.

    Args:
        one: (B, 1, size, size).
        other: like ``one``.
        places: (2, B, 2), top and left of each part, on the same device.
    """
    batch, _, size, _ = one.shape
    # Gathered and masked, not cut: the shapes, and so a captured graph, are the same for all places.
    at = torch.arange(size, device=one.device).view(1, 1, size) + (places[0] - places[1]).unsqueeze(2)
    rows, columns = at.clamp(0, size - 1).unbind(1)
    row_inside, column_inside = ((at >= 0) & (at < size)).to(one.dtype).unbind(1)
    inside = (row_inside.unsqueeze(2) * column_inside.unsqueeze(1)).unsqueeze(1)
    other = other.gather(2, rows.view(batch, 1, size, 1).expand_as(other))
    other = other.gather(3, columns.view(batch, 1, 1, size).expand_as(other))
    return (((one - other).abs() * inside).sum((1, 2, 3)) / inside.sum((1, 2, 3))).mean()


def _border_change(fused: Tensor, mirrored: Tensor, width: int) -> Tensor:
    """Return the mean absolute difference that a mirrored border makes, half of it that of the four corners."""
    change = (mirrored[..., width:-width, width:-width] - fused).abs()
    side = min(_CORNER, change.shape[-1])
    corners = [change[..., rows, columns] for rows in _ends(side) for columns in _ends(side)]
    return (change.mean() + sum(corner.mean() for corner in corners) / 4) / 2


def _ends(side: int) -> tuple[slice, slice]:
    return slice(None, side), slice(-side, None)


def _launched(config: Config) -> Fabric:
    """Set torch up as the configuration asks and join the other processes of the run."""
    from lightning_fabric import Fabric

    if config.threads:
        torch.set_num_threads(config.threads)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    if config.tune:
        torch.backends.cudnn.benchmark = True
    if config.precision == "16-mixed" and (config.accelerator == "cpu" or not torch.cuda.is_available()):
        raise InputError("precision 16-mixed needs a GPU; bf16-mixed works on a CPU")
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if config.accelerator == "cuda" and torch.cuda.device_count() < processes:
        raise InputError(
            f"accelerator cuda needs a GPU for each process of this machine: {processes}, and torch "
            f"{torch.__version__} sees {torch.cuda.device_count()}"
        )
    fabric = Fabric(
        accelerator=config.accelerator,
        devices=processes,
        num_nodes=max(1, int(os.environ.get("WORLD_SIZE", "1")) // processes),
        strategy="ddp" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else "auto",
        precision=cast(Any, config.precision),  # checked by Config
    )
    fabric.launch()
    return fabric


class Trainer:
    """Trains one model as a :class:`Config` says, into a folder.

    The folder receives ``config.toml``, ``losses.csv``, ``checkpoint.pt``, TensorBoard events, ``samples/``, and at the
    end ``weights.safetensors`` and ``losses.png``.

    Lightning Fabric places the model and the batches, starts or joins the processes of ``torchrun``, averages gradients
    and scales the loss of float16; the loop stays ours, which lets a run resume to the bit.

    Args:
        config: the settings.
        folder: of the run.
        resume: continue from ``checkpoint.pt`` in the folder.
        model: your own network, which is copied, in place of the one that the settings name: ``forward`` takes
            luminance (B, N, H, W) in [0, 1] and returns (B, 1, H, W), ``config()`` returns its arguments for the weight
            file.

    Raises:
        InputError: a setting or the data cannot be used, or there is nothing to resume.
    """

    def __init__(self, config: Config, folder: str | Path, *, resume: bool = False, model: nn.Module | None = None):
        self.config, self.folder = config, Path(folder)
        self.fabric = _launched(config)
        state = load(self.folder / "checkpoint.pt") if resume else None
        if not resume and (self.folder / "checkpoint.pt").exists():
            raise InputError(f"{self.folder}: holds a run already; resume it or name another folder")
        dataset, self.held_out = build_scenes(config)
        self.batches = EpochBatches(
            dataset, config.batch_size, rank=self.fabric.global_rank, world_size=self.fabric.world_size
        )
        self.dataset = dataset
        self.loader = self._loader()
        self.loss = build_loss(config.loss, config.loss_options)
        _check_size(self.loss, config)
        torch.manual_seed(config.seed)
        model = build_model(config.model, config.model_options) if model is None else copy.deepcopy(model)
        if spec := registry.of(model):
            for count in filter(None, (config.count, config.largest_count)):
                spec.check_count(count)
        if config.initial:
            load_initial(model, config.initial)
        # One kernel for all parameters; with scaled gradients it would unscale them too late for clipping.
        fused = config.precision != "16-mixed"
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=fused,
            foreach=not fused,
        )
        self.average = copy.deepcopy(model).requires_grad_(False) if config.ema else None
        self.step = self.epoch = self.batch = 0
        self.seconds = 0.0
        self._sums: dict[str, float] = {}
        self._made: list[tuple[int, int, list[str], Tensor]] = []  # losses of steps, not yet read
        if state:
            self._restore(state, model, optimizer)
        if self.fabric.device.type == "cpu":
            use_native_operators(model)
        self.plain = model
        called = cast(nn.Module, torch.compile(model, backend=_COMPILER)) if config.compile else model
        self.model, self.optimizer = self.fabric.setup(called, optimizer)
        self._parameters: list[Tensor] = list(model.parameters())
        if state and state["scaler"] is not None:
            self.fabric.strategy.precision.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.to(self.fabric.device)
        self._averages: list[Tensor] = [] if self.average is None else list(self.average.parameters())
        self._gradients = Graphs(self._compute, self._parameters, active=self._captures())
        if self.fabric.is_global_zero:
            self._open_folder()

    def _loader(self) -> Iterable[Tensor]:
        if self.config.on_device:
            return DeviceBatches(self.dataset, self.batches, self.fabric.device)
        return torch.utils.data.DataLoader(
            self.dataset,
            batch_sampler=self.batches,
            num_workers=self.config.workers,
            pin_memory=self.fabric.device.type == "cuda",
            # A separate generator: the loader must not draw from the random state that a checkpoint holds.
            generator=torch.Generator(),
        )

    def _open_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "samples").mkdir(exist_ok=True)
            self.config.write(self.folder / "config.toml")
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be written: {error.strerror or error}") from None
        except UnicodeEncodeError:  # names that are not UTF-8
            raise InputError(f"{self.folder}: config.toml cannot hold a name that is not UTF-8") from None

    # State

    def _state(self) -> dict[str, Any]:
        scaler = self.fabric.strategy.precision.state_dict() or None
        return {
            "step": self.step,
            "epoch": self.epoch,
            "batch": self.batch,
            "sums": self._sums,
            "seconds": self.seconds,
            "model": self.plain.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler,
            "random": torch.get_rng_state(),
        }

    def _restore(self, state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        try:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            if self.average is not None and state["average"] is not None:
                self.average.load_state_dict(state["average"])
            torch.set_rng_state(state["random"])
        except (KeyError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:160]
            raise InputError(f"{self.folder}/checkpoint.pt: does not fit these settings: {reason}") from None
        self.step, self.epoch, self.batch = state["step"], state["epoch"], state["batch"]
        self._sums, self.seconds = state["sums"], state.get("seconds", 0.0)

    def _save(self) -> None:
        if self.fabric.is_global_zero:
            save(self.folder / "checkpoint.pt", self._state())

    # The loop

    def run(self, *, progress: bool = True, stop_after: int | None = None) -> None:
        """Train to the end.

        Args:
            progress: show a bar on standard error.
            stop_after: return after this many steps of this call, without the final files; for tests and short slices.

        Raises:
            DivergedError: the loss of a batch is not finite; the scenes of the batch are named.
            InputError: a file cannot be written, for example because the disk is full.
        """
        table = LossTable(self.folder, self.epoch) if self.fabric.is_global_zero else None
        events = self._events() if self.fabric.is_global_zero else None
        bar = self._bar(progress)
        first, self._clock = self.step, time.perf_counter() - self.seconds
        self.model.train()
        while not self._ended():
            self.batches.seek(self.epoch, self.batch)
            for batch in self.loader:
                # A slice must leave the state as a kill would: between two steps.
                if stop_after is not None and self.step - first >= stop_after:
                    self._read(bar, events)
                    self._save()
                    bar.close()
                    return
                self._made.append((self.epoch, self.batch, *self._step(batch)))
                self.batch += 1
                self.step += 1
                self.seconds = time.perf_counter() - self._clock
                save = self.config.checkpoint_every and self.step % self.config.checkpoint_every == 0
                if save or self.fabric.device.type == "cpu" or len(self._made) == _WAIT_EVERY:
                    self._read(bar, events)
                if save:
                    self._save()
                if self._out_of_time():
                    break
            self._read(bar, events)
            self._end_epoch(table, events)
        bar.close()
        if table is not None and events is not None:
            events.close()
            self._export()
            table.plot(self.folder / "losses.png")
        self.fabric.barrier()

    def _ended(self) -> bool:
        return self._out_of_time() if self.config.minutes else self.epoch >= self.last_epoch

    def _out_of_time(self) -> bool:
        return bool(self.config.minutes) and self.seconds >= 60 * self.config.minutes

    def _read(self, bar, events) -> None:
        """Wait for the losses of the steps made since the last call, and note them.

        Raises:
            DivergedError: one is not finite; the scenes of its batch are named.
        """
        if not self._made:
            return
        # One copy; brackets may have other terms than pairs.
        row = iter(torch.cat([values for *_, values in self._made]).tolist())
        for epoch, batch, names, _ in self._made:
            numbers = {name: next(row) for name in names}
            if not np.isfinite(numbers["total"]):
                raise self._diverged(numbers, epoch, batch)
            for name, value in numbers.items():
                self._sums[name] = self._sums.get(name, 0.0) + value
        if events:
            for name, value in numbers.items():
                events.add_scalar(f"loss/{name}", value, self.step)
            events.add_scalar("learning_rate", self._rate(self.step - 1), self.step)
        self._show(bar, numbers, len(self._made))
        self._made.clear()

    @property
    def last_epoch(self) -> int:
        """The number of epochs after which the run ends."""
        return min(self.config.until or self.config.epochs, self.config.epochs)

    def _rate(self, step: int) -> float:
        config = self.config
        total: float = config.epochs * len(self.batches)
        if config.minutes:
            # The number of steps at the pace so far: the schedule follows the clock.
            total = max(step, 1) * 60 * config.minutes / max(self.seconds, 1e-3)
        return config.learning_rate * rate_factor(
            step,
            total=total,
            schedule=config.schedule,
            warmup=config.warmup,
            halve_every=config.step_epochs * len(self.batches),
        )

    def _sources(self, batch: Tensor) -> Sources:
        # Infrared has no colour, whatever its file says.
        chroma_from = 1 if self.config.task == "vif" else None
        if self.config.loss == "truth":
            return Sources.from_rgb(batch[:, :-1], chroma_from=chroma_from, truth=batch[:, -1])
        return Sources.from_rgb(batch, chroma_from=chroma_from)

    def _forward(self, model: nn.Module, sources: Sources) -> tuple[Tensor, Sources]:
        """Return the fused luminance or picture, and the sources with the chroma that the model merges."""
        if isinstance(self.plain, FocusNet) and self.config.loss == "truth":
            return model(sources.rgb), sources
        if not isinstance(self.plain, PyramidFFMEF):
            return model(sources.luminance), sources
        fused, shares = model(sources.luminance, with_shares=True)
        if self.config.task != "mef":
            return fused, sources
        merged = sources.with_chroma_of(shares.detach())
        return into_range(fused * 255, sources.rgb * 255, ycbcr=sources.ycbcr)[0] / 255, merged

    def _cut(self, batch: Tensor, places: np.ndarray) -> Tensor:
        """Return the part of each sample with the given top and left, (B, 2)."""
        size = self.config.size
        parts = [sample[..., y : y + size, x : x + size] for sample, (y, x) in zip(batch, places, strict=True)]
        return torch.stack(parts)

    def _changes(
        self, fused: Tensor, sources: Sources, other: Sequence[Tensor], width: int | None
    ) -> dict[str, Tensor]:
        """Return how another crop of the samples and a mirrored border change the fused picture.

        If both have a weight, they alternate from step to step and count twice.

        Args:
            fused: of ``sources``.
            sources: the samples.
            other: another crop of them, and the places of both as :func:`_disagreement` takes them; or none.
            width: of the border; None for no border.
        """
        terms = {}
        if other:
            crop, places = other
            terms["consistency"] = _disagreement(fused, self._forward(self.model, self._sources(crop))[0], places)
        if width is not None:
            mirrored = F.pad(sources.luminance, [width] * 4, mode="reflect")
            again = self.model(mirrored, with_shares=True)[0] if self._has_shares else self.model(mirrored)
            terms["border"] = _border_change(fused, again, width)
        if not self.config.mirror:
            return terms
        none = fused.new_zeros(())
        return {name: 2 * terms[name] if name in terms else none for name in ("consistency", "border")}

    def _random(self, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, purpose, self.step, self.fabric.global_rank])

    @property
    def _has_shares(self) -> bool:
        return isinstance(self.plain, PyramidFFMEF)

    def _captures(self) -> bool:
        # Float16 looks at the gradients' size after every step, and several processes exchange gradients meanwhile.
        alone = self.fabric.world_size == 1 and self.config.precision != "16-mixed"
        return self.config.graphs and alone and self.fabric.device.type == "cuda"

    def _prepared(self, batch: Tensor) -> tuple[list[Tensor], int | None]:
        """Return what a step computes with: the samples, maybe another crop of them and both places; and the border."""
        batch, config = self._sent(batch), self.config
        if not config.overlap:
            return [batch], None
        places = self._random(3).integers(0, config.overlap + 1, (2, len(batch), 2))
        tensors, width = [self._cut(batch, places[0])], None
        turn = self.step % 2 if config.mirror else 0
        if config.consistency and turn == 0:
            tensors += [self._cut(batch, places[1]), self._sent(torch.from_numpy(places))]
        elif config.consistency:
            width = int(self._random(4).integers(1, config.mirror + 1))
        return tensors, width

    def _sent(self, tensor: Tensor) -> Tensor:
        if self.fabric.device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
            tensor = tensor.pin_memory()
        return tensor.to(self.fabric.device, non_blocking=True)

    def _compute(self, tensors: Sequence[Tensor], width: int | None) -> tuple[list[str], Tensor]:
        """Set the gradients of one step and return the losses' names and values, still on the device.

        A graph may repeat this on a GPU: nothing here may wait for the GPU, and the step must not count.
        """
        sources = self._sources(tensors[0])
        fused, merged = self._forward(self.model, sources)
        total, terms = self.loss(fused, merged)
        changes = self._changes(fused, sources, tensors[1:], width) if self.config.consistency else {}
        if changes:
            total = total + self.config.consistency * sum(changes.values())
            terms.update(changes)
        values = torch.stack([total.detach(), *(term.detach() for term in terms.values())])
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(total)
        return ["total", *terms], values

    def _step(self, batch: Tensor) -> tuple[list[str], Tensor]:
        """Make one step and return its losses' names and values, still on the device."""
        rate = self._rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        tensors, width = self._prepared(batch)
        names, values = self._gradients(tensors, width)
        if self.fabric.world_size > 1:
            values = cast(Tensor, self.fabric.all_reduce(values, reduce_op="mean"))
        if self.config.clip_norm:
            self.fabric.clip_gradients(
                self.model, self.optimizer, max_norm=self.config.clip_norm, error_if_nonfinite=False
            )
        self.optimizer.step()
        if self.average is not None:
            # The average is short in the first steps, to forget the random start.
            decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(self._averages, self._parameters, 1 - decay)
        return names, values

    def _diverged(self, numbers: dict[str, float], epoch: int, batch: int) -> DivergedError:
        order = list(EpochBatches(self.dataset, self.config.batch_size).at(epoch, batch))
        scenes = ", ".join(self.dataset.name(place) for place in order)
        broken = ", ".join(name for name, value in numbers.items() if not np.isfinite(value))
        kept = (self.folder / "checkpoint.pt").exists()
        state = "the last checkpoint, of a step before, is kept" if kept else "there is no checkpoint yet"
        return DivergedError(f"{broken} is not finite in epoch {epoch + 1}, batch {batch + 1} ({scenes}); {state}")

    def _end_epoch(self, table: LossTable | None, events) -> None:
        # DDP keeps all processes at the same step, so only the first needs to look.
        if table is not None:
            means = {name: value / max(1, self.batch) for name, value in self._sums.items()}
            row = {"epoch": self.epoch, "step": self.step, "rate": self._rate(self.step - 1), **means}
            if self.held_out and (self.epoch + 1) % self.config.sample_every == 0:
                row["validation"], picture = self._validate()
                events.add_scalar("loss/validation", row["validation"], self.step)
                events.add_image("samples", picture, self.step, dataformats="HWC")
                self._write_picture(self.folder / "samples" / f"epoch-{self.epoch + 1:04d}.png", picture)
            elif (self.epoch + 1) % self.config.sample_every == 0:
                samples = [
                    self.dataset[0, number].numpy().transpose(0, 2, 3, 1) for number in range(min(4, len(self.dataset)))
                ]
                picture = contact_sheet([[*scene, self._fuse(scene)[0]] for scene in samples])
                events.add_image("samples", picture, self.step, dataformats="HWC")
                self._write_picture(self.folder / "samples" / f"epoch-{self.epoch + 1:04d}.png", picture)
            table.add(**row)
        self._sums = {}
        self.epoch += 1
        self.batch = 0
        if not self.config.checkpoint_every or self.epoch == self.last_epoch:
            self._save()

    @torch.no_grad()
    def _fuse(self, scene: np.ndarray) -> tuple[np.ndarray, float]:
        """Return the fused picture uint8 (H, W, 3) of pictures (N, H, W, 3), and its loss."""
        model = self.average if self.average is not None else self.plain
        rgb = torch.from_numpy(np.ascontiguousarray(scene.transpose(0, 3, 1, 2))).unsqueeze(0)
        sources = self._sources(rgb.to(self.fabric.device))
        fused, sources = self._forward(model, sources)
        fused = fused.float()
        picture = (fused if fused.shape[1] == 3 else sources.picture(fused.clamp(0, 1))).clamp(0, 1)
        pixels = (picture[0] * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        return pixels, self.loss(fused, sources)[0].item()

    def _validate(self) -> tuple[float, np.ndarray]:
        results = [self._fuse(scene) for scene in self.held_out]
        rows = [[*scene, result[0]] for scene, result in zip(self.held_out, results)][:4]
        return float(np.mean([result[1] for result in results])), contact_sheet(rows)

    # What is shown and written

    def _bar(self, progress: bool):
        from tqdm import tqdm

        total = None if self.config.minutes else self.last_epoch * len(self.batches)

        hidden = not progress or not self.fabric.is_global_zero
        return tqdm(total=total, initial=self.step, disable=hidden, unit="step", file=sys.stderr, dynamic_ncols=True)

    def _show(self, bar, values: dict[str, float], steps: int) -> None:
        bar.update(steps)
        if not bar.disable:
            shown = {name: f"{value:.4f}" for name, value in values.items()}
            bar.set_postfix(shown | {"lr": f"{self._rate(self.step - 1):.1e}"}, refresh=False)

    def _events(self):
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(self.folder, purge_step=self.step + 1 if self.step else None)

    def _write_picture(self, path: Path, pixels: np.ndarray) -> None:
        from ffmef.imaging.io import Picture, write_picture

        write_picture(path, Picture(pixels))

    def _export(self) -> None:
        model = self.average if self.average is not None else self.plain
        files.write(self.folder / "weights.safetensors", export(model, self.config, self.step), durable=True)


def export(model: nn.Module, config: Config, steps: int) -> bytes:
    """Return the weights of a model as a safetensors file that :func:`ffmef.models.load` reads."""
    from ffmef.models.weights import serialise

    header = {
        "architecture": type(model).__name__,
        "config": json.dumps(cast(registry.FusionModel, model).config()),
        "task": config.task,
        "loss": config.loss,
        "steps": str(steps),
    }
    return serialise(model.state_dict(), header)


def load_initial(model: nn.Module, name_or_path: str) -> None:
    """Load weights, by bundled name or from a file, into a model; PyramidFFMEF also takes those of its earlier designs.

    Raises:
        InputError: the file is missing or does not fit.
    """
    from ffmef.models import weights

    try:
        earlier = weights.earlier_design(name_or_path) if isinstance(model, PyramidFFMEF) else None
        if isinstance(model, PyramidFFMEF) and earlier is not None:
            model.adopt(*earlier)
        else:
            model.load_state_dict(weights.load(name_or_path).state_dict())
    except RuntimeError as error:
        raise InputError(
            f"initial: {name_or_path} does not fit the model: {' '.join(str(error).split())[:160]}"
        ) from None
