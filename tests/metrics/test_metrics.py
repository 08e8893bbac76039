"""The metrics against the benchmark toolkits' values, their symmetries, and pictures that have no value."""

import csv
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ffmef import metrics

REFERENCE, DATA = (Path(os.environ.get(name, "")) for name in ("FFMEF_REFERENCE_DIR", "FFMEF_DATA_DIR"))
TOLERANCE = {"QCB": 1e-8, "MEF_SSIM": 1e-6, "QP": 1e-5, "VIF": 1e-3}
# Clipped areas leave values near 1e-13 whose quotients are rounding: exact programs differ by 1e-7 on this pair.
ILL_CONDITIONED = {("QCB", "ArchSequence"): 1e-6}
SETS = {
    "mefb_dev_authors": ("authors", "mefb_dev", "AB", "mefb"),
    "mefb_dev_mertens": ("mertens", "mefb_dev", "AB", "mefb"),
    "mfifb_dev_authors": ("authors_mff", "mfifb_dev", "AB", "mefb"),
    "vifb_dev_authors": ("authors_vif", "vifb_dev", ("VI", "IR"), "vifb"),
}
FEW = {"Room", "savic_01", "stand_04", "man", "manWalking"}


def golden_rows():
    for name in SETS:
        path = REFERENCE / "metrics" / f"{name}.csv"
        if os.environ.get("FFMEF_REFERENCE_DIR") and os.environ.get("FFMEF_DATA_DIR") and path.is_file():
            with path.open() as file:
                for row in csv.DictReader(file):
                    marks = () if row["pair"] in FEW and name != "mefb_dev_authors" else pytest.mark.slow
                    yield pytest.param(name, row, id=f"{name}-{row['pair']}", marks=marks)


ROWS = list(golden_rows())


def read(path):
    return np.asarray(Image.open(path))


@pytest.mark.skipif(not ROWS, reason="FFMEF_REFERENCE_DIR and FFMEF_DATA_DIR name no golden values")
@pytest.mark.parametrize("name, row", ROWS or [("", {})])
def test_golden_values(name, row):
    fused_folder, data, sources, toolkit = SETS[name]
    row = {key: value for key, value in row.items() if key != "ch"}
    pair = row.pop("pair")
    a, b = (read(next((DATA / data / pair).glob(f"{pair}_{source}.*"))) for source in sources)
    fused = read(REFERENCE / "fused" / fused_folder / f"{pair}.png")
    names = [key for key in row if key not in ("QC", "QY")]
    values = metrics.compute(a, b, fused, names, toolkit=toolkit)
    assert names
    for key in names:
        tolerance = ILL_CONDITIONED.get((key, pair), TOLERANCE.get(key, 1e-9))
        assert values[key] == pytest.approx(float(row[key]), rel=tolerance), key


@pytest.mark.slow
@pytest.mark.skipif(not ROWS, reason="FFMEF_REFERENCE_DIR and FFMEF_DATA_DIR name no golden values")
def test_golden_medians_of_qc_and_qy():
    """Clipped areas make single values of these two rounding; only their medians over pairs can be compared."""
    rows = [row.values[1] for row in ROWS if row.values[0] == "mefb_dev_authors"]
    values = {"QC": [], "QY": []}
    for row in rows:
        pair = row["pair"]
        a, b = (read(next((DATA / "mefb_dev" / pair).glob(f"{pair}_{source}.*"))) for source in "AB")
        computed = metrics.compute(a, b, read(REFERENCE / "fused" / "authors" / f"{pair}.png"), values)
        for key in values:
            values[key].append(computed[key])
    for key in values:
        assert np.median(values[key]) == pytest.approx(np.median([float(row[key]) for row in rows]), rel=1e-4)


def pictures(seed=0, shape=(64, 72, 3)):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    texture = np.exp(np.sin(x / 6) + np.cos(y / 4))[..., None] + 0.3 * rng.random(shape)
    a, b = (np.clip(gain * texture, 0, 255).astype(np.uint8) for gain in (25, 90))
    return a, b, ((a.astype(int) + b) // 2).astype(np.uint8)


A, B, F = pictures()


def same_values(first, second, rel=1e-12):
    assert first.keys() == second.keys()
    for name in first:
        assert first[name] == pytest.approx(second[name], rel=rel, nan_ok=True), name


def test_registry_and_order():
    assert list(metrics.METRICS) == (
        [
            "CE",
            "EN",
            "FMI",
            "MI",
            "NMI",
            "PSNR",
            "QNCIE",
            "TE",
            "RMSE",
            "AG",
            "EI",
            "SD",
            "SF",
            "QABF",
            "N_ABF",
            "L_ABF",
            "QP",
            "CC",
            "SCD",
            "QC",
            "QW",
            "QY",
            "MEF_SSIM",
            "MEF_SSIM_C",
            "SSIM",
            "MS_SSIM",
            "QCB",
            "QCV",
            "VIF",
            "VIFF",
            "VIFP",
            "BRISQUE",
            "NIQE",
        ]
    )
    lower = {name for name, metric in metrics.METRICS.items() if not metric.higher_is_better}
    assert lower == {"CE", "RMSE", "QCV", "N_ABF", "L_ABF", "BRISQUE", "NIQE"}
    assert len({metric.family for metric in metrics.METRICS.values()}) == 5
    assert list(metrics.compute(A, B, F, ["SD", "EN"])) == ["SD", "EN"]
    for name, metric in metrics.METRICS.items():
        assert metric.function is getattr(metrics, name.lower())
        assert (metric.of_channel is None) != (metric.of_pictures is None)


def test_better_is_better():
    """A fused picture that keeps the structure beats noise in the direction that the registry names."""
    noise = np.random.default_rng(5).integers(0, 256, A.shape).astype(np.uint8)
    good, bad = metrics.compute(A, B, F), metrics.compute(A, B, noise)
    # MS-SSIM is not defined on so small a picture; noise has edges that are in no source, but loses none of few.
    blind = {
        "EN",
        "AG",
        "EI",
        "SD",
        "SF",
        "CE",
        "TE",
        "MS_SSIM",
    }  # look at the fused picture alone, or at its histogram
    for name in set(good) - blind:
        assert (good[name] > bad[name]) == metrics.METRICS[name].higher_is_better, name


def test_sources_can_be_swapped():
    same_values(metrics.compute(A, B, F), metrics.compute(B, A, F), rel=1e-11)


def test_identical_pictures():
    values = metrics.compute(A, A, A)
    assert values["PSNR"] == math.inf
    for name, perfect in dict(
        CE=0, FMI=1, NMI=2, RMSE=0, QC=1, QW=1, QY=1, MEF_SSIM=1, SSIM=2, QCB=1, QCV=0, VIF=1
    ).items():
        assert values[name] == pytest.approx(perfect, rel=1e-5, abs=1e-12), name
    assert 0.97 < values["QABF"] <= 0.9994 * 0.9879
    assert 0.95 < values["QP"] <= 1  # the sources' maps are masked, the fused picture's are not


@pytest.mark.parametrize("change", [np.transpose, np.fliplr, np.flipud], ids=["transpose", "fliplr", "flipud"])
def test_what_does_not_know_left_from_right(change):
    names = ["CE", "EN", "NMI", "PSNR", "QNCIE", "TE", "AG", "EI", "SD", "SF", "QW", "SSIM", "RMSE"]
    args = [change(x[..., 0]) for x in (A, B, F)]
    same_values(metrics.compute(A[..., 0], B[..., 0], F[..., 0], names), metrics.compute(*args, names), rel=1e-11)


def test_colours_are_averaged():
    whole = metrics.compute(A, B, F)
    parts = [metrics.compute(A[..., c], B[..., c], F[..., c]) for c in range(3)]
    for name in set(whole) - {"MEF_SSIM", "MEF_SSIM_C", "VIFF", "MS_SSIM"}:
        assert whole[name] == pytest.approx(np.mean([part[name] for part in parts]), rel=1e-12), name


def test_grey_sources():
    a, b, grey = A[..., 0], B[..., 1], F[..., 0]
    names = [name for name, metric in metrics.METRICS.items() if not metric.extra and name != "MS_SSIM"]
    expected = metrics.compute(a, b, grey, names)
    same_values(metrics.compute(a[..., None], b, grey, names), expected)
    coloured = metrics.compute(a, b, np.stack([grey, grey // 2, grey], -1), names)
    changed = {name for name in expected if coloured[name] != pytest.approx(expected[name], rel=1e-12)}
    assert changed == {"AG", "MEF_SSIM", "MEF_SSIM_C"}  # those that see more than the first channel
    tripled = metrics.compute(A, np.repeat(b[..., None], 3, 2), F)
    for name in ("MEF_SSIM", "VIFF"):  # see luma and lightness, which three equal channels change
        del tripled[name]
    same_values({k: v for k, v in metrics.compute(A, b, F).items() if k in tripled}, tripled)
    with pytest.raises(ValueError, match="fused must have 3 channels like its colour source"):
        metrics.compute(A, b, grey)


def test_torch_tensors():
    names = ["EN", "QABF", "MEF_SSIM"]
    expected = metrics.compute(A, B, F, names)
    same_values(metrics.compute(*(torch.from_numpy(x) for x in (A, B, F)), names), expected)
    planes = [torch.from_numpy(x).permute(2, 0, 1).float() for x in (A, B, F)]
    same_values(metrics.compute(*planes, names), expected)


@pytest.mark.parametrize("level", [0, 7])
def test_constant_pictures_have_a_stated_value(level):
    flat = np.full(A.shape, level, np.uint8)
    with np.errstate(all="raise", under="ignore"):
        values = metrics.compute(flat, flat, flat)
    undefined = {"NMI", "QP", "QCB", "QCV", "CC", "SCD", "VIFP", "MS_SSIM"} | ({"TE", "QNCIE"} if level else {"QABF"})
    # QC and QY of identical flat channels are rounding, 0/0 only by chance.
    assert {k for k, v in values.items() if math.isnan(v)} - {"QC", "QY"} == undefined
    expected = dict(CE=0, EN=0, FMI=1, PSNR=math.inf, RMSE=0, AG=0, EI=0, SD=0, SF=0, MEF_SSIM=1, SSIM=2, QW=1)
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, abs=1e-12), name
    one_flat = metrics.compute(flat, B, F)
    undefined = {"NMI", "QNCIE", "TE", "QCB", "QCV"} if level else set()
    undefined |= {"CC", "SCD", "VIFP", "MS_SSIM"}
    assert {k for k, v in one_flat.items() if math.isnan(v)} - {"QCB"} == undefined - {"QCB"}


LEAST = dict(
    AG=2, QP=2, N_ABF=2, L_ABF=2, FMI=3, QC=7, QY=7, MEF_SSIM_C=8, QW=11, SSIM=11, VIF=41, VIFF=41, VIFP=41, MS_SSIM=176
)


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7, 10, 11, 15, 40, 41])
def test_tiny_pictures_have_a_stated_value(size):
    a, b, f = pictures(shape=(size, 50, 1))
    values = metrics.compute(a, b, f)
    for name, least in LEAST.items():
        if size < least:
            assert math.isnan(values[name]), name
        elif name != "QP" or size > 3:  # without a pixel of much phase congruency QP is not defined either
            assert math.isfinite(values[name]), name
    assert values["MEF_SSIM"] == -math.inf
    assert all(math.isfinite(values[name]) for name in ("CE", "EN", "PSNR", "RMSE", "EI", "SD", "SF", "QABF"))


def test_the_least_sizes_of_mef_ssim_and_qp():
    for size in (43, 44):
        assert math.isfinite(metrics.mef_ssim(*pictures(shape=(size, 50, 1)))) == (size == 44)
        assert math.isfinite(metrics.mef_ssim(*pictures(shape=(50, size, 1)))) == (size == 44)
    edge = np.uint8([[0] * 6 + [255] * 6] * 2)
    assert math.isfinite(metrics.qp(edge, edge, edge))
    assert math.isnan(metrics.qp(edge[:1], edge[:1], edge[:1]))


def test_bad_pictures():
    with pytest.raises(ValueError, match=r"fused must have the size of a, \(64, 72\), got \(64, 71\)"):
        metrics.en(A, B, F[:, :-1])
    with pytest.raises(ValueError, match=r"b must be \(H, W\) or \(H, W, 3\), got \(64, 72, 2\)"):
        metrics.en(A, B[..., :2], F)
    with pytest.raises(ValueError, match="a must have pixels"):
        metrics.en(A[:0], B[:0], F[:0])
    broken = F.astype(float)
    for value, text in ((math.nan, "nan"), (0.5, "0.5"), (256, "256"), (-1, "-1")):
        broken[3, 4, 1] = value
        with pytest.raises(ValueError, match=f"fused must hold whole grey levels 0..255, got {text}"):
            metrics.compute(A, B, broken)
    with pytest.raises(ValueError, match="fused must hold numbers"):
        metrics.en(A, B, F.astype(str))
    with pytest.raises(ValueError, match="names must be among CE, .* got 'XY'$"):
        metrics.compute(A, B, F, ["EN", "XY"])
    with pytest.raises(ValueError, match="toolkit must be"):
        metrics.compute(A, B, F, toolkit="other")
    same_values(metrics.compute(A, B, F.astype(float), ["EN"]), metrics.compute(A, B, F, ["EN"]))
