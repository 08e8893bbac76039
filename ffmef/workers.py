"""Runs a function for many items, in several processes or on the workers of a dask.distributed cluster.

An error with one item is only that item's failure: a process that dies, mostly for lack of memory, takes no other item
with it.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from ffmef.errors import InputError


@dataclass(frozen=True)
class Lost:
    """Stands for the result of an item whose worker returned none."""

    reason: str


LEFT = "the connection to the scheduler was lost"
DIED = Lost("its process died, perhaps for lack of memory: try fewer --jobs")


def in_processes(
    function: Callable[[Any], Any], items: Sequence, processes: int, begin: Callable[[], None] | None = None
) -> Generator[tuple[Any, Any], None, None]:
    """Yield each item with its result, or with :class:`Lost`, as it ends.

    Args:
        function: defined in a module, because processes start afresh.
        items: its arguments.
        processes: how many run at a time.
        begin: called first in every process.
    """
    suspects = yield from _in_pool(function, list(items), processes, begin)
    for item in suspects:  # one of them killed its process: run alone, it takes no other with it
        for left in (yield from _in_pool(function, [item], 1, begin)):
            yield left, DIED


def _in_pool(function, items: list, processes: int, begin) -> Generator[tuple[Any, Any], None, list]:
    """Yield each item and its result as it ends; return the items that were lost when a process died."""
    context = multiprocessing.get_context("spawn")
    lost: list = []
    waiting = items[::-1]

    def new_pool() -> futures.ProcessPoolExecutor:
        return futures.ProcessPoolExecutor(min(processes, len(items)) or 1, context, _begin, (begin,))

    pool = new_pool()
    running: dict[futures.Future, Any] = {}
    try:
        while waiting or running:
            while waiting and len(running) < 2 * processes:
                item = waiting.pop()
                try:
                    running[pool.submit(function, item)] = item
                except BrokenProcessPool:
                    waiting.append(item)
                    break
            ended, _ = futures.wait(running, return_when=futures.FIRST_COMPLETED)
            for future in ended:
                item = running.pop(future)
                try:
                    yield item, future.result()
                except BrokenProcessPool:
                    lost.append(item)
            if lost and not running and waiting:
                pool.shutdown(wait=False)
                pool = new_pool()
    except BaseException:
        _stop(pool)
        raise
    pool.shutdown()
    return lost


def _begin(begin: Callable[[], None] | None) -> None:
    """Leave Ctrl-C to the parent; end at once, without half a file, when the parent says so or is gone."""
    from ffmef import files

    def end(*_) -> None:
        files.forget_unfinished()
        os._exit(1)

    def end_with_parent() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
        end()  # a killed run cannot tell its workers to stop, and they would wait for ever

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=end_with_parent, daemon=True).start()
    if begin is not None:
        begin()


def _stop(pool: futures.ProcessPoolExecutor) -> None:
    for process in list((pool._processes or {}).values()):
        process.terminate()
    pool.shutdown(wait=True, cancel_futures=True)


def on_cluster(function: Callable[[Any], Any], items: Sequence, address: str) -> Generator[tuple[Any, Any], None, None]:
    """Yield each item with its result or :class:`Lost`, as it ends, from workers that see the same files.

    Raises:
        InputError: distributed is missing, or the scheduler does not answer.
    """
    try:
        import distributed
    except ImportError:
        raise InputError("--scheduler needs distributed: pip install 'ffmef[cluster]'") from None
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # a scheduler that dies costs a line per item, and no tracebacks
    try:
        yield from _on_cluster(distributed, function, items, address)
    finally:
        logging.disable(before)


def _on_cluster(distributed, function, items: Sequence, address: str) -> Generator[tuple[Any, Any], None, None]:
    try:
        # Checked first: a client of an invalid address takes long to shut down.
        place = distributed.comm.resolve_address(distributed.comm.normalize_address(address))
        if not 0 < (port := distributed.comm.get_address_host_port(place)[1]) < 1 << 16:
            raise ValueError(f"the port must be from 1 to 65535, got {port}")
        if place.startswith("tls") and distributed.Security().get_connection_args("client").get("ssl_context") is None:
            raise ValueError("TLS needs certificates, set in the configuration of distributed")
        client = distributed.Client(address, timeout="10s", set_as_default=False)
    except (OSError, ValueError, TypeError, TimeoutError, NotImplementedError) as error:
        raise InputError(f"--scheduler {address} does not answer: {' '.join(str(error).split())}") from None
    tasks: dict = {}
    try:
        tasks = {client.submit(function, item, pure=False, retries=1): item for item in items}
        for future in distributed.as_completed(list(tasks), loop=client.loop):
            item = tasks[future]
            try:
                yield item, future.result()
            except Exception as error:  # its worker died, or has another ffmef
                why = f"its worker failed: {type(error).__name__}: {' '.join(str(error).split())}"
                yield item, Lost(LEFT if "scheduler-connection-lost" in why else why)
    finally:
        with contextlib.suppress(Exception):
            client.cancel(list(tasks))
        client.close()
