"""Where the ``ffmef`` command begins: Ctrl-C is one line from here on, also while everything else is being imported."""

from __future__ import annotations

import os
import signal
import sys


def end(*_) -> None:
    """End the process at once, as :mod:`ffmef.interruption` does later on, when there is something to clean up."""
    os.write(2, b"ffmef: interrupted\n")
    os._exit(130)


def main() -> int:
    """Run the command and return its exit status."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, end)
    if sys.argv[1:2] in (["fuse"], ["batch"]):
        # They need no linear algebra, whose threads take memory, and which crashes where there is none for them.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from ffmef.cli import main as run

    try:
        try:
            status = run()
        except SystemExit as ending:  # of argparse
            status = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter writes once more at its end
        status = 0
        if not isinstance(error, BrokenPipeError):  # then whoever read it has seen enough
            os.write(2, f"ffmef: standard output: {error.strerror}\n".encode())
            status = 2
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done; the interpreter is only putting things away
    return status


if __name__ == "__main__":
    sys.exit(main())
