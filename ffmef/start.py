"""Where the ``ffmef`` command begins: from here on Ctrl-C gives one line, even during the other imports."""

from __future__ import annotations

import os
import signal
import sys

# The signals that end a command, what is said then, and what handles them by default.
WORDS: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
DEFAULTS: dict[int, object] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
if hasattr(signal, "SIGHUP"):
    WORDS[signal.SIGHUP], DEFAULTS[signal.SIGHUP] = "terminated", signal.SIG_DFL


def end(number, _) -> None:
    """End the process at once, as :mod:`ffmef.interruption` does later, when there is something to clean up."""
    os.write(2, f"ffmef: {WORDS[number]}\n".encode())
    os._exit(128 + number)


def main() -> int:
    """Run the command and return its exit status."""
    ours = [number for number, default in DEFAULTS.items() if signal.getsignal(number) == default]
    for number in ours:
        signal.signal(number, end)
    if sys.argv[1:2] in (["fuse"], ["batch"]):
        # No linear algebra is needed; its threads take memory, and it crashes if there is none for them.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from ffmef.cli import main as run

    try:
        try:
            status = run()
        except SystemExit as ending:  # from argparse
            status = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter writes once more at its end
        status = 0
        if not isinstance(error, BrokenPipeError):  # a broken pipe only means that the reader has seen enough
            os.write(2, f"ffmef: standard output: {error.strerror}\n".encode())
            status = 2
    for number in ours:
        signal.signal(number, signal.SIG_IGN)  # all is done; the interpreter is only shutting down
    return status


if __name__ == "__main__":
    sys.exit(main())
