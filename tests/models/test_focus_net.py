"""FocusNet: its filters are OpenCV's, untrained it is the formula, and the order of the frames does not matter."""

import cv2
import numpy as np
import pytest
import torch

from ffmef import focus
from ffmef.models import FocusNet
from ffmef.models import focus as net


def frames_of(count, size, seed=0, channels=3):
    """Frames (count, channels, *size) in whole grey levels 0..255, each sharp elsewhere, with noise."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 256, (*size, channels)).astype(np.float32)
    frames = []
    for k in range(count):
        share = np.clip(1 - np.abs(np.arange(size[1]) / max(size[1] - 1, 1) * (count - 1) - k), 0, 1)[None, :, None]
        soft = cv2.GaussianBlur(truth, (0, 0), 2).reshape(truth.shape)
        frames.append(np.rint(truth * share + soft * (1 - share) + rng.integers(-2, 3, truth.shape)))
    return np.clip(np.stack(frames), 0, 255).astype(np.float32)


def tensor(frames):
    return torch.from_numpy(frames / np.float32(255)).permute(0, 3, 1, 2).unsqueeze(0)


def trained(seed=0):
    """A network whose last layers say something."""
    torch.manual_seed(seed)
    model = FocusNet()
    for layer in model.last:
        torch.nn.init.normal_(layer.weight, std=0.3)
        torch.nn.init.normal_(layer.bias, std=0.3)
    return model.eval()


@pytest.mark.parametrize("size", [(37, 50), (2, 3), (5, 1), (1, 1), (6, 7), (12, 13)])
def test_filters_are_those_of_opencv(size):
    maps = np.random.default_rng(0).random(size, np.float32)
    given = torch.from_numpy(maps)[None, None]
    half = net.down(given)[0, 0].numpy()
    np.testing.assert_allclose(half, cv2.pyrDown(maps).reshape(half.shape), atol=1e-6)
    for odd in (0, 1):
        twice = (2 * size[0] - odd, 2 * size[1] - odd)
        expected = cv2.pyrUp(maps, dstsize=twice[::-1]).reshape(twice)
        np.testing.assert_allclose(net.up(given, twice)[0, 0].numpy(), expected, atol=1e-6)
        resized = cv2.resize(maps, twice[::-1], interpolation=cv2.INTER_LINEAR).reshape(twice)
        np.testing.assert_allclose(net.between(given, twice)[0, 0].numpy(), resized, atol=1e-6)
    blurred = net.blur(given, net._gaussian(focus.WINDOW))[0, 0].numpy()
    np.testing.assert_allclose(blurred, cv2.GaussianBlur(maps, (0, 0), focus.WINDOW).reshape(size), atol=1e-6)


@pytest.mark.parametrize(("count", "size"), [(2, (97, 140)), (5, (64, 64)), (3, (9, 200)), (2, (1, 1)), (2, (3, 2))])
def test_untrained_it_is_the_formula(count, size):
    frames = frames_of(count, size)
    with torch.inference_mode():
        fused = FocusNet()(tensor(frames))[0].clamp(0, 1).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(fused * 255, focus.fuse(list(frames / np.float32(255))).pixels * 255, atol=0.02)


def test_luminance_is_a_picture_of_one_channel():
    frames = tensor(frames_of(3, (40, 56), channels=1))
    with torch.inference_mode():
        assert torch.equal(trained()(frames), trained()(frames.squeeze(2)))
    with pytest.raises(ValueError, match=r"frames must be \(B, N, H, W\) or"):
        trained()(frames[0, 0])


def test_order_and_identical_frames():
    frames, model = tensor(frames_of(4, (48, 64))), trained()
    with torch.inference_mode():
        fused = model(frames)
        torch.testing.assert_close(model(frames[:, [2, 0, 3, 1]]), fused, atol=2e-6, rtol=0)
        same = frames[:, :1].expand(-1, 3, -1, -1, -1)
        torch.testing.assert_close(model(same), frames[:, 0], atol=2e-6, rtol=0)


def test_each_band_has_a_network_of_its_own_and_all_features_count():
    frames = tensor(frames_of(3, (130, 130)))
    model = trained()
    model(frames).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    for level in range(2, focus.BANDS - 2):  # elsewhere there is no finer or no coarser band
        assert (model.first[level].weight.grad.abs().amax((0, 2, 3)) > 0).all()
