"""The native pass from pictures to a picture: without torch, in every depth, on any number of threads."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import subprocess
import sys

import numpy as np
import pytest
import torch

import ffmef
from ffmef import picture
from ffmef.imaging import colour
from ffmef.models import load
from ffmef.models.pyramid import into_range

pytestmark = pytest.mark.skipif(picture.missing is not None, reason=str(picture.missing))
DTYPES = (np.uint8, np.uint16, np.float32)


def pictures_of(*shape, count=2, dtype=np.uint8, seed=0):
    generator = np.random.default_rng(seed)
    samples = generator.random((count, *shape))
    return [as_dtype(s, dtype) for s in samples]


def as_dtype(unit, dtype):
    return unit.astype(dtype) if np.dtype(dtype).kind == "f" else np.rint(unit * np.iinfo(dtype).max).astype(dtype)


def run(script, **variables):
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=variables, check=True)
    return done.stdout.strip()


def test_torch_is_not_loaded():
    script = (
        "import sys, numpy as np, ffmef, ffmef.cli\n"
        "picture = ffmef.fuse([np.full((9, 7, 3), grey, np.uint8) for grey in (40, 90)])\n"
        "print(picture.shape, sorted({'torch', 'cv2', 'PIL', 'tifffile'} & set(sys.modules)))"
    )
    assert run(script, PYTHONPATH=":".join(sys.path)) == "(9, 7, 3) []"


@pytest.mark.parametrize("size", [(1, 2), (3, 1), (8, 16), (37, 51), (70, 530)])
@pytest.mark.parametrize("count", [2, 3])
def test_both_doors_give_equal_bits(size, count):
    images = pictures_of(*size, 3, count=count)
    by_torch = load("mef-pyramid").fuse_rgb([torch.from_numpy(image) for image in images]).numpy()
    assert np.array_equal(ffmef.fuse(images, weights="mef-pyramid"), by_torch)
    assert np.array_equal(ffmef.fuse(images, model=load("mef-pyramid")), by_torch)


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_change_nothing(dtype):
    images = pictures_of(301, 250, 3, count=3, dtype=dtype)
    alone = ffmef.fuse(images, threads=1)
    for threads in (2, 3, 7):
        for _ in range(5):
            assert np.array_equal(ffmef.fuse(images, threads=threads), alone)


def test_callers_at_the_same_time_do_not_disturb_each_other():
    images = pictures_of(150, 97, 3)
    alone = ffmef.fuse(images, threads=1)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: ffmef.fuse(images, threads=3), range(20)))
    assert all(np.array_equal(result, alone) for result in results)


def fused_in_a_child(images):
    return ffmef.fuse(images, threads=2)


def test_forked_processes_have_threads_of_their_own():
    images = pictures_of(150, 97, 3)
    here = ffmef.fuse(images, threads=2)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for there in pool.map(fused_in_a_child, [images] * 4):
            assert np.array_equal(there, here)


def test_number_of_threads(monkeypatch):
    assert picture.thread_count(5) == 5 and picture.thread_count() == torch.get_num_threads()
    monkeypatch.setenv("FFMEF_THREADS", "3")
    assert picture.thread_count() == 3 and picture.thread_count(2) == 2
    images = pictures_of(8, 8)
    for wrong in ("0", "-1", "many", "4097"):
        monkeypatch.setenv("FFMEF_THREADS", wrong)
        with pytest.raises(
            ffmef.InputError, match=f"FFMEF_THREADS must be a whole number from 1 to 4096, got '{wrong}'"
        ):
            ffmef.fuse(images)
    for wrong in (0, 2.5, True):
        with pytest.raises(ffmef.InputError, match=f"threads must be a whole number from 1 to 4096, got {wrong}"):
            ffmef.fuse(images, threads=wrong)
    script = "from ffmef import picture; print(picture.thread_count())"
    path = {"PYTHONPATH": ":".join(sys.path)}
    assert run(script, OMP_NUM_THREADS="2", **path) == "2"
    assert run(script, OMP_NUM_THREADS="2", FFMEF_THREADS="4", **path) == "4"
    pinned = f"import os; os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}}); {script}"
    assert run(pinned, **path) == "1"


@pytest.mark.parametrize("dtype", [*DTYPES, np.float16, np.float64])
@pytest.mark.parametrize("size", [(1, 2), (37, 51), (20, 1100)])
def test_depths_show_the_same_picture(size, dtype):
    """8-bit samples in a deeper container give the 8-bit picture, before its rounding."""
    shallow = pictures_of(*size, 3)
    deep = [as_dtype(image / 255, dtype) for image in shallow]
    fused, expected = ffmef.fuse(deep), ffmef.fuse(shallow)
    assert fused.dtype == dtype and fused.shape == (*size, 3)
    scale = 1 if dtype == np.uint8 else 257 if dtype == np.uint16 else 1 / 255
    tolerance = 0 if dtype == np.uint8 else 1.0 if dtype == np.float16 else 0.51
    assert np.abs(fused.astype(float) / scale - expected).max() <= tolerance


@pytest.mark.parametrize("dtype", DTYPES)
def test_grey_is_colour_with_equal_channels(dtype):
    grey = pictures_of(45, 67, count=3, dtype=dtype)
    fused, in_colour = ffmef.fuse(grey), ffmef.fuse([np.stack([image] * 3, -1) for image in grey])
    assert fused.shape == (45, 67) and fused.dtype == dtype
    tolerance = 1e-6 if np.dtype(dtype).kind == "f" else 1
    assert np.abs(in_colour - fused[..., None].astype(float)).max() <= tolerance


@pytest.mark.parametrize("value", [-0.01, 1.01, np.nan, np.inf])
def test_floats_out_of_range_are_found_wherever_they_are(value):
    images = pictures_of(37, 51, 3, dtype=np.float32)
    for frame, place in ((0, (0, 0, 0)), (1, (36, 50, 2)), (1, (17, 33, 1))):
        broken = [image.copy() for image in images]
        broken[frame][place] = value
        with pytest.raises(ffmef.InputError, match=rf"images\[{frame}\] must lie in \[0, 1\], got values from"):
            ffmef.fuse(broken, threads=2)


def test_memory_is_used_again_but_never_that_of_a_living_result():
    script = (
        "import numpy as np, ffmef, resource\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "images = [np.full((400, 401, 3), grey, np.uint8) for grey in (40, 90)]\n"
        "others = [255 - image for image in images]\n"
        "kept = ffmef.fuse(images, threads=2)\n"
        "before = kept.copy()\n"
        "for _ in range(5): ffmef.fuse(others, threads=2)\n"
        "start = faults()\n"
        "for _ in range(10): ffmef.fuse(others, threads=1)\n"
        "print(np.array_equal(kept, before), (faults() - start) // 10)"
    )
    # A C library that gives all freed memory back at once.
    given_back = {"MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": "65536"}
    alive, fresh = run(script, PYTHONPATH=":".join(sys.path), **given_back).split()
    assert alive == "True"
    if sys.platform == "linux":
        assert int(fresh) < 50, "pages touched for the first time in each call"


def test_grey_beside_colour():
    coloured, grey = pictures_of(33, 20, 3, count=1) + pictures_of(33, 20, count=1, seed=1)
    expected = ffmef.fuse([coloured, np.stack([grey] * 3, -1)])
    assert np.abs(ffmef.fuse([coloured, grey]).astype(int) - expected).max() <= 1


def test_views_and_read_only_arrays():
    wide = pictures_of(40, 60, 3)
    views = [image[3:27:2, 5:33].transpose(1, 0, 2)[::-1] for image in wide]
    copies = [np.ascontiguousarray(view) for view in views]
    for view in views:
        view.flags.writeable = False
    assert np.array_equal(ffmef.fuse(views), ffmef.fuse(copies))


def test_the_luminance_is_the_models():
    """What goes in and comes out around the model, by the public pieces."""
    model = load("mef-pyramid").double()
    for dtype in DTYPES:
        images = pictures_of(41, 30, dtype=dtype)
        scale = 1 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
        given = torch.from_numpy(np.stack([image.astype(float) / scale * 255 for image in images]))[None]
        with torch.inference_mode():
            out = model(colour.grey_to_luminance(given) / 255) * 255
            out, _ = into_range(out, given.unsqueeze(2).expand(-1, -1, 3, -1, -1))
        expected = np.clip(colour.luminance_to_grey(out[0, 0].numpy()) / 255, 0, 1) * scale
        assert np.abs(ffmef.fuse(images) - expected).max() <= (1e-5 if scale == 1 else 0.5 + 1e-5 * scale)
