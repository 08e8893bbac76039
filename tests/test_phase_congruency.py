"""The native transforms of phase congruency against NumPy's."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from ffmef import _loader
from ffmef.metrics import _phase_congruency

needs_library = pytest.mark.skipif(
    not hasattr(torch.ops.ffmef, "phase_congruency"), reason=_loader.cpu_missing or "the library was built before it"
)
SIZES = [(47, 50), (64, 96), (7, 101), (13, 2), (2, 3), (30, 151), (121, 9), (1 + 8 * 9, 35)]


def picture(height, width):
    rng = np.random.default_rng(height)
    y, x = np.mgrid[:height, :width]
    levels = 120 + 80 * np.sin(x / 5) * np.cos(y / 7) + 10 * rng.standard_normal((height, width))
    levels[: height // 3, : width // 3] = 0
    return np.clip(levels, 0, 255).astype(np.uint8)


def differences():
    for size in SIZES:
        bank = _phase_congruency.filter_bank(*size)
        for levels in (picture(*size), np.full(size, 9, np.uint8)):
            native = _phase_congruency._maps_native(levels, bank)
            for own, expected in zip(native, _phase_congruency._maps_numpy(levels, bank), strict=True):
                assert own.shape == size
                yield size, np.abs(own - expected).max()


@needs_library
def test_native_is_numpy():
    for size, difference in differences():
        assert difference < 1e-12, size


@needs_library
@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_narrower_instruction_sets(isa):
    code = "import test_phase_congruency as t\nprint(max(d for _, d in t.differences()))"
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    environment = {**os.environ, "FFMEF_ISA": isa, "PYTHONPATH": path}
    result = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert float(result.stdout) < 1e-12


@needs_library
def test_sides_with_a_large_prime_factor_are_left_to_numpy():
    assert [_phase_congruency._largest_prime_factor(n) for n in (1, 2, 64, 707, 2 * 157, 9973)] == [
        1, 2, 2, 101, 157, 9973,
    ]  # fmt: skip
    assert _phase_congruency._native_serves((551, 707)) and not _phase_congruency._native_serves((551, 314))
    size = (16, 157)
    bank = _phase_congruency.filter_bank(*size)
    expected = _phase_congruency._maps_numpy(picture(*size), bank)
    np.testing.assert_array_equal(_phase_congruency.maps(picture(*size), bank), expected)
    with pytest.raises(RuntimeError, match="prime factors of at most 151"):
        _phase_congruency._maps_native(picture(*size), bank)


@needs_library
def test_the_operator_keeps_memory_safe():
    planes = [torch.zeros(2, 8, 8, dtype=torch.float64) for _ in range(2)]
    rest = torch.ones(4, dtype=torch.float64), torch.zeros(8, 8, dtype=torch.float64)
    gains = torch.ones(6, dtype=torch.float64)
    operator = torch.ops.ffmef.phase_congruency
    assert operator(*planes, *rest, 0.4, gains).shape == (3, 8, 8)
    with pytest.raises(RuntimeError, match="radial must be"):
        operator(planes[0], planes[1][:, :7], *rest, 0.4, gains)
    with pytest.raises(RuntimeError, match="direction must be"):
        operator(*planes, rest[0], rest[1][:7], 0.4, gains)
    with pytest.raises(RuntimeError, match="decay must have"):
        operator(*planes, torch.ones(9, dtype=torch.float64), rest[1], 0.4, gains)
    with pytest.raises(RuntimeError, match="spectrum must be contiguous float64"):
        operator(planes[0].float(), planes[1], *rest, 0.4, gains)
    with pytest.raises(RuntimeError, match="spectrum must be .2, H, W."):
        operator(planes[0][:1], planes[1], *rest, 0.4, gains)
