"""Averages that a paper states for a whole benchmark, to show beside measured ones.

Only MEFB has a row: we lack the paper's figures for MFIFB and VIFB, and quote nothing from memory.
"""

from __future__ import annotations

# Zheng, Huang, Yu, Zhao, CVPR workshops 2023, table 1: the network on the 100 pairs of MEFB.
_MEFB = {
    "EN": 6.9942, "FMI": 0.8880, "NMI": 0.8311, "PSNR": 57.1918, "QNCIE": 0.8206, "AG": 5.0976, "QABF": 0.6584,
    "CE": 2.7933, "QP": 0.6073, "QW": 0.8357, "MEF_SSIM": 0.9621, "QCB": 0.4102, "QCV": 248.09, "VIF": 0.7119,
}  # fmt: skip

_MEFB_SCENES = {"507", "AirBellowsGap", "flowerGate", "hongkong_02", "WaffleHouse"}

REMARK = (
    "The paper's row fits fused pictures saved under their source's extension, so that over half of them are JPEG "
    "files of quality 75 (--save-as source)."
)


def rows(pairs: list[str]) -> dict[str, dict[str, float]]:
    """Return the published averages by label if the pairs are the whole benchmark, else nothing."""
    if len(pairs) == 100 and set(pairs) >= _MEFB_SCENES:
        return {"FFMEF (paper)": _MEFB}
    return {}
