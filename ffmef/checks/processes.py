"""Shares the matrix among several processes: Triton takes seconds to compile the kernels of every problem."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

from ffmef.checks.judge import Tally, check
from ffmef.checks.problems import Problem

if TYPE_CHECKING:
    from ffmef.ops.types import Backend

MOST_WORKERS = 14


def worker_count(backend: str, device: str) -> int:
    """Return how many processes check a backend: several if kernels are compiled on first use."""
    import torch

    if backend != "triton" or device != "cuda":
        return 1
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Each process has a context of some hundred MB on the GPU.
    return max(1, min(processors - 1, MOST_WORKERS, torch.cuda.mem_get_info()[0] // 2**30))


def check_in_processes(backend: Backend, device: str, problems: list[Problem], workers: int) -> Tally:
    """Do what :func:`check` does, with the problems shared among ``workers`` processes.

    The result is that of one process, except for the order of the failures.
    """
    if workers == 1:
        return check(backend, device, problems)
    shares = [problems[worker::workers] for worker in range(workers)]
    # A forked process could not use the GPU.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        tallies = list(pool.map(_check_with_one_thread, [backend] * workers, [device] * workers, shares))
    return Tally(
        passed=sum(tally.passed for tally in tallies),
        worst=max(tally.worst for tally in tallies),
        failures=[failure for tally in tallies for failure in tally.failures],
    )


def _check_with_one_thread(backend: Backend, device: str, problems: list[Problem]) -> Tally:
    import torch

    torch.set_num_threads(1)
    return check(backend, device, problems)
