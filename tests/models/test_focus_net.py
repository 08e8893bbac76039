"""FocusNet: its filters are OpenCV's, untrained it is the formula, and the order of the frames does not matter."""

import tracemalloc

import cv2
import numpy as np
import pytest
import torch

from ffmef import cli, focus, focus_net, models
from ffmef.models import FocusNet
from ffmef.models import focus as net


def frames_of(count, size, seed=0, channels=3):
    """Frames (count, channels, *size) in whole grey levels 0..255, each sharp elsewhere, with noise."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 256, (*size, channels)).astype(np.float32)
    frames = []
    for k in range(count):
        share = np.clip(1 - np.abs(np.arange(size[1]) / max(size[1] - 1, 1) * (count - 1) - k), 0, 1)[None, :, None]
        soft = 0.9 * truth + 0.1 * cv2.GaussianBlur(truth, (0, 0), 2).reshape(truth.shape)
        frames.append(np.rint(truth * share + soft * (1 - share) + rng.integers(-20, 21, truth.shape)))
    return np.clip(np.stack(frames), 0, 255).astype(np.float32)


def tensor(frames):
    return torch.from_numpy(frames / np.float32(255)).permute(0, 3, 1, 2).unsqueeze(0)


def trained(seed=0):
    """A network whose last layers say something."""
    torch.manual_seed(seed)
    model = FocusNet()
    for layer in model.last:
        torch.nn.init.normal_(layer.weight, std=0.5)
        torch.nn.init.normal_(layer.bias, -6, std=0.3)
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
        np.testing.assert_allclose(net.between(given, twice)[0, 0].numpy(), resized, atol=1e-5)
    blurred = net.blur(given, net._WINDOW)[0, 0].numpy()
    np.testing.assert_allclose(blurred, cv2.GaussianBlur(maps, (0, 0), focus.WINDOW).reshape(size), atol=1e-6)


@pytest.mark.parametrize(("count", "size"), [(2, (97, 140)), (5, (64, 64)), (3, (9, 200)), (2, (1, 1)), (2, (3, 2))])
def test_untrained_it_is_the_formula(count, size, monkeypatch):
    monkeypatch.setattr(focus, "NOISE_GAIN", 0)  # networks tell noise by themselves
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


@pytest.mark.parametrize(("count", "size"), [(2, (97, 141)), (5, (64, 64)), (3, (9, 200)), (2, (1, 1)), (2, (3, 2))])
@pytest.mark.parametrize("channels", [1, 3])
def test_one_frame_at_a_time_gives_the_same(tmp_path, count, size, channels):
    models.save(trained(), tmp_path / "focus.safetensors")
    network = focus_net.read(tmp_path / "focus.safetensors")
    frames = frames_of(count, size, channels=channels)
    with torch.inference_mode():
        expected = trained()(tensor(frames))[0].clamp(0, 1).permute(1, 2, 0).numpy() * 255
    given = [np.squeeze(frame, 2) if channels == 1 else frame for frame in frames / np.float32(255)]
    fused = focus.fuse(given, network=network).pixels.reshape(expected.shape) * 255
    plain = focus.fuse(given).pixels.reshape(expected.shape) * 255
    np.testing.assert_allclose(fused, expected, atol=0.05)
    assert min(size) < 4 or np.abs(plain - fused).max() > 0.5  # the network has a say
    turned = focus.fuse(given[::-1], network=network).pixels.reshape(expected.shape) * 255
    np.testing.assert_array_equal(turned, fused)


def test_only_files_of_the_model_are_read(tmp_path):
    models.save(trained(), tmp_path / "focus.safetensors")
    data = (tmp_path / "focus.safetensors").read_bytes()
    (tmp_path / "short.safetensors").write_bytes(data[:-4])
    state = {name: value.numpy() for name, value in trained().state_dict().items()}
    assert focus_net.network_of(dict(state), {"channels": 24}) is not None
    assert focus_net.network_of(dict(state), {"channels": 23}) is None
    assert focus_net.network_of({**state, "more": np.zeros(1, np.float32)}, {"channels": 24}) is None
    state["last.3.bias"] = np.float32([np.nan])
    assert focus_net.network_of(state, {"channels": 24}) is None
    assert focus_net.read(tmp_path / "short.safetensors") is None and focus_net.read("mef-pyramid") is None


def test_memory_of_the_network():
    """At most 60 bytes per pixel of floats."""
    state = {name: value.numpy() for name, value in trained().state_dict().items()}
    network = focus_net.network_of(state, {"channels": 24})
    frame = np.random.default_rng(0).random((768, 1024, 3), np.float32)
    peaks = []
    for count in (2, 3):
        tracemalloc.start()
        focus.fuse([frame.copy] * count, network=network)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.02 * peaks[0]
    assert peaks[1] < 60 * 768 * 1024


def test_export_refuses_it_in_one_line(tmp_path, capsys):
    assert cli.main(["export", "--weights", "focus", "-o", str(tmp_path / "f.pt2")]) == 2
    error = capsys.readouterr().err
    assert "weights must be of a network that takes free sizes" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_it_runs_beside_any_device_without_waiting():
    """Filters are copied to a device once: a copy in each would make a GPU wait a hundred times a step."""
    frames, model = tensor(frames_of(2, (48, 64))), FocusNet()
    with torch.inference_mode():
        model(frames)
    before = net._kept.cache_info().misses
    model(frames).sum().backward()
    assert net._kept.cache_info().misses == before and net._kept.cache_info().hits > 0


def test_frames_and_both_modes_are_differentiated():
    torch.manual_seed(0)
    model = FocusNet().double()
    for layer in model.last:
        torch.nn.init.normal_(layer.weight, std=0.1)
    frames = torch.rand(1, 2, 10, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (frames,), fast_mode=True, check_forward_ad=True)
    net._kept.cache_clear()
    slope = torch.func.grad(lambda x: model(x).sum())
    torch.func.grad(lambda x: slope(x).sum())(frames.detach())
    slope(frames.detach())  # the taps kept before belong to no transform
    weights = {name: 2 * parameter for name, parameter in model.named_parameters()}  # no parameters themselves
    assert not torch.equal(torch.func.functional_call(model, weights, (frames,)), model(frames))


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_and_weights_of_half_precision(low):
    model, frames = FocusNet(), torch.rand(1, 2, 12, 14)
    expected = model(frames)
    with torch.autocast("cpu", low):
        assert torch.equal(model(frames), expected)
    torch.testing.assert_close(model.to(low)(frames), expected, atol=0.05, rtol=0)
    assert model.to("meta")(frames.to("meta")).shape == expected.shape


def test_one_graph_holds_the_network():
    model, frames = FocusNet().eval(), torch.rand(1, 2, 1, 3)
    assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(frames), model(frames))
