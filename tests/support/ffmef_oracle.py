"""The network written out as functions of a checkpoint under the authors' names: the oracle of test_models.py.

Nothing is shared with :mod:`ffmef.models`; every stage is kept under the name that the golden files use.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

CHANNELS = 4


def shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint of the authors, in their order."""
    c, found = CHANNELS, {f"alpha{level}": (1,) for level in (1, 2, 3)}

    def conv(name: str, out: int, into: int, side: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = (out, into, side, side), (out,)

    def norm(name: str, channels: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = (channels,), (channels,)

    def residual(name: str, into: int) -> None:
        conv(f"{name}.identity", c, into, 1)
        norm(f"{name}.norm", c // 2)
        conv(f"{name}.conv_1", c, into, 3)
        conv(f"{name}.conv_2.0", c, c, 3)

    conv("preconv", c, 1, 1)
    for layer in ("layer_dowm1", "layer_dowm2", "layer_bottom", "layer_up2", "layer_up1"):
        residual(f"encode.{layer}.body.0", c)
    for step in ("dowm1", "dowm2", "up2", "up1"):
        conv(f"encode.{step}.conv.0", c, c, 3)
        norm(f"encode.{step}.conv.1", c)
    for mix in ("fus2", "fus1"):
        found[f"encode.{mix}.alpha1"] = found[f"encode.{mix}.alpha2"] = (1,)
        residual(f"encode.{mix}.body.0", 2 * c)
    for skip in range(1, 7):
        found[f"encode.skip{skip}.alpha1"] = found[f"encode.skip{skip}.alpha2"] = (1,)
        conv(f"encode.skip{skip}.body.0", c, 2 * c, 1)
        norm(f"encode.skip{skip}.body.1", c)
    for level, side in ((1, 1), (2, 3), (3, 5)):
        conv(f"kp{level}.spatial_attention.0", c, c, 3)
        conv(f"kp{level}.spatial_attention.2", side * side, c, side)
        conv(f"kp{level}.spatial_attention.4", side * side, side * side, 1)
        conv(f"sca{level}.spatial_attention.0", c, 2 * c, 1)
        conv(f"sca{level}.spatial_attention.2", 2, c, 1)
    return found


def checkpoint(seed: int = 0) -> dict[str, Tensor]:
    """Random weights under the authors' names, scaled to keep every stage near one."""
    random = np.random.default_rng(seed)
    state = {}
    for name, shape in shapes().items():
        scale = 1.2 / np.sqrt(np.prod(shape[1:])) if len(shape) == 4 else 0.5
        centre = 1.0 if "norm.weight" in name or name.endswith(".1.weight") or "alpha" in name else 0.0
        state[name] = torch.from_numpy(centre + scale * random.standard_normal(shape)).float()
    return state


def stages(state: dict[str, Tensor], luminance: Tensor) -> dict[str, Tensor]:
    """Every stage of the network for luminance (1, 2, H, W), in its dtype."""
    # A single long function, so that the whole network reads from top to bottom.
    state = {name: value.to(luminance.dtype) for name, value in state.items()}

    def conv(name: str, x: Tensor) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def norm(name: str, x: Tensor) -> Tensor:
        mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), unbiased=False, keepdim=True)
        scale, shift = state[f"{name}.weight"], state[f"{name}.bias"]
        return (x - mean) / torch.sqrt(variance + 1e-5) * scale[:, None, None] + shift[:, None, None]

    def residual(name: str, x: Tensor) -> Tensor:
        a = conv(f"{name}.conv_1", x)
        half = a.shape[1] // 2
        a = F.leaky_relu(torch.cat([norm(f"{name}.norm", a[:, :half]), a[:, half:]], 1), 0.2)
        return F.leaky_relu(conv(f"{name}.conv_2.0", a), 0.2) + conv(f"{name}.identity", x)

    def step(name: str, x: Tensor) -> Tensor:
        weight, bias = state[f"encode.{name}.conv.0.weight"], state[f"encode.{name}.conv.0.bias"]
        if name.startswith("up"):  # a transposed convolution of stride 1 is a convolution with its taps turned round
            weight = weight.transpose(0, 1).flip(2, 3)
        return F.relu(norm(f"encode.{name}.conv.1", F.conv2d(x, weight, bias, padding=1)))

    def mix(name: str, x: Tensor, y: Tensor) -> Tensor:
        name, joined = f"encode.{name}", torch.cat([x, y], 1)
        if name.startswith("encode.fus"):
            body = residual(f"{name}.body.0", joined)
        else:
            body = F.relu(norm(f"{name}.body.1", conv(f"{name}.body.0", joined)))
        return state[f"{name}.alpha1"] * body + state[f"{name}.alpha2"] * y

    kept: dict[str, Tensor] = {}
    for n in (0, 1):
        x = kept[f"preconv_{n}"] = conv("preconv", luminance[:, n : n + 1])
        e1 = residual("encode.layer_dowm1.body.0", x)
        d1 = mix("skip1", x, step("dowm1", e1))
        e2 = residual("encode.layer_dowm2.body.0", d1)
        d2 = mix("skip3", x, mix("skip2", d1, step("dowm2", e2)))
        bottom = residual("encode.layer_bottom.body.0", d2)
        u2 = mix("fus2", e2, residual("encode.layer_up2.body.0", mix("skip4", bottom, step("up2", bottom))))
        u1 = residual("encode.layer_up1.body.0", mix("skip5", u2, step("up1", u2)))
        u1 = mix("fus1", e1, mix("skip6", bottom, u1))
        kept[f"hre_bottom_{n}"], kept[f"hre_up2_{n}"], kept[f"hre_up1_{n}"] = bottom, u2, u1

    fused = torch.zeros_like(luminance[:, :1])
    height, width = luminance.shape[2:]
    for level, source, side in ((1, "up1", 1), (2, "up2", 3), (3, "bottom", 5)):
        maps = [kept[f"hre_{source}_{n}"] for n in (0, 1)]
        hidden = F.relu(conv(f"sca{level}.spatial_attention.0", torch.cat(maps, 1)))
        attention = torch.sigmoid(conv(f"sca{level}.spatial_attention.2", hidden))
        for n in (0, 1):
            attended = kept[f"attended{level}_{n}"] = maps[n] * attention[:, n : n + 1]
            taps = attended
            for layer in (0, 2, 4):
                taps = conv(f"kp{level}.spatial_attention.{layer}", taps if layer == 0 else F.relu(taps))
            kept[f"filters{level}_{n}"] = taps
            windows = F.unfold(luminance[:, n : n + 1], side, padding=side // 2).view(1, side * side, height, width)
            kept[f"filtered{level}_{n}"] = (windows * taps).sum(1, keepdim=True)
            fused = fused + state[f"alpha{level}"] * kept[f"filtered{level}_{n}"]
    kept["fused_y"] = fused
    return kept
