"""Every metric against its definition, written as plainly as possible and evaluated on small pictures."""

import math

import numpy as np
import pytest

from ffmef import metrics
from ffmef.metrics import _edge_windows, _windows


def scene(height=47, width=50, seed=0):
    """Two exposures of one textured scene, clipped at both ends, and a fused picture; none uses all levels."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([2 * np.sin(x / (7 + c)) + 1.5 * np.cos(y / (5 + c)) for c in range(3)], -1)
    radiance = np.exp(waves + 0.25 * rng.standard_normal((height, width, 3)))
    dark, bright = (np.clip(np.round(gain * radiance), 0, top) for gain, top in ((8, 243), (90, 238)))
    fused = np.clip(np.round((dark + bright) / 2 + 4 * rng.standard_normal(dark.shape)), 3, 250)
    fused[10:20, 10:20] = dark[10:20, 10:20]  # equal gradients
    return dark.astype(np.uint8), (bright + 5).astype(np.uint8), fused.astype(np.uint8)


A, B, F = scene()
_noise = np.random.default_rng(1).integers(0, 40, (3, *A.shape))
TEXTURED = [(x // 2 + noise + 20).astype(np.uint8) for x, noise in zip((A, B, F), _noise, strict=True)]


def by_channel(measure, a=A, b=B, f=F):
    return np.mean([measure(*(x[..., c].astype(float) for x in (a, b, f))) for c in range(3)])


def stretch(x):
    return np.floor(255 * (x - x.min()) / (x.max() - x.min()) + 0.5)


def correlate(x, kernel, border="zeros"):
    """Sums over the window around every pixel, window by window."""
    kernel = np.asarray(kernel, float)
    r, s = kernel.shape[0] // 2, kernel.shape[1] // 2
    mode = {"zeros": "constant", "replicate": "edge"}[border]
    padded = np.pad(x, ((r, r), (s, s)), mode=mode)
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape)
    return (windows * kernel).sum((-2, -1))


def correlate_valid(x, kernel):
    r = len(kernel) // 2
    return correlate(x, kernel)[r:-r, r:-r]


def gaussian(size, sigma):
    x = np.arange(size) - (size - 1) / 2
    kernel = np.exp(-(x[:, None] ** 2 + x**2) / (2 * sigma**2))
    return kernel / kernel.sum()


def histogram(*channels):
    counts = np.zeros((256,) * len(channels))
    for levels in zip(*(channel.astype(int).ravel() for channel in channels), strict=True):
        counts[levels] += 1
    return counts / counts.sum()


def entropy(p):
    return -sum(v * math.log2(v) for v in p.ravel() if v > 0)


def mutual(x, y):
    return entropy(histogram(x)) + entropy(histogram(y)) - entropy(histogram(x, y))


SOBEL_X = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
SOBEL_Y = np.array([[1, 2, 1], [0, 0, 0], [-1, -2, -1]])


def naive_ce(a, b, f):
    p = histogram(f)
    return (
        sum(q * math.log2(q / v) for x in (a, b) for q, v in zip(histogram(x), p, strict=True) if q > 0 and v > 0) / 2
    )


def naive_nmi(a, b, f):
    a, b, f = map(stretch, (a, b, f))
    return 2 * sum(mutual(x, f) / (entropy(histogram(x)) + entropy(histogram(f))) for x in (a, b))


def naive_qncie(a, b, f):
    a, b, f = map(stretch, (a, b, f))
    ab, af, bf = mutual(a, b) / 8, mutual(a, f) / 8, mutual(b, f) / 8
    values = np.linalg.eigvals(np.array([[1, ab, af], [ab, 1, bf], [af, bf, 1]]))
    return 1 + sum(v / 3 * math.log(v / 3, 256) for v in values)


def naive_te(a, b, f, swapped=True):
    a, b, f = map(stretch, (a, b, f))
    total = 0
    for x in (a, b):
        h = histogram(x, f)
        of_source, of_fused = h.sum(1), h.sum(0)
        s = 0
        for i, j in zip(*np.nonzero(h), strict=True):
            product = of_fused[i] * of_source[j] if swapped else of_source[i] * of_fused[j]
            if product > 0:
                s += h[i, j] ** 1.85 / product**0.85
        total += (1 - s) / (1 - 1.85)
    return total


def naive_error(a, b, f):
    return (math.sqrt(((a - f) ** 2).sum()) + math.sqrt(((b - f) ** 2).sum())) / 2 / a.size


def naive_edges(x):
    gx, gy = correlate(x, SOBEL_X, "replicate") / 8, correlate(x, SOBEL_Y, "replicate") / 8
    b = gx**2 + gy**2
    edges = np.zeros(x.shape, int)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):

            def at(y, z):
                return b[y, z] if 0 <= y < x.shape[0] and 0 <= z < x.shape[1] else -1

            horizontal = abs(gx[i, j]) >= abs(gy[i, j]) and at(i, j - 1) <= b[i, j] > at(i, j + 1)
            vertical = abs(gy[i, j]) >= abs(gx[i, j]) and at(i - 1, j) <= b[i, j] > at(i + 1, j)
            edges[i, j] = b[i, j] > 4 * b.mean() and (horizontal or vertical)
    return edges


def naive_window_score(a, f):
    if (a == f).all():
        return 1.0
    a, f = (np.ones(9) if x.min() == x.max() else x.astype(float) for x in (a, f))
    a, f = a / a.sum(), f / f.sum()
    covariance = ((a - a.mean()) * (f - f.mean())).sum()
    c = 0.0 if abs(covariance) < 1e-15 else np.corrcoef(a, f)[0, 1]
    index = np.arange(1, 10)
    sd = [math.sqrt(max((p * index**2).sum() - (p * index).sum() ** 2, 0)) for p in (a, f)]
    fa, ff = a.cumsum(), f.cumsum()
    bound = np.zeros((10, 10))
    for i in range(9):
        for j in range(9):
            bound[i + 1, j + 1] = min(fa[i], ff[j]) if c >= 0 else max(fa[i] + ff[j] - 1, 0)
    covariance_of_bound = (bound[1:, 1:] - np.outer(fa, ff)).sum()
    k = 0.0 if c == 0 or min(sd) < 1e-9 else c / (covariance_of_bound / (sd[0] * sd[1]))
    mass = bound[1:, 1:] - bound[:-1, 1:] - bound[1:, :-1] + bound[:-1, :-1]
    joint = k * mass + (1 - k) * np.outer(a, f)
    h = [-sum(v * math.log2(abs(v)) for v in p.ravel() if v != 0) for p in (a, f, joint)]
    return 2 * (h[0] + h[1] - h[2]) / (h[0] + h[1]) if h[0] + h[1] > 0 else 0.0


def naive_fmi(a, b, f):
    a, b, f = map(naive_edges, (a, b, f))
    scores = []
    for i in range(1, a.shape[0] - 1):
        for j in range(1, a.shape[1] - 1):
            windows = [x[i - 1 : i + 2, j - 1 : j + 2].ravel(order="F") for x in (a, b, f)]
            scores += [naive_window_score(windows[0], windows[2]), naive_window_score(windows[1], windows[2])]
    return np.mean(scores)


def naive_ag(a, b, f):
    dy, dx = np.gradient(f)
    return np.sqrt((dx**2 + dy**2) / 2).sum() / ((f.shape[0] - 1) * (f.shape[1] - 1))


def naive_ei(a, b, f):
    return np.hypot(correlate(f, SOBEL_X, "replicate"), correlate(f, SOBEL_Y, "replicate")).mean()


def naive_sf(a, b, f):
    horizontal = sum((f[i, j] - f[i, j - 1]) ** 2 for i in range(f.shape[0]) for j in range(1, f.shape[1]))
    vertical = sum((f[i, j] - f[i - 1, j]) ** 2 for i in range(1, f.shape[0]) for j in range(f.shape[1]))
    return math.sqrt(horizontal / f.size + vertical / f.size)


def naive_qabf(a, b, f, standard=False):
    def edges(x):
        sx, sy = correlate(x, SOBEL_X), correlate(x, SOBEL_Y)
        angle = [math.pi / 2 if u == 0 else math.atan(v / u) for u, v in zip(sx.flat, sy.flat, strict=True)]
        return [math.hypot(u, v) for u, v in zip(sx.flat, sy.flat, strict=True)], angle

    gf, tf = edges(f)
    total = weight = 0
    for x in (a, b):
        for g, t, h, u in zip(*edges(x), gf, tf, strict=True):
            if g == h:
                strength = 1 if standard else 255 * h
            else:
                strength = min(g, h) / max(g, h)
            aligned = 1 - abs(t - u) / (math.pi / 2)
            qg = 0.9994 / (1 + math.exp(-15 * (strength - 0.5)))
            qa = 0.9879 / (1 + math.exp(-22 * (aligned - 0.8)))
            total, weight = total + qg * qa * g, weight + g
    return total / weight


def statistics(x, y, window, correlator):
    mx, my = correlator(x, window), correlator(y, window)
    return (mx, my, correlator(x * x, window) - mx**2, correlator(y * y, window) - my**2,
            correlator(x * y, window) - mx * my)  # fmt: skip


def ssim_map(x, y, window, c1, c2):
    mx, my, vx, vy, cov = statistics(x, y, window, correlate_valid)
    return (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))


def naive_qw(a, b, f):
    kx, ky = [[1, 0, -1]] * 3, [[1, 1, 1], [0, 0, 0], [-1, -1, -1]]
    a, b, f = (np.hypot(correlate(x, kx), correlate(x, ky)) for x in (a, b, f))
    window, c1, c2 = gaussian(11, 1.5), (0.01 * 255) ** 2, (0.03 * 255) ** 2
    _, _, va, vb, _ = statistics(a, b, window, correlate_valid)
    share, weight = va / (va + vb), np.maximum(va, vb)
    quality = share * ssim_map(a, f, window, c1, c2) + (1 - share) * ssim_map(b, f, window, c1, c2)
    return (weight / weight.sum() * quality).sum()


def naive_qw_of_flat_areas(a, b, f):
    """As above, with the toolkit's rule for windows without any edge."""
    kx, ky = [[1, 0, -1]] * 3, [[1, 1, 1], [0, 0, 0], [-1, -1, -1]]
    a, b, f = (np.hypot(correlate(x, kx), correlate(x, ky)) for x in (a, b, f))
    window, c1, c2 = gaussian(11, 1.5), (0.01 * 255) ** 2, (0.03 * 255) ** 2
    _, _, va, vb, _ = statistics(a, b, window, correlate_valid)
    flat = va + vb == 0
    assert flat.sum() > 20
    va[flat], vb[flat] = 0.5, 0.5
    share, weight = va / (va + vb), np.maximum(va, vb)
    quality = share * ssim_map(a, f, window, c1, c2) + (1 - share) * ssim_map(b, f, window, c1, c2)
    return (weight / weight.sum() * quality).sum()


def naive_ssim(a, b, f):
    window, c1, c2 = gaussian(11, 1.5), (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return ssim_map(a, f, window, c1, c2).mean() + ssim_map(b, f, window, c1, c2).mean()


def naive_qy(a, b, f):
    window = gaussian(7, 1.5)
    _, _, va, vb, _ = statistics(a, b, window, correlate_valid)
    af, bf, ab = (ssim_map(*pair, window, 2e-16, 2e-16) for pair in ((a, f), (b, f), (a, b)))
    share = va / (va + vb)
    return np.where(ab >= 0.75, share * af + (1 - share) * bf, np.maximum(af, bf)).mean()


def naive_qc(a, b, f):
    window = gaussian(7, 1.5)
    cov_a, cov_b = (statistics(x, f, window, correlate_valid)[4] for x in (a, b))
    share = cov_a / (cov_a + cov_b)
    value = share * ssim_map(a, f, window, 2e-16, 2e-16) + (1 - share) * ssim_map(b, f, window, 2e-16, 2e-16)
    value[share < 0], value[share > 1] = 0, 1
    return value.mean()


def centred(n):
    return 2 * (np.arange(n) - n // 2) / n


def in_fourier_domain(x, response):
    return np.fft.ifft2(np.fft.fft2(x) * np.fft.ifftshift(response)).real


def naive_qcb(a, b, f):
    def contrast(x):
        x = np.floor((x / 255 - x.min() / 255) / (x.max() / 255 - x.min() / 255) * 255 + 0.5)
        m, n = x.shape
        r = np.hypot(n / 30 * centred(n), m / 30 * centred(m)[:, None])
        x = in_fourier_domain(x, np.exp(-((r / 15.3870) ** 2)) - 0.7622 * np.exp(-((r / 1.3456) ** 2)))
        i = np.arange(-15, 16)
        g2, g4 = (np.exp(-(i[:, None] ** 2 + i**2) / (2 * s * s)) / (2 * math.pi * s * s) for s in (2, 4))
        c = np.abs(correlate(x, g2) / correlate(x, g4) - 1)
        return c**3 / (c**2 + 1e-4)

    a, b, f = map(contrast, (a, b, f))
    share = a**2 / (a**2 + b**2)
    ratio = [np.minimum(x, f) / np.maximum(x, f) for x in (a, b)]
    return (share * ratio[0] + (1 - share) * ratio[1]).mean()


def naive_qcv(a, b, f):
    a, b, f = map(stretch, (a, b, f))
    m, n = f.shape
    r = 0.144 * np.hypot(n / 8 * centred(n), m / 8 * centred(m)[:, None])
    response = 2.6 * (0.0192 + r) * np.exp(-(r**1.1))
    total = weight = 0
    for x in (a, b):
        edges = np.hypot(correlate(x, SOBEL_X), correlate(x, SOBEL_Y))
        seen = in_fourier_domain(x - f, response)
        for i in range(0, m, 16):
            for j in range(0, n, 16):
                block = np.s_[i : i + 16, j : j + 16]
                saliency = (edges[block] ** 5).sum()
                total, weight = total + saliency * (seen[block] ** 2).sum() / 256, weight + saliency
    return total / weight


def naive_vif(a, b, f):
    total = 0
    for scale, weight in enumerate((1, 0, 0.15, 1)):
        size = 2 ** (4 - scale) + 1
        window = gaussian(size, size / 5)
        if scale:
            a, b, f = (correlate_valid(x, window)[::2, ::2] for x in (a, b, f))
        parts = []
        for x in (a, b):
            _, _, v1, v2, cov = statistics(x, f, window, correlate_valid)
            part = []
            for p, q, c in zip(v1.flat, v2.flat, cov.flat, strict=True):
                p, q = max(p, 0), max(q, 0)
                g = c / (p + 1e-10)
                s = q - g * c
                if p < 1e-10:
                    g, s, p = 0, q, 0
                if q < 1e-10:
                    g, s = 0, 0
                if g < 0:
                    g, s = 0, q
                noise = 0.005 * 255**2
                part.append((g, math.log10(1 + g * g * p / (max(s, 1e-10) + noise)), math.log10(1 + p / noise)))
            parts.append(part)
        chosen = [x if x[0] < y[0] else y for x, y in zip(*parts, strict=True)]
        total += weight * sum(c[1] + 1e-7 for c in chosen) / sum(c[2] + 1e-7 for c in chosen)
    return total / 2.15


def naive_phase_congruency(image):
    m, n = image.shape
    grid = [np.arange(-(k - 1) / 2, k / 2) / (k - 1) if k % 2 else np.arange(-k / 2, k / 2) / k for k in (n, m)]
    x, y = np.meshgrid(*grid)
    radius, theta = np.fft.ifftshift(np.hypot(x, y)), np.fft.ifftshift(np.arctan2(-y, x))
    radius[0, 0] = 1
    own = np.hypot(centred(n) / 2, centred(m)[:, None] / 2)
    low_pass = np.fft.fftshift(1 / (1 + (own / 0.45) ** 30))
    total = total_amplitude = 0
    oriented = []
    for o in range(6):
        angle = o * math.pi / 6
        sine = np.sin(theta) * math.cos(angle) - np.cos(theta) * math.sin(angle)
        cosine = np.cos(theta) * math.cos(angle) + np.sin(theta) * math.sin(angle)
        spread = np.exp(-(np.arctan2(sine, cosine) ** 2) / (2 * (math.pi / 6 / 1.2) ** 2))
        filters, responses = [], []
        for s in range(4):
            radial = np.exp(-(np.log(radius * 3 * 2.1**s) ** 2) / (2 * math.log(0.55) ** 2)) * low_pass
            radial[0, 0] = 0
            filters.append(radial * spread)
            responses.append(np.fft.ifft2(np.fft.fft2(image) * filters[-1]))
        even, odd = sum(r.real for r in responses), sum(r.imag for r in responses)
        norm = np.sqrt(even**2 + odd**2) + 1e-4
        e, q = even / norm, odd / norm
        energy = sum(r.real * e + r.imag * q - np.abs(r.real * q - r.imag * e) for r in responses)
        power = -np.median(np.abs(responses[0]) ** 2) / math.log(0.5) / (filters[0] ** 2).sum()
        space = [np.fft.ifft2(g).real * math.sqrt(m * n) for g in filters]
        noise = 2 * power * sum((g**2).sum() for g in space)
        noise += 4 * power * sum((space[s] * space[t]).sum() for s in range(4) for t in range(s + 1, 4))
        tau = math.sqrt(noise / 2)
        threshold = (tau * math.sqrt(math.pi / 2) + 2 * math.sqrt((2 - math.pi / 2) * tau**2)) / 1.7
        energy = np.maximum(energy - threshold, 0)
        amplitudes = [np.abs(r) for r in responses]
        width = sum(amplitudes) / (np.maximum.reduce(amplitudes) + 1e-4) / 4
        energy = energy / (1 + np.exp(10 * (0.5 - width)))
        total, total_amplitude = total + energy, total_amplitude + sum(amplitudes)
        oriented.append((energy / sum(amplitudes), angle))
    a = sum((p * math.cos(t)) ** 2 for p, t in oriented) / 3
    b = sum((p * math.sin(t)) ** 2 for p, t in oriented) / 3
    c = sum(p * math.cos(t) * p * math.sin(t) for p, t in oriented) / 6
    d = np.sqrt(c**2 + (a - b) ** 2) + 1e-4
    return total / (total_amplitude + 1e-4), (a + b + d) / 2, (a + b - d) / 2


def naive_qp(a, b, f):
    a, b, f = map(naive_phase_congruency, (a, b, f))
    from_a = a[0] > b[0]
    best = [np.where(from_a, x, y) for x, y in zip(a, b, strict=True)]
    window = gaussian(11, 1.5)
    product = 1
    for k in range(3):
        scores = []
        for x in (a, b, best):
            mask = x[0] > 0.1
            _, _, v, w, cov = statistics(x[k] * mask, f[k], window, correlate)
            scores.append(np.where(mask, (cov + 1e-4) / (np.sqrt(np.abs(v * w)) + 1e-4), 0))
        product *= np.maximum.reduce(scores).sum() / (best[0] > 0.1).sum()
    return product


NAIVE = {
    "CE": naive_ce,
    "EN": lambda a, b, f: entropy(histogram(f)),
    "FMI": naive_fmi,
    "NMI": naive_nmi,
    "PSNR": lambda a, b, f: 20 * math.log10(255 / math.sqrt(naive_error(a, b, f))),
    "QNCIE": naive_qncie,
    "TE": naive_te,
    "RMSE": naive_error,
    "AG": naive_ag,
    "EI": naive_ei,
    "SD": lambda a, b, f: math.sqrt(((f - f.mean()) ** 2).sum() / f.size),
    "SF": naive_sf,
    "QABF": naive_qabf,
    "QP": naive_qp,
    "QW": naive_qw,
    "SSIM": naive_ssim,
    "QY": naive_qy,
    "QC": naive_qc,
    "QCB": naive_qcb,
    "QCV": naive_qcv,
    "VIF": naive_vif,
}


@pytest.fixture(scope="module")
def computed():
    return metrics.compute(A, B, F)


@pytest.mark.parametrize("name", NAIVE)
def test_metric_is_its_definition(computed, name):
    if name in ("QC", "QY"):  # rounding decides them where a picture is clipped
        assert getattr(metrics, name.lower())(*TEXTURED) == pytest.approx(by_channel(NAIVE[name], *TEXTURED), rel=1e-9)
    else:  # QP's maps are float32
        assert computed[name] == pytest.approx(by_channel(NAIVE[name]), rel=1e-6 if name == "QP" else 1e-10)
    assert getattr(metrics, name.lower())(A, B, F) == computed[name]


def test_flat_areas():
    """Areas that are flat in one, two or all three pictures."""
    a, b, f = (np.pad(x, ((0, 30), (0, 0), (0, 0))) for x in (A, B, F))
    b[20:46, 20:] = 77
    f[:25, 20:] = 33
    f[60:, 30:] = np.random.default_rng(0).integers(0, 9, f[60:, 30:].shape)
    assert metrics.qw(a, b, f) == pytest.approx(by_channel(naive_qw_of_flat_areas, a, b, f), rel=1e-9)
    assert metrics.vif(a, b, f) == pytest.approx(by_channel(naive_vif, a, b, f), rel=1e-9)


@pytest.mark.parametrize("rows", [1, 67])
def test_strips_are_the_whole(monkeypatch, rows):
    args = scene(210, 45, seed=5)
    names = ["QABF", "QP", "QC", "QW", "QY", "SSIM", "QCB", "VIF"]
    whole = metrics.compute(*args, names)
    monkeypatch.setattr("ffmef.metrics._windows.STRIP_PIXELS", rows * 45)
    for name, value in metrics.compute(*args, names).items():
        assert value == pytest.approx(whole[name], rel=1e-9 if name in ("QC", "QY") else 1e-12), name
    cuts = [kept for _, kept in _windows.strips(210, 45, 8, inside=True)]
    assert len(cuts) > 2 and all((rows.stop - rows.start) % 2 == 0 for rows, _ in cuts[:-1])


@pytest.mark.parametrize("turned", [False, True])
def test_edges_of_equal_strength(turned):
    """A step is equally strong on both its sides: the later one is kept, and none at exactly four times the mean."""
    for width, kept in ((8, 0), (9, 1), (12, 1)):
        step = np.repeat(np.uint8([[0] * 4 + [200] * (width - 4)]), 6, axis=0)
        edges = _edge_windows.edge_map(step.T.copy() if turned else step)
        expected = np.zeros_like(step)
        expected[:, 4] = kept
        np.testing.assert_array_equal(edges.T if turned else edges, expected)


def test_qy_between_agreement_and_disagreement():
    """Sources whose local similarity lies on both sides of 0.75, and close to it."""
    rng = np.random.default_rng(4)
    a = rng.integers(40, 200, (60, 60, 3))
    b = a + rng.integers(-50, 50, a.shape)
    f = a + rng.integers(-40, 40, a.shape)
    args = [np.clip(x, 0, 255).astype(np.uint8) for x in (a, b, f)]
    alike = ssim_map(*(x[..., 0].astype(float) for x in args[:2]), gaussian(7, 1.5), 0, 0)
    assert (alike < 0.75).any() and ((alike >= 0.75) & (alike < 0.765)).any()
    assert metrics.qy(*args) == pytest.approx(by_channel(naive_qy, *args), rel=1e-9)


def test_only_mef_ssim_is_not_averaged_over_channels(computed):
    later = {"MI", "N_ABF", "L_ABF", "CC", "SCD", "MEF_SSIM_C", "MS_SSIM", "VIFF", "VIFP", "BRISQUE", "NIQE"}
    assert set(metrics.METRICS) == {*NAIVE, "MEF_SSIM", *later}  # the later ones are in test_more_metrics.py
    from test_structural import mef_ssim_by_patches

    grey = [np.floor(x @ [0.298936, 0.587043, 0.114021] + 0.5) for x in (A, B, F)]
    assert computed["MEF_SSIM"] == pytest.approx(mef_ssim_by_patches(grey[:2], grey[2]), rel=1e-9)


def test_an_even_size():
    a, b, f = scene(46, 44, seed=2)
    assert metrics.qp(a, b, f) == pytest.approx(by_channel(naive_qp, a, b, f), rel=1e-6)


def test_other_conventions():
    standard = by_channel(lambda a, b, f: 10 * math.log10(255**2 / ((a - f) ** 2 + (b - f) ** 2).mean() * 2))
    assert metrics.psnr(A, B, F, convention="standard") == pytest.approx(standard, rel=1e-12)
    standard = by_channel(lambda a, b, f: (math.sqrt(((a - f) ** 2).mean()) + math.sqrt(((b - f) ** 2).mean())) / 2)
    assert metrics.rmse(A, B, F, convention="standard") == pytest.approx(standard, rel=1e-12)
    standard = by_channel(lambda a, b, f: naive_qabf(a, b, f, standard=True))
    assert metrics.qabf(A, B, F, convention="standard") == pytest.approx(standard, rel=1e-10)
    standard = by_channel(lambda a, b, f: naive_te(a, b, f, swapped=False))
    assert metrics.te(A, B, F, convention="standard") == pytest.approx(standard, rel=1e-10)
    side_by_side = naive_sf(None, None, np.concatenate([F[..., c].astype(float) for c in range(3)], 1))
    assert metrics.sf(A, B, F, convention="vifb") == pytest.approx(side_by_side, rel=1e-12)
    assert metrics.compute(A, B, F, ["SF"], toolkit="vifb")["SF"] == metrics.sf(A, B, F, convention="vifb")
    with pytest.raises(ValueError, match="convention must be 'toolkit' or 'standard', got 'mine'"):
        metrics.psnr(A, B, F, convention="mine")


def test_every_pair_of_edge_windows():
    """A sample of the 512 x 512 scores, all shapes of windows among them."""
    rng = np.random.default_rng(0)
    special = [[0, 0, 511, 1, 16, 3], [511, 1, 2, 16, 16, 48]]
    first, second = np.concatenate([rng.integers(0, 512, (2, 800)), special], 1)
    scores = _edge_windows.scores(first, second)
    for a, f, score in zip(first, second, scores, strict=True):
        bits = [np.array([code >> i & 1 for i in range(9)]) for code in (a, f)]
        assert score == pytest.approx(naive_window_score(*bits), rel=1e-9, abs=1e-12), (a, f)
