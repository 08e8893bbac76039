"""Ctrl-C, or a request to end: one line, exit status 128 + signal, nothing half-written, whenever it comes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from ffmef import files, start


class Terminated(KeyboardInterrupt):
    """SIGTERM, or SIGHUP from a terminal that was closed: handled like Ctrl-C."""


def outcome(error: KeyboardInterrupt) -> tuple[str, int]:
    """Return a word for what ended the command, and its exit status.

    >>> outcome(KeyboardInterrupt()), outcome(Terminated(15))
    (('interrupted', 130), ('terminated', 143))
    """
    number = error.args[0] if isinstance(error, Terminated) else signal.SIGINT
    return start.WORDS[number], 128 + number


@contextlib.contextmanager
def ends_at_once(command: str) -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP end the process at once, with one line and status 128 + signal.

    ``KeyboardInterrupt`` would be raised in whatever code is running: an import turns it into an ``ImportError``, a
    destructor or callback prints it and continues. This handler ends the process, after it has removed what an
    unfinished write left. Nothing changes outside the main thread, or for a signal with a handler other than Python's
    or that of :mod:`ffmef.start`.
    """
    signals = _ours()

    def end(number, _) -> None:
        for other in signals:
            signal.signal(other, signal.SIG_IGN)
        _end(command, number)

    for number in signals:
        signal.signal(number, end)
    try:
        yield
    finally:
        _restore(signals)


@contextlib.contextmanager
def raises(command: str) -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise :class:`Terminated`, for commands that clean up; a second one ends at once.

    Nothing changes for one of several processes of a training run: it may wait for the others in native code, where
    no handler of Python's runs.
    """
    signals = [] if "WORLD_SIZE" in os.environ else [number for number in _ours() if number != signal.SIGINT]

    def end(number, _) -> None:
        for other in signals:
            signal.signal(other, lambda number, _: _end(command, number))
        raise Terminated(number)

    for number in signals:
        signal.signal(number, end)
    try:
        yield
    finally:
        _restore(signals)


def _ours() -> list[int]:
    """Return the signals that nobody else handles or ignores."""
    if threading.current_thread() is not threading.main_thread():
        return []
    return [number for number, default in start.DEFAULTS.items() if signal.getsignal(number) in (default, start.end)]


def _restore(signals: list[int]) -> None:
    for number in signals:
        default: Any = start.DEFAULTS[number]
        signal.signal(number, default)


def _end(command: str, number: int) -> None:
    files.forget_unfinished()
    os.write(_terminal(), f"ffmef {command}: {start.WORDS[number]}\n".encode())
    os._exit(128 + number)


def _terminal() -> int:
    """Return where standard error goes, even while it is redirected to keep decoders quiet."""
    io = sys.modules.get("ffmef.imaging.io")
    return next(iter(getattr(io, "hidden_error_streams", ())), 2)
