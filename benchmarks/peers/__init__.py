"""Rival fusion networks, re-implemented from their published descriptions for timing only.

Every network carries random weights in the published layout, so its pictures mean nothing and its running time does.
Each takes two (1, C, H, W) tensors in [0, 1], where C is its attribute ``channels`` (1: luminance, 3: RGB), and returns
the fused tensor; converting colour before and after a luminance network is left out for all of them alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.peers.deepfuse import DeepFusePaper, DeepFuseReleased
from benchmarks.peers.dpe_mef import DPEMEF
from benchmarks.peers.ifcnn import IFCNN
from benchmarks.peers.meflut import MEFLUT
from benchmarks.peers.mefnet import MEFNet
from benchmarks.peers.transmef import TransMEF
from benchmarks.peers.u2fusion import U2Fusion


@dataclass(frozen=True)
class Peer:
    """One rival: how to build it, and the counts that prove the layout."""

    build: Callable[[], torch.nn.Module]
    parameters: int
    gmac: float | None  # 10^9 multiply-adds of convolutions and matrix products for a 551 x 707 pair, three decimals


PEERS = {
    "DPE-MEF": Peer(DPEMEF, 13_602_915, 183.398),
    "TransMEF": Peer(TransMEF, 19_052_553, 194.246),
    "MEFNet": Peer(MEFNet, 26_461, 1.098),
    "DeepFuse (released)": Peer(DeepFuseReleased, 316_976, 143.538),
    "DeepFuse (paper)": Peer(DeepFusePaper, 88_864, 44.547),
    "IFCNN": Peer(IFCNN, 83_587, 50.487),
    "U2Fusion": Peer(U2Fusion, 659_217, 256.612),
    "MEFLUT": Peer(MEFLUT, 0, 0.0),
}


def build(name: str, seed: int = 0) -> torch.nn.Module:
    """Return the named rival in eval mode with weights drawn from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PEERS[name].build().eval().requires_grad_(False)
