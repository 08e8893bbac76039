"""Runs many jobs of fusion: in several processes of this machine, or on the workers of a dask.distributed cluster."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field

from ffmef.errors import InputError
from ffmef.jobs import Options

MEMORY_OF_A_JOB = 2 << 30  # bytes: five frames of 24 megapixels and the work on them


@dataclass(frozen=True)
class Job:
    """One bracket: absolute paths of its frames and of its result."""

    frames: tuple[str, ...]
    target: str
    options: Options


@dataclass
class Done:
    """How a job went: ``failure`` is None where its result was written."""

    job: Job
    failure: str | None = None
    remarks: list[str] = field(default_factory=list)


def default_processes() -> int:
    """Return one process for each processor, as far as there is memory."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(ValueError, OSError, AttributeError):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
        return max(1, min(processors, memory // MEMORY_OF_A_JOB))
    return processors


def perform(job: Job) -> Done:
    """Do one job; what is wrong with its files is its failure and nobody else's."""
    from ffmef.jobs import fuse_files

    remarks: list[str] = []
    try:
        os.makedirs(os.path.dirname(job.target), exist_ok=True)
        fuse_files(job.frames, job.target, job.options, remarks.append)
    except InputError as error:
        return Done(job, str(error), remarks)
    except MemoryError:
        return Done(job, "there is not enough memory", remarks)
    except OSError as error:
        return Done(job, f"{error.filename or job.target}: {error.strerror or error}", remarks)
    except Exception as error:  # one bracket must not stop a thousand others
        return Done(job, f"{type(error).__name__}: {' '.join(str(error).split())}", remarks)
    return Done(job, None, remarks)


def in_processes(jobs: Sequence[Job], processes: int) -> Iterator[Done]:
    """Yield each job as it ends. A process that dies (out of memory) takes only its own job with it."""
    suspects = yield from _in_pool(list(jobs), processes)
    for job in suspects:  # one of them killed its process: alone, it cannot take another along
        for left in (yield from _in_pool([job], 1)):
            yield Done(left, "its process died, perhaps for lack of memory: try fewer --jobs")


def _in_pool(jobs: list[Job], processes: int) -> Iterator[Done]:
    """Yield each job as it ends; return those that were lost when a process died."""
    context = multiprocessing.get_context("spawn")
    lost: list[Job] = []
    waiting = jobs[::-1]
    pool = futures.ProcessPoolExecutor(min(processes, len(jobs)) or 1, context, _begin)
    running: dict[futures.Future, Job] = {}
    try:
        while waiting or running:
            while waiting and len(running) < 2 * processes:
                job = waiting.pop()
                try:
                    running[pool.submit(perform, job)] = job
                except BrokenProcessPool:
                    waiting.append(job)
                    break
            ended, _ = futures.wait(running, return_when=futures.FIRST_COMPLETED)
            for future in ended:
                job = running.pop(future)
                try:
                    yield future.result()
                except BrokenProcessPool:
                    lost.append(job)
            if lost and not running and waiting:
                pool.shutdown(wait=False)
                pool = futures.ProcessPoolExecutor(processes, context, _begin)
    except BaseException:
        _stop(pool)
        raise
    pool.shutdown()
    return lost


def _begin() -> None:
    """Leave Ctrl-C to the parent, and end at once, without half a file, when it says so."""
    from ffmef import files

    def end(*_) -> None:
        files.forget_unfinished()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)


def _stop(pool: futures.ProcessPoolExecutor) -> None:
    for process in list((pool._processes or {}).values()):
        process.terminate()
    pool.shutdown(wait=True, cancel_futures=True)


def on_cluster(jobs: Sequence[Job], address: str) -> Iterator[Done]:
    """Yield each job as it ends on a dask.distributed cluster, whose workers see the same files.

    Raises:
        InputError: distributed is missing, or the scheduler does not answer.
    """
    try:
        import distributed
    except ImportError:
        raise InputError("--scheduler needs distributed: pip install 'ffmef[cluster]'") from None
    try:
        client = distributed.Client(address, timeout="10s", set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise InputError(f"--scheduler {address} does not answer: {' '.join(str(error).split())}") from None
    tasks: dict = {}
    try:
        tasks = {client.submit(perform, job, pure=False, retries=1): job for job in jobs}
        for future in distributed.as_completed(list(tasks), loop=client.loop):
            job = tasks[future]
            try:
                yield future.result()
            except Exception as error:  # its worker died, or has another ffmef
                yield Done(job, f"its worker failed: {type(error).__name__}: {' '.join(str(error).split())}")
    finally:
        with contextlib.suppress(Exception):
            client.cancel(list(tasks))
        client.close()


def run(
    jobs: Sequence[Job],
    *,
    processes: int | None = None,
    scheduler: str | None = None,
    progress: Callable[[Iterator, int], Iterator] = lambda outcomes, total: outcomes,
) -> Iterator[Done]:
    """Yield each job as it ends, in processes or on a cluster."""
    if not jobs:
        return iter(())
    outcomes = on_cluster(jobs, scheduler) if scheduler else in_processes(jobs, processes or default_processes())
    return progress(outcomes, len(jobs))
