"""Focus stacks: what is fused of known scenes, memory, order, depth, and the command line."""

import functools
import shutil
import subprocess
import tracemalloc

import cv2
import numpy as np
import pytest
from PIL import Image

import ffmef
from ffmef import cli, focus, focus_net
from ffmef.errors import InputError
from ffmef.weight_files import find


def texture(height, width, seed):
    """A picture with structure at all scales, 0..255."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3), np.float32)
    for scale, gain in ((1, 12), (2, 14), (4, 18), (16, 30), (64, 40)):
        noise = rng.standard_normal((height // scale + 2, width // scale + 2, 3)).astype(np.float32)
        picture += gain * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(picture + 128, 0, 255)


def blurred(picture, radius):
    """Defocus by a disc of that radius."""
    if radius < 0.3:
        return picture
    reach = int(np.ceil(radius))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1).astype(np.float32)
    return cv2.filter2D(picture, -1, disc / disc.sum(), borderType=cv2.BORDER_REFLECT)


def tilted_stack(count, noise=0.0, height=160, width=224):
    """Frames focused from left to right across a tilted plane, and the plane all in focus."""
    truth = np.rint(texture(height, width, 1))
    levels = np.stack([blurred(truth, radius) for radius in np.arange(0, 6.5, 0.5)])
    rng = np.random.default_rng(2)
    frames, columns = [], np.arange(width)
    for k in range(count):
        radius = np.clip(np.abs(columns / width - k / (count - 1)) * 12, 0, 6) * 2
        low = np.minimum(radius.astype(int), 11)
        share = (radius - low)[None, :, None]
        frame = (1 - share) * levels[low, :, columns].swapaxes(0, 1) + share * levels[low + 1, :, columns].swapaxes(
            0, 1
        )
        frame += noise * rng.standard_normal(frame.shape)
        frames.append(np.clip(np.rint(frame), 0, 255).astype(np.uint8))
    return frames, truth


def layered_stack(count, noise=0.0, height=160, width=224):
    """Discs at several depths before a background, each blurred with its edge, and the scene all in focus."""
    rng = np.random.default_rng(3)
    layers = [(texture(height, width, 4), np.ones((height, width, 1), np.float32), 0.0)]
    for i in range(3):
        mask = np.zeros((height, width), np.float32)
        cv2.circle(mask, (40 + 70 * i, 60 + 20 * i), 30, 1.0, -1, cv2.LINE_AA)
        layers.append((texture(height, width, 5 + i), mask[..., None], (i + 1) / 3))

    def render(focus_depth):
        out = None
        for colour, alpha, depth in layers:
            radius = 0 if focus_depth is None else min(10 * abs(depth - focus_depth), 5)
            front, cover = blurred(colour * alpha, radius), blurred(alpha, radius).reshape(height, width, 1)
            out = front if out is None else out * (1 - cover) + front
        return out

    frames = [render(depth) + noise * rng.standard_normal((height, width, 3)) for depth in np.linspace(0, 1, count)]
    return [np.clip(np.rint(frame), 0, 255).astype(np.uint8) for frame in frames], np.rint(render(None))


def halves(count, noise=0.0, smooth=False):
    """Two frames, each sharp in one half, and the whole in focus."""
    truth = texture(160, 224, 1)
    truth = np.rint(cv2.GaussianBlur(truth, (0, 0), 8) if smooth else truth)
    soft, rng = blurred(truth, 4.0), np.random.default_rng(2)
    left = np.clip((116 - np.arange(224)) / 8, 0, 1)[None, :, None]
    frames = [truth * share + soft * (1 - share) for share in (left, 1 - left)]
    frames = [frame + noise * rng.standard_normal(frame.shape) for frame in frames]
    return [np.clip(np.rint(frame), 0, 255).astype(np.uint8) for frame in frames], truth


def decibels(picture, truth):
    return 10 * np.log10(255**2 / np.square(np.asarray(picture, np.float64) - truth).mean())


def enfuse(frames, folder):
    for k, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{k:03}.png")
    options = ["--exposure-weight=0", "--saturation-weight=0", "--contrast-weight=1", "--hard-mask"]
    names = sorted(map(str, folder.glob("*.png")))
    subprocess.run(["enfuse", *options, "-o", str(folder / "out.tif"), *names], check=True, capture_output=True)
    return np.asarray(Image.open(folder / "out.tif").convert("RGB"))


STACKS = {
    "halves": (halves, 2, 0), "tilted 5": (tilted_stack, 5, 0), "tilted 30, noise": (tilted_stack, 30, 2),
    "smooth, noise": (functools.partial(halves, smooth=True), 2, 2),
    "layered 5": (layered_stack, 5, 0), "layered 30, noise": (layered_stack, 30, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", STACKS)
def test_better_than_enfuse_and_than_any_frame(name, tmp_path):
    make, count, noise = STACKS[name]
    frames, truth = make(count, noise)
    own = decibels(focus.fuse(frames).pixels, truth)
    # Of a smooth scene, only noise can be averaged.
    assert own > max(decibels(frame, truth) for frame in frames) + (1.5 if "smooth" in name else 3 if count == 2 else 6)
    learned = decibels(focus.fuse(frames, network=focus_net.read("focus")).pixels, truth)
    assert learned > own - 0.3
    if not shutil.which("enfuse"):
        pytest.skip("enfuse is not installed")
    assert own > decibels(enfuse(frames, tmp_path), truth) + 1


def test_formula():
    """The documented formula, frame by frame in float64 with all frames in memory."""

    def bands(picture):
        levels = []
        for _ in range(6):
            half = cv2.pyrDown(picture)
            levels.append(picture - cv2.pyrUp(half, dstsize=picture.shape[1::-1]))
            picture = half
        return [*levels, picture]

    frames, _ = layered_stack(3, 1, 96, 140)
    pyramids = [bands(frame.astype(np.float64)) for frame in frames]
    energies = []
    for pyramid in pyramids:
        own = [cv2.GaussianBlur((band**2).mean(2), (0, 0), 1.5) for band in pyramid[:-1]]
        summed = []
        for level, energy in enumerate(own):
            if level + 1 < len(own):
                energy = energy + cv2.resize(own[level + 1], energy.shape[::-1]) / 4
            summed.append(energy + (2 * cv2.pyrDown(summed[-1]) if summed else 0))
        energies.append([*summed, 2 * cv2.pyrDown(summed[-1])])
    fused = None
    flattest = [cv2.GaussianBlur((p[0] ** 2).mean(2), (0, 0), 1.5)[::4, ::4] for p in pyramids]
    noise = min(np.quantile(energy, 0.05) for energy in flattest)
    assert noise > 0.5
    for level in reversed(range(7)):
        floor = 1 + 2 ** (level + 2) * noise
        greatest = np.max([energy[level] for energy in energies], 0)
        weights = [((energy[level] + floor) / (greatest + floor)) ** 8 for energy in energies]
        total = sum(w[..., None] * p[level] for w, p in zip(weights, pyramids, strict=True)) / sum(weights)[..., None]
        fused = total if fused is None else total + cv2.pyrUp(fused, dstsize=total.shape[1::-1])
    for y, x in np.ndindex(fused.shape[:2]):
        near = [f[(y - 1) // 2 * 2 if y else 0 :, (x - 1) // 2 * 2 if x else 0 :] for f in frames]
        near = [f[: 4 if y else 2, : 4 if x else 2] for f in near]
        fused[y, x] = np.clip(fused[y, x], np.min(near, (0, 1, 2)), np.max(near, (0, 1, 2)))
    pixels = focus.fuse([(frame / 255).astype(np.float32) for frame in frames]).pixels
    np.testing.assert_allclose(pixels * 255, fused, atol=0.01)


@pytest.mark.parametrize("network", [None, "focus"])
def test_no_ringing_at_depth_edges(network):
    """Discs with strong texture before another: nothing leaves the range of the frames around it."""
    frames, _ = layered_stack(3, height=141, width=211)
    window = np.ones((5, 5), np.uint8)
    least, greatest = cv2.erode(np.min(frames, 0), window), cv2.dilate(np.max(frames, 0), window)
    for scale in (1, np.uint16(257)):
        fused = focus.fuse([frame * scale for frame in frames], network=network and focus_net.read(network)).pixels
        assert (fused >= least * scale).all() and (fused <= greatest * scale).all()


def test_order_changes_no_sample_but_the_numbers():
    frames, _ = tilted_stack(5, 1)
    fused = focus.fuse(frames, depth_map=True)
    for order in ([4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        other = focus.fuse([frames[i] for i in order], depth_map=True)
        np.testing.assert_array_equal(other.pixels, fused.pixels)
        ties = np.mean(np.array(order)[other.sharpest] != fused.sharpest)
        assert ties < 1e-3  # frames that are equally sharp


def test_depth_map_tells_the_sharpest():
    frames, _ = tilted_stack(5)
    sharpest = focus.fuse(frames, depth_map=True).sharpest
    expected = np.rint(np.arange(224) / 224 * 4)
    assert np.abs(np.median(sharpest, 0) - expected).max() <= 1
    assert np.mean(np.median(sharpest, 0) == expected) > 0.9
    assert sharpest.dtype == np.uint8


def test_identical_frames_and_flat_frames_are_kept():
    frame = texture(50, 61, 9).astype(np.uint8)
    np.testing.assert_array_equal(focus.fuse([frame] * 3).pixels, frame)
    flat = np.full((20, 31), 77, np.uint8)
    np.testing.assert_array_equal(focus.fuse([flat, flat]).pixels, flat)
    for size in ((1, 1), (1, 9), (2, 3), (5, 1), (3, 200)):
        small = (np.arange(size[0] * size[1]).reshape(size) * 7 % 256).astype(np.uint8)
        np.testing.assert_array_equal(focus.fuse([small, small]).pixels, small)


def test_depths_agree():
    frames, _ = tilted_stack(3)
    eight = focus.fuse(frames).pixels
    sixteen = focus.fuse([frame * np.uint16(257) for frame in frames]).pixels
    real = focus.fuse([(frame / 255).astype(np.float32) for frame in frames]).pixels
    assert sixteen.dtype == np.uint16 and real.dtype == np.float32
    assert np.abs(sixteen / 257 - eight).max() <= 0.51 and np.abs(real * 255 - eight).max() <= 0.51
    assert len(np.unique(sixteen % 257)) > 100  # the steps between 8-bit levels are used
    mixed = focus.fuse([frames[0], frames[1] * np.uint16(257), frames[2]]).pixels
    np.testing.assert_allclose(mixed.astype(int), sixteen, atol=2)
    grey = focus.fuse([frame[..., 1] for frame in frames]).pixels
    assert grey.shape == (160, 224)
    colour = focus.fuse([frames[0][..., 1], frames[1], frames[2]]).pixels
    assert colour.shape == (160, 224, 3)


def test_memory_does_not_grow_with_the_frames():
    frames, _ = tilted_stack(2, height=512, width=768)
    peaks = []
    for count in (2, 12):
        tracemalloc.start()
        focus.fuse([lambda k=k: frames[k % 2].copy() for k in range(count)])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.02
    assert peaks[1] < 49 * 512 * 768


def test_wrong_frames_are_named():
    frame = np.zeros((8, 9), np.uint8)
    with pytest.raises(InputError, match="frames must be 2 to 4096, got 1"):
        focus.fuse([frame])
    with pytest.raises(InputError, match=r"frames\[1\] must have the size of frames\[0\], \(8, 9\), got \(8, 8\)"):
        focus.fuse([frame, frame[:, :-1]])
    with pytest.raises(InputError, match=r"frames\[1\] must be uint8, uint16 or floating point, got int32"):
        focus.fuse([frame, frame.astype(np.int32)])
    with pytest.raises(InputError, match=r"frames\[0\] must have shape \(H, W\) or \(H, W, 3\), got \(\)"):
        focus.fuse([np.array(5, np.uint8), frame])
    with pytest.raises(InputError, match=r"frames\[0\] must be a NumPy array or a function, got list"):
        focus.fuse([frame.tolist(), frame])
    with pytest.raises(InputError, match="frames must be a sequence of arrays or functions, got int"):
        focus.fuse(3)
    for bad in (np.nan, -0.5, 255.0):
        with pytest.raises(InputError, match=r"frames\[1\] must lie in \[0, 1\], got values from"):
            focus.fuse([frame, np.full(frame.shape, bad)])


def test_python_interface(tmp_path):
    frames, truth = halves(2)
    network = focus_net.read("focus")
    by_formula = focus.fuse(frames).pixels
    for options in ({}, {"model": "energy"}, {"model": "energy", "threads": 1}):
        np.testing.assert_array_equal(ffmef.fuse(frames, task="mff", **options), by_formula)
    fused = focus.fuse(frames, network=network).pixels
    for options in ({"model": "focus", "threads": 1}, {"weights": "focus"}, {"weights": str(find("focus"))}):
        np.testing.assert_array_equal(ffmef.fuse(frames, task="mff", **options), fused)
    assert (by_formula != fused).any()
    assert decibels(fused, truth) > decibels(ffmef.fuse(frames, task="mff", model="ffmef"), truth) + 1
    assert ffmef.fuse(tilted_stack(3)[0], task="mff").shape == (160, 224, 3)
    for name in ("focus", "energy"):
        with pytest.raises(InputError, match=f"model {name} can only be used for task mff, got mef"):
            ffmef.fuse(frames, model=name)
        with pytest.raises(
            InputError, match=f"(model {name} must be given without|cannot be used with the name of a model)"
        ):
            ffmef.fuse(frames, task="mff", model=name, weights="mff")
    with pytest.raises(InputError, match="model energy must run on the CPU"):
        ffmef.fuse(frames, task="mff", model="energy", backend="triton")
    with pytest.raises(InputError, match="backend cannot be used with the model FocusNet, got 'eager'"):
        ffmef.fuse(frames, task="mff", model="focus", backend="eager")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_torch_gives_the_same(dtype):
    """What a GPU would compute: the model itself, in colour, in grey, and mixed."""
    frames, _ = tilted_stack(3, 1)
    top = {np.uint8: 1, np.uint16: 257, np.float32: 1 / 255}[dtype]
    frames = [(frame * np.float64(top)).astype(dtype) for frame in frames]
    model = ffmef.models.load("focus")
    for given in (frames, [frame[..., 1] for frame in frames], [frames[0][..., 1], *frames[1:]]):
        by_torch = ffmef.fuse(given, task="mff", model=model)
        streamed = ffmef.fuse(given, task="mff", model="focus")
        assert by_torch.dtype == dtype and by_torch.shape == streamed.shape
        assert np.abs(by_torch / np.float64(top) - streamed / np.float64(top)).max() <= 1.01


@pytest.mark.parametrize("count", [3, 7])  # together in memory, and one at a time
def test_command_line(tmp_path, capsys, count):
    frames, _ = tilted_stack(count)
    names = [str(tmp_path / f"{k}.png") for k in range(count)]
    for name, frame in zip(names, frames, strict=True):
        Image.fromarray(frame).save(name)
    out, depth = tmp_path / "out.png", tmp_path / "depth.png"
    assert cli.main(["fuse", "--task", "mff", *names, "-o", str(out), "--depth-map", str(depth)]) == 0
    fused = focus.fuse(frames, depth_map=True)
    np.testing.assert_array_equal(np.asarray(Image.open(out)), fused.pixels)
    np.testing.assert_array_equal(np.asarray(Image.open(depth)), fused.sharpest)
    capsys.readouterr()
    Image.fromarray(frames[1][:, :-1]).save(names[-1])
    out.unlink()
    assert cli.main(["fuse", "--task", "mff", *names, "-o", str(out)]) == 2
    error = capsys.readouterr().err
    assert f"{names[-1]} must have the size of {names[0]}" in error and error.count("\n") == 1 and not out.exists()


def test_alpha_depth_and_exif_of_long_stacks(tmp_path):
    frames, _ = tilted_stack(6)
    names = [str(tmp_path / f"{k}.tif") for k in range(6)]
    for k, (name, frame) in enumerate(zip(names, frames, strict=True)):
        alpha = np.full((*frame.shape[:2], 1), 255, np.uint8)
        alpha[k] = 10 * k
        Image.fromarray(np.concatenate([frame, alpha], 2)).save(name)
    out = tmp_path / "out.png"
    arguments = ["fuse", "--task", "mff", *names, "-o", str(out)]
    assert cli.main([*arguments, "--output-depth", "16"]) == 0
    assert cv2.imread(str(out), cv2.IMREAD_UNCHANGED).dtype == np.uint16
    assert cli.main(arguments) == 0
    whole = np.asarray(Image.open(out))
    assert whole.shape[2] == 4 and [whole[k, 0, 3] for k in range(7)] == [0, 10, 20, 30, 40, 50, 255]


def test_wrong_options_are_named(tmp_path, capsys):
    frames, _ = tilted_stack(2)
    names = [str(tmp_path / f"{k}.png") for k in range(2)]
    for name, frame in zip(names, frames, strict=True):
        Image.fromarray(frame).save(name)
    out = str(tmp_path / "out.png")
    for extra, message in (
        (["--task", "mff", "--depth-map", str(tmp_path / "d.jpg")], "--depth-map must be PNG or TIFF"),
        (["--task", "mff", "--depth-map", str(tmp_path / "d")], "--depth-map must be PNG or TIFF"),
        (["--task", "mff", "--contrast", "1"], "--prefer cannot be used with focus stacks"),
        (["--task", "mff", "--deghost"], "--deghost cannot be used with focus stacks"),
        (["--task", "mff", "--depth-map", str(tmp_path / "none/d.png")], "none is not an existing directory"),
        (["--depth-map", str(tmp_path / "d.png")], "--depth-map can only be used for focus stacks"),
        (["--task", "mff", "--depth-map", names[0]], names[0]),
        (["--task", "mff", "--depth-map", out], f"--depth-map must not be the target of -o, {out}"),
    ):
        assert cli.main(["fuse", *names, "-o", out, *extra]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out.png").exists() and not (tmp_path / "d.png").exists()


def test_align_undoes_breathing(tmp_path):
    """The second frame is a hundredth larger and moved, as when the lens moves to focus."""
    frames, truth = halves(2)
    move = np.float32([[1.01, 0, 2], [0, 1.01, -1]])
    options = {"flags": cv2.INTER_CUBIC, "borderMode": cv2.BORDER_REFLECT}
    frames[1] = cv2.warpAffine(frames[1], move, (224, 160), **options)
    names = [str(tmp_path / f"{k}.png") for k in range(2)]
    for name, frame in zip(names, frames, strict=True):
        Image.fromarray(frame).save(name)
    results = []
    for extra in ([], ["--align", "--reference", "1"]):
        out = tmp_path / "out.png"
        assert cli.main(["fuse", "--task", "mff", *names, "-o", str(out), *extra]) == 0
        inside = np.s_[8:-8, 8:-8]
        results.append(decibels(np.asarray(Image.open(out).convert("RGB"))[inside], truth[inside]))
    assert results[1] > 35 > results[0] + 8
