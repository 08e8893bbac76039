"""The ``ffmef`` command: finds the subcommand, runs it, and turns a user's mistake into one line."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys

from ffmef import commands
from ffmef.errors import InputError
from ffmef.version import __version__


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with one subparser for each module of :mod:`ffmef.commands`."""
    parser = argparse.ArgumentParser(prog="ffmef", description="Fuse pictures of one scene into one picture.")
    parser.add_argument("--version", action="version", version=f"ffmef {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in sorted(module.name for module in pkgutil.iter_modules(commands.__path__)):
        module = importlib.import_module(f"ffmef.commands.{name}")
        summary = module.__doc__.strip().splitlines()[0]
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; return 0, its own status, or 2 after a mistake that the message names."""
    args = build_parser().parse_args(argv)
    try:
        return args.run(args) or 0
    except InputError as error:
        print(f"ffmef {args.command}: {error}", file=sys.stderr)
        return 2
    except MemoryError:
        print(f"ffmef {args.command}: there is not enough memory", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a name that is too long, a lost file system: wherever it was met
        name = repr(str(error.filename))[1:-1] if error.filename is not None else ""
        name = f"{name[:200]} ..." if len(name) > 200 else name
        print(f"ffmef {args.command}: {name and name + ': '}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"ffmef {args.command}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
