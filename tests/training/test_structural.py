"""MEF-SSIM and SSIM against patch-by-patch evaluation of their definitions."""

import numpy as np
import pytest
import torch

from ffmef.losses.structural import mef_ssim, ssim

EPS = 2.0**-52


def gaussian(size=11, sigma=1.5):
    x = np.exp(-((np.arange(size) - (size - 1) / 2) ** 2) / (2 * sigma**2))
    return np.outer(x, x) / np.outer(x, x).sum()


def halve(picture):
    padded = np.pad(picture, ((0, 1), (0, 1)), mode="symmetric")
    mean = (padded[:-1, :-1] + padded[1:, :-1] + padded[:-1, 1:] + padded[1:, 1:]) / 4
    return mean[::2, ::2]


def mef_ssim_map_by_patches(sources, fused):
    """The definition, one patch at a time."""
    window, constant = gaussian(), (0.03 * 255) ** 2
    height, width = fused.shape[0] - 10, fused.shape[1] - 10
    result = np.empty((height, width))
    for y in range(height):
        for x in range(width):
            patches = np.stack([s[y : y + 11, x : x + 11] for s in sources])
            centred = patches - patches.mean((1, 2), keepdims=True)
            norms = np.array([np.linalg.norm(patch) for patch in centred])
            consistency = (np.linalg.norm(centred.sum(0)) + EPS) / (norms.sum() + EPS)
            power = min(np.tan(np.pi / 2 * np.clip(consistency, EPS, 1 - EPS)), 10)
            energies = norms + 0.001
            weights = (energies / 11) ** power + EPS
            weights /= weights.sum()
            desired = (weights / energies)[:, None, None] * centred
            desired = desired.sum(0)
            if np.linalg.norm(desired) > 0:
                desired *= energies.max() / np.linalg.norm(desired)
            patch = fused[y : y + 11, x : x + 11]
            mean_d, mean_f = (window * desired).sum(), (window * patch).sum()
            covariance = (window * (desired - mean_d) * (patch - mean_f)).sum()
            var_d, var_f = (window * (desired - mean_d) ** 2).sum(), (window * (patch - mean_f) ** 2).sum()
            result[y, x] = (2 * covariance + constant) / (var_d + var_f + constant)
    return result


def mef_ssim_by_patches(sources, fused, scales=3):
    weights = np.array([0.0448, 0.2856, 0.3001][:scales])
    weights /= weights.sum()
    value = 1.0
    for weight in weights:
        value *= mef_ssim_map_by_patches(sources, fused).mean() ** weight
        sources, fused = [halve(source) for source in sources], halve(fused)
    return value


def scene(count, height, width, seed=0):
    """Exposures of one textured scene, with clipped areas in each."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    radiance = np.exp(2 * np.sin(x / 9) + 1.5 * np.cos(y / 7) + 0.3 * rng.standard_normal((height, width)))
    sources = [np.clip(np.round(30 * gain * radiance), 0, 255) for gain in np.geomspace(0.2, 8, count)]
    fused = np.round(np.mean(sources, 0) + 5 * rng.standard_normal((height, width))).clip(0, 255)
    return sources, fused


def as_batch(sources, fused, dtype=torch.float64):
    stack = torch.from_numpy(np.stack(sources)).to(dtype)
    return stack[None, :, None], torch.from_numpy(fused).to(dtype)[None, None]


@pytest.mark.parametrize("count, size", [(2, (47, 45)), (3, (44, 46))])
def test_mef_ssim_is_its_definition(count, size):
    sources, fused = scene(count, *size)
    value = mef_ssim(*as_batch(sources, fused)).item()
    assert value == pytest.approx(mef_ssim_by_patches(sources, fused), rel=1e-9)
    assert mef_ssim(*as_batch(sources, fused, torch.float32)).item() == pytest.approx(value, rel=1e-5)


def test_clipped_and_weakly_textured_patches():
    sources, fused = scene(2, 30, 30, seed=3)
    sources[0][:16] = 0  # one source without texture
    sources[1][:13, :16] = 255  # both
    sources[1][0, 20] -= 1  # texture of one grey level
    value = mef_ssim(*as_batch(sources, fused), scales=1).item()
    assert value == pytest.approx(mef_ssim_map_by_patches(sources, fused).mean(), rel=1e-8)


def test_a_batch_is_its_pictures():
    pairs = [as_batch(*scene(2, 50, 48, seed)) for seed in (1, 2)]
    values = mef_ssim(torch.cat([s for s, _ in pairs]), torch.cat([f for _, f in pairs]))
    assert values.shape == (2,)
    assert torch.allclose(values, torch.cat([mef_ssim(*pair) for pair in pairs]), rtol=1e-13, atol=0)


def test_strips_are_the_whole():
    """Pictures of several strips, the last one short, with and without gradients."""
    sources, fused = as_batch(*scene(2, 2 * (65536 // 90) + 17, 100))
    whole = mef_ssim(sources, fused.clone().requires_grad_())
    assert whole.item() == pytest.approx(mef_ssim(sources, fused).item(), rel=1e-12)


def test_order_and_mean_of_the_sources_do_not_matter():
    sources, fused = as_batch(*scene(3, 46, 46))
    value = mef_ssim(sources, fused)
    assert torch.allclose(value, mef_ssim(sources.flip(1), fused), rtol=1e-12, atol=0)
    assert torch.allclose(value, mef_ssim(sources, fused + 7), rtol=1e-12, atol=0)


def test_gradients():
    sources, fused = as_batch(*scene(2, 24, 23))
    assert torch.autograd.gradcheck(lambda f: mef_ssim(sources, f, scales=2), fused.requires_grad_())
    x, y = (torch.rand(1, 2, 13, 12, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: ssim(a, b, data_range=1.0), (x, y))


def test_a_negative_scale_counts_as_zero_and_still_teaches():
    sources, _ = as_batch(*scene(2, 48, 48))
    fused = (255 - sources.mean(1)).requires_grad_()
    value = mef_ssim(sources, fused)
    assert value.item() == 0
    value.sum().backward()
    assert torch.isfinite(fused.grad).all() and fused.grad.abs().max() > 0
    with torch.no_grad():
        moved = fused + 60 * fused.grad / fused.grad.abs().max()
    correlation = [((sources.mean(1) - sources.mean()) * (f - f.mean())).sum().item() for f in (fused, moved)]
    assert correlation[1] > correlation[0]


def test_constant_pictures():
    flat = torch.full((1, 2, 1, 44, 44), 255.0)
    fused = torch.full((1, 1, 44, 44), 10.0, requires_grad=True)
    value = mef_ssim(flat, fused)
    value.sum().backward()
    assert value.item() == 1 and torch.isfinite(fused.grad).all()


def test_mef_ssim_says_what_is_wrong():
    sources, fused = torch.zeros(1, 2, 1, 44, 44), torch.zeros(1, 1, 44, 44)
    with pytest.raises(ValueError, match=r"sources must be \(B, N, 1, H, W\)"):
        mef_ssim(sources[:, :1], fused)
    with pytest.raises(ValueError, match=r"fused must be \(1, 1, 44, 44\)"):
        mef_ssim(sources, fused[..., :-1])
    with pytest.raises(ValueError, match="at least 44 pixels at 3 scales"):
        mef_ssim(sources[..., :43], fused[..., :43])
    with pytest.raises(ValueError, match="scales must be 1 to 3, got 4"):
        mef_ssim(sources, fused, scales=4)


def ssim_by_patches(x, y, data_range):
    window, c1, c2 = gaussian(), (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            p, q = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
            covariance = (window * (p - mp) * (q - mq)).sum()
            values.append((2 * mp * mq + c1) * (2 * covariance + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return np.mean(values)


@pytest.mark.parametrize("data_range", [255.0, 1.0])
def test_ssim_is_its_definition(data_range):
    rng = np.random.default_rng(0)
    x, y = data_range * rng.random((2, 19, 23)) * [[[1]], [[0.6]]]
    y = y + x * 0.4
    x_, y_ = (torch.from_numpy(v)[None, None] for v in (x, y))
    value = ssim(x_, y_, data_range=data_range)
    assert value.item() == pytest.approx(ssim_by_patches(x, y, data_range), rel=1e-12)
    assert torch.equal(ssim(y_, x_, data_range=data_range), value)
    assert ssim(x_.float(), y_.float(), data_range=data_range).item() == pytest.approx(value.item(), rel=1e-5)


def test_ssim_averages_channels_and_says_what_is_wrong():
    x, y = torch.rand(2, 3, 12, 14, dtype=torch.float64), torch.rand(2, 3, 12, 14, dtype=torch.float64)
    channels = torch.stack([ssim(x[:, c : c + 1], y[:, c : c + 1]) for c in range(3)])
    assert torch.allclose(ssim(x, y), channels.mean(0), rtol=1e-13, atol=0)
    with pytest.raises(ValueError, match="y must be"):
        ssim(x, y[..., :-1])
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim(x[..., :10], y[..., :10])
