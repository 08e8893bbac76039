"""Where memory runs out, a native call ends with an error, whichever allocation fails and on whatever thread."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ffmef
from ffmef.ops import backends

ROOT = Path(__file__).resolve().parents[2]
COMPILER = shutil.which("g++") or shutil.which("c++")
pytestmark = [
    pytest.mark.skipif(backends()["cpu"] is not None, reason=str(backends()["cpu"])),
    pytest.mark.skipif(sys.platform != "linux", reason="preloads a library and sets limits as Linux does"),
]

# Allocations of a call fail one after the other, the first, the last and some between. Each may only show as an error,
# and the next call must give the same bits as if nothing had happened.
EACH = """
import ctypes, sys
import numpy as np, torch
from ffmef import ops, _loader
from ffmef.models import FFMEF, PyramidFFMEF

shim = ctypes.CDLL(sys.argv[1])
torch.set_num_threads(2)
generator = torch.Generator().manual_seed(0)
rand = lambda *size: torch.rand(*size, generator=generator)
images, fine, coarse = rand(1, 2, 2, 33, 70), rand(1, 2, 9, 33, 70), rand(1, 2, 25, 5, 9)
hidden, weight, bias = [rand(1, 2, 6, 33, 70)], [rand(25, 6)], [rand(25)]
cells, base = rand(1, 2, 2, 9, 18), rand(1, 2, 9, 18)
thin, kernel, norms = rand(2, 4, 33, 70), rand(4, 4, 3, 3), rand(2, 4)
torch.manual_seed(0)
network, pyramid = FFMEF().eval().requires_grad_(False), PyramidFFMEF().eval().requires_grad_(False)
luminance, pictures = rand(1, 2, 33, 70), [(rand(33, 70, 3) * 255).byte() for _ in range(2)]
planes = rand(3, 33, 70).double()

def gradients(function, *tensors):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    return torch.autograd.grad(function(*leaves).square().sum(), leaves)

def congruency():
    from ffmef.metrics import _phase_congruency as pc
    levels = (planes[0] * 255).byte().numpy()
    return torch.from_numpy(pc._maps_native([levels], pc._bank(33, 70, True)))

CALLS = {
    "adaptive_fuse": lambda: gradients(lambda i, f, c: ops.adaptive_fuse(i, [f, c]), images, fine, coarse),
    "predict_and_fuse": lambda: gradients(
        lambda h, w, b: ops.predict_and_fuse([h], [w], [b], images[:, :, :1]), hidden[0], weight[0], bias[0]),
    "pyramid_fuse": lambda: gradients(lambda i, w, b: ops.pyramid_fuse(i, w, b, scale=4), images, cells, base),
    "thin_convolution": lambda: gradients(lambda x, k: ops.thin_convolution(x, k, slope=0.2), thin, kernel),
    "norm_activation": lambda: gradients(
        lambda x, w, b: ops.norm_activation(x, w, b, slope=0.2), thin, norms[0], norms[1]),
    "ffmef_forward": lambda: network(luminance),
    "pyramid_exposures": lambda: pyramid.fuse_rgb(pictures),
    "pyramid_luminance": lambda: pyramid(luminance),
    "spectral_filter": lambda: torch.ops.ffmef.spectral_filter(planes, rand(33, 36).double()),
    "window_moments": lambda: torch.ops.ffmef.window_moments(planes, rand(7).double(), [0, 1], [1, 2]),
    "phase_congruency": congruency,
}

def values(result):
    tensors = result if isinstance(result, tuple) else (result,)
    return [t.numpy().tobytes() for t in tensors]

for name, call in CALLS.items():
    generator.manual_seed(7)
    expected = values(call())
    shim.fail_in(b"/_cpu.so", 0)
    call()
    count, failed = shim.allocations(), 0
    for turn in sorted({1 + i * (count - 1) // 6 for i in range(7)} if count else ()):
        shim.fail_in(b"/_cpu.so", turn)
        try:
            call()
        except (MemoryError, RuntimeError) as error:
            assert "memory" in str(error) or "bad_alloc" in str(error), error
            failed += 1
        shim.fail_in(b"", 0)
        generator.manual_seed(7)
        assert values(call()) == expected, (name, turn)
    print(name, count, failed, flush=True)
"""


def run(body: str, *arguments: object, **variables: str) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(ffmef.__file__).parent.parent), **variables}
    done = subprocess.run(
        [sys.executable, "-c", body, *map(str, arguments)], env=environment, timeout=100, capture_output=True, text=True
    )
    assert done.returncode == 0, f"status {done.returncode}\n{done.stderr[-2000:]}"
    return done.stdout.split()


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if COMPILER is None:
        pytest.skip("no C++ compiler was found")
    library = tmp_path_factory.mktemp("shim") / "failing_memory.so"
    source = ROOT / "tests/support/failing_memory.cpp"
    subprocess.run([COMPILER, "-O1", "-shared", "-fPIC", source, "-o", library, "-ldl"], check=True)
    return library


def test_any_allocation_may_fail(shim: Path) -> None:
    words = run(EACH, shim, LD_PRELOAD=str(shim))
    found = {name: (int(count), int(failed)) for name, count, failed in zip(*[iter(words)] * 3, strict=True)}
    assert len(found) == 11
    for name, (count, failed) in found.items():
        assert failed > 0 or count == 0, name
    assert sum(failed for _, failed in found.values()) > 50


PICTURE = """
import ctypes, sys
import numpy as np
from ffmef import pipeline

shim = ctypes.CDLL(sys.argv[1])
random = np.random.default_rng(0)
pictures = [random.integers(0, 256, (60, 90, 3), dtype=np.uint8) for _ in range(3)]
expected = pipeline.fuse(pictures)
assert "torch" not in sys.modules
shim.fail_in(b"/_picture", 0)
pipeline.fuse(pictures)
count, failed = shim.allocations(), 0
for turn in sorted({1 + i * (count - 1) // 6 for i in range(7)}):
    shim.fail_in(b"/_picture", turn)
    try:
        pipeline.fuse(pictures)
    except MemoryError:
        failed += 1
    shim.fail_in(b"", 0)
    assert (pipeline.fuse(pictures) == expected).all(), turn
print(count, failed)
"""


def test_any_allocation_may_fail_without_torch(shim: Path) -> None:
    count, failed = map(int, run(PICTURE, shim, LD_PRELOAD=str(shim)))
    assert failed > 0, count


LIMITED = """
import resource, sys
import numpy as np
from pathlib import Path
from ffmef import pipeline

def mapped():
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

random = np.random.default_rng(0)
pictures = [random.integers(0, 256, (1500, 2000, 3), dtype=np.uint8) for _ in range(2)]
expected = pipeline.fuse(pictures)  # threads and modules are there
assert "torch" not in sys.modules
failed = 0
for megabytes in range(0, 100, 4):
    resource.setrlimit(resource.RLIMIT_AS, (mapped() + megabytes * 2**20, resource.RLIM_INFINITY))
    try:
        fused = pipeline.fuse(pictures)
    except MemoryError:
        fused = expected
        failed += 1
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert (fused == expected).all(), megabytes
assert (pipeline.fuse(pictures) == expected).all()
print(failed)
"""


def test_a_picture_that_does_not_fit_is_an_error() -> None:
    assert 0 < int(*run(LIMITED)) < 25
