"""Fusion metrics that equal those of the benchmark toolkits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ffmef.metrics._channels import Pictures
from ffmef.metrics._channels import to_grey as to_luma
from ffmef.metrics.feature import ag, ei, l_abf, n_abf, qabf, qp, sd, sf, sf_side_by_side
from ffmef.metrics.information import ce, en, fmi, mi, nmi, psnr, qncie, rmse, te
from ffmef.metrics.no_reference import brisque, niqe
from ffmef.metrics.perception import qcb, qcv, vif, viff, vifp
from ffmef.metrics.registry import METRICS, Metric, canonical
from ffmef.metrics.structure import cc, mef_ssim, mef_ssim_c, ms_ssim, qc, qw, qy, scd, ssim

__all__ = [
    "METRICS",
    "Metric",
    "ag",
    "brisque",
    "canonical",
    "cc",
    "ce",
    "compute",
    "ei",
    "en",
    "fmi",
    "l_abf",
    "mef_ssim",
    "mef_ssim_c",
    "mi",
    "ms_ssim",
    "n_abf",
    "niqe",
    "nmi",
    "psnr",
    "qabf",
    "qc",
    "qcb",
    "qcv",
    "qncie",
    "qp",
    "qw",
    "qy",
    "rmse",
    "scd",
    "sd",
    "sf",
    "ssim",
    "te",
    "to_luma",
    "vif",
    "viff",
    "vifp",
]  # fmt: skip


def compute(
    a: object,
    b: object,
    fused: object,
    names: Iterable[str] | None = None,
    *,
    toolkit: str = "mefb",
    more: Sequence[object] = (),
) -> dict[str, float]:
    """Return several metrics of one fused picture; shared intermediates are computed once.

    The channels are scored one after the other, which bounds the memory: QP needs about 120 bytes per pixel (170 where
    most of a channel is flat), because its filters see the whole picture; any other metric needs at most 90.

    Args:
        a: a source, uint8 (H, W, 3) or (H, W), NumPy or torch. The benchmarks' order is the darker picture first for
            multi-exposure, visible before infrared for that task; the order decides ties only.
        b: the other source, of the same size.
        fused: the fused picture, of the same size.
        names: names of :data:`METRICS` in any form that :func:`canonical` understands; None means all that need no
            further package.
        toolkit: "mefb" or "vifb"; they differ in SF (see :func:`sf`).
        more: the further sources of a bracket. MEF-SSIM, its colour form, QY, MI and CC use them; metrics that
            compare two sources are then NaN.

    Returns:
        The values by key, in the order of ``names``. A metric that is not defined for these pictures is NaN (or
        infinite), as its own documentation states.

    Raises:
        ValueError: a name is unknown, a picture is not in whole grey levels 0..255, or sizes or colours do not fit.

    Example:
        >>> import numpy as np
        >>> picture = np.uint8([[0, 64], [128, 255]])
        >>> compute(picture, picture, picture, ["EN", "RMSE"])
        {'EN': 2.0, 'RMSE': 0.0}
    """
    if names is None:
        names = [name for name, metric in METRICS.items() if not metric.extra]
    names = [canonical(name) for name in names]
    if toolkit not in ("mefb", "vifb"):
        raise ValueError(f"toolkit must be 'mefb' or 'vifb', got {toolkit!r}")
    pictures = Pictures(a, b, fused, more)
    of_pictures = {name: METRICS[name].of_pictures for name in names}
    if more:
        of_pictures |= {name: _not_defined for name in names if METRICS[name].frames == "two"}
    if toolkit == "vifb" and "SF" in of_pictures:
        of_pictures["SF"] = sf_side_by_side
    values: dict[str, list[float]] = {
        name: [measure(pictures)] if measure else [] for name, measure in of_pictures.items()
    }
    measures = {name: METRICS[name].of_channel for name, measure in of_pictures.items() if not measure}
    by_channel = [(name, measure) for name, measure in measures.items() if measure]
    by_channel.sort(key=lambda entry: entry[0] != "QP")  # needs the most memory: first
    if by_channel:
        for channel in pictures.channels():
            for name, of_channel in by_channel:
                values[name].append(of_channel(channel))
    return {name: float(np.mean(values[name])) for name in names}


def _not_defined(pictures: Pictures) -> float:
    return float("nan")
