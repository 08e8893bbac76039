"""The ``ffmef`` command: finds the subcommand, runs it, and turns a user's mistake into one line."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import pkgutil
import sys
from typing import Any, NoReturn

from ffmef import commands, interruption
from ffmef.errors import InputError, printable
from ffmef.version import __version__

CATCHING = ("batch", "evaluate", "train")  # clean up after KeyboardInterrupt: other processes, checkpoints


# Texts of the system's errors, wherever they come from, and what a user needs to know.
_SYSTEM_LIMITS = {
    "can't start new thread": "the system permits no further thread: it lacks memory, or limits them",
    "failed to map segment": "there is not enough memory to load a library",
    "(-4:Insufficient memory)": "there is not enough memory",
    "annot allocate memory": "there is not enough memory to load a library",
}


class _Parser(argparse.ArgumentParser):
    """Reports a mistake in one line; only ``--help`` prints the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {printable(' '.join(message.split()))} ('{self.prog} --help' lists the options)\n")

    def _print_message(self, message: str, file=None) -> None:
        (file or sys.stderr).write(message)  # argparse would silently ignore a full disk


def build_parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """Return the parser with one subparser for each module of :mod:`ffmef.commands`.

    Args:
        chosen: import and describe only this command, and list the others by one line each; None means all.
    """
    parser = _Parser(prog="ffmef", description="Fuse pictures of one scene into one picture.")
    parser.add_argument("--version", action="version", version=f"ffmef {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for found in sorted(pkgutil.iter_modules(commands.__path__), key=lambda module: module.name):
        if chosen is not None and chosen != found.name:
            subparsers.add_parser(found.name, help=_summary(found))
            continue
        module = importlib.import_module(f"ffmef.commands.{found.name}")
        summary = (module.__doc__ or "").strip().splitlines()[0]
        subparser = subparsers.add_parser(found.name, help=summary, description=summary)
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def _summary(module: pkgutil.ModuleInfo) -> str:
    """Return the first line of a module's docstring; importing all of them takes longer than most answers."""
    finder: Any = module.module_finder  # for files or for an archive
    source = finder.find_spec(module.name).loader.get_source(module.name)
    return source.split('"""', 2)[1].strip().splitlines()[0]


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; return 0, its own status, or 2 after a mistake that the message names."""
    argv = sys.argv[1:] if argv is None else argv
    _prepare_streams()
    command = argv[0] if argv else ""
    with interruption.ends_at_once(command):
        args = _parsed(argv)
        if args.command not in CATCHING:
            return _run(args)
    with interruption.raises(command):
        return _run(args)


def _parsed(argv: list[str]) -> argparse.Namespace:
    # Options before the command end the program, so the command is the first argument or none.
    command = argv[0] if argv else ""
    parser = build_parser(command)
    args, unknown = parser.parse_known_args(argv)
    if unknown and args.command == command:
        parser.prog = f"ffmef {command}"  # parsers of commands leave what they do not know to this one
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return args


def _prepare_streams() -> None:
    """Keep files opened later from becoming a standard stream that the caller closed (``2>&-``); print any name."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
    if sys.stderr is None:  # print(file=None) would write to standard output
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names that the terminal's encoding lacks


def _run(args: argparse.Namespace) -> int:
    try:
        return args.run(args) or 0
    except InputError as error:
        print(printable(f"ffmef {args.command}: {error}"), file=sys.stderr)
        return 2
    except MemoryError:
        print(f"ffmef {args.command}: there is not enough memory", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a name that is too long or a lost file system, from anywhere
        name = printable(str(error.filename)) if error.filename is not None else ""
        name = f"{name[:200]} ..." if len(name) > 200 else name
        print(f"ffmef {args.command}: {name and name + ': '}{error.strerror or error}", file=sys.stderr)
        return 2
    except Exception as error:
        why = next((why for sign, why in _SYSTEM_LIMITS.items() if sign in str(error)), None)
        if why is None:
            raise
        print(f"ffmef {args.command}: {why}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        word, status = interruption.outcome(error)
        print(f"ffmef {args.command}: {word}", file=sys.stderr)
        return status


if __name__ == "__main__":
    sys.exit(main())
