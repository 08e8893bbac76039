"""Losses: golden values of the published release, derivatives, switches, and what each term rewards."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from ffmef.losses import (
    TERMS,
    GIFLoss,
    MEFSSIMLoss,
    PictureLoss,
    PMGILoss,
    Sources,
    TruthLoss,
    edges,
    histograms,
    structural,
    terms,
)

LOSSES = {
    "gif": GIFLoss(),
    "gif-gradient": GIFLoss(masks="gradient"),
    "gif-average": GIFLoss(saturation=False),
    "gif-release": GIFLoss(variant="release"),
    "mef-ssim": MEFSSIMLoss(),
    "pmgi": PMGILoss(),
    "picture": PictureLoss(dict.fromkeys(TERMS, 1.0)),
}


def scene(size=48, batch=2, count=2, dtype=torch.float32, seed=0):
    """Smooth random pictures of one scene with fine detail: dark ones and bright, clipped ones."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((batch, 3, 6, 6)))
    light = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0.02, 1)
    light = light * torch.from_numpy(1 + 0.3 * rng.standard_normal((batch, 1, size, size))).clamp(0.3, 2)
    gains = torch.linspace(0.4, 2.5, count, dtype=torch.float64).view(1, -1, 1, 1, 1)
    return ((light.unsqueeze(1) * gains).clamp(0, 1) ** 0.5).to(dtype)


@pytest.fixture(scope="module")
def golden():
    folder = os.environ.get("FFMEF_REFERENCE_DIR")
    if not folder or not (Path(folder) / "golden" / "gif_official.npz").exists():
        pytest.skip("FFMEF_REFERENCE_DIR names no folder with golden/gif_official.npz")
    return np.load(Path(folder) / "golden" / "gif_official.npz")


def golden_scene(golden, dtype=torch.float64):
    rgb = np.stack([golden["rgb0"], golden["rgb1"]]).transpose(0, 3, 1, 2)[None]
    sources = Sources.from_rgb(torch.from_numpy(rgb).to(dtype) / 255)
    gradients = torch.cat([torch.from_numpy(golden["grad0"]), torch.from_numpy(golden["grad1"])], 1).to(dtype)
    return torch.from_numpy(golden["fused_y"]).to(dtype), sources, gradients


def test_release_terms(golden):
    fused, sources, gradients = golden_scene(golden)
    loss = GIFLoss(variant="release")
    total, found = loss(fused, sources, loss.source_maps(sources, gradients))
    assert found["steep"].item() == pytest.approx(float(golden["steep_0"] + golden["steep_1"]), abs=1e-7)
    assert found["smooth"].item() == pytest.approx(float(golden["smooth"]), abs=1e-7)
    assert found["global"].item() == pytest.approx(float(golden["global_"]), abs=1e-7)
    assert total.item() == pytest.approx(float(golden["total"]), abs=1e-7)


def test_release_derivative(golden):
    fused, sources, gradients = golden_scene(golden, torch.float32)
    fused.requires_grad_()
    loss = GIFLoss(variant="release")
    (slope,) = torch.autograd.grad(loss(fused, sources, loss.source_maps(sources, gradients))[0], fused)
    wrong = (slope - torch.from_numpy(golden["dloss_dfused"])).abs() > 1e-6
    # |x| has no slope at 0: rounding decides the sign at a handful of pixels.
    assert wrong.sum() <= 12


def test_gradient_matches_release(golden):
    fused = torch.from_numpy(golden["fused_y"]).double()
    torch.testing.assert_close(
        edges.gif_gradient(fused), torch.from_numpy(golden["grad_fused"]).double(), rtol=0, atol=1e-5
    )


def test_paper_weights_differ_from_release(golden):
    fused, sources, gradients = golden_scene(golden)
    loss = GIFLoss()
    smooth = loss(fused, sources, loss.source_maps(sources, gradients))[1]["smooth"].item()
    assert smooth == pytest.approx(0.00876, abs=5e-6)


def test_gif_by_hand():
    """Two flat grey pictures: no gradient, so only the smooth term, whose target is the plain mean."""
    rgb = torch.stack([torch.full((3, 8, 8), 0.2), torch.full((3, 8, 8), 0.6)])[None].double()
    sources = Sources.from_rgb(rgb)
    low, high = (0.858824 * value + 16 / 255 for value in (0.2, 0.6))
    fused = torch.full((1, 1, 8, 8), 0.5, dtype=torch.double)
    total, found = GIFLoss()(fused, sources)
    assert found["smooth"].item() == pytest.approx(abs(0.5 - (low + high) / 2), abs=1e-6)
    assert found["steep"].item() == 0 and found["global"].item() == 0
    assert total.item() == pytest.approx(found["smooth"].item())


def test_gif_steep_and_global_by_hand():
    """A step in one picture: the four columns around it are steep there, and the other is flat."""
    step = torch.zeros(3, 6, 8, dtype=torch.double)
    step[..., 4:] = 1
    rgb = torch.stack([step, torch.full_like(step, 0.5)])[None]
    sources = Sources.from_rgb(rgb)
    fused = sources.luminance[:, 1:]
    total, found = GIFLoss(steep_weight=3, global_weight=5)(fused, sources)
    span = sources.luminance[0, 0].max().item() - fused.max().item()
    assert found["steep"].item() == pytest.approx(4 / 8 * span, rel=1e-6)
    assert found["global"].item() == pytest.approx(2 / 8 * 0.5, rel=1e-6)  # |g_x| is cut at 1, |g_y| is 0
    assert total.item() == pytest.approx(
        3 * found["steep"].item() + found["smooth"].item() + 5 * found["global"].item()
    )


def test_saturation_pulls_to_the_colourful_picture():
    rgb = torch.empty(1, 2, 3, 4, 4, dtype=torch.double)
    rgb[:, 0], rgb[:, 1] = 0.3, torch.tensor([0.9, 0.3, 0.3], dtype=torch.double).view(3, 1, 1)
    sources = Sources.from_rgb(rgb)
    target = GIFLoss().source_maps(sources)[:, 2]
    plain = GIFLoss(saturation=False).source_maps(sources)[:, 2]
    grey, red = sources.luminance[0, :, 0, 0].tolist()
    assert plain[0, 0, 0].item() == pytest.approx((grey + red) / 2)
    saturation = (sources.chroma - 0.5).abs().sum(2)[0, :, 0, 0].numpy()
    inner = np.exp(saturation) / np.exp(saturation).sum()
    weights = np.exp(inner) / np.exp(inner).sum()
    assert weights[1] > 0.5
    assert target[0, 0, 0].item() == pytest.approx(weights @ [grey, red])


def test_raw_gradients_as_weights():
    sources = Sources.from_rgb(scene(dtype=torch.float64))
    fused = sources.luminance.mean(1, keepdim=True)
    total, found = GIFLoss(masks="gradient", global_weight=0)(fused, sources)
    expected = (edges.gif_gradient(sources.luminance) * (fused - sources.luminance).abs()).mean((0, 2, 3)).sum()
    assert found["steep"].item() == pytest.approx(expected.item())
    assert found["smooth"].item() == 0 and "global" not in found
    assert total.item() == pytest.approx(1.25 * expected.item())


def test_maps_flip_with_the_scene():
    rgb = scene()
    maps = GIFLoss().source_maps(Sources.from_rgb(rgb))
    flipped = GIFLoss().source_maps(Sources.from_rgb(rgb.flip(-1)))
    torch.testing.assert_close(maps.flip(-1), flipped)


def test_pmgi_by_hand():
    sources = Sources.from_rgb(torch.stack([torch.zeros(3, 5, 5), torch.ones(3, 5, 5)])[None].double())
    fused = torch.full((1, 1, 5, 5), 0.5, dtype=torch.double)
    fused[..., 2, 2] += 0.1
    total, found = PMGILoss(intensity_weight=2, gradient_weight=3)(fused, sources)
    low, high = sources.luminance[0, :, 0, 0].tolist()
    expected = (24 * ((0.5 - low) ** 2 + (0.5 - high) ** 2) + (0.6 - low) ** 2 + (0.6 - high) ** 2) / 25
    assert found["intensity"].item() == pytest.approx(expected)
    assert found["gradient"].item() == pytest.approx(2 * 4 * 0.01 / 20)
    assert total.item() == pytest.approx(2 * found["intensity"].item() + 3 * found["gradient"].item())


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck(name):
    size = 44 if name in ("picture", "mef-ssim") else 10
    sources = Sources.from_rgb(scene(size, batch=1, dtype=torch.float64))
    rng = torch.Generator().manual_seed(1)
    fused = sources.luminance.mean(1, keepdim=True)
    fused = fused + 0.05 * torch.rand(fused.shape, generator=rng, dtype=torch.float64)
    if size == 10:
        fused.requires_grad_()
        assert torch.autograd.gradcheck(lambda f: LOSSES[name](f, sources)[0], fused, eps=1e-7, atol=1e-5)
        return
    # Along one direction: a full numerical Jacobian of 44 x 44 pixels says no more and takes minutes.
    parts = {name: PictureLoss({name: 1.0}) for name in TERMS} if name == "picture" else {name: LOSSES[name]}
    for part, loss in parts.items():
        if part in ("edge_strength", "contrast_loss", "information_loss"):
            continue  # with minima over neighbours inside one pixel's reach: checked by descent below
        at = fused.clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(at, sources)[0], at)
        way = torch.randn(fused.shape, generator=rng, dtype=torch.float64)
        step = 1e-6
        rise = (loss(fused + step * way, sources)[0] - loss(fused - step * way, sources)[0]) / (2 * step)
        assert rise.item() == pytest.approx((slope * way).sum().item(), rel=2e-3, abs=1e-7), part


FAULTS = ("washed_out", "drowned", "clipped", "shade_loss")  # zero for most pictures: tested below


@pytest.mark.parametrize("name", [n for n in TERMS if n not in FAULTS])
def test_every_term_can_be_descended(name):
    sources = Sources.from_rgb(scene(batch=1))
    loss = PictureLoss({name: 1.0})
    fused = sources.luminance.mean(1, keepdim=True) * (1.3 if name in ("clipping", "fidelity") else 1)
    fused.requires_grad_()
    optimizer = torch.optim.Adam([fused], 1e-2)
    first = loss(fused, sources)[0]
    for _ in range(15):
        optimizer.zero_grad()
        loss(fused, sources)[0].backward()
        assert fused.grad.isfinite().all()
        optimizer.step()
    assert loss(fused, sources)[0] < first - 1e-3 * first.abs()


@pytest.mark.parametrize("name", [n for n in TERMS if n not in ("clipping", "flatness", *FAULTS)])
def test_terms_know_a_perfect_picture(name):
    """Two equal sources and their copy: no term finds a fault but those that measure the picture alone."""
    rgb = scene(count=3)[:, 1:2].expand(-1, 2, -1, -1, -1)
    view = terms.View(rgb, rgb[:, 0], rgb[:, 0], rgb[:, 0, :1])
    worse = terms.View(rgb, (rgb[:, 0] * 0.4 + 0.3), rgb[:, 0], rgb[:, 0, :1])
    value = TERMS[name](view).item()
    assert value < TERMS[name](worse).item() - 1e-3
    limit = {"dullness": 0.5, "independence": 0.5, "fidelity": 2e-4, "edge_strength": 0.03}.get(name, 0.01)
    assert -1e-4 < value < limit


def test_terms_of_faults_are_what_they_say():
    """Flat exposures 0.3 and 0.6: how far a flat picture is beyond the limit, over what there is beyond it."""
    rgb = torch.tensor([0.3, 0.6]).view(1, 2, 1, 1, 1).expand(1, 2, 3, 48, 48)

    def found(name, level, rgb=rgb):
        picture = torch.full((1, 3, 48, 48), level)
        return TERMS[name](terms.View(rgb, picture.clamp(0, 1), picture, picture[:, :1])).item()

    assert found("washed_out", 0.91) == pytest.approx(0.5, abs=1e-3)
    assert found("drowned", 0.03) == pytest.approx(0.75, abs=1e-3)
    assert found("clipped", 1.01) == pytest.approx(0.5, abs=1e-3)
    for name in FAULTS:
        assert found(name, 0.5) == 0
        assert found(name, 1.2 if name == "drowned" else 0.0) == 0
    # Where no exposure has middle tones, none can be lost.
    assert found("washed_out", 0.95, rgb * 0.3) == found("drowned", 0.01, rgb + 0.38) == 0
    assert found("clipped", 1.01, rgb + 0.66) == 0


def test_shade_that_one_exposure_records_is_asked_for():
    """A sky of steps of 0.08 in the dark exposure, white in the other: 95 % suffices, a third lacks the rest."""
    steps = 0.3 + 0.08 * torch.arange(6.0).repeat_interleave(8).expand(48, 48)
    rgb = torch.stack([steps, torch.ones_like(steps)]).view(1, 2, 1, 48, 48).expand(1, 2, 3, 48, 48)

    def found(contrast):
        picture = (0.5 + contrast * (steps - 0.5)).expand(1, 3, 48, 48)
        return terms.shade_loss(terms.View(rgb, picture, picture, picture[:, :1])).item()

    assert found(0.96) == found(1.0) == 0
    # All horizontal differences lack (0.95 - 1 / 3) of a step, of two such steps at 1/16 size; 1/32 has one cell.
    assert found(1 / 3) == pytest.approx((0.95 - 1 / 3) * (0.08 + 0.16), rel=1e-3)
    recorded_twice = torch.stack([rgb[:, 0], rgb[:, 0]], 1)
    flat = torch.full((1, 3, 48, 48), 0.5)
    assert terms.shade_loss(terms.View(recorded_twice, flat, flat, flat[:, :1])) == 0
    # Of two exposures that record it beside a white one, the flatter is asked for.
    flatter = 0.5 + 0.5 * (rgb[:, 0] - 0.5)
    three = torch.stack([rgb[:, 0], flatter, rgb[:, 1]], 1)
    enough, less = (0.5 + share * (flatter - 0.5) for share in (0.96, 0.5))
    assert terms.shade_loss(terms.View(three, enough, enough, enough[:, :1])) == 0
    assert terms.shade_loss(terms.View(three, less, less, less[:, :1])).item() == pytest.approx(
        (0.95 - 0.5) * (0.04 + 0.08), rel=1e-3
    )


def test_brackets_have_weights_of_their_own():
    rgb = torch.rand(1, 3, 3, 48, 48, generator=torch.Generator().manual_seed(4))
    loss = PictureLoss({"fidelity": 2.0, "clipping": 1.0}, brackets={"fidelity": 0.5, "washed_out": 3.0})
    for sources, weights in (
        (Sources.from_rgb(rgb[:, :2]), {"fidelity": 2.0, "clipping": 1.0}),
        (Sources.from_rgb(rgb), {"fidelity": 0.5, "clipping": 1.0, "washed_out": 3.0}),
    ):
        total, found = loss(sources.luminance.mean(1, keepdim=True), sources)
        assert set(found) == set(weights)
        assert total.item() == pytest.approx(sum(weights[name] * found[name].item() for name in weights), rel=1e-5)
    with pytest.raises(ValueError, match="fidelty"):
        PictureLoss(brackets={"fidelty": 1.0})


def test_sums_on_gpus_are_the_same_sums():
    """Products with banded matrices and with shares of bins, in which GPUs compute what CPUs add."""
    generator = torch.Generator().manual_seed(5)
    maps = torch.rand(2, 3, 23, 31, generator=generator, dtype=torch.float64)
    for taps in (structural._GAUSSIAN, structural._BOX):
        torch.testing.assert_close(structural._by_bands(maps, taps), structural._SlidingSum.apply(maps, taps))
    structural._band.cache_clear()
    slope = torch.func.grad(lambda m: structural._by_bands(m, taps).sum())
    torch.func.grad(lambda m: slope(m).sum())(maps)
    slope(maps)  # what was kept then belongs to no transform
    x, y = torch.rand(2, 2, 320, generator=generator, dtype=torch.float64) * 1.2 - 0.1
    torch.testing.assert_close(histograms._joint_by_products(x, y, 8), histograms.soft_joint_histogram(x, y, 8))
    torch.testing.assert_close(histograms._shares(x, 8).mean(1), histograms.soft_histogram(x, 8))


def test_order_of_sources_does_not_matter_to_terms():
    rgb = scene()
    fused = Sources.from_rgb(rgb).luminance.mean(1, keepdim=True)
    one = PictureLoss(dict.fromkeys(TERMS, 1.0))(fused, Sources.from_rgb(rgb))[1]
    two = PictureLoss(dict.fromkeys(TERMS, 1.0))(fused, Sources.from_rgb(rgb.flip(1)))[1]
    for name in TERMS:
        assert one[name].item() == pytest.approx(two[name].item(), abs=2e-5), name


def test_picture_loss_stands_behind_colour_and_clipping():
    """A colour that luminance alone cannot hold: the term sees what the viewer sees, and clipping is charged."""
    rgb = torch.tensor([0.1, 0.1, 0.9]).view(3, 1, 1).expand(1, 2, 3, 48, 48)
    sources = Sources.from_rgb(rgb)
    bright = torch.full((1, 1, 48, 48), 0.9)
    _, found = PictureLoss({"clipping": 1.0, "fidelity": 1.0})(bright, sources)
    shown = sources.picture(bright)
    assert shown.max() > 1.5
    excess = (shown - shown.clamp(0, 1)).abs().mean().item()
    assert found["clipping"].item() == pytest.approx(excess, rel=1e-5)
    rms = (shown.clamp(0, 1) - rgb[:, 0]).square().mean().sqrt().item()
    assert found["fidelity"].item() == pytest.approx(rms, rel=1e-4)


def test_chroma_of_one_picture():
    rgb = scene(size=8)
    sources = Sources.from_rgb(rgb, chroma_from=1)
    torch.testing.assert_close(sources.picture(sources.luminance[:, 1:]), rgb[:, 1], rtol=0, atol=2e-5)
    assert torch.equal(sources.merged_chroma, sources.chroma[:, 1])
    with pytest.raises(ValueError, match="chroma_from must be 0 to 1, got 2"):
        Sources.from_rgb(rgb, chroma_from=2)


@pytest.mark.parametrize("name", [n for n in LOSSES if n != "gif-release"])
def test_many_sources_and_half_precision(name):
    sources = Sources.from_rgb(scene(count=4))
    fused = sources.luminance.mean(1, keepdim=True)
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = LOSSES[name](fused.bfloat16(), sources)
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(LOSSES[name](fused.bfloat16().float(), sources)[0].item(), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_compiles_without_graph_break(name):
    sources = Sources.from_rgb(scene())
    fused = sources.luminance.mean(1, keepdim=True).requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(lambda f: LOSSES[name](f, sources)[0], backend="eager", fullgraph=True)
    value, expected = compiled(fused), LOSSES[name](fused, sources)[0]
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = (torch.autograd.grad(one, fused)[0] for one in (value, expected))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["gif", "pmgi", "picture"])
def test_batch_is_the_mean_of_its_samples(name):
    """What makes the gradient of several processes equal to that of one with their whole batch."""
    rgb = scene(batch=4)
    fused = Sources.from_rgb(rgb).luminance.mean(1, keepdim=True)
    whole = LOSSES[name](fused, Sources.from_rgb(rgb))[0].item()
    halves = [LOSSES[name](fused[i : i + 2], Sources.from_rgb(rgb[i : i + 2]))[0].item() for i in (0, 2)]
    assert whole == pytest.approx(sum(halves) / 2, rel=1e-5)


def test_no_constant_is_made_per_call():
    """No convolution and no tensor from Python numbers: all windows are shifted sums."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Record(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    sources = Sources.from_rgb(scene())
    fused = sources.luminance.mean(1, keepdim=True).requires_grad_()
    for name in ("gif", "pmgi", "mef-ssim", "picture"):
        with Record() as record:
            LOSSES[name](fused, sources)[0].backward()
        assert not record.names & {"convolution", "lift_fresh", "unfold", "im2col"}, name


@pytest.mark.parametrize(
    ("operator", "step"), [(edges.scharr, 16), (edges.sobel, 4), (edges.prewitt, 3)], ids=["scharr", "sobel", "prewitt"]
)
def test_edges_of_a_step(operator, step):
    picture = torch.zeros(5, 6)
    picture[:, 3:] = 1
    dx, dy = operator(picture)
    assert torch.equal(dx[2], torch.tensor([0.0, 0.0, step, step, 0.0, 0.0]))
    assert not dy.any()
    turned_dx, turned_dy = operator(picture.T)
    assert torch.equal(turned_dy, dx.T) and not turned_dx.any()


def test_soft_histograms():
    values = torch.tensor([[0.0, 0.5, 1.0, 1.5]])
    assert histograms.soft_histogram(values, 3).tolist() == [[0.25, 0.25, 0.5]]
    joint = histograms.soft_joint_histogram(values[:, :2], torch.tensor([[1.0, 0.25]]), 3)
    expected = torch.zeros(1, 3, 3)
    expected[0, 0, 2], expected[0, 1, 0], expected[0, 1, 1] = 0.5, 0.25, 0.25
    torch.testing.assert_close(joint, expected)
    assert histograms.entropy(torch.full((8,), 1 / 8)).item() == pytest.approx(3, abs=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GIFLoss(masks="soft"), "masks must be 'threshold' or 'gradient', got 'soft'"),
        (lambda: GIFLoss(variant="2"), "variant must be 'paper' or 'release', got '2'"),
        (lambda: PictureLoss({"sharpness": 1.0}), "weights must name terms of .*, got 'sharpness'"),
        (lambda: PictureLoss({"structure": 0.0}), "weights must give at least one term a weight"),
        (lambda: PictureLoss({"structure": math.nan}), "weights must be finite, got nan for 'structure'"),
        (lambda: GIFLoss(steep_weight=math.nan), "steep_weight must be a number, got nan"),
        (
            lambda: Sources.from_rgb(torch.zeros(1, 2, 3, 4, 4, requires_grad=True)),
            "rgb must not require a gradient, which no source gets",
        ),
        (lambda: Sources.from_rgb(torch.zeros(1, 3, 4, 4)), r"rgb must be \(B, N, 3, H, W\), got \(1, 3, 4, 4\)"),
        (
            lambda: GIFLoss()(torch.zeros(1, 1, 4, 5), Sources.from_rgb(torch.zeros(1, 2, 3, 4, 4))),
            r"fused must be \(1, 1, 4, 4\) like sources, got \(1, 1, 4, 5\)",
        ),
        (
            lambda: GIFLoss(variant="release").source_maps(Sources.from_rgb(torch.zeros(1, 3, 3, 4, 4))),
            "variant 'release' needs 2 sources, got 3",
        ),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_pictures_of_other_types_are_refused():
    sources = Sources.from_rgb(scene(16), truth=scene(16)[:, 0])
    for loss in (GIFLoss(), PMGILoss(), TruthLoss()):
        with pytest.raises(TypeError, match="fused must be floating, in \\[0, 1\\], got uint8"):
            loss((sources.luminance[:, :1] * 255).byte(), sources)
    with pytest.raises(TypeError, match="rgb must be uint8 or floating, got int32"):
        Sources.from_rgb(torch.zeros(1, 2, 3, 4, 4, dtype=torch.int32))


@pytest.mark.parametrize("name", LOSSES)
def test_transforms_of_torch_func(name):
    """grad, jvp, vmap and their products agree with autograd, one scene after the other."""
    from torch.func import grad, jvp, vmap

    sources = Sources.from_rgb(scene(48, 1, 2, torch.float64))
    fused = (0.9 * sources.luminance.mean(1, keepdim=True) + 0.05).requires_grad_()
    direction = torch.randn_like(fused)

    def value(x):
        return LOSSES[name](x, sources)[0]

    (expected,) = torch.autograd.grad(value(fused), fused)
    fused = fused.detach()
    torch.testing.assert_close(grad(value)(fused), expected)
    torch.testing.assert_close(jvp(value, (fused,), (direction,))[1], (expected * direction).sum())
    several = torch.stack([fused, 0.9 * fused])
    torch.testing.assert_close(vmap(value)(several), torch.stack([value(x) for x in several]))
    torch.testing.assert_close(vmap(grad(value), chunk_size=1)(several)[0], expected)
    forward = jvp(grad(value), (fused,), (direction,))[1]
    reverse = grad(lambda x: (grad(value)(x) * direction).sum())(fused)
    torch.testing.assert_close(forward, reverse)


def test_truth_loss_is_the_error_in_decibels():
    rng = torch.Generator().manual_seed(0)
    rgb = torch.rand(2, 2, 3, 9, 8, generator=rng)
    truth, fused = torch.rand(2, 3, 9, 8, generator=rng), torch.rand(2, 3, 9, 8, generator=rng)
    sources = Sources.from_rgb(rgb, truth=truth)
    total, terms = TruthLoss(floor=0.5)(fused, sources)
    errors = ((fused.double() - truth) * 255).square().mean((1, 2, 3)) + 0.5
    torch.testing.assert_close(total.double(), 10 * errors.log10().mean())
    torch.testing.assert_close(terms["decibels"], total)
    luminance = (truth * torch.tensor([65.481, 128.553, 24.966]).view(3, 1, 1)).sum(1, keepdim=True) / 255 + 16 / 255
    torch.testing.assert_close(sources.true_luminance, luminance, atol=1e-4, rtol=0)
    exact = TruthLoss()(luminance, sources)[0]
    assert abs(exact - 10 * math.log10(0.02)) < 0.1
    with pytest.raises(ValueError, match="sources must hold the truth"):
        TruthLoss()(fused, Sources.from_rgb(rgb))
    with pytest.raises(ValueError, match="fused must be"):
        TruthLoss()(fused[..., 1:], sources)
    with pytest.raises(ValueError, match="floor must be positive"):
        TruthLoss(floor=0)
    with pytest.raises(ValueError, match="truth must be"):
        Sources.from_rgb(rgb, truth=truth[:1])


def test_truth_loss_keeps_float64():
    rgb = torch.rand(1, 2, 3, 6, 7, dtype=torch.float64)
    sources = Sources.from_rgb(rgb, truth=rgb[:, 0])
    fused = torch.rand(1, 1, 6, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: TruthLoss()(z, sources)[0], (fused,))
