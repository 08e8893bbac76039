"""Ctrl-C in a command: one line, exit status 130, nothing half-written, whenever it comes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

from ffmef import files, start

STATUS = 130


@contextlib.contextmanager
def ends_at_once(command: str) -> Iterator[None]:
    """Let SIGINT end the process at once, with one line and status 130.

    ``KeyboardInterrupt`` would be raised in whatever code is running: an import turns it into an ``ImportError``, a
    destructor or callback prints it and continues. This handler ends the process, after it has removed what an
    unfinished write left. Nothing changes outside the main thread, or if a handler other than Python's or that of
    :mod:`ffmef.start` is set.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before not in (
        signal.default_int_handler,
        start.end,
    ):
        yield
        return

    def end(*_) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        files.forget_unfinished()
        os.write(_terminal(), f"ffmef {command}: interrupted\n".encode())
        os._exit(STATUS)

    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _terminal() -> int:
    """Return where standard error goes, even while it is redirected to keep decoders quiet."""
    io = sys.modules.get("ffmef.imaging.io")
    return next(iter(getattr(io, "hidden_error_streams", ())), 2)
