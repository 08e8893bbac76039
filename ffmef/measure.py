"""Time and peak memory of callables, measured in turn by the clock that suits the device."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch


@dataclass
class Timings:
    """Seconds of each round by three clocks; ``device`` stays empty on the CPU."""

    process: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    device: list[float] = field(default_factory=list)

    def of(self, clock: str) -> list[float]:
        """Return the rounds by the clock named ``process``, ``wall`` or ``device``."""
        return getattr(self, clock)

    def clear(self) -> None:
        """Forget all rounds."""
        for rounds in vars(self).values():
            rounds.clear()


def clock_for(device: str, threads: int) -> str:
    """Return the clock that counts for a case: the device's events, CPU time of one thread, or the wall."""
    if device != "cpu":
        return "device"
    return "process" if threads == 1 else "wall"


def timed(run: Callable[[], object], timings: Timings, device: str = "cpu") -> None:
    """Append each clock's time of a call of ``run``; on a GPU, the device's clock needs a second call."""
    if device == "cpu":
        wall, process = time.perf_counter(), time.process_time()
        run()
        timings.process.append(time.process_time() - process)
        timings.wall.append(time.perf_counter() - wall)
        return
    torch.cuda.synchronize()
    wall, process = time.perf_counter(), time.process_time()
    run()
    handed_over = time.perf_counter() - wall
    torch.cuda.synchronize()
    timings.process.append(time.process_time() - process)
    timings.wall.append(time.perf_counter() - wall)
    timings.device.append(device_seconds(run, handed_over))


def device_seconds(run: Callable[[], object], handed_over: float) -> float:
    """Return the seconds that the GPU takes for one call, with none of its inputs in the caches.

    ``handed_over`` is how long the CPU takes to enqueue the call. A kernel first keeps the GPU waiting that long;
    otherwise a short call's time would be Python's. Before that, a buffer of twice the second-level cache is read, so
    the call finds its inputs in memory, as it does when pictures change.
    """
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    evict_caches()
    torch.cuda._sleep(int(min(1.5 * handed_over + 2e-5, LONGEST_WAIT) * CYCLES_A_SECOND))
    first.record()
    run()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3


CYCLES_A_SECOND = 2e9  # of the fastest GPUs; slower ones wait longer
LONGEST_WAIT = 0.1  # seconds; a call that takes the CPU longer is not short


@functools.cache
def _larger_than_caches(device: int) -> torch.Tensor:
    size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
    return torch.ones(max(size, 2**20) // 4, device=f"cuda:{device}")


def evict_caches() -> None:
    """Read a buffer of twice the GPU's second-level cache: reading leaves nothing behind that must be written back."""
    _larger_than_caches(torch.cuda.current_device()).sum()


def take_turns(runs: Sequence[Callable[[], object]], rounds: int, device: str = "cpu") -> list[Timings]:
    """Time the callables in turn, A B A B: a change in the machine's speed then affects all of them."""
    results = [Timings() for _ in runs]
    for _ in range(rounds):
        for run, timings in zip(runs, results):
            timed(run, timings, device)
    return results


def seconds(run: Callable[[], object], device: str = "cpu") -> float:
    """Return the wall time of one call."""
    timings = Timings()
    timed(run, timings, device)
    return timings.wall[0]


def interquartile_range(values: Sequence[float]) -> float | None:
    """Return the distance between the quartiles, or None for fewer than three values."""
    if len(values) < 3:
        return None
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low


def rounds_within(budget: float, one_round: float, least: int, most: int) -> int:
    """Return how many rounds of ``one_round`` seconds fit into ``budget``, between ``least`` and ``most``."""
    return max(least, min(most, int(budget / max(one_round, 1e-9))))


@contextlib.contextmanager
def thread_count(threads: int) -> Iterator[None]:
    """Run torch, our kernels and OpenCV with ``threads`` threads."""
    import cv2

    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def peak_memory(run: Callable[[], object], device: str = "cpu") -> dict[str, int | str | None]:
    """Return the peak bytes that one call of ``run`` adds: ``host_bytes``, ``host_method``, ``device_bytes``.

    On Linux the system's own high-water mark of this process is reset and read, so torch, OpenCV and the
    kernels' scratch memory all count. Elsewhere a thread samples the resident size, which can miss short peaks.
    """
    gc.collect()
    return_free_memory()
    device_bytes = None
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    host_bytes, host_method = host_peak(run)
    if device != "cpu":
        torch.cuda.synchronize()
        device_bytes = torch.cuda.max_memory_allocated() - before
    return {"host_bytes": host_bytes, "host_method": host_method, "device_bytes": device_bytes}


def host_peak(run: Callable[[], object]) -> tuple[int | None, str]:
    """Return how far this process's resident size rose above its start during ``run``, and the method."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return sampled_peak(run)
    before = resident("VmRSS")
    run()
    return max(resident("VmHWM") - before, 0), "high-water mark"


def resident(name: str) -> int:
    """Return a size that the system keeps for this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def sampled_peak(run: Callable[[], object], interval: float = 1e-3) -> tuple[int | None, str]:
    """As :func:`host_peak`, by sampling the resident size from a thread."""
    try:
        import psutil
    except ImportError:
        run()
        return None, "unavailable without psutil"
    process = psutil.Process()
    before = peak = process.memory_info().rss
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(interval):
            peak = max(peak, process.memory_info().rss)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        run()
    finally:
        done.set()
        sampler.join()
    return peak - before, "sampled"


def return_free_memory() -> None:
    """Give freed heap pages back to the system, or a later peak would hide inside them."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def gpu_kernels(run: Callable[[], object], device: str) -> dict[str, int | float | None] | None:
    """Return the kernels that one call of ``run`` launches on the GPU and their achieved occupancy; None on the CPU."""
    if device == "cpu":
        return None
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as record:
        run()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        record.export_chrome_trace(str(path))
        return kernels_of_trace(json.loads(path.read_text()))


def kernels_of_trace(trace: dict) -> dict[str, int | float | None]:
    """Return ``launches`` and ``occupancy_percent`` of a profiler's trace; the latter is None if the trace lacks it.

    Occupancy is the mean over the kernels, weighted by their duration.
    """
    kernels = [event for event in trace["traceEvents"] if event.get("cat") == "kernel"]
    told = [(event["args"].get("est. achieved occupancy %"), event["dur"]) for event in kernels]
    occupancy = None
    if told and all(value is not None for value, _ in told) and any(duration for _, duration in told):
        occupancy = sum(value * duration for value, duration in told) / sum(duration for _, duration in told)
    return {"launches": len(kernels), "occupancy_percent": occupancy}


def available_memory(device: str = "cpu") -> int | None:
    """Return the bytes that the device can still give, on the CPU without swapping; None if the system does not say."""
    if device != "cpu":
        return torch.cuda.mem_get_info()[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
