"""Memory of scratch and of large results, kept from call to call and lent to the system meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ffmef
from ffmef.ops import backends

pytestmark = [
    pytest.mark.skipif(backends()["cpu"] is not None, reason=str(backends()["cpu"])),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc; elsewhere nothing is kept"),
]

SIZE = (601, 700)  # maps of 70 MB, far more than anything else that comes and goes
MAPS = 160 * SIZE[0] * SIZE[1]

PROLOGUE = f"""
import ctypes, resource, torch
from pathlib import Path
import ffmef
torch.set_num_threads(1)
torch.manual_seed(0)
model = ffmef.models.FFMEF(backend="fused").eval().requires_grad_(False)
large, small = torch.rand(1, 2, *{SIZE}), torch.rand(1, 2, 40, 50)
model(small)

def lent():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    line = next(line for line in lines if line.startswith("LazyFree:"))
    return int(line.split()[1]) * 1024

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

def mapped():
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

def blocks():
    for block in Path("/proc/self/smaps").read_text().split("VmFlags:"):
        fields = {{line.split(":")[0]: line.split() for line in block.splitlines() if ":" in line}}
        if "LazyFree" in fields and int(fields["LazyFree"][1]) > 10000:
            begin, end = next(line.split()[0] for line in block.splitlines() if "-" in line.split(" ")[0]).split("-")
            yield int(begin, 16), int(end, 16)
"""


def printed(body: str) -> list[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(ffmef.__file__).parent.parent)}
    run = subprocess.run(
        [sys.executable, "-c", PROLOGUE + body],
        env=environment,
        check=True,
        timeout=120,
        capture_output=True,
        text=True,
    )
    return run.stdout.split()


def test_a_single_picture_leaves_nothing_behind():
    (left,) = printed("before = resident(); out = model(large); print(resident() - before - out.nbytes)")
    assert int(left) < 0.1 * MAPS


def test_from_the_second_call_on_memory_is_kept_and_lent():
    first, second, third, after_small = map(
        int,
        printed("""
for n in range(3):
    model(large)
    print(lent())
model(small)
print(lent())
"""),
    )
    assert first < 0.1 * MAPS
    assert min(second, third, after_small) > 0.9 * MAPS


def test_a_larger_call_does_not_keep_the_smaller_block():
    small, large = map(int, printed("model(small); model(small); print(lent()); model(large); print(lent())"))
    assert 0 < small < 0.1 * MAPS
    assert large == 0


def test_what_the_system_took_back_is_not_missed():
    taken, same = printed("""
expected = model(large)
model(large)
taken = 0
for begin, end in blocks():
    MADV_DONTNEED = 4
    assert ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), MADV_DONTNEED) == 0
    taken += end - begin
print(taken, torch.equal(model(large), expected))
""")
    assert int(taken) > 0.9 * MAPS
    assert same == "True"


def test_the_kept_block_serves_the_next_call():
    """What is written into its last page, behind all maps, is still there."""
    (byte,) = printed("""
model(large); model(large)
((begin, end),) = blocks()
last = ctypes.c_ubyte.from_address(end - 1)
last.value = 90
model(large)
print(last.value)
""")
    assert int(byte) == 90


def test_blocks_are_given_back_whole():
    """The address space, too: of a large block that a small call used, and of what was cut off to align each."""
    after_large, after_growing = map(
        int,
        printed("""
before = mapped()
model(large); model(large); model(small)
for width in range(51, 81):
    model(torch.rand(1, 2, 40, width))
model(torch.rand(1, 2, large.shape[2], large.shape[3] + 20))
print(mapped() - before)
before = mapped()
for height in range(100, 140):
    model(torch.rand(1, 2, height, 100))
print(mapped() - before)
"""),
    )
    assert after_large < 0.2 * MAPS
    assert after_growing < 0.2 * MAPS


def test_too_little_memory_is_python_s_memory_error():
    (message,) = printed("""
before = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (before + 30_000_000, resource.RLIM_INFINITY))
try:
    model(large)
except MemoryError:
    print("MemoryError")
""")
    assert message == "MemoryError"


RESULTS = """
from ffmef.ops import adaptive_fuse
images = torch.rand(1, 2, 1, 300, 400)
filters = [torch.rand(1, 2, k * k, 300, 400, requires_grad=True) for k in (3, 5)]
size = sum(f.nbytes for f in filters)

def step():
    return torch.autograd.grad(adaptive_fuse(images, filters).square().sum(), filters)

def places(tensors):
    return {t.data_ptr() for t in tensors}
"""


def test_gradients_take_the_memory_of_freed_ones_and_of_no_others():
    lent_once, lent, reused, kept, resized = printed(
        RESULTS
        + """
first = step()
values = [g.clone() for g in first]
at = places(first)
del first
print(lent() / size)
first = step()
second = step()
at = places(second)
del second
print(lent() / size)
third = step()
print(places(third) == at)
fourth = step()
assert len(places([*first, *third, *fourth])) == 6
print(all(torch.equal(g, v) for step in (first, third, fourth) for g, v in zip(step, values)))
try:
    third[0].resize_(10**7)
except RuntimeError as error:  # documented in docs/limits.md
    print(str(error).replace(" ", "_"))
"""
    )
    assert float(lent_once) < 0.1
    assert float(lent) > 0.9
    assert (reused, kept, resized) == ("True", "True", "Trying_to_resize_storage_that_is_not_resizable")


def test_freed_gradients_on_many_threads_are_bounded_and_go_back():
    most, left = printed(
        RESULTS
        + """
import threading
step()
before = mapped()
def some():
    for _ in range(8):
        step()
threads = [threading.Thread(target=some) for _ in range(4)]
for t in threads: t.start()
for t in threads: t.join()
print((lent()) / size)
small = torch.rand(1, 2, 1, 512, 512)
for n in range(300):  # results of another size
    adaptive_fuse(small.expand(1, 2, 3, 512, 512), [small[:, :, 0, None].expand(1, 2, 1, 512, 512)])
print(lent() / size)
"""
    )
    assert float(most) < 4.5
    assert float(left) < 0.5
