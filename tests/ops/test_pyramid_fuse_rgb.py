"""pyramid_fuse_rgb against the float operator between the colour functions."""

from __future__ import annotations

import pytest
import torch

from ffmef.imaging import colour
from ffmef.ops import half_luminance, pyramid_fuse, pyramid_fuse_rgb

torch.set_num_threads(1)


def pictures_of(height, width, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator) for _ in range(count)]


def weights_of(height, width, count, bands=3, scale=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    cells = (-(-height // scale), -(-width // scale))
    return torch.rand(bands, count, *cells, generator=generator), torch.rand(count, *cells, generator=generator) / count


def by_parts(pictures, weights, base, scale):
    """The same in float64 by the public pieces, before rounding."""
    ycbcr = colour.rgb_to_ycbcr(torch.stack([p.movedim(-1, 0) for p in pictures]).double())
    luminance = ycbcr[None, :, 0] / 255
    fused = pyramid_fuse(luminance, weights[None].double(), base[None].double(), scale=scale, backend="reference")
    merged = colour.merge_chroma(list(ycbcr[:, 1:]))
    return colour.ycbcr_to_rgb(torch.cat([fused.clamp(0, 1) * 255, merged])).clamp(0, 255).movedim(0, -1)


@pytest.mark.parametrize("bands,scale", [(3, 8), (1, 2), (2, 16)])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (8, 16), (37, 51), (17, 1100)])
@pytest.mark.parametrize("count", [2, 3])
def test_equals_its_parts(size, count, bands, scale):
    pictures = pictures_of(*size, count)
    pictures[0][:, ::5] = 128  # grey in places
    weights, base = weights_of(*size, count, bands, scale)
    got = pyramid_fuse_rgb(pictures, half_luminance(pictures), weights, base, scale=scale)
    assert got.dtype == torch.uint8 and got.shape == (*size, 3)
    # Half a grey level of rounding, and float32 on the way.
    assert (got.double() - by_parts(pictures, weights, base, scale)).abs().max() <= 0.5 + 1e-3


def test_half_luminance():
    for height, width in ((1, 1), (5, 7), (16, 1033)):
        pictures = pictures_of(height, width, 2)
        luminance = colour.luminance(torch.stack([p.movedim(-1, 0) for p in pictures]).double()) / 255
        rows = [min(i, height - 1) for i in range(height + height % 2)]
        columns = [min(i, width - 1) for i in range(width + width % 2)]
        even = luminance[:, rows][:, :, columns]
        expected = (even[:, ::2, ::2] + even[:, 1::2, ::2] + even[:, ::2, 1::2] + even[:, 1::2, 1::2]) / 4
        torch.testing.assert_close(half_luminance(pictures).double(), expected, rtol=0, atol=1e-6)


def test_grey_stays_grey():
    pictures = [torch.full((20, 20, 3), grey, dtype=torch.uint8) for grey in (0, 90, 255)]
    weights, base = weights_of(20, 20, 3)
    fused = pyramid_fuse_rgb(pictures, half_luminance(pictures), weights, base)
    assert torch.equal(fused, fused[..., :1].expand_as(fused))


def test_strided_pictures():
    wide = torch.stack(pictures_of(30, 40, 2))
    views = [w[3:27, 5:33].flip(-1) for w in wide]
    copies = [v.contiguous() for v in views]
    weights, base = weights_of(24, 28, 2)
    got = pyramid_fuse_rgb(views, half_luminance(views), weights, base)
    assert torch.equal(got, pyramid_fuse_rgb(copies, half_luminance(copies), weights, base))


def test_registration():
    pictures = pictures_of(9, 11, 2)
    weights, base = weights_of(9, 11, 2)
    torch.library.opcheck(torch.ops.ffmef.half_luminance.default, (pictures,))
    half = half_luminance(pictures)
    torch.library.opcheck(torch.ops.ffmef.pyramid_fuse_rgb.default, (pictures, half, weights, base, 8))


def test_mistakes_are_named():
    picture = pictures_of(8, 8, 1)[0]
    with pytest.raises(ValueError, match="pictures must hold at least one picture, got none"):
        half_luminance([])
    with pytest.raises(ValueError, match=r"pictures\[1\] must be \(8, 8, 3\) like pictures\[0\], got \(8, 7, 3\)"):
        half_luminance([picture, picture[:, :7]])
    with pytest.raises(ValueError, match=r"pictures\[0\] must be \(H, W, 3\) uint8, got \(8, 8, 3\) float32"):
        half_luminance([picture.float()])
    weights, base = weights_of(8, 8, 2)
    pair = [picture, picture]
    with pytest.raises(RuntimeError, match="scale a power of two"):
        pyramid_fuse_rgb(pair, half_luminance(pair), weights, base, scale=4)
    with pytest.raises(RuntimeError, match="half must be"):
        pyramid_fuse_rgb(pair, torch.zeros(2, 3, 4), weights, base)
