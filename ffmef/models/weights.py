"""Weight files: ours (safetensors with the architecture in the header) and the authors' .pth."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ffmef import files
from ffmef.errors import InputError
from ffmef.models import registry
from ffmef.models.ffmef import FFMEF
from ffmef.models.shapes import shapes_only
from ffmef.weight_files import available, find
from ffmef.weight_files import printable as _printable

__all__ = ["available", "find", "load", "save"]

# The authors' key prefixes -> ours.
_AUTHORS_MODULES = {
    "preconv": "extractor.stem",
    "encode.layer_dowm1.body.0": "extractor.encode_1",
    "encode.dowm1": "extractor.down_1",
    "encode.skip1": "extractor.skip_1",
    "encode.layer_dowm2.body.0": "extractor.encode_2",
    "encode.dowm2": "extractor.down_2",
    "encode.skip2": "extractor.skip_2",
    "encode.skip3": "extractor.skip_3",
    "encode.layer_bottom.body.0": "extractor.bottom",
    "encode.up2": "extractor.up_2",
    "encode.skip4": "extractor.skip_4",
    "encode.layer_up2.body.0": "extractor.decode_2",
    "encode.fus2": "extractor.merge_2",
    "encode.up1": "extractor.up_1",
    "encode.skip5": "extractor.skip_5",
    "encode.layer_up1.body.0": "extractor.decode_1",
    "encode.skip6": "extractor.skip_6",
    "encode.fus1": "extractor.merge_1",
    **{f"kp{level + 1}.spatial_attention": f"predictor.heads.{level}" for level in range(3)},
    **{f"sca{level + 1}.spatial_attention": f"predictor.attentions.{level}" for level in range(3)},
}


def _translate(key: str) -> str | None:
    """Return our name of one of the authors' keys, or None."""
    if re.fullmatch(r"alpha[123]", key):
        return None  # merged into fuse.alphas
    for theirs, ours in _AUTHORS_MODULES.items():
        if not key.startswith(theirs + "."):
            continue
        rest = key[len(theirs) + 1 :]
        kind = ours.split(".")[1]
        if kind.startswith(("down", "up_")):
            names = {"conv.0": "conv", "conv.1": "norm"}
        elif kind.startswith("skip"):
            names = {"alpha1": "gain_body", "alpha2": "gain_skip", "body.0": "body.conv", "body.1": "body.norm"}
        elif kind.startswith("merge"):
            names = {"alpha1": "gain_body", "alpha2": "gain_skip", "body.0.conv_2.0": "body.conv_2", "body.0": "body"}
        elif kind == "heads":
            names = {"0": "conv", "2": "expand", "4": "project"}
        elif kind == "attentions":
            names = {"0": "squeeze", "2": "excite"}
        else:
            names = {"conv_2.0": "conv_2"}
        for old, new in names.items():
            if rest == old or rest.startswith(old + "."):
                return f"{ours}.{new}{rest[len(old) :]}"
        return f"{ours}.{rest}"
    return None


def _from_authors(state: dict[str, Tensor], source: Path) -> dict[str, Tensor]:
    """Return the authors' checkpoint under our names, without the operation counters that their profiler left."""
    translated: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.split(".")[-1] in ("total_ops", "total_params") or re.fullmatch(r"alpha[123]", key):
            continue
        name = _translate(key) or key  # an unknown key keeps its name for the strict check's error
        if name in translated:
            raise InputError(f"{source} names {_printable(name)} twice")
        translated[name] = value
    if all(f"alpha{level}" in state for level in (1, 2, 3)):
        translated["fuse.alphas"] = torch.cat([state[f"alpha{level}"].flatten() for level in (1, 2, 3)])
    return translated


def _check_fit(expected: dict[str, Tensor], state: dict[str, Tensor], architecture: str, source: Path) -> None:
    """Raise unless ``state`` has exactly the names and shapes of ``expected``, and finite values."""
    missing = sorted(expected.keys() - state.keys())
    unknown = sorted(state.keys() - expected.keys())
    if missing or unknown:
        parts = [
            f"{what} keys {', '.join(map(_printable, keys[:8]))}{' ...' if len(keys) > 8 else ''}"
            for what, keys in (("missing", missing), ("unknown", unknown))
            if keys
        ]
        raise InputError(f"{source} does not fit {architecture}: {'; '.join(parts)}")
    for key, value in expected.items():
        given = state[key]
        if given.shape != value.shape:
            raise InputError(f"{source}: {key} must have shape {tuple(value.shape)}, got {tuple(given.shape)}")
        if given.layout != torch.strided:
            raise InputError(f"{source}: {key} must be a dense tensor, got {given.layout}")
        if given.is_meta:
            raise InputError(f"{source}: {key} must hold values, got a tensor of the meta device")
        if not given.is_floating_point():
            raise InputError(f"{source}: {key} must be floating point, got {str(given.dtype)[6:]}")
        finite = given.double().isfinite()
        if not finite.all():
            raise InputError(f"{source}: {key} must be finite, got {given[~finite][0].item()}")


def _build(
    build: Callable[..., nn.Module], name: str, config: dict, state: dict[str, Tensor], source: Path
) -> nn.Module:
    """Return a model with the weights of ``state``, or raise an error that says what does not fit."""
    try:
        # Build on the meta device first: a forged header must not make us allocate more than the file holds.
        with shapes_only():
            expected = build(**config).state_dict()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        reason = _printable(next(iter(str(error).splitlines()), type(error).__name__))
        raise InputError(f"{source} has an unusable config {_printable(config)}: {reason}") from None
    _check_fit(expected, state, name, source)
    model = build(**config)
    model.load_state_dict(state)
    return model.eval()


def save(model: nn.Module, path: str | Path, **facts: str) -> None:
    """Write a model's weights, its architecture and ``facts`` to a safetensors file, whole or not at all.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(FFMEF(channels=2), f"{folder}/small.safetensors", task="mef")
        ...     load(f"{folder}/small.safetensors").channels
        2
    """
    header = {"architecture": type(model).__name__, "config": json.dumps(cast(Any, model).config()), **facts}
    files.write(path, serialise(model.state_dict(), header))


def serialise(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> bytes:
    """Return a safetensors file; equal tensors and facts give equal bytes.

    The safetensors library's own order of the facts changes from process to process.

    Example:
        >>> data = serialise({"w": torch.zeros(2)}, {"task": "mef", "loss": "gif"})
        >>> data == serialise({"w": torch.zeros(2)}, {"loss": "gif", "task": "mef"})
        True
    """
    from safetensors.torch import save

    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, dict(facts))
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(dict(sorted(header.items())), separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the tensors to 8 bytes
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def load(name_or_path: str | Path) -> nn.Module:
    """Return a model in evaluation mode with the weights of a bundled name, our safetensors file or the authors' .pth.

    Args:
        name_or_path: a name of :func:`available` such as "mef", or a path.

    Raises:
        InputError: nothing has that name, the file is not a weight file, or its keys do not fit the architecture; the
            message names them.

    Example:
        >>> import ffmef
        >>> ffmef.models.load("mef").training
        False
    """
    path = find(name_or_path)
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if path.suffix == ".safetensors" or (len(start) == 9 and start[8:9] == b"{"):
        return _load_safetensors(path)
    return _load_authors(path)


def _read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the facts and the tensors of a file."""
    from safetensors import safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}
    except Exception as error:  # whatever damaged bytes lead to
        reason = _printable(next(iter(str(error).splitlines()), type(error).__name__), 200)
        raise InputError(f"{path} is not a weight file: {reason}") from None


def _earlier_design(header: Mapping[str, str]) -> int | None:
    """Return the design number that a file's facts name if it is an earlier one of PyramidFFMEF, else None.

    Files of the first design name no number.
    """
    name = header.get("architecture")
    try:
        config = json.loads(header.get("config", "{}"))
    except (ValueError, RecursionError):
        return None
    if name == "FirstPyramidFFMEF":
        return 1
    design = config.get("design", 1) if name == "PyramidFFMEF" and isinstance(config, dict) else None
    return design if design in (1, 2, 3) else None


def earlier_design(name_or_path: str | Path) -> tuple[dict[str, Tensor], int] | None:
    """Return the tensors and design number of a weight file of an earlier PyramidFFMEF design, or None.

    Nothing fuses with such weights any more, but :meth:`ffmef.models.PyramidFFMEF.adopt` lets training continue from
    them.

    Raises:
        InputError: nothing has that name, or a value is not finite.

    Example:
        >>> earlier_design("mef-pyramid") is None
        True
    """
    path = find(name_or_path)
    try:
        header, state = _read_safetensors(path)
    except InputError:  # the authors' file, or one that load() will refuse
        return None
    design = _earlier_design(header)
    if design is None:
        return None
    for key, value in state.items():
        if not value.is_floating_point() or not value.isfinite().all():
            raise InputError(f"{path}: {_printable(key)} must be finite floating point")
    return state, design


def _load_safetensors(path: Path) -> nn.Module:
    from ffmef import models

    header, state = _read_safetensors(path)
    design = _earlier_design(header)
    if design is not None:
        raise InputError(
            f"{path} must be of PyramidFFMEF's present design, got weights of its "
            f"{('first', 'second', 'third')[design - 1]}, which only 'ffmef train --initial' still takes"
        )
    specs, name = registry.by_architecture(), header.get("architecture")
    if name not in specs:
        known = ", ".join(sorted(specs))
        raise InputError(f"{path} must name its architecture, one of {known}, got {_printable(name)}")
    try:
        config = json.loads(header.get("config", "{}"))
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise InputError(f"{path} has an unusable config {_printable(header.get('config'))}: it must be a JSON object")
    return _build(getattr(models, name), name, config, state, path)


def _load_authors(path: Path) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever damaged bytes lead to; torch's message suggests loading unsafely
        raise InputError(
            f"{path} is not a weight file: neither safetensors nor a checkpoint of tensors alone"
        ) from None
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items())
    ):
        raise InputError(f"{path} is not a weight file: it must hold a dictionary of named tensors")
    return _build(FFMEF, "FFMEF", {}, _from_authors(state, path), path)
