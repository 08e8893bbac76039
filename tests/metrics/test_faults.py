"""Fault measures on methods whose faults are known."""

from __future__ import annotations

import numpy as np
import pytest

from ffmef import faults
from ffmef.errors import InputError


def mean(pictures):
    return np.uint8(np.mean(pictures, 0) + 0.5)


def pair_mean(pictures):
    assert len(pictures) == 2
    return mean(pictures)


def first(pictures):
    return pictures[0]


def scene(height=192, width=224):
    rng = np.random.default_rng(0)
    light = rng.uniform(0.2, 1.0, (height // 16, width // 16, 3)).repeat(16, 0).repeat(16, 1)
    return [np.uint8((light * gain).clip(0, 1) * 255) for gain in (0.2, 0.8)]


def test_a_mean_of_pictures_has_no_fault_of_place():
    """It is local, symmetric and knows neither border nor order."""
    pictures = scene()
    assert faults.borders(mean, pictures) == (0, 0)
    assert faults.identity(mean, pictures[1], 5) == faults.order(mean, pictures) == 0
    assert faults.position(mean, pictures) == 0 and faults.far(mean, pictures) < 1e-5


def test_borders_are_told_from_the_interior():
    """Corners of 24 pixels that are 30 levels too bright; and a picture that darkens as it grows."""

    def white_corners(pictures):
        out = np.full_like(pictures[0], 100)
        out[:24, :24] = out[-24:, :24] = out[:24, -24:] = out[-24:, -24:] = 130
        return out

    corners, interior = faults.borders(white_corners, scene())
    assert corners == pytest.approx(30, abs=1e-3) and interior == 0
    corners, interior = faults.borders(lambda p: np.full_like(p[0], p[0].shape[0] // 2), scene())
    assert corners == interior == pytest.approx(64, abs=1e-3)


def test_lost_light_and_shade_are_counted():
    """Shares of the picture are exact where smoothing does not reach: halves, less the blurred seam."""
    dark, bright = (np.full((200, 200, 3), level, np.uint8) for level in (100, 180))
    fused = np.full_like(dark, 128)
    assert faults.washed([bright, dark], fused) == faults.drowned([bright, dark], fused) == 0
    fused[:, :100] = 255
    assert faults.washed([bright, dark], fused) == pytest.approx(50, abs=2.5)
    assert faults.clipped([bright, dark], fused) == 50
    fused[:, :100] = 0
    assert faults.drowned([bright, dark], fused) == pytest.approx(50, abs=2.5)
    assert faults.washed([dark * 0 + 10, dark], dark * 0 + 255) == 0  # the darkest picture has nothing to offer
    assert faults.clipped([dark * 0 + 250, dark * 0 + 255], dark * 0 + 255) == 0


def test_identity_and_order_see_a_level():
    picture = scene()[0]
    assert faults.identity(lambda p: p[0] + np.uint8(3), picture) == 3
    two = [np.full_like(picture, level) for level in (10, 17)]
    assert faults.order(first, two) == 7


def test_position_and_far_see_a_grid_and_a_mean():
    pictures = [np.full((200, 300, 3), level, np.uint8) for level in (40, 160)]

    def striped(pictures):
        out = np.zeros_like(pictures[0])
        out[:, ::2] = 10  # begins at the corner, so a step of three columns swaps it
        return out

    assert faults.position(striped, pictures) == pytest.approx(10, abs=1e-3)
    ramp = [np.broadcast_to(np.linspace(0, 200, 300)[None, :, None], (200, 300, 3)).astype(np.uint8)] * 2
    # The means of 0..119.6 and of 80..200 differ by 80.
    assert faults.far(lambda p: np.full_like(p[0], round(p[0].mean())), ramp) == pytest.approx(80, abs=1.5)


def test_ghosts_and_noise_of_known_methods():
    """What copies the brightest picture shows its disc whole; the mean of three a third of the strongest."""
    pictures = [np.full((192, 192, 3), level, np.uint8) for level in (40, 100, 200)]
    assert faults.ghost(lambda p: max(p, key=lambda q: q[0, 0, 0]), pictures) == 204
    assert faults.ghost(mean, pictures) == pytest.approx(204 / 3, abs=1)
    grey_only = faults.colour_noise(lambda p: p[1][..., :1].repeat(3, -1))
    one = faults.colour_noise(lambda p: p[2])
    assert grey_only == 0 and 2 < one < 6 and faults.colour_noise(mean) < one


def test_sky_is_held_by_the_darkest():
    bracket = faults.sky_bracket(4)
    assert len(bracket) == 4 and bracket[0][24:160].max() < 255 and bracket[3][24:160].min() == 255
    kept = faults.sky(first, 4)
    assert kept > 60 and faults.sky(lambda p: p[-1], 4) == 0
    assert faults.sky(mean, 2, stops=9) == pytest.approx(kept / 2, abs=2)


def test_measure_lists_every_fault_with_mean_and_worst():
    lines = {line.name: line for line in faults.measure(mean, [scene(), [p + np.uint8(1) for p in scene()]])}
    assert len(lines) == 11 and lines["identity"].worst == lines["borders"].mean == 0
    assert lines["ghost"].worst >= lines["ghost"].mean > 0 and lines["sky"].higher_is_better
    pairs_only = faults.measure(pair_mean, [scene()], most=2)
    assert sorted(line.name for line in pairs_only) == sorted(lines)
    assert {line.name for line in pairs_only if line.mean is None} == {"ghost", "colour noise", "sky"}
    for scenes, message in (
        ([], "at least one scene, got none"),
        ([scene()[:1]], "two or more pictures of one size"),
        ([[p[:100] for p in scene()]], "no side below 192"),
        ([[p / 2 for p in scene()]], r"uint8 \(H, W, 3\), got float64"),
    ):
        with pytest.raises(InputError, match=message):
            faults.measure(mean, scenes)


def test_large_scenes_are_reduced():
    assert faults.reduced([np.zeros((500, 1000, 3), np.uint8)], 100)[0].shape == (50, 100, 3)
    assert faults.reduced([np.zeros((50, 100, 3), np.uint8)], 100)[0].shape == (50, 100, 3)
