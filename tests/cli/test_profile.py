"""``ffmef profile`` and the measuring behind it."""

from __future__ import annotations

import platform
import re
import time

import numpy as np
import pytest
import torch

from ffmef import cli, measure, ops
from ffmef.commands import profile

SHAPE = ["--height", "20", "--width", "30", "--seconds", "0.01"]


def table(text: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split() for line in text.splitlines() if " ms " in line}


@pytest.mark.parametrize(
    "extra", [[], ["--backward"], ["--images", "3", "--kernel-sizes", "7,1", "--dtype", "bfloat16"]]
)
def test_every_available_backend_is_timed_and_others_say_why(capsys, extra):
    assert cli.main(["profile", *SHAPE, *extra]) == 0
    text = capsys.readouterr().out
    backends = ops.backends()
    assert table(text).keys() == {"floor", *(name for name, missing in backends.items() if missing is None)}
    for name, missing in backends.items():
        if missing is not None:
            assert f"{name}: not available: {missing}" in text


def test_the_heading_repeats_the_shape(capsys):
    cli.main(["profile", *SHAPE, "--images", "3", "--batch", "2", "--kernel-sizes", "3"])
    assert "forward: images 2 x 3 x 20 x 30, kernel sizes 3, float32, threads 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--kernel-sizes", "1,2"], "--kernel-sizes must be odd and at most 31, got 2"),
        (["--kernel-sizes", "33"], "--kernel-sizes must be odd and at most 31, got 33"),
        (["--kernel-sizes", "1,x"], "--kernel-sizes must be like 1,3,5, got '1,x'"),
        (["--kernel-sizes", ""], "--kernel-sizes must be like 1,3,5, got ''"),
        (["--height", "0"], "--height must be at least 1, got 0"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--threads", "9999999999"], "--threads must be at most 4096, got 9999999999"),
        (["--seconds", "0"], "--seconds must be positive, got 0"),
        (["--height", "1000000", "--width", "1000000"], "the tensors need"),
    ],
)
def test_a_mistake_is_one_line(capsys, arguments, message):
    assert cli.main(["profile", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_planes_moved_counts_each_plane_once():
    parse = lambda *extra: _parse(["--images", "2", *extra])  # noqa: E731
    assert profile.planes_moved(parse(), [1, 3, 5]) == 70 + 2 + 1
    assert profile.planes_moved(parse("--backward"), [1, 3, 5]) == (70 + 2 + 1) + 3 + (1 + 2 + 3 + 70)


def _parse(arguments):
    import argparse

    parser = argparse.ArgumentParser()
    profile.add_arguments(parser)
    return parser.parse_args(arguments)


def test_runs_take_turns_and_each_clock_has_every_round():
    order = []
    first, second = measure.take_turns([lambda: order.append("a"), lambda: order.append("b")], rounds=3)
    assert order == ["a", "b"] * 3
    for timings in (first, second):
        assert len(timings.wall) == len(timings.process) == 3 and not timings.device


def test_process_time_ignores_sleep_and_wall_time_does_not():
    timings = measure.Timings()
    measure.timed(lambda: time.sleep(0.05), timings)
    assert timings.wall[0] >= 0.05 > 2 * timings.process[0]


def test_device_time_starts_when_the_cpu_is_ahead_and_caches_are_empty(monkeypatch):
    """Without a GPU: the order of what is enqueued, and that the wait is as long as the CPU needs for the call."""
    order, waits = [], []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            order.append("event")

        def synchronize(self):
            order.append("synchronize")

        def elapsed_time(self, last):
            return 2.0  # ms

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: order.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: (order.append("wait"), waits.append(cycles)))
    monkeypatch.setattr(measure, "evict_caches", lambda: order.append("evict"))
    timings = measure.Timings()
    measure.timed(lambda: (order.append("call"), time.sleep(0.01)), timings, "cuda")
    as_called, alone = (
        ["synchronize", "call", "synchronize"],
        ["evict", "wait", "event", "call", "event", "synchronize"],
    )
    assert order == as_called + alone
    assert timings.device == [2e-3] and timings.wall[0] >= 0.01
    assert waits[0] >= 0.01 * 2e9


@pytest.mark.parametrize("measure_host", [measure.host_peak, measure.sampled_peak])
def test_peak_memory_sees_what_was_freed_again(measure_host):
    def use():
        data = np.ones(2**23)  # 64 MiB
        time.sleep(0.3)  # for the thread that samples
        del data

    measure.return_free_memory()  # of earlier tests
    peak, method = measure_host(use)
    if peak is None:
        pytest.skip(method)
    assert 60 * 2**20 < peak < 80 * 2**20


def test_peak_memory_is_beyond_what_was_there():
    held = torch.ones(2**24)
    peak = measure.peak_memory(lambda: held.sum())
    assert peak["host_bytes"] < 8 * 2**20
    assert peak["device_bytes"] is None


def test_an_earlier_peak_does_not_count():
    np.ones(2**25)  # 256 MiB, freed at once
    assert measure.peak_memory(lambda: None)["host_bytes"] < 8 * 2**20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to return freed memory")
def test_memory_that_the_heap_keeps_counts_when_it_is_used_again():
    def blocks():
        return [bytearray(100_000) for _ in range(600)]

    kept = blocks()
    pin = bytearray(100_000)  # above the others, so that the heap cannot shrink
    del kept
    assert measure.peak_memory(blocks)["host_bytes"] > 50 * 10**6
    del pin


def test_interquartile_range():
    assert measure.interquartile_range([1.0, 2.0]) is None
    assert measure.interquartile_range([1.0, 2.0, 3.0, 4.0, 5.0]) == 2.0


def test_rounds_fill_the_budget_within_limits():
    assert measure.rounds_within(2.0, 0.5, 3, 10) == 4
    assert measure.rounds_within(2.0, 5.0, 3, 10) == 3
    assert measure.rounds_within(2.0, 1e-4, 3, 10) == 10


def test_clocks():
    assert measure.clock_for("cpu", 1) == "process"
    assert measure.clock_for("cpu", 2) == "wall"
    assert measure.clock_for("cuda", 1) == "device"


def test_thread_count_is_restored():
    before = torch.get_num_threads()
    with measure.thread_count(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_kernels_are_counted_and_their_occupancy_is_weighted_by_time():
    def kernel(duration, **args):
        return {"cat": "kernel", "dur": duration, "args": args}

    name = "est. achieved occupancy %"
    told = [kernel(1, **{name: 100}), kernel(3, **{name: 20}), {"cat": "cpu_op", "dur": 9}, {"name": "metadata"}]
    assert measure.kernels_of_trace({"traceEvents": told}) == {"launches": 2, "occupancy_percent": 40}
    assert measure.kernels_of_trace({"traceEvents": [kernel(1)]}) == {"launches": 1, "occupancy_percent": None}
    assert measure.kernels_of_trace({"traceEvents": []}) == {"launches": 0, "occupancy_percent": None}
    assert measure.gpu_kernels(lambda: None, "cpu") is None


def test_table_aligns_columns(capsys):
    profile.print_table([("name", "device", "median", "empty"), ("a", "cpu", "10 ms", "")])
    assert re.fullmatch(r"name  device  median\na     cpu      10 ms\n", capsys.readouterr().out)
