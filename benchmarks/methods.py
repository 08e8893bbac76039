"""The fusion methods of the running-time figure: ours in each form, the rivals, and what a user would pick instead.

A method is built once; ``prepare(pair)`` then makes its inputs from two (H, W, 3) uint8 pictures, dark and bright, and
returns the callable to time. A method of kind "network" starts from prepared tensors and ends with the fused tensor, as
the published scripts time it; colour conversion stays outside. A method of kind "picture" goes from pictures to
picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from benchmarks import formulations, peers
from benchmarks.peers import counting
from ffmef.models import registry

Pair = list[np.ndarray]
Prepare = Callable[[Pair], Callable[[], object]]
OURS = "FFMEF"


@dataclass(frozen=True)
class Method:
    kind: str  # "network" or "picture"
    build: Callable[[str], Prepare]


class UnfoldFuse(nn.Module):
    """The model's fusion layer in the release's formulation, sharing the alphas of the layer that it replaces."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.alphas = layer.alphas

    def forward(self, images: torch.Tensor, filters: list[torch.Tensor]) -> torch.Tensor:
        return formulations.unfold(images.unsqueeze(2), filters, self.alphas).squeeze(1)


def model(backend: str | None = None, unfold: bool = False, device: str = "cpu") -> nn.Module:
    """Return the paper's network with seeded random weights in eval mode."""
    network = seeded(registry.find("ffmef").build, device)
    network.backend = backend
    if unfold:
        network.fuse = UnfoldFuse(network.fuse)
    return network


def pyramid(device: str = "cpu") -> nn.Module:
    """Return the coarse-pyramid network with seeded random weights in eval mode."""
    return seeded(registry.find("pyramid").build, device)


def seeded(build: Callable[[], nn.Module], device: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().eval().requires_grad_(False).to(device)


def luminance(pair: Pair, device: str) -> torch.Tensor:
    """Return the pair's luminance as one (1, 2, H, W) tensor in [0, 1]."""
    return torch.stack([torch.from_numpy(image).float() @ LUMINANCE for image in pair])[None].to(device) / 255


LUMINANCE = torch.tensor([0.299, 0.587, 0.114])


def ours(make: Callable[..., nn.Module], **form) -> Callable[[str], Prepare]:
    """Time a network of ours from prepared luminance to fused luminance."""

    def build(device: str) -> Prepare:
        network = make(**form, device=device)

        def prepare(pair: Pair) -> Callable[[], object]:
            inputs = luminance(pair, device)
            return lambda: network(inputs)

        return prepare

    return build


def rival(name: str) -> Callable[[str], Prepare]:
    def build(device: str) -> Prepare:
        network = peers.build(name).to(device)

        def prepare(pair: Pair) -> Callable[[], object]:
            if network.channels == 1:
                inputs = luminance(pair, device)[0][:, None, None]
            else:
                inputs = torch.stack([torch.from_numpy(image).permute(2, 0, 1)[None] / 255 for image in pair]).to(
                    device
                )
            return lambda: network(*inputs)

        return prepare

    return build


def picture_to_picture(make: Callable[..., nn.Module]) -> Callable[[str], Prepare]:
    """Time ``ffmef.fuse`` on 8-bit pictures: colour, order of the exposures, the network, colour again."""

    def build(device: str) -> Prepare:
        import ffmef

        network = make(device=device)
        return lambda pair: lambda: ffmef.fuse(pair, model=network, device=device)

    return build


def mertens(device: str) -> Prepare:
    import cv2

    merge = cv2.createMergeMertens()

    def prepare(pair: Pair) -> Callable[[], object]:
        return lambda: np.rint(np.clip(merge.process(pair) * 255, 0, 255)).astype(np.uint8)

    return prepare


def meflut_pictures(device: str) -> Prepare:
    """Time MEFLUT on 8-bit pictures: luminance through the network, chroma by its distance from grey, as papers do."""
    import cv2

    network = peers.build("MEFLUT").to(device)

    def prepare(pair: Pair) -> Callable[[], object]:
        def run() -> np.ndarray:
            planes = [cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb).astype(np.float32) for image in pair]
            inputs = [torch.from_numpy(plane[..., 0]).to(device)[None, None] / 255 for plane in planes]
            fused = np.empty_like(planes[0])
            fused[..., 0] = network(*inputs)[0, 0].mul(255).cpu().numpy()
            shares = [np.abs(plane[..., 1:] - 128) + np.float32(1e-3) for plane in planes]
            total = sum(plane[..., 1:] * share for plane, share in zip(planes, shares))
            fused[..., 1:] = total / sum(shares)
            return cv2.cvtColor(np.rint(np.clip(fused, 0, 255)).astype(np.uint8), cv2.COLOR_YCrCb2RGB)

        return run

    return prepare


METHODS = {
    OURS: Method("network", ours(model)),
    "FFMEF (eager)": Method("network", ours(model, backend="eager")),
    "FFMEF (unfold)": Method("network", ours(model, backend="eager", unfold=True)),
    "PyramidFFMEF": Method("network", ours(pyramid)),
    **{name: Method("network", rival(name)) for name in peers.PEERS},
    "FFMEF (pictures)": Method("picture", picture_to_picture(model)),
    "PyramidFFMEF (pictures)": Method("picture", picture_to_picture(pyramid)),
    "MEFLUT (pictures)": Method("picture", meflut_pictures),
    "Mertens (OpenCV)": Method("picture", mertens),
}
CPU_ONLY = {"Mertens (OpenCV)"}
# Methods that take milliseconds per pair: all of MEFB's sizes are timed, in turn with the last of these.
FASTEST = "PyramidFFMEF (pictures)"
FAST = ("PyramidFFMEF", "MEFLUT", "MEFLUT (pictures)", "Mertens (OpenCV)", FASTEST)


def counts(name: str) -> tuple[int, float] | tuple[None, None]:
    """Return a method's parameters and its 10^9 multiply-adds for a 551 x 707 pair; None where it has no network.

    FFMEF's count includes applying the filters, which its operator reports; the coarse pyramid's operator does not.
    """
    if name in peers.PEERS:
        peer = peers.PEERS[name]
        return (peer.parameters, peer.gmac) if peer.parameters else (None, None)
    if not name.startswith(("FFMEF", "PyramidFFMEF")):
        return None, None
    paper = name.startswith("FFMEF")
    network = model("eager", device="meta") if paper else pyramid()
    if not paper:
        network.backend = "reference"  # layer by layer: the counter then sees the convolutions
    pair = torch.empty(1, 2, 551, 707, device="meta" if paper else "cpu")
    return counting.parameter_count(network), counting.multiply_adds(network, pair) / 1e9
