"""Runs many jobs of fusion: in several processes of this machine, or on the workers of a dask.distributed cluster."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field

from ffmef import workers
from ffmef.errors import InputError
from ffmef.jobs import Options

MEMORY_OF_A_JOB = 2 << 30  # bytes: five frames of 24 megapixels and the work on them; on a GPU, the context too


@dataclass(frozen=True)
class Job:
    """One bracket: absolute paths of its frames and of its result."""

    frames: tuple[str, ...]
    target: str
    options: Options


@dataclass
class Done:
    """How a job went: ``failure`` is None if its result was written."""

    job: Job
    failure: str | None = None
    remarks: list[str] = field(default_factory=list)


def default_processes(device: str | None = None) -> int:
    """Return one process per processor, as far as memory allows, here and on the GPU if one is named."""
    most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = _available_memory()
    if memory is not None:
        most = min(most, memory // MEMORY_OF_A_JOB)
    if device is not None and device.startswith("cuda"):
        import torch

        most = min(most, torch.cuda.mem_get_info(device)[0] // MEMORY_OF_A_JOB)
    return max(1, most)


def _available_memory() -> int | None:
    """Return the bytes that new processes can use, including the file cache; None if unknown."""
    with contextlib.suppress(OSError, ValueError, IndexError, StopIteration), open("/proc/meminfo") as facts:
        return next(1024 * int(line.split()[1]) for line in facts if line.startswith("MemAvailable:"))
    with contextlib.suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return None


def perform(job: Job) -> Done:
    """Do one job; an error with its files is only its own failure."""
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
    """Yield each job as it ends. A process that dies (out of memory) loses only its job."""
    return _done(workers.in_processes(perform, jobs, processes))


def on_cluster(jobs: Sequence[Job], address: str) -> Iterator[Done]:
    """Yield each job as it ends on a dask.distributed cluster, whose workers see the same files."""
    return _done(workers.on_cluster(perform, jobs, address))


def _done(outcomes: Generator[tuple[Job, Done | workers.Lost], None, None]) -> Iterator[Done]:
    with contextlib.closing(outcomes):  # a caller that stops early stops the processes
        for job, outcome in outcomes:
            yield Done(job, outcome.reason) if isinstance(outcome, workers.Lost) else outcome


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
    if scheduler:
        outcomes = on_cluster(jobs, scheduler)
    else:
        outcomes = in_processes(jobs, processes or default_processes(jobs[0].options.fusion.get("device")))
    return progress(outcomes, len(jobs))
