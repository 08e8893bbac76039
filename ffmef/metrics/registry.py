"""Every metric with its family and direction."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import NamedTuple

from ffmef.metrics import feature, information, no_reference, perception, structure
from ffmef.metrics._channels import Channel, Pictures


class Metric(NamedTuple):
    """What tables need to know about a metric.

    ``frames`` says which sources of a bracket it uses: "all", "two" (it is undefined for more), or "none" (it looks at
    the fused picture alone). ``extra`` is the extra that must be installed for it.
    """

    name: str
    family: str
    higher_is_better: bool
    function: Callable[..., float]
    of_channel: Callable[[Channel], float] | None = None
    of_pictures: Callable[[Pictures], float] | None = None
    frames: str = "two"
    extra: str = ""


ALL_FRAMES = {"MI", "CC", "QY", "MEF_SSIM", "MEF_SSIM_C"}
FUSED_ALONE = {"EN", "AG", "EI", "SD", "SF", "BRISQUE", "NIQE"}
EXTRAS = {"BRISQUE": "no-reference", "NIQE": "no-reference"}
_BESIDE_LETTERS = re.compile(r"[^A-Z0-9]")


def _metrics(family: str, module, names: str, lower: str = "") -> list[Metric]:
    return [
        Metric(
            name,
            family,
            name not in lower.split(),
            getattr(module, name.lower()),
            getattr(module, f"{name.lower()}_of_channel", None),
            getattr(module, f"{name.lower()}_of_pictures", None),
            "all" if name in ALL_FRAMES else "none" if name in FUSED_ALONE else "two",
            EXTRAS.get(name, ""),
        )
        for name in names.split()
    ]


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        *_metrics("information theory", information, "CE EN FMI MI NMI PSNR QNCIE TE RMSE", lower="CE RMSE"),
        *_metrics("image features", feature, "AG EI SD SF QABF N_ABF L_ABF QP", lower="N_ABF L_ABF"),
        *_metrics("structural similarity", structure, "CC SCD QC QW QY MEF_SSIM MEF_SSIM_C SSIM MS_SSIM"),
        *_metrics("human perception", perception, "QCB QCV VIF VIFF VIFP", lower="QCV"),
        *_metrics("no reference", no_reference, "BRISQUE NIQE", lower="BRISQUE NIQE"),
    )
}
_PLAIN = {_BESIDE_LETTERS.sub("", name): name for name in METRICS}
_PLAIN |= {
    "ENTROPY": "EN", "CROSSENTROPY": "CE", "MUTUALINFORMATION": "MI", "AVERAGEGRADIENT": "AG", "EDGEINTENSITY": "EI",
    "STD": "SD", "STDV": "SD", "STANDARDDEVIATION": "SD", "SPATIALFREQUENCY": "SF", "QNICE": "QNCIE",
    "QMI": "NMI", "QTE": "TE", "TSALLISENTROPY": "TE", "QG": "QABF",  # as Liu et al. (TPAMI 2012) call them
}  # fmt: skip


def canonical(name: str) -> str:
    """Return the key of :data:`METRICS` for a name in any case, with or without hyphens, underscores and slashes.

    A few names in words, such as "standard deviation", work too.

    Raises:
        ValueError: no metric has that name; the message lists the names and says which are similar.

    Example:
        >>> canonical("MEF-SSIM"), canonical("qabf"), canonical("Q^{AB/F}"), canonical("Nabf")
        ('MEF_SSIM', 'QABF', 'QABF', 'N_ABF')
    """
    plain = _BESIDE_LETTERS.sub("", name.upper())
    key = _PLAIN.get(plain)
    if key is None:
        close = dict.fromkeys(_PLAIN[near] for near in difflib.get_close_matches(plain, _PLAIN))
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(f"names must be among {', '.join(METRICS)}, got {name.strip()!r}{hint}")
    return key
