"""Every metric with its family and direction."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ffmef.metrics import feature, information, perception, structure
from ffmef.metrics._channels import Channel, Pictures


class Metric(NamedTuple):
    """A metric as tables need it."""

    name: str
    family: str
    higher_is_better: bool
    function: Callable[..., float]
    of_channel: Callable[[Channel], float] | None = None
    of_pictures: Callable[[Pictures], float] | None = None


def _metrics(family: str, module, names: str, lower: str = "") -> list[Metric]:
    return [
        Metric(
            name,
            family,
            name not in lower.split(),
            getattr(module, name.lower()),
            getattr(module, f"{name.lower()}_of_channel", None),
            getattr(module, f"{name.lower()}_of_pictures", None),
        )
        for name in names.split()
    ]


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        *_metrics("information theory", information, "CE EN FMI NMI PSNR QNCIE TE RMSE", lower="CE RMSE"),
        *_metrics("image features", feature, "AG EI SD SF QABF QP"),
        *_metrics("structural similarity", structure, "QC QW QY MEF_SSIM SSIM"),
        *_metrics("human perception", perception, "QCB QCV VIF", lower="QCV"),
    )
}
