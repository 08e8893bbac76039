"""Native windowed statistics and filters in the Fourier domain against the ones in NumPy and OpenCV."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from ffmef.metrics import _windows, perception
from ffmef.ops._backends import why_not

_missing = why_not("spectral_filter", "cpu")
needs_library = pytest.mark.skipif(_missing is not None, reason=str(_missing))
# Narrower and wider than a register, than four of them, and than 32 rows; odd and even; radices of all kinds.
SIZES = [(3, 2), (5, 9), (17, 40), (32, 64), (47, 50), (61, 101), (75, 33)]


def planes(count, height, width):
    rng = np.random.default_rng(height * width)
    return rng.uniform(0, 255, (count, height, width))


def window_differences():
    for height, width in SIZES:
        for size in {1, 3, 11, 17}:
            if size <= min(height, width):
                maps, taps = planes(3, height, width), np.random.default_rng(size).uniform(0, 1 / size, size)
                taps += taps[::-1]
                pairs = ((0, 0), (1, 2), (2, 1))
                own = _windows._weighted(maps, taps, pairs)
                expected = _windows._weighted_cv2(maps, taps, pairs)
                assert own.shape == expected.shape == (6, height - size + 1, width - size + 1)
                yield (height, width, size), np.abs(own - expected).max() / 255**2


def filter_differences():
    for height, width in [*SIZES, (1, 1), (1, 7), (6, 1)]:
        response = np.random.default_rng(width).uniform(0, 1, (height, width // 2 + 1))
        # Any real response does whose first column, and the middle one of an even width, mirror themselves; all other
        # columns differ from their mirror images, which the other half of the plane has.
        for x in {0, width // 2} if width % 2 == 0 else {0}:
            response[:, x] = (response[:, x] + response[-np.arange(height), x]) / 2
        for count in (1, 2, 3):
            own = perception._filtered(planes(count, height, width), response)
            expected = perception._filtered_numpy(planes(count, height, width), response)
            yield (count, height, width), np.abs(own - expected).max() / 255


@needs_library
@pytest.mark.parametrize("differences", [window_differences, filter_differences])
def test_native_is_numpy(differences):
    for case, difference in differences():
        assert difference < 1e-14, case


@needs_library
@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_narrower_instruction_sets(isa):
    code = (
        "import test_native_metrics as t\n"
        "print(max(d for part in (t.window_differences, t.filter_differences) for _, d in part()))"
    )
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    environment = {**os.environ, "FFMEF_ISA": isa, "PYTHONPATH": path}
    result = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert float(result.stdout) < 1e-14


@needs_library
def test_flat_windows_have_no_variance():
    """A mean's rounding, fused into the subtraction of its square, would be a variance; QC and QY divide by it."""
    _, variance = _windows._weighted(planes(1, 40, 50), np.ones(1), [(0, 0)])
    assert not variance.any()


@needs_library
def test_native_code_is_used_where_it_is_built(monkeypatch):
    monkeypatch.setattr(_windows, "_weighted_cv2", None)
    monkeypatch.setattr(perception, "_filtered_numpy", None)
    assert _windows._weighted(np.ones((1, 3, 3)), np.ones(3), ()).item() == 9
    np.testing.assert_allclose(perception._filtered(np.ones((1, 4, 4)), np.full((4, 3), 2.0)), 2)


def test_without_the_library_the_metrics_are_the_same(monkeypatch):
    from ffmef import metrics

    rng = np.random.default_rng(3)
    smooth = 60 + 100 * np.sin(np.mgrid[:48, :60][1] / 6)
    pictures = [np.clip(smooth * gain + rng.normal(0, 9, (48, 60)), 0, 255).astype(np.uint8) for gain in (0.7, 1.5, 1)]
    names = ["QW", "QCB", "QCV", "VIF", "SSIM"]
    expected = metrics.compute(*pictures, names)
    monkeypatch.setattr(_windows, "_weighted", _windows._weighted_cv2)
    monkeypatch.setattr(perception, "_filtered", perception._filtered_numpy)
    assert metrics.compute(*pictures, names) == pytest.approx(expected, rel=1e-10)


@needs_library
def test_the_operators_keep_memory_safe():
    moments, maps, taps = torch.ops.ffmef.window_moments, torch.zeros(2, 5, 6).double(), torch.ones(3).double()
    assert moments(maps, taps, [0, 1], [1, 1]).shape == (4, 3, 4)
    for wrong in (maps[0], maps.float(), maps[:, :, ::2]):
        with pytest.raises(RuntimeError, match="maps must be contiguous float64"):
            moments(wrong, taps, [], [])
    for wrong in (taps[:0], taps[:2], taps.float(), torch.ones(5).double()[::2], taps[None]):
        with pytest.raises(RuntimeError, match="taps must be contiguous float64"):
            moments(maps, wrong, [], [])
    for wrong in (torch.ones(7).double(), torch.ones(9).double()):
        with pytest.raises(RuntimeError, match="as many rows and columns"):
            moments(maps, wrong, [], [])
    with pytest.raises(RuntimeError, match="the same length"):
        moments(maps, taps, [0], [])
    for wrong in (([0], [2]), ([-1], [0])):
        with pytest.raises(RuntimeError, match="numbers of maps"):
            moments(maps, taps, *wrong)

    spectral, response = torch.ops.ffmef.spectral_filter, torch.ones(5, 4).double()
    assert spectral(maps, response).shape == maps.shape
    for wrong in (maps[0], maps.float(), maps[:, :, ::2], maps[:0]):
        with pytest.raises(RuntimeError, match="planes must be contiguous float64"):
            spectral(wrong, response)
    for wrong in (response[:4], response[:, :3], response.float(), response.t(), response[0]):
        with pytest.raises(RuntimeError, match="response must be contiguous float64"):
            spectral(maps, wrong)
