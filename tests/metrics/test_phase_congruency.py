"""The native transforms of phase congruency against NumPy's; the maps are stored in float32."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from ffmef.metrics import _phase_congruency
from ffmef.ops._backends import why_not

_missing = why_not("phase_congruency", "cpu")
needs_library = pytest.mark.skipif(_missing is not None, reason=str(_missing))
# Radices 2 to 19 and 29, and primes that become convolutions: of one less (101, 151), and with zeros (47, 107, 263).
SIZES = [(47, 50), (64, 96), (7, 101), (13, 2), (2, 3), (30, 151), (121, 9), (73, 35), (19, 29), (2, 107), (9, 263)]


def picture(height, width):
    rng = np.random.default_rng(height)
    y, x = np.mgrid[:height, :width]
    levels = 120 + 80 * np.sin(x / 5) * np.cos(y / 7) + 10 * rng.standard_normal((height, width))
    levels[: height // 3, : width // 3] = 0
    return np.clip(levels, 0, 255).astype(np.uint8)


def differences():
    for size in SIZES:
        bank = _phase_congruency.filter_bank(*size)
        pictures = picture(*size), np.full(size, 9, np.uint8)
        for always_double in (False, True):
            native = _phase_congruency._maps_native(pictures, _phase_congruency.tiled(bank), always_double)
            for levels, maps in zip(pictures, native, strict=True):
                for own, expected in zip(maps, _phase_congruency._maps_numpy(levels, bank), strict=True):
                    assert own.shape == size
                    yield (size, always_double), np.abs(own - expected).max()


@needs_library
def test_native_is_numpy():
    for case, difference in differences():
        assert difference < (2e-7 if case[1] else 1e-6), case


@pytest.mark.parametrize("size", [(47, 50), (6, 5)])
def test_noise_gains_are_sums_over_the_filters_in_space(size):
    bank = _phase_congruency.filter_bank(*size)
    for orientation, gain in enumerate(bank.noise_gains):
        filters = [bank.radial(scale) * bank.angular(orientation) for scale in range(4)]
        space = [np.fft.ifft2(values).real * math.sqrt(size[0] * size[1]) for values in filters]
        energy = 2 * sum((values**2).sum() for values in space)
        energy += 4 * sum((space[s] * space[t]).sum() for s in range(4) for t in range(s + 1, 4))
        assert gain == pytest.approx(energy / math.log(2) / (filters[0] ** 2).sum(), rel=1e-10)


@needs_library
def test_pictures_without_noise_are_transformed_in_double():
    """Where most of a channel is flat nothing covers float32's rounding, whose quotients would be edges."""
    size = (60, 80)
    bank = _phase_congruency.filter_bank(*size)
    tiled = _phase_congruency.tiled(bank)
    rng = np.random.default_rng(0)
    noisy = picture(*size)
    flat = np.full(size, 30, np.uint8)
    flat[20:30, 20:40] = rng.integers(0, 255, (10, 20))
    for levels, flat_enough in ((flat, True), (noisy, False)):
        chosen, double = (_phase_congruency._maps_native([levels], tiled, always)[0] for always in (False, True))
        assert all(np.array_equal(*pair) for pair in zip(chosen, double, strict=True)) == flat_enough
    for own, expected in zip(chosen, _phase_congruency._maps_numpy(noisy, bank), strict=True):
        np.testing.assert_allclose(own, expected, atol=1e-6)


@needs_library
@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_narrower_instruction_sets(isa):
    code = "import test_phase_congruency as t\nprint(max(d for _, d in t.differences()))"
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    environment = {**os.environ, "FFMEF_ISA": isa, "PYTHONPATH": path}
    result = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert float(result.stdout) < 1e-6


@needs_library
def test_native_code_is_used_where_it_is_built(monkeypatch):
    size = (16, 157)
    pictures = picture(*size), picture(*size)[::-1].copy()
    bank = _phase_congruency.tiled(_phase_congruency.filter_bank(*size))
    monkeypatch.setattr(_phase_congruency, "_maps_numpy", None)
    expected = _phase_congruency._maps_native(pictures, bank)
    np.testing.assert_array_equal(list(_phase_congruency.maps(pictures)), expected)


@needs_library
def test_the_operator_keeps_memory_safe():
    levels, tables = torch.zeros(1, 8, 8, dtype=torch.uint8), torch.zeros(3, 2, 1, 8, 16, dtype=torch.float64)
    decay = torch.ones(4, dtype=torch.float64)
    rest = 0.4, torch.ones(6, dtype=torch.float64), False
    operator = torch.ops.ffmef.phase_congruency
    assert operator(levels, tables, decay, *rest).shape == (1, 3, 8, 8)
    for wrong in (
        tables[:2],
        tables[:, :1],
        tables[:, :, :, :7],
        tables[..., :15],
        tables[0],
        tables.repeat(1, 1, 2, 1, 1),
    ):
        with pytest.raises(RuntimeError, match="tables must be"):
            operator(levels, wrong, decay, *rest)
    with pytest.raises(RuntimeError, match="tables must be contiguous float64"):
        operator(levels, tables.float(), decay, *rest)
    with pytest.raises(RuntimeError, match="decay must have"):
        operator(levels, tables, torch.ones(9, dtype=torch.float64), *rest)
    for wrong in (levels[0], levels.float(), levels[:, :, ::2], levels[:0]):
        with pytest.raises(RuntimeError, match="levels must be contiguous uint8"):
            operator(wrong, tables, decay, *rest)
