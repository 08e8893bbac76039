"""The fusion metrics of one RGB pair: one pass for all, each alone, and three as the toolkits compute them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from benchmarks import mefb, toolkit
from ffmef import metrics

TABLE_1 = ("EN", "FMI", "NMI", "PSNR", "QNCIE", "AG", "QABF", "CE", "QP", "QW", "MEF_SSIM", "QCB", "QCV", "VIF")
SIZES = {"all": mefb.REFERENCE, "VIF": mefb.REFERENCE, "QW": mefb.REFERENCE, "FMI": (96, 128)}
QUICK = SIZES | {"VIF": (192, 256), "QW": (192, 256)}  # the toolkits' forms take seconds per picture
TOOLKIT = {"VIF": toolkit.vif, "QW": toolkit.qw, "FMI": toolkit.fmi}


@dataclass(frozen=True)
class Case:
    subject: str
    provider: str
    size: mefb.Size

    def __str__(self) -> str:
        return f"{self.subject}-{self.provider}"


def cases(mode: str) -> list[Case]:
    forms = [("all", "each alone"), ("all", "ours")] + [
        (name, form) for name in TOOLKIT for form in ("toolkit", "ours")
    ]
    sizes = {"smoke": dict.fromkeys(SIZES, (48, 64)), "quick": QUICK, "full": SIZES}[mode]
    return [Case(subject, form, sizes[subject]) for subject, form in forms]


def each_alone(*pictures: np.ndarray) -> dict[str, float]:
    return {name: metrics.METRICS[name].function(*pictures) for name in TABLE_1}


def one_pass(*pictures: np.ndarray) -> dict[str, float]:
    return metrics.compute(*pictures, TABLE_1)


@pytest.mark.cases(of=cases)
def test_metrics(case, compare, device):
    if device != "cpu":
        pytest.skip("the metrics run on the CPU only")
    under, over = mefb.bracket(case.size)
    pictures = under, over, np.rint((under.astype(float) + over) / 2).astype(np.uint8)
    if case.subject == "all":
        forms = {"each alone": each_alone, "ours": one_pass}
    else:
        forms = {"toolkit": TOOLKIT[case.subject], "ours": metrics.METRICS[case.subject].function}
    slow = next(iter(forms))
    values = [forms[name](*pictures) for name in (case.provider, slow)]
    if case.subject == "all":
        values = [list(value.values()) for value in values]
    # In clipped areas of the made-up scene rounding decides which source VIF takes.
    np.testing.assert_allclose(*values, rtol=1e-5 if case.subject == "VIF" else 1e-9)
    height, width = case.size
    compare(
        lambda: forms[case.provider](*pictures),
        subject=f"metrics {case.subject}",
        provider=case.provider,
        baseline=None if case.provider == slow else lambda: forms[slow](*pictures),
        baseline_name=slow,
        batch=1,
        height=height,
        width=width,
        dtype="uint8",
        checked=True,
        title=f"{'All 14 metrics of table 1' if case.subject == 'all' else case.subject} at {height} x {width}, RGB",
    )
